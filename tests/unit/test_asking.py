"""The staging containers' HTTP client: a raw server answers whatever the test says, good and bad."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from oscar.supervisor import asking
from oscar.supervisor.asking import NoAnswer, ask

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
        (b"HTTP/1.0 200 OK\r\n\r\nup to the end", b"up to the end"),
        (CHUNKED + b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n", b"abc0123456789"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_bodies_come_whole(answer: bytes, body: bytes) -> None:
    with answering(answer, answer) as (url, _):
        assert ask("GET", url).body == body
        file = io.BytesIO()
        assert ask("GET", url, into=file).body == b""
        assert file.getvalue() == body


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhol", "broke off"),
        (CHUNKED + b"5\r\nwho", "broke off"),
        (CHUNKED + b"xyz\r\n", "no length"),
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
        ask("GET", url)


def test_what_is_sent() -> None:
    ok = b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 3\r\n\r\n'
    with answering(ok + b"abc", ok, ok + b"abc") as (url, asked):
        answer = ask("PUT", f"{url}/a%20b?c=d", b"body", {"x-amz-date": "now"})
        assert (answer.status, answer.is_success, answer.headers["etag"]) == (200, True, '"x"')
        assert ask("HEAD", url).headers["content-length"] == "3"
        ask("PUT", url)
    host = url.removeprefix("http://").encode()
    assert asked[0].splitlines() == [
        b"PUT /a%20b?c=d HTTP/1.1",
        b"host: " + host,
        b"x-amz-date: now",
        b"connection: close",
        b"content-length: 4",
    ]
    assert asked[1] == b"body"
    assert asked[2].startswith(b"HEAD / HTTP/1.1\r\n")
    assert b"content-length: 0\r\n" in asked[4]


def test_refusals_are_answers_and_not_written_to_the_file() -> None:
    file = io.BytesIO()
    with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno") as (url, _):
        answer = ask("GET", url, into=file)
    assert (answer.status, answer.body, answer.is_success, file.getvalue()) == (404, b"no", False, b"")


def test_a_silent_server_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(NoAnswer, match="timed out"):
        ask("GET", f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize(
    ("url", "reason"), [("http://127.0.0.1:1", "refused"), ("http://no-such-host.invalid", "not known")]
)
def test_what_can_not_be_reached(url: str, reason: str) -> None:
    with pytest.raises(NoAnswer, match=reason):
        ask("GET", url)


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
