"""This machine as an engine for functions: implements `Compute` and `Invokes`.

Made by `app.py` with an `Engine` that `detect` chose. Keeps one `Attempt` for each run and their folders and
logs; synchronous calls go to `workers`. After a restart, `start` finds all runs again by their folders.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from pathlib import Path
from typing import Any

from oscar import telemetry
from oscar.compute.base import Answer, Capacity, LogLine, Metered, Phase, Run, RunState, Staying, VolumeUsage
from oscar.compute.crew import CrewStats, Limits
from oscar.compute.crews import PREFIX as WORKERS
from oscar.compute.local import exposed, machine
from oscar.compute.local.attachments import Attachments
from oscar.compute.local.attempt import PREFIX, Attempt, Surroundings
from oscar.compute.local.engine import Engine
from oscar.compute.local.logs import Logs
from oscar.compute.local.mounts import Mounts
from oscar.compute.local.records import GONE, Asked, RunFolder
from oscar.compute.local.volumes import Volumes
from oscar.compute.local.workers import Workers
from oscar.errors import EngineError, ImageError, RunNotFound, StorageFull, Unsupported
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.objects.base import FileStore, ObjectStore
from oscar.objects.reach import Reach
from oscar.supervisor.providers import Clients, Providers
from oscar.supervisor.trees import remove_tree

_TRIM_EVERY = 2.0
"""Seconds between looks at the sizes of growing logs."""


class LocalCompute:
    """Implements `Compute` with containers or processes of this machine."""

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        store: ObjectStore,
        *,
        store_for: Callable[[Run], ObjectStore] | None = None,
        chosen: bool = False,
        limits: Limits | None = None,
        recheck: Callable[[], Awaitable[None]] | None = None,
        images: bool | None = None,
        own_store: Callable[[Service], Awaitable[MinIOProvider]] | None = None,
        reach: Reach | None = None,
    ) -> None:
        """Put it together; nothing happens before `start`.

        Args:
            engine: runs the scripts; it was probed.
            folder: the data folder; `runs`, `logs` and `workers` below it are ours.
            store: the platform's own store, with all rights.
            store_for: the own store with the rights that one run has, when not all.
            chosen: the engine was asked for by name, so it may ignore images if it has none.
            limits: of synchronous calls.
            recheck: tries the engine again in the background, where `start` must be fast.
            images: whether new volumes have a file system of their own; None to find out.
            own_store: the own store's address with the keys of a service's owner, for programs beside this one.
            reach: what users' services may connect to for their files; None for anything.
        """
        self.engine = engine
        self.logs_folder = Logs(folder / "logs")
        self._runs = folder / "runs"
        self._chosen = chosen
        self._clients = clients = Clients(reach)
        own = store_for or (lambda _: store)
        self._recheck = recheck

        def providers(run: Run) -> Providers:
            return Providers(run.service, own(run), self._clients)

        def mounted(service: Service) -> FileStore:
            place = service.mount
            return Providers(service, store, self._clients).open(place.storage_provider if place else "")

        self.volumes = Volumes(folder / "volumes", engine, images=images)
        self._mounts = Mounts(
            folder / "mounts",
            engine,
            mounted,
            own_store,
            checked=lambda service: clients.way(service.owner) is not None,
        )
        self.attachments = Attachments(engine, self.volumes, self._mounts)
        self._workers = Workers(engine, folder / "workers", providers, limits, self.attachments)
        self._around = Surroundings(engine, self.logs_folder, providers, self.attachments, self._tell)
        self._attempts: dict[str, Attempt] = {}
        self._changes: asyncio.Queue[RunState] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._trimming: asyncio.Task[None] | None = None
        self._description = ""
        self._log = telemetry.get("compute")

    # Its own life.

    async def start(self) -> None:
        """Find all runs that are under way; see `Compute.start`."""
        facts = self.engine.facts
        self._description = f"{facts.version} ({facts.detail})" if facts.detail else facts.version
        for name in ("runs", "logs"):
            await asyncio.to_thread((self._runs.parent / name).mkdir, parents=True, exist_ok=True, mode=0o700)
        await self.volumes.start()
        found = await asyncio.to_thread(_find, self._runs)
        going = {PREFIX + asked.name for _, asked, state in found if state.phase is not Phase.DONE}
        await self._mounts.start(lambda name: self._goes_on(name, going))
        await self._workers.start()
        for place, asked, state in found:
            attempt = Attempt(place, asked, self._around)
            self._attempts[asked.name] = attempt
            attempt.begin(state)
        self._background(self._sweep())
        self._trimming = self._background(self._trim())
        if self._recheck:
            self._background(self._call(self._recheck))

    async def stop(self) -> None:
        """Let go of everything; runs go on; see `Compute.stop`."""
        await self._workers.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*(attempt.let_go() for attempt in self._attempts.values()))
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._attempts.clear()
        await self._mounts.stop()
        await self.volumes.stop()
        await self.engine.close()
        await self._clients.close()

    async def apply(self, service: Service) -> None:
        """Warm workers, and the image when it is wanted beforehand; see `Compute.apply`."""
        await self._workers.apply(service)
        if service.image_prefetch and self.engine.name != "process":
            self._background(self._prefetch(service.image))

    async def remove(self, owner: str, service_name: str) -> None:
        """End the service's workers; see `Compute.remove`."""
        await self._workers.remove(owner, service_name)

    def stats(self) -> list[CrewStats]:
        """How warm workers do; see `HasWorkers`."""
        return self._workers.stats()

    async def metered(self) -> list[Metered]:
        """What warm workers use; see `Measures`."""
        return await self._workers.metered()

    async def _goes_on(self, name: str, going: Collection[str]) -> bool:
        """Whether a sandbox that has a mount still needs it."""
        if name.startswith(PREFIX):
            return name in going
        # Warm workers take no requests of another server.
        return not name.startswith(WORKERS) and await self.engine.running(name) is True

    # Volumes.

    async def create_volume(self, key: str, size: int, *, owner: str) -> None:  # noqa: ARG002 - a key is enough here
        """See `HasVolumes.create_volume`."""
        await self.volumes.create(key, size)

    async def delete_volume(self, key: str) -> None:
        """See `HasVolumes.delete_volume`."""
        await self.volumes.delete(key)

    async def volume_usage(self, key: str) -> VolumeUsage:
        """See `HasVolumes.volume_usage`."""
        return await self.volumes.usage(key)

    # Runs.

    async def submit(self, run: Run, *, adopt: bool = False) -> None:
        """Take the run on, or go on with it; see `Compute.submit`."""
        attempt = self._attempts.get(run.name)
        if attempt is not None:
            attempt.give(run)
            await attempt.known.wait()
            if self._attempts.get(run.name) is not attempt:
                raise EngineError(f"the run {run.name} could not be recorded")
            return
        if adopt:
            raise RunNotFound(f"there is no run {run.name}")
        self.logs_folder.path(run.name)  # refuses names that are no file names
        attempt = Attempt(RunFolder(self._runs / run.name), Asked.of(run), self._around, run)
        self._attempts[run.name] = attempt
        try:
            await asyncio.to_thread(self._create, attempt)
        except OSError as error:
            del self._attempts[run.name]
            attempt.known.set()
            raise StorageFull(f"the run can't be recorded: {error.strerror}") from error
        self._tell(attempt.state)
        attempt.begin()

    def _create(self, attempt: Attempt) -> None:
        self.logs_folder.path(attempt.asked.name).touch(mode=0o600)
        attempt.place.create(attempt.asked)

    async def cancel(self, name: str) -> None:
        """Stop the run; see `Compute.cancel`."""
        attempt = self._attempts.get(name)
        if attempt is not None:
            await attempt.known.wait()
            await attempt.cancel()

    async def forget(self, name: str) -> None:
        """Remove the run but for its log; see `Compute.forget`."""
        attempt = self._attempts.pop(name, None)
        if attempt is None:
            return
        await attempt.let_go()
        # Out of the way first: a call of an earlier server that starts the container late finds no folder to
        # mount, and a crash now leaves what the next start sweeps up.
        gone = await asyncio.to_thread(attempt.place.leave)
        self._background(self._remove(name, gone))

    async def _remove(self, name: str, gone: Path) -> None:
        try:
            await self.engine.remove(PREFIX + name)
            await self._remove_folder(gone)
        except (EngineError, OSError) as error:
            # The next start sweeps it up.
            self._log.warning("a run could not be removed", run=name, reason=str(error))

    async def _remove_folder(self, folder: Path) -> None:
        try:
            await asyncio.to_thread(remove_tree, folder)
        except PermissionError:
            await self.engine.own(folder)
            await asyncio.to_thread(remove_tree, folder)

    async def observe(self) -> AsyncIterator[RunState]:
        """All runs as they are, then their changes; see `Compute.observe`."""
        changes: asyncio.Queue[RunState] = asyncio.Queue()
        self._changes = changes
        for attempt in list(self._attempts.values()):
            yield attempt.state
        while True:
            yield await changes.get()

    def _tell(self, state: RunState) -> None:
        if self._changes is not None:
            self._changes.put_nowait(state)

    # Logs.

    async def logs(
        self, name: str, *, follow: bool = False, tail: int | None = None
    ) -> AsyncIterator[LogLine]:
        """The run's log; see `Compute.logs`."""

        def going() -> bool:
            attempt = self._attempts.get(name)
            return attempt is not None and not attempt.done

        async for line in self.logs_folder.read(name, going=going if follow else None, tail=tail):
            yield line

    async def drop_logs(self, name: str) -> None:
        """Remove the run's log; see `Compute.drop_logs`."""
        await asyncio.to_thread(self.logs_folder.drop, name)

    # What it can do.

    async def capacity(self) -> Capacity:
        """This machine's cores and memory, less the limits of runs under way; see `Compute.capacity`."""
        cpu, memory = await asyncio.to_thread(machine.size)
        asked = [attempt.asked for attempt in self._attempts.values() if not attempt.done]
        return Capacity(
            cpu=cpu,
            cpu_free=max(0, cpu - sum(each.cpu for each in asked)),
            memory=memory,
            memory_free=max(0, memory - sum(each.memory for each in asked)),
            gpu=machine.gpus() if self.engine.facts.gpu else 0,
        )

    @property
    def gpus_for_runs(self) -> int | None:
        """See `Compute.gpus_for_runs`."""
        return machine.gpus() if self.engine.facts.gpu else None

    def describe(self) -> str:
        """See `Compute.describe`."""
        return self._description

    def check(self, service: Service) -> list[str]:
        """What is not honoured here; see `Compute.check`."""
        warnings: list[str] = []
        facts = self.engine.facts
        if self.engine.name == "process":
            if not self._chosen:
                raise Unsupported(
                    f'the image "{service.image}" can\'t be run: there is no container engine on this machine',
                    field="image",
                    fix="Install podman or docker, or start the server with OSCAR_ENGINE=process.",
                )
            if not service.script:
                raise Unsupported(
                    "this machine runs processes, which have no image whose own command could run",
                    field="script",
                    fix="Give the service a script.",
                )
            warnings.append("image: not used, scripts run with the programs of this machine")
        if not facts.memory:
            warnings.append("memory: the limit is not kept for all processes of a script together")
        if not facts.cpu:
            warnings.append("cpu: the limit is not kept")
        if service.enable_gpu and not facts.gpu:
            warnings.append("enable_gpu: this machine has no GPU that its engine can use")
        warnings += self.attachments.check(service) + exposed.check(service, self.engine)
        return warnings + [f"{field}: not honoured by this engine" for field in _ignored(service)]

    # Synchronous calls.

    def occupied(self) -> list[Staying]:
        """See `Occupies.occupied`."""
        return self._workers.occupied()

    async def invoke(self, run: Run) -> Answer:
        """See `Invokes.invoke`."""
        return await self._workers.invoke(run)

    async def prepare(self, service: Service) -> None:
        """See `Invokes.prepare`."""
        await self._workers.prepare(service)

    # In the background.

    async def idle(self) -> None:
        """Wait until what was forgotten is removed."""
        while waiting := {task for task in self._tasks if task is not self._trimming}:
            await asyncio.wait(waiting)

    def _background(self, act: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(act)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _call(self, act: Callable[[], Awaitable[None]]) -> None:
        await act()

    async def _prefetch(self, image: str) -> None:
        try:
            await self.engine.ensure_image(image)
        except ImageError as error:
            self._log.warning("an image could not be fetched beforehand", image=image, reason=error.message)

    async def _sweep(self) -> None:
        """Remove what forgotten runs have left in the engine and on the disk."""
        try:
            names = await self.engine.names(PREFIX)
        except EngineError as error:
            self._log.warning("left-overs of earlier runs can't be listed", reason=error.message)
            names = []
        for name in names:
            run = name.removeprefix(PREFIX)
            # Asked now: a run that was submitted meanwhile is known before the engine has it.
            if run not in self._attempts:
                await self._remove(run, RunFolder(self._runs / run).gone)
        for folder in await asyncio.to_thread(lambda: list(self._runs.glob(f"{GONE}*"))):
            try:
                await self._remove_folder(folder)
            except (EngineError, OSError) as error:
                self._log.warning("a folder could not be removed", folder=folder.name, reason=str(error))

    async def _trim(self) -> None:
        """Keep growing logs at their size."""
        while True:
            await asyncio.sleep(_TRIM_EVERY)
            for attempt in list(self._attempts.values()):
                if not attempt.done:
                    try:
                        await asyncio.to_thread(self.logs_folder.trim, attempt.asked.name)
                    except OSError as error:
                        reason = os.strerror(error.errno or 0)
                        self._log.warning("logs can't be kept at their size here", reason=reason)
                        return


def _find(runs: Path) -> list[tuple[RunFolder, Asked, RunState]]:
    """All runs that have a folder; what a crash left of one that was never known is removed."""
    found = []
    for path in sorted(runs.iterdir()):
        if path.name.startswith(GONE):
            continue
        place = RunFolder(path)
        asked = place.asked()
        if asked is None:
            remove_tree(path)
        else:
            found.append((place, asked, place.state()))
    return found


def _ignored(service: Service) -> list[str]:
    """Fields of the service that say something, but nothing to this engine."""
    fields = {
        "enable_sgx": service.enable_sgx,
        "ephemeral_storage_request": service.ephemeral_storage_request,
        "image_pull_secrets": service.image_pull_secrets,
        "interlink_node_name": service.interlink_node_name,
        "kserve": service.kserve,
    }
    return [name for name, value in fields.items() if value]
