"""From the start of `oscar serve` to `/health`, and what its processes hold when nothing happens.

On a new data folder, and again on the same one. Floor: Python importing the libraries that the server stands on.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.engines import named, working
from benchmarks.figures import Row, median, row
from tests.server import Server

STARTS = 5
LOOK_S = 0.002
WITHIN_S = 60.0
SETTLED_S = 5.0

_IMPORTS = "import fastapi, uvicorn, sqlalchemy"
_MEMORY = f"{_IMPORTS}; print(open('/proc/self/smaps_rollup').read())"
MB = 1000
OWN = {"process": 3}
"""Processes of an idle server: the API, the S3 server, and on the process engine the one that forks keepers."""


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark."""
    engines = [engine for engine, _ in working()]
    times: dict[str, list[float]] = {"new": [], "new ready": [], "again": [], "again ready": [], "bare": []}
    for _ in range(1 if quick else STARTS):
        with tempfile.TemporaryDirectory(prefix="oscar-start-") as place:
            server = Server(Path(place) / "data", {"OSCAR_ENGINE": engines[0]})
            for which in ("new", "again"):
                lives, ready = await asyncio.to_thread(_started, server)
                times[which].append(lives)
                times[f"{which} ready"].append(ready)
                server.stop()
        times["bare"].append(await asyncio.to_thread(_bare))
    floor = median(times["bare"])
    alone = await asyncio.to_thread(_bare_memory)
    return [
        row("start.health.new", median(times["new"]), "s", floor),
        row("start.health", median(times["again"]), "s", floor),
        row("start.ready.new", median(times["new ready"]), "s", floor),
        row("start.ready", median(times["again ready"]), "s", floor),
        *[
            row(named(f"start.memory.{kind.lower()}", engine), held[kind], "MB", alone[kind])
            for engine in dict.fromkeys([engines[0], engines[-1]])
            for held in [await asyncio.to_thread(_idle, engine)]
            for kind in ("Rss", "Pss")
        ],
    ]


def _started(server: Server) -> tuple[float, float]:
    """Seconds until `/health` answers, and until the engine works."""
    begin = time.perf_counter()
    server.launch()
    while not server.facts.exists():
        if time.perf_counter() - begin > WITHIN_S:
            raise RuntimeError(server.log.read_text())
        time.sleep(LOOK_S)
    # It listens by then: each of these waits for its answer in the server, and takes nothing of the machine.
    _get(server, "/health")
    lives = time.perf_counter() - begin
    _get(server, "/system/info")
    return lives, time.perf_counter() - begin


def _get(server: Server, path: str) -> None:
    said = json.loads(server.facts.read_text())
    connection = HTTPConnection(urlsplit(said["endpoint"]).netloc, timeout=WITHIN_S)
    account = base64.b64encode(f"{said['user']}:{said['password']}".encode()).decode()
    connection.request("GET", path, headers={"Authorization": f"Basic {account}"})
    status = connection.getresponse().status
    connection.close()
    if status != HTTPStatus.OK:
        raise RuntimeError(f"{path}: {status}")


def _idle(engine: str) -> dict[str, float]:
    """Memory of a server on its second start, when nothing but its own processes are left."""
    with tempfile.TemporaryDirectory(prefix="oscar-start-") as place:
        server = Server(Path(place) / "data", {"OSCAR_ENGINE": engine})
        server.start()
        server.stop()
        server.start()
        end = time.monotonic() + WITHIN_S
        time.sleep(SETTLED_S)  # what the start leaves to do, it does then
        while len(_processes(server)) != OWN.get(engine, 2) and time.monotonic() < end:
            time.sleep(0.1)
        found = memory(server)
        server.stop()
    return found


def memory(server: Server) -> dict[str, float]:
    """MB by kind (`Rss`, `Pss`) of the server and all that it has started."""
    rollups = [_held(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in _processes(server)]
    return {kind: sum(each[kind] for each in rollups) for kind in ("Rss", "Pss")}


def _processes(server: Server) -> list[int]:
    """The server and all that it has started."""
    found: list[int] = []
    waiting = [server.process.pid] if server.process else []
    while waiting:
        pid = waiting.pop()
        # What has ended meanwhile is not counted.
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += [int(word) for word in (task / "children").read_text().split()]
            found.append(pid)
    return found


def _bare() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
    return time.perf_counter() - begin


def _bare_memory() -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _MEMORY], check=True, capture_output=True, text=True)
    return _held(done.stdout)


def _held(rollup: str) -> dict[str, float]:
    """MB by kind, of the text of /proc/<pid>/smaps_rollup."""
    rows = [line.split() for line in rollup.splitlines()[1:]]
    return {words[0].rstrip(":"): int(words[1]) * 1.024 / MB for words in rows if len(words) == 3}
