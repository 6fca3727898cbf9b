"""The engine for Kubernetes on a real cluster, for tests: warm workers, exposed services and volumes in pods.

Called by the fixtures of the contract suites and by `benchmarks/kubernetes.py`. The cluster is the one of `KUBECONFIG`
(`tests.cluster` starts one); its nodes must have the images named here, and reach `OSCAR_TEST_HOST`, this machine.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from oscar.compute.crew import Limits
from oscar.compute.kubernetes import kinds
from oscar.compute.kubernetes.cluster import Cluster, config
from oscar.compute.kubernetes.exposed import PodExposes
from oscar.compute.kubernetes.names import Names
from oscar.compute.kubernetes.routes import Routes, Way
from oscar.compute.kubernetes.sync import PodInvokes
from oscar.compute.kubernetes.worker_manifests import WORKER, Sidecar
from oscar.model.storage import MinIOProvider
from oscar.objects.base import ObjectStore
from tests.invoking import House, Scenario, Street

BUSYBOX = "localhost/oscar-test/busybox:1"
USER_1001 = "localhost/oscar-test/user-1001:1"
SERVER = os.environ.get("OSCAR_TEST_SERVER_IMAGE", "localhost/oscar-test/server:dev")
CPU = "150m"
"""What a pod of a test asks for: several suites share a small node."""
MEMORY = "96Mi"


@dataclass(slots=True)
class Site:
    """A cluster, with an installation of its own for one test."""

    kubeconfig: Path
    host: str
    """This machine's address as pods reach it."""
    names: Names = field(
        default_factory=lambda: Names(f"test-{uuid.uuid4().hex[:8]}", f"oscar-{uuid.uuid4().hex[:8]}")
    )

    def cluster(self) -> Cluster:
        """A connection, for the event loop that runs."""
        return Cluster(config(self.kubeconfig))

    async def ensure(self, cluster: Cluster, owner: str) -> str:
        """The owner's namespace, made when absent."""
        namespace = self.names.namespace_of(owner)
        body = {
            **kinds.NAMESPACE.head,
            "metadata": {"name": namespace, "labels": self.names.labels("tenant", owner)},
        }
        await cluster.create(kinds.NAMESPACE, body)
        return namespace

    async def clean(self) -> None:
        """Remove all that the installation has made; it is on its way when this returns."""
        cluster = self.cluster()
        try:
            for item in await cluster.items(kinds.NAMESPACE, labels=self.names.selector()):
                await cluster.delete(kinds.NAMESPACE, item["metadata"]["name"])
        finally:
            await cluster.close()


class PodStreet(Street):
    """Builds houses whose workers are pods."""

    def __init__(self, site: Site, folder: Path) -> None:
        super().__init__("kubernetes", folder)
        self.site = site
        self.host = site.host
        self.image = BUSYBOX
        self.user_image = USER_1001

    def live(
        self,
        scenario: Scenario,
        limits: Limits | None = None,
        store: ObjectStore | None = None,
        image: str = "",
    ) -> None:
        """Run a scenario in a new house."""

        async def run() -> None:
            try:
                async with open_pods(self.site, image or self.image, self.folder, limits, self.own) as house:
                    await scenario(house)
            finally:
                await self.site.clean()

        uvloop.run(run())


@asynccontextmanager
async def open_pods(
    site: Site, image: str, folder: Path, limits: Limits | None = None, own: MinIOProvider | None = None
) -> AsyncIterator[House]:
    """Workers in pods for the length of a block; nothing of them may be left after it."""
    cluster = site.cluster()
    limits = limits or Limits()

    async def own_store(_user: str) -> MinIOProvider:
        assert own is not None, "the service has inputs or outputs"
        return own

    async def present() -> list[str]:
        pods = await cluster.items(kinds.POD, labels=site.names.selector(WORKER))
        return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    async def kill(name: str) -> None:
        for pod in await cluster.items(kinds.POD, labels=site.names.selector(WORKER)):
            if pod["metadata"]["name"] == name:
                await cluster.delete(kinds.POD, name, pod["metadata"]["namespace"], grace=0)

    sidecar = Sidecar(SERVER, cpu="20m", memory="64Mi", log_limit=limits.log)
    workers = PodInvokes(
        cluster, site.names, sidecar, lambda owner: site.ensure(cluster, owner), own_store, limits
    )
    await workers.start()
    folder.mkdir(exist_ok=True)
    try:
        yield House(workers, image, folder, present, kill, CPU, MEMORY)
        await workers.stop()
        async with asyncio.timeout(60):
            while await present():  # noqa: ASYNC110 - the cluster tells nobody here
                await asyncio.sleep(0.1)
    finally:
        await cluster.close()


@asynccontextmanager
async def open_exposes(
    site: Site, *, drain: float, way: Way | None = None, own: MinIOProvider | None = None
) -> AsyncIterator[PodExposes]:
    """An engine for exposed services for the length of a block; what it keeps goes on after it."""
    cluster = site.cluster()

    async def own_store(_user: str) -> MinIOProvider:
        assert own is not None, "the service has a mount"
        return own

    exposes = PodExposes(
        cluster,
        site.names,
        lambda owner: site.ensure(cluster, owner),
        Routes(cluster, site.names, way or Way()),
        own_store,
        image=SERVER,
        drain=drain,
    )
    await exposes.start()
    try:
        yield exposes
    finally:
        await exposes.stop()
        await cluster.close()


async def kill_pod(site: Site, name: str, *, grace: int | None = 0) -> None:
    """End a pod from outside: at once, or with None in its own time."""
    cluster = site.cluster()
    try:
        for pod in await cluster.items(kinds.POD, labels=site.names.selector()):
            if pod["metadata"]["name"] == name:
                await cluster.delete(kinds.POD, name, pod["metadata"]["namespace"], grace=grace)
    finally:
        await cluster.close()
