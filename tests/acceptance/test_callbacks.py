"""Callbacks: who is told of a job's end, how he knows that it is true, and whom nobody can make the server call."""

from __future__ import annotations

import hmac
import http.server
import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests import server as servers
from tests.acceptance.calls import client, create, ended, submit
from tests.server import Server


@dataclass(slots=True)
class Receiver:
    """A web server that keeps what it is told."""

    port: int
    statuses: list[int]
    """What it answers, in this order; then always 204."""
    heard: queue.Queue[tuple[str, dict[str, str], bytes]] = field(default_factory=queue.Queue)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = told.statuses.pop(0) if told.statuses else 204
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            headers = {name.lower(): value for name, value in self.headers.items()}
            told.heard.put((self.path, headers, body))

        def log_message(self, *_words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        told = Receiver(web.server_address[1], [])
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield told
        web.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def allowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that may call this machine by its name only."""
    place = tmp_path_factory.mktemp("callbacks") / "data"
    settings = {"OSCAR_CALLBACK_ALLOWED_HOSTS": "localhost", "OSCAR_CALLBACK_DELAY_SECONDS": "0.1"}
    with servers.running(place, **settings) as running:
        yield running


def test_the_end_of_a_job_is_told_with_a_signature(allowing: Server, receiver: Receiver) -> None:
    # Not heard, sent elsewhere, and heard at last.
    receiver.statuses += [500, 302]
    with client(allowing) as http:
        name = create(http, "exit 5")
        url = f"http://localhost:{receiver.port}/told?job=1"
        job = submit(http, name, headers={"X-Callback-URL": url})
        token = http.get(f"/system/services/{name}").json()["token"]
        assert ended(http, name, job)["exit_code"] == 5
    for _ in range(3):
        path, headers, body = receiver.heard.get(timeout=60)
        assert path == "/told?job=1", "redirects are not followed"
        stamp = headers["x-oscar-timestamp"]
        expected = hmac.digest(token.encode(), stamp.encode() + b"." + body, "sha256").hex()
        assert headers["x-oscar-signature"] == f"sha256={expected}"
        assert headers["host"] == f"localhost:{receiver.port}"
        assert json.loads(body) == {
            "job_id": job,
            "service": name,
            "status": "Failed",
            "state": "failed",
            "reason": "script",
            "exit_code": 5,
        }
    assert receiver.heard.empty()


def test_a_signature_by_no_key_is_none(allowing: Server, receiver: Receiver) -> None:
    with client(allowing) as http:
        name = create(http, "sleep 600")
        submit(http, name, headers={"X-Callback-URL": f"http://localhost:{receiver.port}/"})
        assert http.delete(f"/system/services/{name}").status_code == 204
    _, headers, body = receiver.heard.get(timeout=60)
    assert json.loads(body)["state"] == "cancelled"
    assert "x-oscar-signature" not in headers


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "http://localhost:1/",
        "http://[::1]:1/",
        "http://[::ffff:127.0.0.1]:1/",
        "http://2130706433/",
        "http://0.0.0.0/",
        "http://10.1.2.3/",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "ftp://93.184.215.14/",
        "http://user:password@93.184.215.14/",
        "http://",
        "http://93.184.215.14:99999/",
        "//93.184.215.14/",
        "http://no.such.host.invalid/",
    ],
)
def test_who_is_never_called(server: Server, url: str) -> None:
    with client(server) as http:
        name = create(http, "true")
        answer = http.post(f"/job/{name}", content=b"{}", headers={"X-Callback-URL": url})
        assert answer.status_code == 400, answer.text
        assert (answer.json()["code"], answer.json()["field"]) == ("invalid_field", "X-Callback-URL")
        assert http.get(f"/system/logs/{name}").json()["jobs"] == {}, "what is refused leaves no job"
        assert http.delete(f"/system/services/{name}").status_code == 204


def test_a_name_that_is_allowed_allows_no_other(allowing: Server) -> None:
    with client(allowing) as http:
        name = create(http, "true")
        for url in ("http://127.0.0.1/", "http://localhost.localdomain/", "http://xlocalhost/"):
            answer = http.post(f"/job/{name}", content=b"{}", headers={"X-Callback-URL": url})
            assert answer.status_code == 400, url
