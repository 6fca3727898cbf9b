"""The life of one run on this machine: stage-in, script, stage-out, each step once whatever happens to us.

Made by `backend`, one for each run. `records` says how far it has come, an `Engine` runs the script, and
`supervisor.stage` moves the files. After a restart it goes on from its records: it watches a running script at
once, but waits for its order (`give`) before steps that need the secrets in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from oscar import telemetry
from oscar.compute.base import Phase, Run, RunState
from oscar.compute.local.attachments import Attachments
from oscar.compute.local.engine import Engine, Exit, Mount, Sandbox
from oscar.compute.local.logs import Logs
from oscar.compute.local.records import Asked, RunFolder, Started, boot_id
from oscar.errors import EngineError, OscarError
from oscar.model.producer import Producer
from oscar.model.resources import format_memory
from oscar.model.trouble import Trouble, trouble_of
from oscar.supervisor.plan import Plan, function_config, plan
from oscar.supervisor.providers import Providers
from oscar.supervisor.stage import stage_in, stage_out

PREFIX = "job."
"""Before the names of runs in the engine: no worker's name begins so."""
INSIDE = "/oscar"
SHELL = "/bin/sh"
_STAGE_OUT_PAUSES = (1.0, 4.0, 15.0)
"""Seconds before results are stored once more: the script may have worked for hours."""
_FULL_PAUSE = 5.0
"""Seconds before a record that did not fit on the disk is written again."""
_ENGINE_PAUSES = (1.0, 5.0, 30.0)
"""Seconds before an engine that does not answer is asked again."""

T = TypeVar("T")
log = telemetry.get("compute")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all runs share."""

    engine: Engine
    logs: Logs
    providers: Callable[[Run], Providers]
    """Opens the stores of a run, with the rights of its user."""
    attachments: Attachments
    tell: Callable[[RunState], None]


@dataclass(frozen=True, slots=True)
class _End:
    trouble: Trouble | None = None
    message: str | None = None
    exit_code: int | None = None


_NO_EXIT = Exit("", None)


class _Cancelled(Exception):
    """Somebody wants the run to stop."""


class Attempt:
    """One run."""

    def __init__(self, place: RunFolder, asked: Asked, around: Surroundings, run: Run | None = None) -> None:
        self.place = place
        self.asked = asked
        self.state = RunState(asked.name, Phase.SUBMITTED)
        self.known = asyncio.Event()
        """The run is durably known."""
        self._around = around
        self._engine = around.engine
        self._sandbox = PREFIX + asked.name
        self._run = run
        self._given = asyncio.Event()
        self._cancel = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ended = _NO_EXIT
        """How the script ended, for the accounts."""
        self._attached: tuple[tuple[Mount, ...], dict[str, str]] = ((), {})
        if run:
            self._given.set()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.state.phase is Phase.DONE

    def give(self, run: Run) -> None:
        """Hand over the order of a run that was found, with its secrets."""
        if self._run is None:
            self._run = run
            self._given.set()

    def begin(self, found: RunState | None = None) -> None:
        """Go on from where it is."""
        self.known.set()
        if found:
            self.state = found
        if not self.done:
            self._task = asyncio.create_task(self._live(), name=f"run {self.asked.name}")

    async def cancel(self) -> None:
        """Have it stopped. Silent when it has ended."""
        if not self.done:
            await asyncio.to_thread(self.place.mark_kill, Trouble.CANCELLED)
            self._cancel.set()

    async def let_go(self) -> None:
        """Stop looking after it; what runs in the engine goes on."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    # From one step to the next.

    async def _live(self) -> None:
        try:
            if await asyncio.to_thread(self.place.killed) is Trouble.CANCELLED:
                self._cancel.set()
            end = await self._to_the_end()
        except _Cancelled:
            end = _End(Trouble.CANCELLED, "cancelled")
        except OscarError as error:
            end = _End(trouble_of(error), error.message)
        except OSError as error:
            end = _End(Trouble.OUR, f"{error.strerror}: {error.filename}")
        except Exception as error:
            # A fault of ours: the run must end all the same, and the fault must be heard of.
            log.exception("a run was given up", run=self.asked.name)
            end = _End(Trouble.OUR, f"internal error: {type(error).__name__}")
        await self._settle(end)

    async def _to_the_end(self) -> _End:
        ended = await asyncio.to_thread(self.place.exit)
        started = await asyncio.to_thread(self.place.started)
        if started and started.boot != boot_id():
            # What the script wrote last may not have reached the disk, so not even a recorded exit counts.
            await self._insist(lambda: self._engine.kill(self._sandbox))
            await self._exit()
            return _End(Trouble.LOST, "the machine was restarted while the script ran")
        if started and not ended:
            # An earlier server's: None when the engine is certain that the script has not begun.
            self._change(Phase.RUNNING, started)
            ended = await self._watch(started)
            if not ended:
                await asyncio.to_thread(self.place.unmark_started)
                self._change(Phase.SUBMITTED)
        if not ended:
            plan_ = await self._prepare()
            ended = await self._run_script(plan_)
        return await self._after_script(ended)

    async def _prepare(self) -> Plan:
        """Everything before the script: image and inputs, at the same time."""
        run = await self._order()
        payload = run.payload
        if isinstance(payload, Path):
            payload = await asyncio.to_thread(payload.read_bytes)
        planned = self._plan(run, payload)
        await asyncio.to_thread(self.place.furnish, _config(run, payload))
        await self._unless_cancelled(self._fetch(run, planned))
        # What an earlier server may have left half-made.
        await self._around.attachments.detach(self._sandbox)
        attaching = self._around.attachments.attach(self._sandbox, run.service, self._say)
        self._attached = await self._unless_cancelled(attaching)
        return planned

    async def _fetch(self, run: Run, planned: Plan) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                if run.service.image and self._engine.name != "process":
                    group.create_task(self._engine.ensure_image(run.service.image))
                group.create_task(
                    stage_in(planned.moves, self.place.work, self._around.providers(run), self._say)
                )
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _run_script(self, planned: Plan) -> Exit:
        run = await self._order()
        if self._cancel.is_set():
            raise _Cancelled
        started = Started(int(time.time() * 1000), boot_id())
        await asyncio.to_thread(self.place.mark_started, started)
        try:
            await self._engine.start(self._sandbox_of(run, planned))
        except OscarError:
            await asyncio.to_thread(self.place.unmark_started)
            raise
        self._change(Phase.RUNNING, started)
        ended = await self._watch(started)
        if ended is None:
            raise EngineError("the engine has no trace of the script that it has just started")
        return ended

    async def _watch(self, started: Started) -> Exit | None:
        """Wait for the script's end, and bring it about in time."""
        ending = asyncio.create_task(self._exit())
        cancelled = asyncio.create_task(self._cancel.wait())
        try:
            limit = self.asked.timeout
            left = None if limit is None else max(0.0, started.at / 1000 + limit - time.time())
            await asyncio.wait({ending, cancelled}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                await asyncio.to_thread(
                    self.place.mark_kill, Trouble.CANCELLED if self._cancel.is_set() else Trouble.TIMEOUT
                )
                await self._insist(lambda: self._engine.kill(self._sandbox))
            ended = await ending
        finally:
            ending.cancel()
            cancelled.cancel()
        if ended:
            with contextlib.suppress(OSError):  # the disk is full: the engine keeps it as well
                await asyncio.to_thread(self.place.mark_exit, ended)
        return ended

    async def _exit(self) -> Exit | None:
        return await self._insist(lambda: self._engine.exit(self._sandbox))

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the engine until it answers: not to know is no reason to give up a script that may run."""
        tries = 0
        while True:
            try:
                return await ask()
            except EngineError as error:
                if tries == 0:
                    self._say(f"the engine does not answer: {error.message}")
                await asyncio.sleep(_ENGINE_PAUSES[min(tries, len(_ENGINE_PAUSES) - 1)])
                tries += 1

    async def _after_script(self, ended: Exit) -> _End:
        self._ended = ended
        end = _judge(ended, await asyncio.to_thread(self.place.killed), self.asked)
        self._change(Phase.SETTLING)
        with contextlib.suppress(OSError):  # the disk is full, or can't drop the middle of a file
            await asyncio.to_thread(self._around.logs.mend, self.asked.name)
            await asyncio.to_thread(self._around.logs.trim, self.asked.name)
        if trouble := self._around.attachments.trouble(self._sandbox):
            return _End(Trouble.LOST, f"ended: {trouble}")
        if end.trouble is not None:
            await self._store_mount(failed=True)
            return end
        await self._store_mount()
        run = await self._order()
        payload = run.payload
        if isinstance(payload, Path):
            payload = await asyncio.to_thread(payload.read_bytes)
        await self._unless_cancelled(self._store(run, self._plan(run, payload)))
        return end

    async def _store_mount(self, *, failed: bool = False) -> None:
        """Have all stored that the script wrote into its mount, whatever became of it."""
        if not self._around.attachments.mounted(self._sandbox):
            return  # without waiting for the order, which a run that failed needs for nothing else
        run = await self._order()
        try:
            await self._around.attachments.flush(self._sandbox, run.service, self._say)
        except OscarError as error:
            if not failed:
                raise
            self._say(error.message)

    async def _store(self, run: Run, planned: Plan) -> None:
        producer = Producer.of(run.job_id, run.hops, run.trace)
        for pause in (*_STAGE_OUT_PAUSES, None):
            try:
                await self._engine.own(self.place.work)
                await stage_out(
                    planned.moves, self.place.work, self._around.providers(run), self._say, producer
                )
            except OscarError as error:
                if pause is None or trouble_of(error) is not Trouble.OUR:
                    raise
                self._say(f"storing the results failed, again in {pause:.0f} s: {error.message}")
                await asyncio.sleep(pause)
            else:
                return

    async def _settle(self, end: _End) -> None:
        try:
            await self._around.attachments.detach(self._sandbox)
        except (OscarError, OSError) as error:
            log.warning("a mount could not be removed", run=self.asked.name, reason=str(error))
        if end.trouble not in {None, Trouble.CANCELLED} and end.message:
            self._say(end.message)
        state = replace(
            self.state,
            phase=Phase.DONE,
            trouble=end.trouble,
            message=end.message,
            exit_code=end.exit_code,
            finished=int(time.time() * 1000),
            cpu=self._ended.cpu,
            gpu=self.asked.gpu,
            ended=self._ended.finished,
        )
        while True:
            try:
                await asyncio.to_thread(self.place.mark_done, state)
                break
            except OSError:  # the disk is full, and nothing may be told that is not written down
                await asyncio.sleep(_FULL_PAUSE)
        self.state = state
        self._around.tell(state)

    # Parts.

    async def _order(self) -> Run:
        """The order with its secrets: at hand, or handed over again after a restart."""
        await self._unless_cancelled(self._given.wait())
        if self._run is None:
            raise EngineError("the run's order was not handed over")
        return self._run

    async def _unless_cancelled(self, act: Coroutine[Any, Any, T]) -> T:
        acting = asyncio.create_task(act)
        cancelled = asyncio.create_task(self._cancel.wait())
        try:
            await asyncio.wait({acting, cancelled}, return_when=asyncio.FIRST_COMPLETED)
            if self._cancel.is_set() and not acting.done():
                raise _Cancelled
            return await acting
        finally:
            cancelled.cancel()
            if not acting.done():
                acting.cancel()
                await asyncio.wait([acting])

    def _plan(self, run: Run, payload: bytes) -> Plan:
        root = INSIDE if self._engine.maps_paths else str(self.place.path)
        return plan(run.service, payload, job_id=run.job_id, root=root, environment=run.environment)

    def _sandbox_of(self, run: Run, planned: Plan) -> Sandbox:
        service, place = run.service, self.place
        script = f"{INSIDE if self._engine.maps_paths else place.path}/config/script.sh"
        # Both outputs in one, so that their lines keep their order.
        argv = (SHELL, "-c", f"exec 2>&1; exec {SHELL} '{script}'") if service.script else ()
        return Sandbox(
            name=self._sandbox,
            image=service.image,
            argv=argv,
            env={**planned.environment, **self._attached[1]},
            mounts=(
                Mount(place.work, f"{INSIDE}/work"),
                Mount(place.config, f"{INSIDE}/config", read_only=True),
                *self._attached[0],
            ),
            workdir=_workdir(self._engine, place),
            log=self._around.logs.path(self.asked.name),
            cpu=service.cpu_millicores,
            memory=service.memory_bytes,
            gpu=1 if service.enable_gpu else 0,
            labels={"oscar.job": run.job_id, "oscar.service": service.name},
        )

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the disk is full: a line of the log is not worth the run
            self._around.logs.say(self.asked.name, text)

    def _change(self, phase: Phase, started: Started | None = None) -> None:
        if self.state.phase is not phase or (started and self.state.started != started.at):
            self.state = replace(
                self.state, phase=phase, started=started.at if started else self.state.started
            )
            self._around.tell(self.state)


def _workdir(engine: Engine, place: RunFolder) -> str:
    """Containers begin where their image says, processes in a folder of their own."""
    if engine.name != "process":
        return ""
    return "/tmp" if engine.maps_paths else str(place.work)  # noqa: S108 - of the sandbox


def _config(run: Run, payload: bytes) -> dict[str, bytes]:
    """The files that the script finds in `/oscar/config`."""
    files = {"function_config.yaml": function_config(run.service).encode(), "event": payload}
    if run.service.script:
        files["script.sh"] = run.service.script.encode("utf-8", "surrogateescape")
    return files


def _judge(ended: Exit, killed: Trouble | None, asked: Asked) -> _End:
    """What a script's end means."""
    if killed is Trouble.CANCELLED:
        return _End(Trouble.CANCELLED, "cancelled")
    if ended.code == 0:
        return _End(exit_code=0)
    if killed is Trouble.TIMEOUT:
        return _End(Trouble.TIMEOUT, f"killed: it ran longer than {asked.timeout:g} s")
    if ended.refused:
        return _End(Trouble.OUR, ended.refused)
    if ended.code is None:
        return _End(Trouble.LOST, "nobody knows how the script ended: the engine has lost it")
    if ended.killed_by_oom:
        return _End(
            Trouble.SCRIPT, f"killed: out of memory (limit {format_memory(asked.memory)})", ended.code
        )
    return _End(Trouble.SCRIPT, f"the script ended with exit code {ended.code}", ended.code)
