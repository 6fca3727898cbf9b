"""The dispatcher: from the queue to the engine and back. claim -> submit -> observe -> settle.

Started by `app.py`; the only caller of `compute.submit`, `cancel` and `forget`. It keeps nothing that a restart would
lose: what it holds in memory is a copy of leased rows, taken again at start. Several dispatchers on one Store share
the queue by leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from oscar import telemetry
from oscar.compute.base import Phase, Run, RunState, Withdraws
from oscar.core import callbacks, jobs, providers, quotas, services, traces
from oscar.core.delegation import Delegator
from oscar.core.platform import Known, Platform
from oscar.errors import BadRequest, OscarError, RunNotFound
from oscar.model.job import FINAL, MAX_HOPS, REMOTE, Job, JobState, RetryPolicy, judge
from oscar.model.trouble import Trouble
from oscar.state.usage_hours import Used

log = telemetry.get("dispatcher")

T = TypeVar("T")

LEASE_S = 30.0
_RENEW_S = 10.0
_LOOK_S = 5.0
_TIDY_S = 300.0
_FAULT_S = 5.0
_BATCH = 16
"""Jobs that are claimed at once."""

_OVER = {*FINAL, *REMOTE, JobState.QUEUED}
"""States of a job whose latest run here is over."""
_PHASES = {
    Phase.SUBMITTED: JobState.SUBMITTED,
    Phase.RUNNING: JobState.RUNNING,
    Phase.SETTLING: JobState.SETTLING,
}


class Dispatcher:
    """One dispatcher. `run` works until it is cancelled; the engine's runs go on without it."""

    def __init__(self, platform: Platform, *, alone: bool, delegator: Delegator | None = None) -> None:
        """Work for that platform.

        Args:
            platform: ports.
            alone: no other server works on this Store, so that all leases may be taken over at start.
            delegator: takes jobs for which there is no room here.
        """
        self._p = platform
        self._delegator = delegator
        self._alone = alone
        self._id = f"{platform.installation}-{uuid.uuid4().hex[:8]}"
        self._held: dict[str, Job] = {}
        self._early: dict[str, RunState] = {}
        self._held_back: set[str] = set()
        self._policies: dict[str, RetryPolicy] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Dispatch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._observe())
            await self._adopt(everything=self._alone)
            group.create_task(self._claim())
            group.create_task(self._every(_RENEW_S, self._renew))
            group.create_task(self._every(_LOOK_S, self._deliver))
            group.create_task(self._every(_TIDY_S, self._tidy))

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._guarded(work())

    async def _guarded(self, work: Awaitable[None]) -> None:
        # Trouble of the database or the engine passes; the next round tries again.
        try:
            await work
        except OscarError as error:
            log.warning("dispatcher trouble", error=error.message, code=error.code)
            await asyncio.sleep(1.0)

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Queue -> engine

    async def _claim(self) -> None:
        wake = self._p.signals.work
        while True:
            wake.clear()
            await self._guarded(self._fill())
            await self._guarded(self._cancel())
            wait = await self._idle_time()
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with work.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await wake.wait()

    async def _idle_time(self) -> float:
        if self._full:
            return _LOOK_S
        try:
            soonest = await self._p.jobs.next_try()
        except OscarError:
            return 1.0
        # Jobs that are due wait for a place: the end of another job wakes us.
        return _LOOK_S if soonest is None or soonest <= 0 else min(soonest / 1000, _LOOK_S)

    @property
    def _full(self) -> bool:
        # While that is so, a burst of new jobs costs no statements here; the end of one that runs wakes us.
        return len(self._held) >= self._p.settings.running_limit

    async def _fill(self) -> None:
        """Start jobs while there is a place and the engine would begin them; then others may be asked to take some."""
        while not self._full:
            pace = self._p.paces.pace() if self._p.paces else None
            if pace and pace.room <= 0:
                break
            claimed = await self._p.jobs.claim(
                self._id,
                total=self._p.settings.running_limit,
                lease=LEASE_S,
                batch=min(_BATCH, pace.room) if pace else _BATCH,
                without=pace.full if pace else (),
                held=quotas.held(self._p),
                place=self._p.place,
                gpus=self._p.compute.gpus_for_runs,
            )
            if pace:
                # The engine sees what it was given when that has been submitted: not before it is asked again.
                submitting = [self._start(job) for job in claimed]
                await asyncio.gather(*submitting, return_exceptions=True)
                if not claimed:
                    return
                continue
            for job in claimed:
                self._start(job)
            if not claimed:
                return
        if self._delegator is not None:
            await self._delegator.relieve()

    def _start(self, job: Job) -> asyncio.Task[None]:
        self._held[job.run_name] = job
        return self._spawn(self._submit(job, adopt=False, fresh=True))

    async def _submit(self, job: Job, *, adopt: bool, fresh: bool = False) -> None:
        """Have the engine run it; only of a `fresh` one, claimed just now, the engine certainly knows nothing."""
        try:
            await self._give(job, adopt=adopt, fresh=fresh)
        except OscarError:
            raise
        except Exception:
            # A fault of ours in one job's way. Nobody knows whether the engine has it, so it gets the same run again.
            log.exception("a job could not be given to the engine", job=job.id, attempt=job.attempt)
            self._spawn(self._submit_again(job, adopt=adopt))

    async def _submit_again(self, job: Job, *, adopt: bool) -> None:
        await asyncio.sleep(_FAULT_S)
        if job.run_name in self._held:
            await self._submit(job, adopt=adopt)

    async def _give(self, job: Job, *, adopt: bool, fresh: bool) -> None:
        known = await self._insisting(lambda: services.by_id(self._p, job.service_id))
        if known is None:
            await self._settle(
                job, RunState(job.run_name, Phase.DONE, Trouble.CANCELLED, "The service was deleted")
            )
            return
        service = known.service
        self._policies[job.run_name] = service.retry_policy()
        if job.hops > MAX_HOPS:
            message = f"More than {MAX_HOPS} functions in a row led here: the services trigger one another in a circle"
            await self._settle(
                job, RunState(job.run_name, Phase.DONE, Trouble.REFUSED, message), reason="event_loop"
            )
            return
        if fresh and await self._delegated(job, known):
            return
        if fresh:
            traces.taken(job)
        try:
            payload: bytes | Path = job.payload or b""
            if job.payload_ref:
                payload = await asyncio.to_thread(self._p.payloads.fetch, job.payload_ref)
        except OscarError as error:
            await self._settle(job, RunState(job.run_name, Phase.DONE, Trouble.OUR, error.message))
            return
        run = Run(
            name=job.run_name,
            job_id=job.id,
            attempt=job.attempt,
            service=service,
            payload=payload,
            hops=job.hops,
            trace=traces.of_job(job),
            user=job.user,
            timeout=service.timeout_seconds,
        )
        try:
            if not adopt:
                await providers.check(self._p, service)
            await self._p.compute.submit(run, adopt=adopt)
        except RunNotFound:
            message = "The engine lost the run; whether the script had ended is not known"
            await self._settle(job, RunState(job.run_name, Phase.DONE, Trouble.LOST, message))
            return
        except BadRequest as error:
            await self._settle(job, RunState(job.run_name, Phase.DONE, Trouble.REFUSED, error.message))
            return
        except OscarError as error:
            await self._settle(job, RunState(job.run_name, Phase.DONE, Trouble.OUR, error.message))
            return
        if job.state is JobState.SUBMITTING:
            await self._insisting(lambda: self._p.jobs.advance(job, JobState.SUBMITTED))
        if job.cancel_requested:
            await self._p.compute.cancel(job.run_name)

    async def _delegated(self, job: Job, known: Known) -> bool:
        """Whether another cluster is asked to run the job."""
        delegator = self._delegator
        if delegator is None or not await self._insisting(lambda: delegator.takes(job, known)):
            return False
        self._held.pop(job.run_name, None)
        self._policies.pop(job.run_name, None)
        self._p.signals.work.set()
        return True

    async def withdraw(self) -> None:
        """What the engine was given and has had no place for too long goes to members. By the rescheduler."""
        if self._p.withdraws is None or self._delegator is None:
            return
        threshold = float(self._p.settings.rescheduler_threshold)
        for job in await self._p.delegations.stuck(self._id, limit=_BATCH, threshold=threshold):
            await self._withdraw(job, self._p.withdraws, self._delegator)

    async def _withdraw(self, job: Job, engine: Withdraws, delegator: Delegator) -> None:
        held = self._held.pop(job.run_name, None)
        if held is None:
            return
        withdrawn = False
        try:
            withdrawn = await engine.withdraw(job.run_name)
        finally:
            if not withdrawn:
                # What was told of it meanwhile is heard now.
                self._held[job.run_name] = held
                if early := self._early.pop(job.run_name, None):
                    self._spawn(self._on_state(early))
        if withdrawn:
            log.info("the engine has no place for it", job=job.id, attempt=job.attempt)
            self._policies.pop(job.run_name, None)
            self._held_back.discard(job.run_name)
            await self._insisting(lambda: delegator.take(job, withdrawn=True))
            if job.run_name in self._early:
                # Its end was told before the job was theirs.
                self._spawn(self._forget_unknown(job.run_name))
            self._p.signals.work.set()

    async def _cancel(self) -> None:
        for job in await self._p.jobs.cancellations(self._id):
            await self._p.compute.cancel(job.run_name)

    # Restart

    async def _adopt(self, *, everything: bool) -> None:
        # On SQLite all are ours; else those of other machines are only found there.
        place = None if self._p.single else self._p.place
        taken = await self._p.jobs.take_over(self._id, lease=LEASE_S, everything=everything, place=place)
        for job in taken:
            self._held[job.run_name] = job
            early = self._early.pop(job.run_name, None)
            if early and early.phase is Phase.DONE:
                self._spawn(self._settle(job, early))
                continue
            # What was only being submitted has certainly not been reported to anybody: the engine sees by the name
            # whether it knows it. All later states were.
            self._spawn(self._submit(job, adopt=job.state is not JobState.SUBMITTING))
            if early:
                self._spawn(self._on_state(early))

    async def _renew(self) -> None:
        await self._p.jobs.renew(self._id, lease=LEASE_S)
        if self._p.single:
            return
        await self._adopt(everything=False)
        if self._p.leader.mine:
            await self._give_up_lost()
        for name, state in list(self._early.items()):
            # What another server has settled meanwhile; else this would be kept for ever.
            if state.phase is Phase.DONE:
                await self._forget_unknown(name)

    async def _give_up_lost(self) -> None:
        """End the attempts of machines that don't come back: whether their scripts had ended is not known."""
        lost = await self._p.jobs.take_lost(
            self._id, lease=LEASE_S, place=self._p.place, age=self._p.settings.lost_server
        )
        for job in lost:
            self._held[job.run_name] = job
            message = "The server that ran it is away; whether the script had ended is not known"
            state = RunState(job.run_name, Phase.DONE, Trouble.LOST, message)
            self._spawn(self._settle(job, state))

    # Engine -> queue

    async def _observe(self) -> None:
        async for state in self._p.compute.observe():
            if state.name in self._held:
                self._spawn(self._on_state(state))
            else:
                self._early[state.name] = state
                if state.phase is Phase.DONE:
                    self._spawn(self._forget_unknown(state.name))
                elif not self._p.single:
                    self._spawn(self._stop_given_up(state.name))

    async def _forget_unknown(self, name: str) -> None:
        # A run that ended and whose row is settled or gone: the crash came between settling and forgetting.
        job = await self._p.jobs.get(name.rpartition("-")[0])
        if job is None or job.run_name != name or job.state in _OVER:
            self._early.pop(name, None)
            await self._p.compute.forget(name)

    async def _stop_given_up(self, name: str) -> None:
        # This machine was away for so long that the others ended this attempt: it must not go on beside another.
        job = await self._p.jobs.get(name.rpartition("-")[0])
        if job is None or job.run_name != name or job.state in FINAL:
            log.warning("a run that was given up is stopped", run=name)
            await self._p.compute.cancel(name)

    async def _on_state(self, state: RunState) -> None:
        job = self._held.get(state.name)
        if job is None:
            return
        if state.phase is Phase.DONE:
            await self._settle(job, state)
        else:
            await self._p.jobs.advance(job, _PHASES[state.phase], started=state.started)
            if state.held or job.run_name in self._held_back:
                await self._hold(job, held=state.held)
            if self._p.paces:
                self._p.signals.work.set()  # it has a place now, so that there may be one for another

    async def _hold(self, job: Job, *, held: bool) -> None:
        (self._held_back.add if held else self._held_back.discard)(job.run_name)
        await self._p.jobs.hold(job, held=held)

    async def _settle(self, job: Job, state: RunState, *, reason: str | None = None) -> None:
        policy = await self._policy(job)
        ours = job.our_failures + (state.trouble is Trouble.OUR)
        script = job.script_failures + (state.trouble in {Trouble.SCRIPT, Trouble.TIMEOUT, Trouble.LOST})
        verdict = judge(state.trouble, policy=policy, script_failures=script, our_failures=ours)
        settled = await self._insisting(
            lambda: self._p.jobs.settle(
                job,
                verdict,
                reason=reason or (state.trouble.value if state.trouble else None),
                message=state.message,
                exit_code=state.exit_code,
                started=state.started,
                finished=state.finished,
                script_failures=script,
                our_failures=ours,
                used=_used(job, state),
            )
        )
        self._held.pop(job.run_name, None)
        self._held_back.discard(job.run_name)
        if not settled:
            log.warning("lease lost", job=job.id, attempt=job.attempt)
            return
        log.info(
            "attempt ended",
            job=job.id,
            attempt=job.attempt,
            state=verdict.state.value,
            reason=state.trouble,
            exit_code=state.exit_code,
        )
        traces.attempted(job, state)
        self._p.signals.work.set()
        if verdict.state in FINAL:
            traces.ended(job, verdict.state, message=state.message)
            self._p.signals.ended(job.id)
        await self._p.compute.forget(job.run_name)

    async def _policy(self, job: Job) -> RetryPolicy:
        known = self._policies.pop(job.run_name, None)
        if known is None:
            found = await self._insisting(lambda: services.by_id(self._p, job.service_id))
            known = found.service.retry_policy() if found else RetryPolicy()
        return known

    async def _insisting(self, work: Callable[[], Awaitable[T]]) -> T:
        # A held job goes on only by us, and the end of an attempt is told once: trouble of the database is waited out.
        while True:
            try:
                return await work()
            except OscarError as error:
                log.warning("the database has to be asked again", error=error.message)
                await asyncio.sleep(1.0)

    # Upkeep

    async def _deliver(self) -> None:
        if self._p.leader.mine:
            await callbacks.deliver(self._p)

    async def _tidy(self) -> None:
        while self._p.leader.mine and (expired := await self._p.jobs.expired(self._p.settings.ttl_job)):
            await jobs.remove(self._p, expired)
        await services.reconcile(self._p)


def _used(job: Job, state: RunState) -> Used | None:
    """What an attempt has used, for the accounts; None when its script did not run or the engine can't tell."""
    if state.started is None or (state.cpu is None and not state.gpu):
        return None
    end = max(state.ended or state.finished or state.started, state.started)
    gpu = state.gpu * (end - state.started) * 1000
    return Used(job.owner, job.service_name, state.started, end, state.cpu or 0, gpu)
