"""HTTP/1.1 to replicas of exposed services: connections that stream both ways, kept open between requests.

Called by `exposed_proxy`. Written on asyncio's protocols and httptools instead of a client library, because bodies go
through here untouched: no copy of one is ever kept, reading stops while the other side does not take more, and the
cost of a request decides whether the proxy is felt (docs/decisions/0011).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import cast

import httptools

from oscar.errors import OscarError

HIGH = 512 * 1024
"""Bytes of an answer that may wait for the client before the replica is held up."""
IDLE_S = 4.0
"""Seconds that a connection is kept; most servers close theirs after five."""
IDLE_UNSAFE_S = 0.5
"""The same for requests that can't be repeated when the replica closes the connection at that moment."""
MOST_IDLE = 64
CONNECT_S = 5.0
LONGEST_HEAD = 256 * 1024
_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class BadUpstream(OscarError):
    """The exposed service broke the connection, or does not speak HTTP."""

    status = 502
    code = "bad_upstream"


class NotListening(BadUpstream):
    """Nobody listens at the replica's address: it has just ended, and nothing was sent to it."""


PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds before a replica is chosen anew when one was `NotListening`: the engine is about to notice."""


class Connection(asyncio.Protocol):
    """One connection to one replica; one exchange at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.answered = False
        """Whether a byte of an answer has come since the request was sent."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = False
        self._reset()

    def _reset(self) -> None:
        self._head: asyncio.Future[None] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._body: deque[bytes] = deque()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._complete = False
        self._broken = ""
        self._reusable = False
        self._sized = False
        self._left = 0
        self._is_head_request = False
        self.status = 0
        self.answered = False

    # Of the exchange.

    @property
    def closed(self) -> bool:
        """Whether it can't be used any more."""
        return self._lost or self._transport is None or self._transport.is_closing()

    def begin(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send a request's head."""
        self._reset()
        self._is_head_request = method == b"HEAD"
        self._parser = httptools.HttpResponseParser(self)
        # CGI scripts end lines with LF alone; no harm, as nothing of an answer's framing is passed on.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)
        self._head = self._loop.create_future()
        lines = [method + b" " + target + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in headers]
        self.write(b"\r\n".join(lines) + b"\r\n\r\n")

    def write(self, data: bytes) -> None:
        """Send; `drain` says when more may come."""
        if self._transport is not None:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the replica takes more."""
        await self._writable.wait()
        if self._lost:
            raise BadUpstream("The exposed service closed the connection")

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers of the answer.

        Raises:
            BadUpstream: there is none.
        """
        assert self._head is not None  # noqa: S101 - `begin` comes first
        await self._head
        return self.status, self._headers

    async def body(self) -> bytes:
        """The next piece of the answer's body; empty at its end.

        Raises:
            BadUpstream: it broke off.
        """
        while not self._body:
            if self._broken:
                raise BadUpstream(self._broken)
            if self._complete:
                return b""
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._body.popleft() if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._size = 0
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        return data

    @property
    def left(self) -> int:
        """How much of the body is still to come; 0 when that is not known."""
        return 0 if self._complete or self._broken or self.closed else max(0, self._left)

    def handed_over(self) -> tuple[bytes, int]:
        """What has come of the body, and a new descriptor to read the rest from: this end reads no more of it."""
        assert self._transport is not None  # noqa: S101 - something is left of a body
        self._transport.pause_reading()
        self._reusable = False
        data = b"".join(self._body)
        self._body.clear()
        return data, os.dup(self._transport.get_extra_info("socket").fileno())

    @property
    def reusable(self) -> bool:
        """Whether another request may follow, once this one was sent whole."""
        return self._complete and self._reusable and not self._broken and not self.closed

    def abort(self) -> None:
        """Close it now: the replica sees that nobody waits any more."""
        if self._transport is not None:
            self._transport.abort()

    # Of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop has a class of its own

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.answered = True
        if self._parser is None or self._complete:
            # Nobody has asked: a server that speaks out of turn is not trusted with another request.
            self._reusable = False
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._complete:
                self._fail(f"The exposed service does not speak HTTP/1.1: {error}")
            self._reusable = False
            self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._lost = True
        self._writable.set()
        if self._complete or self._parser is None:
            return
        if self._head is not None and self._head.done() and not self._sized and not self._broken:
            # Without a length the end of the connection is the end of the body.
            self._finish()
            return
        self._fail("The exposed service closed the connection")

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`."""
        return False

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._writable.set()

    # Of httptools.

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the answer."""
        self._head_size += len(name) + len(value)
        if self._head_size > LONGEST_HEAD:
            raise ValueError("the answer's head is too long")
        name = name.lower()
        if name in {b"content-length", b"transfer-encoding"}:
            self._sized = True
        if name == b"content-length" and value.isdigit():
            self._left = int(value)
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there."""
        assert self._parser is not None  # noqa: S101 - it calls
        status = self._parser.get_status_code()
        if 100 <= status < 200:  # noqa: PLR2004 - news before the answer; an upgrade was not asked for
            self._headers = []
            self._sized = False
            self._left = 0
            if status == 101:  # noqa: PLR2004
                self._fail("The exposed service changed the protocol without being asked")
            return
        self.status = status
        if any(name == b"transfer-encoding" for name, _ in self._headers):
            self._left = 0  # what stands in chunks has to be read here, whatever length is told beside it
        self._reusable = self._parser.should_keep_alive()
        if self._head is not None and not self._head.done():
            self._head.set_result(None)
        if self._is_head_request or status in {204, 304}:
            self._finish()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._complete:
            self._reusable = False
            return
        self._body.append(data)
        self._size += len(data)
        self._left -= len(data)
        if self._size >= HIGH and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self.status:  # else it was news before the answer
            self._finish()

    def _finish(self) -> None:
        self._complete = True
        self._wake()

    def _fail(self, words: str) -> None:
        self._broken = words
        if self._head is not None and not self._head.done():
            self._head.set_exception(BadUpstream(words))
            self._head.exception()  # it may be that nobody asks
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Pool:
    """Connections to replicas, by address."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], list[Connection]] = {}

    async def take(
        self, address: tuple[str, int], *, method: bytes, fresh: bool = False
    ) -> tuple[Connection, bool]:
        """A connection, and whether it has been used before.

        Raises:
            NotListening: nobody is there.
            BadUpstream: it can't be reached.
        """
        if not fresh:
            limit = IDLE_S if method in _SAFE else IDLE_UNSAFE_S
            for connection in self._waiting(address):
                if not connection.closed and time.monotonic() - connection.idle_since < limit:
                    return connection, True
                connection.abort()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await asyncio.get_running_loop().create_connection(Connection, *address)
        except ConnectionRefusedError as error:
            raise NotListening("The exposed service does not listen on its port") from error
        except (OSError, TimeoutError) as error:
            raise BadUpstream(f"The exposed service can't be reached: {error or 'no answer'}") from error
        return connection, False

    def _waiting(self, address: tuple[str, int]) -> Iterator[Connection]:
        while connections := self._idle.get(address):
            yield connections.pop()
        self._idle.pop(address, None)

    def give(self, address: tuple[str, int], connection: Connection) -> None:
        """Take it back after an exchange; it is closed when it can't be used again."""
        if not connection.reusable:
            connection.abort()
            return
        waiting = self._idle.setdefault(address, [])
        if len(waiting) >= MOST_IDLE:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        waiting.append(connection)

    def tidy(self) -> None:
        """Close what nobody has used for a while."""
        now = time.monotonic()
        for address, waiting in list(self._idle.items()):
            kept = []
            for connection in waiting:
                if connection.closed or now - connection.idle_since > IDLE_S:
                    connection.abort()
                else:
                    kept.append(connection)
            if kept:
                self._idle[address] = kept
            else:
                del self._idle[address]

    def close(self) -> None:
        """Close all that wait."""
        for waiting in self._idle.values():
            for connection in waiting:
                with contextlib.suppress(RuntimeError):  # the loop is gone
                    connection.abort()
        self._idle.clear()


def can_repeat(method: bytes) -> bool:
    """Whether a request may be sent again after a connection closed without a byte of an answer: RFC 9110 9.2.2."""
    return method in _SAFE
