"""Who has ended: one stream of events of podman or docker for all containers of this installation.

The stream can break (a daemon restarts, a journal is rotated), so after each connection all containers are listed
once, and from time to time as long as somebody waits. Called by `containers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from oscar.compute.local.cli import Cli
from oscar.errors import EngineError

LABEL = "oscar.installation"
_RELIST = 30.0
"""Seconds after which the containers are listed again although no event came."""
_PAUSES = (0.1, 0.5, 2.0, 10.0)
"""Seconds before the stream is opened again."""
_OVERLAP = 5.0
"""Seconds before the opening of a stream from which on events are asked for."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A container's end; `code` None when it is gone without a trace."""

    code: int | None
    finished: int
    """Unix milliseconds."""


class DockerExits:
    """Futures of ends by container name; the stream is closed when nobody has waited for a while."""

    def __init__(self, cli: Cli, installation: str) -> None:
        self._cli = cli
        self._filters = ("--filter", f"label={LABEL}={installation}")
        self._waiting: dict[str, asyncio.Future[Ended]] = {}
        self._settled: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def expect(self, name: str) -> asyncio.Future[Ended]:
        """The end of a container that is about to be started, or already runs."""
        if name not in self._waiting:
            self._waiting[name] = asyncio.get_running_loop().create_future()
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run(), name="container events")
        return self._waiting[name]

    def started(self, name: str) -> None:
        """It certainly exists by now: from here on, being absent means that it is gone."""
        if name in self._waiting:
            self._settled.add(name)

    def drop(self, name: str, ended: Ended | None = None) -> None:
        """No event is needed any more; who still waits gets this end, or that there is no trace."""
        self._settled.discard(name)
        future = self._waiting.pop(name, None)
        if future and not future.done():
            future.set_result(ended or Ended(None, 0))

    async def close(self) -> None:
        """End the stream."""
        task, self._task = self._task, None
        if task:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for name in list(self._waiting):
            self.drop(name)

    async def _run(self) -> None:
        failures = 0
        while self._waits():
            began = time.monotonic()
            reader = asyncio.create_task(self._read())
            try:
                await self._list_while(reader)
            finally:
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError, EngineError):
                    await reader
            failures = 0 if time.monotonic() - began >= _RELIST else failures + 1
            if self._waits():
                await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])

    def _waits(self) -> bool:
        return any(not future.done() for future in self._waiting.values())

    async def _list_while(self, reader: asyncio.Task[None]) -> None:
        """List the containers now and then until the stream has ended or nobody waits."""
        while self._waits() and not reader.done():
            with contextlib.suppress(EngineError):  # asked again; the engine's state shows in `probe`
                await self._list()
            await asyncio.wait([reader], timeout=_RELIST)

    async def _read(self) -> None:
        since = f"{time.time() - _OVERLAP:.0f}"
        filters = ("--filter", "type=container", "--filter", "event=die", "--filter", "event=destroy")
        async for row in self._cli.stream(
            "events", "--format", "{{json .}}", "--since", since, *filters, *self._filters
        ):
            with contextlib.suppress(ValueError, KeyError):  # a line cut by the tool's end
                self._take(json.loads(row))

    def _take(self, event: dict[str, Any]) -> None:
        actor = event.get("Actor", {}).get("Attributes", {})
        name, now = str(actor.get("name", "")), int(time.time() * 1000)
        if event.get("Action") == "die":
            self._resolve(name, Ended(int(actor["exitCode"]), now))
        elif event.get("Action") == "destroy" and name in self._settled:
            self._resolve(name, Ended(None, now))

    async def _list(self) -> None:
        waiting = set(self._waiting) & self._settled
        out = await self._cli.call(
            "ps", "-a", "--no-trunc", *self._filters, "--format", "{{.Names}}\t{{.State}}\t{{.Status}}"
        )
        states = dict(_rows(out))
        for name in waiting:
            state, status = states.get(name, ("gone", ""))
            if state == "gone":
                self._resolve(name, Ended(None, int(time.time() * 1000)))
            elif state in {"exited", "dead"}:
                self._resolve(name, Ended(_exit_code(status), int(time.time() * 1000)))

    def _resolve(self, name: str, ended: Ended) -> None:
        future = self._waiting.get(name)
        if future and not future.done():
            future.set_result(ended)


def _rows(out: str) -> Iterator[tuple[str, tuple[str, str]]]:
    for row in out.splitlines():
        name, _, rest = row.partition("\t")
        state, _, status = rest.partition("\t")
        yield name, (state.lower(), status)


def _exit_code(status: str) -> int | None:
    """The code in `Exited (5) 3 seconds ago`."""
    _, _, rest = status.partition("(")
    number = rest.partition(")")[0]
    return int(number) if number.lstrip("-").isdigit() else None
