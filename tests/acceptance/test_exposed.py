"""Exposed services through the real program: a real web server behind it, real clients before it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests import oidc
from tests import server as servers
from tests.server import Server

APP = (Path(__file__).parents[1] / "exposed_app.py").read_text()
MIB = 1024 * 1024
POST = b"POST /system/services/app/exposed/ HTTP/1.1\r\nHost: x\r\n"
SMUGGLED = b"GET /system/services/app/exposed/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


class Web:
    """A server with exposed services."""

    def __init__(self, at: Server) -> None:
        self.at = at
        nobody = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        self.http = httpx2.Client(base_url=at.endpoint, timeout=60, cookies=nobody)
        self.auth = (at.user, at.password)

    @contextlib.contextmanager
    def asked(self, path: str) -> Iterator[tuple[socket.socket, bytes]]:
        """A GET by a plain socket; it, and what of the answer's body came along with the head."""
        where = urlsplit(self.at.endpoint)
        with socket.create_connection((where.hostname, where.port), timeout=60) as sock:
            head = f"GET /system/services/app/exposed{path} HTTP/1.1\r\nHost: x\r\n\r\n"
            sock.sendall(head.encode())
            said = b""
            while b"\r\n\r\n" not in said:
                said += sock.recv(4096)
            yield sock, said.partition(b"\r\n\r\n")[2]

    def apply(self, name: str, script: str = APP, **fields: Any) -> None:
        expose = {"api_port": 8080, "max_scale": 1, **fields.pop("expose", {})}
        service = {
            "name": name,
            "image": "none",
            "script": script,
            "cpu": "2",
            "memory": "256Mi",
            "expose": expose,
        }
        service |= {"environment": {"variables": {"WORDS": "one"}}, **fields}
        known = self.http.get(f"/system/services/{name}", auth=self.auth).status_code == 200
        answer = self.http.request(
            "PUT" if known else "POST", "/system/services", json=service, auth=self.auth
        )
        assert answer.status_code in {201, 204}, answer.text

    def remove(self, name: str) -> None:
        assert self.http.delete(f"/system/services/{name}", auth=self.auth).status_code == 204

    def token(self, name: str) -> str:
        return str(self.http.get(f"/system/services/{name}", auth=self.auth).json()["token"])

    def state(self, name: str) -> dict[str, Any]:
        return dict(self.http.get(f"/system/services/{name}/deployment", auth=self.auth).json())

    def reach(self, name: str, **wanted: Any) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while any((found := self.state(name)).get(key) != value for key, value in wanted.items()):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)  # states are asked for, not told
        return found

    def get(self, name: str, path: str = "/", **how: Any) -> httpx2.Response:
        return self.http.get(f"/system/services/{name}/exposed{path}", **how)

    def seen(self, name: str, path: str = "/", **how: Any) -> dict[str, Any]:
        answer = self.get(name, path, **how)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def replica(self, name: str) -> str:
        """Which replica answers: each has a port of its own."""
        return str(self.seen(name)["environment"]["PORT"])

    def said(self, name: str, words: str) -> None:
        """Wait until a replica has written that."""
        deadline = time.monotonic() + 30
        while True:
            found = self.http.get(f"/system/services/{name}/deployment/logs", auth=self.auth).json()
            if any(words in entry["message"] for entry in found["entries"]):
                return
            assert time.monotonic() < deadline, found
            time.sleep(0.05)

    def raw(self, request: bytes) -> bytes:
        """All that the server answers to these bytes."""
        where = urlsplit(self.at.endpoint)
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=30) as to:
            to.sendall(request)
            to.shutdown(socket.SHUT_WR)
            answer = b""
            while data := to.recv(65536):
                answer += data
        return answer


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    settings = {
        "INGRESS_SERVICES_CORS_ALLOWED_ORIGINS": "https://dashboard.example.org",
        "OSCAR_EXPOSED_WAIT_SECONDS": "20",
    }
    with servers.running(tmp_path_factory.mktemp("exposed") / "data", **settings) as at:
        found = Web(at)
        found.apply("app")
        found.reach("app", state="ready")
        yield found
        for service in found.http.get("/system/services", auth=found.auth).json():
            found.remove(service["name"])


# What the service sees.


def test_the_prefix_is_stripped_or_kept(web: Web) -> None:
    assert web.seen("app", "/a%20b//d?x=1&y=%2F")["target"] == "/a%20b//d?x=1&y=%2F"
    assert web.seen("app", "")["target"] == "/"
    web.apply("kept", expose={"rewrite_target": True})
    found = web.seen("kept", "/a?x=1")
    assert found["target"] == "/system/services/kept/exposed/a?x=1"
    assert found["environment"]["OSCAR_SERVICE_BASE_PATH"] == "/system/services/kept/exposed"
    web.remove("kept")


def test_headers_of_the_way(web: Web) -> None:
    headers = {
        "X-Forwarded-For": "6.6.6.6",
        "Forwarded": "for=6.6.6.6",
        "X-Real-IP": "6.6.6.6",
        "Connection": "keep-alive, X-Only-Here",
        "X-Only-Here": "1",
        "TE": "trailers",
        "X-Mine": "stays",
        "Cookie": "mine=1; oscar_service_app_auth=secret; other=2",
    }
    found = web.seen("app", "/", headers=headers)["headers"]
    given = dict(found)
    assert given["x-forwarded-for"] == given["x-real-ip"] == "127.0.0.1"
    assert given["x-forwarded-proto"] == "http"
    assert given["x-forwarded-prefix"] == "/system/services/app/exposed"
    assert given["x-forwarded-host"] == given["host"] == urlsplit(web.at.endpoint).netloc
    assert given["x-mine"] == "stays"
    assert given["cookie"] == "mine=1; other=2"
    names = [name for name, _ in found]
    assert not {"te", "x-only-here", "forwarded", "connection", "keep-alive"} & set(names)
    assert len(names) == len(set(names))


def test_answers_come_as_they_are(web: Web) -> None:
    missing = web.get("app", "/missing")
    assert missing.status_code == 404
    assert missing.headers["x-own"] == "yes"
    assert "x-frame-options" not in missing.headers
    assert web.http.head("/system/services/app/exposed/").status_code == 200
    moved = web.get("app", "/redirect")
    assert (moved.status_code, moved.headers["location"]) == (
        302,
        "/system/services/app/exposed/elsewhere?a=1",
    )
    cookies = web.get("app", "/cookies").headers.get_list("set-cookie")
    assert cookies == ["mine=1; Path=/system/services/app/exposed"]
    unchanged = web.get("app", "/unchanged")
    assert (unchanged.status_code, unchanged.headers["etag"], unchanged.content) == (304, "x", b"")
    assert web.get("app", "/until-close").text == "all that there is"
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"):
        answer = web.http.request(method, "/system/services/app/exposed/x", content=b"body")
        assert (answer.json()["method"], answer.json()["body"]) == (method, "body")


# Bodies.


def memory(pid: int) -> int:
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmRSS"))


@pytest.mark.timeout(600)
def test_an_answer_of_2_gib_streams_with_flat_memory(web: Web) -> None:
    size, seen = 2048 * MIB, 0
    assert web.at.process is not None
    pid = web.at.process.pid
    before, most = memory(pid), 0
    buffer = bytearray(MIB)
    with web.asked(f"/stream?size={size}") as (sock, rest):
        seen = len(rest)
        while seen < size:
            came = sock.recv_into(buffer)
            assert came, f"ended after {seen} bytes"
            if seen // (64 * MIB) != (seen + came) // (64 * MIB):
                most = max(most, memory(pid))
            seen += came
    assert seen == size
    assert most - before < 40 * MIB


def test_a_long_answer_arrives_as_it_was_sent_and_others_follow_on_the_connection(web: Web) -> None:
    count = 1_500_000
    assert struct.unpack(f">{count}Q", web.get("app", f"/counted?count={count}").content) == tuple(
        range(count)
    )
    assert web.get("app", "/after").status_code == 200


def test_a_long_answer_that_breaks_off_is_not_taken_for_a_whole_one(web: Web) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        web.get("app", "/cut")
    assert web.seen("app")["method"] == "GET"


def test_who_leaves_a_long_answer_ends_it(web: Web) -> None:
    with web.asked(f"/stream?size={2048 * MIB}") as (sock, _):
        seen = 0
        while seen < 8 * MIB:
            seen += len(sock.recv(MIB))
    web.said("app", "stream left off")
    assert web.seen("app")["method"] == "GET"


def test_a_large_upload_streams_with_flat_memory(web: Web) -> None:
    block = os.urandom(MIB)
    assert web.at.process is not None
    pid = web.at.process.pid
    before, most = memory(pid), 0

    def body() -> Iterator[bytes]:
        nonlocal most
        for index in range(512):
            yield block
            if index % 20 == 0:
                most = max(most, memory(pid))

    digest = hashlib.sha256()
    for _ in range(512):
        digest.update(block)
    for headers in ({}, {"Content-Length": str(512 * MIB)}):
        answer = web.http.post("/system/services/app/exposed/upload", content=body(), headers=headers)
        assert answer.json() == {"size": 512 * MIB, "sha256": digest.hexdigest()}
    assert most - before < 40 * MIB


def test_a_slow_client_holds_the_service_up(web: Web) -> None:
    assert web.at.process is not None
    before = memory(web.at.process.pid)
    with web.http.stream("GET", f"/system/services/app/exposed/stream?size={256 * MIB}") as answer:
        pieces = answer.iter_raw()
        next(pieces)
        time.sleep(1)  # nobody tells what is not read
        assert memory(web.at.process.pid) - before < 30 * MIB


def test_both_directions_at_once(web: Web) -> None:
    async def scenario() -> None:
        where = urlsplit(web.at.endpoint)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(
            b"POST /system/services/app/exposed/both HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        async with asyncio.timeout(30):
            for word in (b"one", b"two", b"three"):
                writer.write(b"%x\r\n%b\r\n" % (len(word), word))
                # The answer to each piece comes before the next is sent.
                await reader.readuntil(word.upper())
            writer.write(b"0\r\n\r\n")
            await reader.readuntil(b"0\r\n\r\n")
        writer.close()

    asyncio.run(scenario())


def test_events_come_one_by_one_and_end_with_the_client(web: Web) -> None:
    with web.http.stream("GET", "/system/services/app/exposed/sse") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        lines = answer.iter_lines()
        assert [line for line in (next(lines) for _ in range(5)) if line] == ["data: 0", "data: 1", "data: 2"]
    web.said("app", "events ended")


# Trouble on the other side.


@pytest.mark.parametrize("path", ["/close", "/garbage", "/double"])
def test_a_service_that_breaks_off_is_a_bad_gateway(web: Web, path: str) -> None:
    answer = web.get("app", path)
    assert answer.status_code == 502
    assert answer.json()["code"] == "bad_upstream"
    assert web.seen("app")["method"] == "GET"


def test_half_an_answer_is_not_taken_for_a_whole_one(web: Web) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        web.get("app", "/half")


def test_an_early_answer_to_an_upload(web: Web) -> None:
    answer = web.http.post("/system/services/app/exposed/early", content=bytes(64 * 1024))
    assert (answer.status_code, answer.text) == (413, "too large")


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"GET /system/services/app/exposed/ HTTP/1.1\r\nHost: x\r\nX-A: b\nGET: c\x00d\r\n\r\n",
        b"GET /system/services/app/exposed/a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00",
    ],
)
def test_what_is_no_request_goes_nowhere(web: Web, request_bytes: bytes) -> None:
    answer = web.raw(request_bytes)
    assert b"smuggled" not in answer
    assert answer.startswith(b"HTTP/1.1 4") or not answer
    assert web.seen("app")["method"] == "GET"


def test_names_and_paths_that_lead_nowhere(web: Web) -> None:
    for path in (
        "/system/services/none/exposed/",
        "/system/services/app/exposedx",
        "/system/services/APP/exposed/",
        "/system/services/%61pp/exposed/",
        "/system/services/app/ports/9/x",
        "/system/services/app/ports/99999/x",
        "/system/services//exposed/",
    ):
        answer = web.http.get(path)
        assert answer.status_code in {404, 405}, (path, answer.text)
        assert "code" in answer.json()


# WebSockets.


def test_websockets(web: Web) -> None:
    address = web.at.endpoint.replace("http", "ws") + "/system/services/app/exposed/ws"

    async def scenario() -> None:
        async with connect(address, subprotocols=["chat", "other"], max_size=None) as socket_:  # type: ignore[list-item]
            assert socket_.subprotocol == "chat"
            await socket_.send("hello")
            assert await socket_.recv() == "HELLO"
            large = os.urandom(5 * MIB)
            await socket_.send(large)
            assert await socket_.recv() == large
            await socket_.send("bye")
            with pytest.raises(ConnectionClosed) as closed:
                await socket_.recv()
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as you wish")  # type: ignore[union-attr]
        async with connect(address) as socket_:
            await socket_.close(4002)
        with pytest.raises(InvalidStatus) as refused:
            await connect(address.replace("/ws", "/nothing"))
        assert refused.value.response.status_code == 502
        with pytest.raises(InvalidStatus) as refused:
            await connect(address.replace("/app/", "/none/"))
        assert refused.value.response.status_code == 404

    asyncio.run(scenario())
    web.said("app", "websocket closed with 4002")


# Who may.


def test_basic_log_in(web: Web) -> None:
    web.apply("locked", expose={"set_auth": True})
    token = web.token("locked")
    refused = web.get("locked")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith('Basic realm="locked"')
    for wrong in (("locked", "x" * 64), ("app", token), web.auth, ("", "")):
        assert web.get("locked", auth=wrong).status_code == 401
    assert web.get("locked", headers={"Authorization": f"Bearer {token}"}).status_code == 401
    assert web.get("locked", headers={b"Authorization": b"Basic \xff\xfe"}).status_code == 401
    found = web.seen("locked", auth=("locked", token))
    assert "authorization" not in dict(found["headers"])
    web.remove("locked")


def test_forward_log_in_by_token_and_cookie(web: Web) -> None:
    web.apply("gate", expose={"set_auth": True, "auth_type": "forward"})
    token, other = web.token("gate"), web.token("app")
    assert web.get("gate").status_code == 401
    assert web.get("gate", headers={"Authorization": f"Bearer {other}"}).status_code == 403
    assert web.get("gate", f"/?token={other}").status_code == 403
    assert web.get("gate", "/?token=nonsense").status_code == 401
    assert "authorization" not in dict(
        web.seen("gate", headers={"Authorization": f"Bearer {token}"})["headers"]
    )
    assert web.seen("gate", auth=("gate", token))["method"] == "GET"
    first = web.get("gate", f"/page?a=1&token={token}&b=2")
    assert first.json()["target"] == "/page?a=1&b=2"
    [cookie] = first.headers.get_list("set-cookie")
    name, _, value = cookie.partition(";")[0].partition("=")
    assert name == "oscar_service_gate_auth"
    assert {"HttpOnly", "SameSite=Lax", "Path=/system/services/gate"} <= {
        part.strip() for part in cookie.split(";")
    }
    assert token not in cookie
    fresh = httpx2.Client(base_url=web.at.endpoint)
    found = fresh.get("/system/services/gate/exposed/", headers={"Cookie": f"{name}={value}"})
    assert found.status_code == 200
    assert "cookie" not in dict(found.json()["headers"])
    for broken in (value[:-1], value + "0", "x" + value, "a.b", "", "é", value.replace(".", "")):
        cookie_header = {b"Cookie": f"{name}={broken}".encode("latin-1", "replace")}
        assert fresh.get("/system/services/gate/exposed/", headers=cookie_header).status_code == 401, broken
    web.apply("gate2", expose={"set_auth": True, "auth_type": "forward"})
    elsewhere = {"Cookie": f"oscar_service_gate2_auth={value}"}
    assert fresh.get("/system/services/gate2/exposed/", headers=elsewhere).status_code == 401
    web.remove("gate2")
    web.remove("gate")
    fresh.close()


def test_the_question_who_may(web: Web) -> None:
    web.apply("gate", expose={"set_auth": True, "auth_type": "forward"})
    token = web.token("gate")
    ask = "/system/services/gate/auth"
    assert web.http.get(ask).status_code == 401
    assert web.http.get(ask, headers={"Authorization": "Bearer " + "0" * 64}).status_code == 401
    assert web.http.get(ask, headers={"Authorization": f"Bearer {web.token('app')}"}).status_code == 404
    assert web.http.get("/system/services/none/auth", auth=web.auth).status_code == 404
    assert web.http.get(ask, auth=web.auth).status_code == 200
    answer = web.http.get(ask, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    assert "oscar_service_gate_auth=" in answer.headers["set-cookie"]
    web.remove("gate")


def test_without_log_in_the_services_own_passes_and_ours_stays(web: Web) -> None:
    own = dict(web.seen("app", headers={"Authorization": "Bearer of-the-application"})["headers"])
    assert own["authorization"] == "Bearer of-the-application"
    assert web.seen("app", "/?token=of-the-application")["target"] == "/?token=of-the-application"
    assert "authorization" not in dict(web.seen("app", auth=web.auth)["headers"])
    web.apply("second")
    stranger = web.token("second")
    assert web.seen("app", f"/?token={stranger}")["target"] == "/"
    assert "authorization" not in dict(
        web.seen("app", headers={"Authorization": f"Bearer {stranger}"})["headers"]
    )
    web.remove("second")


def test_nobody_tries_out_passwords_of_the_administrator(tmp_path: Path) -> None:
    with servers.running(tmp_path / "data", OSCAR_LOGIN_FAILURES="30") as at:
        web = Web(at)
        web.apply("open")
        web.apply("gate", expose={"set_auth": True, "auth_type": "forward"})
        for _ in range(20):
            assert web.get("open", auth=("somebody", "of the application")).status_code == 200
        tried = [web.get("open", auth=(at.user, f"guess{number}")).status_code for number in range(3)]
        assert tried == [200, 200, 200]
        tried = [web.get("gate", auth=(at.user, f"guess{number}")).status_code for number in range(40)]
        assert tried[0] == 401
        assert tried[-1] == 429
        assert web.get("open", auth=web.auth).status_code == 429, (
            "not even the right one is told from wrong ones"
        )
        assert web.get("open").status_code == 200
        deadline = time.monotonic() + 90
        while web.http.get("/system/services", auth=web.auth).status_code == 429:
            assert time.monotonic() < deadline
            time.sleep(1)  # until the count has gone down
        web.remove("open")
        web.remove("gate")


def test_cors(web: Web) -> None:
    path = "/system/services/app/exposed/"
    asks = {"Origin": "https://dashboard.example.org", "Access-Control-Request-Method": "PUT"}
    leave = web.http.options(path, headers=asks)
    assert leave.status_code == 204
    assert leave.headers["access-control-allow-origin"] == "https://dashboard.example.org"
    assert "PUT" in leave.headers["access-control-allow-methods"]
    assert web.http.get(path, headers=asks).headers["access-control-allow-origin"] == asks["Origin"]
    other = web.http.options(path, headers={**asks, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    failed = web.http.get("/system/services/none/exposed/", headers=asks)
    assert failed.headers["access-control-allow-origin"] == asks["Origin"]


# Its life.


def test_stop_start_and_restart(web: Web) -> None:
    web.apply("life")
    first = web.replica("life")
    stopped = web.http.post("/system/services/life/stop", auth=web.auth)
    assert (stopped.status_code, stopped.json()["state"]) == (200, "stopped")
    refused = web.get("life")
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    web.apply("life", environment={"variables": {"WORDS": "two"}})
    assert web.state("life")["state"] == "stopped", "a new definition starts nothing that was stopped"
    assert web.http.post("/system/services/life/start", auth=web.auth).status_code == 200
    assert web.get("life", "/wait?s=0").text == "two"
    second = web.replica("life")
    assert web.http.post("/system/services/life/restart", auth=web.auth).status_code == 200
    deadline = time.monotonic() + 30
    while (third := web.replica("life")) == second:
        assert time.monotonic() < deadline
    assert len({first, second, third}) == 3
    listed = web.http.get("/system/services?include=deployment", auth=web.auth).json()
    assert {each["name"]: each["deployment"]["state"] for each in listed}["life"] == "ready"
    assert "deployment" not in web.http.get("/system/services/life", auth=web.auth).json()
    for verb in ("stop", "start", "restart"):
        where = f"/system/services/life/{verb}"
        assert web.http.post(where).status_code == 401
        assert (
            web.http.post(where, headers={"Authorization": f"Bearer {web.token('life')}"}).status_code == 403
        )
        assert web.http.post(f"/system/services/none/{verb}", auth=web.auth).status_code == 404
    web.remove("life")


def test_a_replica_is_asked_to_end_when_another_takes_its_place(web: Web) -> None:
    web.apply("leaving")
    web.seen("leaving")
    web.apply("leaving", environment={"variables": {"WORDS": "two"}})
    web.said("leaving", "asked to leave")
    web.remove("leaving")


def test_no_request_is_dropped_by_a_new_definition(web: Web) -> None:
    web.apply("roll")
    web.seen("roll")
    answers: list[str] = []
    failures: list[str] = []
    over = threading.Event()

    def ask() -> None:
        with httpx2.Client(base_url=web.at.endpoint, timeout=30) as client:
            while not over.is_set():
                answer = client.get("/system/services/roll/exposed/wait?s=0.05")
                (answers if answer.status_code == 200 else failures).append(answer.text)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        for words in ("two", "three"):
            web.apply("roll", environment={"variables": {"WORDS": words}})
            deadline = time.monotonic() + 60
            while words not in answers[-4:]:
                assert time.monotonic() < deadline, (words, answers[-4:], failures, web.state("roll"))
                time.sleep(0.01)
    finally:
        over.set()
        for asker in askers:
            asker.join()
    assert failures == []
    assert {"one", "two", "three"} <= set(answers)
    web.remove("roll")


def test_a_killed_replica_is_replaced_and_its_end_told(web: Web) -> None:
    web.apply("mortal")
    first = web.replica("mortal")
    assert web.get("mortal", "/die").status_code == 502
    assert web.replica("mortal") != first
    web.said("mortal", "asked to die")
    assert web.state("mortal")["active_instances"] == 1
    web.remove("mortal")


def test_requests_are_spread_over_replicas(web: Web) -> None:
    web.apply("many", expose={"min_scale": 3, "max_scale": 3})
    web.reach("many", state="ready", active_instances=3)

    async def scenario() -> set[str]:
        async with httpx2.AsyncClient(base_url=web.at.endpoint, timeout=60) as client:
            busy = [
                asyncio.create_task(client.get("/system/services/many/exposed/wait?s=2")) for _ in range(2)
            ]
            while sum(task.done() for task in busy) == 0 and len(found := await ports(client)) != 1:
                assert not any(task.done() for task in busy), found
            await asyncio.gather(*busy)
            return await ports(client)

    async def ports(client: httpx2.AsyncClient) -> set[str]:
        answers = [await client.get("/system/services/many/exposed/") for _ in range(6)]
        return {answer.json()["environment"]["PORT"] for answer in answers}

    # Two are busy, so all others go to the third; then all take turns.
    assert len(asyncio.run(scenario())) == 3
    web.remove("many")


def test_a_busy_service_gets_more_replicas(web: Web) -> None:
    web.apply("busy", cpu="0.2", expose={"min_scale": 1, "max_scale": 2, "cpu_threshold": 20})
    web.seen("busy")
    over = threading.Event()

    def burn() -> None:
        with httpx2.Client(base_url=web.at.endpoint, timeout=60) as client:
            while not over.is_set():
                client.get("/system/services/busy/exposed/burn")

    burner = threading.Thread(target=burn)
    burner.start()
    try:
        web.reach("busy", active_instances=2)
    finally:
        over.set()
        burner.join()
    web.remove("busy")


def test_a_port_of_the_node_asks_nobody(web: Web) -> None:
    with socket.socket() as probe:
        port = next(port for port in range(31000, 32000) if probe.connect_ex(("127.0.0.1", port)))
    web.apply("node", expose={"set_auth": True, "nodePort": port})
    assert web.get("node").status_code == 401
    web.reach("node", state="ready")
    deadline = time.monotonic() + 30
    while True:
        try:
            answer = httpx2.get(f"http://127.0.0.1:{port}/direct", timeout=10)
            break
        except httpx2.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert answer.json()["target"] == "/direct"
    twice = {"name": "node2", "image": "x", "script": APP, "expose": {"api_port": 1, "nodePort": port}}
    assert web.http.post("/system/services", json=twice, auth=web.auth).status_code == 400
    twice["expose"] = {"api_port": 1, "nodePort": 80}
    refused = web.http.post("/system/services", json=twice, auth=web.auth)
    assert (refused.status_code, refused.json()["field"]) == (400, "expose.nodePort")
    web.remove("node")
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"http://127.0.0.1:{port}/", timeout=5)


def test_what_is_not_exposed_says_so(web: Web) -> None:
    plain = {"name": "plain", "image": "x", "script": "true"}
    assert web.http.post("/system/services", json=plain, auth=web.auth).status_code == 201
    assert web.get("plain").status_code == 404
    assert web.state("plain")["state"] == "unavailable"
    assert web.http.post("/system/services/plain/stop", auth=web.auth).status_code == 400
    logs = web.http.get("/system/services/plain/deployment/logs", auth=web.auth).json()
    assert not logs["available"]
    assert "unavailable" in logs["message"]
    web.remove("plain")


def test_logs_in_order_with_times(web: Web) -> None:
    where = "/system/services/app/deployment/logs"
    found = web.http.get(where, params={"timestamps": "true"}, auth=web.auth).json()
    assert found["available"]
    times = [entry["timestamp"] for entry in found["entries"]]
    assert times == sorted(times)
    assert len(web.http.get(where, params={"tailLines": 1}, auth=web.auth).json()["entries"]) == 1
    for wrong in ("0", "-1", "x", "99999999999999"):
        assert web.http.get(where, params={"tailLines": wrong}, auth=web.auth).status_code == 400
    assert web.http.get(where).status_code == 401


def test_the_commands(web: Web) -> None:
    def oscar(*words: str) -> str:
        command = [sys.executable, "-m", "oscar", "service", *words]
        home = web.at.data.with_name("home")
        environment = {**web.at.environment(), "HOME": str(home), "XDG_CONFIG_HOME": str(home)}
        done = subprocess.run(
            command, check=False, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    web.apply("told")
    web.reach("told", state="ready")
    assert "ready" in oscar("deployment", "told")
    assert "listening" in oscar("deployment-logs", "told", "--tail", "5", "-t")
    assert json.loads(oscar("stop", "told", "--json"))["state"] == "stopped"
    assert "stopped" not in oscar("start", "told")
    web.reach("told", state="ready")
    assert "ready" in oscar("restart", "told")
    web.remove("told")


def records(web: Web, service: str, count: int) -> list[tuple[str, int, str, int]]:
    """Kind, status, address and microseconds of the service's records, once there are so many."""
    deadline = time.monotonic() + 30
    while True:
        with contextlib.closing(sqlite3.connect(f"file:{web.at.data}/oscar.db?mode=ro", uri=True)) as rows:
            query = "SELECT kind, status, address, duration FROM requests WHERE service = ? ORDER BY id"
            found = rows.execute(query, (service,)).fetchall()
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)  # records are written behind


def test_each_request_is_recorded(web: Web) -> None:
    web.apply("counted")
    for path in ("/", "/missing", "/close"):
        web.get("counted", path)
    found = [record[:3] for record in records(web, "counted", 3)]
    assert sorted(found) == [("exposed", status, "127.0.0.1") for status in (200, 404, 502)]
    web.remove("counted")


def test_long_connections_are_recorded_at_their_end_with_their_length(web: Web) -> None:
    web.apply("long")
    web.seen("long")
    address = web.at.endpoint.replace("http", "ws") + "/system/services/long/exposed/ws"

    async def socket_open() -> float:
        began = time.perf_counter()
        async with connect(address) as socket_:
            await socket_.send("hello")
            assert await socket_.recv() == "HELLO"
            opened = time.perf_counter()
            # Of a request that came later there is a record by now, of the one that goes on there is none.
            await asyncio.to_thread(web.get, "long", "/missing")
            found = await asyncio.to_thread(records, web, "long", 2)
            assert [status for _, status, _, _ in found] == [200, 404]
            lasted = time.perf_counter() - opened
        assert lasted < time.perf_counter() - began
        return lasted

    lasted = asyncio.run(socket_open())
    kind, status, client, duration = records(web, "long", 3)[-1]
    assert (kind, status, client) == ("exposed", 101, "127.0.0.1")
    assert duration >= lasted * 1e6

    with web.http.stream("GET", "/system/services/long/exposed/sse") as events:
        lines = events.iter_lines()  # kept: its end would be that of the answer
        next(lines)
        opened = time.perf_counter()
        httpx2.get(f"{web.at.endpoint}/system/services/long/exposed/missing", timeout=60)
        assert [status for _, status, _, _ in records(web, "long", 4)[3:]] == [404]
        lasted = time.perf_counter() - opened
    kind, status, client, duration = records(web, "long", 5)[-1]
    assert (kind, status, client) == ("exposed", 200, "127.0.0.1")
    assert duration >= lasted * 1e6
    web.remove("long")


def test_a_refused_websocket_is_recorded_as_refused(web: Web) -> None:
    web.apply("shy", expose={"set_auth": True})
    address = web.at.endpoint.replace("http", "ws") + "/system/services/shy/exposed/nothing"

    async def ask(**more: Any) -> int:
        with pytest.raises(InvalidStatus) as refused:
            await connect(address, **more)
        return refused.value.response.status_code

    assert asyncio.run(ask()) == 401
    login = httpx2.BasicAuth("shy", web.token("shy"))
    header = next(login.auth_flow(httpx2.Request("GET", "http://x"))).headers["authorization"]
    assert asyncio.run(ask(additional_headers={"Authorization": header})) == 502
    # Nobody had logged in at the first try: it reached no service.
    assert [status for _, status, _, _ in records(web, "shy", 1)] == [502]
    web.remove("shy")


def test_replicas_outlive_a_killed_server(tmp_path: Path) -> None:
    with servers.running(tmp_path / "data") as at:
        web = Web(at)
        web.apply("app")
        web.apply("still")
        before = web.replica("app")
        web.seen("still")
        web.http.post("/system/services/still/stop", auth=web.auth)
        at.kill()
        at.start()
        web = Web(at)
        assert web.replica("app") == before
        assert web.state("still")["state"] == "stopped"
        web.remove("app")
        web.remove("still")


def test_a_service_deleted_without_a_server_to_see_it_leaves_nothing(tmp_path: Path) -> None:
    with servers.running(tmp_path / "data") as at:
        web = Web(at)
        web.apply("app")
        found = web.seen("app")
        port = int(found["environment"]["PORT"])
        web.remove("app")
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        assert list((tmp_path / "data" / "exposed").iterdir()) == []


def test_a_container_with_its_own_command(tmp_path: Path, container_engine: str, busybox_image: str) -> None:
    script = (
        'mkdir -p /tmp/www; printf %s "$OSCAR_SERVICE_NAME" > /tmp/www/index.html\n'
        'exec busybox httpd -f -p "$PORT" -h /tmp/www'
    )
    with servers.running(tmp_path / "data", OSCAR_ENGINE=container_engine) as at:
        web = Web(at)
        web.apply(
            "boxed", script, image=busybox_image, expose={"api_port": [80], "min_scale": 2, "max_scale": 2}
        )
        assert web.get("boxed").text == "boxed"
        web.reach("boxed", state="ready", active_instances=2, resource_kind=container_engine)
        at.kill()
        at.start()
        web = Web(at)
        assert web.get("boxed").text == "boxed"
        web.remove("boxed")


ENVIRONMENT = """mkdir -p /tmp/www/cgi-bin; echo well > /tmp/www/index.html
printf '#!/bin/sh\\necho "Content-Type: text/plain"; echo; env\\n' > /tmp/www/cgi-bin/env
chmod +x /tmp/www/cgi-bin/env
exec busybox httpd -f -p "$PORT" -h /tmp/www
"""


def test_users_of_an_issuer_by_token_and_cookie(
    tmp_path: Path, container_engine: str, busybox_image: str
) -> None:
    with oidc.running() as issuer:
        settings = {"OIDC_ENABLE": "true", "OIDC_ISSUERS": issuer.url, "USERS_ADMIN": "chief"}
        settings |= {"OIDC_SUBJECT": "ann", "OSCAR_ENGINE": container_engine}
        with servers.running(tmp_path / "data", **settings) as at:
            web = Web(at)
            fields: dict[str, Any] = {"visibility": "restricted", "allowed_users": ["ann"]}
            expose = {"api_port": 80, "set_auth": True, "auth_type": "forward"}
            web.apply("ours", ENVIRONMENT, image=busybox_image, expose=expose, **fields)
            ann = issuer.token("ann", exp=int(time.time()) + 200)
            seen = web.get("ours", f"/cgi-bin/env?a=1&token={ann}")
            assert seen.status_code == 200, seen.text
            assert ann not in seen.text
            assert "QUERY_STRING=a=1\n" in seen.text
            [cookie] = seen.headers.get_list("set-cookie")
            assert ann not in cookie
            age = next(part for part in cookie.split("; ") if part.startswith("Max-Age="))
            assert 100 < int(age.removeprefix("Max-Age=")) <= 200, "no longer than the token"
            asked = sum(issuer.asked.values())
            by_cookie = {"Cookie": cookie.partition(";")[0]}
            again = web.get("ours", "/cgi-bin/env", headers=by_cookie)
            assert again.status_code == 200
            assert "oscar_service" not in again.text
            assert sum(issuer.asked.values()) == asked, "the issuer is not asked for a cookie"
            bearer = {"Authorization": f"Bearer {ann}"}
            assert ann not in web.get("ours", "/cgi-bin/env", headers=bearer).text
            stranger = issuer.token("stranger")
            assert web.get("ours", headers={"Authorization": f"Bearer {stranger}"}).status_code in {401, 403}
            web.apply("ours", ENVIRONMENT, image=busybox_image, expose=expose, visibility="private")
            assert web.get("ours", headers=by_cookie).status_code == 403, "rights are looked up anew"
            web.remove("ours")
