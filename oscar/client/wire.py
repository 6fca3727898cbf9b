"""Requests to the server: addresses, credentials, and answers that are errors turned into `oscar.errors`.

Called by `client.rest` only. The error classes are found by their stable code, or by the status where a
server sends plain text, as OSCAR 4 does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from oscar import errors
from oscar.errors import OscarError, Unreachable

CONNECT_TIMEOUT = 10.0


class Wire:
    """A connection pool to one server with one set of credentials."""

    def __init__(
        self,
        endpoint: str,
        *,
        user: str | None,
        password: str | None,
        token: str | None,
        verify: bool,
        timeout: float,
        transport: httpx2.AsyncBaseTransport | None,
    ) -> None:
        self.endpoint = endpoint.strip().rstrip("/")
        if not self.endpoint.startswith(("http://", "https://")):
            raise errors.InvalidField(
                f'"{endpoint}" is not an address', field="endpoint", fix="Write it with http:// or https://."
            )
        self.bearer = token
        auth = httpx2.BasicAuth(user, password or "") if user and not token else None
        self._http = httpx2.AsyncClient(
            base_url=self.endpoint,
            auth=auth,
            verify=verify,
            transport=transport,
            timeout=httpx2.Timeout(timeout, connect=CONNECT_TIMEOUT),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Ask, and give back a good answer.

        Args:
            method: HTTP's.
            path: below the endpoint.
            options: those of `httpx2.AsyncClient.request`; `bearer`, a token in the place of the pool's
                account; `good`, tells of an answer with an error's status whether it is a good one.

        Raises:
            Unreachable: there is no answer.
            OscarError: the server's error.
        """
        good = options.pop("good", None)
        try:
            response = await self._http.request(method, path, **self._options(options))
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error and not (good and good(response)):
            raise from_answer(response.status_code, response.content, response.headers)
        return response

    @asynccontextmanager
    async def stream(self, method: str, path: str, **options: Any) -> AsyncIterator[httpx2.Response]:
        """The same for an answer that is read piece by piece; broken connections raise `Unreachable` too."""
        try:
            async with self._http.stream(method, path, **self._options(options)) as response:
                if response.is_error:
                    raise from_answer(response.status_code, await response.aread(), response.headers)
                yield response
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        bearer = options.pop("bearer", None) or self.bearer
        if not bearer:
            return options
        headers = {**options.pop("headers", {}), "Authorization": f"Bearer {bearer}"}
        # A bearer token takes the place of the pool's user and password.
        return {**options, "headers": headers, "auth": None}

    def _unreachable(self, error: httpx2.TransportError) -> Unreachable:
        words = str(error) or type(error).__name__
        if isinstance(error, httpx2.ReadTimeout):
            return Unreachable(f"{self.endpoint} did not answer in time", fix="Allow it more time.")
        return Unreachable(
            f"{self.endpoint} can't be reached: {words}", fix="Check the address and whether the server runs."
        )


def path(*parts: str) -> str:
    """A path from parts that may hold any character."""
    return "".join("/" + quote(part) for part in parts)


def quote(part: str) -> str:
    """A part of a path with everything that is not plain escaped."""
    from urllib.parse import quote as escape

    return escape(part, safe="")


def classes() -> dict[str, type[OscarError]]:
    """The classes of `oscar.errors` by their code; those that adapters derive from them are not a client's."""
    found: dict[str, type[OscarError]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, OscarError):
            found.setdefault(kind.code, kind)
    return found


_BY_STATUS: dict[int, type[OscarError]] = {
    400: errors.BadRequest,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    412: errors.PreconditionFailed,
    413: errors.BodyTooLarge,
    429: errors.TooManyRequests,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.InvocationTimeout,
    507: errors.StorageFull,
}
_LONGEST = 2000


def from_answer(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> OscarError:
    """The error that an answer stands for.

    Args:
        status: the HTTP status, 400 or above (redirects are errors too: nothing of the API redirects).
        body: our JSON, or whatever text the server sends.
        headers: those of the answer; `Retry-After` is kept.
    """
    try:
        data = json.loads(body)
    except ValueError:
        data = None
    kind = _BY_STATUS.get(status, OscarError)
    text = body.decode(errors="replace").strip()[:_LONGEST]
    field = fix = None
    if isinstance(data, dict) and isinstance(data.get("message"), str):
        kind = classes().get(str(data.get("code")), kind)
        text, field, fix = data["message"], data.get("field"), data.get("fix")
    elif isinstance(data, str):
        text = data
    kept = {name: value for name, value in (headers or {}).items() if name.lower() == "retry-after"}
    error = kind(text or f"the server answered {status}", field=field, fix=fix, headers=kept)
    error.status = status
    return error
