"""Rows of jobs as records, and how new ones get into the queue.

Used by `state.jobs`, and by `state.objects` in the transaction that makes an object visible. Functions of a
connection; no transaction of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.model.job import Job, JobState, NewJob
from oscar.model.request import Origin, RequestKind, RequestRecord
from oscar.state.direct import Direct
from oscar.state.requests import insert_requests
from oscar.state.secrets import Sealer
from oscar.state.store import now_ms
from oscar.state.tables import jobs

CALLBACK_PURPOSE = "jobs.callback"
_ACCEPTED = 201
_SEALED = "callback_sealed"
_GIVEN = (
    *("id", "service_id", "service_name", "owner", "user", "kind"),
    *("hops", "payload", "payload_ref", "event_key", "trace"),
)
_COLUMNS = [column.name for column in jobs.c]


def _insert(insert: Any) -> Direct:
    values = {name: sa.bindparam(name, type_=jobs.c[name].type) for name in (*_GIVEN, _SEALED)}
    times = {name: now_ms() for name in ("created", "next_try", "updated")}
    statement = insert(jobs).values({**values, **times, "state": sa.literal_column("'queued'")})
    return Direct(statement.on_conflict_do_nothing().returning(*jobs.c))


_INSERT = {"sqlite": _insert(sqlite.insert), "postgresql": _insert(postgresql.insert)}


def insert_jobs(connection: sa.Connection, new: Sequence[NewJob], sealer: Sealer) -> list[Job]:
    """Enqueue jobs in the caller's transaction, each with the record of the request that made it.

    Returns:
        Those that were inserted; one whose event key, or id, is known already is left out.
    """
    statement = _INSERT[connection.dialect.name]
    inserted = []
    for job in new:
        sealed = sealer.seal(job.callback.encode(), CALLBACK_PURPOSE) if job.callback else None
        rows = statement.rows(connection, {name: getattr(job, name) for name in _GIVEN} | {_SEALED: sealed})
        inserted += [plain_job(row) for row in rows]
    ids = {job.id for job in inserted}
    insert_requests(connection, [_request(job, job.origin) for job in new if job.origin and job.id in ids])
    return inserted


def _request(job: NewJob, origin: Origin) -> RequestRecord:
    return RequestRecord(
        time=0,
        kind=RequestKind.ASYNC,
        service_id=job.service_id,
        service=job.service_name,
        owner=job.owner,
        user=job.user,
        status=_ACCEPTED,
        duration=0,
        origin=origin,
    )


def to_job(row: Any) -> Job:
    """A row of `jobs`, its payload only if that was asked for."""
    return _job(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


def plain_job(row: Sequence[Any]) -> Job:
    """All columns of `jobs`, in their order."""
    return _job(dict(zip(_COLUMNS, row, strict=True)))


def _job(values: Mapping[str, Any]) -> Job:
    return Job(
        id=values["id"],
        service_id=values["service_id"],
        service_name=values["service_name"],
        owner=values["owner"],
        user=values["user"],
        kind=values["kind"],
        state=JobState(values["state"]),
        reason=values["reason"],
        message=values["message"],
        attempt=values["attempt"],
        script_failures=values["script_failures"],
        our_failures=values["our_failures"],
        exit_code=values["exit_code"],
        hops=values["hops"],
        payload=values.get("payload"),
        payload_ref=values["payload_ref"],
        event_key=values["event_key"],
        cancel_requested=bool(values["cancel_requested"]),
        lease_token=values["lease_token"],
        place=values["place"],
        trace=values["trace"],
        created=values["created"],
        next_try=values["next_try"],
        started=values["started"],
        finished=values["finished"],
        updated=values["updated"],
    )
