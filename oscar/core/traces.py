"""The spans of jobs: what their rows and the engine's words make of them.

Called by the dispatcher, the delegator and `core.jobs` when something has ended; `oscar.tracing` sends what they give.
Pure but for that.

    upload or POST /job
      job                       from its acceptance to its end
        queue                   until an attempt is begun, here or at a member
        stage-in, run, stage-out    of an attempt
        delegation              from the choice of a member to its last word; the member's `POST /job` is below it
"""

from __future__ import annotations

import time

from oscar import tracing
from oscar.compute.base import RunState
from oscar.model.job import Job, JobState
from oscar.model.trace import Place
from oscar.state.delegations import Delegation
from oscar.tracing import Kind, Span

_FAILED = {JobState.FAILED, JobState.DEAD, JobState.INTERRUPTED}


def of_job(job: Job) -> str:
    """The job's own span, as what it causes keeps it; "" when no traces are told."""
    return tracing.job_place(job.id, job.trace)[0].text() if tracing.enabled() else ""


def carried(text: str) -> str | None:
    """A span that came with an object, if it is one and traces are told."""
    place = Place.kept(text) if tracing.enabled() else None
    return place.text() if place else None


def taken(job: Job) -> None:
    """An attempt was begun, or a delegation: it does not wait any more."""
    if tracing.enabled():
        tracing.tell(_below(job, "queue", job.next_try, job.updated))


def attempted(job: Job, state: RunState) -> None:
    """An attempt has ended."""
    if tracing.enabled():
        tracing.tell(*spans(job, state))


def spans(job: Job, state: RunState) -> list[Span]:
    """Those of an attempt that has ended; parts whose times are not known are left out."""
    failed = (state.message or state.trouble.value) if state.trouble else None
    started, finished = state.started, state.finished
    if started is None:
        # It came to nothing before the script.
        end = finished if finished is not None else job.updated
        return [_below(job, "stage-in", job.updated, end, problem=failed)] if failed else []
    # After a restart `updated` is when the row was last changed, which may be later than this.
    found = [_below(job, "stage-in", job.updated, started)] if job.updated <= started else []
    ended = state.ended if state.ended is not None else finished
    if ended is None:
        return found
    wrong = failed if state.exit_code != 0 else None
    found.append(_below(job, "run", started, ended, problem=wrong, exit_code=state.exit_code))
    if wrong is None and finished is not None:
        found.append(_below(job, "stage-out", ended, finished, problem=failed))
    return found


def ended(job: Job, state: JobState, *, message: str | None) -> None:
    """A job has come to its end, now."""
    if not tracing.enabled():
        return
    place, parent = tracing.job_place(job.id, job.trace)
    tracing.tell(
        Span(
            "job",
            place,
            parent,
            job.created,
            time.time() * 1000,
            attributes=_facts(job) | {"oscar.state": state.value},
            problem=(message or state.value) if state in _FAILED else None,
        )
    )


def delegation(job: Job, rounds: int) -> Place:
    """The span of a delegation, before it has ended; rounds: how often members were tried in vain before."""
    return tracing.job_place(job.id, job.trace)[0].child("delegation", job.id, rounds)


def delegated(job: Job, place: Place, row: Delegation, *, problem: str | None) -> None:
    """A delegation has ended: the job has, or it is back in the queue."""
    if not tracing.enabled():
        return
    facts = _facts(job)
    if row.member:
        member = row.member.get("url") or row.cluster_id
        facts |= {"oscar.member": member, "oscar.policy": row.policy, "oscar.reason": row.reason}
    parent = tracing.job_place(job.id, job.trace)[0]
    now = time.time() * 1000
    tracing.tell(
        Span("delegation", place, parent, job.updated, now, Kind.CLIENT, attributes=facts, problem=problem)
    )


def _below(
    job: Job, name: str, start: float, end: float, *, problem: str | None = None, exit_code: int | None = None
) -> Span:
    parent = tracing.job_place(job.id, job.trace)[0]
    facts = _facts(job) | {"oscar.attempt": job.attempt}
    if exit_code is not None:
        facts |= {"oscar.exit_code": exit_code}
    return Span(name, parent.child(), parent, start, end, attributes=facts, problem=problem)


def _facts(job: Job) -> dict[str, str | int]:
    return {"oscar.job": job.id, "oscar.service": job.service_name, "oscar.kind": job.kind}
