"""The start of the server: how far it has come, and the gate before which requests wait for the rest of it.

Finding out what the engine can do takes seconds on a new machine, so the API listens before that. `lifespan` tells
`Start` what is there; `Gate` (around the application, put there by `api.build`) and `serve` wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request

from oscar.app.edge import App, Message, Scope
from oscar.app.render import render
from oscar.errors import OscarError, Unavailable

WAIT_S = 30.0
"""Seconds that a request waits for the engine: longer than all but a broken one takes."""
_AT_ONCE = "/ready"
"""The path that asks whether the platform is there."""

_FREE = ("/health", "/docs", "/redoc", "/openapi.json")
"""Beginnings of paths whose routes need no platform."""


class Start:
    """How far the start has come."""

    def __init__(self) -> None:
        """Nothing is there yet."""
        self.stored = asyncio.Event()
        """The Store has the present schema: other processes may open it."""
        self.over = asyncio.Event()
        """The engine and with it the whole platform is there; or it can't be, and `error` says why."""
        self.error: OscarError | None = None
        self.complete = False
        self._awaited = ""

    def done(self) -> None:
        """The platform is there."""
        self.complete = True
        self.over.set()

    def awaits(self, error: OscarError) -> bool:
        """Something that the platform needs does not answer yet; whether that is news."""
        is_news = error.message != self._awaited
        self._awaited = error.message
        return is_news

    def failed(self, error: OscarError) -> None:
        """It can't be."""
        self.error = error
        self.over.set()

    async def wait(self, seconds: float) -> OscarError | None:
        """Wait for the platform; what is in the way when it is not there in time."""
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            words = "The engine is still being started"
            return Unavailable(
                f"{words}. {self._awaited}" if self._awaited else words,
                fix="try again",
                headers={"Retry-After": "5"},
            )
        return self.error


class Gate:
    """Middleware: until the platform is there, requests that need it wait."""

    def __init__(self, app: App, start: Start) -> None:
        """Stand before that application."""
        self._app = app
        self._start = start

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Serve one request."""
        if not self._start.complete and scope["type"] == "http" and not scope["path"].startswith(_FREE):
            error = await self._start.wait(0.0 if scope["path"] == _AT_ONCE else WAIT_S)
            if error is not None:
                await render(error, Request(scope))(scope, receive, send)
                return
        await self._app(scope, receive, send)
