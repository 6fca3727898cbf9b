"""Events that a store of its own reports: from a call of MinIO's webhook to jobs.

Called by `api.events` and, for what was not reported, by `core.sweep`. Routing is by our own table: MinIO has one rule
a bucket and knows no service. Whatever is recorded is answered 200, because MinIO would send anything else again and
again, and everything behind it would wait.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from oscar import telemetry, tracing
from oscar.auth.rules import may_administer
from oscar.core import traces
from oscar.core.events import new_id
from oscar.core.jobs import rfc3339
from oscar.core.platform import Platform
from oscar.errors import BadRequest, Forbidden, NotEnabled, Unauthorized
from oscar.model.event import EventKind, decode, event_key, hops, matches, split
from oscar.model.job import FINAL, Job, NewJob
from oscar.model.record import Record, is_written, producer, producer_key, trace, written_at, written_key
from oscar.model.request import Origin
from oscar.model.user import ADMIN, Caller
from oscar.state.events import Input, Rejected, Wanted

log = telemetry.get("events")

LIMIT = 1024 * 1024
"""Bytes of a report; MinIO's have some thousand."""
PAST_S = 30 * 24 * 3600.0
"""Seconds that the key of an event is kept whose job is gone."""
_LATE_MS = 600_000
"""So much later than its job's end an output of it may have been written, as far as clocks tell."""


@dataclass(frozen=True, slots=True)
class Written:
    """An object that was written, however we came to know of it."""

    bucket: str
    key: str
    payload: bytes = field(repr=False)
    """The event as the function gets it."""
    user: str | None = None
    """Who wrote it; None when that is not known."""
    address: str = ""
    hops: int = 0
    job: str = ""
    """The job whose output it is."""
    trace: str = ""
    """The span of the job at another cluster whose output it is."""
    modified: int | None = None
    """When it was written, as a listing shows it; None when that is not known."""
    record: Record | None = None


def authorize(p: Platform, authorization: str | None) -> None:
    """Let MinIO in.

    Raises:
        NotEnabled: the platform's own store tells of its objects itself.
        Unauthorized: the token is not that of this installation.
    """
    scheme, _, token = (authorization or "").partition(" ")
    # All are compared, whatever the result of the first.
    right = [hmac.compare_digest(token.strip().encode(), known.encode()) for known in p.events_tokens]
    if scheme.lower() != "bearer" or not any(right):
        raise Unauthorized(
            "This is not the token of this installation's webhook",
            fix="start MinIO with the environment that `oscar minio-environment` prints",
            headers={"WWW-Authenticate": "Bearer"},
        )
    if p.upkeep is None:
        raise NotEnabled("The built-in store needs no webhook", fix="set OSCAR_STORE=minio to use a MinIO")


async def accept(p: Platform, body: bytes) -> int:
    """Make jobs of a report, or record why not; durable on return.

    Args:
        p: the platform.
        body: as MinIO sent it.

    Returns:
        How many jobs it made.

    Raises:
        Unavailable: nothing was recorded; MinIO keeps the event and sends it again.
    """
    try:
        parts = _parts(body)
    except BadRequest as error:
        return await reject(p, error.message, body)
    wanted: list[Wanted] = []
    rejected: list[Rejected] = []
    for record, payload in parts:
        if not is_written(record):
            continue
        inputs = await p.events.inputs(record.bucket)
        if not inputs:
            # Its rule in MinIO goes with the last service; what was on its way then comes here.
            reason = f'No service has an input in the bucket "{record.bucket}"'
            rejected.append(Rejected(reason, payload, record.bucket, record.key))
        elif listening := [each for each in inputs if matches(each.listener.prefix, record.key)]:
            wanted += await jobs_of(p, await _written(p, record, payload), listening)
    made = await p.events.record(wanted, rejected) if wanted or rejected else 0
    if made:
        p.signals.work.set()
    return made


async def reject(p: Platform, reason: str, body: bytes = b"") -> int:
    """Record a report that can't be read; no job."""
    log.warning("a report that can't be read", reason=reason)
    return await p.events.record([], [Rejected(reason, body)])


def _parts(body: bytes) -> list[tuple[Record, bytes]]:
    """The records of a report, each with its own event.

    Raises:
        BadRequest: it is none.
    """
    event = decode(body)
    if event.kind not in {EventKind.MINIO, EventKind.S3} or event.envelopes or not event.records:
        raise BadRequest("This is not a report of an object store")
    return [(part.records[0], part.payload) for part in split(event)]


async def _written(p: Platform, record: Record, payload: bytes) -> Written:
    assert p.upkeep is not None  # noqa: S101 - for the type checker: `authorize` asked
    job = producer(record)
    user = await p.upkeep.user_of(record.principal) if record.principal else None
    if user == ADMIN and (job or hops(record)):
        # The platform stages out with its administrator's keys; what it writes is the bucket owner's.
        user = None
    return Written(
        bucket=record.bucket,
        key=record.key,
        payload=payload,
        user=user,
        address=record.source_ip,
        hops=hops(record),
        job=job,
        trace=trace(record),
        modified=written_at(record),
        record=record,
    )


async def jobs_of(p: Platform, written: Written, listening: Sequence[Input]) -> list[Wanted]:
    """The jobs that an object starts: one for each service that listens on its folder."""
    user = written.user
    if user is None:
        bucket = await p.buckets.bucket(written.bucket)
        user = bucket.owner if bucket else ""
    by_job = await _written_by(p, written)
    cause = traces.of_job(by_job) or None if by_job else traces.carried(written.trace) or tracing.cause()
    origin = Origin("s3", written.address, p.recorder.country_of(written.address))
    found = {}
    for each in listening:
        listener = each.listener
        job = NewJob(
            id=new_id(listener.service_name),
            service_id=listener.service_id,
            service_name=listener.service_name,
            owner=listener.owner,
            user=user or listener.owner,
            kind="event",
            payload=written.payload,
            event_key=_key(listener.service_id, written),
            hops=written.hops,
            origin=origin,
            trace=cause,
        )
        claim = (
            producer_key(listener.service_id, written.bucket, written.key, written.job) if by_job else None
        )
        found[listener.service_id] = Wanted(job, claim)
    return list(found.values())


def _key(service_id: str, written: Written) -> str | None:
    if written.modified is not None:
        return written_key(service_id, written.bucket, written.key, written.modified)
    return event_key(service_id, written.record) if written.record else None


async def _written_by(p: Platform, written: Written) -> Job | None:
    """The job that its metadata name, if that stored the object.

    Only while that job can have been staging out: who copies an output later, metadata and all, writes anew.
    """
    job = await p.jobs.get(written.job) if written.job else None
    if job is None or job.state not in FINAL or job.finished is None or written.modified is None:
        return job
    return job if written.modified <= job.finished + _LATE_MS else None


async def rejected(p: Platform, caller: Caller, *, limit: int, page: str | None) -> dict[str, Any]:
    """A page of the reports of which no job could be made, newest first.

    Raises:
        Forbidden: only for administrators. BadRequest: there is no such page.
    """
    if not may_administer(caller):
        raise Forbidden("Only an administrator may read the events that were rejected")
    if page is not None and not (page.isascii() and page.isdigit() and len(page) < 19):  # noqa: PLR2004 - 64 bits
        raise BadRequest(
            "That page does not exist", field="page", fix="use next_page of the page before as it is"
        )
    found = await p.events.rejected(limit=limit, before=int(page) if page else None)
    answer: dict[str, Any] = {"events": list(map(_described, found))}
    if len(found) == limit:
        answer["next_page"] = str(found[-1].id)
    return answer


def _described(event: Rejected) -> dict[str, Any]:
    return {
        "time": rfc3339(event.time),
        "reason": event.reason,
        "bucket": event.bucket,
        "key": event.key,
        "size": event.size,
        "body": event.body.decode(errors="replace"),
    }


async def prune(p: Platform) -> None:
    """Forget events that are old enough."""
    while await p.events.prune(rejected=p.settings.rejected_ttl, past=PAST_S):
        pass


def distinct(inputs: Iterable[Input]) -> dict[tuple[str, str], list[Input]]:
    """Inputs by their folders: bucket and prefix."""
    found: dict[tuple[str, str], list[Input]] = {}
    for each in inputs:
        found.setdefault((each.listener.bucket, each.listener.prefix), []).append(each)
    return found
