"""Exposed services: who may reach them, which replica takes a request, stop, start and restart, state and logs.

Called by `api.exposed` (the routes) and `api.exposed_proxy` (the requests that go through); calls `core.services`,
`core.users` and the engine's ability to expose.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from oscar.auth.rules import Action, may, require_user
from oscar.compute.base import Replica
from oscar.core import deployments, services, users
from oscar.core.platform import Known, Platform
from oscar.errors import (
    BadRequest,
    Forbidden,
    OscarError,
    RunNotFound,
    ServiceNotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from oscar.model.user import Caller, Entrance
from oscar.state.exposures import ExposureRow

LOG_LINES = 1000
"""Lines of a deployment's log when nothing else is asked for."""
MOST_LOG_LINES = 10_000
SESSION_S = 12 * 3600
"""Seconds after which a browser has to show its token again."""
_RETRY = {"Retry-After": "2"}
_NAME = re.compile(r"[a-z0-9-]{1,39}")


# What users ask for.


async def stop(p: Platform, caller: Caller, name: str, *, owner: str | None = None) -> dict[str, Any]:
    """Have no replicas, until `start`; definition, address and volume stay.

    Raises:
        BadRequest (400): it is not exposed. Forbidden (403), ServiceNotFound (404).
    """
    known = await _own(p, caller, name, owner)
    return await _applied(p, known, await p.exposures.set_stopped(known.row.id, stopped=True))


async def start(p: Platform, caller: Caller, name: str, *, owner: str | None = None) -> dict[str, Any]:
    """Have replicas again. Raises as `stop`."""
    known = await _own(p, caller, name, owner)
    return await _applied(p, known, await p.exposures.set_stopped(known.row.id, stopped=False))


async def restart(p: Platform, caller: Caller, name: str, *, owner: str | None = None) -> dict[str, Any]:
    """Replace all replicas, new ones first; starts a stopped service. Raises as `stop`."""
    known = await _own(p, caller, name, owner)
    return await _applied(p, known, await p.exposures.restart(known.row.id))


async def status(p: Platform, caller: Caller, name: str, *, owner: str | None = None) -> dict[str, Any]:
    """How the service's long-running part does: `types.ServiceDeploymentStatus`."""
    require_user(caller)
    return await _status(p, await services.find(p, caller, name, action=Action.SEE, owner=owner))


async def logs(
    p: Platform,
    caller: Caller,
    name: str,
    *,
    owner: str | None = None,
    timestamps: bool = False,
    tail: int | None = None,
) -> dict[str, Any]:
    """What the replicas have said, oldest first: `types.DeploymentLogStream`; says so when there is nothing.

    Raises:
        BadRequest (400): a count that makes no sense. Forbidden (403), ServiceNotFound (404).
    """
    require_user(caller)
    if tail is not None and not 0 < tail <= MOST_LOG_LINES:
        raise BadRequest(f"tailLines must be from 1 to {MOST_LOG_LINES}", field="tailLines")
    known = await services.find(p, caller, name, action=Action.CHANGE, owner=owner)
    answer: dict[str, Any] = {"service_name": name, "available": False, "entries": []}
    if not known.service.expose.active or p.exposes is None:
        return {**answer, "message": "unavailable: the service has no long-running part"}
    try:
        lines = [
            line async for line in p.exposes.deployment_logs(known.row.owner, name, tail=tail or LOG_LINES)
        ]
    except RunNotFound:
        lines = []
    if not lines:
        return {**answer, "message": "unavailable: no replica has written anything yet"}
    entries = [
        {"timestamp": line.time, "message": line.text} if timestamps else {"message": line.text}
        for line in lines
    ]
    return {**answer, "available": True, "entries": entries, "message": f"{len(entries)} lines"}


async def _own(p: Platform, caller: Caller, name: str, owner: str | None) -> Known:
    require_user(caller)
    known = await services.find(p, caller, name, action=Action.CHANGE, owner=owner)
    if not known.service.expose.active:
        raise BadRequest(
            f'The service "{name}" is not exposed', field="expose.api_port", fix="give it an expose section"
        )
    if p.exposes is None:
        raise Unavailable("This engine can't expose services")
    return known


async def _applied(p: Platform, known: Known, row: ExposureRow) -> dict[str, Any]:
    await deployments.apply(p, known, row)
    return await _status(p, known)


async def _status(p: Platform, known: Known) -> dict[str, Any]:
    found = await deployments.deployment(p, known.row, exposed=known.service.expose.active)
    namespace = known.service.namespace or p.settings.services_namespace
    return {"service_name": known.row.name, "namespace": namespace, **deployments.summary(found)}


# Who may reach a service.


@dataclass(frozen=True, slots=True)
class Shown:
    """The credentials that came with a request."""

    authorization: str | None = None
    token: str | None = None
    """Of `?token=`."""
    cookie: str | None = None
    """Of our own cookie."""
    address: str = ""
    """Where the request came from: wrong log-ins are counted by it."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that may go through."""

    known: Known
    caller: Caller | None
    """None: nobody had to log in."""
    session: str | None = None
    """Value of a cookie to set."""
    lifetime: int = 0
    """Seconds that the cookie is good for."""
    strip_authorization: bool = True
    strip_token: bool = True


def cookie_name(service: str) -> str:
    """The cookie that stands for a token in browsers."""
    return f"oscar_service_{service}_auth"


async def target(p: Platform, name: str, owner: str | None = None) -> list[Known]:
    """The exposed services of that name, one per owner.

    Raises:
        ServiceNotFound: there is none.
    """
    found = [services.parsed(p, row) for row in await p.services.get(name, owner)]
    if not (exposed := [known for known in found if known.service.expose.active]):
        raise ServiceNotFound(f'There is no exposed service named "{name}"')
    return exposed


async def admit(p: Platform, name: str, shown: Shown, *, owner: str | None = None) -> Admission:
    """Let a request through to an exposed service, or not.

    Raises:
        ServiceNotFound (404), Unauthorized (401), Forbidden (403), BadRequest (400): `owner` must choose.
    """
    found = await target(p, name, owner)
    return await _one(name, (_admit(p, known, shown) for known in found))


async def check_access(p: Platform, name: str, shown: Shown, *, owner: str | None = None) -> Admission:
    """Who shows these credentials, if he may call the service, whether it asks for any or not.

    Whoever may not hears the same of a service that is there and of one that is not.

    Raises:
        Unauthorized (401): nobody known. ServiceNotFound (404): there is none, or he may not see it.
        BadRequest (400): `owner` must choose.
    """
    found = [services.parsed(p, row) for row in await p.services.get(name, owner)]
    if found:
        with contextlib.suppress(Forbidden):
            return await _one(name, (authenticate(p, known, shown) for known in found))
    else:
        await _identify(p, _presented(shown, name), shown.address)
    raise ServiceNotFound(f'There is no service named "{name}", or you may not see it', field="serviceName")


async def _one(name: str, asked: Iterable[Coroutine[Any, Any, Admission]]) -> Admission:
    """The only one of the services of a name that lets the request through."""
    problem: OscarError | None = None
    admissions: list[Admission] = []
    for each in asked:
        try:
            admissions.append(await each)
        except (Unauthorized, Forbidden) as error:
            problem = error
    if len(admissions) == 1:
        return admissions[0]
    if admissions:
        raise BadRequest(
            f'More than one service named "{name}" is open to you', field="owner", fix="choose one by ?owner="
        )
    assert problem is not None  # noqa: S101 - none was admitted
    raise problem


async def _admit(p: Platform, known: Known, shown: Shown) -> Admission:
    expose = known.service.expose
    if not expose.set_auth:
        # The application may have a log-in of its own; what proves somebody to us is not for it.
        return Admission(
            known,
            None,
            strip_authorization=await _is_ours(p, known, shown.authorization, shown.address),
            strip_token=await _is_ours(p, known, f"Bearer {shown.token}" if shown.token else None, ""),
        )
    if expose.auth_type == "basic":
        if shown.authorization and _is_service_login(known, shown.authorization):
            return Admission(known, _token_caller(known))
        raise _refusal(known.row.name, "Log in with the service's name and its token")
    return await authenticate(p, known, shown)


async def authenticate(p: Platform, known: Known, shown: Shown) -> Admission:
    """Who shows these credentials to the service: its token, an OIDC token, or the cookie that stands for one.

    Raises:
        Unauthorized (401): nobody known. Forbidden (403): somebody who may not call the service.
    """
    if shown.authorization and _is_service_login(known, shown.authorization):
        return Admission(known, _token_caller(known))
    if shown.authorization is None and shown.token is None and shown.cookie:
        caller = _session(p, known, shown.cookie)
        if caller is not None:
            return Admission(known, _permitted(caller, known))
    presented = _presented(shown, known.row.name)
    caller = _permitted(await _identify(p, presented, shown.address), known)
    if shown.token is None or shown.authorization is not None:
        return Admission(known, caller)
    lifetime = _lifetime(shown.token)
    return Admission(known, caller, _signed(known, caller, lifetime), lifetime)


def open_session(admission: Admission, shown: Shown) -> tuple[str, int]:
    """The cookie's value and its seconds for somebody who was admitted."""
    assert admission.caller is not None  # noqa: S101 - `authenticate` always names somebody
    token = shown.authorization.partition(" ")[2].strip() if shown.authorization else shown.token or ""
    lifetime = _lifetime(token)
    return _signed(admission.known, admission.caller, lifetime), lifetime


def _permitted(caller: Caller, known: Known) -> Caller:
    if may(caller, Action.CALL, known.thing):
        return caller
    raise Forbidden(f'You may not use the service "{known.row.name}"')


def _token_caller(known: Known) -> Caller:
    return Caller(known.row.owner, Entrance.TOKEN, service_id=known.row.id, name=known.row.name)


def _is_service_login(known: Known, authorization: str) -> bool:
    """Whether it is basic authentication with the service's name and token."""
    user, password = _basic(authorization)
    right = hmac.compare_digest(user.encode(), known.row.name.encode())
    return right & hmac.compare_digest(password.encode(), known.row.token.encode())


def _basic(authorization: str) -> tuple[str, str]:
    """User and password of basic authentication; empty when it is something else."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        user, _, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except ValueError:  # not base64, not ASCII, not UTF-8
        return "", ""
    return user, password


async def _identify(p: Platform, authorization: str, address: str) -> Caller:
    """Who that proves; wrong ones count as on every route, so that nobody can try out passwords here.

    Raises:
        Unauthorized (401), TooManyRequests (429).
    """
    p.failures.check(address, "Too many wrong log-ins from this address")
    try:
        return await users.identify(p, authorization)
    except Unauthorized as error:
        if error.guess:
            p.failures.take(address)
        raise


async def _is_ours(p: Platform, known: Known, authorization: str | None, address: str) -> bool:
    """Whether it proves somebody here, other than by the service's own token, which its server knows anyway.

    Raises:
        TooManyRequests (429): too many wrong passwords of the administrator: the server would see which is right.
    """
    if authorization is None or _is_service_login(known, authorization):
        return False
    if hmac.compare_digest(authorization.encode(), f"Bearer {known.row.token}".encode()):
        return False
    try:
        if authorization[:6].lower() != "basic ":
            await users.identify(p, authorization)
        elif _basic(authorization)[0] == p.settings.username:
            await _identify(p, authorization, address)
        else:
            return False  # of the application: the platform knows one name only
    except Unauthorized:
        return False
    except TooManyRequests:
        raise
    except OscarError:
        return True  # it can't be told now
    return True


def _presented(shown: Shown, name: str) -> str:
    """The credentials as an `Authorization` header.

    Raises:
        Unauthorized: there are none.
    """
    presented = shown.authorization or (f"Bearer {shown.token}" if shown.token else None)
    if presented is None:
        raise _refusal(name, "Log in with a token of the service or of yours")
    return presented


def _refusal(name: str, words: str) -> Unauthorized:
    realm = name if _NAME.fullmatch(name) else "oscar"
    return Unauthorized(words, headers={"WWW-Authenticate": f'Basic realm="{realm}", charset="UTF-8"'})


# The cookie: who it is and until when, signed with a key of the service's token. So it holds no token, works without
# the issuer, and ends with the service. What its holder may do is asked anew each time.


def _key(known: Known) -> bytes:
    return hashlib.sha256(b"oscar exposed session 1\0" + known.row.token.encode()).digest()


def _signed(known: Known, caller: Caller, lifetime: int) -> str:
    facts = {
        "u": caller.id,
        "e": caller.entrance.value,
        "s": known.row.id,
        "t": int(time.time()) + lifetime,
    }
    body = base64.urlsafe_b64encode(json.dumps(facts, separators=(",", ":")).encode()).rstrip(b"=")
    return f"{body.decode()}.{hmac.new(_key(known), body, hashlib.sha256).hexdigest()}"


def _session(p: Platform, known: Known, cookie: str) -> Caller | None:
    body, _, signature = cookie.partition(".")
    right = hmac.new(_key(known), body.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(signature.encode(), right.encode()):
        return None
    facts = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))  # ours: it is signed
    if facts["s"] != known.row.id or facts["t"] < time.time():
        return None
    entrance = Entrance(facts["e"])
    if entrance is Entrance.TOKEN:
        return _token_caller(known)
    return Caller(facts["u"], entrance, admin=facts["u"] in p.settings.users_admin)


def _lifetime(token: str) -> int:
    """Seconds that a session by this token may last: an OIDC token's own time at most."""
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - header, claims, signature: RFC 7515
        return SESSION_S
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        left = int(claims["exp"]) - int(time.time())
    except (ValueError, KeyError, TypeError):
        return 0
    return max(0, min(SESSION_S, left))


# Which replica.


async def replica(p: Platform, known: Known) -> Replica:
    """The replica for the next request; waits for the first one for a while.

    Raises:
        Unavailable (503): there is none; with `Retry-After`.
    """
    return await replica_of(p, known.row.owner, known.row.name)


async def replica_of(p: Platform, owner: str, name: str) -> Replica:
    """The same by the service's owner and name."""
    if p.exposes is None:
        raise Unavailable("This engine can't expose services")
    if present := p.exposes.replicas(owner, name):
        return choose(present)
    try:
        async with asyncio.timeout(p.settings.exposed_wait):
            await p.exposes.wait_ready(owner, name)
    except TimeoutError:
        pass  # said below, with the reason
    if present := p.exposes.replicas(owner, name):
        return choose(present)
    found = await p.exposes.deployment(owner, name)
    words = f'The service "{name}" takes no requests: {found.state.value}. {found.reason}'
    raise Unavailable(words, headers=_RETRY)


def choose(present: Sequence[Replica]) -> Replica:
    """The one with the fewest requests under way; of several, the first that had its last one longest ago."""
    best = min(present, key=lambda each: (each.in_flight, each.turn))
    best.turn = time.monotonic()
    return best
