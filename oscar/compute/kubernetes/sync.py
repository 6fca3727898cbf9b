"""Synchronous calls on a Kubernetes cluster: implements `Invokes` by warm workers in pods.

Made by `app.engines` beside the engine. A Deployment for each service and definition (`workers`) is scaled by requests
under way and waiting, to and from zero, by the rules of `pool` that hold on one machine too. The sidecar of a pod does
what is around the script (`supervisor.serve`), so a call is one request to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from oscar import telemetry
from oscar.compute.base import Answer, Run, Staying
from oscar.compute.crew import Crew, CrewStats, Limits, Yard
from oscar.compute.crews import Crews
from oscar.compute.kubernetes.attachments import mount_of, secret_data
from oscar.compute.kubernetes.cluster import Body, Changed, Cluster, Gone, Listed
from oscar.compute.kubernetes.kinds import DEPLOYMENT, POD, SECRET
from oscar.compute.kubernetes.names import Names
from oscar.compute.kubernetes.sidecar import Heard, NotTaken
from oscar.compute.kubernetes.staying import counted, taken
from oscar.compute.kubernetes.worker_manifests import SEEN, SET, SLOT, WORKER, Kit, Sidecar, kit_of
from oscar.compute.kubernetes.workers import PodWorker, WorkerSet
from oscar.errors import EngineError, InvocationTimeout, OscarError, Unavailable, Unsupported
from oscar.model.event import decode
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.supervisor import wire

PATIENT_S = 0.5
"""Seconds that a request waits for a busy worker before another pod is started, which takes seconds itself."""
MOST = 1000
"""Workers of all services together when nothing is set: the cluster says what it bears."""
PATIENCE_S = 30.0
"""Seconds that an answer waits for the end of a pod which it tells of."""
TRIES = 5
"""Workers that a call is offered to when none takes it."""
BEAT_S = 60.0
"""Seconds between signs of life of a server, on its Deployments."""
LEFT_S = 600.0
"""Seconds without one after which its workers are removed by the others."""
_AT_ONCE = 50


class PodInvokes:
    """Implements `Invokes` with pods."""

    def __init__(
        self,
        cluster: Cluster,
        names: Names,
        sidecar: Sidecar,
        ensure: Callable[[str], Awaitable[str]],
        own_store: Callable[[str], Awaitable[MinIOProvider]],
        limits: Limits | None = None,
        *,
        slot: str = "",
    ) -> None:
        """Make it inside the event loop; nothing runs before `start`.

        Args:
            cluster: the way to the API server.
            names: of the installation.
            sidecar: our container in the pods.
            ensure: makes an owner's namespace ready; its name.
            own_store: by a user's name, the platform's store with his keys, as pods reach it.
            limits: what the installation allows; `workers` 0 leaves it to the cluster.
            slot: tells this server's workers from those of others on the same database.
        """
        limits = limits or Limits()
        self._limits = replace(
            limits, patience=max(limits.patience, PATIENT_S), doubling=True, workers=limits.workers or MOST
        )
        self._cluster = cluster
        self._names = names
        self._sidecar = sidecar
        self._ensure = ensure
        self._own_store = own_store
        self._slot = slot
        self._sets: dict[tuple[str, str], WorkerSet] = {}
        self._current: dict[tuple[str, str], WorkerSet] = {}
        self._crews: Crews[Kit, PodWorker] = Crews(Yard(self, self._limits, cores=1, starting=_AT_ONCE))
        self._pods: dict[tuple[str, str], dict[str, Body]] = defaultdict(dict)
        """All pods for calls, those of other servers too, by namespace and Deployment."""
        self._tasks: list[asyncio.Task[None]] = []
        self._log = telemetry.get("workers")

    # The server's life.

    async def start(self) -> None:
        """Take up work; workers of an earlier server go on, those that nobody claims are removed in a while."""
        self._tasks = [
            asyncio.create_task(self._watch(), name="watch of workers"),
            asyncio.create_task(self._sweep(), name="sweep of old workers"),
        ]

    async def stop(self) -> None:
        """Take no more requests, let those under way end, then end all workers."""
        await self._crews.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for workers in self._sets.values():
            try:
                await workers.remove()
            except OscarError as error:
                self._log.warning("workers can't be removed", name=workers.name, error=error.message)
        self._sets.clear()
        self._current.clear()

    # Of `Compute` and `Invokes`.

    def check(self, service: Service) -> list[str]:
        """What of the service's synchronous calls can't be honoured, as warnings."""
        if service.script:
            return []
        return ["script: without one the service can only be run by jobs, not by synchronous calls"]

    async def apply(self, service: Service) -> None:
        """Bring the service's workers to its definition: min_scale warm, others of before replaced."""
        if service.script:
            await self._crew(service, renew=True)

    async def prepare(self, service: Service) -> None:
        """See `Invokes.prepare`."""
        await self.apply(service)

    async def remove(self, owner: str, name: str) -> None:
        """End the service's workers; requests under way fail. Silent if there are none."""
        await self._crews.remove(owner, name)
        workers = self._current.pop((owner, name), None)
        if workers is not None:
            await self._retire(workers)

    async def follow(self, service: Service) -> None:
        """See `Follows.follow`: each server has workers of its own."""
        await self.apply(service)

    async def leave(self, owner: str, name: str) -> None:
        """See `Follows.leave`."""
        await self.remove(owner, name)

    def stats(self) -> list[CrewStats]:
        """How the workers of each service do."""
        return self._crews.stats()

    def occupied(self) -> list[Staying]:
        """See `Occupies.occupied`: this server's workers, and those of others on the same Store, whose pods it sees."""
        elsewhere = self._elsewhere()
        found = []
        for (owner, name), workers in self._current.items():
            crew = self._crews.yard.crews.get((owner, name))
            count = (len(crew.pool.places) if crew else 0) + elsewhere[workers.kit.namespace, name]
            found.append(Staying(owner, name, count, taken(workers.kit.service)))
        return found

    def strangers(self) -> Counter[tuple[str, str]]:
        """By namespace and service, pods of its calls that no server of ours has started: Knative's."""
        return counted(pod for pod in self._all() if SET not in pod["metadata"]["labels"])

    def _elsewhere(self) -> Counter[tuple[str, str]]:
        return counted(
            pod
            for pod in self._all()
            if SET in (labels := pod["metadata"]["labels"]) and labels.get(SLOT, "") != self._slot
        )

    def _all(self) -> Iterator[Body]:
        return (pod for there in self._pods.values() for pod in there.values())

    async def invoke(self, run: Run) -> Answer:
        """Run the script on a warm worker; see `Invokes.invoke`."""
        if not run.service.script:
            raise Unsupported(
                "a service without a script can't be called synchronously here",
                field="script",
                fix="Give it a script, or call it by POST /job.",
            )
        with self._crews.serving():
            payload = (
                await asyncio.to_thread(run.payload.read_bytes)
                if isinstance(run.payload, Path)
                else run.payload
            )
            order = wire.Order(
                run.job_id, run.hops, run.trace, run.timeout, run.environment, await self.stores(run, payload)
            )
            for _ in range(TRIES):
                with contextlib.suppress(NotTaken):
                    return await self._once(run, order, payload)
            raise Unavailable("no worker took the request", headers={"Retry-After": "5"})

    async def _once(self, run: Run, order: wire.Order, payload: bytes) -> Answer:
        crew = self._crews.get(run.service) or await self._crew(run.service)
        if run.workers is not None:
            # What its owner's quota has room for, less what other servers have of it.
            namespace = self._names.namespace_of(run.service.owner)
            crew.pool.allowed = max(0, run.workers - self._elsewhere()[namespace, run.service.name])
        else:
            crew.pool.allowed = None
        place = await crew.acquire(run.user)
        worker = crew.worker(place)
        reusable, ended = False, False
        try:
            heard = await worker.ask(order, payload)
            reusable = worker.reusable
            if wire.SPENT in heard.headers:
                # Something of the script may still run, until its pod has gone.
                ended = True
                await asyncio.wait({crew.end(place)}, timeout=PATIENCE_S)
            return answer_of(heard)
        except InvocationTimeout:
            # Whoever hears of it may rely on that the script is stopped.
            ended = True
            await asyncio.wait({crew.end(place)}, timeout=PATIENCE_S)
            raise
        except NotTaken as error:
            self._log.info("a worker did not take a request", worker=worker.name, reason=str(error))
            raise
        except OscarError:
            reusable = worker.reusable
            raise
        finally:
            if reusable:
                asyncio.get_running_loop().call_soon(crew.answered, place)
            elif not ended:
                crew.end(place)

    async def stores(self, run: Run, payload: bytes) -> wire.Stores | None:
        """The stores of a call with their keys; None when it needs none."""
        service = run.service
        if not (service.input or service.output or service.mount):
            return None
        user = service.owner
        if service.isolation_level == "USER" and service.bucket_list:
            # A private bucket is its user's, and the owner has no right to it.
            used = {record.bucket for record in decode(payload).records}
            user = run.user if run.user and used & set(service.bucket_list) else user
        return wire.Stores(await self._own_store(user), service.storage_providers)

    async def _crew(self, service: Service, *, renew: bool = False) -> Crew[Kit, PodWorker]:
        namespace = await self._ensure(service.owner)
        key = service.owner, service.name
        crew = self._crews.get(service)
        if crew is not None and not renew:
            return crew
        mounted = secret_data(await mount_of(service, self._own_store))
        kit = kit_of(service, namespace, self._sidecar, mounted)
        before = self._current.get(key)
        if before is None or before.kit != kit:
            workers = self._set_of(kit)
            self._current[key] = workers
            if before is not None:
                await self._retire(before)
        return self._crews.renew(service, kit)

    def _set_of(self, kit: Kit) -> WorkerSet:
        made = WorkerSet(self._cluster, self._names, kit, self._sidecar, self._slot)
        known = self._sets.get((kit.namespace, made.name))
        if known is not None:
            known.retired = False
            return known
        self._sets[kit.namespace, made.name] = made
        # Those of an earlier server.
        made.listed(list(self._pods[kit.namespace, made.name].values()))
        return made

    async def _retire(self, workers: WorkerSet) -> None:
        workers.retired = True
        if not workers.hired:
            await workers.remove()

    # Of `Employer`.

    async def ensure_image(self, image: str) -> None:
        """See `Employer.ensure_image`: the node does it."""

    def hire(self, kit: Kit, name: str) -> PodWorker:
        """See `Employer.hire`."""
        return PodWorker(self._set_of(kit), self._cluster, name)

    def unfit(self) -> None:
        """See `Employer.unfit`: there is one kind."""

    # In the background.

    async def _watch(self) -> None:
        async for news in self._cluster.follow(POD, labels=self._names.selector(WORKER)):
            match news:
                case Listed(items):
                    self._pods.clear()
                    for pod in items:
                        self._pods[_place(pod)][pod["metadata"]["name"]] = pod
                    for place, workers in self._sets.items():
                        workers.listed(list(self._pods[place].values()))
                case Changed(pod):
                    place = _place(pod)
                    self._pods[place][pod["metadata"]["name"]] = pod
                    if place in self._sets:
                        self._sets[place].seen(pod)
                case Gone(pod):
                    place = _place(pod)
                    self._pods[place].pop(pod["metadata"]["name"], None)
                    if place in self._sets:
                        self._sets[place].gone(pod["metadata"]["name"])

    async def _sweep(self) -> None:
        """Say again and again that this server lives, and remove workers of those that don't, or that nobody claims."""
        began = time.time()
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                for workers in list(self._sets.values()):
                    await workers.beat(round(time.time()))
                await self._remove_left(claimed=time.time() - began > self._limits.idle)
            except OscarError as error:
                self._log.warning("old workers can't be removed", error=error.message)

    async def _remove_left(self, *, claimed: bool) -> None:
        """Remove workers of servers that are gone.

        Args:
            claimed: those of an earlier server in this one's place had their time to be claimed by their services.
        """
        for item in await self._cluster.items(DEPLOYMENT, labels=self._names.selector(WORKER)):
            meta = item["metadata"]
            ours = meta["labels"].get(SLOT, "") == self._slot
            known = (meta["namespace"], meta["name"]) in self._sets
            if (ours and claimed and not known) or (not ours and _age(meta) > LEFT_S):
                for kind in (DEPLOYMENT, SECRET):
                    await self._cluster.delete(kind, meta["name"], meta["namespace"])


def _age(meta: Body) -> float:
    """Seconds since the server of these workers gave a sign of life."""
    seen = meta.get("annotations", {}).get(SEEN)
    if seen and seen.isdigit():
        return time.time() - int(seen)
    return time.time() - datetime.fromisoformat(meta["creationTimestamp"]).timestamp()


def _place(pod: Body) -> tuple[str, str]:
    meta = pod["metadata"]
    return str(meta["namespace"]), str(meta["labels"].get(SET, ""))


def answer_of(heard: Heard) -> Answer:
    """What a sidecar has answered."""
    try:
        code = int(heard.headers[wire.EXIT])
        length = heard.headers.get(wire.LOG_LENGTH)
    except (KeyError, ValueError) as error:
        raise EngineError("the worker's answer makes no sense") from error
    if length is None:
        return Answer(heard.body, code, heard.body)
    return Answer(heard.body[int(length) :], code, heard.body[: int(length)])
