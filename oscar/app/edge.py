"""The edge of the API: request ids, security headers and the request log, as plain ASGI middleware.

Around the FastAPI application, made by `api.build`. The log line is the one that OSCAR writes, so that existing log
queries keep working.
"""

from __future__ import annotations

import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
App = Callable[
    [Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_LOGGED = ("/job/", "/run/")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]


class Edge:
    """Middleware around the whole application."""

    def __init__(self, app: App) -> None:
        """Wrap that application."""
        self._app = app

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8).encode()
        scope["oscar.request_id"] = request_id.decode()
        started = time.perf_counter()
        status = 500

        async def wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id), *_HEADERS]
            await send(message)

        try:
            await self._app(scope, receive, wrapped)
        finally:
            if scope["path"].startswith(_LOGGED):
                _log(scope, status, time.perf_counter() - started)


def _log(scope: Scope, status: int, seconds: float) -> None:
    # [GIN-EXECUTIONS-LOGGER] <RFC3339Nano UTC> | <status> | <latency> | <ip> | <METHOD> <path> | <user>
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
    client = scope["client"][0] if scope.get("client") else "-"
    user = scope.get("oscar.user", "-")
    path = scope["path"].encode("unicode_escape").decode()
    request = f"{scope['method']} {path}"
    sys.stdout.write(
        f"[GIN-EXECUTIONS-LOGGER] {now} | {status} | {seconds * 1000:.3f}ms | {client} | {request} | {user}\n"
    )
    sys.stdout.flush()
