"""Lists of a full platform over HTTP: 1,000 services, and a page of 10,000 jobs.

Floor: the same list on a platform with one service, and an empty page.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx2

from benchmarks.client import Client, rate, repeat
from benchmarks.figures import Row, median, row
from benchmarks.intake import create
from tests import server

JOBS = 10_000
SERVICES = 1_000
TRIES = 40


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark."""
    jobs, services = (JOBS // 10, SERVICES // 10) if quick else (JOBS, SERVICES)
    with tempfile.TemporaryDirectory(prefix="oscar-lists-") as place:
        # No job ends: what is measured is the lists, not the scripts.
        settings = {"OSCAR_ENGINE": "process", "OSCAR_MAX_RUNNING_JOBS": "1"}
        with server.running(Path(place) / "data", **settings) as at:
            return await _measure(at, jobs, services)


async def _measure(at: server.Server, jobs: int, services: int) -> list[Row]:
    create(at, "s0")
    empty_services = await _milliseconds(at, "/system/services")
    empty_page = await _milliseconds(at, "/system/logs/s0")
    await rate(lambda: Client(at, "POST", "/job/s0", b"{}", status=201), jobs)
    page = await _milliseconds(at, "/system/logs/s0")
    await create_many(at, services)
    return [
        row(f"lists.services.{services}", await _milliseconds(at, "/system/services"), "ms", empty_services),
        row(f"lists.jobs.page.{jobs}", page, "ms", empty_page),
    ]


async def create_many(at: server.Server, count: int) -> None:
    """Create services but for the first."""
    async with httpx2.AsyncClient(base_url=at.endpoint, auth=(at.user, at.password), timeout=60) as client:
        for number in range(1, count):
            definition = {"name": f"s{number}", "image": "none", "script": "sleep 600"}
            (await client.post("/system/services", json=definition)).raise_for_status()


async def _milliseconds(at: server.Server, path: str) -> float:
    client = await Client(at, "GET", path).open()
    times = await repeat(client.call, TRIES)
    client.close()
    return median(times) * 1e3
