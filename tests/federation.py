"""Several servers that know one another, for tests of federations: each a real process with its own data folder.

Called by the acceptance tests and the benchmark of federations. A server keeps its ports when it is started again, so
that the others find it. Beside them stand programs that are not ours: an endpoint, an OSCAR 4, a line that breaks.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2

from oscar.app.s3 import open_store
from oscar.core.copies import stored
from oscar.model.producer import Producer
from oscar.objects.origin import OriginStore
from oscar.settings import Settings
from oscar.state.services import Services
from tests.acceptance import calls
from tests.listening import listening
from tests.server import Server

HOSTS = {"OSCAR_FEDERATION_ALLOWED_HOSTS": "127.0.0.1"}
NO_ROOM = "999"
"""CPU of a service for which no machine has room, so that its jobs go to members."""


def account(server: Server, **more: Any) -> dict[str, Any]:
    """A cluster as services describe it, with the administrator's account."""
    return {"endpoint": server.endpoint, "auth_user": server.user, "auth_password": server.password} | more


def free_ports(count: int) -> list[int]:
    """So many ports, no two of them the same."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]


def settings(api: int, s3: int, **more: str) -> dict[str, str]:
    """Those of a server that is reached at the same addresses after a restart."""
    ports = {"OSCAR_SERVICE_PORT": str(api), "OSCAR_S3_PORT": str(s3)}
    # All of them log in from one address, some on purpose with what is wrong: the others must not be shut out by that.
    return HOSTS | ports | {"RESOURCE_MANAGER_ENABLE": "true", "OSCAR_LOGIN_FAILURES": "0"} | more


@contextlib.contextmanager
def grid(folder: Path, *names: str, **more: str) -> Iterator[dict[str, Server]]:
    """Servers by name, started and ended side by side; `more` are settings of all."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = iter(free_ports(2 * len(names)))
    made = {name: Server(folder / name, settings(next(ports), next(ports), **more)) for name in names}
    for server in made.values():
        server.prepare()
    with ThreadPoolExecutor(len(made)) as threads:
        try:
            list(threads.map(Server.start, made.values()))
            yield made
        finally:
            list(threads.map(Server.end, made.values()))


def replica(cluster: str, service: str = "", **more: Any) -> dict[str, Any]:
    """A member of type oscar."""
    return {"type": "oscar", "cluster_id": cluster, "service_name": service} | more


def eventually(ask: Any, wanted: Any, *, within: float = 90.0) -> Any:
    """Ask until the answer is what is wanted (a value, or a function that says so)."""
    deadline = time.monotonic() + within
    while True:
        found = ask()
        if wanted(found) if callable(wanted) else found == wanted:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)  # other processes tell nobody when they have done it


def delegation(http: httpx2.Client, service: str, job: str) -> dict[str, Any]:
    """What a job says of its delegation."""
    found: dict[str, Any] = http.get(f"/system/jobs/{service}/{job}").json().get("delegation") or {}
    return found


def body_of(http: httpx2.Client, bucket: str, key: str) -> bytes:
    """An object's content."""
    link = http.post(
        f"/system/buckets/{bucket}/presign", json={"object_key": key, "operation": "download"}
    ).json()
    return httpx2.get(link["url"], timeout=60).raise_for_status().content


@dataclass(slots=True)
class Foreign:
    """A server that is not ours: what it was asked, and how it answers."""

    url: str = ""
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    """Method, path, headers (small letters) and body, in order."""
    status: int = 200
    """Of an endpoint's answers."""
    token: str = "t" * 64
    """Of the services of an OSCAR 4."""
    jobs: dict[str, int] = field(default_factory=dict)
    """Ids of the jobs that an OSCAR 4 took, and how often each was started."""
    waits: int = 0
    """For so many looks at its list its jobs run."""

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        """Status and body."""
        self.asked.append((method, path, dict(headers), body))
        if path.startswith(("/job/", "/system/")):
            return self._oscar4(method, path, headers)
        return self.status, "taken"

    def _oscar4(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, Any]:
        said = headers.get("authorization", "")
        basic = said == "Basic " + base64.b64encode(b"four:secret").decode()
        if path.startswith("/job/"):
            if said != f"Bearer {self.token}":
                return 401, ""
            job = headers.get("x-delegated-job-id") or str(uuid.uuid4())
            self.jobs[job] = self.jobs.get(job, 0) + 1
            return 201, ""
        if not (basic or said == f"Bearer {self.token}"):
            return 401, ""
        if path.startswith("/system/services/"):
            return 200, {"name": path.rpartition("/")[2], "token": self.token}
        if path.startswith("/system/logs/"):
            self.waits -= 1
            status = "Running" if self.waits >= 0 else "Succeeded"
            return 200, {"jobs": {job: {"status": status} for job in self.jobs}, "remaining_jobs": 0}
        return 404, "404 page not found"


@contextlib.contextmanager
def foreign() -> Iterator[Foreign]:
    """Such a server."""
    it = Foreign()

    class Handler(BaseHTTPRequestHandler):
        def _all(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, said = it.answer(self.command, self.path, headers, body)
            text = (said if isinstance(said, str) else json.dumps(said)).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        do_GET = _all  # noqa: N815 - names of the standard library
        do_POST = _all  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the standard library
            pass

    with listening(Handler) as it.url:
        yield it


@dataclass(slots=True)
class Line:
    """A line to a server that can lose answers: connections go through, until one is cut behind its request."""

    url: str = ""
    lose: int = 0
    """So many answers to `POST /job` are lost still: the server has taken the job, and has said so."""
    lost: int = 0
    posts: Counter[str] = field(default_factory=Counter)
    """Requests for jobs by the id in their header."""


@contextlib.contextmanager
def line(to: Server) -> Iterator[Line]:
    """A line to that server."""
    it = Line()
    port = int(to.endpoint.rpartition(":")[2])
    closing = threading.Event()

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while not closing.is_set():
                request = _message(client)
                if not request:
                    return
                head = request.partition(b"\r\n\r\n")[0].decode("latin-1")
                is_job = head.startswith("POST /job/")
                if is_job:
                    names = dict(row.lower().split(": ", 1) for row in head.split("\r\n")[1:])
                    it.posts[names.get("x-delegated-job-id", "")] += 1
                with socket.create_connection(("127.0.0.1", port)) as upstream:
                    upstream.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                    answer = _all_of(upstream)
                if is_job and it.lose > 0 and answer.startswith(b"HTTP/1.1 2"):
                    it.lose -= 1
                    it.lost += 1
                    return
                client.sendall(answer)
                return  # one request for each connection: the answer has no other end

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        it.url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def accept() -> None:
            while not closing.is_set():
                with contextlib.suppress(TimeoutError):
                    client, _ = listener.accept()
                    client.settimeout(60)
                    threading.Thread(target=serve, args=(client,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield it
        finally:
            closing.set()
            thread.join()


def _message(client: socket.socket) -> bytes:
    """A request with its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    length = 0
    for row in head.split(b"\r\n")[1:]:
        name, _, value = row.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    while len(rest) < length:
        piece = client.recv(65536)
        if not piece:
            return b""
        rest += piece
    kept = b"\r\n".join(row for row in head.split(b"\r\n") if not row.lower().startswith(b"connection:"))
    return kept + b"\r\n\r\n" + rest


def _all_of(upstream: socket.socket) -> bytes:
    pieces = []
    while piece := upstream.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def store_at(member: Server, service: str, origin: str, *files: tuple[str, Path, str]) -> None:
    """Store results at a copy's origin as its member does, with the copy's key.

    Args:
        member: where the copy is.
        service: its name there.
        origin: id of the cluster.
        files: key in the bucket named as the service, the file, and the job whose result it is.
    """

    async def work() -> None:
        rows = open_store(Settings(data=member.data))
        [row] = await Services(rows).get(service)
        rows.close()
        provider = stored(row).storage_providers.minio[origin]
        store = OriginStore(provider.endpoint, provider.secret_key)
        for key, path, job in files:
            await store.upload(service, key, path, producer=Producer(job, 1))
        await store.close()

    asyncio.run(work())


@contextlib.contextmanager
def busy(http: httpx2.Client, *, jobs: int = 1, cpu: str = "0.1") -> Iterator[tuple[str, str]]:
    """So many jobs that last for hours, until the block ends; their service, and the first of them, which runs."""
    service = calls.create(http, "exec sleep 36000", cpu=cpu)
    first, *_ = [calls.submit(http, service) for _ in range(jobs)]
    eventually(lambda: http.get(f"/system/jobs/{service}/{first}").json()["status"], "Running")
    try:
        yield service, first
    finally:
        # Waits for their end: scripts outlive their server.
        http.delete(f"/system/logs/{service}", params={"all": "true"})


def near(http: httpx2.Client, *members: dict[str, Any], **more: Any) -> str:
    """A service at the origin whose jobs have no room there; its name."""
    facts = {"cluster_id": "a", "cpu": NO_ROOM, "replicas": list(members)}
    return calls.create(http, "echo here", **(facts | more))
