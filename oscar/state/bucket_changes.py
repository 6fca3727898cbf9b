"""Rows of buckets when a server of its own holds the objects: implements `BucketIndex`.

Made by `app.stores`, called by `objects.minio`. What a bucket is and whose keys are whose stays in the tables of
`state.objects`; here is what only such a store needs: all keys, buckets that were there before, notes of changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from oscar.model.object import Bucket, Credential
from oscar.state import tables
from oscar.state.event_tables import bucket_changes
from oscar.state.object_rows import from_bucket, to_credential
from oscar.state.objects import Objects
from oscar.state.store import now_ms


class OutsideBuckets(Objects):
    """The rows behind a store of its own; see `BucketIndex` for what each verb promises."""

    async def credentials(self) -> Sequence[Credential]:
        """See `BucketIndex.credentials`."""
        query = sa.select(tables.credentials).order_by(tables.credentials.c.access_key)
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        return [to_credential(row, self._store.sealer) for row in rows]

    async def adopt_bucket(self, bucket: Bucket) -> bool:
        """See `BucketIndex.adopt_bucket`."""
        statement = self._insert(tables.buckets).values(
            created=bucket.created or now_ms(), **from_bucket(bucket)
        )
        made = statement.on_conflict_do_nothing().returning(tables.buckets.c.name)
        return await self._store.write(lambda connection: connection.execute(made).first() is not None)

    async def begin_change(self, bucket: str) -> None:
        """See `BucketIndex.begin_change`."""
        statement = self._insert(bucket_changes).values(bucket=bucket, time=now_ms())
        statement = statement.on_conflict_do_update(index_elements=["bucket"], set_={"time": now_ms()})
        await self._store.write(lambda connection: connection.execute(statement))

    async def end_change(self, bucket: str) -> None:
        """See `BucketIndex.end_change`."""
        statement = sa.delete(bucket_changes).where(bucket_changes.c.bucket == bucket)
        await self._store.write(lambda connection: connection.execute(statement))

    async def changes(self, age: float) -> Sequence[str]:
        """See `BucketIndex.changes`."""
        query = sa.select(bucket_changes.c.bucket).where(bucket_changes.c.time <= now_ms() - int(age * 1000))
        return await self._store.read(lambda connection: list(connection.execute(query).scalars()))
