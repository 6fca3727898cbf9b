"""OIDC bearer tokens of several issuers: from a token to an `Identity`.

Called by `core.users.identify`; calls `auth.issuer` for keys and UserInfo. A token is checked once and known by its
hash until it ends, so that a warm request asks nobody. What a bad token lacks is not told beyond what helps its holder.
Sources: RFC 7519 and 8725 (JWT and its good practice), 9068 (access tokens), OpenID Connect Core 1.0.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx2
from joserfc import jws
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import Key
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry

from oscar import telemetry
from oscar.auth.addresses import is_safe
from oscar.auth.claims import groups_of, may_enter, name_of, refusal
from oscar.auth.issuer import Issuer
from oscar.errors import InvalidField, Unauthorized, Unavailable
from oscar.model.user import ADMIN, ADMIN_KEY, ANONYMOUS, Identity
from oscar.settings import Settings

log = telemetry.get("oidc")

ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)
"""Asymmetrical ones only: with HMAC a public key could be taken for the secret."""

_LONGEST_TOKEN = 32 * 1024
_LONGEST_SUBJECT = 255
_NAMELESS = 60.0
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_KEYCLOAK_OTHERS = frozenset({"ID", "Refresh", "Offline", "Logout"})
"""What Keycloak calls its other tokens in the claim `typ`."""


class _Registry(JWSRegistry):
    max_header_length = 4096
    max_payload_length = _LONGEST_TOKEN


class Oidc:
    """The issuers that are trusted, and the tokens that were seen."""

    def __init__(
        self,
        issuers: Sequence[str],
        *,
        groups: Sequence[str] = (),
        subject: str = "",
        audience: Sequence[str] = (),
        skew: float = 30.0,
        reserved: Sequence[str] = (),
        room: int = 10_000,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask nobody yet.

        Args:
            issuers: their addresses as in the tokens.
            groups: who may enter; everybody when empty and `subject` is.
            subject: who may enter without a group.
            audience: what a token must be for; not looked at when empty.
            skew: seconds by which clocks may differ.
            reserved: subjects that nobody may have, beside those of the installation itself.
            room: tokens that are known at once.
            clock: Unix seconds.
            monotonic: seconds that never go back.
        """
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(5.0), limits=httpx2.Limits(max_connections=16), follow_redirects=False
        )
        self._issuers = {url: Issuer(url, self._http, clock=monotonic) for url in issuers}
        self._groups = frozenset(groups)
        self._subject = subject
        self._audience = list(audience)
        self._skew = skew
        self._reserved = frozenset({ADMIN, ANONYMOUS, "*", *reserved})
        self._room = room
        self._clock = clock
        self._registry = _Registry(algorithms=ALGORITHMS, strict_check_header=False)
        self._known: dict[bytes, tuple[float, Identity]] = {}
        self._checking: dict[bytes, asyncio.Task[Identity]] = {}

    @classmethod
    def of(cls, settings: Settings) -> Oidc | None:
        """What the settings ask for; None when OIDC is off.

        Raises:
            InvalidField: the settings can't be taken; names the variable.
        """
        if not settings.oidc_enable:
            return None
        if not settings.oidc_issuers:
            raise InvalidField(
                "OIDC is on and no issuer is trusted",
                field="OIDC_ISSUERS",
                fix="set OIDC_ISSUERS to their addresses",
            )
        for url in settings.oidc_issuers:
            if not is_safe(url, loopback=True):
                raise InvalidField(
                    f"OIDC_ISSUERS: {url} is not the https address of an issuer",
                    field="OIDC_ISSUERS",
                    fix="only an issuer on this machine may be without TLS",
                )
        if not settings.oidc_groups and not settings.oidc_subject:
            log.warning("everybody of the issuers may enter: OIDC_GROUPS is empty")
        return cls(
            settings.oidc_issuers,
            groups=settings.oidc_groups,
            subject=settings.oidc_subject,
            audience=settings.oidc_audience,
            skew=settings.oidc_skew,
            reserved=[settings.minio_access_key or ADMIN_KEY],
        )

    async def close(self) -> None:
        """Let go of connections."""
        for task in self._checking.values():
            task.cancel()
        for issuer in self._issuers.values():
            await issuer.close()
        await self._http.aclose()

    async def identify(self, token: str) -> Identity:
        """Who holds the token.

        Raises:
            Unauthorized: the token proves nobody, or somebody who may not enter here.
            Unavailable: its issuer must be asked and can't be reached.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is not None and self._clock() < known[0]:
            identity = known[1]
        else:
            self._known.pop(digest, None)
            identity = await self._check_once(digest, token)
        if not may_enter(identity.subject, identity.groups, allowed=self._groups, always=self._subject):
            raise refusal(
                "You belong to no group that may enter here",
                "ask for membership, then get a new token",
                genuine=True,
            )
        return identity

    async def _check_once(self, digest: bytes, token: str) -> Identity:
        # Many requests with a new token ask the issuer once; none of them stops it by going away.
        task = self._checking.get(digest)
        if task is None:
            task = self._checking[digest] = asyncio.create_task(self._check(digest, token), name="oidc check")
            task.add_done_callback(lambda done: self._checked(digest, done))
        return await asyncio.shield(task)

    def _checked(self, digest: bytes, task: asyncio.Task[Identity]) -> None:
        self._checking.pop(digest, None)
        if not task.cancelled():
            task.exception()  # seen, also when nobody waits any more

    async def _check(self, digest: bytes, token: str) -> Identity:
        header, issuer = self._read(token)
        claims = await self._verified(token, header, issuer)
        subject = claims["sub"]
        ends = float(claims["exp"]) + self._skew
        groups, name = groups_of(claims), name_of(claims)
        until = ends
        outside = not may_enter(subject, groups, allowed=self._groups, always=self._subject)
        if outside or not name:
            try:
                info = await issuer.user_info(token)
            except Unauthorized as error:
                raise refusal(error.message, error.fix, genuine=True) from None
            except Unavailable:
                if outside:
                    raise
                # A name is for people to read: entering doesn't wait for it.
                info, until = {}, min(ends, self._clock() + _NAMELESS)
            if info and info.get("sub") != subject:
                # Demanded by OpenID Connect Core 5.3.2, against answers that were swapped.
                raise self._refused("UserInfo is about somebody else", issuer, genuine=True)
            groups, name = groups | groups_of(info), name or name_of(info)
        identity = Identity(subject, issuer.url, ends, name, groups)
        self._remember(digest, until, identity)
        return identity

    def _remember(self, digest: bytes, until: float, identity: Identity) -> None:
        if len(self._known) >= self._room:
            now = self._clock()
            for key in [key for key, (end, _) in self._known.items() if end <= now]:
                del self._known[key]
            for key in list(self._known)[: max(0, len(self._known) - self._room * 9 // 10)]:
                del self._known[key]
        self._known[digest] = (until, identity)

    def _read(self, token: str) -> tuple[Mapping[str, Any], Issuer]:
        """The token's header and issuer, neither of them believed yet."""
        parts = token.split(".")
        if len(parts) != 3 or len(token) > _LONGEST_TOKEN:  # noqa: PLR2004 - header, payload, signature
            raise refusal("The bearer token is not known here")
        header, payload = _part(parts[0]), _part(parts[1])
        if header.get("alg") not in ALGORITHMS or "crit" in header or not _is_access(header, payload):
            raise self._refused("not an access token with an algorithm that is taken")
        issuer = self._issuers.get(payload["iss"]) if isinstance(payload.get("iss"), str) else None
        if issuer is None:
            raise refusal("The token's issuer is not trusted here", "use one of OIDC_ISSUERS")
        return header, issuer

    async def _verified(self, token: str, header: Mapping[str, Any], issuer: Issuer) -> dict[str, Any]:
        kid = header.get("kid")
        keys = await issuer.keys(kid if isinstance(kid, str) else None, header["alg"])
        claims = next((found for key in keys if (found := self._signed_by(token, key)) is not None), None)
        if claims is None:
            raise self._refused("no key of the issuer has signed it", issuer)
        options: dict[str, Any] = {
            "iss": {"essential": True, "value": issuer.url},
            "sub": {"essential": True},
            "exp": {"essential": True},
        }
        if self._audience:
            options["aud"] = {"essential": True, "values": self._audience}
        rules = JWTClaimsRegistry(now=lambda: int(self._clock()), leeway=int(self._skew), **options)
        try:
            rules.validate(claims)
        except ExpiredTokenError:
            raise refusal("The token has expired", "get a new one", genuine=True) from None
        except (JoseError, OverflowError) as error:
            raise self._refused(str(error), issuer, genuine=True) from None
        if not self._is_subject(claims["sub"]):
            raise self._refused("its subject can't be that of a user", issuer, genuine=True)
        return claims

    def _signed_by(self, token: str, key: Key) -> dict[str, Any] | None:
        try:
            signed = jws.deserialize_compact(token.encode(), key, registry=self._registry)
            claims = json.loads(signed.payload or b"")
        except (JoseError, ValueError, TypeError, RecursionError):
            return None
        return claims if isinstance(claims, dict) else None

    def _is_subject(self, subject: str) -> bool:
        return len(subject) <= _LONGEST_SUBJECT and subject.isprintable() and subject not in self._reserved

    def _refused(self, reason: str, issuer: Issuer | None = None, *, genuine: bool = False) -> Unauthorized:
        # The reason is for who runs the server; it would help a forger more than a user.
        log.info("bearer refused", reason=reason, issuer=issuer.url if issuer else "")
        return refusal("The bearer token is not known here", genuine=genuine)


def _part(text: str) -> dict[str, Any]:
    try:
        value = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise refusal("The bearer token is not known here")
    return value


def _is_access(header: Mapping[str, Any], payload: Mapping[str, Any]) -> bool:
    kind = header.get("typ", "JWT")
    return isinstance(kind, str) and kind.lower() in _TYPES and payload.get("typ") not in _KEYCLOAK_OTHERS
