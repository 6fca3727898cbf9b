"""Synchronous calls by HTTP against fork and exec of the same script.

`run` starts the real server (`oscar serve`) once per engine that works here. Floors, taken in the same run:
`os.posix_spawn` of the script for latencies, two processes that spawn it in a loop for the rate, a bare container for
the cold start. The client is a raw socket with a prepared request, so that little but the server is measured.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from tests import images, server

SCRIPT = 'read -r line < "$INPUT_FILE_PATH"; echo "$line"\n'
BODY = b'{"greeting": "hello"}\n'
CALLS = 1000
CLIENTS = 16
SECONDS = 4.0
COLD = 5

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

    def latencies(self) -> list[float]:
        """Seconds of each of many runs in a row."""
        null = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
        found = []
        for _ in range(CALLS):
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


class Client:
    """A connection that sends the same request again and again."""

    def __init__(self, at: server.Server, path: str) -> None:
        address = urlsplit(at.endpoint)
        self._host, self._port = address.hostname, address.port
        account = base64.b64encode(f"{at.user}:{at.password}".encode()).decode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Basic {account}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
        )
        self._request = head.encode() + BODY

    async def open(self) -> Client:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def call(self) -> None:
        """One call; its answer must be right."""
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await self._reader.readexactly(size)
        if not head.startswith(b"HTTP/1.1 200") or body != BODY:
            raise AssertionError(head + body)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


async def run() -> list[dict[str, Any]]:
    """Rows of the benchmark: name, value, unit, floor and their ratio."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="oscar-sync-") as place:
        folder = Path(place)
        folder.chmod(0o755)
        floor = Floor(folder)
        for engine, image in _engines():
            data = folder / engine
            settings = {"OSCAR_ENGINE": engine, "OSCAR_WORKER_IDLE_SECONDS": "2"}
            with server.running(data, **settings) as at:
                await asyncio.to_thread(_create, at, image)
                rows += await _measure(at, floor, engine, image)
    return rows


def _engines() -> list[tuple[str, str]]:
    """The engines that work here, the one that a server would choose first; each with an image."""
    found: list[tuple[str, str]] = []
    try:
        name = images.engine()
        found.append((name, images.busybox(name)))
    except images.ImageImpossible as why:
        print(f"no containers: {why}", file=sys.stderr)
    if server.sandbox_works():
        found.append(("process", "none"))
    return found


def _create(at: server.Server, image: str) -> None:
    service = {"name": "bench", "image": image, "script": SCRIPT, "cpu": "2", "memory": "256Mi"}
    answer = httpx2.post(
        f"{at.endpoint}/system/services", json=service, auth=(at.user, at.password), timeout=60
    )
    answer.raise_for_status()


async def _measure(at: server.Server, floor: Floor, engine: str, image: str) -> list[dict[str, Any]]:
    rows = [await _cold(at, engine, image)]
    client = await Client(at, "/run/bench").open()
    await _repeat(client.call, 50)
    # Taken in turns, so that a machine that is busy with something else slows both.
    own: list[float] = []
    bare: list[float] = []
    for _ in range(2):
        bare += await asyncio.to_thread(floor.latencies)
        own += await _repeat(client.call, CALLS)
    client.close()
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        rows.append(_row(f"sync.{name}.1client", engine, _at(own, share) * 1e3, "ms", _at(bare, share) * 1e3))
    bare_rate = await asyncio.to_thread(floor.rate)
    rate, latencies = await _load(at)
    rows.append(_row(f"sync.rate.{CLIENTS}clients", engine, rate, "1/s", bare_rate))
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        rows.append(_row(f"sync.{name}.{CLIENTS}clients", engine, _at(latencies, share) * 1e3, "ms", None))
    return rows


async def _cold(at: server.Server, engine: str, image: str) -> dict[str, Any]:
    """The first call after all workers went, against a bare container that runs the script's shell."""
    own, bare = [], []
    for _ in range(COLD):
        client = await Client(at, "/run/bench").open()
        own += await _repeat(client.call, 1)
        client.close()
        if engine != "process":
            bare.append(await asyncio.to_thread(_bare_container, engine, image))
        await _until_idle(at)
    return _row(
        "sync.cold",
        engine,
        statistics.median(own) * 1e3,
        "ms",
        statistics.median(bare) * 1e3 if bare else None,
    )


def _bare_container(engine: str, image: str) -> float:
    begin = time.perf_counter()
    options = ["--runtime=runc", "--ulimit=nofile=20000:20000", "--ulimit=nproc=10000:10000"]
    for extra in ([], options):
        done = subprocess.run(
            [engine, "run", "--rm", "--network=none", *extra, image, "/bin/sh", "-c", "echo hello"],
            check=False,
            capture_output=True,
        )
        if done.returncode == 0:
            return time.perf_counter() - begin
        begin = time.perf_counter()
    raise RuntimeError(done.stderr.decode())


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
    clients = [await Client(at, "/run/bench").open() for _ in range(CLIENTS)]
    await asyncio.gather(*(_repeat(client.call, 30) for client in clients))
    begin = time.perf_counter()
    end = begin + SECONDS
    found = await asyncio.gather(*(_repeat(client.call, end=end) for client in clients))
    took = time.perf_counter() - begin
    for client in clients:
        client.close()
    latencies = [each for one in found for each in one]
    return len(latencies) / took, latencies


async def _repeat(call: Callable[[], Awaitable[None]], count: int = 0, end: float = 0.0) -> list[float]:
    found: list[float] = []
    while len(found) < count or time.perf_counter() < end:
        begin = time.perf_counter()
        await call()
        found.append(time.perf_counter() - begin)
    return found


def _at(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _row(name: str, engine: str, value: float, unit: str, floor: float | None) -> dict[str, Any]:
    return {
        "name": name if engine != "process" else f"{name}.process",
        "value": round(value, 3),
        "unit": unit,
        "floor": None if floor is None else round(floor, 3),
        "ratio": None if not floor else round(value / floor, 2),
    }


if __name__ == "__main__":
    for row in asyncio.run(run()):
        print(json.dumps(row), flush=True)
