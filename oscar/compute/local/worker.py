"""One warm worker: a sandbox that runs `supervisor/worker.sh`, and the FIFOs by which it is given requests.

Called by `crew`, which decides what it does; calls an `Engine` and its `WorkFolder`. The
other end of the protocol is described in `worker.sh`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oscar.compute.local.engine import Engine, Exit, Sandbox
from oscar.compute.local.workfolder import SHELL, Attaching, Kit, WorkFolder
from oscar.errors import EngineError, InvocationTimeout, OscarError

_REPLY = re.compile(
    rb"ready (?P<ready>alone|shared)|(?P<id>(check)?[0-9]{1,9}) (?P<code>[0-9]{1,3}) (?P<left>[01])"
)
FIFOS = ("requests", "replies", "log")
BLOCK = 65536
LOG_PIPE = 1024 * 1024
"""Bytes of output that a script may be ahead of us, where we are allowed to have so large a pipe."""
LOG_AFTER = 0.01
"""Seconds after a script's start when we begin to read its output; what a shorter one says is read at its end."""
GRACE = (0.005, 0.02, 0.05, 0.1)
"""Seconds between looks whether left-over processes are gone."""
SILENCE = 2.0
"""Seconds after the shell's start without a word by FIFO, after which FIFOs don't work between us."""


class Deaf(Exception):
    """The shell runs in the sandbox, but FIFOs do not reach it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """How a request ended."""

    code: int
    log: bytes
    left: bool = False
    """Processes of the script are still there, or it can't be told: the worker must not be used again."""


class Capture:
    """The output of a script, at most `limit` bytes: when it is longer, its head and its tail with a mark."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._lost = 0

    def add(self, data: bytes) -> None:
        """Take more output."""
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data
            # Cut seldom: each cut moves the whole tail.
            if len(self._tail) > 2 * self._half:
                self._cut()

    def take(self) -> bytes:
        """What was kept; empty from then on."""
        if len(self._tail) > self._half:
            self._cut()
        mark = b"\n[... %d bytes left out ...]\n" % self._lost if self._lost else b""
        kept = bytes(self._head) + mark + bytes(self._tail)
        self._head, self._tail, self._lost = bytearray(), bytearray(), 0
        return kept

    def _cut(self) -> None:
        over = len(self._tail) - self._half
        del self._tail[:over]
        self._lost += over


async def whole(starting: Coroutine[Any, Any, None]) -> None:
    """Await the start of a sandbox to its end even when cancelled: what is half there can't be removed."""
    task = asyncio.ensure_future(starting)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        task.exception()  # nobody is there to hear of it
        raise


def overran(timeout: float) -> InvocationTimeout:
    """The error of a script that ran longer than `timeout` seconds."""
    return InvocationTimeout(
        f"the script ran longer than {timeout:g} s and was ended",
        field="timeout",
        fix="Raise the timeout of the service, or send the work as a job.",
    )


class Worker:
    """A sandbox that answers one request at a time.

    `start` first, `stop` in the end whatever happened between, also after a failed `start`; `ask` never twice
    at once, and never again after it raised or its reply says that processes are left.
    """

    def __init__(self, engine: Engine, name: str, folder: Path, *, log_limit: int) -> None:
        self.name = name
        self.folder = WorkFolder(engine, folder)
        self._engine = engine
        self._capture = Capture(log_limit)
        self._serial = 0
        self._asked = ""
        self._answer: asyncio.Future[tuple[int, bool]] | None = None
        self._partial = b""
        self._requests = self._replies = self._log = -1
        self._log_size = BLOCK
        self._hears_log = False
        self._watch: asyncio.Task[Exit | None] | None = None
        self._alone = True
        self._aborted: OscarError | None = None
        self._attaching: Attaching | None = None

    # Its life.

    async def start(self, kit: Kit, *, wait: float) -> None:
        """Start the sandbox and wait at most `wait` seconds until its shell listens.

        Raises:
            Deaf: FIFOs don't work between this server and the engine's sandboxes.
            EngineError, ImageError: it did not start, with what it said.
        """
        await asyncio.to_thread(self.folder.furnish, kit)
        self._attaching = kit.attaching
        kit = await self.folder.attached(kit, self.name)
        self._make_fifos()
        ready = self._expect("ready")
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
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    async def stop(self) -> None:
        """End the sandbox with all that runs in it, and remove all trace of it.

        Raises:
            EngineError: the engine could not do it.
        """
        if self._watch is not None:
            self._watch.cancel()
        self._close()
        try:
            await self._engine.remove(self.name)
        finally:
            if self._attaching is not None:
                await self._attaching.detach(self.name)
            await self.folder.remove()

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
        self._serial += 1
        answer = self._expect(str(self._serial))
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(LOG_AFTER, self._listen_to_log)]
        if timeout is not None:
            timers.append(loop.call_later(timeout, self._give_up, timeout))
        self._send()
        try:
            code, left = await answer
        finally:
            for timer in timers:
                timer.cancel()
        if left and self._alone:
            left = not await self._settles()
        return Reply(code, self._capture.take(), left or not self._alone)

    def _give_up(self, timeout: float) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(overran(timeout))

    async def kill(self) -> None:
        """End all that runs in the sandbox; it is ended when this returns."""
        await self._engine.kill(self.name)
        if self._watch is not None:
            await asyncio.wait({self._watch})

    async def _settles(self) -> bool:
        """Whether left-over processes end by themselves in a moment, as `tee` does after its input."""
        for pause in GRACE:
            await asyncio.sleep(pause)
            self._serial += 1
            looked = self._expect(f"check{self._serial}")
            self._send()
            if not (await looked)[1]:
                return True
        return False

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
                self._alone = not ready.result()[1]
                return
            started = (self.folder.work / "ready").stat().st_size > 0
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

    # Its FIFOs.

    def _make_fifos(self) -> None:
        work = self.folder.work
        for name in FIFOS:
            os.mkfifo(work / name)
        (work / "ready").touch()
        for name in (*FIFOS, "ready"):
            (work / name).chmod(0o666)  # the user of the image may be anybody
        flags = os.O_RDWR | os.O_NONBLOCK  # both ends are ours too: no end of file between requests
        self._requests, self._replies, self._log = (os.open(work / name, flags) for name in FIFOS)
        with contextlib.suppress(OSError):  # more than this user may have: it stays as small as it is
            fcntl.fcntl(self._log, fcntl.F_SETPIPE_SZ, LOG_PIPE)
        self._log_size = fcntl.fcntl(self._log, fcntl.F_GETPIPE_SZ)
        asyncio.get_running_loop().add_reader(self._replies, self._on_reply)

    def _close(self) -> None:
        loop = asyncio.get_running_loop()
        for fd in (self._replies, self._log):
            if fd >= 0:
                loop.remove_reader(fd)
        for fd in (self._requests, self._replies, self._log):
            if fd >= 0:
                os.close(fd)
        self._requests = self._replies = self._log = -1

    def _expect(self, what: str) -> asyncio.Future[tuple[int, bool]]:
        self._asked = what
        self._answer = asyncio.get_running_loop().create_future()
        return self._answer

    def _send(self) -> None:
        os.write(self._requests, self._asked.encode() + b"\n")

    def _listen_to_log(self) -> None:
        # Not from the start: a short script's output waits in the pipe, which saves a wake-up for each line.
        if self._log >= 0:
            asyncio.get_running_loop().add_reader(self._log, self._on_log)
            self._hears_log = True

    def _on_log(self) -> int:
        """Take what is there, at most one read; its size."""
        try:
            data = os.read(self._log, BLOCK)
        except BlockingIOError:
            return 0
        self._capture.add(data)
        return len(data)

    def _end_log(self) -> None:
        """Take all that the script has written before its end, and listen no more."""
        if self._hears_log:
            asyncio.get_running_loop().remove_reader(self._log)
            self._hears_log = False
        # Not more than it held then: left-over processes may go on writing.
        left = self._log_size
        while left > 0 and self._on_log() == BLOCK:
            left -= BLOCK

    def _on_reply(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._partial += os.read(self._replies, 4096)
        *lines, self._partial = self._partial.split(b"\n")
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        answer = self._answer
        if answer is None or answer.done():
            return
        found = _REPLY.fullmatch(line)
        if found is None:
            answer.set_exception(EngineError("the script wrote into the FIFOs of its worker"))
        elif found["ready"] and self._asked == "ready":
            answer.set_result((0, found["ready"] == b"shared"))
        elif found["id"] == self._asked.encode():
            self._end_log()
            answer.set_result((int(found["code"]), found["left"] == b"1"))

    def _on_exit(self, watch: asyncio.Task[Exit | None]) -> None:
        answer = self._answer
        if watch.cancelled() or answer is None or answer.done():
            return
        error = watch.exception()
        if error is None:
            error = EngineError(f"the worker died while the script ran{self._last_words(watch.result())}")
        answer.set_exception(error)
