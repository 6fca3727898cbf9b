"""What buckets hold and may hold: counters kept in the transactions that change them, limits checked in the same.

Called by `state.objects` and `state.uploads` with their connections. So whatever order requests come in, a bucket
never holds more than its owner's quota allows, and a counter never differs from the rows that it counts.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.errors import BucketNotFound, QuotaExceeded
from oscar.model.object import Usage
from oscar.model.quota import Defaults, Limits
from oscar.model.resources import format_memory
from oscar.state.direct import Direct
from oscar.state.tables import bucket_usage, buckets, quotas

_SLOTS = 16


class Counter:
    """Statements on the counters of buckets, compiled once because every write to a bucket runs them."""

    def __init__(self, *, is_sqlite: bool, defaults: Defaults) -> None:
        """Build them.

        Args:
            is_sqlite: which database it is.
            defaults: the limits of owners for whom nothing is stored.
        """
        self._is_sqlite = is_sqlite
        self._defaults = defaults
        insert = (sqlite.insert if is_sqlite else postgresql.insert)(bucket_usage)
        values = {column.name: sa.bindparam(column.name, type_=column.type) for column in bucket_usage.c}
        added = insert.values(values)
        self._add = Direct(
            added.on_conflict_do_update(
                index_elements=["bucket", "slot"],
                set_={
                    name: bucket_usage.c[name] + added.excluded[name]
                    for name in ("objects", "size", "pending")
                },
            )
        )
        named = buckets.c.name == sa.bindparam("in_bucket", type_=sa.Text)
        self._limit = Direct(
            sa.select(buckets.c.owner, quotas.c.storage_per_bucket)
            .outerjoin(quotas, quotas.c.user == buckets.c.owner)
            .where(named)
        )
        of_bucket = bucket_usage.c.bucket == sa.bindparam("in_bucket", type_=sa.Text)
        self._held = Direct(
            sa.select(sa.func.coalesce(sa.func.sum(bucket_usage.c.size + bucket_usage.c.pending), 0)).where(
                of_bucket
            )
        )

    def add(
        self, connection: sa.Connection, bucket: str, *, objects: int = 0, size: int = 0, pending: int = 0
    ) -> None:
        """Count a change; what grows must fit. The last statement of its transaction, so that locks are short.

        Raises:
            BucketNotFound: it is gone.
            QuotaExceeded: the bucket would hold more than its owner's quota allows.
        """
        grows = size + pending
        limit = self._limit_of(self._limit.rows(connection, {"in_bucket": bucket}))
        if grows > 0 and limit is not None:
            if not self._is_sqlite:
                lock = sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"quota/{bucket}", 0))
                connection.execute(sa.select(lock))
            held = int(self._held.rows(connection, {"in_bucket": bucket})[0][0])
            if held + grows > limit:
                raise exceeded(bucket, limit, held)
        values = {"bucket": bucket, "objects": objects, "size": size, "pending": pending}
        # Nothing secret hangs on the choice.
        slot = 0 if self._is_sqlite else random.randrange(_SLOTS)  # noqa: S311
        self._add.rows(connection, {**values, "slot": slot})

    def left(self, connection: sa.Connection, bucket: str) -> int | None:
        """Bytes that may still be stored there; None without limit, or without the bucket."""
        return self._left(
            self._limit.rows(connection, {"in_bucket": bucket}),
            lambda: self._held.rows(connection, {"in_bucket": bucket}),
        )

    def left_here(self, driver: sqlite3.Connection, bucket: str) -> int | None:
        """The same on a connection of the driver."""
        return self._left(
            self._limit.rows_raw(driver, {"in_bucket": bucket}),
            lambda: self._held.rows_raw(driver, {"in_bucket": bucket}),
        )

    def _left(self, rows: Sequence[Sequence[Any]], held: Callable[[], Sequence[Sequence[Any]]]) -> int | None:
        if not rows:
            return None
        limit = self._limit_of(rows)
        return None if limit is None else max(0, limit - int(held()[0][0]))

    def _limit_of(self, rows: Sequence[Sequence[Any]]) -> int | None:
        if not rows:
            raise BucketNotFound
        owner, own = rows[0]
        return self._defaults.effective(owner, Limits(storage_per_bucket=own)).storage_per_bucket

    def usages(self, connection: sa.Connection, bucket: str | None = None) -> dict[str, Usage]:
        """What each bucket, or that one, holds and may hold."""
        query = (
            sa.select(
                buckets.c.name,
                buckets.c.owner,
                quotas.c.storage_per_bucket,
                *(
                    sa.cast(sa.func.coalesce(sa.func.sum(bucket_usage.c[name]), 0), sa.BigInteger)
                    for name in ("objects", "size", "pending")
                ),
            )
            .outerjoin(bucket_usage, bucket_usage.c.bucket == buckets.c.name)
            .outerjoin(quotas, quotas.c.user == buckets.c.owner)
            .group_by(buckets.c.name, buckets.c.owner, quotas.c.storage_per_bucket)
        )
        if bucket is not None:
            query = query.where(buckets.c.name == bucket)
        return {row[0]: self._usage(row) for row in connection.execute(query)}

    def _usage(self, row: Sequence[Any]) -> Usage:
        _, owner, own, objects, size, pending = row
        limit = self._defaults.effective(owner, Limits(storage_per_bucket=own)).storage_per_bucket
        source = "" if limit is None else "default" if own is None else "user"
        return Usage(int(objects), int(size), int(pending), limit, source)

    def check_new_bucket(self, connection: sa.Connection, owner: str) -> None:
        """Whether the owner may have the bucket that was just inserted.

        Raises:
            QuotaExceeded: he has more now than he may.
        """
        row = connection.execute(sa.select(quotas.c.buckets).where(quotas.c.user == owner)).first()
        limit = self._defaults.effective(owner, Limits(buckets=row[0] if row else None)).buckets
        if limit is None:
            return
        if not self._is_sqlite:
            lock = sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"buckets/{owner}", 0))
            connection.execute(sa.select(lock))
        count = sa.select(sa.func.count()).select_from(buckets).where(buckets.c.owner == owner)
        found = int(connection.execute(count).scalar_one())
        if found > limit:
            raise QuotaExceeded(
                f"The quota of {limit} buckets is reached: {owner} has {found - 1}",
                field="bucket_name",
                fix="delete a bucket, or ask an administrator for a larger quota",
            )


def exceeded(bucket: str, limit: int, held: int) -> QuotaExceeded:
    """The error of a bucket that is too full."""
    return QuotaExceeded(
        f'The quota of the bucket "{bucket}" is exceeded: it may hold {format_memory(limit)} and holds {held} bytes',
        fix="delete objects, or ask an administrator for a larger quota",
    )
