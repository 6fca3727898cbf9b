"""Bearer tokens for members of a federation: from a service's refresh token, or from its origin.

Called by `core.copies` and `core.delegation`, with or without a request at hand; calls `auth.exchange`. An access token
is kept in memory until shortly before it ends, by our own monotonic clock; a refresh token that the issuer replaced is
stored before the new access token is used.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx2

from oscar import telemetry
from oscar.errors import InvalidField, RefreshTokenInvalid
from oscar.settings import Settings
from oscar.state.refresh_tokens import RefreshTokens

if TYPE_CHECKING:
    from oscar.auth.exchange import Exchange, Fresh

log = telemetry.get("tokens")

_EARLY = 60.0
"""Seconds before its end after which a token is not used any more; of short ones a fifth of their life."""
_WITHIN = 10.0
_KEPT = 1024
_LENT = 4096


@dataclass(slots=True)
class _Known:
    given: bytes
    access: str = field(repr=False)
    until: float


class Tokens:
    """Access tokens by service."""

    def __init__(
        self,
        settings: Settings,
        rows: RefreshTokens,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Exchange at the first issuer of the settings.

        Args:
            settings: issuers, client and its secret.
            rows: where replaced refresh tokens are kept.
            clock: seconds that never go back.
        """
        self._settings = settings
        self._rows = rows
        self._clock = clock
        self._http: httpx2.AsyncClient | None = None
        self._exchange: Exchange | None = None
        if settings.oidc_issuers and settings.oidc_client_id:
            # Their libraries and the trusted certificates are megabytes, for those who exchange tokens.
            from oscar.auth.exchange import Exchange

            self._http = httpx2.AsyncClient(timeout=_WITHIN, follow_redirects=False)
            self._exchange = Exchange(
                settings.oidc_issuers[0], settings.oidc_client_id, settings.oidc_client_secret, self._http
            )
        self._known: dict[str, _Known] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._lent: dict[str, str] = {}

    async def close(self) -> None:
        """Let go of connections."""
        if self._exchange is not None:
            await self._exchange.close()
        if self._http is not None:
            await self._http.aclose()

    def require(self) -> Exchange:
        """What exchanges tokens.

        Raises:
            InvalidField: a setting for it is missing; names the setting.
        """
        if self._exchange is not None:
            return self._exchange
        missing = "OIDC_CLIENT_ID" if not self._settings.oidc_client_id else "OIDC_ISSUERS"
        raise InvalidField(
            f"This server can't exchange refresh tokens, which federated services need: {missing} is not set",
            field=missing,
            fix=f"have the administrator set {missing}, or set federation.topology to none",
        )

    async def check(self, token: str) -> Fresh:
        """Exchange a token that a user gives.

        Raises:
            InvalidField, RefreshTokenInvalid (400), Unavailable (503).
        """
        return await self.require().refresh(token)

    async def bearer(self, service_id: str, given: str) -> str:
        """An access token for a service's owner.

        Args:
            service_id: the service.
            given: its refresh token as the user gave it.

        Raises:
            InvalidField, RefreshTokenInvalid (400), Unavailable (503).
        """
        return await self._kept(service_id, given, lambda: self._renew(service_id, given))

    async def from_origin(self, service_id: str, key: str, ask: Callable[[], Awaitable[Fresh]]) -> str:
        """An access token for a copy, which its origin gives for the copy's key."""
        return await self._kept(service_id, key, ask)

    def seconds_left(self, service_id: str) -> float:
        """For how long the present token of a service is used; 0 when there is none."""
        known = self._known.get(service_id)
        return max(0.0, known.until - self._clock()) if known is not None else 0.0

    def lend(self, job_id: str, bearer: str) -> None:
        """Keep a caller's own token in memory for the delegation of his job."""
        if len(self._lent) >= _LENT:
            self._lent.clear()
        self._lent[job_id] = bearer

    def lent(self, job_id: str) -> str | None:
        """The token of who caused the job; None when he has none, or it was too long ago."""
        return self._lent.get(job_id)

    def give_back(self, job_id: str) -> None:
        """Forget the caller's token."""
        self._lent.pop(job_id, None)

    def forget(self, service_id: str) -> None:
        """Don't use the present token again: somebody did not take it."""
        self._known.pop(service_id, None)

    async def _kept(self, service_id: str, given: str, renew: Callable[[], Awaitable[Fresh]]) -> str:
        digest = hashlib.sha256(given.encode()).digest()
        # One exchange at a time: an issuer that replaces refresh tokens takes each of them once.
        lock = self._locks.setdefault(service_id, asyncio.Lock())
        async with lock:
            known = self._known.get(service_id)
            if known is not None and known.given == digest and self._clock() < known.until:
                return known.access
            asked = self._clock()
            fresh = await renew()
            if len(self._known) >= _KEPT:
                self._known.clear()
            usable = max(fresh.expires_in - _EARLY, fresh.expires_in * 0.8)
            self._known[service_id] = _Known(digest, fresh.access, asked + usable)
            return fresh.access

    async def _renew(self, service_id: str, given: str) -> Fresh:
        exchange = self.require()
        token = await self._rows.newest(service_id, given)
        try:
            fresh = await exchange.refresh(token)
        except RefreshTokenInvalid:
            newer = await self._rows.newest(service_id, given)
            if newer == token:
                raise
            # Another server of ours was quicker.
            token = newer
            fresh = await exchange.refresh(token)
        if fresh.refresh is not None and fresh.refresh != token:
            await self._rows.keep(service_id, given, fresh.refresh)
        return fresh
