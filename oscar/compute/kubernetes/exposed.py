"""Exposed services on a Kubernetes cluster: implements `Exposes` by a Deployment for each, and routes to it.

Made by `app.engines` beside the engine. The cluster keeps, replaces and scales the pods; this module says what there
should be (`exposed_manifests`, `routes`), follows the pods so that our proxy knows those that take requests, and tells
how they do (`exposed_state`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from oscar import telemetry
from oscar.compute.base import Deployment, DeploymentState, Exposure, LogLine, Replica, Staying
from oscar.compute.kubernetes import exposed_manifests as manifests
from oscar.compute.kubernetes import exposed_state as states
from oscar.compute.kubernetes.attachments import mount_of, secret_data
from oscar.compute.kubernetes.cluster import Body, Changed, Cluster, ClusterError, Gone, Listed
from oscar.compute.kubernetes.exposed_manifests import EXPOSED, OWNER_ID, USER, Extras, Named
from oscar.compute.kubernetes.kinds import AUTOSCALER, DEPLOYMENT, POD, SECRET, SERVICE, Kind
from oscar.compute.kubernetes.names import SERVICE as SERVICE_LABEL
from oscar.compute.kubernetes.names import Names, digest
from oscar.compute.kubernetes.routes import Routes
from oscar.compute.kubernetes.staying import taken, takes
from oscar.errors import OscarError, RunNotFound
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider

_GONE_S = 60.0
_LOG_TAIL = 10_000
_IDLE_LOOK_S = 1.0
_OTHERS_S = 15.0
"""Seconds after which this server has heard of what another has removed."""


@dataclass(eq=False, slots=True)
class Shown:
    """An exposed service as we know it."""

    exposure: Exposure | None = None
    """None until this server has been told."""
    deployment: Body | None = None
    pods: dict[str, Body] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    """Of pods that take requests, and of those that are to end and still have some."""
    ready: tuple[Replica, ...] = ()
    state: tuple[DeploymentState, str, int, int] = (DeploymentState.PENDING, "", 0, 0)
    changed: int = 0


class PodExposes:
    """Implements `Exposes` with Deployments."""

    def __init__(
        self,
        cluster: Cluster,
        names: Names,
        ensure: Callable[[str], Awaitable[str]],
        routes: Routes,
        own_store: Callable[[str], Awaitable[MinIOProvider]],
        *,
        image: str,
        drain: float = 60.0,
        verify: bool = True,
    ) -> None:
        """Make it inside the event loop; nothing happens before `start`.

        Args:
            cluster: the way to the API server.
            names: of the installation.
            ensure: makes an owner's namespace ready; its name.
            routes: the ways to services past our own proxy.
            own_store: by a user's name, the platform's store with his keys, as pods reach it.
            image: of the server, which mounts.
            drain: seconds that requests under way may take when their pod is to end.
            verify: whether the own store's certificate is checked.
        """
        self._cluster = cluster
        self._names = names
        self._ensure = ensure
        self._routes = routes
        self._own_store = own_store
        self._image = image
        self._verify = verify
        self._drain = round(drain)
        self._known: dict[tuple[str, str], Shown] = defaultdict(Shown)
        """By digest of the owner, and name of the service."""
        self._complete = asyncio.Event()
        self._listed = {kind: asyncio.Event() for kind in (DEPLOYMENT, POD)}
        self._news = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = telemetry.get("exposed")

    # Its own life.

    async def start(self) -> None:
        """Find what an earlier server has exposed."""
        self._spawn(self._watch(DEPLOYMENT, self._deployments), "watch of exposed services")
        self._spawn(self._watch(POD, self._pods), "watch of replicas")
        for listed in self._listed.values():
            await listed.wait()

    async def stop(self) -> None:
        """Let go; pods go on."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._known.clear()

    # What is wanted.

    async def expose(self, exposure: Exposure) -> None:
        """See `Exposes.expose`."""
        service = exposure.service
        if not service.expose.active:
            await self.unexpose(service.owner, service.name)
            return
        shown = self._of(service.owner, service.name)
        before, shown.exposure = shown.exposure, exposure
        await self._tell([shown])
        try:
            await self._apply(exposure)
        except OscarError:
            shown.exposure = before
            raise

    async def _apply(self, exposure: Exposure) -> None:
        service, expose = exposure.service, exposure.service.expose
        namespace = await self._ensure(service.owner)
        names, named = self._names, Named.of(service.name)
        mounted = secret_data(await mount_of(service, self._own_store))
        extras = Extras(self._image, mounted, self._verify)
        await self._cluster.apply(SECRET, manifests.secret(names, service, namespace, mounted))
        body = manifests.deployment(
            names, service, namespace, extras, restarts=exposure.restarts, drain=self._drain
        )
        there = await self._cluster.apply(DEPLOYMENT, body)
        await self._cluster.apply(SERVICE, manifests.cluster_service(names, service, namespace))
        scales = not exposure.stopped and expose.max_scale > expose.min_scale
        if not scales:
            # Before the number is set, which it would change back.
            await self._cluster.delete(AUTOSCALER, named.autoscaler, namespace)
        present = int(there["spec"]["replicas"])
        wanted = 0 if exposure.stopped else min(max(present, expose.min_scale), expose.max_scale)
        if wanted != present:
            change: Body = {"spec": {"replicas": wanted}}
            await self._cluster.merge(DEPLOYMENT, named.deployment, change, namespace, of="scale")
        if scales:
            await self._cluster.apply(AUTOSCALER, manifests.autoscaler(names, service, namespace))
        await self._routes.apply(service, namespace)

    async def unexpose(self, owner: str, service_name: str) -> None:
        """See `Exposes.unexpose`."""
        shown = self._known.get((digest(owner), service_name))
        if shown is None:
            return
        shown.exposure = None
        shown.ready = ()
        namespace, named = self._names.namespace_of(owner), Named.of(service_name)
        await self._remove_around(named, service_name, namespace)
        # Before the cluster tells them, as it does when their Deployment is gone: it would give them all their time.
        # What it makes in their place until then does not start without the Secret.
        told = await asyncio.gather(*map(self._end, list(shown.pods.values())))
        # The last one: the next start knows by it that there is something to remove.
        await self._cluster.delete(DEPLOYMENT, named.deployment, namespace)
        ending = {name for name in told if name}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GONE_S), self._news:
                await self._news.wait_for(lambda: not ending & set(shown.pods))
        if left := ending & set(shown.pods):
            self._log.warning("pods of a service do not end", service=service_name, pods=len(left))
        self._known.pop((digest(owner), service_name), None)

    async def follow_exposed(self, exposure: Exposure) -> None:
        """See `FollowsExposed.follow_exposed`."""
        shown = self._of(exposure.service.owner, exposure.service.name)
        shown.exposure = exposure
        await self._tell([shown])

    async def leave_exposed(self, owner: str, service_name: str) -> None:
        """See `FollowsExposed.leave_exposed`."""
        shown = self._known.get((digest(owner), service_name))
        if shown is not None:
            # The watches tell what becomes of the rest.
            shown.exposure, shown.ready = None, ()

    def _forget(self, key: tuple[str, str]) -> None:
        """Of what nothing is left, and nothing wanted, nothing is known."""
        shown = self._known.get(key)
        if shown is not None and not (shown.exposure or shown.deployment or shown.pods):
            del self._known[key]

    async def _end(self, pod: Body | None) -> str:
        """Have a pod end at once, and say its name: nothing when it is gone, or was told to go before.

        That one takes all its time, as the kubelet does not cut short a preStop sleep. We may not have heard of it yet:
        the API server knows who was first.
        """
        while pod is not None and not states.is_leaving(pod):
            meta = pod["metadata"]
            name, namespace = str(meta["name"]), meta["namespace"]
            try:
                there = await self._cluster.delete(
                    POD, name, namespace, grace=1, version=meta["resourceVersion"]
                )
            except ClusterError as error:
                if error.reason != "Conflict":
                    raise
                pod = await self._cluster.get(POD, name, namespace)
            else:
                return name if there else ""
        return ""

    async def _remove_around(self, named: Named, service_name: str, namespace: str) -> None:
        """Remove what a service has beside its Deployment."""
        await self._routes.remove(service_name, namespace)
        await self._cluster.delete(AUTOSCALER, named.autoscaler, namespace)
        await self._cluster.delete(SERVICE, named.service, namespace)
        await self._cluster.delete(SECRET, named.deployment, namespace)

    async def keep(self, known: Collection[tuple[str, str]]) -> None:
        """See `Exposes.keep`."""
        self._complete.set()
        await self._tell()
        kept = {(digest(owner), name) for owner, name in known}
        for key in [key for key in self._known if key not in kept]:
            shown = self._known[key]
            owner = (shown.deployment or {}).get("metadata", {}).get("annotations", {}).get(OWNER_ID)
            if owner is not None:
                await self.unexpose(owner, key[1])

    # What is asked.

    def occupied(self) -> list[Staying]:
        """See `Occupies.occupied`."""
        found = []
        for shown in self._known.values():
            if shown.exposure is not None:
                service = shown.exposure.service
                count = sum(takes(pod) for pod in shown.pods.values())
                found.append(Staying(service.owner, service.name, count, taken(service)))
        return found

    def replicas(self, owner: str, service_name: str) -> Sequence[Replica]:
        """See `Exposes.replicas`."""
        shown = self._known.get((digest(owner), service_name))
        return shown.ready if shown else ()

    async def wait_ready(self, owner: str, service_name: str) -> bool:
        """See `Exposes.wait_ready`."""
        key = digest(owner), service_name
        if key not in self._known:
            await self._complete.wait()
        hopeless = {DeploymentState.STOPPED, DeploymentState.FAILED}
        async with self._news:
            while (shown := self._known.get(key)) is not None:
                if shown.ready:
                    return True
                if shown.state[0] in hopeless:
                    return False
                await self._news.wait()
        return False

    async def deployment(self, owner: str, service_name: str) -> Deployment:
        """See `Exposes.deployment`."""
        shown = self._known.get((digest(owner), service_name))
        if shown is None:
            known = self._complete.is_set()
            reason = "The engine knows no such service" if known else "The server is still being started"
            return Deployment(DeploymentState.UNAVAILABLE, reason, 0)
        state, reason, active, affected = shown.state
        return Deployment(state, reason, shown.changed, active, affected, DEPLOYMENT.kind)

    async def deployment_logs(
        self, owner: str, service_name: str, *, tail: int | None = None
    ) -> AsyncIterator[LogLine]:
        """See `Exposes.deployment_logs`."""
        shown = self._known.get((digest(owner), service_name))
        pods = list(shown.pods.values()) if shown else []
        found = await asyncio.gather(*(self._lines(pod, tail or _LOG_TAIL) for pod in pods))
        lines = sorted((line for lines in found for line in lines), key=lambda line: line.time)
        if not lines:
            raise RunNotFound(f"no replica of {service_name} has a log")
        for line in lines[-tail:] if tail else lines:
            yield line

    async def _lines(self, pod: Body, tail: int) -> list[LogLine]:
        meta = pod["metadata"]
        said = bytearray()
        try:
            async for piece in self._cluster.log(meta["name"], meta["namespace"], USER, tail=tail):
                said += piece
        except ClusterError:
            return []  # not started, or gone by now
        rows = (row.partition(" ") for row in said.decode("utf-8", "replace").splitlines())
        return [LogLine(when, text) for when, _, text in rows]

    # What the cluster tells.

    async def _watch(self, kind: Kind, take: Callable[[Listed | Changed | Gone], Iterable[Shown]]) -> None:
        async for news in self._cluster.follow(kind, labels=self._names.selector(EXPOSED)):
            touched = take(news)
            if isinstance(news, Listed):
                self._listed[kind].set()
            await self._tell(touched)

    def _touched(self, item: Body) -> Shown | None:
        """The service that an object belongs to; None for the last words of one that was removed."""
        key = _key(item)
        if key not in self._known and states.is_leaving(item):
            return None
        return self._known[key]

    def _deployments(self, news: Listed | Changed | Gone) -> Iterable[Shown]:
        if isinstance(news, Listed):
            for shown in self._known.values():
                shown.deployment = None
            for item in news.items:
                self._known[_key(item)].deployment = item
            return self._known.values()
        if isinstance(news, Changed):
            found = self._touched(news.item)
            if found is not None:
                found.deployment = news.item
            return [found] if found else []
        gone = self._known.get(_key(news.item))
        if gone is None:
            return []
        gone.deployment = None
        if gone.exposure is not None:
            self._spawn(self._put_back(gone), "a Deployment that somebody removed")
        self._forget(_key(news.item))
        return [gone]

    def _pods(self, news: Listed | Changed | Gone) -> Iterable[Shown]:
        if isinstance(news, Listed):
            for shown in self._known.values():
                shown.pods.clear()
            for item in news.items:
                self._known[_key(item)].pods[item["metadata"]["name"]] = item
            return self._known.values()
        if isinstance(news, Changed):
            found = self._touched(news.item)
            if found is not None:
                found.pods[news.item["metadata"]["name"]] = news.item
            return [found] if found else []
        gone = self._known.get(_key(news.item))
        if gone is None:
            return []
        gone.pods.pop(news.item["metadata"]["name"], None)
        self._forget(_key(news.item))
        return [gone]

    async def _put_back(self, shown: Shown) -> None:
        """Put back what was removed by hand; not what another server was asked to remove, of which we hear by then."""
        await asyncio.sleep(_OTHERS_S)
        exposure = shown.exposure
        if exposure is None or shown.deployment is not None:
            return
        try:
            await self._apply(exposure)
        except OscarError as error:
            self._log.warning(
                "an exposed service can't be put back", service=exposure.service.name, error=error.message
            )

    async def _tell(self, touched: Iterable[Shown] = ()) -> None:
        for shown in list(touched):
            self._look(shown)
        async with self._news:
            self._news.notify_all()

    def _look(self, shown: Shown) -> None:
        for name in [name for name in shown.replicas if name not in shown.pods]:
            del shown.replicas[name]
        ready = []
        for name, pod in shown.pods.items():
            if states.takes_requests(pod):
                if name not in shown.replicas:
                    ports = {port: port for port in _ports(pod)}
                    shown.replicas[name] = Replica(name, states.address(pod), ports)
                ready.append(shown.replicas[name])
            elif states.is_leaving(pod) and name in shown.replicas:
                self._spawn(self._let_go(name, pod, shown.replicas.pop(name)), "end of a replica")
        stopped = shown.exposure is not None and shown.exposure.stopped
        shown.ready = () if stopped else tuple(ready)
        before = shown.state
        shown.state = states.state_of(shown.deployment, list(shown.pods.values()), stopped=stopped)
        if not shown.changed:
            shown.changed = states.changed_at(shown.deployment) or _now()
        elif shown.state[0] is not before[0]:
            shown.changed = _now()

    async def _let_go(self, name: str, pod: Body, replica: Replica) -> None:
        """Have a pod that is to end do so as soon as its last request has ended: it would wait the whole time."""
        await replica.idle.wait()
        await asyncio.sleep(_IDLE_LOOK_S)  # a request may just be on its way there
        await replica.idle.wait()
        try:
            await self._cluster.delete(POD, name, pod["metadata"]["namespace"], grace=2)
        except OscarError as error:
            self._log.info("a pod ends by itself", pod=name, reason=error.message)

    def _of(self, owner: str, name: str) -> Shown:
        return self._known[digest(owner), name]

    def _spawn(self, act: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(act, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._log.error("bug in the care of replicas", task=task.get_name(), exc_info=task.exception())


def _key(item: Body) -> tuple[str, str]:
    labels = item["metadata"]["labels"]
    return str(labels["oscar.grycap/owner"]), str(labels[SERVICE_LABEL])


def _ports(pod: Body) -> list[int]:
    containers = [each for each in pod["spec"]["containers"] if each["name"] == USER]
    return [port["containerPort"] for each in containers for port in each.get("ports", ())]


def _now() -> int:
    return int(time.time() * 1000)


def check(service: Service, routes: Routes) -> list[str]:
    """What of an exposed service this engine can't honour, as warnings for its owner."""
    return routes.check(service) if service.expose.active else []
