"""Quotas of buckets in the Store: checked in the transaction that makes something visible, counters equal the rows."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from oscar.errors import BucketNotFound, PreconditionFailed, QuotaExceeded
from oscar.model.object import Bucket, Object, Part, Upload, Usage
from oscar.model.quota import UNLIMITED, Defaults, Limits
from oscar.model.user import ADMIN
from oscar.state import tables
from oscar.state.migrate import migrate
from oscar.state.objects import Objects
from oscar.state.quotas import Quotas
from oscar.state.secrets import Sealer
from oscar.state.store import Store

BUCKET = "photos"
LIMIT = 100


class World:
    """A Store with one bucket of a user who may keep 100 bytes in each of his buckets, and have three."""

    def __init__(self, url: str) -> None:
        self.defaults = Defaults(Limits(buckets=3, storage_per_bucket=LIMIT), administrators=("root",))
        self.store = Store(url, Sealer(["k"]))
        migrate(self.store)
        self.index = Objects(self.store, lambda *_: [], quotas=self.defaults)
        self.quotas = Quotas(self.store, self.defaults)

    def counted(self) -> dict[str, tuple[int, int, int]]:
        """What the rows themselves say, to compare with the counters."""
        objects, uploads, parts = tables.objects, tables.uploads, tables.parts

        def work(connection: sa.Connection) -> dict[str, tuple[int, int, int]]:
            found = {}
            for name in connection.execute(sa.select(tables.buckets.c.name)).scalars().all():
                sizes = (
                    connection.execute(sa.select(objects.c.size).where(objects.c.bucket == name))
                    .scalars()
                    .all()
                )
                pending = (
                    connection.execute(
                        sa.select(parts.c.size)
                        .join(uploads, uploads.c.id == parts.c.upload_id)
                        .where(uploads.c.bucket == name)
                    )
                    .scalars()
                    .all()
                )
                found[name] = (len(sizes), sum(sizes), sum(pending))
            return found

        return self.store.write_sync(work)

    async def check(self) -> Usage:
        """The bucket's usage; the counters of all buckets must equal their rows."""
        usages = await self.index.usages()
        assert {name: (it.objects, it.size, it.pending) for name, it in usages.items()} == self.counted()
        return usages[BUCKET]


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url)
    asyncio.run(made.index.create_bucket(Bucket(BUCKET, "alice")))
    yield made
    made.store.close()


def obj(key: str, size: int, bucket: str = BUCKET, **more: Any) -> Object:
    return Object(bucket, key, uuid.uuid4().hex, size, "e", 1000, **more)


def test_parallel_writers_never_exceed_the_quota(world: World) -> None:
    async def scenario() -> None:
        results = await asyncio.gather(
            *(world.index.commit(obj(f"k{number}", 30)) for number in range(16)), return_exceptions=True
        )
        assert sum(isinstance(result, QuotaExceeded) for result in results) == 13
        assert sum(result is None for result in results) == 3
        assert (await world.check()).size == 90
        assert await world.index.room(BUCKET) == 10

    asyncio.run(scenario())


def test_what_replaces_or_shrinks_is_counted_by_its_difference(world: World) -> None:
    async def scenario() -> None:
        await world.index.commit(obj("a", 60))
        await world.index.commit(obj("b", 40))
        with pytest.raises(QuotaExceeded):
            await world.index.commit(obj("a", 61))
        await world.index.commit(obj("a", 60))
        await world.index.commit(obj("a", 10))
        await world.index.commit(obj("c", 50))
        assert await world.check() == Usage(3, 100, 0, LIMIT, "default")
        await world.index.delete(BUCKET, ["a", "b", "absent"])
        assert await world.check() == Usage(1, 50, 0, LIMIT, "default")
        await world.index.commit(obj("empty", 0))

    asyncio.run(scenario())


def test_a_refused_write_leaves_object_and_counter(world: World) -> None:
    async def scenario() -> None:
        await world.index.commit(obj("a", 60, owner="first"))
        with pytest.raises(PreconditionFailed):
            await world.index.commit(obj("a", 1), if_none_match=True)
        with pytest.raises(QuotaExceeded):
            await world.index.commit(obj("a", 200, owner="second"))
        with pytest.raises(BucketNotFound):
            await world.index.commit(obj("a", 1, bucket="nowhere"))
        found = await world.index.get(BUCKET, "a")
        assert found is not None
        assert found.owner == "first"
        assert (await world.check()).size == 60

    asyncio.run(scenario())


def test_a_full_bucket_may_still_shrink_when_its_quota_was_lowered(world: World) -> None:
    async def scenario() -> None:
        await world.index.commit(obj("a", 100))
        await world.quotas.change("alice", {"storage_per_bucket": 50})
        assert await world.index.room(BUCKET) == 0
        with pytest.raises(QuotaExceeded):
            await world.index.commit(obj("b", 1))
        await world.index.commit(obj("a", 99))
        assert await world.check() == Usage(1, 99, 0, 50, "user")
        await world.quotas.change("alice", {"storage_per_bucket": UNLIMITED})
        await world.index.commit(obj("b", 10**12))
        assert await world.index.room(BUCKET) is None

    asyncio.run(scenario())


def test_parts_take_room_until_they_are_an_object_or_gone(world: World) -> None:
    async def scenario() -> None:
        upload = Upload("u" * 32, BUCKET, "big", 1000, "alice")
        await world.index.create_upload(upload)

        def part(number: int, size: int) -> Part:
            return Part(upload.id, number, uuid.uuid4().hex, size, "e", 1000)

        await world.index.put_part(part(1, 60))
        with pytest.raises(QuotaExceeded):
            await world.index.put_part(part(2, 41))
        with pytest.raises(QuotaExceeded):
            await world.index.commit(obj("small", 41))
        await world.index.put_part(part(1, 50))
        results = await asyncio.gather(
            *(world.index.put_part(part(number, 20)) for number in range(2, 18)), return_exceptions=True
        )
        assert sum(isinstance(result, QuotaExceeded) for result in results) == 14
        assert await world.check() == Usage(0, 0, 90, LIMIT, "default")
        await world.index.complete_upload(upload.id, obj("big", 70))
        assert await world.check() == Usage(1, 70, 0, LIMIT, "default")
        again = Upload("v" * 32, BUCKET, "more", 1000, "alice")
        await world.index.create_upload(again)
        await world.index.put_part(Part(again.id, 1, uuid.uuid4().hex, 30, "e", 1000))
        await world.index.abort_upload(again.id)
        assert await world.check() == Usage(1, 70, 0, LIMIT, "default")

    asyncio.run(scenario())


def test_parallel_makers_never_have_more_buckets_than_they_may(world: World) -> None:
    async def scenario() -> None:
        makers = (world.index.create_bucket(Bucket(f"b{number:02}", "alice")) for number in range(16))
        results = await asyncio.gather(*makers, return_exceptions=True)
        assert sum(result is True for result in results) == 2
        assert sum(isinstance(result, QuotaExceeded) for result in results) == 14
        # A name that is taken is said to be taken, not too many; others have quotas of their own.
        assert not await world.index.create_bucket(Bucket(BUCKET, "alice"))
        assert await world.index.create_bucket(Bucket("bobs", "bob"))
        for number in range(5):
            assert await world.index.create_bucket(Bucket(f"root-{number}", "root"))
            assert await world.index.create_bucket(Bucket(f"admin-{number}", ADMIN))
        assert (await world.quotas.stored("alice"))[0] == 3

    asyncio.run(scenario())


def test_a_deleted_bucket_begins_anew(world: World) -> None:
    async def scenario() -> None:
        await world.index.commit(obj("a", 100))
        await world.index.create_upload(Upload("w" * 32, BUCKET, "big", 1000, "alice"))
        await world.index.delete_bucket(BUCKET, force=True)
        assert await world.index.usage(BUCKET) == Usage(0, 0)
        await world.index.create_bucket(Bucket(BUCKET, "alice"))
        await world.index.commit(obj("a", 100))
        assert (await world.check()).size == 100

    asyncio.run(scenario())
