"""10,000 uploads in a burst to a bucket that a service listens to, on the process engine: how long, and all once.

Each job copies its file to an output whose name nobody else makes, so that the store shows jobs that were lost or ran
twice. Floors: uploads to a bucket without a service on the same server, half before and half after; two loops that
start the same script in a bare bubblewrap for the jobs.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import obstore
from obstore.store import S3Store

from benchmarks import buckets
from benchmarks.engines import bare_sandbox
from benchmarks.figures import Row, row
from tests import server

UPLOADS = 10_000
LOOK_S = 0.5
SCRIPT = """read -r number < "$INPUT_FILE_PATH"
read -r once < /proc/sys/kernel/random/uuid
echo "$number" > "$TMP_OUTPUT_DIR/$number.$once"
"""
SECONDS = 4.0

_SPAWN = """
import os, sys, time
folder, seconds, argv = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
os.environ.update(INPUT_FILE_PATH=folder + "/input", TMP_OUTPUT_DIR=folder)
count, end = 0, time.perf_counter() + seconds
while time.perf_counter() < end:
    _, how = os.waitpid(os.posix_spawnp(argv[0], argv, os.environ), 0)
    if how:
        sys.exit("the bare sandbox failed")
    count += 1
print(count / seconds)
"""


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark."""
    uploads = UPLOADS // 10 if quick else UPLOADS
    with tempfile.TemporaryDirectory(prefix="oscar-burst-") as place:
        folder = Path(place)
        with server.running(folder / "data", OSCAR_ENGINE="process") as at:
            buckets.service(at, "burst", "none", SCRIPT, memory="64Mi")
            plain = buckets.make(at, "plain")
            floor = await _upload(plain, "before", uploads // 2)
            begin = time.perf_counter()
            accepted = await _upload(buckets.bucket(at, "burst"), "in", uploads)
            await _all_ended(at, uploads)
            took = time.perf_counter() - begin
            floor += await _upload(plain, "after", uploads - uploads // 2)
            lost, doubled = await _outcome(at, uploads)
        bare = await asyncio.to_thread(_bare_rate, folder)
    return [
        row("burst.put.rate.16clients", uploads / accepted, "1/s", uploads / floor),
        row("burst.acknowledged", accepted, "s", floor),
        row("burst.succeeded", took, "s", uploads / bare),
        row("burst.jobs.rate", uploads / took, "1/s", bare),
        row("burst.lost", lost, "jobs"),
        row("burst.doubled", doubled, "jobs"),
    ]


async def _upload(store: S3Store, folder: str, count: int) -> float:
    """Seconds until all are acknowledged."""

    async def put(number: int) -> None:
        await obstore.put_async(store, f"{folder}/{number}", f"{number}\n".encode())

    begin = time.perf_counter()
    await buckets.at_once(count, put)
    return time.perf_counter() - begin


async def _all_ended(at: server.Server, uploads: int) -> None:
    async with buckets.client(at) as client:
        while True:
            states = (await client.get("/system/status")).json()["oscar"]["pods"]["states"]
            if states["Failed"]:
                raise RuntimeError(f"jobs did not succeed: {states}")
            if states["Succeeded"] >= uploads:
                return
            await asyncio.sleep(LOOK_S)


async def _outcome(at: server.Server, uploads: int) -> tuple[int, int]:
    """Uploads that no output speaks of, and outputs beyond one each."""
    found: list[str] = []
    async for page in buckets.bucket(at, "burst").list(prefix="out/"):
        found += [each["path"].removeprefix("out/").split(".")[0] for each in page]
    missing = {str(number) for number in range(uploads)} - set(found)
    return len(missing), len(found) - len(set(found))


def _bare_rate(folder: Path) -> float:
    """Scripts per second of two loops that do nothing else."""
    loops = []
    for number in range(2):
        place = folder / f"bare{number}"
        place.mkdir()
        (place / "script.sh").write_text(SCRIPT)
        (place / "input").write_text("1\n")
        script = [*bare_sandbox(place), "/bin/sh", str(place / "script.sh")]
        command = [sys.executable, "-c", _SPAWN, str(place), str(SECONDS), *script]
        loops.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    return sum(float(loop.communicate()[0]) for loop in loops)
