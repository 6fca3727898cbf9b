"""HTTP/1.1 requests, one connection each, by blocking sockets: for staging containers, which wait for what they load.

Called by `own`. Python's `http.client` loads mail parsers and TLS before the first request, which takes as long as all
else that staging loads; here TLS is loaded for an address that needs it. URLs are the platform's own: no proxy and no
redirect is followed. Source: RFC 9112.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple
from urllib.parse import SplitResult, urlsplit

TIMEOUT_S = 30.0
"""How long a connection may be silent."""
_PIECE = 1024 * 1024
_LONGEST_LINE = 64 * 1024
_MOST_HEADERS = 200
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


class _Head(NamedTuple):
    status: int
    headers: dict[str, str]


def ask(
    method: str,
    url: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    verify: bool = True,
    into: BinaryIO | None = None,
) -> Answer:
    """Make a request and read the answer.

    Args:
        method: of HTTP.
        url: complete and encoded.
        body: of the request.
        headers: of it, names in small letters.
        verify: whether the server's certificate is checked.
        into: where the body of an answer of 2xx is written.

    Raises:
        NoAnswer: it can't be reached, or the answer breaks off.
        OSError: the file can't be written.
    """
    parts = urlsplit(url)
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    sent = {"host": _host(parts), **(headers or {}), "connection": "close"}
    if body or method == "PUT":
        sent["content-length"] = str(len(body))
    head = "".join(
        (f"{method} {target} HTTP/1.1\r\n", *(f"{name}: {sent[name]}\r\n" for name in sent), "\r\n")
    )
    try:
        connection = _connect(parts.scheme, parts.hostname or "", parts.port, verify=verify)
    except OSError as error:
        raise NoAnswer(error.strerror or str(error)) from error
    with connection:
        try:
            connection.sendall(head.encode("latin-1") + body)
            stream = connection.makefile("rb")
            status, found = _read_head(stream)
        except OSError as error:
            raise NoAnswer(error.strerror or str(error)) from error
        pieces = _body(stream, method, status, found)
        if into is None or status not in _SUCCESS:
            return Answer(status, found, b"".join(pieces))
        for piece in pieces:
            into.write(piece)
        return Answer(status, found)


def _host(parts: SplitResult) -> str:
    """As it is signed: without a port that is the scheme's own."""
    standard = f":{_PORTS[parts.scheme]}"
    return parts.netloc.removesuffix(standard) if parts.port else parts.netloc


def _connect(scheme: str, host: str, port: int | None, *, verify: bool) -> socket.socket:
    connection = socket.create_connection((host, port or _PORTS[scheme]), TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if scheme == "http":
        return connection
    import ssl  # as late as that, see above

    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except OSError:
        connection.close()
        raise


def _read_head(stream: BinaryIO) -> _Head:
    while True:
        version, _, rest = _line(stream).partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit()):
            raise NoAnswer("what answers does not speak HTTP/1.1")
        headers: dict[str, str] = {}
        while line := _line(stream):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
            if len(headers) > _MOST_HEADERS:
                raise NoAnswer("the answer has too many headers")
        if int(code) not in _CONTINUE:
            return _Head(int(code), headers)


def _line(stream: BinaryIO) -> str:
    line = stream.readline(_LONGEST_LINE)
    if not line.endswith(b"\n"):
        raise NoAnswer(
            "the answer broke off" if len(line) < _LONGEST_LINE else "the answer has too long a line"
        )
    return line.decode("latin-1").rstrip("\r\n")


def _body(stream: BinaryIO, method: str, status: int, headers: Mapping[str, str]) -> Iterator[bytes]:
    """The body in pieces; one that is shorter than announced is no answer."""
    if method == "HEAD" or status in _BODILESS:
        return
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := _chunk_size(_line(stream)):
            yield from _exactly(stream, size)
            _line(stream)
        while _line(stream):
            pass
        return
    length = headers.get("content-length")
    if length is None:
        while piece := _read(stream, _PIECE):
            yield piece
        return
    if not (length.isascii() and length.isdigit()):
        raise NoAnswer(f"the answer says that its length is {length[:20]}")
    yield from _exactly(stream, int(length))


def _chunk_size(line: str) -> int:
    try:
        return int(line.partition(";")[0], 16)
    except ValueError:
        raise NoAnswer("the answer's parts have no length") from None


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
        raise NoAnswer(error.strerror or str(error)) from error
