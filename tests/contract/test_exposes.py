"""The ability to keep servers running, on each engine of this machine: replicas, their ends, new definitions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from oscar.compute.base import Deployment, DeploymentState, Exposure, LogLine, Replica
from oscar.compute.kubernetes.exposed import PodExposes
from oscar.compute.local.containers import Containers
from oscar.compute.local.engine import Engine, Facts
from oscar.compute.local.exposed import LocalExposes
from oscar.compute.local.processes import Processes
from oscar.errors import RunNotFound
from oscar.model.service import Service
from tests import pods
from tests.contract.conftest import CONTAINERS, REAL, Tools

SERVER = """echo "listening as $(hostname) on $PORT"
mkdir -p /tmp/www
printf %s "$WORDS" > /tmp/www/index.html
exec busybox httpd -f -p "$OSCAR_BIND_ADDRESS:$PORT" -h /tmp/www
"""
OWNER = "somebody"

Exposing = LocalExposes | PodExposes


@dataclass(slots=True)
class Place:
    """A machine on which a server can be started again and again."""

    name: str
    folder: Path
    image: str
    facts: Facts | None
    installation: str = field(default="")
    cpu: str = "1"

    async def engine(self) -> Engine:
        made: Engine
        if self.name == "process":
            made = Processes(self.folder / "engine", installation=self.installation, hidden=(self.folder,))
            await made.probe()
            return made
        assert self.facts is not None
        containers = Containers(
            self.name, self.folder / "engine", installation=self.installation, facts=self.facts
        )
        await containers.resume(self.facts)
        return containers

    @contextlib.asynccontextmanager
    async def serve(self, *, drain: float = 5.0) -> AsyncIterator[Exposing]:
        engine = await self.engine()
        exposes = LocalExposes(engine, self.folder, drain=drain)
        await exposes.start()
        try:
            yield exposes
        finally:
            await exposes.stop()
            await engine.close()

    async def kill(self, exposes: Exposing, name: str) -> None:
        assert isinstance(exposes, LocalExposes)
        await exposes._engine.kill(name)

    async def gone(self, replica: Replica) -> None:
        """Make sure that a replica of a service that was removed has ended."""
        with pytest.raises(OSError):
            await ask(replica)

    def service(self, script: str = SERVER, **fields: Any) -> Service:
        expose = {"api_port": 8080, "max_scale": 1, **fields.pop("expose", {})}
        data: dict[str, Any] = {
            "name": "web",
            "image": self.image,
            "script": script,
            "cpu": self.cpu,
            "memory": "128Mi",
            "environment": {"variables": {"WORDS": "one"}},
            **fields,
        }
        return Service(**{**data, "expose": expose}).model_copy(update={"owner": OWNER})

    def live(self, scenario: Callable[[Place], Awaitable[None]]) -> None:
        asyncio.run(self._live(scenario))

    async def _live(self, scenario: Callable[[Place], Awaitable[None]]) -> None:
        try:
            await scenario(self)
        finally:
            engine = await self.engine()
            for name in await engine.names():
                await engine.remove(name)
            assert await engine.names() == []
            await engine.close()


@dataclass(slots=True)
class PodPlace(Place):
    """A cluster on which servers are kept by an engine that comes and goes."""

    site: pods.Site | None = None

    @contextlib.asynccontextmanager
    async def serve(self, *, drain: float = 5.0) -> AsyncIterator[Exposing]:
        async with pods.open_exposes(self.there, drain=drain) as exposes:
            yield exposes

    async def kill(self, exposes: Exposing, name: str) -> None:
        await pods.kill_pod(self.there, name)

    async def gone(self, replica: Replica) -> None:
        # The cluster may have told it to go before we did, so that it takes its time.
        await end_of(replica)

    async def _live(self, scenario: Callable[[Place], Awaitable[None]]) -> None:
        try:
            await scenario(self)
        finally:
            await self.there.clean()

    @property
    def there(self) -> pods.Site:
        """Its cluster."""
        assert self.site is not None
        return self.site


@pytest.fixture
def place(request: pytest.FixtureRequest, tools: Tools, tmp_path: Path) -> Place:
    installation = f"test-{tmp_path.name}-{os.getpid()}"
    if request.param == "kubernetes":
        site = request.getfixturevalue("site")
        return PodPlace("kubernetes", tmp_path, pods.BUSYBOX, None, cpu=pods.CPU, site=site)
    if request.param == "process":
        return Place("process", tmp_path, "none", None, installation)
    tool = tools.get(request.param)
    return Place(tool.name, tmp_path, tool.image, tool.facts, installation)


each_engine = pytest.mark.parametrize("place", ["process", *CONTAINERS], indirect=True)
everywhere = pytest.mark.parametrize("place", ["process", *CONTAINERS, REAL], indirect=True)


async def reach(
    exposes: Exposing, holds: Callable[[Deployment], bool], *, name: str = "web", within: float = 180
) -> Deployment:
    """Wait until the deployment is so."""
    async with asyncio.timeout(within):
        while not holds(found := await exposes.deployment(OWNER, name)):  # noqa: ASYNC110 - the port tells states only
            await asyncio.sleep(0.02)
    return found


async def ready(exposes: Exposing, count: int = 1) -> list[Replica]:
    def holds(found: Deployment) -> bool:
        return found.state is DeploymentState.READY and found.active == count

    await reach(exposes, holds)
    async with asyncio.timeout(120):
        while len(exposes.replicas(OWNER, "web")) != count:  # noqa: ASYNC110 - the port tells states only
            await asyncio.sleep(0.02)
    return list(exposes.replicas(OWNER, "web"))


async def ask(replica: Replica, path: str = "/", port: int = 8080) -> str:
    def fetch() -> str:
        with urllib.request.urlopen(
            f"http://{replica.host}:{replica.ports[port]}{path}", timeout=10
        ) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(fetch)


async def end_of(replica: Replica) -> None:
    """Wait until it does not answer any more."""
    async with asyncio.timeout(120):
        with contextlib.suppress(OSError):
            while True:
                await ask(replica)
                await asyncio.sleep(0.05)


@everywhere
def test_a_server_is_started_and_answers(place: Place) -> None:
    async def scenario(_: Place) -> None:
        async with place.serve() as exposes:
            assert (await exposes.deployment(OWNER, "web")).state is DeploymentState.UNAVAILABLE
            assert exposes.replicas(OWNER, "web") == ()
            waiting = asyncio.ensure_future(exposes.wait_ready(OWNER, "web"))
            await exposes.keep([])
            assert not await waiting, "all services are known, and it is none of them"
            await exposes.expose(Exposure(place.service()))
            assert await exposes.wait_ready(OWNER, "web")
            [replica] = await ready(exposes)
            assert await ask(replica) == "one"
            found = await exposes.deployment(OWNER, "web")
            assert found.active == 1
            assert found.affected == 0
            assert found.changed > 1_600_000_000_000
            await exposes.unexpose(OWNER, "web")
            await exposes.unexpose(OWNER, "web")
            assert exposes.replicas(OWNER, "web") == ()
            await place.gone(replica)
            with pytest.raises(RunNotFound):
                [line async for line in exposes.deployment_logs(OWNER, "web")]

    place.live(scenario)


@everywhere
def test_the_same_again_changes_nothing(place: Place) -> None:
    async def scenario(_: Place) -> None:
        async with place.serve() as exposes:
            await exposes.expose(Exposure(place.service()))
            before = await ready(exposes)
            await exposes.expose(Exposure(place.service()))
            assert await ready(exposes) == before

    place.live(scenario)


@everywhere
def test_replicas_outlive_the_server(place: Place) -> None:
    async def scenario(_: Place) -> None:
        async with place.serve() as exposes:
            await exposes.expose(Exposure(place.service()))
            [before] = await ready(exposes)
        assert await ask(before) == "one"
        async with place.serve() as exposes:
            assert await exposes.wait_ready(OWNER, "web"), "before it is told what the service is"
            [found] = exposes.replicas(OWNER, "web")
            assert await ask(found) == "one"
            await exposes.expose(Exposure(place.service()))
            [after] = await ready(exposes)
            assert (after.name, dict(after.ports)) == (before.name, dict(before.ports))
            assert await ask(after) == "one"
        async with place.serve() as exposes:
            # The service was deleted while no server was there to see it.
            await exposes.keep([])
            await place.gone(before)

    place.live(scenario)


@pytest.mark.brief
@everywhere
def test_a_dead_replica_is_replaced(place: Place) -> None:
    async def scenario(_: Place) -> None:
        async with place.serve() as exposes:
            await exposes.expose(Exposure(place.service()))
            [before] = await ready(exposes)
            await place.kill(exposes, before.name)
            await reach(
                exposes, lambda _: all(each.name != before.name for each in exposes.replicas(OWNER, "web"))
            )
            [after] = await ready(exposes)
            assert after.name != before.name
            assert await ask(after) == "one"

    place.live(scenario)


@everywhere
def test_a_new_definition_rolls_over(place: Place) -> None:
    async def scenario(_: Place) -> None:
        async with place.serve() as exposes:
            await exposes.expose(Exposure(place.service()))
            [old] = await ready(exposes)
            old.enter()  # a request is under way there
            new = place.service(environment={"variables": {"WORDS": "two"}})
            await exposes.expose(Exposure(new))
            served: set[str] = set()
            async with asyncio.timeout(180):
                while "two" not in served:
                    present = exposes.replicas(OWNER, "web")
                    assert present, "there was a moment without a replica"
                    served.add(await ask(present[-1]))
            assert await ask(old) == "one", "what is under way may end"
            [now] = await ready(exposes)
            assert now is not old
            old.leave()
            await end_of(old)
            assert await ask(now) == "two"

    place.live(scenario)


@pytest.mark.brief
@everywhere
def test_a_restart_replaces_and_a_stop_ends(place: Place) -> None:
    async def scenario(_: Place) -> None:
        async with place.serve() as exposes:
            await exposes.expose(Exposure(place.service()))
            [first] = await ready(exposes)
            await exposes.expose(Exposure(place.service(), restarts=1))
            await reach(exposes, lambda _: first not in exposes.replicas(OWNER, "web"))
            [second] = await ready(exposes)
            assert second.name != first.name
            await exposes.expose(Exposure(place.service(), restarts=1, stopped=True))
            stopped = await reach(exposes, lambda found: found.state is DeploymentState.STOPPED)
            assert stopped.affected == 0
            assert not await exposes.wait_ready(OWNER, "web")
            assert exposes.replicas(OWNER, "web") == ()
            await exposes.expose(Exposure(place.service(), restarts=1))
            assert await ask((await ready(exposes))[0]) == "one"

    place.live(scenario)


@everywhere
def test_a_server_that_ends_is_failed_with_its_words(place: Place) -> None:
    async def scenario(_: Place) -> None:
        async with place.serve() as exposes:
            await exposes.expose(Exposure(place.service("echo no such model; exit 3")))
            found = await reach(exposes, lambda found: found.state is DeploymentState.FAILED)
            assert "code 3" in found.reason
            assert "no such model" in found.reason
            assert found.affected == 1
            assert not await exposes.wait_ready(OWNER, "web")
            said = [line.text async for line in exposes.deployment_logs(OWNER, "web")]
            assert "no such model" in said
            await exposes.expose(Exposure(place.service()))
            assert await ask((await ready(exposes))[0]) == "one"

    place.live(scenario)


@everywhere
def test_no_answer_to_the_health_path_is_no_health(place: Place) -> None:
    async def scenario(_: Place) -> None:
        async with place.serve() as exposes:
            await exposes.expose(Exposure(place.service(expose={"health_path": "/absent"})))
            await reach(exposes, lambda found: found.state is DeploymentState.PENDING)
            log = await _said(exposes, "listening")
            assert log
            assert exposes.replicas(OWNER, "web") == ()
            await exposes.expose(Exposure(place.service(expose={"health_path": "/index.html"})))
            assert await ask((await ready(exposes))[0]) == "one"

    place.live(scenario)


async def _said(exposes: Exposing, word: str) -> list[str]:
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(RunNotFound):
                said = [line.text async for line in exposes.deployment_logs(OWNER, "web")]
                if any(word in text for text in said):
                    return said
            await asyncio.sleep(0.02)


@everywhere
def test_several_replicas_ports_and_logs(place: Place) -> None:
    script = SERVER.replace(
        "exec ", 'busybox httpd -p "$OSCAR_BIND_ADDRESS:$OSCAR_PORT_9090" -h /tmp/www\nexec '
    )

    async def scenario(_: Place) -> None:
        async with place.serve() as exposes:
            many = {"min_scale": 3, "max_scale": 3, "api_port": [8080, 9090]}
            await exposes.expose(Exposure(place.service(script, expose=many)))
            found = await ready(exposes, 3)
            for replica in found:
                assert await ask(replica, port=9090) == "one"
            lines: list[LogLine] = []
            async with asyncio.timeout(60):  # docker writes what it hears in its own time
                while sum("listening" in line.text for line in lines) < 3:
                    lines = [line async for line in exposes.deployment_logs(OWNER, "web")]
            assert sum("listening" in line.text for line in lines) == 3
            assert [line.time for line in lines] == sorted(line.time for line in lines)
            assert len([line async for line in exposes.deployment_logs(OWNER, "web", tail=2)]) == 2
            fewer = {"min_scale": 1, "max_scale": 1, "api_port": [8080, 9090]}
            await exposes.expose(Exposure(place.service(script, expose=fewer)))
            await ready(exposes, 1)

    place.live(scenario)


@each_engine
def test_cpu_time_is_seen(place: Place) -> None:
    script = SERVER.replace("exec ", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done\nexec ")

    async def scenario(_: Place) -> None:
        async with place.serve() as exposes:
            await exposes.expose(Exposure(place.service(script)))
            [replica] = await ready(exposes)
            assert isinstance(exposes, LocalExposes)
            used = await exposes._engine.cpu_time(replica.name)
            assert used is not None
            assert used > 0.01
            assert await exposes._engine.cpu_time("x-none") is None

    place.live(scenario)
