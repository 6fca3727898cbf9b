"""Who calls: from the headers of a request to a `Caller`.

Called by `api.deps` for every request; calls `state`. Basic auth is the administrator, 64 hexadecimal digits are a
service's token; OIDC tokens enter in `_bearer`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re

from oscar.core.platform import Platform
from oscar.errors import Unauthorized
from oscar.model.object import Credential
from oscar.model.user import ADMIN, Caller, Entrance

_SERVICE_TOKEN = re.compile(r"[0-9a-f]{64}")
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="oscar", charset="UTF-8"'}


async def identify(p: Platform, authorization: str | None) -> Caller:
    """The caller that an `Authorization` header proves.

    Raises:
        Unauthorized: it is missing, malformed, or proves nobody; the answer never says which part was wrong.
    """
    if not authorization:
        raise Unauthorized("Log in with basic auth or a bearer token", headers=_CHALLENGE)
    scheme, _, value = authorization.partition(" ")
    match scheme.lower():
        case "basic":
            return _basic(p, value.strip())
        case "bearer":
            return await _bearer(p, value.strip())
    raise Unauthorized("Only basic auth and bearer tokens are taken", headers=_CHALLENGE)


def _basic(p: Platform, value: str) -> Caller:
    try:
        user, separator, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise Unauthorized("The basic auth header is malformed", headers=_CHALLENGE) from None
    right = hmac.compare_digest(user.encode(), p.settings.username.encode())
    right &= hmac.compare_digest(password.encode(), p.password.encode())
    if not (right and separator):
        raise Unauthorized("Wrong user name or password", headers=_CHALLENGE)
    return Caller(ADMIN, Entrance.BASIC, admin=True, name=user)


async def _bearer(p: Platform, token: str) -> Caller:
    if _SERVICE_TOKEN.fullmatch(token):
        row = await p.services.by_token(token)
        if row is not None:
            return Caller(row.owner, Entrance.TOKEN, service_id=row.id, name=row.name)
    raise Unauthorized("The bearer token is not known here", headers=_CHALLENGE)


async def credential(p: Platform, caller: Caller) -> Credential:
    """The caller's S3 keys, made at first sight."""
    await p.users.ensure(caller.id, name=caller.name)
    return await p.buckets.credential_of(caller.id)
