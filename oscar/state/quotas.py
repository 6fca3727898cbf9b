"""Rows of quotas: the limits of users, and what their running jobs and buckets take.

Called by `core.quotas`; the functions of a connection also by `state.jobs` (what may start), inside its transaction.
How much a bucket holds is counted by `state.usage`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.model.quota import RESOURCES, Defaults, Limits, Resources, Room
from oscar.state.store import Store, now_ms
from oscar.state.tables import bucket_usage, buckets, jobs, quotas

_LIMITS = tuple(field.name for field in fields(Limits))
_CLAIMS = 0x05CA3
"""Advisory lock of PostgreSQL: who claims jobs of limited owners does it alone."""


class Quotas:
    """Statements on quotas."""

    def __init__(self, store: Store, defaults: Defaults) -> None:
        """Work on that Store; `defaults` hold where nothing is stored."""
        self._store = store
        self.defaults = defaults

    async def own(self, user: str) -> Limits | None:
        """What was set for the user himself; None when nothing was."""
        return (await self._store.read(lambda connection: _own(connection, [user]))).get(user)

    async def limits(self, user: str) -> Limits:
        """What holds for the user."""
        return self.defaults.effective(user, await self.own(user))

    async def change(self, user: str, limits: Mapping[str, int]) -> None:
        """Set some of the user's limits, by their names in `Limits`; the others stay."""
        insert = (sqlite.insert if self._store.is_sqlite else postgresql.insert)(quotas)
        statement = insert.values(user=user, updated=now_ms(), **limits).on_conflict_do_update(
            index_elements=["user"], set_={**limits, "updated": now_ms()}
        )
        await self._store.write(lambda connection: connection.execute(statement))

    async def room(self, owner: str) -> Room:
        """What holds for an owner and what his running jobs take."""

        def work(connection: sa.Connection) -> Room:
            limits = self.defaults.effective(owner, _own(connection, [owner]).get(owner))
            return Room(limits, _running(connection, [owner]).get(owner, Resources()))

        return await self._store.read(work)

    async def stored(self, owner: str) -> tuple[int, int]:
        """How many buckets the user owns, and the bytes in them."""
        count = sa.select(sa.func.count()).select_from(buckets).where(buckets.c.owner == owner)
        size = (
            sa.select(sa.func.coalesce(sa.func.sum(bucket_usage.c.size + bucket_usage.c.pending), 0))
            .join(buckets, buckets.c.name == bucket_usage.c.bucket)
            .where(buckets.c.owner == owner)
        )

        def work(connection: sa.Connection) -> tuple[int, int]:
            return int(connection.execute(count).scalar_one()), int(connection.execute(size).scalar_one())

        return await self._store.read(work)


def rooms(connection: sa.Connection, owners: Collection[str], defaults: Defaults) -> dict[str, Room]:
    """What is left for those of the owners whose jobs are limited; no other claim goes on at the same time."""
    own = _own(connection, owners)
    limits = {owner: defaults.effective(owner, own.get(owner)) for owner in owners}
    limited = [owner for owner, its in limits.items() if its.of_jobs]
    if not limited:
        return {}
    if connection.dialect.name != "sqlite":
        # Before the sum: what others have claimed is then committed and counted.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CLAIMS)))
    running = _running(connection, limited)
    return {owner: Room(limits[owner], running.get(owner, Resources())) for owner in limited}


def _own(connection: sa.Connection, users: Collection[str]) -> dict[str, Limits]:
    query = sa.select(quotas.c.user, *(quotas.c[name] for name in _LIMITS)).where(quotas.c.user.in_(users))
    return {row[0]: Limits(*row[1:]) for row in connection.execute(query)}


def _running(connection: sa.Connection, owners: Collection[str]) -> dict[str, Resources]:
    # Written out so that SQLite sees the partial index's own condition.
    active = sa.literal_column("jobs.state IN ('submitting','submitted','running','settling')", sa.Boolean)
    sums = (sa.cast(sa.func.sum(jobs.c[name]), sa.BigInteger) for name in RESOURCES)
    query = sa.select(jobs.c.owner, *sums).where(active, jobs.c.owner.in_(owners)).group_by(jobs.c.owner)
    return {row[0]: Resources(*(int(value or 0) for value in row[1:])) for row in connection.execute(query)}
