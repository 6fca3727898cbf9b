"""Refresh tokens for access tokens, at one issuer's token endpoint.

Called by `core.tokens`; calls `auth.issuer` for the endpoint's address, which is never taken from a token. Sources:
OAuth 2.0 (RFC 6749, sections 2.3.1, 5 and 6), OpenID Connect Discovery 1.0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus

import httpx2

from oscar.auth.issuer import Issuer
from oscar.errors import InvalidField, RefreshTokenInvalid, Unavailable

_OK = 200
_REFUSED = {400, 401, 403}
_LIFE = 60.0
"""Seconds that an access token holds when the issuer does not say."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """What an issuer gave for a refresh token."""

    access: str = field(repr=False)
    expires_in: float
    """Seconds, from the issuer's answer on: no clock but ours is needed to know when it ends."""
    refresh: str | None = field(repr=False)
    """The refresh token that takes the old one's place; None when that one stays."""


class Exchange:
    """One client of one issuer."""

    def __init__(self, issuer: str, client_id: str, client_secret: str, http: httpx2.AsyncClient) -> None:
        """Ask nothing yet; `client_secret` is empty for a public client."""
        self._issuer = Issuer(issuer, http)
        self._id = client_id
        self._secret = client_secret
        self._http = http

    async def close(self) -> None:
        """End what goes on in the background."""
        await self._issuer.close()

    async def refresh(self, token: str) -> Fresh:
        """A new access token.

        Raises:
            RefreshTokenInvalid: the issuer does not take the token (any more).
            InvalidField: it does not take this client.
            Unavailable: it can't be reached, or answers no sense.
        """
        url = await self._issuer.token_endpoint()
        form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": self._id}
        more: dict[str, Any] = {}
        if self._secret and self._issuer.takes_basic:
            # Encoded first, as RFC 6749 wants it.
            more["auth"] = httpx2.BasicAuth(quote_plus(self._id), quote_plus(self._secret))
        elif self._secret:
            form["client_secret"] = self._secret
        try:
            answer = await self._http.post(url, data=form, headers={"Accept": "application/json"}, **more)
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"The issuer {self._issuer.url} can't be reached: {type(error).__name__}",
                fix="try again in a moment",
            ) from None
        return self._read(answer.status_code, answer.content)

    def _read(self, status: int, body: bytes) -> Fresh:
        said = _object(body)
        if status in _REFUSED:
            raise self._refusal(said)
        access = said.get("access_token")
        if status != _OK or not isinstance(access, str) or not access:
            raise Unavailable(
                f"The issuer {self._issuer.url} answered {status} to the exchange of a refresh token",
                fix="try again in a moment",
            )
        life, refresh = said.get("expires_in"), said.get("refresh_token")
        return Fresh(
            access,
            float(life) if isinstance(life, int | float) and life > 0 else _LIFE,
            refresh if isinstance(refresh, str) and refresh else None,
        )

    def _refusal(self, said: dict[str, Any]) -> InvalidField | RefreshTokenInvalid:
        why = str(said.get("error") or "no reason given")[:100]
        words = str(said.get("error_description") or "")[:200]
        if why in {"invalid_client", "unauthorized_client"}:
            return InvalidField(
                f"The issuer {self._issuer.url} does not take this server as a client ({why})",
                field="OIDC_CLIENT_ID",
                fix="have the administrator set OIDC_CLIENT_ID and OIDC_CLIENT_SECRET as the issuer knows them",
            )
        return RefreshTokenInvalid(
            f"The issuer {self._issuer.url} does not take the refresh token: {why}"
            + (f" ({words})" if words else ""),
            field="environment.secrets.refresh_token",
            fix=f"get a new one for the client {self._id} and update the service with it",
        )


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
