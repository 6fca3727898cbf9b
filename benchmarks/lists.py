"""Intake of `POST /job` and lists of a full platform, over HTTP against the real program.

Floor of the intake: `GET /health` by the same clients in the same run. Floor of a list: the same one on an empty
platform.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2

from tests import server

CLIENTS = 16
JOBS = 10_000
SERVICES = 1_000
TRIES = 20


async def run() -> list[dict[str, Any]]:
    """Rows of the benchmark: name, value, unit, floor and their ratio."""
    with tempfile.TemporaryDirectory(prefix="oscar-lists-") as place:
        # No job runs: what is measured is the queue, not the scripts.
        settings = {"OSCAR_ENGINE": "process", "OSCAR_MAX_RUNNING_JOBS": "1"}
        with server.running(Path(place) / "data", **settings) as at:
            async with httpx2.AsyncClient(
                base_url=at.endpoint, auth=(at.user, at.password), timeout=60
            ) as client:
                return await _measure(client)


def _definition(number: int) -> dict[str, Any]:
    return {"name": f"s{number}", "image": "none", "script": "sleep 600"}


async def _measure(client: httpx2.AsyncClient) -> list[dict[str, Any]]:
    (await client.post("/system/services", json=_definition(0))).raise_for_status()
    empty_services = await _milliseconds(client, "/system/services")
    empty_page = await _milliseconds(client, "/system/logs/s0")
    floor = await _rate(client, "GET", "/health", 2000)
    intake = await _rate(client, "POST", "/job/s0", JOBS)
    page = await _milliseconds(client, "/system/logs/s0")
    for number in range(1, SERVICES):
        (await client.post("/system/services", json=_definition(number))).raise_for_status()
    services = await _milliseconds(client, "/system/services")
    return [
        _row(f"intake.rate.{CLIENTS}clients", intake, "1/s", floor),
        _row(f"lists.services.{SERVICES}", services, "ms", empty_services),
        _row(f"lists.jobs.page.{JOBS}", page, "ms", empty_page),
    ]


async def _rate(client: httpx2.AsyncClient, method: str, path: str, count: int) -> float:
    async def work() -> None:
        for _ in range(count // CLIENTS):
            (
                await client.request(method, path, content=b"{}" if method == "POST" else None)
            ).raise_for_status()

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return count // CLIENTS * CLIENTS / (time.perf_counter() - begun)


async def _milliseconds(client: httpx2.AsyncClient, path: str) -> float:
    times = []
    for _ in range(TRIES):
        begun = time.perf_counter()
        (await client.get(path)).raise_for_status()
        times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


def _row(name: str, value: float, unit: str, floor: float) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "floor": round(floor, 3),
        "ratio": round(value / floor, 3),
    }
