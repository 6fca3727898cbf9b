"""The edge of the API: request ids, security headers and the request log, as plain ASGI middleware.

Around the FastAPI application, made by `api.build`. The log line is the one that OSCAR writes, so that existing log
queries keep working.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from oscar.core.requests import Incoming
from oscar.serverlog import ServerLog

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
App = Callable[
    [Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
LOGGER = "GIN-EXECUTIONS-LOGGER"
_LOGGED = ("/job/", "/run/")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
_SWITCHED = 101
_REFUSED = 403
_HTTPS_ONLY = (b"strict-transport-security", b"max-age=31536000")
_EXPOSED = re.compile(r"/system/services/[^/]+/exposed(/|$)")


class Edge:
    """Middleware around the whole application."""

    def __init__(self, app: App, *, as_json: bool = False, keep: ServerLog | None = None) -> None:
        """Wrap that application; `as_json` chooses the form of the request log, which is also kept in `keep`."""
        self._app = app
        self._json = as_json
        self._keep = keep

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8).encode()
        scope["oscar.request_id"] = request_id.decode()
        own = _headers(scope)
        client = scope.get("client")
        incoming = scope["oscar.incoming"] = Incoming(client[0] if client else "")
        started = time.perf_counter()
        status = 500

        async def wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "websocket.accept":
                status = _SWITCHED
            elif message["type"] == "websocket.close" and status != _SWITCHED:
                status = _REFUSED  # what the server makes of it, RFC 6455 has no other way to say no
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id), *own]
            await send(message)

        try:
            await self._app(scope, receive, wrapped)
        finally:
            seconds = time.perf_counter() - started
            if incoming.service is not None:
                scope["app"].state.platform.recorder.add(incoming, status=status, seconds=seconds)
            if scope["path"].startswith(_LOGGED):
                line = _line(scope, incoming, status, seconds)
                sys.stdout.write(_json_line(scope, incoming, status, seconds) if self._json else line)
                sys.stdout.flush()
                if self._keep is not None:
                    self._keep.write(line)


def _headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    if _EXPOSED.match(scope["path"]):
        # The answers of exposed services are their own; a page of theirs may be framed if they like.
        return []
    return [*_HEADERS, _HTTPS_ONLY] if scope["scheme"] == "https" else _HEADERS


def _line(scope: Scope, incoming: Incoming, status: int, seconds: float) -> str:
    # [GIN-EXECUTIONS-LOGGER] <RFC3339Nano UTC> | <status> | <latency> | <ip> | <METHOD> <path> | <user>
    path = scope["path"].encode("unicode_escape").decode()
    user = incoming.caller.id if incoming.caller else "-"
    return (
        f"[{LOGGER}] {_now()} | {status} | {seconds * 1000:.3f}ms | {incoming.address or '-'} | "
        f"{scope['method']} {path} | {user}\n"
    )


def _json_line(scope: Scope, incoming: Incoming, status: int, seconds: float) -> str:
    fields = {
        "logger": LOGGER,
        "time": _now(),
        "status": status,
        "latency_ms": round(seconds * 1000, 3),
        "address": incoming.address,
        "method": scope["method"],
        "path": scope["path"],
        "user": incoming.caller.id if incoming.caller else "",
        "request_id": scope["oscar.request_id"],
    }
    return json.dumps(fields) + "\n"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
