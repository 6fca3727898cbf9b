"""Synchronous calls by Knative Serving, when `SERVERLESS_BACKEND=knative`: the pods of `sync`, scaled by Knative.

Made by `app.engines` over `PodInvokes`, to which it leaves services that Knative does not take (a mount, a volume). A
service is one of Knative's with one request at a time; calls go to the address of its newest revision that is ready,
past Knative's routes, which need an ingress layer of their own. The objects are pure functions.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from oscar import telemetry
from oscar.compute.base import Answer, Run, Staying
from oscar.compute.crew import Limits
from oscar.compute.kubernetes import worker_manifests as manifests
from oscar.compute.kubernetes.cluster import Cluster
from oscar.compute.kubernetes.kinds import KNATIVE_SERVICE, POD, SECRET, SERVICE
from oscar.compute.kubernetes.names import Names, service_object
from oscar.compute.kubernetes.sidecar import Heard, Line, NotTaken
from oscar.compute.kubernetes.staying import taken
from oscar.compute.kubernetes.sync import TRIES, PodInvokes, answer_of
from oscar.compute.kubernetes.worker_manifests import PORT, SIDECAR, Kit, Sidecar, kit_of
from oscar.errors import EngineError, OscarError, TooManyRequests, Unavailable
from oscar.model.service import Service
from oscar.supervisor import wire

Body = dict[str, Any]

MOST = 1000
"""Requests under way of a service without max_scale."""
_LOOK_S = 0.2
_AUTOSCALING = "autoscaling.knative.dev"


def fits(service: Service) -> bool:
    """Whether Knative takes the service's pods: it knows neither native sidecars nor, unasked, claims."""
    return bool(service.script) and service.mount is None and service.volume is None


def knative_service(names: Names, kit: Kit, secret: str, sidecar: Sidecar, *, timeout: int) -> Body:
    """The Service of Knative.

    Args:
        names: of the installation.
        kit: what its pods are made of.
        secret: name of the Secret with their files.
        sidecar: our container.
        timeout: seconds that a call may take.
    """
    service = kit.service
    labels = names.service_labels(manifests.WORKER, service)
    scale = service.synchronous
    return {
        **KNATIVE_SERVICE.head,
        "metadata": {
            "name": object_name_of(service),
            "namespace": kit.namespace,
            # Calls come from the platform alone.
            "labels": labels | {"networking.knative.dev/visibility": "cluster-local"},
        },
        "spec": {
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        **service.annotations,
                        f"{_AUTOSCALING}/min-scale": str(scale.min_scale),
                        f"{_AUTOSCALING}/max-scale": str(scale.max_scale),
                        "oscar.grycap/definition": kit.digest,
                    },
                },
                "spec": _revision(kit, secret, sidecar, timeout),
            }
        },
    }


def object_name_of(service: Service) -> str:
    """The name of the service in Knative."""
    return service_object(service.name)


def _revision(kit: Kit, secret: str, sidecar: Sidecar, timeout: int) -> Body:
    """The pod, as far as Knative lets it be said: it sets the rest itself."""
    spec = manifests.pod_spec(kit, secret, sidecar)
    for unknown in ("securityContext", "terminationGracePeriodSeconds"):
        spec.pop(unknown)
    containers = []
    for container in spec["containers"]:
        plain = dict(container)
        if plain["name"] == SIDECAR:
            plain["securityContext"] = {"runAsUser": 0, "runAsGroup": 0, "allowPrivilegeEscalation": False}
            plain["readinessProbe"] = {"httpGet": {"path": "/ready", "port": PORT}}
        else:
            # Knative asks the container with the port alone.
            plain.pop("livenessProbe")
        containers.append(plain)
    return {**spec, "containers": containers, "containerConcurrency": 1, "timeoutSeconds": timeout}


class KnativeInvokes:
    """Implements `Invokes` with Knative's services."""

    def __init__(
        self,
        cluster: Cluster,
        names: Names,
        sidecar: Sidecar,
        ensure: Callable[[str], Awaitable[str]],
        otherwise: PodInvokes,
        limits: Limits,
        *,
        timeout: int,
    ) -> None:
        """Make it inside the event loop.

        Args:
            cluster: the way to the API server.
            names: of the installation.
            sidecar: our container in the pods.
            ensure: makes an owner's namespace ready; its name.
            otherwise: takes services that don't fit.
            limits: what the installation allows.
            timeout: seconds that a call may take.
        """
        self._cluster = cluster
        self._names = names
        self._sidecar = sidecar
        self._ensure = ensure
        self._otherwise = otherwise
        self._limits = limits
        self._timeout = timeout
        self._keys: dict[tuple[str, str], bytes] = {}
        self._services: dict[tuple[str, str], Service] = {}
        """Those that Knative has."""
        self._under_way: Counter[tuple[str, str]] = Counter()
        self._log = telemetry.get("knative")

    async def apply(self, service: Service) -> None:
        """Have the service in Knative as its definition says."""
        if not fits(service):
            await self._drop(service.owner, service.name)
            await self._otherwise.apply(service)
            return
        await self._otherwise.remove(service.owner, service.name)
        kit = kit_of(service, await self._ensure(service.owner), self._sidecar)
        secret = await self._secret(kit)
        self._services[service.owner, service.name] = service
        body = knative_service(self._names, kit, secret, self._sidecar, timeout=self._timeout)
        await self._cluster.apply(KNATIVE_SERVICE, body)

    async def prepare(self, service: Service) -> None:
        """See `Invokes.prepare`."""
        await self.apply(service)

    async def remove(self, owner: str, name: str) -> None:
        """Remove all of it. Silent if absent."""
        await self._drop(owner, name)
        await self._otherwise.remove(owner, name)

    async def follow(self, service: Service) -> None:
        """See `Follows.follow`: Knative has it already."""
        place = service.owner, service.name
        if not fits(service):
            self._services.pop(place, None)
            await self._otherwise.follow(service)
            return
        self._services[place] = service
        await self._otherwise.leave(*place)
        kit = kit_of(service, self._names.namespace_of(service.owner), self._sidecar)
        found = await self._cluster.get(SECRET, kit.name, kit.namespace)
        if found is not None:
            self._keys[place] = base64.b64decode(found["data"]["key"])

    async def leave(self, owner: str, name: str) -> None:
        """See `Follows.leave`."""
        self._keys.pop((owner, name), None)
        self._services.pop((owner, name), None)
        await self._otherwise.leave(owner, name)

    async def _drop(self, owner: str, name: str) -> None:
        self._keys.pop((owner, name), None)
        self._services.pop((owner, name), None)
        namespace = self._names.namespace_of(owner)
        await self._cluster.delete(KNATIVE_SERVICE, service_object(name), namespace)
        selector = (
            self._names.selector(manifests.WORKER, owner=owner) + f",{manifests.SET}={_set(owner, name)}"
        )
        for item in await self._cluster.items(SECRET, namespace, labels=selector):
            await self._cluster.delete(SECRET, item["metadata"]["name"], namespace)

    def check(self, service: Service) -> list[str]:
        """See `PodInvokes.check`."""
        return self._otherwise.check(service)

    def occupied(self) -> list[Staying]:
        """See `Occupies.occupied`: how many there are is Knative's affair, they count nevertheless."""
        pods = self._otherwise.strangers()
        own = [
            Staying(owner, name, pods[self._names.namespace_of(owner), name], taken(service))
            for (owner, name), service in self._services.items()
        ]
        return [*own, *self._otherwise.occupied()]

    async def _secret(self, kit: Kit) -> str:
        """The Secret of a definition: another one for each, because pods of the one before go on for a while."""
        service = kit.service
        key = self._keys.get((service.owner, service.name)) or os.urandom(32)
        name = kit.name
        body = manifests.secret(self._names, kit, name, key, slot="knative")
        body["metadata"]["labels"][manifests.SET] = _set(service.owner, service.name)
        if await self._cluster.create(SECRET, body) is None:
            found = await self._cluster.get(SECRET, name, kit.namespace)
            if found is None:
                raise EngineError("the Secret of the workers was removed at this moment")
            key = base64.b64decode(found["data"]["key"])
        self._keys[service.owner, service.name] = key
        return name

    async def invoke(self, run: Run) -> Answer:
        """See `Invokes.invoke`."""
        service = run.service
        if not fits(service):
            return await self._otherwise.invoke(run)
        place = service.owner, service.name
        most = (service.synchronous.max_scale or MOST) + self._limits.queue
        if self._under_way[place] >= most:
            raise TooManyRequests(
                f"{self._under_way[place]} requests of this service are under way already",
                fix="Try again later, or raise synchronous.max_scale of the service.",
                headers={"Retry-After": "1"},
            )
        self._under_way[place] += 1
        try:
            return await self._invoke(run)
        finally:
            self._under_way[place] -= 1

    async def _invoke(self, run: Run) -> Answer:
        service = run.service
        payload = (
            await asyncio.to_thread(run.payload.read_bytes) if isinstance(run.payload, Path) else run.payload
        )
        stores = await self._otherwise.stores(run, payload)
        order = wire.Order(run.job_id, run.hops, run.trace, run.timeout, run.environment, stores)
        while (key := self._keys.get((service.owner, service.name))) is None:
            await self.apply(service)
        namespace = self._names.namespace_of(service.owner)
        try:
            async with asyncio.timeout(self._limits.wait):
                revision, address = await self._revision(object_name_of(service), namespace)
        except TimeoutError:
            raise Unavailable("Knative has no revision that is ready", headers={"Retry-After": "5"}) from None
        for _ in range(TRIES):
            with contextlib.suppress(NotTaken):
                return answer_of(await self._once(address, revision, namespace, key, order, payload))
            await asyncio.sleep(_LOOK_S)
        raise Unavailable("no worker took the request", headers={"Retry-After": "5"})

    async def _revision(self, name: str, namespace: str) -> tuple[str, str]:
        """The newest revision that is ready, and the address by which it is reached."""
        while True:
            found = await self._cluster.get(KNATIVE_SERVICE, name, namespace)
            revision = (found or {}).get("status", {}).get("latestReadyRevisionName", "")
            service = await self._cluster.get(SERVICE, revision, namespace) if revision else None
            if service is not None and (address := service["spec"].get("clusterIP")):
                return revision, address
            await asyncio.sleep(_LOOK_S)

    async def _once(
        self, address: str, revision: str, namespace: str, key: bytes, order: wire.Order, payload: bytes
    ) -> Heard:
        sealed = wire.seal(order, key)
        headers = {
            "Authorization": f"Bearer {wire.token(key)}",
            wire.ORDER_LENGTH: str(len(sealed)),
            # What a revision without pods is woken by.
            "Knative-Serving-Revision": revision,
            "Knative-Serving-Namespace": namespace,
        }
        line = Line(address, 80, name=f"{revision}.{namespace}.svc.cluster.local", take=self._limits.wait)
        try:
            heard = await line.call(headers, (sealed, payload))
        finally:
            line.close()
        if wire.SPENT in heard.headers or heard.headers.get(wire.REFUSED) == "spent":
            await self._replace(heard.headers.get(wire.POD, ""), namespace)
        if wire.REFUSED in heard.headers:
            raise NotTaken(f"the worker is {heard.headers[wire.REFUSED]}")
        if wire.EXIT not in heard.headers:
            # Not told by the status: Knative's proxy makes 200 of any that comes after the worker's `100 Continue`.
            raise wire.to_error(heard.body)
        return heard

    async def _replace(self, pod: str, namespace: str) -> None:
        """Have Knative put another pod in the place of one in which something may still run."""
        if not pod:
            return
        try:
            await self._cluster.delete(POD, pod, namespace, grace=1)
        except OscarError as error:
            self._log.warning("a spent worker can't be ended", pod=pod, error=error.message)


def _set(owner: str, name: str) -> str:
    digest = hashlib.sha256(f"{owner}\0{name}".encode()).hexdigest()
    return f"knative-{digest[:16]}"
