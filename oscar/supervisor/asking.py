"""HTTP/1.1 requests by blocking sockets: for staging containers, which wait for what they load.

Called by `own` and `pod`. Python's `http.client` loads mail parsers and TLS before the first request, which takes as
long as all else that staging loads; here TLS is loaded for an address that needs it. URLs are the platform's own: no
proxy and no redirect is followed. Source: RFC 9112.
"""

from __future__ import annotations

import functools
import re
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    from ssl import SSLContext

CONNECT_S = 10.0
"""How long a server may take to be there."""
SILENCE_S = 120.0
"""How long one may be silent then."""
_PIECE = 1024 * 1024
_SENT = 256 * 1024
"""Bytes that must go out within `SILENCE_S`: the time for one call of `sendall` is for all of it."""
_LONGEST_LINE = 64 * 1024
_MOST_HEADERS = 200
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK = re.compile(r"([0-9A-Fa-f]{1,15})[ \t]*(;.*)?")
_STATUS = re.compile(r"HTTP/1\.([01]) ([0-9]{3})( .*)?")
_OK = 200
_CONTINUE = range(100, 200)
_SUCCESS = range(200, 300)
_BODILESS = frozenset({204, 304})
_PORTS = {"http": 80, "https": 443}


class NoAnswer(Exception):
    """There was no whole answer."""


class Answer(NamedTuple):
    """An answer."""

    status: int
    headers: Mapping[str, str]
    """Names in small letters."""
    body: bytes = b""
    """Empty when it went to a file."""

    @property
    def is_success(self) -> bool:
        """Whether it is one of 2xx."""
        return self.status in _SUCCESS


class _Left(Exception):
    """The server had closed the connection before it saw the request."""


class Web:
    """Connections to servers, kept for the next request. For several threads.

    Args:
        verify: whether servers' certificates are checked.
    """

    def __init__(self, *, verify: bool = True) -> None:
        self._verify = verify
        self._kept: dict[tuple[str, str], list[socket.socket]] = {}

    def ask(
        self,
        method: str,
        url: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        into: BinaryIO | None = None,
    ) -> Answer:
        """Make a request and read the answer.

        Args:
            method: of HTTP.
            url: complete and encoded.
            body: of the request.
            headers: of it, names in small letters.
            into: where the body of an answer of 200 is written.

        Raises:
            NoAnswer: it can't be reached, or the answer breaks off.
            OSError: the file can't be written.
        """
        parts = urlsplit(url)
        kept = self._kept.setdefault((parts.scheme, parts.netloc), [])
        try:
            head = _head(method, parts, len(body), headers or {})
        except ValueError as error:  # a port that is none, or a name that no header can hold
            raise NoAnswer(_words(error)) from error
        while True:
            connection = kept.pop() if kept else None
            try:
                used = connection or self._connect(parts)
                answer, again = _exchange(used, method, head, body, into)
            except _Left as error:
                if connection is not None:
                    continue
                raise NoAnswer("the answer broke off") from error
            if again:
                kept.append(used)
            return answer

    def _connect(self, parts: SplitResult) -> socket.socket:
        host = parts.hostname or ""
        try:
            connection = socket.create_connection((host, parts.port or _PORTS[parts.scheme]), CONNECT_S)
        except (OSError, ValueError) as error:
            raise NoAnswer(_words(error)) from error
        try:
            if parts.scheme == "https":
                connection = _context(self._verify).wrap_socket(connection, server_hostname=host)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(SILENCE_S)
        except (OSError, ValueError) as error:
            connection.close()
            raise NoAnswer(_words(error)) from error
        return connection


@functools.cache
def _context(verify: bool) -> SSLContext:
    import ssl  # as late as that, see above

    if verify:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _head(method: str, parts: SplitResult, size: int, headers: Mapping[str, str]) -> bytes:
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    sent = {"host": _host(parts), **headers}
    if size or method == "PUT":
        sent["content-length"] = str(size)
    lines = (f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "\r\n")
    return "\r\n".join(lines).encode("latin-1")


def _host(parts: SplitResult) -> str:
    """As it is signed: without a port that is the scheme's own."""
    standard = f":{_PORTS[parts.scheme]}"
    return parts.netloc.removesuffix(standard) if parts.port else parts.netloc


def _exchange(
    connection: socket.socket, method: str, head: bytes, body: bytes, into: BinaryIO | None
) -> tuple[Answer, bool]:
    """The answer to a request, and whether the connection may be used for another; else it is closed."""
    again = False
    try:
        refused = _send(connection, head, body)
        with connection.makefile("rb") as stream:
            try:
                status, headers, again = _read_head(stream)
            except NoAnswer as error:
                raise (NoAnswer(_words(refused)) if refused else error) from error
            pieces = _body(stream, method, status, headers)
            if into is not None and status == _OK:
                for piece in pieces:
                    into.write(piece)
                answer = Answer(status, headers)
            else:
                answer = Answer(status, headers, b"".join(pieces))
        again = again and refused is None and _is_framed(method, status, headers)
    except BaseException:
        connection.close()
        raise
    if not again:
        connection.close()
    return answer, again


def _send(connection: socket.socket, head: bytes, body: bytes) -> OSError | None:
    """Send a request; the trouble if it did not go out whole, which a server may still have answered."""
    try:
        connection.sendall(head + body[:_SENT])
        rest = memoryview(body)
        for start in range(_SENT, len(body), _SENT):
            connection.sendall(rest[start : start + _SENT])
    except OSError as error:
        return error
    return None


def _read_head(stream: BinaryIO) -> tuple[int, dict[str, str], bool]:
    """Status and headers of an answer, and whether its server keeps the connection."""
    first = True
    while True:
        line = _line(stream, first=first)
        first = False
        found = _STATUS.fullmatch(line)
        if not found:
            raise NoAnswer("what answers does not speak HTTP/1.1")
        headers: dict[str, str] = {}
        while line := _line(stream):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
            if len(headers) > _MOST_HEADERS:
                raise NoAnswer("the answer has too many headers")
        status = int(found[2])
        if status not in _CONTINUE:
            return status, headers, found[1] == "1" and headers.get("connection", "").lower() != "close"


def _line(stream: BinaryIO, *, first: bool = False) -> str:
    try:
        line = stream.readline(_LONGEST_LINE)
    except ConnectionResetError as error:
        if first:
            raise _Left from error
        raise NoAnswer(_words(error)) from error
    except OSError as error:
        raise NoAnswer(_words(error)) from error
    if first and not line:
        raise _Left
    if not line.endswith(b"\n"):
        raise NoAnswer(
            "the answer broke off" if len(line) < _LONGEST_LINE else "the answer has too long a line"
        )
    return line.decode("latin-1").rstrip("\r\n")


def _is_framed(method: str, status: int, headers: Mapping[str, str]) -> bool:
    """Whether the end of the body is known without the end of the connection."""
    return (
        method == "HEAD"
        or status in _BODILESS
        or "transfer-encoding" in headers
        or "content-length" in headers
    )


def _body(stream: BinaryIO, method: str, status: int, headers: Mapping[str, str]) -> Iterator[bytes]:
    """The body in pieces; one that is shorter than announced is no answer."""
    if method == "HEAD" or status in _BODILESS:
        return
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked":
            raise NoAnswer(f"the answer comes in a coding that is not known: {coding[:50]}")
        while size := _chunk_size(_line(stream)):
            yield from _exactly(stream, size)
            _line(stream)
        while _line(stream):
            pass
    elif length is not None:
        if not _LENGTH.fullmatch(length):
            raise NoAnswer(f"the answer says that its length is {length[:20]}")
        yield from _exactly(stream, int(length))
    elif method == "GET" and status in _SUCCESS:
        # What breaks off would look whole.
        raise NoAnswer("the answer does not say how long it is")
    else:
        while piece := _read(stream, _PIECE):
            yield piece


def _chunk_size(line: str) -> int:
    found = _CHUNK.fullmatch(line)
    if not found:
        raise NoAnswer("the answer's parts have no length")
    return int(found[1], 16)


def _exactly(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        piece = _read(stream, min(size, _PIECE))
        if not piece:
            raise NoAnswer("the answer broke off")
        size -= len(piece)
        yield piece


def _read(stream: BinaryIO, size: int) -> bytes:
    try:
        return stream.read(size)
    except OSError as error:
        raise NoAnswer(_words(error)) from error


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
