"""Jobs: their states, the transitions between them, retries. The one place that knows them.

Called by `state.jobs`, `core.jobs` and `core.dispatcher`. Pure. The diagram is in `docs/jobs.md`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from oscar.model.request import Origin
from oscar.model.trouble import Trouble


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    RUNNING = "running"
    SETTLING = "settling"
    DELEGATING = "delegating"
    DELEGATED = "delegated"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"
    INTERRUPTED = "interrupted"


HELD = "held"
"""The reason of a submitted job that a quota of the engine's holds back."""

ACTIVE = frozenset({JobState.SUBMITTING, JobState.SUBMITTED, JobState.RUNNING, JobState.SETTLING})
"""States in which an attempt holds a lease and the engine may know it."""

REMOTE = frozenset({JobState.DELEGATING, JobState.DELEGATED})
"""States of a job that another cluster is asked to run, or runs; leased as well, no engine here knows it."""

FINAL = frozenset(
    {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.DEAD, JobState.INTERRUPTED}
)

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.SUBMITTING, JobState.DELEGATING, JobState.CANCELLED, JobState.DEAD}),
    JobState.SUBMITTING: frozenset(
        {
            JobState.SUBMITTED,
            JobState.RUNNING,
            JobState.SETTLING,
            JobState.QUEUED,
            JobState.DELEGATING,
        }
    )
    | FINAL,
    JobState.SUBMITTED: frozenset({JobState.RUNNING, JobState.SETTLING, JobState.QUEUED}) | FINAL,
    JobState.RUNNING: frozenset({JobState.SETTLING, JobState.QUEUED}) | FINAL,
    JobState.SETTLING: frozenset({JobState.QUEUED}) | FINAL,
    JobState.DELEGATING: frozenset({JobState.DELEGATED, JobState.QUEUED}) | FINAL,
    JobState.DELEGATED: frozenset({JobState.QUEUED}) | FINAL,
    **{state: frozenset() for state in FINAL},
}
"""From each state, the states that may follow. A re-run is a new job, so final states are final."""


class ApiStatus(StrEnum):
    """A job's status in the words of the REST API of OSCAR."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


def api_status(state: JobState) -> ApiStatus:
    """The API's word for a state; submitted jobs wait for the engine and so are Pending."""
    if state is JobState.SUCCEEDED:
        return ApiStatus.SUCCEEDED
    if state in FINAL:
        return ApiStatus.FAILED
    if state in {JobState.RUNNING, JobState.SETTLING}:
        return ApiStatus.RUNNING
    return ApiStatus.PENDING


OUR_RETRIES = 3
"""Retries after trouble of ours, whatever the service says."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a job is tried again. Times in seconds.

    `attempts` counts retries after a failing script or a timeout (0: none), `interrupted` allows a second run
    after an unknown outcome. Trouble of ours is always retried `OUR_RETRIES` times.
    """

    attempts: int = 0
    delay: float = 10.0
    max_delay: float = 300.0
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a job after an attempt: its state and, when queued again, the delay in seconds."""

    state: JobState
    delay: float = 0.0


def judge(
    trouble: Trouble | None, *, policy: RetryPolicy, script_failures: int, our_failures: int
) -> Verdict:
    """What follows from an attempt's end.

    Args:
        trouble: None when it succeeded.
        policy: the service's retry policy.
        script_failures: failed or timed out or lost attempts of this job, this one included.
        our_failures: attempts of this job that ended by trouble of ours, this one included.
    """
    match trouble:
        case None:
            return Verdict(JobState.SUCCEEDED)
        case Trouble.CANCELLED:
            return Verdict(JobState.CANCELLED)
        case Trouble.REFUSED | Trouble.QUOTA:
            return Verdict(JobState.DEAD)
        case Trouble.OUR:
            if our_failures <= OUR_RETRIES:
                return Verdict(JobState.QUEUED, backoff(our_failures, policy))
            return Verdict(JobState.DEAD)
        case Trouble.LOST:
            if policy.interrupted and script_failures <= max(1, policy.attempts):
                return Verdict(JobState.QUEUED, backoff(script_failures, policy))
            return Verdict(JobState.INTERRUPTED)
        case Trouble.SCRIPT | Trouble.TIMEOUT:
            if script_failures <= policy.attempts:
                return Verdict(JobState.QUEUED, backoff(script_failures, policy))
            # With a retry policy the queue gave up (dead letter); without one the script just failed.
            return Verdict(JobState.DEAD if policy.attempts else JobState.FAILED)


def backoff(failures: int, policy: RetryPolicy) -> float:
    """Seconds to wait after the nth failure: doubling from `delay` up to `max_delay`, with 20 % jitter."""
    exponent = min(max(failures, 1) - 1, 32)
    base: float = min(policy.delay * 2.0**exponent, policy.max_delay)
    return base * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret


MAX_HOPS = 16
"""Functions that may trigger one another in a row before a job is refused as a loop."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job about to be accepted; `event_key` is set only for sources that can repeat themselves."""

    id: str
    service_id: str
    service_name: str
    owner: str
    """Owner of the service."""
    user: str
    """Who caused it: uploader, caller, or owner of the token. Decides who sees it."""
    kind: str
    """`event` (a stored object), `api` (POST /job), `delegated` (another cluster's job), `rerun`."""
    payload: bytes | None
    payload_ref: str | None = None
    """Name of a body in the payload folder, for payloads over the inline limit."""
    event_key: str | None = None
    hops: int = 0
    callback: str | None = None
    origin: Origin | None = None
    """Leaves a record of the request; None for what is no new request (a rerun)."""
    trace: str | None = None
    """The span that caused it (`model.trace.Place.text`); None when no traces are told."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the store has it. Times are Unix milliseconds of the database's clock."""

    id: str
    service_id: str
    service_name: str
    owner: str
    user: str
    kind: str
    state: JobState
    reason: str | None
    message: str | None
    attempt: int
    script_failures: int
    our_failures: int
    exit_code: int | None
    hops: int
    payload: bytes | None
    payload_ref: str | None
    event_key: str | None
    cancel_requested: bool
    lease_token: str | None
    created: int
    next_try: int
    started: int | None
    finished: int | None
    updated: int
    place: str = ""
    """The machine that the present attempt is bound to; "" for none."""
    trace: str | None = None
    """The span that caused it, in the same way."""

    @property
    def run_name(self) -> str:
        """The engine's name of the present attempt."""
        return run_name(self.id, self.attempt)

    @property
    def api_status(self) -> ApiStatus:
        """The status in the API's words."""
        if self.state is JobState.SUBMITTED and self.reason == HELD:
            return ApiStatus.SUSPENDED
        if self.state is JobState.DELEGATED and self.started is not None:
            return ApiStatus.RUNNING
        return api_status(self.state)


def run_name(job_id: str, attempt: int) -> str:
    """The name under which an engine knows an attempt: `<job>-<attempt>`."""
    return f"{job_id}-{attempt}"
