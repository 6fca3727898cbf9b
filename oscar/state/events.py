"""Rows of events that a store of its own reports: routed, made jobs of, remembered, rejected.

Called by `core.object_events` and `core.sweep`. An event is remembered by its key: in its job's row, and in
`past_events` once that row is gone or when the event made none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.model.job import NewJob
from oscar.model.object import Listener
from oscar.state.event_tables import past_events, rejected_events
from oscar.state.job_rows import insert_jobs
from oscar.state.store import Store, now_ms
from oscar.state.tables import jobs, service_inputs, services

KEPT_BODY = 16 * 1024
"""Bytes of a rejected event that are kept."""
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Wanted:
    """A job that an event asks for; it has an event key."""

    job: NewJob
    claim: str | None = None
    """Key of what may trigger once only, besides the event: an output of a job."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An event that was recorded and made no job; `time` in Unix milliseconds."""

    reason: str
    body: bytes
    bucket: str = ""
    key: str = ""
    time: int = 0
    id: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Input:
    """An input folder of a service, and since when it is looked at."""

    listener: Listener
    since: int


class Events:
    """Statements on events."""

    def __init__(self, store: Store, *, on_jobs: Callable[[Sequence[NewJob]], None] | None = None) -> None:
        """Work on that Store.

        Args:
            store: the database.
            on_jobs: told of the jobs that events have made, when they are durable; must not block.
        """
        self._store = store
        self._on_jobs = on_jobs
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert

    async def inputs(self, bucket: str | None = None) -> list[Input]:
        """The input folders of all services, or those in a bucket."""
        query = (
            sa.select(
                service_inputs.c.service_id,
                services.c.name,
                services.c.owner,
                service_inputs.c.bucket,
                service_inputs.c.prefix,
                service_inputs.c.since,
            )
            .join(services, services.c.id == service_inputs.c.service_id)
            .order_by(service_inputs.c.bucket, service_inputs.c.prefix, service_inputs.c.service_id)
        )
        if bucket is not None:
            query = query.where(service_inputs.c.bucket == bucket)
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        return [Input(Listener(*row[:5]), row[5]) for row in rows]

    async def record(self, wanted: Sequence[Wanted], rejected: Sequence[Rejected]) -> int:
        """Make the jobs that are not known yet, and keep what was rejected: one transaction.

        Returns:
            How many jobs are new.
        """

        def work(connection: sa.Connection) -> list[NewJob]:
            made = [each.job for each in wanted if self._made(connection, each)]
            for event in rejected:
                connection.execute(sa.insert(rejected_events).values(**_row(event), time=now_ms()))
            return made

        jobs = await self._store.write(work)
        if jobs and self._on_jobs is not None:
            self._on_jobs(jobs)
        return len(jobs)

    def _made(self, connection: sa.Connection, wanted: Wanted) -> bool:
        key = wanted.job.event_key or ""
        if self._known(connection, [key]):
            return False
        if wanted.claim is not None and not self._remember(connection, wanted.claim):
            self._remember(connection, key)
            return False
        return bool(insert_jobs(connection, [wanted.job], self._store.sealer))

    def _remember(self, connection: sa.Connection, key: str) -> bool:
        statement = self._insert(past_events).values(event_key=key, time=now_ms()).on_conflict_do_nothing()
        return connection.execute(statement.returning(past_events.c.event_key)).first() is not None

    @staticmethod
    def _known(connection: sa.Connection, keys: Collection[str]) -> set[str]:
        found: set[str] = set()
        for column in (jobs.c.event_key, past_events.c.event_key):
            found |= set(connection.execute(sa.select(column).where(column.in_(keys))).scalars())
        return found

    async def known(self, keys: Sequence[str]) -> set[str]:
        """Which of the keys are of events that came before."""

        def work(connection: sa.Connection) -> set[str]:
            found: set[str] = set()
            for start in range(0, len(keys), _CHUNK):
                found |= self._known(connection, keys[start : start + _CHUNK])
            return found

        return await self._store.read(work)

    async def looked(self, inputs: Collection[Input], since: int) -> None:
        """Note that what was written in these folders before that time has been seen."""
        statement = (
            sa.update(service_inputs)
            .where(
                service_inputs.c.service_id == sa.bindparam("in_service"),
                service_inputs.c.bucket == sa.bindparam("in_bucket"),
                service_inputs.c.prefix == sa.bindparam("in_prefix"),
                service_inputs.c.since < since,
            )
            .values(since=since)
        )
        rows = [
            {
                "in_service": each.listener.service_id,
                "in_bucket": each.listener.bucket,
                "in_prefix": each.listener.prefix,
            }
            for each in inputs
        ]
        if rows:
            await self._store.write(lambda connection: connection.execute(statement, rows))

    async def now(self) -> int:
        """The database's clock, Unix milliseconds."""
        return await self._store.read(
            lambda connection: int(connection.execute(sa.select(now_ms())).scalar_one())
        )

    async def rejected(self, *, limit: int, before: int | None = None) -> list[Rejected]:
        """A page of rejected events, newest first; `before` is the id of the last one of the page before."""
        query = sa.select(rejected_events).order_by(rejected_events.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(rejected_events.c.id < before)
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        return [
            Rejected(row.reason, row.body, row.bucket, row.key, row.time, row.id, row.size) for row in rows
        ]

    async def prune(self, *, rejected: float, past: float, limit: int = 1000) -> int:
        """Remove some of what is older than so many seconds; how many rows went."""

        def work(connection: sa.Connection) -> int:
            old = now_ms() - int(rejected * 1000)
            some = sa.select(rejected_events.c.id).where(rejected_events.c.time < old).limit(limit)
            gone = connection.execute(
                sa.delete(rejected_events).where(rejected_events.c.id.in_(some))
            ).rowcount
            old = now_ms() - int(past * 1000)
            keys = sa.select(past_events.c.event_key).where(past_events.c.time < old).limit(limit)
            return (
                gone
                + connection.execute(sa.delete(past_events).where(past_events.c.event_key.in_(keys))).rowcount
            )

        return await self._store.write(work)


def _row(event: Rejected) -> dict[str, object]:
    return {
        "reason": event.reason,
        "bucket": event.bucket,
        "key": event.key,
        "size": len(event.body),
        "body": event.body[:KEPT_BODY],
    }
