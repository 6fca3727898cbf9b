"""Both servers as HTTP servers: heads without end, bodies over the limit, connections that go on or end cleanly."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from tests import server as servers
from tests.server import Server

LIMIT = 64 * 1024


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a small limit for bodies."""
    with servers.running(tmp_path_factory.mktemp("http") / "data", OSCAR_MAX_BODY_MB="1") as running:
        yield running


def talk(url: str, request: bytes) -> bytes:
    """Send bytes, and all that comes back until the server closes."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), 30) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


HEADS = {
    "one header": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 2 * LIMIT + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * (LIMIT // 5) + b"\r\n",
    "path": b"GET /" + b"x" * 2 * LIMIT + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "no end": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 4 * LIMIT,
    "name without end": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x" * 4 * LIMIT,
    "after a good one": b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nX: " + b"x" * 4 * LIMIT,
}


@pytest.mark.parametrize("which", ["endpoint", "s3"])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_heads_without_end(small: Server, which: str, head: bytes) -> None:
    answer = talk(getattr(small, which), head)
    assert b"HTTP/1.1 431 " in answer or b"\r\n\r\n" in answer.partition(b"HTTP/1.1 ")[2]
    if head != HEADS["after a good one"]:
        start, _, body = answer.partition(b"\r\n\r\n")
        assert start.startswith(b"HTTP/1.1 431 ")
        assert json.loads(body)["code"] == "headers_too_large"
    assert httpx2.get(f"{small.endpoint}/health").text == "Ok"


@pytest.mark.parametrize("which", ["endpoint", "s3"])
def test_trailers_without_end(small: Server, which: str) -> None:
    head = b"PUT /a/b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"
    parts = urlsplit(getattr(small, which))
    with socket.create_connection((parts.hostname, parts.port), 30) as connection:
        connection.sendall(head)
        # The server ends it: without a limit this would go on for as long as there is memory.
        with pytest.raises(ConnectionError):
            connection.sendall((b"X-Trailer: " + b"x" * 60_000 + b"\r\n") * 1000)


def test_a_head_below_the_limit_is_served(small: Server) -> None:
    answer = httpx2.get(f"{small.endpoint}/health", headers={"X-Large": "x" * 60_000})
    assert answer.text == "Ok"


def test_a_body_over_the_limit_leaves_the_connection_usable(small: Server) -> None:
    with httpx2.Client(base_url=small.endpoint, auth=(small.user, small.password), timeout=60) as http:
        name = f"h-{uuid.uuid4().hex[:8]}"
        definition = {"name": name, "image": "none", "script": "true"}
        assert http.post("/system/services", json=definition).status_code == 201
        for route in ("job", "run"):
            for content in (b" " * (3 << 20), iter([b" " * (1 << 20)] * 3)):
                answer = http.post(f"/{route}/{name}", content=content)
                assert answer.status_code == 413, answer.text
                error = answer.json()
                assert (error["code"], error["field"]) == ("body_too_large", "body")
                assert "1048576 bytes" in error["message"]
                assert "OSCAR_MAX_BODY_MB" in error["fix"]
                assert http.post(f"/{route}/{name}", content=b"{}").status_code in {200, 201}
        assert http.get(f"/system/logs/{name}").json()["remaining_jobs"] == 0


def test_expectations_are_refused_before_the_body_is_sent(small: Server) -> None:
    parts = urlsplit(small.endpoint)
    head = (
        "POST /system/services HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection((parts.hostname, parts.port), 30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 401 ")


def test_broken_http(small: Server, tmp_path: Path) -> None:
    for url in (small.endpoint, small.s3):
        assert talk(url, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        two = b"POST /job/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"
        assert talk(url, two).startswith(b"HTTP/1.1 400 ")
        both = b"POST /job/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        assert talk(url, both).startswith(b"HTTP/1.1 400 ")
