"""One warm worker: a sandbox that runs `supervisor/worker.sh`, which is given requests by FIFOs.

Called by `crew`, which decides what it does; calls an `Engine`, its `WorkFolder`, and `supervisor.warm` for the talk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from oscar.compute.hands import Unfit
from oscar.compute.local.engine import Engine, Exit, Sandbox
from oscar.compute.local.workfolder import SHELL, Kit, WorkFolder
from oscar.errors import EngineError, OscarError
from oscar.supervisor.warm import Conversation, Reply

SILENCE = 2.0
"""Seconds after the shell's start without a word by FIFO, after which FIFOs don't work between us."""


class Deaf(Unfit):
    """The shell runs in the sandbox, but FIFOs do not reach it."""

    def __init__(self) -> None:
        super().__init__("FIFOs don't reach this engine's sandboxes: each call gets a sandbox of its own")


async def whole(starting: Coroutine[Any, Any, None]) -> None:
    """Await the start of a sandbox to its end even when cancelled: what is half there can't be removed."""
    task = asyncio.ensure_future(starting)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        task.exception()  # nobody is there to hear of it
        raise


class Worker:
    """A sandbox that answers one request at a time.

    `start` first, `stop` in the end whatever happened between, also after a failed `start`; `ask` never twice
    at once, and never again after it raised or its reply says that processes are left.
    """

    def __init__(self, engine: Engine, kit: Kit, name: str, folder: Path, *, log_limit: int) -> None:
        self.name = name
        self.folder = WorkFolder(engine, folder)
        self._engine = engine
        self._kit = kit
        self._talk = Conversation(self.folder.work, log_limit=log_limit)
        self._watch: asyncio.Task[Exit | None] | None = None
        self._alone = True
        self._aborted: OscarError | None = None

    # Its life.

    async def start(self, *, wait: float) -> None:
        """Start the sandbox and wait at most `wait` seconds until its shell listens.

        Raises:
            Deaf: FIFOs don't work between this server and the engine's sandboxes.
            EngineError, ImageError: it did not start, with what it said.
        """
        await asyncio.to_thread(self.folder.furnish, self._kit)
        kit = await self.folder.attached(self._kit, self.name)
        ready = self._talk.open()
        await whole(self._engine.start(self._sandbox(kit)))
        self._watch = asyncio.create_task(self._engine.exit(self.name), name=f"exit of {self.name}")
        await self._listen(ready, self._watch, wait)
        self._watch.add_done_callback(self._on_exit)

    def when_dead(self, tell: Callable[[str], None]) -> None:
        """Have `tell` called with the reason when the sandbox ends by itself; never after `stop`."""

        def ended(watch: asyncio.Task[Exit | None]) -> None:
            if not watch.cancelled():
                error = watch.exception()
                tell(str(error) if error else f"it ended{self._last_words(watch.result())}")

        if self._watch is not None:
            self._watch.add_done_callback(ended)

    @property
    def dead(self) -> bool:
        """Whether the sandbox has ended by itself."""
        return self._watch is not None and self._watch.done()

    def abort(self, error: OscarError) -> None:
        """Have a request that is under way fail with that error, and all later ones."""
        self._aborted = error
        self._talk.fail(error)

    async def stop(self) -> None:
        """End the sandbox with all that runs in it, and remove all trace of it.

        Raises:
            EngineError: the engine could not do it.
        """
        if self._watch is not None:
            self._watch.cancel()
        self._talk.close()
        try:
            await self._engine.remove(self.name)
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

    # Its work.

    async def ask(self, variables: Mapping[str, str], *, timeout: float | None = None) -> Reply:
        """Run the script once.

        Raises:
            InvocationTimeout: the script still runs.
            EngineError: the worker died, or the script wrote into its FIFOs.
            InvalidField: a variable that no program can be given.
        """
        if self._aborted is not None:
            raise self._aborted
        if self.dead:
            raise EngineError("the worker died before the script started")
        self.folder.write_env(variables)
        return await self._talk.ask(timeout=timeout)

    async def kill(self) -> None:
        """End all that runs in the sandbox; it is ended when this returns."""
        await self._engine.kill(self.name)
        if self._watch is not None:
            await asyncio.wait({self._watch})

    async def _listen(
        self, ready: asyncio.Future[tuple[int, bool]], watch: asyncio.Task[Exit | None], wait: float
    ) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        silent_since: float | None = None
        while True:
            first: set[asyncio.Future[Any]] = {ready, watch}
            await asyncio.wait(first, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                return
            started = self._talk.started
            if watch.done():
                if started:
                    raise Deaf
                raise EngineError(f"the worker ended at its start{self._last_words(watch.result())}")
            now = loop.time()
            silent_since = silent_since or now if started else None
            if silent_since is not None and now - silent_since > SILENCE:
                raise Deaf
            if now > deadline:
                raise EngineError(f"the worker did not start in {wait:g} s{self._last_words(None)}")

    def _sandbox(self, kit: Kit) -> Sandbox:
        work, config = self.folder.work_inside, self.folder.config_inside
        return Sandbox(
            name=self.name,
            image=kit.image,
            argv=(SHELL, f"{config}/worker.sh", work, config),
            env=kit.env,
            mounts=self.folder.mounts(kit),
            workdir=self.folder.workdir,
            log=self.folder.path / "output.log",
            cpu=kit.cpu,
            memory=kit.memory,
            gpu=kit.gpu,
            labels=kit.labels,
        )

    def _last_words(self, end: Exit | None) -> str:
        words = ""
        if end is not None:
            words = " (out of memory)" if end.killed_by_oom else f" (exit code {end.code})"
            if end.refused:
                return f": {end.refused}"
        with contextlib.suppress(FileNotFoundError), (self.folder.path / "output.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
            lines = log.read().decode("utf-8", "replace").splitlines()[-5:]
            words += "".join(f"\n{line.split(' ', 3)[-1]}" for line in lines)
        return words

    def _on_exit(self, watch: asyncio.Task[Exit | None]) -> None:
        if watch.cancelled():
            return
        error = watch.exception()
        if error is None:
            error = EngineError(f"the worker died while the script ran{self._last_words(watch.result())}")
        self._talk.fail(error)
