"""An engine in memory for tests of the core: passes the contract suite, never used by the program itself.

A `World` stands for the machine: its runs go on when a `FakeCompute` on it is dropped, as containers do. Scripts are
a few commands, one a line: `echo WORDS`, `echo WORDS > "$TMP_OUTPUT_DIR/NAME"`, `sleep SECONDS`, `exit CODE`, and
for troubles that no shell can make at will `fake-wait NAME` (until `World.open`), `fake-lose` and `fake-fail WORDS`.
Plans and storing are those of the supervisor.
"""

from __future__ import annotations

import asyncio
import base64
import re
import shlex
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template

from oscar.compute.base import Answer, Capacity, LogLine, Phase, Run, RunState
from oscar.errors import ImageError, InvocationTimeout, OscarError, RunNotFound
from oscar.model.producer import Producer
from oscar.model.service import Service
from oscar.model.trouble import Trouble, trouble_of
from oscar.objects.base import ObjectStore
from oscar.supervisor.plan import Plan, plan
from oscar.supervisor.providers import Providers
from oscar.supervisor.stage import stage_in, stage_out

_OUTPUT = re.compile(r"echo (?P<words>.*?)\s*>\s*\"?\$TMP_OUTPUT_DIR/(?P<name>[\w.-]+)\"?")


class _Exit(Exception):
    """The script ends with a code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Lost(Exception):
    """Nobody will know how the script ended."""


@dataclass(slots=True)
class _Life:
    """A run on the machine."""

    run: Run
    state: RunState
    task: asyncio.Task[None] | None = None
    begun: bool = False
    cancelled: bool = False


@dataclass(slots=True)
class World:
    """The machine; `missing` images can't be pulled, `started` has the runs whose scripts began, in order."""

    store: ObjectStore
    cpu: int = 4000
    memory: int = 8 * 1024**3
    missing: set[str] = field(default_factory=set)
    started: list[str] = field(default_factory=list)
    lives: dict[str, _Life] = field(default_factory=dict)
    lines: dict[str, list[LogLine]] = field(default_factory=dict)
    applied: dict[tuple[str, str], Service] = field(default_factory=dict)
    observers: list[asyncio.Queue[RunState]] = field(default_factory=list)
    _gates: dict[str, asyncio.Event] = field(default_factory=dict)

    def gate(self, name: str) -> asyncio.Event:
        """What scripts wait for with `fake-wait NAME`."""
        return self._gates.setdefault(name, asyncio.Event())

    def open(self, name: str) -> None:
        """Let all scripts go on that wait for that name, now and later."""
        self.gate(name).set()

    def say(self, name: str, text: str) -> None:
        """Append a line to a run's log."""
        now = time.time_ns()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}Z"
        self.lines[name].append(LogLine(at, text))

    # The life of a run.

    def begin(self, run: Run) -> None:
        """Take a run on."""
        life = _Life(run, RunState(run.name, Phase.SUBMITTED))
        self.lives[run.name] = life
        self.lines[run.name] = []
        life.task = asyncio.create_task(self._live(life))

    def change(self, life: _Life, state: RunState) -> None:
        """Go to another state and tell it."""
        life.state = state
        for observer in self.observers:
            observer.put_nowait(state)

    async def _live(self, life: _Life) -> None:
        trouble: Trouble | None = None
        message: str | None = None
        code: int | None = None
        life.begun = True
        self.change(life, life.state)
        try:
            code = await self._work(life)
            if code:
                trouble, message = Trouble.SCRIPT, f"the script ended with exit code {code}"
        except asyncio.CancelledError:
            if not life.cancelled:
                raise
            trouble, message = Trouble.CANCELLED, "cancelled"
        except TimeoutError:
            trouble, message = Trouble.TIMEOUT, f"killed: it ran longer than {life.run.timeout:g} s"
        except _Lost:
            trouble, message = Trouble.LOST, "nobody knows how the script ended"
        except OscarError as error:
            trouble, message = trouble_of(error), error.message
        finished = int(time.time() * 1000)
        done = replace(life.state, phase=Phase.DONE, trouble=trouble, message=message, finished=finished)
        self.change(life, replace(done, exit_code=code))

    async def _work(self, life: _Life) -> int:
        run = life.run
        if life.cancelled:
            raise asyncio.CancelledError
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            planned = _plan(run)
            if run.service.image in self.missing:
                raise ImageError(f"can't pull {run.service.image}: it does not exist", field="image")
            providers = Providers(run.service, self.store)

            def say(text: str) -> None:
                self.say(run.name, text)

            await stage_in(planned.moves, work, providers, say)
            self.started.append(run.name)
            begun = replace(life.state, phase=Phase.RUNNING, started=int(time.time() * 1000))
            self.change(life, begun)
            async with asyncio.timeout(run.timeout):
                code = await self.act(run, planned, work)
            self.change(life, replace(life.state, phase=Phase.SETTLING))
            if code == 0:
                await stage_out(
                    planned.moves, work, providers, say, Producer.of(run.job_id, run.hops, run.trace)
                )
            return code

    async def act(self, run: Run, planned: Plan, work: Path) -> int:
        """Run a script; its exit code."""
        try:
            for line in re.split(r"[;\n]", run.service.script):
                await self._command(run.name, line.strip(), planned, work)
        except _Exit as end:
            return end.code
        return 0

    async def _command(self, name: str, line: str, planned: Plan, work: Path) -> None:
        found = _OUTPUT.fullmatch(line)
        command, *words = [
            Template(word).safe_substitute(planned.environment)
            for word in shlex.split(f"echo {found['words']}" if found else line) or ["#"]
        ]
        if found:
            (work / "out" / found["name"]).write_text(" ".join(words) + "\n")
            return
        match command:
            case "echo":
                self.say(name, " ".join(words))
            case "sleep":
                await asyncio.sleep(float(words[0]))
            case "exit":
                raise _Exit(int(words[0]))
            case "fake-wait":
                await self.gate(words[0]).wait()
            case "fake-lose":
                raise _Lost
            case "fake-fail":
                raise ImageError(" ".join(words))
            case _ if not command.startswith("#"):
                self.say(name, f"sh: {command}: not found")
                raise _Exit(127)


def _plan(run: Run) -> Plan:
    payload = run.payload.read_bytes() if isinstance(run.payload, Path) else run.payload
    return plan(run.service, payload, job_id=run.job_id, environment=run.environment)


class FakeCompute:
    """Implements `Compute` and `Invokes` on a `World`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._observer: asyncio.Queue[RunState] | None = None

    async def start(self) -> None:
        """Nothing to find out."""

    async def stop(self) -> None:
        """Let go; runs go on."""
        if self._observer is not None:
            self.world.observers.remove(self._observer)
            self._observer = None

    async def apply(self, service: Service) -> None:
        """See `Compute.apply`."""
        self.world.applied[service.owner, service.name] = service

    async def remove(self, owner: str, service_name: str) -> None:
        """See `Compute.remove`."""
        self.world.applied.pop((owner, service_name), None)

    async def submit(self, run: Run, *, adopt: bool = False) -> None:
        """See `Compute.submit`."""
        if run.name in self.world.lives:
            return
        if adopt:
            raise RunNotFound(f"there is no run {run.name}")
        self.world.begin(run)

    async def cancel(self, name: str) -> None:
        """See `Compute.cancel`."""
        life = self.world.lives.get(name)
        if life and life.task and not life.task.done():
            life.cancelled = True
            if life.begun:  # else it sees that for itself
                life.task.cancel()

    async def observe(self) -> AsyncIterator[RunState]:
        """See `Compute.observe`."""
        self._observer = asyncio.Queue()
        self.world.observers.append(self._observer)
        for life in list(self.world.lives.values()):
            yield life.state
        while True:
            yield await self._observer.get()

    async def forget(self, name: str) -> None:
        """See `Compute.forget`."""
        life = self.world.lives.pop(name, None)
        if life and life.task:
            life.task.cancel()

    async def logs(
        self, name: str, *, follow: bool = False, tail: int | None = None
    ) -> AsyncIterator[LogLine]:
        """See `Compute.logs`."""
        lines = self.world.lines.get(name)
        if lines is None:
            raise RunNotFound(f"there is no log of {name}")
        place = 0 if tail is None else max(0, len(lines) - tail)
        while True:
            life = self.world.lives.get(name)
            going = follow and life is not None and life.state.phase is not Phase.DONE
            for line in lines[place:]:
                yield line
                place += 1
            if not going or life is None:
                return
            await asyncio.sleep(0.01)

    async def drop_logs(self, name: str) -> None:
        """See `Compute.drop_logs`."""
        self.world.lines.pop(name, None)

    async def capacity(self) -> Capacity:
        """See `Compute.capacity`."""
        going = [life.run.service for life in self.world.lives.values() if life.state.phase is not Phase.DONE]
        return Capacity(
            cpu=self.world.cpu,
            cpu_free=max(0, self.world.cpu - sum(service.cpu_millicores for service in going)),
            memory=self.world.memory,
            memory_free=max(0, self.world.memory - sum(service.memory_bytes for service in going)),
        )

    @property
    def gpus_for_runs(self) -> int | None:
        """See `Compute.gpus_for_runs`: it has none."""
        return None

    def describe(self) -> str:
        """See `Compute.describe`."""
        return "a fake for tests"

    def check(self, service: Service) -> list[str]:
        """See `Compute.check`."""
        return ["enable_gpu: the fake has no GPU"] if service.enable_gpu else []

    async def invoke(self, run: Run) -> Answer:
        """See `Invokes.invoke`: answers with the one output file, else with the log."""
        name = f"sync-{run.name}"
        self.world.lines[name] = []
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            (work / "out").mkdir()
            try:
                async with asyncio.timeout(run.timeout):
                    code = await self.world.act(replace(run, name=name), _plan(run), work)
            except TimeoutError:
                raise InvocationTimeout(f"the function ran longer than {run.timeout:g} s") from None
            log = "".join(f"{line.text}\n" for line in self.world.lines.pop(name)).encode()
            results = [path.read_bytes() for path in (work / "out").iterdir()]
            return Answer(base64.b64encode(results[0]) if results else log, code, log)

    async def prepare(self, service: Service) -> None:
        """See `Invokes.prepare`."""
        await self.apply(service)
