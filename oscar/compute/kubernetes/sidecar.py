"""The way to a worker's sidecar: one HTTP connection that is kept, and what is certain when it breaks.

Called by `sync`; the other end is `supervisor.serve`. A call's body is sent once the sidecar has asked for it (`100
Continue`), so that a request which a dying or busy pod did not take is known not to have begun: only then may another
worker get it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass

from oscar.errors import EngineError

CONNECT_S = 5.0
TAKE_S = 10.0
"""Seconds that a sidecar may take to say whether it takes a call."""
_HEAD = 64 * 1024
_BLOCK = 1024 * 1024


class NotTaken(Exception):
    """The call did not begin, and won't there."""


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer; names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Line:
    """Connections to one sidecar, one request at a time."""

    def __init__(self, host: str, port: int, *, name: str = "", take: float = TAKE_S) -> None:
        """Nothing is sent yet.

        Args:
            host: where it is.
            port: on which it listens.
            name: goes into `Host`, for what routes by it.
            take: seconds that it may take to say whether it takes a call.
        """
        self._take = take
        self._host = host
        self._port = port
        self._name = name or f"{host}:{port}"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def close(self) -> None:
        """End the connection; a call that is under way there is then ended by the sidecar."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def look(self, path: str) -> Heard:
        """One `GET`.

        Raises:
            OSError, EOFError: there is no answer.
        """
        reader, writer = await self._open()
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._name}\r\nConnection: close\r\n\r\n".encode())
            return await _answer(reader)
        finally:
            writer.transport.abort()

    async def call(self, headers: dict[str, str], parts: tuple[bytes, ...]) -> Heard:
        """One `POST /call`.

        Raises:
            NotTaken: see there.
            EngineError: nobody knows how far it came.
        """
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        length = sum(len(part) for part in parts)
        head = (
            f"POST /call HTTP/1.1\r\nHost: {self._name}\r\n{lines}Content-Length: {length}\r\n"
            "Expect: 100-continue\r\n\r\n"
        ).encode()
        done = False
        try:
            reader, writer, first = await self._offer(head)
            if first[0] != 100:  # noqa: PLR2004 - Continue
                heard = Heard(*first, await _body(reader, first[1]))
                self.close()  # the body that it did not ask for is still owed
                done = True
                return heard
            try:
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                heard = await _answer(reader)
            except (OSError, EOFError) as error:
                if writer.transport.get_write_buffer_size():
                    raise NotTaken("the connection broke before the request was sent") from error
                raise EngineError("the worker died while the script ran") from error
            done = heard.headers.get("connection", "").lower() != "close"
            return heard
        finally:
            if not done:
                self.close()

    async def _offer(
        self, head: bytes
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, tuple[int, dict[str, str]]]:
        """Send the head, over the connection that is there or a new one; what comes back."""
        kept = self._streams is not None
        while True:
            try:
                if self._streams is None:
                    self._streams = await self._open()
                reader, writer = self._streams
                writer.write(head)
                async with asyncio.timeout(self._take):
                    return reader, writer, await _head(reader)
            except (OSError, EOFError, TimeoutError) as error:
                self.close()
                if not kept:
                    raise NotTaken(f"the pod does not answer: {error or type(error).__name__}") from error
                kept = False  # it may have been closed since the last call

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=_HEAD)
        link = writer.get_extra_info("socket")
        # A node that is lost says nothing: noticed within half a minute.
        with contextlib.suppress(OSError):
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (
                (socket.TCP_KEEPIDLE, 10),
                (socket.TCP_KEEPINTVL, 5),
                (socket.TCP_KEEPCNT, 3),
            ):
                link.setsockopt(socket.IPPROTO_TCP, option, value)
        return reader, writer


async def _answer(reader: asyncio.StreamReader) -> Heard:
    """The final answer, after those that are only said on the way."""
    while True:
        status, headers = await _head(reader)
        if status >= 200:  # noqa: PLR2004 - below are interim ones
            return Heard(status, headers, await _body(reader, headers))


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(first.split(" ", 2)[1]), {name.lower(): value.strip() for name, _, value in pairs}
    except (asyncio.LimitOverrunError, ValueError, IndexError) as error:
        raise ConnectionError("what came back is no HTTP") from error


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _chunks(reader)
    return await reader.readexactly(int(headers.get("content-length", "0")))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in pieces, as proxies between us send it."""
    found = bytearray()
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        found += await reader.readexactly(size)
        await reader.readexactly(2)
        if not size:
            return bytes(found)
