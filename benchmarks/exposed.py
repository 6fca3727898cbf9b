"""Exposed services through the proxy against the same replica asked directly.

`run` starts the real server once per engine that works here. With processes the service is the small asyncio server of
the tests, in containers busybox's. Floor of each row: the same requests to the replica's own port, taken in turns.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from benchmarks.client import CLIENTS, Client, rate, repeat
from benchmarks.figures import Row, median, row
from tests import images, server

CALLS = 1000
GIB = 1024 * 1024 * 1024
APP = (Path(__file__).parents[1] / "tests/exposed_app.py").read_text()
HTTPD = """mkdir -p /tmp/www; echo hello > /tmp/www/small; truncate -s {size} /tmp/www/large
echo ready > /tmp/www/index.html
exec busybox httpd -f -p "$PORT" -h /tmp/www
"""
BLOCK = 256 * 1024


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark."""
    size, calls = (GIB // 8, CALLS // 10) if quick else (GIB, CALLS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="oscar-exposed-") as place:
        folder = Path(place)
        folder.chmod(0o755)
        if server.sandbox_works():
            paths = "/small", f"/stream?size={size}"
            rows += await _engine(folder / "process", "process", "none", APP, paths, size, calls)
        try:
            engine = images.engine()
            image = images.busybox(engine)
        except images.ImageImpossible as why:
            print(f"no containers: {why}", file=sys.stderr)
            return rows
        script = HTTPD.format(size=size)
        rows += await _engine(folder / engine, engine, image, script, ("/small", "/large"), size, calls)
    return rows


async def _engine(
    data: Path, engine: str, image: str, script: str, paths: tuple[str, str], size: int, calls: int
) -> list[Row]:
    with server.running(data, OSCAR_ENGINE=engine) as at:
        async with httpx2.AsyncClient(base_url=at.endpoint, auth=(at.user, at.password), timeout=60) as http:
            definition = {
                "name": "bench",
                "image": image,
                "script": script,
                "cpu": "2",
                "memory": "512Mi",
                "expose": {"api_port": 8080, "max_scale": 1},
            }
            (await http.post("/system/services", json=definition)).raise_for_status()
            (await http.get("/system/services/bench/exposed/")).raise_for_status()
            try:
                return await _measure(at, _direct(at), engine, paths, size, calls)
            finally:
                await http.delete("/system/services/bench")


def _direct(at: server.Server) -> server.Server:
    """Where the replica itself listens."""
    [record] = (at.data / "exposed").glob("*/replica.json")
    [port] = json.loads(record.read_text())["ports"].values()
    return server.Server(at.data, endpoint=f"http://127.0.0.1:{port}")


async def _measure(
    at: server.Server, direct: server.Server, engine: str, paths: tuple[str, str], size: int, calls: int
) -> list[Row]:
    small, large = paths
    through, bare = await _latencies(at, direct, small, calls)
    rows = [
        row(f"exposed.p50.{engine}", through * 1e3, "ms", bare * 1e3),
        row(f"exposed.added.{engine}", (through - bare) * 1e3, "ms"),
    ]
    prefix = "/system/services/bench/exposed"
    rates = [
        await rate(lambda: _Once(at, prefix + small), calls * 4),
        await rate(lambda: _Once(direct, small), calls * 4),
    ]
    rows.append(row(f"exposed.rate.{CLIENTS}clients.{engine}", rates[0], "1/s", rates[1]))
    # The best of three: what else the machine does slows either.
    speeds = [
        max([await _stream(to, begin + large, size) for _ in range(3)])
        for to, begin in ((at, prefix), (direct, ""))
    ]
    rows.append(row(f"exposed.stream.{size >> 20}MiB.{engine}", speeds[0], "MiB/s", speeds[1]))
    if engine == "process":
        uploads = [
            max([await _upload(to, begin + "/sink", size) for _ in range(3)])
            for to, begin in ((at, prefix), (direct, ""))
        ]
        rows.append(row(f"exposed.upload.{size >> 20}MiB.{engine}", uploads[0], "MiB/s", uploads[1]))
    return rows


class _Once(Client):
    """A client that connects anew when the server has closed the connection, as busybox does each time."""

    def __init__(self, at: server.Server, path: str) -> None:
        super().__init__(at, "GET", path)

    async def call(self) -> None:
        """One call."""
        try:
            await super().call()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
            await self.open()
            await super().call()


async def _latencies(at: server.Server, direct: server.Server, path: str, calls: int) -> tuple[float, float]:
    """Medians through the proxy and directly, in turns, so that a busy machine slows both."""
    through = await _Once(at, f"/system/services/bench/exposed{path}").open()
    bare = await _Once(direct, path).open()
    found: tuple[list[float], list[float]] = [], []
    for _ in range(10):
        found[0].extend(await repeat(through.call, calls // 10))
        found[1].extend(await repeat(bare.call, calls // 10))
    through.close()
    bare.close()
    return median(found[0]), median(found[1])


async def _stream(at: server.Server, path: str, size: int) -> float:
    """MiB per second of a download."""
    return await asyncio.to_thread(_timed, lambda: _read(at, path, size), size)


async def _upload(at: server.Server, path: str, size: int) -> float:
    """MiB per second of an upload."""
    return await asyncio.to_thread(_timed, lambda: _write(at, path, size), size)


def _timed(act: Callable[[], None], size: int) -> float:
    begin = time.perf_counter()
    act()
    return size / (1024 * 1024) / (time.perf_counter() - begin)


def _read(at: server.Server, path: str, size: int) -> None:
    with _connect(at) as to:
        to.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        buffer = bytearray(BLOCK)
        head = b""
        while b"\r\n\r\n" not in head:
            head += to.recv(65536)
        seen = len(head) - head.index(b"\r\n\r\n") - 4
        while seen < size:
            count = to.recv_into(buffer)
            if not count:
                raise AssertionError(f"{size - seen} bytes are missing")
            seen += count


def _write(at: server.Server, path: str, size: int) -> None:
    with _connect(at) as to:
        to.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
        block = bytes(BLOCK)
        for _ in range(size // BLOCK):
            to.sendall(block)
        answer = to.recv(65536)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise AssertionError(answer)


def _connect(at: server.Server) -> socket.socket:
    address = urlsplit(at.endpoint)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=120)
