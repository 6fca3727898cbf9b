"""The staging containers' HTTP client: a raw server answers whatever the test says, good and bad."""

from __future__ import annotations

import io
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from oscar.supervisor import asking
from oscar.supervisor.asking import NoAnswer, Web
from tests.acceptance.test_tls import certificate

CHUNKED = b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives one answer for each connection and hangs up; its address, and the heads of requests."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as stream:
                    lines = list(iter(stream.readline, b"\r\n"))
                    asked.append(b"".join(lines))
                    sizes = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")]
                    asked.append(stream.read(sum(sizes)))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole", b"whole"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole and more", b"whole"),
        (b"HTTP/1.0 404 Not Found\r\n\r\nup to the end", b"up to the end"),
        (CHUNKED + b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n", b"abc0123456789"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\nx", b"x"),
    ],
)
def test_bodies_come_whole(answer: bytes, body: bytes) -> None:
    with answering(answer, answer) as (url, _):
        assert Web().ask("GET", url).body == body
        file = io.BytesIO()
        found = Web().ask("GET", url, into=file)
        assert (found.body, file.getvalue()) == ((b"", body) if found.status == 200 else (body, b""))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhol", "broke off"),
        (CHUNKED + b"5\r\nwho", "broke off"),
        *(
            (CHUNKED + size + b"\r\nx\r\n", "no length")
            for size in (b"xyz", b"-1", b"+1", b"0x1", b"1_0", b"")
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "coding that is not known: gzip"),
        (b"HTTP/1.1 200 OK\r\n\r\nup to the end", "not say how long"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "does not speak"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", "its length is 999"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "its length is -1"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "too long a line"),
        (
            b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: y\r\n" % number for number in range(300)) + b"\r\n",
            "too many headers",
        ),
    ],
)
def test_what_is_no_whole_answer(answer: bytes, reason: str) -> None:
    with answering(answer) as (url, _), pytest.raises(NoAnswer, match=reason):
        Web().ask("GET", url)


@pytest.mark.parametrize("chunked", [False, True])
def test_an_answer_that_stops_for_too_long_is_none(monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    monkeypatch.setattr(asking, "SILENCE_S", 0.1)
    begin = CHUNKED + b"3\r\nabc\r\n" if chunked else b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        failed: list[str] = []

        def ask() -> None:
            try:
                Web().ask("GET", f"http://127.0.0.1:{listener.getsockname()[1]}")
            except NoAnswer as error:
                failed.append(str(error))

        asks = threading.Thread(target=ask)
        asks.start()
        connection, _ = listener.accept()
        with connection:
            connection.sendall(begin)
            asks.join(10)
    assert failed == ["timed out"]


def test_the_time_for_silence_is_not_one_for_a_whole_body() -> None:
    """`sendall` may take that long altogether, so that no call of it is given more than a line sends in time."""
    sizes: list[int] = []

    class Noting(socket.socket):
        def sendall(self, data: Any, flags: int = 0) -> None:
            sizes.append(len(data))
            super().sendall(data, flags)

    ours, theirs = socket.socketpair()
    body, found = os.urandom(3 * 1024 * 1024), bytearray()
    with Noting(fileno=ours.detach()) as connection, theirs:

        def read() -> None:
            while piece := theirs.recv(64 * 1024):
                found.extend(piece)

        thread = threading.Thread(target=read)
        thread.start()
        assert asking._send(connection, b"head", body) is None
        connection.shutdown(socket.SHUT_WR)
        thread.join()
    assert found == b"head" + body
    assert max(sizes) <= 256 * 1024 + 4


def test_a_connection_is_used_again_and_a_stale_one_is_not_missed() -> None:
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    accepted = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            nonlocal accepted
            for requests in (2, 1, 1):
                connection, _ = listener.accept()
                accepted += 1
                with connection, connection.makefile("rb") as stream:
                    for _ in range(requests):
                        while stream.readline() != b"\r\n":
                            pass
                        connection.sendall(ok + str(accepted).encode() * 2)

        thread = threading.Thread(target=serve)
        thread.start()
        web, url = Web(), f"http://127.0.0.1:{listener.getsockname()[1]}"
        bodies = []
        for _ in range(4):
            bodies.append(web.ask("GET", url).body)
            time.sleep(0.05)  # the server hangs up
        thread.join()
    assert bodies == [b"11", b"11", b"22", b"33"]


def test_what_is_sent() -> None:
    ok = b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 3\r\n\r\n'
    with answering(ok + b"abc", ok, ok + b"abc") as (url, asked):
        answer = Web().ask("PUT", f"{url}/a%20b?c=d", b"body", {"x-amz-date": "now"})
        assert (answer.status, answer.is_success, answer.headers["etag"]) == (200, True, '"x"')
        assert Web().ask("HEAD", url).headers["content-length"] == "3"
        Web().ask("PUT", url)
    host = url.removeprefix("http://").encode()
    assert asked[0].splitlines() == [
        b"PUT /a%20b?c=d HTTP/1.1",
        b"host: " + host,
        b"x-amz-date: now",
        b"content-length: 4",
    ]
    assert asked[1] == b"body"
    assert asked[2].startswith(b"HEAD / HTTP/1.1\r\n")
    assert b"content-length: 0\r\n" in asked[4]


def test_refusals_are_answers_and_not_written_to_the_file() -> None:
    file = io.BytesIO()
    with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno") as (url, _):
        answer = Web().ask("GET", url, into=file)
    assert (answer.status, answer.body, answer.is_success, file.getvalue()) == (404, b"no", False, b"")


def test_a_silent_server_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "SILENCE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(NoAnswer, match="timed out"):
        Web().ask("GET", f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1", "refused"),
        ("http://no-such-host.invalid", "Name|name resolution"),
        ("http://a..b", "label"),
        ("http://127.0.0.1:99999", "[Pp]ort"),
    ],
)
def test_what_can_not_be_reached(url: str, reason: str) -> None:
    with pytest.raises(NoAnswer, match=reason):
        Web().ask("GET", url)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://127.0.0.1:80/", b"127.0.0.1"),
        ("https://store:443/", b"store"),
        ("https://store:80/", b"store:80"),
        ("http://[::1]/", b"[::1]"),
    ],
)
def test_the_host_is_named_as_it_is_signed(url: str, host: bytes) -> None:
    assert asking._host(urlsplit(url)).encode() == host


def test_an_early_refusal_of_a_large_body_is_heard() -> None:
    refused = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(refused)
                connection.shutdown(socket.SHUT_RDWR)
                time.sleep(0.2)

        thread = threading.Thread(target=serve)
        thread.start()
        answer = Web().ask("PUT", f"http://127.0.0.1:{listener.getsockname()[1]}", bytes(8 * 1024 * 1024))
        thread.join()
    assert (answer.status, answer.body) == (403, b"no")


def test_tls_is_checked_when_that_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public, private = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            url = f"https://127.0.0.1:{server.server_address[1]}"
            with pytest.raises(NoAnswer, match="certificate"):
                Web().ask("GET", url)
            web = Web(verify=False)
            assert [web.ask("GET", url).body for _ in range(2)] == [b"ok", b"ok"]
            monkeypatch.setenv("SSL_CERT_FILE", str(public))
            asking._context.cache_clear()
            assert Web().ask("GET", url).body == b"ok"
        finally:
            asking._context.cache_clear()
            server.shutdown()
