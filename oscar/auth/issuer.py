"""One OIDC issuer over the network: its configuration, its keys, what it says about a token's holder.

Called by `auth.oidc`, which decides what a token is worth. Keys are kept and fetched again in the background; while the
issuer can't be reached the old ones hold. Nothing is taken from anywhere but the addresses that the issuer's own
configuration names. Source of the formats: OpenID Connect Discovery 1.0, RFC 7517 (keys).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx2
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, OKPKey, RSAKey

from oscar import telemetry
from oscar.auth.addresses import is_loopback, is_safe
from oscar.errors import Unauthorized, Unavailable

log = telemetry.get("oidc")

FRESH = 3600.0
"""Seconds after which keys are fetched again, in the background."""
STALE = 24 * 3600.0
"""Seconds that keys hold while the issuer can't be reached."""
REFETCH = 10.0
"""Least seconds between two fetches for the sake of an unknown key, so that forged tokens make no traffic."""
RETRY = 5.0
"""Seconds for which an issuer that could not be reached isn't tried again."""
_WITHIN = 10.0
_LARGEST = 1024 * 1024
_OK = 200
_NOT_TAKEN = 401
_NOT_TOLD = {400, 403}


class Issuer:
    """An issuer that is trusted. Ports of call are its configuration, its keys and its UserInfo."""

    def __init__(
        self, url: str, http: httpx2.AsyncClient, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Ask nothing yet.

        Args:
            url: exactly as it stands in the tokens' `iss`.
            http: does the requests.
            clock: seconds that never go back.
        """
        self.url = url
        self._http = http
        self._clock = clock
        self._lock = asyncio.Lock()
        self._background: asyncio.Task[None] | None = None
        self._configuration: Mapping[str, Any] = {}
        self._configured = 0.0
        self._keys: list[Key] = []
        self._fetched: float | None = None
        self._tried: float | None = None
        self._failed = False

    async def close(self) -> None:
        """End what goes on in the background."""
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait({self._background})

    # Keys.

    async def keys(self, kid: str | None, algorithm: str) -> list[Key]:
        """The keys that may have signed a token with this header; a key that is not known is asked for once.

        Raises:
            Unavailable: no keys are known, and the issuer can't be reached.
        """
        age = None if self._fetched is None else self._clock() - self._fetched
        if age is None or age > STALE:
            await self._refresh(required=True)
        elif age > FRESH and self._may_try(RETRY):
            self._refresh_behind()
        found = self._matching(kid, algorithm)
        if not found and self._may_try(REFETCH):
            await self._refresh(required=False)
            found = self._matching(kid, algorithm)
        return found

    def _matching(self, kid: str | None, algorithm: str) -> list[Key]:
        return [
            key
            for key in self._keys
            if (kid is None or key.get("kid") is None or key.get("kid") == kid)
            and key.get("alg") in {None, algorithm}
        ]

    def _may_try(self, pause: float) -> bool:
        return self._tried is None or self._clock() - self._tried >= pause

    def _refresh_behind(self) -> None:
        if self._background is None or self._background.done():
            self._background = asyncio.create_task(self._refresh(required=False), name="oidc keys")

    async def _refresh(self, *, required: bool) -> None:
        tried = self._tried
        async with self._lock:
            if self._tried != tried and not (required and self._failed):
                return  # somebody else has just done it
            if required and self._failed and not self._may_try(RETRY):
                raise self._unreachable()
            self._tried = self._clock()
            try:
                await self._fetch()
            except Unavailable as error:
                self._failed = True
                log.warning("issuer not reached", issuer=self.url, reason=error.message)
                if required:
                    raise self._unreachable() from None
            else:
                self._failed = False

    def _unreachable(self) -> Unavailable:
        return Unavailable(
            f"The issuer {self.url} can't be reached, so its tokens can't be checked now",
            fix="try again in a moment",
            headers={"Retry-After": str(int(RETRY))},
        )

    async def _fetch(self) -> None:
        now = self._clock()
        if not self._configuration or now - self._configured >= FRESH:
            self._configuration = await self._configuration_now()
            self._configured = now
        document = await self._json(self._address("jwks_uri"), "keys")
        listed = document.get("keys")
        if not isinstance(listed, list):
            raise Unavailable("its key set has no list of keys")
        keys = [key for item in listed if (key := _key(item)) is not None]
        if not keys:
            raise Unavailable("its key set has no key that can check a signature")
        self._keys, self._fetched = keys, self._clock()

    async def _configuration_now(self) -> Mapping[str, Any]:
        address = self.url.rstrip("/") + "/.well-known/openid-configuration"
        document = await self._json(address, "configuration")
        if document.get("issuer") != self.url:
            # Exactly, as the specification says: otherwise one realm of a server could speak for another.
            raise Unavailable(f"its configuration is that of another issuer, {document.get('issuer')!r}")
        return document

    def _address(self, name: str) -> str:
        address = self._configuration.get(name)
        if not isinstance(address, str) or not address:
            raise Unavailable(f"its configuration has no {name}")
        if not is_safe(address, loopback=is_loopback(self.url)):
            raise Unavailable(f"the {name} of its configuration is not https")
        return address

    # Tokens.

    async def token_endpoint(self) -> str:
        """Where refresh tokens are exchanged.

        Raises:
            Unavailable: the issuer can't be reached, or names no safe address.
        """
        try:
            if not self._configuration:
                self._configuration = await self._configuration_now()
                self._configured = self._clock()
            return self._address("token_endpoint")
        except Unavailable as error:
            log.warning("token endpoint not had", issuer=self.url, reason=error.message)
            raise self._unreachable() from None

    @property
    def takes_basic(self) -> bool:
        """Whether clients show their secret by basic authentication, which is the rule."""
        methods = self._configuration.get("token_endpoint_auth_methods_supported")
        return not isinstance(methods, list) or "client_secret_basic" in methods

    # UserInfo.

    async def user_info(self, token: str) -> Mapping[str, Any]:
        """What the issuer says about the holder of the token; nothing when the token's scope has no UserInfo.

        Raises:
            Unauthorized: the issuer does not take the token (any more).
            Unavailable: the issuer can't be reached.
        """
        if not self._configuration:
            await self._refresh(required=True)
        try:
            address = self._address("userinfo_endpoint")
            return await self._json(address, "UserInfo", headers={"Authorization": f"Bearer {token}"})
        except Unavailable as error:
            log.warning("UserInfo not had", issuer=self.url, reason=error.message)
            raise self._unreachable() from None

    # Requests.

    async def _json(self, url: str, what: str, *, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        plain = {"Accept": "application/json", "Accept-Encoding": "identity"}
        status, body = await self._get(url, {**plain, **(headers or {})})
        if headers and status == _NOT_TAKEN:
            raise Unauthorized("The issuer does not take this token any more", fix="get a new one")
        if headers and status in _NOT_TOLD:
            return {}
        if status != _OK:
            raise Unavailable(f"its {what} is answered with {status}")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise Unavailable(f"its {what} is not JSON") from None
        if not isinstance(document, dict):
            raise Unavailable(f"its {what} is not a JSON object")
        return document

    async def _get(self, url: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(_WITHIN), self._http.stream("GET", url, headers=headers) as answer:
                body = bytearray()
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > _LARGEST:
                        raise Unavailable("its answer is too large")
                return answer.status_code, bytes(body)
        except TimeoutError:
            raise Unavailable("it does not answer in time") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from None


def _key(item: object) -> Key | None:
    """A key of a key set, None when it is not one that can check signatures (RFC 7517 has those ignored)."""
    if not isinstance(item, dict) or item.get("use", "sig") != "sig":
        return None
    try:
        key = JWKRegistry.import_key(item)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    # A symmetric key in a public key set would let everybody sign.
    return key if isinstance(key, RSAKey | ECKey | OKPKey) else None
