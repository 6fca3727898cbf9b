"""The built-in S3 server beside a real MinIO: small objects at 16 clients and 1 GiB, both in one run.

The client is obstore, a Rust library, so
that what is measured is the servers. Both take turns in short rounds, so that a change of the machine's mood hits
both. MinIO is the program of `OSCAR_MINIO` or on PATH; without it there are figures but no floor.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from pathlib import Path

import obstore
from obstore.store import S3Store

from benchmarks.buckets import PART, at_once
from benchmarks.client import CLIENTS
from benchmarks.figures import Row, row
from tests import real_minio, s3_server

OBJECTS = int(os.environ.get("OSCAR_BENCH_S3_OBJECTS", "10000"))
ROUNDS = 10
SMALL = 4096
BIG = 1024**3
BIG_ROUNDS = 4
BUCKET = "benchmark"


@dataclass(slots=True)
class Side:
    """One server: how to reach it, and the seconds that each kind of work took."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def store(self) -> S3Store:
        """A client of its benchmark bucket."""
        return S3Store(
            BUCKET,
            endpoint=self.endpoint,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            region=s3_server.REGION,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True, "timeout": "600s"},
        )

    async def timed(self, kind: str, act: Awaitable[None]) -> None:
        """Do it and note the time."""
        start = time.perf_counter()
        await act
        self.seconds.setdefault(kind, []).append(time.perf_counter() - start)

    def total(self, kind: str) -> float:
        """Seconds of one kind of work, all rounds together."""
        return sum(self.seconds[kind])


async def small_objects(sides: list[Side], clients: int, count: int) -> None:
    body = os.urandom(SMALL)
    for turn in range(ROUNDS):
        for side in sides if turn % 2 else reversed(sides):
            store = side.store()
            await obstore.put_async(store, "warm", body)

            async def put(number: int, store: S3Store = store, turn: int = turn) -> None:
                await obstore.put_async(store, f"{clients}/{turn}/{number % 50}/{number}", body)

            async def get(number: int, store: S3Store = store, turn: int = turn) -> None:
                answer = await obstore.get_async(store, f"{clients}/{turn}/{number % 50}/{number}")
                if len(await answer.bytes_async()) != SMALL:
                    raise RuntimeError("a short body")

            await side.timed(f"put.{clients}", at_once(count // ROUNDS, put, clients))
            await side.timed(f"get.{clients}", at_once(count // ROUNDS, get, clients))


async def big_object(sides: list[Side], source: Path) -> None:
    expected = source.stat().st_size
    for turn in range(BIG_ROUNDS):
        for side in sides if turn % 2 else reversed(sides):
            store = side.store()

            async def put(store: S3Store = store) -> None:
                with source.open("rb") as file:
                    await obstore.put_async(store, "big", file, chunk_size=PART, max_concurrency=4)

            async def get(store: S3Store = store) -> None:
                answer = await obstore.get_async(store, "big")
                size = 0
                async for piece in answer.stream(4 * 1024**2):
                    size += len(piece)
                if size != expected:
                    raise RuntimeError("a short body")

            await side.timed("put.big", put())
            await side.timed("get.big", get())


@contextlib.asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[list[Side]]:
    """Our server, and MinIO where it is."""
    with contextlib.ExitStack() as stack:
        (folder / "ours").mkdir()
        ours = stack.enter_context(s3_server.running(folder / "ours"))
        admin = s3_server.ADMIN
        sides = [Side("ours", ours.endpoint, admin.access_key, admin.secret_key)]
        try:
            minio = stack.enter_context(real_minio.running(folder / "minio"))
        except real_minio.MinioMissing:
            pass
        else:
            sides.append(Side("minio", minio.endpoint, real_minio.ACCESS_KEY, real_minio.SECRET_KEY))
        for side in sides:
            make_bucket(side)
        yield sides


def make_bucket(side: Side) -> None:
    from minio import Minio

    host = side.endpoint.removeprefix("http://")
    Minio(host, side.access_key, side.secret_key, secure=False).make_bucket(BUCKET)


def figure(name: str, sides: list[Side], kind: str, amount: float, unit: str) -> Row:
    floor = amount / sides[1].total(kind) if len(sides) > 1 else None
    return row(name, amount / sides[0].total(kind), unit, floor)


async def run(*, quick: bool = False) -> list[Row]:
    """Measure; the floor is MinIO's figure (goal: at least 0.8 of it)."""
    objects, big = (OBJECTS // 10, BIG // 16) if quick else (OBJECTS, BIG)
    with tempfile.TemporaryDirectory(prefix="bench-s3-") as name:
        folder = Path(name)
        source = folder / "big"
        with source.open("wb") as file:
            for _ in range(big // PART):
                file.write(os.urandom(PART))
        async with servers(folder) as sides:
            await small_objects(sides, CLIENTS, objects)
            await small_objects(sides, 1, objects // 10)
            await big_object(sides, source)
    per_round = objects // ROUNDS * ROUNDS
    single = objects // 10 // ROUNDS * ROUNDS
    total = big * BIG_ROUNDS / 1e6
    return [
        figure("s3.put.small.16clients", sides, "put.16", per_round, "objects/s"),
        figure("s3.get.small.16clients", sides, "get.16", per_round, "objects/s"),
        figure("s3.put.small.1client", sides, "put.1", single, "objects/s"),
        figure("s3.get.small.1client", sides, "get.1", single, "objects/s"),
        figure("s3.put.1gib", sides, "put.big", total, "MB/s"),
        figure("s3.get.1gib", sides, "get.big", total, "MB/s"),
    ]
