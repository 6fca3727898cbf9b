"""Output of docker's containers into our own log files: docker keeps logs in places of its own.

A `docker logs --follow` for each running container; after a restart of this server it goes on behind the last line
that was written. podman needs none of this: its conmon writes our files itself. Called by `containers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from pathlib import Path

from oscar.compute.local import cri
from oscar.compute.local.cli import Cli

_LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z) ?(.*)", re.DOTALL)
_END = 64 * 1024
_PIECE = 16 * 1024
"""Docker keeps longer lines in pieces of this size, and prints a time before each."""
_LAST_WORDS = 30.0
"""Seconds that a container's last lines may take after its end."""


class DockerLogs:
    """The collectors of running containers by name."""

    def __init__(self, cli: Cli) -> None:
        self._cli = cli
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def collect(self, name: str, log: Path) -> None:
        """Copy the container's output into the log from now on, once."""
        if name not in self._tasks:
            self._tasks[name] = asyncio.create_task(self._copy(name, log), name=f"log of {name}")

    async def finish(self, name: str) -> None:
        """Wait until the last lines of a container that has ended are written."""
        task = self._tasks.pop(name, None)
        if task:
            await asyncio.wait([task], timeout=_LAST_WORDS)
            await _stop(task)

    async def close(self) -> None:
        """Stop collecting; what comes meanwhile is fetched later."""
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            await _stop(task)

    async def _copy(self, name: str, log: Path) -> None:
        last = last_time(log)
        since = ["--since", last] if last else []
        with log.open("ab", buffering=0) as file:
            async for row in self._cli.stream("logs", "--follow", "--timestamps", *since, name):
                if found := _LINE.match(row):
                    at = cri.normal(found[1].decode("ascii"))
                    if not last or at > last:
                        file.write(f"{at} stdout F ".encode() + joined(found[2]) + b"\n")


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def joined(text: bytes) -> bytes:
    """A line without the times that docker prints between its pieces."""
    pieces = [text[:_PIECE]]
    rest = text[_PIECE:]
    while found := _LINE.match(rest):
        pieces.append(found[2][:_PIECE])
        rest = found[2][_PIECE:]
    return b"".join([*pieces, rest])


def last_time(log: Path) -> str | None:
    """The time of the log's last line."""
    if not log.exists():
        return None
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END))
        for row in reversed(file.read().split(b"\n")):
            if found := _LINE.match(row.partition(b" ")[0]):
                return cri.normal(found[1].decode("ascii"))
    return None
