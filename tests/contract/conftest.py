"""Fixtures of the suites of engines: machines with processes, podman and docker, where those work."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from oscar.compute.local import detect
from oscar.compute.local.engine import Facts
from oscar.errors import EngineMissing
from oscar.model.quota import Limits
from oscar.model.storage import MinIOProvider
from oscar.model.user import ADMIN
from oscar.objects.base import ObjectStore
from oscar.objects.s3 import S3Store
from tests import computing, images, pods, s3_server, stores
from tests.cluster.cluster import Cluster
from tests.computing import Machine
from tests.invoking import Street

REAL = pytest.param("kubernetes", marks=[pytest.mark.real, pytest.mark.long, pytest.mark.timeout(900)])
CONTAINERS = [pytest.param(name, marks=pytest.mark.containers) for name in ("podman", "docker")]


@dataclass(frozen=True, slots=True)
class Tool:
    """A container engine that works here."""

    name: str
    kept: Path
    """The file in which `detect` wrote down what it can do."""
    facts: Facts
    image: str
    user_image: str


class Tools:
    """Finds out about each container engine what it can do: once for all of pytest-xdist's workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Tool | str] = {}

    def get(self, name: str) -> Tool:
        if name not in self._known:
            try:
                self._known[name] = asyncio.run(self._find(name))
            except (EngineMissing, images.ImageImpossible, OSError, subprocess.SubprocessError) as why:
                self._known[name] = str(why)
        found = self._known[name]
        if isinstance(found, str):
            pytest.skip(f"{name} does not work here: {found}")
        return found

    async def _find(self, name: str) -> Tool:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            place = detect.Place(self._folder, "test-facts")
            engine = await detect.choose(name, place)
            await engine.close()
            kept = place.folder / f"{name}.json"
            return Tool(name, kept, engine.facts, images.busybox(name), images.busybox(name, "USER 1001"))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """SQLAlchemy's URL of a database with the present schema and no rows, of each kind."""
    if request.param == "sqlite":
        return stores.sqlite(tmp_path / "oscar.db")
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    base = tmp_path_factory.getbasetemp()
    # A worker has a folder of its own in that of the run.
    return Tools((base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "tools")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.Server]:
    with s3_server.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def store(s3: s3_server.Server) -> ObjectStore:
    return S3Store(s3.endpoint, s3_server.ALICE.access_key, s3_server.ALICE.secret_key)


@pytest.fixture(scope="session")
def bridge_s3(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.Server]:
    """An S3 server that pods reach."""
    with s3_server.running(tmp_path_factory.mktemp("s3"), host=kubernetes.host) as server:
        yield server


def _on_cluster(
    kubernetes: Cluster, bridge_s3: s3_server.Server, folder: Path, limits: Limits | None = None
) -> Iterator[Machine]:
    admin = s3_server.ADMIN

    def own(user: str) -> MinIOProvider:
        keys = admin if user == ADMIN else s3_server.ALICE
        return MinIOProvider(
            endpoint=bridge_s3.endpoint, access_key=keys.access_key, secret_key=keys.secret_key
        )

    store = S3Store(bridge_s3.endpoint, admin.access_key, admin.secret_key)
    found = computing.kubernetes(kubernetes.kubeconfig, store, own, folder, limits=limits)
    yield found
    asyncio.run(found.clean())


@pytest.fixture
def kubernetes_machine(kubernetes: Cluster, bridge_s3: s3_server.Server, tmp_path: Path) -> Iterator[Machine]:
    """The test cluster, with an installation for this test."""
    yield from _on_cluster(kubernetes, bridge_s3, tmp_path)


@pytest.fixture
def kubernetes_limited(kubernetes: Cluster, bridge_s3: s3_server.Server, tmp_path: Path) -> Iterator[Machine]:
    """The same, where the quota of each user has room for one small run."""
    yield from _on_cluster(kubernetes, bridge_s3, tmp_path, Limits(cpu=150))


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, store: ObjectStore, tools: Tools, tmp_path: Path
) -> Iterator[Machine]:
    """The engine that the test is parametrized with, by way of this fixture (`indirect`)."""
    if request.param == "fake":
        yield computing.fake(store, tmp_path)
        return
    if request.param == "kubernetes":
        pods = request.getfixturevalue("kubernetes_machine")
        yield pods
        return
    if request.param == "process":
        found = computing.local("process", store, tmp_path, "none")
    else:
        tool = tools.get(request.param)
        found = computing.local(tool.name, store, tmp_path, tool.image, tool.user_image, tool.facts)
    yield found
    asyncio.run(found.clean())


@pytest.fixture
def site(kubernetes: Cluster) -> pods.Site:
    """A real cluster, with an installation of its own."""
    return pods.Site(kubernetes.kubeconfig, kubernetes.host)


@pytest.fixture
def street(request: pytest.FixtureRequest, tools: Tools, tmp_path: Path) -> Street:
    """The engine that the test is parametrized with, for warm workers."""
    if request.param == "kubernetes":
        return pods.PodStreet(request.getfixturevalue("site"), tmp_path)
    return Street(request.param, tmp_path, None if request.param == "process" else tools.get(request.param))
