"""Access tokens for Rucio, fetched with a refresh token and kept until they age.

Called by `objects.rucio`. Without a token endpoint the given token is itself the access token. Source: OAuth 2.0,
RFC 6749, 6; the audience parameter is that of EGI Check-in and Keycloak.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from urllib.parse import urlencode

from oscar.errors import Forbidden, StorageError
from oscar.objects.reach import Reach
from oscar.objects.web import Web
from oscar.objects.web_words import host

SCOPE = "openid profile offline_access eduperson_entitlement"
MARGIN = 60.0
"""Seconds before its end at which a token is no longer used."""
_SHORT = 300.0


class Tokens:
    """The access token of one provider.

    Args:
        token: refresh token, or without an endpoint an access token.
        endpoint: of the issuer's tokens; may be empty.
        audience: for whom the token is asked; may be empty.
        verify: whether the issuer's TLS certificate is checked.
        reach: what may be connected to; None for anything.
        now: seconds on a clock that never goes back.
    """

    def __init__(
        self,
        token: str,
        endpoint: str = "",
        audience: str = "",
        *,
        verify: bool = True,
        reach: Reach | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._token = token
        self._endpoint = endpoint
        self._audience = audience
        self._now = now
        self._lock = asyncio.Lock()
        self._access = ""
        self._until = 0.0
        self.secrets: list[str] = [token]
        """Texts that no error may show; changes with each token."""
        self._web = Web(secrets=self.secrets, verify=verify, reach=reach)

    async def close(self) -> None:
        """End its connections."""
        await self._web.close()

    async def get(self) -> str:
        """A token that is good for a while.

        Raises:
            Forbidden: the issuer takes the refresh token no more.
            StorageError: it can't be had otherwise.
        """
        if not self._endpoint:
            return self._token
        async with self._lock:
            if self._now() >= self._until:
                await self._refresh()
            return self._access

    async def _refresh(self) -> None:
        form = {"grant_type": "refresh_token", "refresh_token": self._token, "scope": SCOPE}
        if self._audience:
            form["audience"] = self._audience
        if client := _client(self._token):
            form["client_id"] = client
        headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
        answer = await self._web.call(
            "POST", self._endpoint, headers=headers, body=urlencode(form).encode(), ok={200, 400, 401}
        )
        if answer.status != 200:  # noqa: PLR2004 - RFC 6749: 200 or an error
            said = self._web.refusal("POST", self._endpoint, answer).message
            raise Forbidden(f"the refresh token was not taken: {said}")
        try:
            value = json.loads(answer.body)
            access, lasts = str(value["access_token"]), float(value.get("expires_in") or _SHORT)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{host(self._endpoint)} answered without an access token") from error
        if (renewed := value.get("refresh_token")) and isinstance(renewed, str):
            # Issuers that rotate take the old one once only.
            self._token = renewed
        # The latest ones: those before have aged out of every request.
        self.secrets[1:] = [*self.secrets[-2:], self._token, access]
        self._access = access
        self._until = self._now() + max(lasts - MARGIN, lasts / 2)


def _client(token: str) -> str:
    """The client that a refresh token was made for, when it is a JWT: issuers ask public clients to name it."""
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - header, claims, signature
        return ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return ""
    found = claims.get("azp") or claims.get("client_id") if isinstance(claims, dict) else ""
    return found if isinstance(found, str) else ""
