"""A raw socket with a prepared request, so that little but the server is measured; and doing it many times.

Used by the parts that call the REST API.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from tests.server import Server

CLIENTS = 16
"""Connections at once where there are several."""


class Client:
    """A connection that sends the same request again and again."""

    def __init__(
        self,
        at: Server,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        status: int = 200,
        answer: bytes | None = None,
        token: str = "",
    ) -> None:
        """Prepare the request.

        Args:
            at: the server.
            method: of the request.
            path: of the request.
            body: of the request.
            status: that each answer must have.
            answer: the body that each answer must have; any when None.
            token: a bearer token in place of the administrator's account.
        """
        address = urlsplit(at.endpoint)
        self._host, self._port = address.hostname, address.port
        account = base64.b64encode(f"{at.user}:{at.password}".encode()).decode()
        login = f"Bearer {token}" if token else f"Basic {account}"
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: {login}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._begin = f"HTTP/1.1 {status}".encode()
        self._answer = answer

    async def open(self) -> Client:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def call(self) -> None:
        """One call; its answer must be right."""
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await self._reader.readexactly(size)
        if not head.startswith(self._begin) or (self._answer is not None and body != self._answer):
            raise AssertionError(head + body)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


async def repeat(call: Callable[[], Awaitable[None]], count: int = 0, end: float = 0.0) -> list[float]:
    """Call so many times, and until that time of `perf_counter`; the seconds of each."""
    found: list[float] = []
    while len(found) < count or time.perf_counter() < end:
        begin = time.perf_counter()
        await call()
        found.append(time.perf_counter() - begin)
    return found


async def rate(make: Callable[[], Client], count: int) -> float:
    """Calls per second of `CLIENTS` connections, `count` calls in all."""
    clients = [await make().open() for _ in range(CLIENTS)]
    begin = time.perf_counter()
    await asyncio.gather(*(repeat(client.call, count // CLIENTS) for client in clients))
    took = time.perf_counter() - begin
    for client in clients:
        client.close()
    return count // CLIENTS * CLIENTS / took
