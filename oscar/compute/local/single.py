"""The stand-in for a warm worker where none is possible: a sandbox per request.

For engines that don't share FIFOs with this machine (docker in a VM, sandboxed runtimes) and for services
without a script, whose image's own command runs. Called by `crew` as a `Worker` is; calls an `Engine`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from oscar.compute.local import cri
from oscar.compute.local.engine import Engine, Exit, Sandbox
from oscar.compute.local.worker import whole
from oscar.compute.local.workfolder import SHELL, Kit, WorkFolder
from oscar.errors import EngineError, OscarError
from oscar.supervisor.warm import Capture, Reply, overran

_BLOCK = 1024 * 1024


class Single:
    """Answers one request at a time, each in a sandbox of its own; the same promises as `Worker`."""

    def __init__(self, engine: Engine, kit: Kit, name: str, folder: Path, *, log_limit: int) -> None:
        self.name = name
        self.folder = WorkFolder(engine, folder)
        self._engine = engine
        self._log_limit = log_limit
        self._kit = kit
        self._serial = 0
        self._running: str | None = None
        self._waiting: asyncio.Future[Exit | None] | None = None
        self._aborted: OscarError | None = None

    async def start(self, *, wait: float) -> None:  # noqa: ARG002 - as Worker: nothing is waited for
        """Make the folder; the sandboxes come with the requests."""
        await asyncio.to_thread(self.folder.furnish, self._kit)
        self._kit = await self.folder.attached(self._kit, self.name)

    def when_dead(self, tell: Callable[[str], None]) -> None:
        """Between requests there is nothing that could die."""

    @property
    def dead(self) -> bool:
        """Never: see `when_dead`."""
        return False

    def abort(self, error: OscarError) -> None:
        """Have a request that is under way fail with that error."""
        self._aborted = error
        if self._waiting is not None:
            self._waiting.cancel()

    async def stop(self) -> None:
        """End what runs and remove all trace of it.

        Raises:
            EngineError: the engine could not do it.
        """
        try:
            if self._running is not None:
                await self._engine.remove(self._running)
        finally:
            if self._kit.attaching is not None:
                await self._kit.attaching.detach(self.name)
            await self.folder.remove()

    def tidy(self) -> bool | None:
        """See `Hand.tidy`."""
        return self.folder.tidy()

    async def tidy_all(self) -> bool:
        """See `Hand.tidy_all`."""
        return await self.folder.tidy_all()

    async def kill(self) -> None:
        """End all that runs; it is ended when this returns."""
        if self._running is not None:
            await self._engine.kill(self._running)
            await self._engine.exit(self._running)

    async def ask(self, variables: Mapping[str, str], *, timeout: float | None = None) -> Reply:
        """Run the script once.

        Raises:
            InvocationTimeout: the script still runs.
            EngineError, ImageError: the sandbox did not start, or nobody knows how it ended.
        """
        self._serial += 1
        name = self._running = f"{self.name}-{self._serial}"
        log = self.folder.path / f"output-{self._serial}.log"
        await whole(self._engine.start(self._sandbox(name, log, variables)))
        if self._aborted is not None:
            raise self._aborted
        self._waiting = asyncio.ensure_future(self._engine.exit(name))
        try:
            done, _ = await asyncio.wait({self._waiting}, timeout=timeout)
        finally:
            self._waiting.cancel()
        if self._aborted is not None:
            raise self._aborted
        if not done:
            raise overran(timeout or 0)
        end = self._waiting.result()
        output = await asyncio.to_thread(_output, log, self._log_limit)
        await self._engine.remove(name)
        self._running = None
        log.unlink(missing_ok=True)
        return Reply(_code(end), output)

    def _sandbox(self, name: str, log: Path, variables: Mapping[str, str]) -> Sandbox:
        kit = self._kit
        script = f"{self.folder.config_inside}/script.sh"
        return Sandbox(
            name=name,
            image=kit.image,
            # Both outputs in one, so that their lines keep their order.
            argv=(SHELL, "-c", f"exec 2>&1; exec {SHELL} '{script}'") if kit.script else (),
            env={**kit.env, **variables},
            mounts=self.folder.mounts(kit),
            workdir=self.folder.workdir,
            log=log,
            cpu=kit.cpu,
            memory=kit.memory,
            gpu=kit.gpu,
            labels=kit.labels,
        )


def _code(end: Exit | None) -> int:
    if end is None or end.code is None:
        raise EngineError("nobody knows how the script ended")
    if end.refused:
        raise EngineError(f"the script could not be started: {end.refused}")
    return end.code


def _output(log: Path, limit: int) -> bytes:
    """What the program wrote, without the times that the engine put before the lines."""
    capture = Capture(limit)
    assembler = cri.Assembler()
    try:
        with log.open("rb") as file:
            while block := file.read(_BLOCK):
                for line in assembler.feed(block):
                    capture.add(line.text.encode("utf-8", "surrogateescape") + b"\n")
    except FileNotFoundError:
        return b""  # it wrote nothing
    for line in assembler.end():
        capture.add(line.text.encode("utf-8", "surrogateescape"))
    return capture.take()
