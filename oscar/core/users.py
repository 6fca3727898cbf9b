"""Who calls: from the headers of a request to a `Caller`; what a user has is made when he is first seen.

Called by `api.deps` for every request; calls `auth.oidc` and `state`. Basic auth is the administrator, 64 hexadecimal
digits are a service's token, any other bearer is an OIDC token. A known token costs neither a statement nor a call.
"""

from __future__ import annotations

import base64
import hmac
import re
from typing import TYPE_CHECKING

from oscar import telemetry
from oscar.auth.claims import refusal
from oscar.core.platform import Platform
from oscar.errors import Unauthorized, Unavailable
from oscar.model.object import Credential
from oscar.model.user import ADMIN, Caller, Entrance, Identity

if TYPE_CHECKING:
    from oscar.auth.oidc import Oidc

log = telemetry.get("users")

_SERVICE_TOKEN = re.compile(r"[0-9a-f]{64}")
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="oscar", charset="UTF-8"'}


async def identify(p: Platform, authorization: str | None) -> Caller:
    """The caller that an `Authorization` header proves.

    Raises:
        Unauthorized: it is missing, malformed, or proves nobody; the answer never says which part was wrong.
    """
    if not authorization:
        error = Unauthorized("Log in with basic auth or a bearer token", headers=_CHALLENGE)
        error.guess = False
        raise error
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
    except ValueError:  # not base64, not ASCII, not UTF-8
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
    elif p.oidc is not None:
        return await _oidc(p, p.oidc, token)
    raise refusal("The bearer token is not known here")


async def _oidc(p: Platform, oidc: Oidc, token: str) -> Caller:
    identity = await oidc.identify(token)
    if p.provisioned.get(identity.subject) != identity.issuer:
        await _provision(p, identity)
    # Decided anew for every request and kept nowhere, so that no request can act with the rights of another.
    admin = identity.subject in p.settings.users_admin
    return Caller(
        identity.subject,
        Entrance.OIDC,
        admin=admin,
        name=identity.name,
        groups=identity.groups,
        bearer=token,
    )


async def _provision(p: Platform, identity: Identity) -> None:
    """Make what a user has: his row and his S3 keys. May be done twice at once."""
    speaks = await p.users.admit(
        identity.subject, name=identity.name, issuer=identity.issuer, trusted=p.settings.oidc_issuers
    )
    if speaks != identity.issuer:
        raise refusal(
            "Another issuer knows somebody else by your subject",
            f"log in by the issuer {speaks}",
            genuine=True,
        )
    try:
        await p.buckets.credential_of(identity.subject)
    except Unavailable as error:
        # The object store is away: what doesn't need it goes on. The next request tries again.
        log.warning("keys of a user are made later", error=error.message)
        return
    p.provisioned[identity.subject] = identity.issuer


async def credential(p: Platform, caller: Caller) -> Credential:
    """The caller's S3 keys, made at first sight."""
    await p.users.ensure(caller.id, name=caller.name)
    return await p.buckets.credential_of(caller.id)
