"""One HTTP PUT that asks before it sends: `Expect: 100-continue`, which the HTTP client we use can't do.

dCache sends uploaders to its data servers only if they ask so, and any server can refuse a file (no right, no
space) before gigabytes are on the way. Called by `objects.web` for files that are not small; speaks HTTP/1.1 by
h11 on one connection of its own. Source: RFC 9110, 10.1.1; dCache's user guide, "Redirection on upload".
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

from oscar.errors import StorageError
from oscar.objects.local_files import Source
from oscar.objects.reach import Reach

CONNECT = 10.0
ASKED = 10.0
"""Seconds to wait for the server's word before the file is sent without it. dCache answers only once a data server
is ready, so this is more than the second that is common; a server that never answers costs it once a file."""
MOST_WORDS = 64 * 1024
"""Bytes of an answer that are read."""
_READ = 64 * 1024
_CONTINUE = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: str


async def put(
    url: str,
    source: Source,
    headers: Mapping[str, str],
    *,
    tls: ssl.SSLContext | None,
    stall: float,
    reach: Reach | None = None,
) -> Answer:
    """Send the file; memory stays flat.

    Args:
        url: where to; its user part is not looked at.
        source: the file.
        headers: of the request, beside host, length and expectation.
        tls: for https.
        stall: seconds without any progress after which it is given up.
        reach: what may be connected to; None for anything.

    Raises:
        OSError, ssl.SSLError, TimeoutError, EOFError: the connection could not be made or broke.
        StorageError: the file changed on the way, or the answer is no HTTP.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    context = tls if parts.scheme == "https" else None
    async with asyncio.timeout(CONNECT):
        # To the address that was checked; the certificate is still that of the name.
        address = (await reach.addresses(host, port))[0] if reach else host
        name = host if context else None
        reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
    exchange = _Exchange(reader, writer, stall)
    try:
        return await exchange.run(_request(url, source.size, headers), source)
    except h11.ProtocolError as error:
        raise StorageError(f"the answer is no HTTP: {error}") from error
    finally:
        await exchange.close()


def _request(url: str, size: int, headers: Mapping[str, str]) -> h11.Request:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return h11.Request(
        method="PUT",
        target=target,
        headers=[
            ("Host", parts.netloc.rpartition("@")[2]),
            ("Content-Length", str(size)),
            ("Expect", "100-continue"),
            ("Connection", "close"),
            *headers.items(),
        ],
    )


class _Exchange:
    """A request and its answer on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stall: float) -> None:
        self._reader = reader
        self._writer = writer
        self._stall = stall
        self._http = h11.Connection(h11.CLIENT)
        self._invited = asyncio.Event()
        self._answer: asyncio.Task[Answer] | None = None

    async def run(self, request: h11.Request, source: Source) -> Answer:
        self._writer.write(self._http.send(request) or b"")
        self._answer = answer = asyncio.create_task(self._listen())
        invited = asyncio.create_task(self._invited.wait())
        try:
            await asyncio.wait({answer, invited}, timeout=ASKED, return_when=asyncio.FIRST_COMPLETED)
        finally:
            invited.cancel()
        if not answer.done():
            await self._send(source, answer)
        # The server works on the file now; a part of the answer counts as progress no more than silence does.
        async with asyncio.timeout(self._stall):
            return await answer

    async def _send(self, source: Source, answer: asyncio.Task[Answer]) -> None:
        async for piece in source.pieces():
            if answer.done():
                return
            self._writer.write(self._http.send(h11.Data(data=piece)) or b"")
            if not await self._drained(answer):
                return
        self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
        await self._drained(answer)

    async def _drained(self, answer: asyncio.Task[Answer]) -> bool:
        """Wait until the piece has left; False when there is no use in sending more."""
        drain = asyncio.create_task(self._writer.drain())
        try:
            done, _ = await asyncio.wait(
                {drain, answer}, timeout=self._stall, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise TimeoutError("the server takes no more of the file")
            if drain in done:
                drain.result()
        except ConnectionError:
            # Servers that refuse a file close the connection; their reason is among what they sent before.
            return False
        finally:
            drain.cancel()
        return not answer.done()

    async def _listen(self) -> Answer:
        status, headers, body = 0, {}, bytearray()
        while True:
            event = self._http.next_event()
            match event:
                case h11.InformationalResponse(status_code=code) if code == _CONTINUE:
                    self._invited.set()
                case h11.Response():
                    status = event.status_code
                    headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                case h11.Data():
                    body += bytes(event.data)[: MOST_WORDS - len(body)]
                case h11.EndOfMessage():
                    break
                case h11.ConnectionClosed():
                    raise EOFError("the server ended the connection without an answer")
                case _ if event is h11.NEED_DATA:
                    self._http.receive_data(await self._reader.read(_READ))
        return Answer(status, headers, body.decode(errors="replace"))

    async def close(self) -> None:
        if self._answer is not None:
            self._answer.cancel()
            # Not awaited by itself: its error has been told, and our own cancellation must not be mistaken for its.
            await asyncio.wait({self._answer})
            if not self._answer.cancelled():
                self._answer.exception()
        self._writer.transport.abort()
