"""The engine for Kubernetes, on a real cluster, against what the same cluster does without us: calls, and new services.

Floors, taken in the same run and in turns: a plain pod that runs the same script for each request (busybox's httpd),
for calls; a bare pod from its making to its first answer, for the first call.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from benchmarks import on_cluster
from benchmarks.client import Client, repeat
from benchmarks.figures import Row, median, row, share
from oscar.compute.kubernetes import kinds
from oscar.compute.kubernetes.cluster import Cluster
from tests import server
from tests.pods import BUSYBOX

SCRIPT = 'read -r line < "$INPUT_FILE_PATH"; echo "$line"\n'
BODY = b'{"greeting": "hello"}\n'
CALLS = 500
COLD = 5
CREATES = 20
RESOURCES = {"limits": {"cpu": "300m", "memory": "128Mi"}}
_CGI = """\
#!/bin/sh
export INPUT_FILE_PATH=/dev/stdin
printf 'Content-Type: text/plain\\r\\n\\r\\n'
exec /bin/sh /www/script.sh
"""
_PLAIN = f"""\
mkdir -p /www/cgi-bin
cat >/www/script.sh <<'END'
{SCRIPT}END
cat >/www/cgi-bin/run <<'END'
{_CGI}END
chmod 755 /www/cgi-bin/run
exec busybox httpd -f -p 8080 -h /www
"""


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark; none without a cluster."""
    if not on_cluster.there():
        return []
    async with on_cluster.platform(OSCAR_WORKER_IDLE_SECONDS="2") as (cluster, at):
        try:
            rows = await _creates(at, CREATES // 10 if quick else CREATES)
            rows += await _calls(cluster, at, CALLS // 10 if quick else CALLS, 1 if quick else COLD)
        finally:
            await asyncio.to_thread(_delete, at, "bench")
        return rows


async def _creates(at: server.Server, count: int) -> list[Row]:
    """Seconds until a new service is there, its namespace included the first time."""
    found = []
    for number in range(count):
        begin = time.perf_counter()
        await asyncio.to_thread(_create, at, f"new-{number}")
        found.append(time.perf_counter() - begin)
    for number in range(count):
        await asyncio.to_thread(_delete, at, f"new-{number}")
    return [
        row("kubernetes.service.create.first", found[0], "s"),
        row("kubernetes.service.create", median(found), "s"),
    ]


def _create(at: server.Server, name: str) -> None:
    service = {"name": name, "image": BUSYBOX, "script": SCRIPT, "cpu": "300m", "memory": "128Mi"}
    answer = httpx2.post(
        f"{at.endpoint}/system/services", json=service, auth=(at.user, at.password), timeout=120
    )
    answer.raise_for_status()


def _delete(at: server.Server, name: str) -> None:
    httpx2.delete(f"{at.endpoint}/system/services/{name}", auth=(at.user, at.password), timeout=120)


async def _calls(cluster: Cluster, at: server.Server, calls: int, cold: int) -> list[Row]:
    await asyncio.to_thread(_create, at, "bench")
    rows: list[Row] = []
    async with _plain_pod(cluster) as (address, _):
        own: list[float] = []
        plain: list[float] = []
        # Taken in turns, so that a machine that is busy with something else slows both.
        for _ in range(2):
            plain += await repeat(lambda: _ask(address), calls)
            client = await Client(at, "POST", "/run/bench", BODY, answer=BODY).open()
            await repeat(client.call, 20)
            own += await repeat(client.call, calls)
            client.close()
        for name, part in (("p50", 0.5), ("p99", 0.99)):
            rows.append(
                row(f"kubernetes.sync.{name}.1client", share(own, part) * 1e3, "ms", share(plain, part) * 1e3)
            )
    firsts, bare = [], []
    for _ in range(cold):
        async with _plain_pod(cluster) as (_, seconds):
            bare.append(seconds)
        await _idle(cluster)
        client = await Client(at, "POST", "/run/bench", BODY, answer=BODY).open()
        firsts += await repeat(client.call, 1)
        client.close()
    rows.append(row("kubernetes.sync.cold", median(firsts), "s", median(bare)))
    return rows


async def _idle(cluster: Cluster) -> None:
    """Wait until the service has no worker."""
    while await cluster.items(kinds.POD, labels="oscar_service=bench,oscar.grycap/part=worker"):  # noqa: ASYNC110 - the cluster tells nobody here
        await asyncio.sleep(0.2)


async def _ask(address: str) -> None:
    """One call of the plain pod, on a connection of its own, as curl does."""
    reader, writer = await asyncio.open_connection(address, 8080)
    head = f"POST /cgi-bin/run HTTP/1.0\r\nHost: {address}\r\nContent-Length: {len(BODY)}\r\n\r\n"
    writer.write(head.encode() + BODY)
    answer = await reader.read()
    writer.close()
    if not answer.endswith(BODY):
        raise AssertionError(answer)


@contextlib.asynccontextmanager
async def _plain_pod(cluster: Cluster) -> AsyncIterator[tuple[str, float]]:
    """A pod that answers by the script; its address, and the seconds until its first answer."""
    name = f"bench-plain-{uuid.uuid4().hex[:6]}"
    body: dict[str, Any] = {
        **kinds.POD.head,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "containers": [
                {
                    "name": "plain",
                    "image": BUSYBOX,
                    "command": ["/bin/sh", "-c", _PLAIN],
                    "resources": RESOURCES,
                }
            ]
        },
    }
    begin = time.perf_counter()
    await cluster.create(kinds.POD, body)
    try:
        while True:
            pod = await cluster.get(kinds.POD, name, "default") or {}
            address = pod.get("status", {}).get("podIP", "")
            if address:
                with contextlib.suppress(OSError):
                    await _ask(address)
                    break
            await asyncio.sleep(0.05)
        yield address, time.perf_counter() - begin
    finally:
        await cluster.delete(kinds.POD, name, "default", grace=1)
