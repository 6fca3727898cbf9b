"""Delegation: jobs that another cluster runs, from the decision to their end. choose -> send -> follow -> settle.

Used by the dispatcher, which asks before it submits a job here, and by `core.rescheduler` for jobs that wait too long.
Exactly one cluster runs a job: the member is noted before it hears anything, the job's id is what it knows the job by,
and a member whose answer was lost is asked again until it is certain (docs/federation.md).
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from oscar import telemetry, tracing
from oscar.core import jobs, services, traces
from oscar.core.copies import cluster_of
from oscar.core.platform import Known, Platform
from oscar.core.remote import Outcome, Remote, Sent, Target
from oscar.core.room import Room
from oscar.core.storage import sign
from oscar.errors import Conflict, JobNotFound, OscarError
from oscar.model.delegation import Choice, Figures, figures_of, needs_figures, order
from oscar.model.event import Event, Source, decode, delegate
from oscar.model.federation import Delegation as Policy
from oscar.model.federation import Replica
from oscar.model.job import Job, JobState, RetryPolicy, backoff, judge
from oscar.model.provider import DEFAULT_PROVIDER
from oscar.model.trace import Place
from oscar.model.trouble import Trouble
from oscar.state.delegations import Delegation

if TYPE_CHECKING:
    from oscar.client import Job as RemoteJob

log = telemetry.get("delegation")

T = TypeVar("T")

LEASE_S = 30.0
_RENEW_S = 10.0
_LOOK_S = 1.0
_INPUT_S = 24 * 3600
"""Seconds for which a member may read a job's input."""
_FIGURES_S = 2.0
"""Seconds for which a member's figures are used, less what it was given since."""
_SENDING = 8
"""Events on their way to one member at a time."""
_FOLLOWING = 16
"""Jobs of one member that are waited for at a time; the others take turns."""
_LONGEST_WAIT = 10.0
_FIRST_WAIT = 0.25
"""Seconds, doubled each time: the first looks tell when the script starts, the later ones when it has ended."""
_RESEND = RetryPolicy(delay=1, max_delay=30)
_PAUSE = RetryPolicy(delay=15, max_delay=300)

_GONE = "The service was deleted"
_ENDS = {
    state.value: state for state in (JobState.FAILED, JobState.DEAD, JobState.CANCELLED, JobState.INTERRUPTED)
}


class _NotOursError(Exception):
    """The lease of a job has gone to another server."""


class Delegator:
    """Carries jobs to members and back. `run` works until it is cancelled; members go on without it."""

    def __init__(self, platform: Platform, *, alone: bool) -> None:
        """Work for that platform.

        Args:
            platform: ports.
            alone: no other server works on this Store, so that all leases may be taken over at start.
        """
        self._p = platform
        self._alone = alone
        self._id = f"{platform.installation}-d-{uuid.uuid4().hex[:8]}"
        self._room = Room(platform)
        self._remote = Remote(platform)
        self._chance = random.Random()  # noqa: S311 - a choice, not a secret
        self._carried: dict[str, asyncio.Task[None]] = {}
        self._cancelled: dict[str, asyncio.Event] = {}
        self._senders: dict[str, asyncio.Semaphore] = {}
        self._watchers: dict[str, asyncio.Semaphore] = {}
        self._followed: dict[str, int] = {}
        self._known: dict[tuple[str, tuple[str, str, str]], tuple[float, Figures | None]] = {}
        self._asking: dict[tuple[str, tuple[str, str, str]], asyncio.Lock] = {}
        self._relieved: float | None = None
        self._broken: list[Job] = []
        self._rows: dict[str, Delegation] = {}
        self._places: dict[str, Place] = {}

    async def run(self) -> None:
        """Carry until cancelled."""
        await self._adopt(everything=self._alone)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._every(_RENEW_S, self._renew))
                group.create_task(self._every(_LOOK_S, self._hear_cancellations))
        finally:
            tasks = list(self._carried.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except OscarError as error:
                log.warning("delegation trouble", error=error.message)

    async def _renew(self) -> None:
        await self._p.delegations.renew(self._id, lease=LEASE_S)
        broken, self._broken = self._broken, []
        for job in broken:
            fresh = await self._p.jobs.get(job.id)
            if fresh is not None and fresh.lease_token == job.lease_token:
                self.carry(fresh)
        if not self._alone:
            await self._adopt(everything=False)

    async def _adopt(self, *, everything: bool) -> None:
        for job in await self._p.delegations.take_over(self._id, lease=LEASE_S, everything=everything):
            self.carry(job)

    async def _hear_cancellations(self) -> None:
        if not self._carried:
            return
        for job in await self._p.delegations.cancellations(self._id):
            if job.id in self._cancelled:
                self._cancelled[job.id].set()

    # From the queue.

    async def takes(self, job: Job, known: Known) -> bool:
        """Whether a job that was claimed goes to a member, because there is no room for it here."""
        service = known.service
        if (
            not self._p.settings.resource_manager_enable
            or job.kind == "delegated"
            or job.cancel_requested
            or not service.delegates_to
        ):
            return False
        if await self._room.take(service) or not await self._p.delegations.due(job.id):
            return False
        await self.take(job)
        return True

    async def take(self, job: Job, *, withdrawn: bool = False) -> None:
        """Take over a job that was claimed to run here and certainly does not; `withdrawn`: not any more."""
        begun = await self._p.delegations.begin(job, self._id, lease=LEASE_S, withdrawn=withdrawn)
        if begun is not None:
            self._begin(begun)

    async def relieve(self) -> None:
        """No job can be claimed, all places are taken: those that wait may go to members. By the resource manager."""
        settings = self._p.settings
        if not settings.resource_manager_enable:
            return
        now = time.monotonic()
        if self._relieved is not None and now - self._relieved < min(1.0, settings.resource_manager_interval):
            return
        self._relieved = now
        for job in await self._p.delegations.begin_waiting(self._id, lease=LEASE_S, limit=64):
            self._begin(job)

    async def reschedule(self) -> int:
        """Jobs that wait for longer than they may go to members; how many. By the rescheduler."""
        taken = await self._p.delegations.begin_waiting(
            self._id, lease=LEASE_S, limit=100, threshold=float(self._p.settings.rescheduler_threshold)
        )
        for job in taken:
            log.info("job waits for too long", job=job.id, service=job.service_name)
            self._begin(job)
        return len(taken)

    def _begin(self, job: Job) -> None:
        traces.taken(job)
        self.carry(job)

    # One job.

    def carry(self, job: Job) -> None:
        """Look after a job that is leased to us until it has ended or is back in the queue."""
        if job.id in self._carried:
            return
        event = self._cancelled[job.id] = asyncio.Event()
        if job.cancel_requested:
            event.set()
        task = asyncio.create_task(self._carry(job), name=f"delegation {job.id}")
        self._carried[job.id] = task
        task.add_done_callback(lambda done: self._dropped(job, done))

    def _dropped(self, job: Job, task: asyncio.Task[None]) -> None:
        self._carried.pop(job.id, None)
        self._cancelled.pop(job.id, None)
        self._rows.pop(job.id, None)
        self._places.pop(job.id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of ours in one job's way: said loudly, and begun again.
            log.error("delegation broke off", job=job.id, exc_info=error)
            self._broken.append(job)

    async def _carry(self, job: Job) -> None:
        try:
            await self._to_the_end(job)
        except _NotOursError:
            log.warning("lease lost", job=job.id)

    async def _to_the_end(self, job: Job) -> None:
        known = await self._insisting(lambda: services.by_id(self._p, job.service_id))
        row = await self._insisting(lambda: self._p.delegations.get(job.id))
        if row is None:
            row = Delegation(job.id)
        self._places[job.id] = traces.delegation(job, row.rounds)
        self._rows[job.id] = row
        if job.state is JobState.DELEGATING:
            held = await self._give(job, known, row)
            if held is None:
                return
            row = held
        await self._follow(job, known, row)

    async def _give(self, job: Job, known: Known | None, row: Delegation) -> Delegation | None:
        """Give the job to a member; its row then, or None when that is the end of it here."""
        tried: set[tuple[str, str, str]] = set()
        problems: list[str] = []
        tries = 0
        while True:
            if row.access is None:
                if known is None:
                    await self._end(job, JobState.CANCELLED, reason="service_deleted", message=_GONE)
                    return None
                if self._cancelled[job.id].is_set():
                    await self._end(job, JobState.CANCELLED, reason="cancelled")
                    return None
                choice = await self._choose(known, tried)
                if choice is None:
                    await self._back(job, row, "; ".join(problems) or "no member has room for it")
                    return None
                row = await self._note(job, known, choice)
                self._rows[job.id] = row
            target = Target.read(row.access)
            outcome = await self._send(target, known, job, row)
            if outcome.sent is Sent.DONE:
                await self._end(job, JobState.SUCCEEDED, message=f"taken by {outcome.words}")
                return None
            if outcome.sent is Sent.ACCEPTED:
                await self._held(self._p.delegations.accepted, job, "accepted")
                log.info("job delegated", job=job.id, member=target.name, reason=row.reason)
                self._p.tokens.give_back(job.id)
                return row
            if outcome.sent is Sent.REFUSED or (outcome.sent is Sent.BLOCKED and not row.sends):
                problems.append(outcome.words)
                tried.add(target.replica.identity)
                log.info("member refused", job=job.id, member=target.name, problem=outcome.words)
                await self._held(self._p.delegations.refused, job, outcome.words)
                row = replace(row, access=None, sends=0)
                if outcome.sent is Sent.BLOCKED:
                    await self._back(job, row, outcome.words)
                    return None
                continue
            # It may have the job: nobody else gets it before that is certain.
            row = replace(row, sends=max(1, row.sends + 1))
            if target.replica.type == "endpoint":
                await self._lost(job, known, f"{outcome.words}: whether it took the event is not known")
                return None
            await self._held(self._p.delegations.trouble, job, outcome.words)
            if await self._silent(job):
                await self._lost(job, known, f"{outcome.words}: whether it has the job is not known")
                return None
            tries += 1
            await asyncio.sleep(backoff(tries, _RESEND))

    async def _send(self, target: Target, known: Known | None, job: Job, row: Delegation) -> Outcome:
        if known is None:
            return Outcome(Sent.UNKNOWN, "the service was deleted while the job was given away")
        event = await self._event(job, known)
        async with self._senders.setdefault(target.access.endpoint, asyncio.Semaphore(_SENDING)):
            before = row.sends
            await self._held(self._p.delegations.sending, job)
            return await self._remote.send(
                target,
                known,
                job,
                event,
                origin=cluster_of(self._p, known.service),
                before=before,
                trace=self._places[job.id] if tracing.enabled() else None,
            )

    async def _event(self, job: Job, known: Known) -> bytes:
        """The job's event as another cluster gets it, with an address at which its object can be read."""
        payload = await jobs.payload_of(self._p, job)
        event = decode(payload)
        access = None
        if len(event.records) == 1 and event.records[0].source is Source.MINIO and not event.provider:
            record = event.records[0]
            access = await sign(self._p, record.bucket, record.key, method="GET", expires=_INPUT_S)
        return delegate(payload, _provider(event, known, cluster_of(self._p, known.service)), access=access)

    # Choosing.

    async def _choose(self, known: Known, tried: set[tuple[str, str, str]]) -> Choice | None:
        service = known.service
        policy = service.federation.delegation if service.federation else Policy.STATIC
        candidates = [replica for replica in service.delegates_to if replica.identity not in tried]
        figures: dict[tuple[str, str, str], Figures] = {}
        if needs_figures(policy):
            asked = [replica for replica in candidates if replica.type == "oscar"]
            answers = await asyncio.gather(*(self._figures(known, replica) for replica in asked))
            figures = {
                replica.identity: answer
                for replica, answer in zip(asked, answers, strict=True)
                if answer is not None
            }
        chosen = order(
            policy,
            candidates,
            figures,
            cpu=service.cpu_millicores,
            memory=service.memory_bytes,
            chance=self._chance,
        )
        if not chosen:
            return None
        self._count_off(known, chosen[0].replica)
        return replace(chosen[0], reason=f"{policy.value}: {chosen[0].reason}")

    async def _figures(self, known: Known, replica: Replica) -> Figures | None:
        key = (known.row.id, replica.identity)
        async with self._asking.setdefault(key, asyncio.Lock()):
            found = self._known.get(key)
            if found is not None and time.monotonic() - found[0] < _FIGURES_S:
                return found[1]
            figures = None
            started = time.monotonic()
            try:
                status, listed = await self._remote.figures(Target.of(known, replica), known)
            except OscarError as error:
                log.info("member left out", cluster=replica.cluster_id, reason=error.message)
            else:
                figures = figures_of(status, listed, latency=time.monotonic() - started)
            self._known[key] = (time.monotonic(), figures)
            return figures

    def _count_off(self, known: Known, replica: Replica) -> None:
        key = (known.row.id, replica.identity)
        at, figures = self._known.get(key, (0.0, None))
        if figures is None:
            return
        cpu, memory = known.service.cpu_millicores, known.service.memory_bytes
        self._known[key] = (
            at,
            replace(
                figures,
                cpu_free=max(0, figures.cpu_free - cpu),
                cpu_largest=max(0, figures.cpu_largest - cpu),
                memory_free=max(0, figures.memory_free - memory),
                memory_largest=max(0, figures.memory_largest - memory),
                pending=figures.pending + 1,
            ),
        )

    async def _note(self, job: Job, known: Known, choice: Choice) -> Delegation:
        target = Target.of(known, choice.replica)
        policy, _, reason = choice.reason.partition(": ")
        shown = shown_member(choice.replica)
        access = target.as_dict()
        cluster = choice.replica.cluster_id
        await self._held(
            self._p.delegations.choose,
            job,
            policy=policy,
            cluster_id=cluster,
            member=shown,
            access=access,
            reason=reason,
        )
        return Delegation(job.id, policy, cluster, shown, access, reason)

    # Following.

    async def _follow(self, job: Job, known: Known | None, row: Delegation) -> None:
        if row.access is None:
            await self._lost(job, known, "nobody knows any more which member has the job")
            return
        target = Target.read(row.access)
        place = target.access.endpoint
        self._followed[place] = self._followed.get(place, 0) + 1
        try:
            await self._watch(job, known, target)
        finally:
            self._followed[place] -= 1

    async def _watch(self, job: Job, known: Known | None, target: Target) -> None:
        watchers = self._watchers.setdefault(target.access.endpoint, asyncio.Semaphore(_FOLLOWING))
        cancelled = self._cancelled[job.id]
        told = False
        tries = asked = 0
        while True:
            try:
                if cancelled.is_set() and not told:
                    await self._cancel(target, known, job)
                    told = True
                async with watchers:
                    wait = _FIRST_WAIT * 2.0 ** min(asked, 10)
                    remote = await self._ask(target, known, job, cancelled if not told else None, wait)
            except JobNotFound:
                await self._lost(job, known, f"the {target.name} does not have the job any more")
                return
            except OscarError as error:
                words = f"{target.name}: {error.message}"
                await self._held(self._p.delegations.trouble, job, words)
                if await self._silent(job):
                    await self._lost(job, known, f"{words}: what became of the job is not known")
                    return
                tries += 1
                await asyncio.sleep(backoff(tries, _RESEND))
                # The service may have got another account or token meanwhile.
                known = await self._insisting(lambda: services.by_id(self._p, job.service_id))
                continue
            tries, asked = 0, asked + 1
            if remote is None:
                continue
            if remote.done:
                await self._ended(job, known, target, remote)
                return
            state, running = remote.state or remote.status.lower(), remote.status == "Running"
            await self._held(self._p.delegations.heard, job, state, running=running)

    async def _ask(
        self,
        target: Target,
        known: Known | None,
        job: Job,
        cancelled: asyncio.Event | None,
        wait: float,
    ) -> RemoteJob | None:
        """The member's word on the job, after its end or a while; None when somebody wants it to end first."""
        following = self._followed[target.access.endpoint]
        # Everybody has his turn within some seconds, however many there are.
        wait = max(0.05, min(wait, _LONGEST_WAIT, _LONGEST_WAIT * _FOLLOWING / following))
        asking = asyncio.ensure_future(self._remote.ask(target, known, job, wait=wait))
        if cancelled is None:
            return await asking
        waiting = asyncio.ensure_future(cancelled.wait())
        try:
            await asyncio.wait({asking, waiting}, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else None
        finally:
            for task in (asking, waiting):
                if not task.done():
                    task.cancel()

    async def _cancel(self, target: Target, known: Known | None, job: Job) -> None:
        try:
            await self._remote.cancel(target, known, job)
        except Conflict:
            log.info("too late to cancel", job=job.id)  # it has ended, and is asked next

    # Ends.

    async def _ended(self, job: Job, known: Known | None, target: Target, remote: RemoteJob) -> None:
        lasted = None
        if remote.start_time and remote.finish_time:
            lasted = max(0, int((remote.finish_time - remote.start_time).total_seconds() * 1000))
        state = JobState.SUCCEEDED if remote.succeeded else _ENDS.get(remote.state, JobState.FAILED)
        message = remote.message
        if not remote.succeeded:
            message = f"on the {target.name}: {message or remote.reason or 'no reason given'}"
        if remote.reason == "service_deleted" and known is not None:
            # Its copy there is gone, not the service: whether the script had begun only the start time tells.
            if remote.start_time is None:
                await self._back(job, Delegation(job.id), f"the {target.name} has the service no longer")
                return
            state = JobState.INTERRUPTED
        await self._end(
            job,
            state,
            remote_state=remote.state,
            reason=remote.reason,
            message=message,
            exit_code=remote.exit_code,
            lasted=lasted,
        )

    async def _lost(self, job: Job, known: Known | None, words: str) -> None:
        if known is None:
            await self._end(job, JobState.CANCELLED, reason="service_deleted", message=words)
            return
        verdict = judge(
            Trouble.LOST,
            policy=known.service.retry_policy(),
            script_failures=job.script_failures + 1,
            our_failures=job.our_failures,
        )
        if verdict.state is JobState.QUEUED:
            await self._back(job, Delegation(job.id), words)
        else:
            await self._end(job, verdict.state, reason=Trouble.LOST.value, message=words)

    async def _silent(self, job: Job) -> bool:
        """Whether the member has said nothing for so long that it is given up."""
        seconds = await self._insisting(lambda: self._p.delegations.since_heard(job.id))
        return seconds > self._p.settings.delegation_lost

    async def _back(self, job: Job, row: Delegation, problem: str) -> None:
        pause = backoff(row.rounds + 1, _PAUSE)
        log.info("job stays here", job=job.id, problem=problem)
        if await self._insisting(lambda: self._p.delegations.back(job, problem, pause=pause)):
            traces.delegated(job, self._places[job.id], self._rows[job.id], problem=problem)
        self._p.signals.work.set()

    async def _end(
        self,
        job: Job,
        state: JobState,
        *,
        remote_state: str = "",
        reason: str | None = None,
        message: str | None = None,
        exit_code: int | None = None,
        lasted: int | None = None,
    ) -> None:
        settled = await self._insisting(
            lambda: self._p.delegations.settle(
                job,
                state,
                remote_state=remote_state,
                reason=reason,
                message=message,
                exit_code=exit_code,
                lasted=lasted,
            )
        )
        if settled:
            log.info("delegated job ended", job=job.id, state=state.value, reason=reason)
            self._p.tokens.give_back(job.id)
            problem = None if state is JobState.SUCCEEDED else message or reason
            traces.delegated(job, self._places[job.id], self._rows[job.id], problem=problem)
            traces.ended(job, state, message=message)
            self._p.signals.ended(job.id)

    async def _held(self, verb: Callable[..., Awaitable[bool]], job: Job, *words: Any, **more: Any) -> None:
        """Do something with a job that is leased to us.

        Raises:
            _NotOursError: it is not any more, so another server goes on with it.
        """
        if not await self._insisting(lambda: verb(job, *words, **more)):
            raise _NotOursError

    async def _insisting(self, work: Callable[[], Awaitable[T]]) -> T:
        # As in the dispatcher: trouble of the database is waited out.
        while True:
            try:
                return await work()
            except OscarError as error:
                log.warning("the database has to be asked again", error=error.message)
                await asyncio.sleep(1.0)


def shown_member(replica: Replica) -> dict[str, str]:
    """A member as users see it."""
    if replica.type == "endpoint":
        return {"type": "endpoint", "url": replica.url}
    return {"type": "oscar", "cluster_id": replica.cluster_id, "service_name": replica.service_name}


def _provider(event: Event, known: Known, cluster_id: str) -> str:
    """Where the event's objects are, in the words of the member's service."""
    if any(record.source is Source.S3 for record in event.records):
        ids = list(known.service.storage_providers.s3)
        name = DEFAULT_PROVIDER if DEFAULT_PROVIDER in ids or not ids else ids[0]
        return f"s3.{name}"
    return f"minio.{cluster_id}" if event.records else cluster_id
