"""The edge of the API: request ids, security headers and the request log, as plain ASGI middleware.

Around the FastAPI application, made by `api.build`. The log line is the one that OSCAR writes, so that existing log
queries keep working.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from oscar import tracing
from oscar.core.executions import Executions, access_of
from oscar.core.platform import Platform
from oscar.core.requests import Incoming
from oscar.model.access_log import target
from oscar.model.request import RequestKind
from oscar.model.trace import place_in

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
App = Callable[
    [Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
_SWITCHED = 101
_REFUSED = 403
_HTTPS_ONLY = (b"strict-transport-security", b"max-age=31536000")
_WEBHOOK = "/system/events/minio"
_TRACED = re.compile(r"/(?:job|run)/[^/]+/?|/system/events/minio|/system/jobs/[^/]+/[^/]+/rerun")
_EXPOSED = re.compile(r"/system/services/[^/]+/exposed(/|$)")


class Edge:
    """Middleware around the whole application."""

    def __init__(self, app: App, executions: Executions) -> None:
        """Wrap that application; calls of services are logged there."""
        self._app = app
        self._executions = executions

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

        here = _begun(scope) if tracing.enabled() else None
        try:
            if here is None:
                await self._app(scope, receive, wrapped)
            else:
                with tracing.within(here):
                    await self._app(scope, receive, wrapped)
        finally:
            seconds = time.perf_counter() - started
            if here is not None:
                tracing.served(
                    here,
                    _name(scope["path"]),
                    method=scope["method"],
                    path=scope["path"],
                    started=incoming.started,
                    seconds=seconds,
                    status=status,
                )
            if incoming.service is not None:
                scope["app"].state.platform.recorder.add(incoming, status=status, seconds=seconds)
            called = target(scope["path"])
            if called is not None:
                platform = _platform(scope)
                if platform is not None:
                    platform.recorder.timings.add(called[0], status, seconds)
                self._executions.write(
                    access_of(
                        incoming,
                        method=scope.get("method", "GET"),
                        path=scope["path"],
                        status=status,
                        seconds=seconds,
                        country=platform.recorder.country_of(incoming.address) if platform else "",
                        request_id=scope["oscar.request_id"],
                    )
                )


def _begun(scope: Scope) -> tracing.Here | None:
    """The request in its trace, if it may cause work."""
    if scope.get("method") != "POST" or not _TRACED.fullmatch(scope["path"]):
        return None
    return tracing.begin(place_in(scope["headers"]))


def _name(path: str) -> str:
    """Of the span: the route."""
    called = target(path)
    if called is None:
        return "event" if path == _WEBHOOK else "POST /system/jobs/{serviceName}/{jobName}/rerun"
    return "POST /run/{serviceName}" if called[0] is RequestKind.SYNC else "POST /job/{serviceName}"


def _headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    if _EXPOSED.match(scope["path"]):
        # The answers of exposed services are their own; a page of theirs may be framed if they like.
        return []
    return [*_HEADERS, _HTTPS_ONLY] if scope["scheme"] == "https" else _HEADERS


def _platform(scope: Scope) -> Platform | None:
    """The platform; None before it is there."""
    return getattr(scope["app"].state, "platform", None) if "app" in scope else None
