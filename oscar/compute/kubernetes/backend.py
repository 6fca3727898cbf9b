"""A Kubernetes cluster as an engine for jobs: implements `Compute` and several abilities of `compute.base`.

Made by `app.engines`. Two watches (Jobs and pods) feed `runs`, from which all questions are answered; `launch` makes a
run's objects, `collect` reads its log, `observed` says what its Job and pod mean. Several servers may work with one
cluster: each sees all runs, and collects the logs of those it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from oscar import telemetry
from oscar.compute.base import Capacity, LogLine, Pace, Phase, Run, RunState
from oscar.compute.kubernetes import manifests, nodes, observed
from oscar.compute.kubernetes.cluster import Body, Changed, Cluster, ClusterError, Gone, Listed
from oscar.compute.kubernetes.collect import Collector
from oscar.compute.kubernetes.kinds import DAEMON_SET, JOB, NAMESPACE, NODE, NODE_METRICS, POD, Kind
from oscar.compute.kubernetes.launch import Launcher
from oscar.compute.kubernetes.logs import Logs
from oscar.compute.kubernetes.manifests import END, PREFETCH, RUNS
from oscar.compute.kubernetes.names import INSTALLATION, SERVICE, Names, digest, service_object
from oscar.compute.kubernetes.observed import End
from oscar.compute.kubernetes.runs import Runs, Tracked, needs, steps
from oscar.compute.kubernetes.tenancy import Tenancy
from oscar.compute.kubernetes.tenants import TENANT
from oscar.errors import EngineMissing, OscarError, RunNotFound
from oscar.model.node import Node, schedulable
from oscar.model.service import Service
from oscar.model.trouble import Trouble

log = telemetry.get("kubernetes")

OLDEST = (1, 29)
"""The first version with all that runs need (podReplacementPolicy, podFailurePolicy)."""

_RESYNC_S = 60.0
_PAUSE_S = 2.0
_FOREIGN_S = 10.0
_ENOUGH_HELD = 8
"""Runs of an owner that the cluster holds back before the rest of his waits in our queue."""
_FIRST_LIST_S = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the settings say."""

    staging: manifests.Staging
    kueue: bool = False
    waiting: int = 32
    """Runs that may wait for a place in the cluster."""


class Beside(Protocol):
    """A part of the engine that has objects of its own for a service: warm workers, servers of models."""

    async def follow(self, service: Service) -> None:
        """See `Follows.follow`."""

    async def leave(self, owner: str, name: str) -> None:
        """See `Follows.leave`."""

    async def apply(self, service: Service) -> None:
        """See `Compute.apply`."""

    async def remove(self, owner: str, name: str) -> None:
        """See `Compute.remove`."""

    def check(self, service: Service) -> list[str]:
        """See `Compute.check`."""


class KubernetesCompute:
    """Implements `Compute` with the Jobs of a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        names: Names,
        tenancy: Tenancy,
        launcher: Launcher,
        logs: Logs,
        options: Options,
        *beside: Beside,
    ) -> None:
        """Put it together; nothing happens before `start`.

        Args:
            cluster: the way to the API server.
            names: of the installation.
            tenancy: the namespaces of owners.
            launcher: makes the objects of runs.
            logs: keeps what they said.
            options: what the settings say.
            beside: what else a service has in the cluster.
        """
        if not names.installation:
            # Without it nothing could be told from another installation's.
            raise EngineMissing(
                "The Store has no record of its first start", fix="start with a Store that has"
            )
        self.cluster = cluster
        self.names = names
        self.tenancy = tenancy
        self._launcher = launcher
        self._logs = logs
        self._options = options
        self._beside = beside
        self._runs = Runs()
        self._nodes: dict[str, Body] = {}
        self._changes: asyncio.Queue[RunState] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listed = {kind: asyncio.Event() for kind in (JOB, POD, NODE)}
        self._submitting: dict[str, asyncio.Lock] = {}
        self._applied: dict[tuple[str, str], Service] = {}
        self._prefetched: set[tuple[str, str]] = set()
        self._foreign: tuple[float, int, int] = (0.0, 0, 0)
        self._version = ""
        self._look = asyncio.Event()

    # Life.

    async def start(self) -> None:
        """See `Compute.start`."""
        self._version = await self.cluster.version()
        self._check_version()
        await self.tenancy.start(kueue=self._options.kueue)
        found = await self.cluster.items(DAEMON_SET, labels=self.names.selector(PREFETCH))
        self._prefetched = {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in found}
        await self._logs.start()
        self._spawn(self._always(lambda: self._follow(JOB, RUNS)))
        self._spawn(self._always(lambda: self._follow(POD, RUNS)))
        self._spawn(self._always(lambda: self._follow(NODE, "")))
        self._spawn(self._always(self._follow_tenants))
        self._spawn(self._resync())
        try:
            async with asyncio.timeout(_FIRST_LIST_S):
                for listed in self._listed.values():
                    await listed.wait()
        except TimeoutError:
            raise EngineMissing("The Kubernetes API does not list jobs, pods and nodes") from None
        for run in self._runs:
            self._update(run)

    async def stop(self) -> None:
        """See `Compute.stop`."""
        for run in self._runs:
            if run.timer:
                run.timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._launcher.close()
        await self.cluster.close()

    def _check_version(self) -> None:
        if is_old(self._version):
            raise EngineMissing(
                f"Kubernetes {self._version} is too old", fix=f"use v{OLDEST[0]}.{OLDEST[1]} or newer"
            )

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    @staticmethod
    async def _always(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do work that has no end: a fault of ours in one object must not blind the engine for all others."""
        while True:
            try:
                await work()
            except Exception:
                log.exception("a watch ended; it is begun again")
                await asyncio.sleep(_PAUSE_S)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a task of the engine ended", error=repr(error), exc_info=error)

    # Services.

    async def apply(self, service: Service) -> None:
        """See `Compute.apply`."""
        self._applied[service.owner, service.name] = service
        namespace = await self.tenancy.ensure(service.owner)
        place = (namespace, service_object(service.name, PREFETCH))
        if service.image_prefetch:
            await self.cluster.apply(DAEMON_SET, manifests.prefetch(self.names, service, namespace))
            self._prefetched.add(place)
        else:
            await self._drop_prefetch(place)
        for other in self._beside:
            await other.apply(service)

    async def remove(self, owner: str, service_name: str) -> None:
        """See `Compute.remove`."""
        self._applied.pop((owner, service_name), None)
        namespace = self.names.namespace_of(owner)
        await self._drop_prefetch((namespace, service_object(service_name, PREFETCH)))
        for other in self._beside:
            await other.remove(owner, service_name)

    async def follow(self, service: Service) -> None:
        """See `Follows.follow`."""
        self._applied[service.owner, service.name] = service
        if service.image_prefetch:
            # Never out of it: this server may be about to remove it itself.
            self._prefetched.add(
                (self.names.namespace_of(service.owner), service_object(service.name, PREFETCH))
            )
        for other in self._beside:
            await other.follow(service)

    async def leave(self, owner: str, service_name: str) -> None:
        """See `Follows.leave`."""
        self._applied.pop((owner, service_name), None)
        for other in self._beside:
            await other.leave(owner, service_name)

    async def _drop_prefetch(self, place: tuple[str, str]) -> None:
        if place in self._prefetched:
            await self.cluster.delete(DAEMON_SET, place[1], place[0])
            self._prefetched.discard(place)

    async def reconcile(self, known: Collection[tuple[str, str]]) -> None:
        """See `Reconciles.reconcile`."""
        self._applied = {key: service for key, service in self._applied.items() if key in known}
        await self._put_back()
        kept = {
            (self.names.namespace_of(owner), service_object(name, PREFETCH))
            for (owner, name), service in self._applied.items()
            if service.image_prefetch
        }
        for item in await self.cluster.items(DAEMON_SET, labels=self.names.selector(PREFETCH)):
            place = (item["metadata"]["namespace"], item["metadata"]["name"])
            labels = item["metadata"]["labels"]
            if place not in kept and labels.get(INSTALLATION) == self.names.installation:
                log.info("removed what belongs to no service", kind="DaemonSet", service=labels.get(SERVICE))
                await self.cluster.delete(DAEMON_SET, place[1], place[0])
                self._prefetched.discard(place)

    async def _put_back(self) -> None:
        """Have all of what was applied as it should be."""
        for owner in {owner for owner, _ in self._applied} | set(self.tenancy.owners()):
            await self.tenancy.apply(owner)
        for service in list(self._applied.values()):
            if service.image_prefetch:
                await self.apply(service)

    async def quota_changed(self, owner: str) -> None:
        """See `HasQuotas.quota_changed`."""
        if owner in self.tenancy.owners():
            await self.tenancy.apply(owner)

    # Runs.

    async def submit(self, run: Run, *, adopt: bool = False) -> None:
        """See `Compute.submit`."""
        lock = self._submitting.setdefault(run.name, asyncio.Lock())
        try:
            async with lock:
                known = self._runs.get(run.name)
                if known is None or known.job_gone:
                    job = await (self._launcher.find(run) if adopt else self._launcher.launch(run))
                    if job is None:
                        raise RunNotFound(f"there is no run {run.name}")
                    known = self._runs.put(job)
                elif known.forgotten:
                    raise RunNotFound(f"there is no run {run.name}")
                elif known.state.phase is Phase.SUBMITTED:
                    # A crash may have come between its Job and its Secret.
                    await self._launcher.complete(run, known.job)
        finally:
            self._submitting.pop(run.name, None)
        self._take(known)
        self._update(known)

    async def cancel(self, name: str) -> None:
        """See `Compute.cancel`."""
        run = self._runs.get(name)
        if run is not None and not run.is_done:
            await self._end(run, End(Trouble.CANCELLED, "cancelled", run.state.started))

    async def withdraw(self, name: str) -> bool:
        """See `Withdraws.withdraw`."""
        run = self._runs.get(name)
        if run is None or run.is_done or run.ending or run.state.phase is not Phase.SUBMITTED:
            return False
        if not (observed.waits(run.job, run.pod) and manifests.stages(run.job)):
            return False
        if not await self._launcher.claim(name):
            return False
        # What holds is the marker; that the cluster gives the place up may take as long as it likes.
        self._spawn(self._end(run, End(Trouble.OUR, "it found no place here, and was taken back")))
        return True

    async def forget(self, name: str) -> None:
        """See `Compute.forget`."""
        run = self._runs.get(name)
        if run is None or run.forgotten:
            return
        if run.log is None:
            # Its end was settled by what a watch said, without anybody having taken it on.
            self._take(run)
        await self._kept(run)
        run.forgotten = True
        if run.timer:
            run.timer.cancel()
        self._spawn(self._remove(run))

    async def _remove(self, run: Tracked) -> None:
        """Remove a run's objects, however long the API server is away; the next start finds what is left."""
        namespace, name = run.place
        while True:
            try:
                await self.cluster.delete(JOB, name, namespace)
                await self._launcher.clean(run.name)
            except OscarError as error:
                log.warning("a run can't be removed yet", run=run.name, reason=error.message)
                await asyncio.sleep(_PAUSE_S)
            else:
                break
        run.job_gone = True
        self._runs.remove(run)

    async def observe(self) -> AsyncIterator[RunState]:
        """See `Compute.observe`."""
        changes: asyncio.Queue[RunState] = asyncio.Queue()
        self._changes = changes
        for run in self._runs:
            if run.told is not None and not run.forgotten:
                yield run.told
        while True:
            yield await changes.get()

    def _tell(self, run: Tracked, new: RunState) -> None:
        for state in steps(run.told, new):
            run.told = state
            if self._changes is not None:
                self._changes.put_nowait(state)

    # What the watches say.

    async def _follow(self, kind: Kind, part: str) -> None:
        labels = self.names.selector(part) if part else ""
        note = {JOB: self._note_job, POD: self._note_pod, NODE: self._note_node}[kind]
        async for news in self.cluster.follow(kind, labels=labels):
            match news:
                case Listed(items):
                    for item in items:
                        note(item, gone=False)
                    self._missing(kind, items)
                    self._listed[kind].set()
                case Changed(item):
                    note(item, gone=False)
                case Gone(item):
                    note(item, gone=True)

    def _note_job(self, job: Body, *, gone: bool) -> None:
        run = self._runs.put(job)
        if gone:
            run.job_gone = True
            if run.forgotten:
                self._runs.remove(run)
                return
        self._update(run)

    def _note_pod(self, pod: Body, *, gone: bool) -> None:
        run = self._runs.put_pod(pod)
        if run is None:
            if gone:
                self._runs.drop_pod(pod)
            return
        run.pod_gone = run.pod_gone or gone
        self._update(run)

    def _note_node(self, node: Body, *, gone: bool) -> None:
        name = node["metadata"]["name"]
        if gone:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node

    def _missing(self, kind: Kind, items: list[Body]) -> None:
        """After a list: what was known and is not in it may have been removed while nobody looked."""
        there = {each["metadata"]["uid"] for each in items}
        if kind is NODE:
            names = {each["metadata"]["name"] for each in items}
            self._nodes = {name: node for name, node in self._nodes.items() if name in names}
            return
        for run in self._runs:
            item = run.job if kind is JOB else run.pod
            gone = run.job_gone if kind is JOB else run.pod_gone
            if item is not None and not gone and item["metadata"]["uid"] not in there:
                self._spawn(self._confirm_gone(kind, run, item))

    async def _confirm_gone(self, kind: Kind, run: Tracked, item: Body) -> None:
        # The list may be older than the object: only the API server's 404 counts.
        found = await self._insist_get(kind, item)
        if found is not None and found["metadata"]["uid"] == item["metadata"]["uid"]:
            return
        if kind is JOB:
            run.job_gone = True
        else:
            run.pod_gone = True
        self._update(run)

    async def _insist_get(self, kind: Kind, item: Body) -> Body | None:
        while True:
            try:
                return await self.cluster.get(kind, item["metadata"]["name"], item["metadata"]["namespace"])
            except ClusterError as error:
                log.warning("the cluster has to be asked again", reason=error.message)
                await asyncio.sleep(_PAUSE_S)

    def _update(self, run: Tracked) -> None:
        """Draw conclusions from what a run looks like now."""
        run.news()
        if run.forgotten or run.is_done:
            return
        state = run.state
        if state.phase is Phase.DONE:
            if run.timer:
                run.timer.cancel()
            if run.log is not None and not run.log.done():
                run.log.add_done_callback(lambda _: self._told_done(run))
            else:
                self._tell(run, state)
            return
        live = run.told is not None and run.told.phase is Phase.SUBMITTED
        self._tell(run, state)
        if state.phase is Phase.RUNNING and run.timer is None:
            self._set_timer(run, state, live=live)
        elif state.phase is Phase.SETTLING and run.timer:
            run.timer.cancel()
        if run.ending:
            return
        if run.log is not None and (end := observed.half_ended(run.job)):
            self._spawn(self._end(run, end))
        elif run.pod is not None and (words := observed.hopeless(run.pod)):
            self._spawn(self._end(run, End(Trouble.OUR, words)))

    def _told_done(self, run: Tracked) -> None:
        if run.log is not None and not run.log.cancelled():
            self._tell(run, run.state)

    def _set_timer(self, run: Tracked, state: RunState, *, live: bool) -> None:
        limit = observed.timeout_of(run.job)
        if limit is None:
            return
        left = limit
        if not live and state.started is not None:
            # Nobody saw it start: by the kubelet's clock, which tells whole seconds.
            left = min(limit, max(0.0, state.started / 1000 + 1 + limit - time.time()))
        end = End(Trouble.TIMEOUT, f"killed: it ran longer than {limit:g} s", state.started)
        loop = asyncio.get_running_loop()
        run.timer = loop.call_later(left, lambda: self._spawn(self._end(run, end)))

    async def _end(self, run: Tracked, end: End) -> None:
        """End a run: what we decided is written on its Job in the same change that has the cluster end its pod."""
        if run.ending or run.state.phase is Phase.DONE:
            return
        run.ending = True
        said: Body = {"metadata": {"annotations": {END: end.as_text()}}}
        has_place = not observed.waits(run.job, run.pod)
        try:
            if has_place:
                # Before the Job tells it: that would give it half a minute, which the kubelet does not cut short.
                await self._change(run, end, said)
                await self._end_pod(run)
            job = await self._change(run, end, {**said, "spec": {"activeDeadlineSeconds": 0}})
            if job is not None:
                self._note_job(job, gone=False)
            if not has_place:
                await self._end_pod(run)
        except OscarError:
            run.ending = False
            raise

    async def _change(self, run: Tracked, end: End, change: Body) -> Body | None:
        """Change a run's Job, however long the API server is away: but for a user, who is told."""
        namespace, name = run.place
        while True:
            try:
                return await self.cluster.merge(JOB, name, change, namespace)
            except ClusterError as error:
                if end.trouble is Trouble.CANCELLED:
                    raise
                log.warning("a run can't be ended yet", run=run.name, reason=error.message)
                await asyncio.sleep(_PAUSE_S)

    async def _end_pod(self, run: Tracked) -> None:
        if run.pod is not None and not run.pod_gone:
            meta = run.pod["metadata"]
            await self.cluster.delete(POD, meta["name"], meta["namespace"], grace=1)

    # Logs.

    def _take(self, run: Tracked) -> None:
        """Collect the run's log from here on."""
        if run.log is None and not run.is_done:
            run.log = self._spawn(self._collect(run))
        elif run.log is None:
            run.log = self._spawn(self._collect_late(run))

    async def _collect(self, run: Tracked) -> None:
        collector = Collector(self.cluster, self._logs, run)
        growing = await collector.run()
        await run.until(lambda known: known.state.phase is Phase.DONE)
        state = run.state
        words = state.message if state.trouble not in {None, Trouble.CANCELLED} else None
        await collector.finish(growing, words)

    async def _collect_late(self, run: Tracked) -> None:
        while True:
            try:
                complete = await self._logs.is_complete(run.name)
            except OscarError as error:
                log.warning("a log can't be looked for yet", run=run.name, reason=error.message)
                await asyncio.sleep(_PAUSE_S)
            else:
                break
        if not complete:
            await self._collect(run)

    @staticmethod
    async def _kept(run: Tracked) -> None:
        """Wait until the log that this server collects is whole."""
        if run.log is not None:
            await asyncio.shield(run.log)  # whoever waits may give up, others want it

    async def logs(
        self, name: str, *, follow: bool = False, tail: int | None = None
    ) -> AsyncIterator[LogLine]:
        """See `Compute.logs`."""

        def going() -> bool:
            run = self._runs.get(name)
            return run is not None and not run.is_done

        known = self._runs.get(name)
        if known is not None and known.is_done:
            # One that had ended before this server came was told at once, and its log is fetched only since.
            await self._kept(known)
        lines = self._logs.read(name, going=going if follow else None, known=known is not None, tail=tail)
        async for line in lines:
            yield line

    async def drop_logs(self, name: str) -> None:
        """See `Compute.drop_logs`."""
        await self._logs.drop(name)

    # What there is.

    def pace(self) -> Pace:
        """See `Paces.pace`."""
        waiting, held = self._runs.waiting()
        owners = {digest(owner): owner for owner, _ in self._applied}
        full = {owners.get(each, "") for each, count in held.items() if count >= _ENOUGH_HELD}
        room = 0 if self.cluster.throttled else max(0, self._options.waiting - waiting)
        return Pace(room, frozenset(full - {""}))

    async def capacity(self) -> Capacity:
        """See `Compute.capacity`."""
        there = [nodes.node(item, {}, {}) for item in self._taking()]
        cpu, memory = sum(each.cpu.capacity for each in there), sum(each.memory.capacity for each in there)
        foreign_cpu, foreign_memory = await self._others()
        ours = [needs(run.job) for run in self._runs.active]
        cpu, memory = max(0, cpu - foreign_cpu), max(0, memory - foreign_memory)
        return Capacity(
            cpu=cpu,
            cpu_free=max(0, cpu - sum(each[0] for each in ours)),
            memory=memory,
            memory_free=max(0, memory - sum(each[1] for each in ours)),
            gpu=sum(each.gpu for each in there),
        )

    def _taking(self) -> list[Body]:
        """The nodes that take runs."""
        names = {each.name for each in schedulable(nodes.node(item, {}, {}) for item in self._nodes.values())}
        return [item for name, item in self._nodes.items() if name in names]

    async def _others(self) -> tuple[int, int]:
        """What pods that are no runs of ours ask for on those nodes; asked anew after some seconds."""
        at, cpu, memory = self._foreign
        if not at or time.monotonic() - at > _FOREIGN_S:
            names = {item["metadata"]["name"] for item in self._taking()}
            pods = await self.cluster.items(POD, fields="status.phase!=Succeeded,status.phase!=Failed")
            foreign = [pod for pod in pods if pod["spec"].get("nodeName") in names and not self._is_run(pod)]
            asked = [nodes.requests(pod) for pod in foreign]
            cpu, memory = sum(each[0] for each in asked), sum(each[1] for each in asked)
            self._foreign = (time.monotonic(), cpu, memory)
        return cpu, memory

    def _is_run(self, pod: Body) -> bool:
        labels = pod["metadata"].get("labels") or {}
        return labels.get(INSTALLATION) == self.names.installation and "oscar.grycap/run" in labels

    async def nodes(self) -> Sequence[Node]:
        """See `HasNodes.nodes`."""
        pods = await self.cluster.items(POD, fields="status.phase!=Succeeded,status.phase!=Failed")
        used = None
        with contextlib.suppress(ClusterError):  # no metrics-server, or not yet: what was asked for counts
            used = nodes.in_use(await self.cluster.items(NODE_METRICS))
        promised = nodes.promised(pods)
        return [nodes.node(item, promised, used) for item in self._nodes.values()]

    def version(self) -> str:
        """See `HasNodes.version`."""
        return self._version

    @property
    def gpus_for_runs(self) -> int | None:
        """Pods wait for devices themselves; see `Compute.gpus_for_runs`."""
        return None

    def describe(self) -> str:
        """See `Compute.describe`."""
        runtimes = {item["status"]["nodeInfo"]["containerRuntimeVersion"] for item in self._nodes.values()}
        count = len(self._nodes)
        queue = ", Kueue" if self.tenancy.kueue else ""
        return f"Kubernetes {self._version} ({count} node{'s' * (count != 1)}, {', '.join(sorted(runtimes))}{queue})"

    def check(self, service: Service) -> list[str]:
        """See `Compute.check`."""
        there = [item["status"].get("allocatable") or {} for item in self._nodes.values()]
        warnings = []
        if service.enable_gpu and not any(nodes.quantity(each.get(nodes.GPU, "0")) for each in there):
            warnings.append("enable_gpu: no node of the cluster has a GPU now; jobs wait for one")
        if service.enable_sgx and not any(nodes.quantity(each.get(nodes.SGX, "0")) for each in there):
            warnings.append("enable_sgx: no node of the cluster has SGX now; jobs wait for one")
        if service.interlink_node_name and service.interlink_node_name not in self._nodes:
            warnings.append(f"interlink_node_name: the cluster has no node {service.interlink_node_name} now")
        return [*warnings, *(words for other in self._beside for words in other.check(service))]

    # Tenants.

    async def _follow_tenants(self) -> None:
        async for news in self.cluster.follow(NAMESPACE, labels=self.names.selector(TENANT)):
            match news:
                case Listed(items):
                    there = {item["metadata"]["name"] for item in items}
                    for owner in self.tenancy.owners():
                        if (namespace := self.names.namespace_of(owner)) not in there:
                            self._lost(namespace)
                case Gone(item):
                    self._lost(item["metadata"]["name"])

    def _lost(self, namespace: str) -> None:
        owner = self.tenancy.lost(namespace)
        if owner is not None:
            log.warning("a tenant's namespace was deleted; it is made again", namespace=namespace)
            self._look.set()

    async def _resync(self) -> None:
        """Put back what was deleted behind our back: soon after a namespace, else from time to time."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RESYNC_S):
                    await self._look.wait()
            self._look.clear()
            try:
                await self._put_back()
            except OscarError as error:
                log.warning("not all could be put back", reason=error.message)
                await asyncio.sleep(_PAUSE_S)


def is_old(version: str) -> bool:
    """Whether a version of Kubernetes, such as `v1.34.2`, lacks what runs need."""
    found = re.match(r"v(\d+)\.(\d+)", version)
    return not found or (int(found[1]), int(found[2])) < OLDEST


def installation_bucket(installation: str) -> str:
    """The bucket of the own store for what runs leave: logs, bodies, marks. It is the administrator's."""
    return f"oscar-{installation}"
