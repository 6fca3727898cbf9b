"""The replicas of one exposed service, kept as its plan says: started, probed, watched, drained, removed.

Made by `exposed` for each service. One task does what `exposed_plan` decides; each replica has a task of its own that
lives as long as it does. Nothing here is needed after a crash: replicas go on, and are found by their records.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oscar import telemetry
from oscar.compute.base import Deployment, DeploymentState, Exposure, Replica, Staying
from oscar.compute.local import exposed_replica as replicas
from oscar.compute.local.attachments import Attachments
from oscar.compute.local.engine import Engine
from oscar.compute.local.exposed_plan import Bounds, Drain, Fleet, Member, Stage, Start
from oscar.compute.local.exposed_replica import Attached, Kit, Record
from oscar.compute.local.logs import Logs
from oscar.compute.local.workfolder import remove_folder
from oscar.errors import OscarError
from oscar.model.quota import Resources
from oscar.model.service import Service

PROBE_EVERY = 5.0
"""Seconds between probes of a replica that is well."""
PROBE_FIRST = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between the first probes of a new one; the last goes on."""
MISSES = 3
"""Probes in a row that fail before a replica gets no more requests; twice as many, and it is replaced."""
LOOK_EVERY = 5.0
"""Seconds between looks at the load."""
KEPT_LOGS = 3
"""Logs of ended replicas that are kept."""
GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL for a replica that is not needed any more."""
_TROUBLE_PAUSE = 2.0

log = telemetry.get("exposed")


@dataclass(frozen=True, slots=True)
class Yard:
    """What all fleets share."""

    engine: Engine
    folder: Path
    logs: Logs
    drain: float
    """Seconds that requests under way may take when their replica goes."""
    attachments: Attachments | None
    """Volumes and mounts of services."""
    ports: set[int]
    """Ports of this machine that are given to replicas."""
    spawn: Callable[..., asyncio.Task[None]]


@dataclass(slots=True, eq=False)
class _Life:
    """A replica and what is known of it here."""

    member: Member
    record: Record
    replica: Replica
    task: asyncio.Task[None] | None = None
    cpu: tuple[float, float] | None = None
    """When its CPU time was looked at, and how much it was."""


class Crowd:
    """The replicas of one service."""

    def __init__(self, yard: Yard, owner: str, name: str) -> None:
        """Make it; `expose` or `adopt` give it something to do."""
        self.owner, self.name = owner, name
        self._yard = yard
        self._kit: Kit | None = None
        self._fleet = Fleet(Bounds(), "")
        self._lives: dict[str, _Life] = {}
        self._ready: tuple[Replica, ...] = ()
        self._news = asyncio.Event()
        self._moved = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._state = DeploymentState.UNAVAILABLE
        self._changed = replicas.now_ms()
        self._closed = False

    # What is wanted.

    def adopt(self, record: Record) -> None:
        """Take over a replica of an earlier server; it takes requests as soon as it answers."""
        member = Member(record.name, record.revision, time.monotonic(), since=time.monotonic())
        self._fleet.members.append(member)
        self._yard.ports.update(record.ports.values())
        self._live(_Life(member, record, replicas.address_of(record)), found=True)
        self._go()

    def expose(self, exposure: Exposure) -> None:
        """Have it so from now on."""
        expose = exposure.service.expose
        kit = Kit.of(exposure.service, exposure.restarts)
        bounds = Bounds(expose.min_scale, expose.max_scale, expose.cpu_threshold)
        if self._kit is None:
            known = self._fleet.members
            self._fleet = Fleet(bounds, kit.revision, members=known)
            # As many as there were, so that a restart of this server takes no load off anybody.
            present = sum(1 for member in known if member.revision == kit.revision)
            self._fleet.wanted = min(max(present, bounds.least), bounds.most)
        self._kit = kit
        self._fleet.renew(bounds, kit.revision, stopped=exposure.stopped)
        if exposure.stopped:
            self._ready = ()  # at once: whoever asked for it may rely on it
        self._go()

    def names(self) -> list[tuple[str, int]]:
        """Of the replicas that are there now, each with the devices that it has for itself."""
        gpus = 1 if self._kit is not None and self._kit.service.enable_gpu else 0
        return [(name, gpus) for name in self._lives]

    async def close(self) -> None:
        """Remove everything, without waiting for requests."""
        self._closed = True
        await self.let_go()
        for life in list(self._lives.values()):
            await self._remove(life)
        for name in self.log_names():
            self._yard.logs.drop(name)

    async def let_go(self) -> None:
        """End what works on it here; replicas go on."""
        tasks = [task for task in (self._task, *(life.task for life in self._lives.values())) if task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # What is asked.

    @property
    def ready(self) -> tuple[Replica, ...]:
        """The replicas that take requests."""
        return self._ready

    async def wait_ready(self) -> bool:
        """Wait for one; False when none is on its way."""
        self._fleet.wake()
        self._go()
        async with self._moved:
            await self._moved.wait_for(lambda: self._ready or self._hopeless)
        return bool(self._ready)

    @property
    def _hopeless(self) -> bool:
        # Before the definition is known, replicas of an earlier server may still answer.
        return self._closed or (self._kit is not None and self._fleet.hopeless)

    def deployment(self) -> Deployment:
        """How it does."""
        if self._kit is None:
            return Deployment(DeploymentState.UNAVAILABLE, "The server is looking for its replicas", 0)
        state, reason = self._note_state()
        active = 0 if self._fleet.stopped else self._fleet.active
        missing = 0 if self._fleet.stopped else max(0, self._fleet.wanted - active)
        return Deployment(state, reason, self._changed, active, missing, self._yard.engine.name)

    def staying(self) -> Staying:
        """What its replicas take."""
        if self._kit is None:  # found, and not known yet
            cpu = max((life.record.cpu for life in self._lives.values()), default=0)
            return Staying(self.owner, self.name, len(self._lives), Resources(cpu))
        service = self._kit.service
        each = Resources(service.cpu_millicores, service.memory_bytes, 1 if service.enable_gpu else 0)
        return Staying(self.owner, self.name, len(self._lives), each)

    def log_names(self) -> list[str]:
        """The logs there are, oldest replica first."""
        prefix = replicas.prefix_of(self.owner, self.name)
        paths = sorted(self._yard.logs.folder.glob(f"{prefix}*.log"), key=lambda path: path.stat().st_ctime)
        return [path.stem for path in paths]

    def trim_logs(self) -> None:
        """Keep growing logs at their size."""
        for name in self._lives:
            self._yard.logs.trim(name)

    # The work.

    def _go(self) -> None:
        self._news.set()
        if (self._task is None or self._task.done()) and not self._closed:
            self._task = self._yard.spawn(self._run(), f"replicas of {self.name}")

    async def _run(self) -> None:
        look_at = time.monotonic() + LOOK_EVERY
        while True:
            self._news.clear()
            now = time.monotonic()
            if now >= look_at:
                await self._look(now)
                look_at = now + LOOK_EVERY
            self._note_requests()
            if self._kit is not None:  # else what was found serves as it is
                for action in self._fleet.settle(now):
                    self._do(action, now)
            await self._tell()
            wake = min(self._fleet.next_wake(now) or look_at, look_at)
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with news.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, wake - time.monotonic())):
                    await self._news.wait()

    def _do(self, action: Start | Drain, now: float) -> None:
        if isinstance(action, Drain):
            life = self._lives.get(action.member.name)
            if life is not None:
                self._yard.spawn(self._drain(life), f"end of {action.member.name}")
            return
        assert self._kit is not None  # noqa: S101 - `settle` starts nothing before a definition is known
        name = replicas.new_name(self.owner, self.name, self._kit.revision)
        try:
            ports = replicas.free_ports(self._kit.ports, self._yard.ports)
        except OSError as error:  # no ports or no descriptors are left
            self._fleet.lost(self._fleet.joined(name, now), now, f"no free port: {error.strerror}")
            return
        self._yard.ports.update(ports.values())
        record = replicas.record_of(self._kit, name, ports)
        self._live(_Life(self._fleet.joined(name, now), record, replicas.address_of(record)), found=False)

    def _note_requests(self) -> None:
        for life in self._lives.values():
            life.member.in_flight = life.replica.in_flight

    async def _tell(self) -> None:
        """Let others know what has changed."""
        self._ready = tuple(life.replica for life in self._lives.values() if life.member.stage is Stage.READY)
        self._note_state()
        async with self._moved:
            self._moved.notify_all()

    def _note_state(self) -> tuple[DeploymentState, str]:
        state, reason = self._fleet.state()
        if state is not self._state and self._kit is not None:
            self._state, self._changed = state, replicas.now_ms()
            log.info("exposed service", service=self.name, owner=self.owner, state=state.value, reason=reason)
        return state, reason

    async def _look(self, now: float) -> None:
        """Look at the load."""
        if self._fleet.stopped or self._fleet.bounds.most == self._fleet.bounds.least:
            return
        self._note_requests()
        used = [
            await self._cpu_share(life, now) for life in self._lives.values() if life.replica in self._ready
        ]
        known = [share for share in used if share is not None]
        if len(known) == len(used):
            self._fleet.load(now, sum(known) / len(known) if known else None)
        elif all(life.cpu is None for life in self._lives.values()):
            self._fleet.load(now, None)

    async def _cpu_share(self, life: _Life, now: float) -> float | None:
        """What the replica has used of its CPU limit since the last look; None at the first one, or unknown."""
        before = life.cpu
        try:
            seconds = await self._yard.engine.cpu_time(life.record.name)
        except OscarError:
            seconds = None
        life.cpu = None if seconds is None else (now, seconds)
        if before is None or life.cpu is None or not life.record.cpu:
            return None
        return (life.cpu[1] - before[1]) / max(now - before[0], 0.1) / (life.record.cpu / 1000)

    # One replica.

    def _live(self, life: _Life, *, found: bool) -> None:
        self._lives[life.record.name] = life
        life.task = self._yard.spawn(self._keep(life, found=found), f"replica {life.record.name}")

    async def _keep(self, life: _Life, *, found: bool) -> None:
        """From its start to its end."""
        try:
            reason = await self._lifetime(life, found=found)
        except OscarError as error:
            reason = error.message
        if life.member.stage is Stage.DRAINING:
            return  # `_drain` removes it
        log.warning("replica lost", service=self.name, replica=life.record.name, reason=reason)
        self._fleet.lost(life.member, time.monotonic(), reason)
        self._news.set()
        await self._remove(life)
        self._news.set()

    async def _lifetime(self, life: _Life, *, found: bool) -> str:
        """Have it run and answer; why it did not go on so."""
        name, engine = life.record.name, self._yard.engine
        log_file = self._yard.logs.path(name)
        if not found:
            assert self._kit is not None  # noqa: S101 - it was started by a definition
            attached = await self._attach(name, self._kit.service)
            folder = self._yard.folder / name
            await replicas.create(engine, self._kit, life.record, folder, log_file, attached)
        end = asyncio.ensure_future(engine.exit(name))
        try:
            probing = asyncio.ensure_future(self._probe(life))
            try:
                await asyncio.wait({end, probing}, return_when=asyncio.FIRST_COMPLETED)
                if not end.done():
                    return probing.result()
            finally:
                probing.cancel()
            ended = end.result()
        finally:
            end.cancel()
        if ended is not None and ended.refused:
            return ended.refused
        how = "was killed for its memory" if ended and ended.killed_by_oom else "ended"
        code = f" with code {ended.code}" if ended and ended.code is not None else ""
        words = await asyncio.to_thread(replicas.last_words, log_file)
        return f"the server {how}{code}" + (f": {words}" if words else "")

    async def _attach(self, name: str, service: Service) -> Attached:
        if self._yard.attachments is None:
            return Attached()
        return Attached(*await self._yard.attachments.attach(name, service, live=True))

    async def _probe(self, life: _Life) -> str:
        """Ask it again and again; ends when it has not answered too often."""
        pauses = iter(PROBE_FIRST)
        misses = 0
        while True:
            kit = self._kit
            # Before the definition is known (a server that has just started), any answer will do.
            port = next(iter(life.record.ports))
            path = kit.health_path if kit and kit.revision == life.record.revision else None
            trouble = await replicas.probe(life.replica, port, path or "/")
            if path is None and " answers " in trouble:
                trouble = ""
            now = time.monotonic()
            if not trouble:
                misses = 0
                before = life.member.stage
                self._fleet.healthy(life.member, now)
                if life.member.stage is not before:
                    self._news.set()
                await asyncio.sleep(PROBE_EVERY)
                continue
            if life.member.stage is Stage.STARTING:
                self._fleet.reason = self._fleet.reason or trouble
                await asyncio.sleep(next(pauses, PROBE_FIRST[-1]))
                continue
            misses += 1
            if misses >= MISSES and life.member.stage is Stage.READY:
                self._fleet.unhealthy(life.member, now)
                self._fleet.reason = trouble
                self._news.set()
            if misses >= 2 * MISSES:
                return trouble
            await asyncio.sleep(1.0)

    async def _drain(self, life: _Life) -> None:
        await self._tell()  # from here on, nobody gives it another request
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._yard.drain):
                await life.replica.idle.wait()
        if life.task:
            life.task.cancel()
            await asyncio.wait({life.task})
        await self._end(life.record.name)
        await self._remove(life)
        self._fleet.removed(life.member)
        self._news.set()

    async def _end(self, name: str) -> None:
        """Let the server end by itself, as it is asked to."""
        with contextlib.suppress(TimeoutError, OscarError):  # the removal ends what is left
            async with asyncio.timeout(GRACE):
                await self._yard.engine.terminate(name)
                await self._yard.engine.exit(name)

    async def _remove(self, life: _Life) -> None:
        """Remove it from the engine, however long the engine needs."""
        name = life.record.name
        folder = self._yard.folder / name
        while True:
            try:
                await self._yard.engine.remove(name)
                if self._yard.attachments is not None:
                    await self._yard.attachments.detach(name)
                await remove_folder(self._yard.engine, folder)
                break
            except (OscarError, OSError) as error:
                log.warning("a replica can't be removed", replica=name, reason=str(error))
                if self._closed:
                    return  # the next start sweeps it up
                await asyncio.sleep(_TROUBLE_PAUSE)
        self._lives.pop(name, None)
        self._yard.ports.difference_update(life.record.ports.values())
        ended = [each for each in self.log_names() if each not in self._lives]
        for old in ended[:-KEPT_LOGS]:
            self._yard.logs.drop(old)
