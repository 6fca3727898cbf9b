"""HTTP/1.1 with bounded heads: uvicorn's protocol, which would keep whatever a client sends as headers.

Given to uvicorn by `web`, for both servers. Counts what comes without being the head or a piece of a body: endless
URLs, headers, trailers and extensions of chunks.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from oscar.errors import HeadersTooLarge

LIMIT = 64 * 1024
"""Bytes of a request line with its headers."""
PATIENCE = 1024 * 1024
"""Bytes that are read and thrown away after a refusal."""
LINGER_S = 2.0
FAREWELL_S = 0.3
LONGEST_PAUSE_S = 0.05
_FIELD = 4
"""Bytes around a header: colon, space and the end of its line."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    _idle = 0
    """Bytes since the parser told of something."""
    _refused = False
    _leaving: asyncio.TimerHandle | None = None

    def shutdown(self) -> None:
        """The server ends, and so does the connection as soon as nothing is under way on it."""
        super().shutdown()
        self._leave()

    def on_response_complete(self) -> None:
        """An answer has been given."""
        super().on_response_complete()
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._leaving is not None:
            self._leaving.cancel()
        super().connection_lost(exc)

    def _leave(self) -> None:
        # Over TLS, closing waits for the other side's farewell, and a client that keeps an idle connection for later
        # gives none: each would hold up the server's end for all the time that it has to drain.
        if self.transport.is_closing() and self.transport.get_extra_info("ssl_object") is not None:
            self._leaving = self.loop.call_later(FAREWELL_S, self._left)

    def _left(self) -> None:
        if self.transport.get_write_buffer_size():
            self._leaving = self.loop.call_later(FAREWELL_S, self._left)
        else:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what has come; ends the connection when that goes nowhere."""
        self._idle += len(data)
        if self._refused:
            if self._idle > PATIENCE:
                self.transport.abort()
            return
        super().data_received(data)
        if self._idle > LIMIT and not self.transport.is_closing():
            self._refuse()

    def _refuse(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # Another answer is on its way: nothing can be said.
            self.transport.close()
            return
        body = _body()
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        # Closed at once, with data unread, the kernel would reset the connection and the answer might be lost.
        self._refused = True
        self.loop.call_later(LINGER_S, self.transport.close)

    def on_headers_complete(self) -> None:
        """A head is complete: the application gets it, unless it is too large."""
        self._idle = 0
        size = len(self.url)
        for name, value in self.headers:
            size += len(name) + len(value) + _FIELD
        if size <= LIMIT:
            super().on_headers_complete()
            if b"/exposed" in self.url:
                cast("dict[str, Any]", self.scope)["oscar.wire"] = Wire(self.cycle)
            return
        application, self.app = self.app, _answer
        try:
            super().on_headers_complete()
        finally:
            self.app = application

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        self._idle = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has come whole; what follows is the head of the next one."""
        self._idle = 0
        super().on_message_complete()


class Wire:
    """The client's side of one answer, for a body that goes past this program; see `api.exposed_splice`."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def open(self) -> bool:
        """Whether bytes written to the socket arrive as the body: no TLS, no chunks."""
        return (
            self._cycle.chunked_encoding is False
            and not self._cycle.disconnected
            and self._cycle.transport.get_extra_info("ssl_object") is None
        )

    async def taken(self) -> int:
        """A new descriptor of the socket, once all that was sent before is with the kernel.

        Raises:
            ConnectionError: the client has gone.
        """
        transport, pause = self._cycle.transport, 0.0
        while not self._cycle.disconnected and transport.get_write_buffer_size():
            await asyncio.sleep(pause)  # asyncio tells when the buffer is low, never when it is empty
            pause = min(pause + 0.001, LONGEST_PAUSE_S)
        if self._cycle.disconnected or transport.is_closing():
            raise ConnectionAbortedError
        return os.dup(transport.get_extra_info("socket").fileno())

    def wrote(self, count: int) -> None:
        """So many bytes of the body were written there."""
        self._cycle.expected_content_length -= count


def _body() -> bytes:
    return json.dumps(HeadersTooLarge().as_dict()).encode()


async def _answer(
    _scope: Any, _receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    body = _body()
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": HeadersTooLarge.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
