"""From an upload to its output: the median, on containers and on processes.

The output is looked for every few milliseconds, as a client would. Floors, in turns: a bare container of the same
image with the same options that runs the same script; the script in a bare bubblewrap.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from pathlib import Path

import obstore

from benchmarks import buckets
from benchmarks.engines import bare_container, bare_sandbox, named, options, working
from benchmarks.figures import Row, median, row
from tests import server

EVENTS = 30
LOOK_S = 0.003
SCRIPT = """read -r line < "$INPUT_FILE_PATH"
echo "$line" > "$TMP_OUTPUT_DIR/$line"
"""


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="oscar-event-") as place:
        folder = Path(place)
        for engine, image in working():
            with server.running(folder / engine, OSCAR_ENGINE=engine) as at:
                rows.append(await _measure(at, folder, engine, image, EVENTS // 5 if quick else EVENTS))
    return rows


async def _measure(at: server.Server, folder: Path, engine: str, image: str, events: int) -> Row:
    buckets.service(at, "event", image, SCRIPT)
    store = buckets.bucket(at, "event")
    own, bare = [], []
    for number in range(-2, events):  # the first ones have an image to look for, and caches to fill
        key = f"line{number}"
        begin = time.perf_counter()
        await obstore.put_async(store, f"in/{key}", f"{key}\n".encode())
        await _visible(store, f"out/{key}")
        took = time.perf_counter() - begin
        floor = await asyncio.to_thread(_bare, at, folder, engine, image)
        if number >= 0:
            own.append(took)
            bare.append(floor)
    return row(named("event.p50", engine), median(own) * 1e3, "ms", median(bare) * 1e3)


async def _visible(store: obstore.store.S3Store, key: str) -> None:
    while True:
        try:
            await obstore.head_async(store, key)
        except FileNotFoundError:
            await asyncio.sleep(LOOK_S)
        else:
            return


def _bare(at: server.Server, folder: Path, engine: str, image: str) -> float:
    """Seconds of the script without any server."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="bare") as name:
        place = Path(name)
        (place / "input").write_text("line\n")
        if engine == "process":
            return _bare_sandbox(place)
        mount = [f"--volume={place}:/oscar/work"]
        paths = ["-e", "INPUT_FILE_PATH=/oscar/work/input", "-e", "TMP_OUTPUT_DIR=/oscar/work"]
        return bare_container(engine, image, SCRIPT, [*options(at, engine), *mount, *paths])


def _bare_sandbox(place: Path) -> float:
    argv = [*bare_sandbox(place), "/bin/sh", "-c", SCRIPT]
    env = {**os.environ, "INPUT_FILE_PATH": str(place / "input"), "TMP_OUTPUT_DIR": str(place)}
    begin = time.perf_counter()
    subprocess.run(argv, env=env, check=True)
    return time.perf_counter() - begin
