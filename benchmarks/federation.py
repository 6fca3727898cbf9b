"""A job that goes to a member: from `POST /job` at the origin to its end there.

Floor: the same job posted to the member itself, in turns, waited for at the member. On processes, with two servers on
this machine and no identity provider.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Row, median, row, share
from oscar.client import Client
from tests.federation import NO_ROOM, account, grid, replica
from tests.server import Server

JOBS = 60


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark."""
    with (
        tempfile.TemporaryDirectory(prefix="oscar-federation-") as place,
        grid(Path(place), "a", "b", OSCAR_ENGINE="process") as servers,
    ):
        return await _measure(servers["a"], servers["b"], JOBS // 6 if quick else JOBS)


async def _measure(origin: Server, member: Server, jobs: int) -> list[Row]:
    script = {"image": "none", "script": "true", "log_level": "CRITICAL"}
    async with (
        Client(origin.endpoint, user=origin.user, password=origin.password) as a,
        Client(member.endpoint, user=member.user, password=member.password) as b,
    ):
        await b.create({"name": "there", **script})
        near = {"cpu": NO_ROOM, "replicas": [replica("b", "there")], "clusters": {"b": account(member)}}
        await a.create({"name": "here", "cluster_id": "a", **script, **near})
        given, direct = [], []
        for number in range(-2, jobs):  # the first ones open connections and fill caches
            took, floor = await _once(a, "here"), await _once(b, "there")
            if number >= 0:
                given.append(took)
                direct.append(floor)
    return [
        row("federation.job.p50", median(given) * 1e3, "ms", median(direct) * 1e3),
        row("federation.job.p90", share(given, 0.9) * 1e3, "ms", share(direct, 0.9) * 1e3),
    ]


async def _once(client: Client, service: str) -> float:
    begin = time.perf_counter()
    submitted = await client.submit(service)
    done = await client.wait(service, submitted.job_id)
    if not done.succeeded:
        raise RuntimeError(f"{service}: {done.message}")
    await asyncio.sleep(0)
    return time.perf_counter() - begin
