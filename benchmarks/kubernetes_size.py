"""A full platform on a cluster: 10,000 jobs posted by 16 clients, 1,000 services, a page of the jobs, and memory.

Floors: `GET /health` by the same clients in turns, the page of a service without jobs, the same server when it was new.
"""

from __future__ import annotations

import asyncio
import time

import httpx2

from benchmarks import on_cluster
from benchmarks.client import CLIENTS, Client, rate, repeat
from benchmarks.figures import Row, median, row
from benchmarks.intake import mean_rate
from benchmarks.lists import TRIES
from benchmarks.start import memory
from tests import server
from tests.pods import BUSYBOX

JOBS = 10_000
SERVICES = 1_000
TURNS = 4
LAST = 100
SETTLED_S = 5.0


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark; none without a cluster."""
    if not on_cluster.there():
        return []
    jobs, services = (JOBS // 10, SERVICES // 10) if quick else (JOBS, SERVICES)
    async with on_cluster.platform() as (_, at):
        return await _measure(at, jobs, services)


async def _measure(at: server.Server, jobs: int, services: int) -> list[Row]:
    await asyncio.sleep(SETTLED_S)
    new = memory(at)
    await _create(at, 0, 1)
    empty = await _milliseconds(at, "/system/logs/s0")
    rates, floors = [], []
    for _ in range(TURNS):
        floors.append(await rate(lambda: Client(at, "GET", "/health"), jobs // TURNS))
        rates.append(await rate(lambda: Client(at, "POST", "/job/s0", b"{}", status=201), jobs // TURNS))
    page = await _milliseconds(at, "/system/logs/s0")
    creates = await _create(at, 1, services)
    await asyncio.sleep(SETTLED_S)
    full = memory(at)
    return [
        row(f"kubernetes.intake.rate.{CLIENTS}clients", mean_rate(rates), "1/s", mean_rate(floors)),
        row(f"kubernetes.jobs.page.{jobs}", page, "ms", empty),
        row(f"kubernetes.service.create.{services}", median(creates[-LAST:]), "s"),
        *[
            row(
                f"kubernetes.memory.{kind.lower()}.{services}services.{jobs}jobs", full[kind], "MB", new[kind]
            )
            for kind in ("Rss", "Pss")
        ],
    ]


async def _create(at: server.Server, first: int, end: int) -> list[float]:
    """Create services whose jobs don't end; the seconds of each."""
    found = []
    async with httpx2.AsyncClient(base_url=at.endpoint, auth=(at.user, at.password), timeout=120) as client:
        for number in range(first, end):
            definition = {
                "name": f"s{number}",
                "image": BUSYBOX,
                "script": "sleep 600",
                "cpu": "300m",
                "memory": "32Mi",
            }
            begin = time.perf_counter()
            (await client.post("/system/services", json=definition)).raise_for_status()
            found.append(time.perf_counter() - begin)
    return found


async def _milliseconds(at: server.Server, path: str) -> float:
    client = await Client(at, "GET", path).open()
    times = await repeat(client.call, TRIES)
    client.close()
    return median(times) * 1e3
