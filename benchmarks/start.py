"""From the start of `oscar serve` to `/health`, and what its processes hold when nothing happens.

On a new data folder, and again on the same one. Floor: Python importing the libraries that the server stands on.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.engines import working
from benchmarks.figures import Row, median, row
from tests.server import Server

STARTS = 5
IDLE_S = 3.0
"""Seconds after which what the start left behind has settled."""

_IMPORTS = "import fastapi, uvicorn, sqlalchemy"
_MEMORY = f"{_IMPORTS}; print(open('/proc/self/smaps_rollup').read())"
MB = 1000


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark."""
    engine = working()[0][0]
    fresh, again, ready, bare = [], [], [], []
    memory: dict[str, float] = {}
    for number in range(1 if quick else STARTS):
        with tempfile.TemporaryDirectory(prefix="oscar-start-") as place:
            server = Server(Path(place) / "data", {"OSCAR_ENGINE": engine})
            fresh.append(await asyncio.to_thread(_started, server, "/health"))
            server.stop()
            again.append(await asyncio.to_thread(_started, server, "/health"))
            server.stop()
            ready.append(await asyncio.to_thread(_started, server, "/system/info"))
            if number == 0:
                await asyncio.sleep(IDLE_S)
                memory = _all_of(server)
            server.stop()
        bare.append(await asyncio.to_thread(_bare))
    floor = median(bare)
    alone = await asyncio.to_thread(_bare_memory)
    return [
        row("start.health.new", median(fresh), "s", floor),
        row("start.health", median(again), "s", floor),
        row("start.ready", median(ready), "s", floor),
        row("start.memory.rss", memory["Rss"], "MB", alone["Rss"]),
        row("start.memory.pss", memory["Pss"], "MB", alone["Pss"]),
    ]


def _started(server: Server, path: str) -> float:
    begin = time.perf_counter()
    server.start(until=path)
    return time.perf_counter() - begin


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


def _all_of(server: Server) -> dict[str, float]:
    """MB by kind of the server and all that it started, summed."""
    waiting = [server.process.pid] if server.process else []
    total = {"Rss": 0.0, "Pss": 0.0}
    while waiting:
        pid = waiting.pop()
        held = _held(Path(f"/proc/{pid}/smaps_rollup").read_text())
        total = {kind: size + held[kind] for kind, size in total.items()}
        for task in Path(f"/proc/{pid}/task").iterdir():
            waiting += [int(word) for word in (task / "children").read_text().split()]
    return total
