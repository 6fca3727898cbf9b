"""Exposed services on this machine: implements `Exposes` with sandboxes that listen on ports of the loopback.

Made by `app.api` beside `LocalCompute`, on the same engine. Keeps a `Crowd` of replicas for each service; after a
restart, `start` finds them again by their records and asks them whether they still answer.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from oscar import telemetry
from oscar.compute.base import Deployment, DeploymentState, Exposure, LogLine, Metered, Replica, Staying
from oscar.compute.local.attachments import Attachments
from oscar.compute.local.engine import Engine
from oscar.compute.local.exposed_fleet import Crowd, Yard
from oscar.compute.local.exposed_replica import PREFIX, Record
from oscar.compute.local.logs import MIB, Logs
from oscar.compute.local.workfolder import remove_folder
from oscar.errors import EngineError, RunNotFound, Unsupported
from oscar.model.service import Service

_TRIM_EVERY = 5.0
_LOG_MOST, _LOG_HEAD, _LOG_TAIL = 16 * MIB, 1 * MIB, 11 * MIB
"""A server that runs for months has said what matters lately."""


class LocalExposes:
    """Implements `Exposes` with containers or processes of this machine."""

    def __init__(
        self, engine: Engine, folder: Path, *, drain: float = 60.0, attachments: Attachments | None = None
    ) -> None:
        """Put it together; nothing happens before `start`.

        Args:
            engine: runs the servers; it was probed.
            folder: the data folder; `exposed` and `exposed-logs` below it are ours.
            drain: seconds that requests under way may take when their replica is replaced.
            attachments: volumes and mounts of services.
        """
        self._engine = engine
        self._folder = folder / "exposed"
        self._tasks: set[asyncio.Task[None]] = set()
        self._crowds: dict[tuple[str, str], Crowd] = {}
        self._complete = asyncio.Event()
        """All services are known, since `keep` was called."""
        self._log = telemetry.get("exposed")
        logs = Logs(folder / "exposed-logs", most=_LOG_MOST, head=_LOG_HEAD, tail=_LOG_TAIL)
        self._yard = Yard(engine, self._folder, logs, drain, attachments, set(), self._spawn)

    async def metered(self) -> list[Metered]:
        """See `Measures`."""
        found = []
        for (owner, service), crowd in list(self._crowds.items()):
            for name, gpus in crowd.names():
                used = await self._engine.cpu_time(name)
                if used is not None:
                    found.append(Metered(name, owner, service, int(used * 1e6), gpus))
        return found

    # Its own life.

    async def start(self) -> None:
        """Find the replicas of an earlier server."""
        for folder in (self._folder, self._yard.logs.folder):
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        found = await asyncio.to_thread(
            lambda: [Record.read(path) for path in sorted(self._folder.iterdir())]
        )
        for record in found:
            if record is not None:
                self._crowd(record.owner, record.service).adopt(record)
        self._spawn(self._trim(), "trim of logs")

    async def stop(self) -> None:
        """Let go of everything; replicas go on and are found again by the next `start`."""
        for crowd in self._crowds.values():
            await crowd.let_go()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._crowds.clear()

    # What is wanted.

    async def expose(self, exposure: Exposure) -> None:
        """See `Exposes.expose`."""
        service = exposure.service
        if service.expose.active:
            self._crowd(service.owner, service.name).expose(exposure)
        else:
            await self.unexpose(service.owner, service.name)

    async def unexpose(self, owner: str, service_name: str) -> None:
        """See `Exposes.unexpose`."""
        crowd = self._crowds.pop((owner, service_name), None)
        if crowd is not None:
            await crowd.close()

    async def keep(self, known: Collection[tuple[str, str]]) -> None:
        """See `Exposes.keep`."""
        self._complete.set()
        for owner, name in [key for key in self._crowds if key not in known]:
            await self.unexpose(owner, name)
        try:
            names = await self._engine.names(PREFIX)
            folders = await asyncio.to_thread(lambda: [path.name for path in self._folder.iterdir()])
            for name in {*names, *folders}:
                # Asked now: one that is started meanwhile has its record first.
                if Record.read(self._folder / name) is None:
                    await self._engine.remove(name)
                    await remove_folder(self._engine, self._folder / name)
        except (EngineError, OSError) as error:
            self._log.warning("left-overs of exposed services can't be removed", reason=str(error))

    # What is asked.

    def occupied(self) -> list[Staying]:
        """See `Occupies.occupied`."""
        return [crowd.staying() for crowd in self._crowds.values()]

    def replicas(self, owner: str, service_name: str) -> Sequence[Replica]:
        """See `Exposes.replicas`."""
        crowd = self._crowds.get((owner, service_name))
        return crowd.ready if crowd else ()

    async def wait_ready(self, owner: str, service_name: str) -> bool:
        """See `Exposes.wait_ready`."""
        if (owner, service_name) not in self._crowds:
            await self._complete.wait()
        crowd = self._crowds.get((owner, service_name))
        return crowd is not None and await crowd.wait_ready()

    async def deployment(self, owner: str, service_name: str) -> Deployment:
        """See `Exposes.deployment`."""
        crowd = self._crowds.get((owner, service_name))
        if crowd is None:
            known = self._complete.is_set()
            reason = "The engine knows no such service" if known else "The server is still being started"
            return Deployment(DeploymentState.UNAVAILABLE, reason, 0)
        return crowd.deployment()

    async def deployment_logs(
        self, owner: str, service_name: str, *, tail: int | None = None
    ) -> AsyncIterator[LogLine]:
        """See `Exposes.deployment_logs`."""
        crowd = self._crowds.get((owner, service_name))
        names = await asyncio.to_thread(crowd.log_names) if crowd else []
        if not names:
            raise RunNotFound(f"no replica of {service_name} has a log")
        lines = await asyncio.gather(*(self._lines(name, tail) for name in names))
        for line in _newest(heapq.merge(*lines, key=lambda line: line.time), tail):
            yield line

    async def _lines(self, name: str, tail: int | None) -> Sequence[LogLine]:
        try:
            return [line async for line in self._yard.logs.read(name, tail=tail)]
        except RunNotFound:  # dropped meanwhile
            return []

    # In the background.

    def _crowd(self, owner: str, name: str) -> Crowd:
        key = owner, name
        if key not in self._crowds:
            self._crowds[key] = Crowd(self._yard, owner, name)
        return self._crowds[key]

    def _spawn(self, act: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(act, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._log.error("bug in the care of replicas", task=task.get_name(), exc_info=task.exception())

    async def _trim(self) -> None:
        while True:
            await asyncio.sleep(_TRIM_EVERY)
            for crowd in list(self._crowds.values()):
                try:
                    await asyncio.to_thread(crowd.trim_logs)
                except OSError as error:
                    self._log.warning("logs can't be kept at their size here", reason=error.strerror)
                    return


def _newest(lines: Iterator[LogLine], tail: int | None) -> Iterator[LogLine]:
    return lines if tail is None else iter(deque(lines, maxlen=tail))


def check(service: Service, engine: Engine) -> list[str]:
    """What of an exposed service this engine can't honour, as warnings for its owner.

    Raises:
        Unsupported: it can't keep it running at all.
    """
    expose = service.expose
    if not expose.active:
        return []
    if engine.shares_network:
        if expose.default_command or not service.script:
            raise Unsupported(
                "this machine runs processes, which have no image whose own command could run",
                field="expose.default_command",
                fix="Give the service a script that starts its server on port $PORT.",
            )
        return ["expose.api_port: processes share this machine's network; the server must listen on $PORT"]
    if "--network=none" in engine.facts.options:
        raise Unsupported(
            "containers have no network on this machine, so nothing can reach a server in them",
            field="expose.api_port",
            fix="`oscar doctor` says why; or start the server with OSCAR_ENGINE=process.",
        )
    return []
