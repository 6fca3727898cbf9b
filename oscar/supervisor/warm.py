"""The talk with `worker.sh`, the loop of a warm worker: FIFOs by which it is given requests, and what comes back.

Called by whoever is beside the worker's sandbox: `compute.local.worker` on this machine, `serve` in a pod. The other
end of the protocol is described in `worker.sh`. Knows neither services nor engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oscar.errors import EngineError, InvocationTimeout

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


def overran(timeout: float) -> InvocationTimeout:
    """The error of a script that ran longer than `timeout` seconds."""
    return InvocationTimeout(
        f"the script ran longer than {timeout:g} s and was ended",
        field="timeout",
        fix="Raise the timeout of the service, or send the work as a job.",
    )


class Conversation:
    """The talk with one worker: `open`, then one request at a time, never again after one raised."""

    def __init__(self, folder: Path, *, log_limit: int, ended: Callable[[], None] | None = None) -> None:
        """Make it; nothing is on disk before `open`.

        Args:
            folder: which both ends share.
            log_limit: bytes of a script's output that are kept.
            ended: called once when the loop has ended, where nobody else would tell; without it we hold both ends of
                its answers, and their end is never seen.
        """
        self._folder = folder
        self._capture = Capture(log_limit)
        self._ended = ended
        self._serial = 0
        self._asked = ""
        self._answer: asyncio.Future[tuple[int, bool]] | None = None
        self._partial = b""
        self._requests = self._replies = self._log = -1
        self._log_size = BLOCK
        self._hears_log = False
        self._alone = True
        """Whether left-over processes can be told."""

    def open(self) -> asyncio.Future[tuple[int, bool]]:
        """Make the FIFOs; what comes back is done when the loop listens."""
        for name in FIFOS:
            os.mkfifo(self._folder / name)
        (self._folder / "ready").touch()
        for name in (*FIFOS, "ready"):
            (self._folder / name).chmod(0o666)  # the user of the image may be anybody
        flags = os.O_RDWR | os.O_NONBLOCK  # both ends are ours too: no end of file between requests
        self._requests, self._log = (os.open(self._folder / name, flags) for name in ("requests", "log"))
        hears = os.O_RDONLY | os.O_NONBLOCK if self._ended else flags
        self._replies = os.open(self._folder / "replies", hears)
        with contextlib.suppress(OSError):  # more than this user may have: it stays as small as it is
            fcntl.fcntl(self._log, fcntl.F_SETPIPE_SZ, LOG_PIPE)
        self._log_size = fcntl.fcntl(self._log, fcntl.F_GETPIPE_SZ)
        ready = self._expect("ready")
        asyncio.get_running_loop().add_reader(self._replies, self._on_reply)
        return ready

    @property
    def started(self) -> bool:
        """Whether the loop's shell runs, by a file instead of a FIFO."""
        return (self._folder / "ready").stat().st_size > 0

    def close(self) -> None:
        """Let go of the FIFOs, at whose end the loop ends too."""
        loop = asyncio.get_running_loop()
        for fd in (self._replies, self._log):
            if fd >= 0:
                loop.remove_reader(fd)
        for fd in (self._requests, self._replies, self._log):
            if fd >= 0:
                os.close(fd)
        self._requests = self._replies = self._log = -1

    def fail(self, error: BaseException) -> None:
        """Have the request that is under way fail with that error."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    async def ask(self, *, timeout: float | None = None) -> Reply:
        """Run the script once, with what lies in the folder.

        Raises:
            InvocationTimeout: the script still runs.
            EngineError: the script wrote into the FIFOs, or what `fail` was given.
        """
        self._serial += 1
        answer = self._expect(str(self._serial))
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(LOG_AFTER, self._listen_to_log)]
        if timeout is not None:
            timers.append(loop.call_later(timeout, lambda: self.fail(overran(timeout))))
        self._send()
        try:
            code, left = await answer
        finally:
            for timer in timers:
                timer.cancel()
        if left and self._alone:
            left = not await self._settles()
        return Reply(code, self._capture.take(), left or not self._alone)

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
        try:
            said = os.read(self._replies, 4096)
        except BlockingIOError:
            return
        if not said:
            asyncio.get_running_loop().remove_reader(self._replies)
            if self._ended:
                self._ended()
            return
        self._partial += said
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
            self._alone = found["ready"] == b"alone"
            answer.set_result((0, False))
        elif found["id"] == self._asked.encode():
            self._end_log()
            answer.set_result((int(found["code"]), found["left"] == b"1"))
