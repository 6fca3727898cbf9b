"""Metrics over HTTP: a breakdown of a million requests in 30 days, and the totals of 1,000 services.

On SQLite and on PostgreSQL (where its programs are here). Records are made up and written as the server writes them,
and added up as it does that in the background. Floor: the same question about an hour in which nothing happened.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.client import Client, repeat
from benchmarks.figures import Row, median, row
from benchmarks.lists import create_many
from oscar.model.request import Origin, RequestKind, RequestRecord
from oscar.state.metrics import RecordedRequests
from oscar.state.requests import Requests
from oscar.state.secrets import Sealer
from oscar.state.store import Store
from tests import postgres, server

REQUESTS = 1_000_000
SERVICES = 1_000
USERS = 200
FAVOURITES = 10
"""Services that a user calls."""
COUNTRIES = [f"{first}{second}" for first in "ABCD" for second in "VWXYZ"]
DAYS = 30
TRIES = 15
_BATCH = 5_000


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark."""
    count, services = (REQUESTS // 10, SERVICES // 10) if quick else (REQUESTS, SERVICES)
    rows = await _on("", "", count, services)
    try:
        with postgres.server() as running:
            rows += await _on(running.create("bench"), ".postgres", count, services)
    except postgres.PostgresMissing:
        pass
    return rows


async def _on(url: str, suffix: str, count: int, services: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="oscar-metrics-") as place:
        settings = {"OSCAR_ENGINE": "process"} | ({"OSCAR_DATABASE_URL": url} if url else {})
        with server.running(Path(place) / "data", **settings) as at:
            await create_many(at, services)
            at.stop()
            await _fill(url or f"sqlite:///{at.data}/oscar.db", count, services)
            at.start()
            return await _measure(at, suffix, count, services)


async def _fill(url: str, count: int, services: int) -> None:
    store = Store(url, Sealer(["of no use here"]))
    try:
        rows, sums = Requests(store), RecordedRequests(store, keep=400 * 86_400)
        batch: list[RequestRecord] = []
        for record in _records(count, services):
            batch.append(record)
            if len(batch) == _BATCH:
                await rows.add(batch)
                batch.clear()
        await rows.add(batch)
        left = await sums.roll_up()
        while left:
            left = await sums.roll_up()
    finally:
        await asyncio.to_thread(store.close)


def _records(count: int, services: int) -> Iterator[RequestRecord]:
    """Users have some services of their own, call some of them much more often than others, and most from home."""
    rng = random.Random(2026)
    end = int(time.time() * 1000) - 60_000
    kinds = [RequestKind.SYNC] * 6 + [RequestKind.ASYNC] * 3 + [RequestKind.EXPOSED]
    favourites = [[rng.randrange(services) for _ in range(FAVOURITES)] for _ in range(USERS)]
    for number in range(min(services, USERS * FAVOURITES)):  # so that each is called
        favourites[number % USERS][number // USERS] = number
    for _ in range(count):
        user = rng.randrange(USERS)
        home, abroad = COUNTRIES[user % len(COUNTRIES)], COUNTRIES[(user + 7) % len(COUNTRIES)]
        yield RequestRecord(
            time=end - rng.randrange(DAYS * 86_400_000 - 3_600_000),
            kind=rng.choice(kinds),
            service_id="",
            service=f"s{favourites[user][int(FAVOURITES * rng.random() ** 2)]}",
            owner="cluster_admin",
            user=f"user-{user}",
            status=200 if rng.random() < 0.97 else 404,
            duration=1000,
            origin=Origin("oidc", "192.0.2.1", home if rng.random() < 0.95 else abroad),
        )


async def _measure(at: server.Server, suffix: str, count: int, services: int) -> list[Row]:
    # Not at whole hours: records are read at both ends.
    start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - DAYS * 86_400 + 1_234))
    nothing = "start=2020-01-01T00:00:00Z&end=2020-01-01T01:00:00Z"
    rows = []
    for by in ("service", "user", "country"):
        path = f"/system/metrics/breakdown?group_by={by}&"
        name = f"metrics.breakdown.{by}.{count}{suffix}"
        rows.append(
            row(
                name,
                await _milliseconds(at, f"{path}start={start}"),
                "ms",
                await _milliseconds(at, path + nothing),
            )
        )
    path = "/system/metrics?"
    value, floor = await _milliseconds(at, f"{path}start={start}"), await _milliseconds(at, path + nothing)
    return [*rows, row(f"metrics.summary.{services}services{suffix}", value, "ms", floor)]


async def _milliseconds(at: server.Server, path: str) -> float:
    client = await Client(at, "GET", path).open()
    times = await repeat(client.call, TRIES)
    client.close()
    return median(times) * 1e3
