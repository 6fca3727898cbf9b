"""Intake of `POST /job`: 16 clients, each answer durable.

Floor: `GET /health` by the same clients in the same run, taken in turns.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx2

from benchmarks.client import CLIENTS, Client, rate
from benchmarks.figures import Row, row
from tests import server

JOBS = 10_000
TURNS = 4


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark."""
    jobs = JOBS // 10 if quick else JOBS
    with tempfile.TemporaryDirectory(prefix="oscar-intake-") as place:
        # One job at a time, which sleeps: what is measured is the queue, not the scripts.
        settings = {"OSCAR_ENGINE": "process", "OSCAR_MAX_RUNNING_JOBS": "1"}
        with server.running(Path(place) / "data", **settings) as at:
            create(at, "intake")
            rates, floors = [], []
            for _ in range(TURNS):
                floors.append(await rate(lambda: Client(at, "GET", "/health"), jobs // TURNS))
                rates.append(
                    await rate(lambda: Client(at, "POST", "/job/intake", b"{}", status=201), jobs // TURNS)
                )
    return [row(f"intake.rate.{CLIENTS}clients", mean_rate(rates), "1/s", mean_rate(floors))]


def create(at: server.Server, name: str) -> None:
    """A service whose jobs do nothing for long."""
    answer = httpx2.post(
        f"{at.endpoint}/system/services",
        json={"name": name, "image": "none", "script": "sleep 600"},
        auth=(at.user, at.password),
        timeout=60,
    )
    answer.raise_for_status()


def mean_rate(rates: list[float]) -> float:
    """The rate over turns of the same number of calls."""
    return len(rates) / sum(1 / each for each in rates)
