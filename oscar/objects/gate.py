"""A proxy on this machine's loopback for a client that can't be told an address: obstore looks names up by itself.

Called by `s3` for users' stores. It knows one verb, CONNECT (RFC 9110, 9.3.6): TLS goes through it from end to end,
with the name that the client asked for, to an address that `reach` has just checked. Who asks shows a secret, so that
no other program of this machine goes through.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import secrets

from oscar.objects.reach import Reach

_CONNECT_S = 10.0
_HEAD_S = 10.0
_PIECE = 256 * 1024


class Gate:
    """The proxy, open from the first `url` until `close`."""

    def __init__(self, reach: Reach) -> None:
        """Let through what may be reached."""
        self.reach = reach
        self._secret = secrets.token_urlsafe(24)
        self._opening = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def url(self) -> str:
        """Its address, the secret included."""
        async with self._opening:
            if self._server is None:
                self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return f"http://oscar:{self._secret}@127.0.0.1:{port}"

    async def close(self) -> None:
        """Let nothing through any more."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio calls this in one
        self._tasks.add(task)
        try:
            await self._tunnel(reader, writer)
        except* (OSError, EOFError, ValueError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # one of the two sides has gone, or spoke no HTTP: the other sees its connection end
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        host, _, port = target.rpartition(":")
        if method != "CONNECT" or not self._knows(head[1:]):
            await _say(writer, "403 Forbidden")
            return
        try:
            far_reader, far_writer = await self._connect(host.strip("[]"), int(port))
        except (OSError, TimeoutError) as error:
            await _say(writer, f"502 {str(error) or 'no answer'}")
            return
        try:
            await _say(writer, "200 Connected")
            # When one direction breaks, the other ends too.
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass(reader, far_writer))
                both.create_task(_pass(far_reader, writer))
        finally:
            far_writer.transport.abort()

    def _knows(self, rows: list[str]) -> bool:
        wanted = "Basic " + base64.b64encode(f"oscar:{self._secret}".encode()).decode()
        for row in rows:
            name, _, value = row.partition(":")
            if name.lower() == "proxy-authorization":
                return hmac.compare_digest(value.strip().encode(), wanted.encode())
        return False

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        addresses = await self.reach.addresses(host, port)
        for address in addresses[:-1]:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_S):
                    return await asyncio.open_connection(address, port)
        async with asyncio.timeout(_CONNECT_S):
            return await asyncio.open_connection(addresses[-1], port)


async def _say(writer: asyncio.StreamWriter, status: str) -> None:
    writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode("latin-1", "replace"))
    await writer.drain()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_PIECE):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
