"""Jobs: accept, look up, wait, cancel, run again, delete, logs.

Called by `api.jobs`. Calls `core.services`, `state.jobs` and the engine's logs; the dispatcher does the rest.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from oscar import tracing
from oscar.auth.rules import Action, may_run, require_user, runs_of
from oscar.compute.base import LogLine
from oscar.core import callbacks, quotas, remote, services, traces
from oscar.core.events import new_id
from oscar.core.members import check_address
from oscar.core.platform import Known, Platform
from oscar.core.requests import Incoming
from oscar.errors import BadRequest, BodyTooLarge, Conflict, Forbidden, JobNotFound, RunNotFound
from oscar.model.event import decode, hops, is_premature, split
from oscar.model.federation import Topology
from oscar.model.job import ACTIVE, FINAL, REMOTE, ApiStatus, Job, JobState, NewJob, run_name
from oscar.model.request import Origin
from oscar.model.user import Caller
from oscar.state.delegations import Delegation

INLINE_PAYLOAD = 64 * 1024
"""Bytes of a body that still go into the job's row."""

LONGEST_WAIT = 300.0
_LARGE = 1024 * 1024
_JOB_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,70}[A-Za-z0-9])?")
_WAIT = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}


@dataclass(frozen=True, slots=True)
class Accepted:
    """What `POST /job` answers: the jobs that the body made."""

    jobs: list[Job]
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Delegated:
    """What a cluster says that gives a job away."""

    job_id: str
    origin: str = ""
    hops: int = 0

    def __post_init__(self) -> None:
        check_id(self.job_id, field="X-Delegated-Job-ID")

    def id_of(self, index: int) -> str:
        """The id of the job of one of the event's objects."""
        return f"{self.job_id}-{index}" if index else self.job_id


def check_id(text: str, *, field: str) -> None:
    """Refuse what is no id of a job, for who is told of one by another cluster.

    Raises:
        BadRequest: naming the field.
    """
    if not _JOB_ID.fullmatch(text):
        raise BadRequest(
            f'"{text[:100]}" is not the id of a job',
            field=field,
            fix='use at most 72 letters, digits and "-"',
        )


async def accept(
    p: Platform,
    caller: Caller,
    name: str,
    body: bytes,
    *,
    incoming: Incoming,
    owner: str | None = None,
    idempotency_key: str | None = None,
    callback: str | None = None,
    delegated: Delegated | None = None,
) -> Accepted:
    """Make jobs of a body: one, or one for each record of a storage event. Durable on return.

    Args:
        p: the platform.
        caller: who calls.
        name: the service's name.
        body: the event, at most the settings' limit.
        incoming: where it comes from, for the record.
        owner: chooses between services of the same name.
        idempotency_key: the same key for the same service gives the same job again.
        callback: URL that is told when the job has ended.
        delegated: another cluster gives its job away: its id is kept, and again is the same job.

    Raises:
        BadRequest (400), BodyTooLarge (413), ServiceNotFound (404), Forbidden (403), StorageFull (507).
    """
    known = await services.find(p, caller, name, action=Action.CALL, owner=owner)
    if len(body) > p.settings.body_limit:
        raise BodyTooLarge(
            f"The body has {len(body)} bytes, the limit is {p.settings.body_limit}",
            field="body",
            fix=f"upload it to the input bucket of the service instead, or raise OSCAR_MAX_BODY_MB "
            f"(now {p.settings.max_body})",
        )
    event = decode(body) if len(body) <= _LARGE else await asyncio.to_thread(decode, body)
    services.check_private(caller, known.service, event)
    if event.access:
        check_address(p.settings, event.access, field="access")
    if callback:
        await callbacks.check(p.settings, callback)
    parts = [part for part in split(event) if not all(is_premature(record) for record in part.records)]
    if event.records and not parts:
        incoming.repeated = True
        return Accepted([])
    p.payloads.check_space(len(body))
    if not event.records:
        parts = [event]
    seed = None
    if delegated:
        seed = f"delegated:{known.row.id}:{delegated.job_id}"
    elif idempotency_key:
        seed = hashlib.sha256(json.dumps([known.row.id, caller.id, idempotency_key]).encode()).hexdigest()
    origin = p.recorder.origin(incoming)
    new = [
        await _new_job(
            p,
            known,
            payload=part.payload,
            user=caller.id,
            kind="api" if delegated is None and event.provider is None else "delegated",
            hop_count=max(delegated.hops if delegated else 0, *(hops(record) for record in part.records), 0),
            job_id=delegated.id_of(index) if delegated else None,
            event_key=f"{seed}-{index}" if seed else None,
            callback=callback,
            # One request, however many records its event has.
            origin=origin if index == 0 else None,
        )
        for index, part in enumerate(parts)
    ]
    # Its id says nothing then: the same one stands in both rows.
    again = delegated is not None and await p.jobs.get(delegated.job_id) is not None
    jobs = await p.jobs.accept(new)
    # Without a topology there would be none to follow the job with: there accounts of clusters count.
    if caller.bearer and known.service.delegates_to and known.service.topology is not Topology.NONE:
        for job in jobs:
            p.tokens.lend(job.id, caller.bearer)
    p.signals.work.set()
    repeated = again or [job.id for job in jobs] != [job.id for job in new]
    if repeated:
        incoming.repeated = True
        kept = {job.payload_ref for job in jobs}
        await _remove_payloads(p, [job for job in new if job.payload_ref not in kept])
    return Accepted(jobs, repeated)


async def _new_job(
    p: Platform,
    known: Known,
    *,
    payload: bytes,
    user: str,
    kind: str,
    hop_count: int,
    job_id: str | None = None,
    event_key: str | None = None,
    callback: str | None = None,
    origin: Origin | None = None,
) -> NewJob:
    small = len(payload) <= INLINE_PAYLOAD
    return NewJob(
        id=job_id or new_id(known.row.name),
        service_id=known.row.id,
        service_name=known.row.name,
        owner=known.row.owner,
        user=user,
        kind=kind,
        payload=payload if small else None,
        payload_ref=None if small else await asyncio.to_thread(p.payloads.write, payload),
        event_key=event_key,
        hops=hop_count,
        callback=callback,
        origin=origin,
        trace=tracing.cause(),
    )


async def _remove_payloads(p: Platform, jobs: Iterable[NewJob | Job]) -> None:
    for job in jobs:
        if job.payload_ref:
            await asyncio.to_thread(p.payloads.remove, job.payload_ref)


async def find(p: Platform, caller: Caller, name: str, job_id: str, *, owner: str | None = None) -> Job:
    """A job of a service, for who may see it: who caused it, or an administrator; see `auth.rules`.

    Raises:
        ServiceNotFound, JobNotFound.
    """
    return (await _find(p, caller, name, job_id, owner))[1]


async def _find(p: Platform, caller: Caller, name: str, job_id: str, owner: str | None) -> tuple[Known, Job]:
    known = await services.find(p, caller, name, action=Action.CALL, owner=owner)
    job = await p.jobs.get(job_id)
    if (
        job is None
        or job.service_id != known.row.id
        or not may_run(caller, Action.SEE, service=known.thing, user=job.user)
    ):
        raise JobNotFound(
            f'The service "{name}" has no job "{job_id}", or you may not see it', field="jobName"
        )
    return known, job


async def wait(
    p: Platform, caller: Caller, name: str, job_id: str, *, seconds: float, owner: str | None = None
) -> Job:
    """The job as soon as it has ended, or as it is after so many seconds (at most `LONGEST_WAIT`)."""
    event = p.signals.watch(job_id)
    try:
        job = await find(p, caller, name, job_id, owner=owner)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(seconds, LONGEST_WAIT)
        while job.state not in FINAL and (left := deadline - loop.time()) > 0:
            # Another server may settle it, which no event of ours tells: look again now and then.
            await _heard(event, min(left, 2.0))
            job = await find(p, caller, name, job_id, owner=owner)
        return job
    finally:
        p.signals.unwatch(job_id, event)


def seconds_of(text: str) -> float:
    """A duration of a query, `30s`, `500ms`, `2m` or plain seconds.

    Raises:
        BadRequest: it is none.
    """
    match = _WAIT.fullmatch(text.strip())
    if not match:
        raise BadRequest(f'"{text}" is not a duration', field="wait", fix="write it as 30s, 500ms or 2m")
    return float(match[1]) * _UNITS[match[2]]


async def cancel(p: Platform, caller: Caller, name: str, job_id: str, *, owner: str | None = None) -> Job:
    """Ask for a job's end: a waiting one is cancelled at once.

    Raises:
        JobNotFound; Conflict: it has ended already.
    """
    job = await find(p, caller, name, job_id, owner=owner)
    if job.state in FINAL:
        raise Conflict(f"The job has ended already ({job.api_status})")
    job = await p.jobs.request_cancel(job_id)
    p.signals.work.set()
    if job.state in FINAL:
        traces.ended(job, job.state, message=job.message)
        p.signals.ended(job_id)
    return job


async def rerun(p: Platform, caller: Caller, name: str, job_id: str, *, owner: str | None = None) -> Job:
    """Run a finished job's event again, as a new job.

    Raises:
        JobNotFound; Conflict: it has not ended yet.
    """
    known, old = await _find(p, caller, name, job_id, owner)
    if old.state not in FINAL:
        raise Conflict("The job has not ended yet", fix="cancel it first, or wait")
    payload = await payload_of(p, old)
    new = await _new_job(p, known, payload=payload, user=caller.id, kind="rerun", hop_count=old.hops)
    [job] = await p.jobs.accept([new])
    p.signals.work.set()
    return job


async def payload_of(p: Platform, job: Job) -> bytes:
    """The body of a job's event."""
    if job.payload_ref:
        return await asyncio.to_thread(p.payloads.read, job.payload_ref)
    return job.payload or b""


async def page(
    p: Platform, caller: Caller, name: str, *, page: str | None, owner: str | None = None
) -> dict[str, Any]:
    """A page of a service's jobs in the shape of the API: `jobs`, `next_page`, `remaining_jobs`."""
    known = await services.find(p, caller, name, action=Action.CALL, owner=owner)
    found = await p.jobs.page(
        known.row.id,
        user=runs_of(caller),
        after=_place(page) if page else None,
        limit=p.settings.job_listing_limit,
    )
    held = await _held(p, known, found.jobs)
    answer: dict[str, Any] = {"jobs": {job.id: info(job, held=held) for job in found.jobs}}
    if found.next:
        answer["next_page"] = _page_token(found.next)
    answer["remaining_jobs"] = found.remaining
    return answer


def _page_token(place: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _place(token: str) -> tuple[int, str]:
    try:
        created, job_id = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError, TypeError):
        created, job_id = None, None
    if (
        not isinstance(created, int)
        or isinstance(created, bool)
        or not isinstance(job_id, str)
        or abs(created) >> 62
    ):
        raise BadRequest(
            "That page does not exist", field="page", fix="use next_page of the page before as it is"
        )
    return created, job_id


def info(job: Job, *, held: bool = False) -> dict[str, Any]:
    """A job as a list shows it: `types.JobInfo` of the API.

    Args:
        job: the job.
        held: jobs of its service that wait have to wait for room in their owner's quota.
    """
    times = {"creation_time": job.created, "start_time": job.started, "finish_time": job.finished}
    status = ApiStatus.SUSPENDED if held and job.state is JobState.QUEUED else job.api_status
    return {"status": status.value} | {
        name: rfc3339(value) for name, value in times.items() if value is not None
    }


async def details(p: Platform, job: Job) -> dict[str, Any]:
    """A job as `GET /system/jobs/{service}/{job}` shows it."""
    known = await services.by_id(p, job.service_id) if job.state is JobState.QUEUED else None
    given = await p.delegations.get(job.id)
    return {
        "job_id": job.id,
        "service": job.service_name,
        **info(job, held=known is not None and await _held(p, known, [job])),
        "state": job.state.value,
        "kind": job.kind,
        "attempt": job.attempt,
        "exit_code": job.exit_code,
        "reason": job.reason,
        "message": job.message,
        "user": job.user,
        **({"delegation": _given(given)} if given else {}),
    }


def _given(row: Delegation) -> dict[str, Any]:
    """Which member a job went to, and why; or why to none."""
    shown = {
        **row.member,
        "policy": row.policy,
        "reason": row.reason,
        "remote_state": row.remote_state,
        "problem": row.problem,
        "heard": rfc3339(row.heard) if row.heard else None,
    }
    if row.access is None and not row.remote_state:
        # Nobody has it: what stands there is the member that was tried last.
        shown = {"tried": dict(row.member), "problem": row.problem, "rounds": row.rounds}
    return {name: value for name, value in shown.items() if value not in (None, "", {})}


async def _held(p: Platform, known: Known, jobs: Iterable[Job]) -> bool:
    if not any(job.state is JobState.QUEUED for job in jobs):
        return False
    return await quotas.holds_back(p, known.service)


def rfc3339(milliseconds: int) -> str:
    """A time of the Store as the API writes it."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"


async def delete(p: Platform, caller: Caller, name: str, job_id: str, *, owner: str | None = None) -> None:
    """Remove a job with its log; an active one is cancelled first and waited for.

    Raises:
        JobNotFound; Forbidden: it is somebody else's.
    """
    known, job = await _find(p, caller, name, job_id, owner)
    if not may_run(caller, Action.CHANGE, service=known.thing, user=job.user):
        raise Forbidden("Only who caused a job or an administrator may delete it")
    await remove(p, [await _end(p, job)])


async def delete_all(
    p: Platform, caller: Caller, name: str, *, everything: bool, owner: str | None = None
) -> None:
    """Remove the caller's succeeded jobs of a service, or with `everything` all his, active ones being cancelled.

    An administrator removes everybody's.
    """
    known = await services.find(p, caller, name, action=Action.CALL, owner=owner)
    require_user(caller)
    user = runs_of(caller)
    if everything:
        for job_id in await p.jobs.ids(known.row.id, states=[JobState.QUEUED, *ACTIVE, *REMOTE], user=user):
            job = await p.jobs.get(job_id)
            if job:
                await _end(p, job)
    states = FINAL if everything else [JobState.SUCCEEDED]
    await remove(p, await p.jobs.ids(known.row.id, states=states, user=user))


async def _end(p: Platform, job: Job) -> str:
    if job.state not in FINAL:
        event = p.signals.watch(job.id)
        try:
            ended: Job | None = await p.jobs.request_cancel(job.id)
            p.signals.work.set()
            while ended is not None and ended.state not in FINAL:
                if not await _heard(event, 2.0):
                    p.signals.work.set()
                ended = await p.jobs.get(job.id)
        finally:
            p.signals.unwatch(job.id, event)
    return job.id


async def remove(p: Platform, job_ids: list[str]) -> None:
    """Remove finished jobs, their logs and bodies."""
    for start in range(0, len(job_ids), 200):
        removed = await p.jobs.delete(job_ids[start : start + 200])
        for job in removed:
            for attempt in range(1, job.attempt + 1):
                await p.compute.drop_logs(run_name(job.id, attempt))
        await _remove_payloads(p, removed)


async def logs(
    p: Platform,
    job: Job,
    *,
    follow: bool = False,
    tail: int | None = None,
    ask: Callable[[Job], AsyncIterator[LogLine]] | None = None,
) -> AsyncIterator[LogLine]:
    """The job's log, all its attempts in a row; with `follow` until the job has ended.

    That of a delegated job is on its member; what ran at another of our servers is there.

    Args:
        p: the platform.
        job: the job.
        follow: go on until its end, wherever it is started meanwhile.
        tail: only so many lines.
        ask: asks the server where the job is for its lines; without it those are left out.
    """
    attempt = 1
    while True:
        if (member := await _elsewhere(p, job)) is not None:
            with contextlib.suppress(RunNotFound):
                async for line in remote.Remote(p).logs(*member, job, follow=follow, tail=tail):
                    yield line
            return
        while attempt <= job.attempt:
            latest = attempt == job.attempt
            here = not latest or p.is_place_of(job)
            try:
                # Of many attempts only the last has a tail worth the name.
                if here and (tail is None or latest):
                    run = run_name(job.id, attempt)
                    async for line in p.compute.logs(run, follow=follow and latest, tail=tail):
                        yield line
                elif not here and ask is not None:
                    async for line in ask(job):
                        yield line
            except RunNotFound:
                if follow and latest and job.state not in FINAL:
                    break
            attempt += 1
        if not follow:
            return
        fresh = await p.jobs.get(job.id)
        if fresh is None or (fresh.state in FINAL and attempt > fresh.attempt):
            return
        if fresh.attempt == job.attempt and fresh.state not in FINAL:
            # A run that the engine doesn't know yet will be there in a moment.
            await _news(p, fresh, 0.5 if attempt > fresh.attempt else 0.2)
            fresh = await p.jobs.get(job.id) or fresh
        job = fresh


async def _elsewhere(p: Platform, job: Job) -> tuple[remote.Target, Known] | None:
    """The member that has the job, or had it to its end, with the service here; None when it runs here."""
    if job.state is not JobState.DELEGATED and job.state not in FINAL:
        return None
    given = await p.delegations.get(job.id)
    if given is None or given.access is None or given.member.get("type") != "oscar":
        return None
    known = await services.by_id(p, job.service_id)
    return (remote.Target.read(given.access), known) if known else None


async def _news(p: Platform, job: Job, seconds: float) -> None:
    event = p.signals.watch(job.id)
    try:
        await _heard(event, seconds)
    finally:
        p.signals.unwatch(job.id, event)


async def _heard(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event came in time."""
    # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with the event.
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
