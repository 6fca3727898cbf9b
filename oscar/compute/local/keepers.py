"""Starts keepers of processes: a line to the one small process, ready at any time, that forks them (`shim.py`).

An interpreter's start for each job costs more than the job. The forking process belongs to one server: it ends with
it, and a new one takes its place when it dies. Keepers outlive both. Called by `processes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from oscar.errors import EngineError

SHIM = Path(__file__).with_name("shim.py")
_TRIES = 3
_FULL_PAUSE = 0.005
"""Seconds before a message is sent again to a process that has hundreds to take yet."""
_ANSWER = 4096


class Keepers:
    """Forks keepers. Usable from one loop after another; makes its process when it is first needed."""

    def __init__(self) -> None:
        self._line: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._changing = threading.Lock()

    async def start(self, task: dict[str, Any], lock: int, began: Path) -> None:
        """Have a task kept; returns when its command runs, or is about to.

        Args:
            task: see `shim.keep`.
            lock: a descriptor that the keeper holds as long as it lives.
            began: a file that the keeper writes first. As long as it is missing nothing has begun, and a keeper or
                a forking process that was killed does no harm: it is tried again.

        Raises:
            EngineError: it did not start.
        """
        packed = marshal.dumps(task)
        for _ in range(_TRIES):
            said = await self._ask(packed, lock)
            if said == b"started":
                return
            if said or began.exists():
                raise EngineError(f"the process did not start: {said.decode('utf-8', 'replace').strip()}")
        raise EngineError("the process did not start: its keeper was killed")

    async def _ask(self, packed: bytes, lock: int) -> bytes:
        """What the keeper says; empty when it, or who forks it, died before it said anything."""
        answer, theirs = os.pipe()
        try:
            try:
                await self._send(packed, theirs, lock)
            finally:
                os.close(theirs)
            return await _said(answer)
        finally:
            os.close(answer)

    async def _send(self, packed: bytes, answer: int, lock: int) -> None:
        file = os.memfd_create("task")
        try:
            os.write(file, packed)
            for _ in range(_TRIES):
                line = self._line
                if line is None:
                    line = await asyncio.to_thread(self._open, None)
                with contextlib.suppress(ConnectionError):
                    await _whole(line, [file, answer, lock])
                    return
                await asyncio.to_thread(self._open, line)
            raise EngineError("the process that starts others died again and again")
        finally:
            os.close(file)

    def _open(self, broken: socket.socket | None) -> socket.socket:
        """A line to a living process, another one than `broken`."""
        with self._changing:
            if self._line is None or self._line is broken:
                self._end()
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                ours.setblocking(False)
                with theirs:
                    self._process = subprocess.Popen(
                        [sys.executable, "-I", "-S", str(SHIM)],
                        stdin=theirs.fileno(),
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                        cwd="/",
                        env={},
                    )
                self._line = ours
            return self._line

    def close(self) -> None:
        """End the forking process; keepers stay. Blocking, for a moment."""
        with self._changing:
            self._end()

    def _end(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None:
            self._process.wait()
            self._process = None


async def _whole(line: socket.socket, descriptors: list[int]) -> None:
    while True:
        try:
            socket.send_fds(line, [b"1"], descriptors)
        except BlockingIOError:
            await asyncio.sleep(_FULL_PAUSE)
        else:
            return


async def _said(answer: int) -> bytes:
    """The first words in that pipe, empty when it ends without."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(answer, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(answer)
    return os.read(answer, _ANSWER)
