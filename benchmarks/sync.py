"""Synchronous calls by HTTP against fork and exec of the same script.

`run` starts the real server (`oscar serve`) once per engine that works here. Floors, taken in the same run:
`os.posix_spawn` of the script for latencies, two processes that spawn it in a loop for the rate, a bare container for
the cold start. `sync.p99.during_put` is the p99 while 1 GiB is uploaded to the S3 server, against that of an idle one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from benchmarks import buckets
from benchmarks.client import CLIENTS, Client, repeat
from benchmarks.engines import bare_container, named, options, working
from benchmarks.figures import Row, median, row, share
from tests import server

SCRIPT = 'read -r line < "$INPUT_FILE_PATH"; echo "$line"\n'
BODY = b'{"greeting": "hello"}\n'
CALLS = 1000
SECONDS = 1.0
"""Of a turn in which the rate is taken."""
TURNS = 8
COLD = 5
BIG = 1024**3
PUTS = 3

_SPAWN = """
import os, sys, time
script, seconds = sys.argv[1], float(sys.argv[2])
null = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
count, end = 0, time.perf_counter() + seconds
while time.perf_counter() < end:
    os.waitpid(os.posix_spawn("/bin/sh", ["/bin/sh", script], os.environ, file_actions=null), 0)
    count += 1
print(count / seconds)
"""


class Floor:
    """What the script costs without any server."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "script.sh"
        self.script.write_text(SCRIPT)
        self._input = folder / "input"
        self._input.write_bytes(BODY)
        self._env = {**os.environ, "INPUT_FILE_PATH": str(self._input)}

    def latencies(self, calls: int) -> list[float]:
        """Seconds of each of so many runs in a row."""
        null = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
        found = []
        for _ in range(calls):
            begin = time.perf_counter()
            pid = os.posix_spawn("/bin/sh", ["/bin/sh", str(self.script)], self._env, file_actions=null)
            os.waitpid(pid, 0)
            found.append(time.perf_counter() - begin)
        return found

    def rate(self) -> float:
        """Runs per second of two processes that do nothing else."""
        command = [sys.executable, "-c", _SPAWN, str(self.script), str(SECONDS)]
        loops = [subprocess.Popen(command, env=self._env, stdout=subprocess.PIPE) for _ in range(2)]
        return sum(float(loop.communicate()[0]) for loop in loops)


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="oscar-sync-") as place:
        folder = Path(place)
        folder.chmod(0o755)
        floor = Floor(folder)
        for engine, image in working():
            data = folder / engine
            settings = {"OSCAR_ENGINE": engine, "OSCAR_WORKER_IDLE_SECONDS": "2"}
            with server.running(data, **settings) as at:
                await asyncio.to_thread(_create, at, image)
                rows += await _measure(at, floor, engine, image, CALLS // 10 if quick else CALLS)
                rows.append(await _during_put(at, folder, engine, BIG // 10 if quick else BIG))
    return rows


def _create(at: server.Server, image: str) -> None:
    service = {"name": "bench", "image": image, "script": SCRIPT, "cpu": "2", "memory": "256Mi"}
    answer = httpx2.post(
        f"{at.endpoint}/system/services", json=service, auth=(at.user, at.password), timeout=60
    )
    answer.raise_for_status()


def _client(at: server.Server) -> Client:
    return Client(at, "POST", "/run/bench", BODY, answer=BODY)


async def _measure(at: server.Server, floor: Floor, engine: str, image: str, calls: int) -> list[Row]:
    rows = [await _cold(at, engine, image)]
    client = await _client(at).open()
    await repeat(client.call, 50)
    # Taken in turns, so that a machine that is busy with something else slows both.
    own: list[float] = []
    bare: list[float] = []
    for _ in range(2):
        bare += await asyncio.to_thread(floor.latencies, calls)
        own += await repeat(client.call, calls)
    client.close()
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        rows.append(
            row(named(f"sync.{name}.1client", engine), share(own, part) * 1e3, "ms", share(bare, part) * 1e3)
        )
    rates: list[float] = []
    bare_rates: list[float] = []
    latencies: list[float] = []
    for _ in range(TURNS):
        bare_rates.append(await asyncio.to_thread(floor.rate))
        rate, found = await _load(at)
        rates.append(rate)
        latencies += found
    # Turns of the same length: their mean is the rate over all of them.
    value, bare_value = sum(rates) / TURNS, sum(bare_rates) / TURNS
    rows.append(row(named(f"sync.rate.{CLIENTS}clients", engine), value, "1/s", bare_value))
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        rows.append(row(named(f"sync.{name}.{CLIENTS}clients", engine), share(latencies, part) * 1e3, "ms"))
    return rows


async def _cold(at: server.Server, engine: str, image: str) -> Row:
    """The first call after all workers went, against a bare container that runs the script's shell."""
    own, bare = [], []
    for _ in range(COLD):
        client = await _client(at).open()
        own += await repeat(client.call, 1)
        client.close()
        if engine != "process":
            extra = options(at, engine)
            bare.append(await asyncio.to_thread(bare_container, engine, image, "echo hello", extra))
        await _until_idle(at)
    return row(named("sync.cold", engine), median(own) * 1e3, "ms", median(bare) * 1e3 if bare else None)


async def _until_idle(at: server.Server) -> None:
    """Wait until the service has no worker any more (OSCAR_WORKER_IDLE_SECONDS)."""
    workers = at.data / "workers"
    deadline = time.monotonic() + 60
    while any(workers.iterdir()):
        if time.monotonic() > deadline:
            raise RuntimeError("the workers do not go")
        await asyncio.sleep(0.05)


async def _load(at: server.Server) -> tuple[float, list[float]]:
    """Calls per second of all clients together, and their latencies."""
    clients = [await _client(at).open() for _ in range(CLIENTS)]
    await asyncio.gather(*(repeat(client.call, 30) for client in clients))
    begin = time.perf_counter()
    end = begin + SECONDS
    found = await asyncio.gather(*(repeat(client.call, end=end) for client in clients))
    took = time.perf_counter() - begin
    for client in clients:
        client.close()
    latencies = [each for one in found for each in one]
    return len(latencies) / took, latencies


async def _during_put(at: server.Server, folder: Path, engine: str, size: int) -> Row:
    """The p99 of one client while a large object comes in, against its own before and after."""
    buckets.make(at, "big")
    link = httpx2.post(
        f"{at.endpoint}/system/buckets/big/presign",
        json={"object_key": "big", "operation": "upload"},
        auth=(at.user, at.password),
    ).json()
    source = folder / "big"
    source.write_bytes(os.urandom(1024**2) * (size // 1024**2))
    client = await _client(at).open()
    await repeat(client.call, 50)
    idle: list[float] = []
    busy: list[float] = []
    for _ in range(PUTS):
        putting = asyncio.create_task(asyncio.to_thread(_put, link, source))
        during: list[float] = []
        while not putting.done():
            during += await repeat(client.call, 1)
        await putting
        busy += during
        idle += await repeat(client.call, len(during))
    client.close()
    source.unlink()
    return row(named("sync.p99.during_put", engine), share(busy, 0.99) * 1e3, "ms", share(idle, 0.99) * 1e3)


def _put(link: dict[str, Any], source: Path) -> None:
    """Upload by the kernel, so that the client takes next to nothing of the machine."""
    address = urlsplit(link["url"])
    lines = [
        f"PUT {address.path}?{address.query} HTTP/1.1",
        f"Host: {address.netloc}",
        f"Content-Length: {source.stat().st_size}",
        *(f"{name}: {value}" for name, value in link["headers"].items()),
        "Connection: close",
    ]
    with socket.create_connection((address.hostname or "", address.port or 80)) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        with source.open("rb") as file:
            connection.sendfile(file)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer.decode(errors="replace"))
