"""Engines for the contract suite of `Compute`: each is a machine on which a server can be started again and again.

Called by `tests/contract/test_compute*.py`. Stores are those of a real S3 server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from asyncio.base_subprocess import BaseSubprocessTransport
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oscar.compute.base import Compute, LogLine, Phase, Run, RunState
from oscar.compute.fake import FakeCompute, World
from oscar.compute.kubernetes.backend import KubernetesCompute, Options, installation_bucket
from oscar.compute.kubernetes.cluster import Cluster, config
from oscar.compute.kubernetes.kinds import NAMESPACE
from oscar.compute.kubernetes.launch import Launcher, Wares
from oscar.compute.kubernetes.logs import Logs
from oscar.compute.kubernetes.manifests import Staging
from oscar.compute.kubernetes.names import Names
from oscar.compute.kubernetes.tenancy import Tenancy
from oscar.compute.local.backend import LocalCompute
from oscar.compute.local.containers import Containers
from oscar.compute.local.engine import Engine, Facts
from oscar.compute.local.processes import Processes
from oscar.model.job import run_name
from oscar.model.quota import Limits
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.objects.base import ObjectStore
from oscar.objects.reach import Reach

BUCKET = "private"


@dataclass(slots=True)
class Server:
    """A running `Compute`, and what was seen of its runs."""

    compute: Compute
    image: str
    cpu: str = "1"
    patience: float = 90
    seen: dict[str, list[RunState]] = field(default_factory=dict)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def watch(self) -> None:
        """Note all states."""
        async for state in self.compute.observe():
            self.seen.setdefault(state.name, []).append(state)
            async with self._changed:
                self._changed.notify_all()

    async def reach(self, name: str, *phases: Phase) -> RunState:
        """Wait until a run is in one of the phases."""
        async with asyncio.timeout(self.patience), self._changed:
            await self._changed.wait_for(lambda: name in self.seen and self.seen[name][-1].phase in phases)
        return self.seen[name][-1]

    async def done(self, name: str) -> RunState:
        """Wait for a run's end."""
        return await self.reach(name, Phase.DONE)

    async def running(self, name: str) -> RunState:
        """Wait until a run's script has started."""
        return await self.reach(name, Phase.RUNNING, Phase.SETTLING, Phase.DONE)

    def order(
        self, script: str, payload: bytes | Path = b"{}", *, timeout: float | None = None, **fields: Any
    ) -> Run:
        """A run of a new job."""
        job = f"hello-{uuid.uuid4()}"
        service = Service(
            **{
                "name": "hello",
                "image": self.image,
                "script": script,
                "cpu": self.cpu,
                "memory": "256Mi",
                **fields,
            }
        )
        return Run(run_name(job, 1), job, 1, service, payload, timeout=timeout)

    async def run(self, script: str, payload: bytes | Path = b"{}", **how: Any) -> RunState:
        """Submit a run and wait for its end."""
        order = self.order(script, payload, **how)
        await self.compute.submit(order)
        return await self.done(order.name)

    async def log(self, name: str, **how: Any) -> list[LogLine]:
        """The lines of a run's log."""
        return [line async for line in self.compute.logs(name, **how)]

    async def text(self, name: str, **how: Any) -> list[str]:
        """The lines of a run's log without their times."""
        return [line.text for line in await self.log(name, **how)]


@dataclass(slots=True)
class Machine:
    """Where runs live on when a server is dropped."""

    make: Callable[[], Awaitable[Compute]]
    image: str
    store: ObjectStore
    folder: Path
    engine: str
    user_image: str = ""
    cpu: str = "1"
    patience: float = 90
    """Seconds in which a run does what is expected of it."""
    reach: Reach | None = None
    """What stores of users may be connected to, by servers that are made from now on."""

    @property
    def is_real(self) -> bool:
        """Whether scripts are programs in a sandbox."""
        return self.engine != "fake"

    @contextlib.asynccontextmanager
    async def serve(self, *, drop: bool = False) -> AsyncIterator[Server]:
        """A server for the length of a block; with `drop` it goes as by kill -9, as far as that can be had here.

        What a dropped server holds in this process (tasks, streams) is taken from it without its knowing.
        """
        before = asyncio.all_tasks()
        compute = await self.make()
        await compute.start()
        server = Server(compute, self.image, self.cpu, self.patience)
        watching = asyncio.create_task(server.watch())
        await asyncio.sleep(0)
        try:
            yield server
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            if drop and isinstance(compute, LocalCompute):
                await _take_away(before)
                await compute.engine.close()
            elif drop and isinstance(compute, KubernetesCompute):
                await _take_away(before)
                await compute.cluster.close()
            else:
                await compute.stop()

    async def clean(self) -> None:
        """Remove all that is left in the engine."""
        compute = await self.make()
        if isinstance(compute, LocalCompute):
            for name in await compute.engine.names():
                await compute.engine.remove(name)
            await compute.engine.close()
        elif isinstance(compute, KubernetesCompute):
            await clean_cluster(compute)


async def _take_away(before: set[asyncio.Task[Any]]) -> None:
    """End all tasks that are new, without their knowing why."""
    theirs = {
        task
        for task in asyncio.all_tasks() - before - {asyncio.current_task()}
        # Python 3.11 waits for ever for a program whose start it was kept from finishing.
        if getattr(task.get_coro(), "__qualname__", "") != BaseSubprocessTransport._connect_pipes.__qualname__
    }
    for task in theirs:
        task.cancel()
    if theirs:
        await asyncio.wait(theirs)


async def clean_cluster(compute: KubernetesCompute) -> None:
    """Remove all that an installation has made in its cluster; the rest of it goes in the background."""
    for item in await compute.cluster.items(NAMESPACE, labels=compute.names.selector()):
        await compute.cluster.delete(NAMESPACE, item["metadata"]["name"])
    await compute.cluster.close()


def fake(store: ObjectStore, folder: Path) -> Machine:
    """The fake."""
    world = World(store, missing={"localhost/missing:1"})

    async def make() -> FakeCompute:
        return FakeCompute(world)

    return Machine(make, "any", store, folder, "fake")


def local(
    engine: str,
    store: ObjectStore,
    folder: Path,
    image: str,
    user_image: str = "",
    facts: Facts | None = None,
) -> Machine:
    """This machine with processes or containers."""
    installation = f"test-{folder.name}-{os.getpid()}"

    async def make() -> LocalCompute:
        made: Engine
        if engine == "process":
            made = Processes(folder / "engine", installation=installation, hidden=(folder,))
            await made.probe()
        else:
            made = Containers(engine, folder / "engine", installation=installation, facts=facts)
            if facts:
                await made.resume(facts)
            else:
                await made.probe()
        return LocalCompute(made, folder, store, chosen=True, reach=machine.reach)

    machine = Machine(make, image, store, folder, engine, user_image)
    return machine


SERVER_IMAGE = os.environ.get("OSCAR_TEST_SERVER_IMAGE", "localhost/oscar-test/server:dev")
BUSYBOX = "localhost/oscar-test/busybox:1"
USER_1001 = "localhost/oscar-test/user-1001:1"


def kubernetes(
    kubeconfig: Path,
    store: ObjectStore,
    own: Callable[[str], MinIOProvider],
    folder: Path,
    *,
    limits: Limits | None = None,
    kueue: bool = False,
    installation: str = "",
) -> Machine:
    """A cluster, with an installation of its own.

    Args:
        kubeconfig: an administrator's.
        store: the own store as this machine reaches it.
        own: by user: the same as pods reach it, with his keys.
        folder: for files in passing.
        limits: of every tenant.
        kueue: have Kueue queue the jobs.
        installation: an id; a new one when empty.
    """
    installation = installation or f"test-{uuid.uuid4().hex[:8]}"
    names = Names(installation, f"oscar-{installation}")

    async def keys(user: str) -> MinIOProvider:
        return own(user)

    async def quota(_: str) -> Limits:
        return limits or Limits()

    async def make() -> KubernetesCompute:
        cluster = Cluster(config(kubeconfig))
        tenancy = Tenancy(cluster, names, quota, "oscar")
        staging = Staging(SERVER_IMAGE)
        bucket = installation_bucket(installation)
        logs = Logs(store, bucket, folder / "logs")
        launcher = Launcher(cluster, names, tenancy, Wares(store, bucket, folder, keys), staging)
        return KubernetesCompute(cluster, names, tenancy, launcher, logs, Options(staging, kueue=kueue))

    return Machine(make, BUSYBOX, store, folder, "kubernetes", USER_1001, cpu="50m", patience=600)
