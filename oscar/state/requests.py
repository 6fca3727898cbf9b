"""Rows of requests: written in batches or with the jobs they made, kept for months, pruned in batches.

Called by `core.requests`; `insert_requests` also by `state.job_rows`, in the transaction that accepts a job.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from oscar.model.request import RequestRecord
from oscar.state.direct import Direct
from oscar.state.store import Store, now_ms
from oscar.state.tables import requests


def _insert() -> Direct:
    values: dict[str, Any] = {
        column.name: sa.bindparam(column.name, type_=column.type)
        for column in requests.c
        if column.name != "id"
    }
    values["time"] = sa.func.coalesce(sa.func.nullif(values["time"], 0), now_ms())
    return Direct(sa.insert(requests).values(values))


_INSERT = _insert()


def insert_requests(connection: sa.Connection, records: Iterable[RequestRecord]) -> None:
    """Add records in the caller's transaction; a `time` of 0 means now."""
    _INSERT.many(connection, [_row(record) for record in records])


def _row(record: RequestRecord) -> dict[str, Any]:
    return {
        "time": record.time,
        "kind": record.kind.value,
        "service_id": record.service_id,
        "service": record.service,
        "owner": record.owner,
        "user": record.user,
        "entrance": record.origin.entrance,
        "status": record.status,
        "duration": record.duration,
        "address": record.origin.address,
        "country": record.origin.country,
    }


class Requests:
    """Statements on requests."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store

    async def add(self, records: Iterable[RequestRecord]) -> None:
        """Write records in one transaction."""
        await self._store.write(lambda connection: insert_requests(connection, records))

    async def prune(self, age: float, limit: int = 1000) -> int:
        """Remove at most `limit` records older than so many seconds; how many went."""

        def work(connection: sa.Connection) -> int:
            old = sa.select(requests.c.id).where(requests.c.time < now_ms() - int(age * 1000)).limit(limit)
            return connection.execute(sa.delete(requests).where(requests.c.id.in_(old))).rowcount

        return await self._store.write(work)
