"""Warm workers in pods: the Deployment of one definition, and one pod of it as a worker that `crew` starts and ends.

Called by `sync`; calls `cluster`, `worker_manifests` and `sidecar`. How many pods there are is decided by `pool`: each
worker that it starts raises the Deployment's number by one and takes the next pod that comes, each that it ends lowers
it and has just that pod go.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from oscar import telemetry
from oscar.compute.kubernetes import worker_manifests as manifests
from oscar.compute.kubernetes.cluster import Body, Cluster
from oscar.compute.kubernetes.kinds import DEPLOYMENT, POD, SECRET
from oscar.compute.kubernetes.names import Names
from oscar.compute.kubernetes.sidecar import Heard, Line, NotTaken
from oscar.compute.kubernetes.worker_manifests import PORT, USER, Kit, Sidecar
from oscar.errors import EngineError, ImageError, OscarError
from oscar.supervisor import wire

log = telemetry.get("workers")

_COST = "controller.kubernetes.io/pod-deletion-cost"
_CHOICE_S = 3.0
"""Seconds that the cluster gets to end just the pod that was named to it."""
_GONE_S = 45.0
_OOM_S = 3.0
"""Seconds in which the cluster says why a container died."""
_LOOK_S = 0.05
_BAD_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_BAD_CONTAINER = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


class WorkerSet:
    """The Deployment of one definition's workers, for one server."""

    def __init__(self, cluster: Cluster, names: Names, kit: Kit, sidecar: Sidecar, slot: str) -> None:
        self.kit = kit
        self.name = f"{kit.name}-{slot}" if slot else kit.name
        self.retired = False
        """Another definition has taken its place: it goes with its last worker."""
        self.hired = 0
        self.key = b""
        self._cluster = cluster
        self._names = names
        self._sidecar = sidecar
        self._slot = slot
        self._wanted = 0
        self._there: int | None = None
        """The Deployment's number; None before it exists."""
        self._lock = asyncio.Lock()
        self._free: dict[str, Body] = {}
        self._bound: dict[str, PodWorker] = {}
        self._waiting: deque[tuple[asyncio.Future[None], PodWorker]] = deque()

    async def grow(self, worker: PodWorker) -> None:
        """One pod more, for that worker: an idle one that is there already, else the next that comes."""
        self._wanted += 1
        try:
            await self._scale()
            await self.another(worker)
        except BaseException:
            self._wanted -= 1
            raise

    async def another(self, worker: PodWorker) -> None:
        """The next pod that comes; in the place of the worker's own, if the cluster has removed that."""
        self._bound.pop(worker.pod, None)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = (place, worker)
        self._waiting.append(ticket)
        self._match()
        try:
            await place
        except BaseException:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            if self._bound.pop(worker.pod, None) is worker:
                # Given at the moment when it was no longer wanted: never used, so another may have it.
                worker.pod = ""
                if worker.body is not None:
                    self.seen(worker.body)
            raise

    async def shrink(self, pod: str, *, at_once: bool) -> None:
        """That pod less; it has gone when this returns.

        Args:
            pod: its name.
            at_once: something may still run in it.
        """
        worker = self._bound[pod]
        self._wanted -= 1
        namespace = self.kit.namespace
        if at_once:
            # Before the number is lowered, for which the cluster would end some pod with all the time of a drain.
            await self._cluster.delete(POD, pod, namespace, grace=1)
            await self._scale()
        else:
            lowered = self._there is not None and self._wanted < self._there
            if lowered:
                mark: Body = {"metadata": {"annotations": {_COST: "-1000"}}}
                await self._cluster.merge(POD, pod, mark, namespace)
                await self._scale()
                await worker.passes(lambda body: body is None or _is_leaving(body), _CHOICE_S)
            if not (worker.body is None or _is_leaving(worker.body)):
                await self._cluster.delete(POD, pod, namespace)
        if not await worker.passes(lambda body: body is None, _GONE_S):
            raise EngineError(f"the pod {pod} does not end")
        self._bound.pop(pod, None)

    async def give_back(self) -> None:
        """Nobody waits for a pod any more that `grow` had asked for."""
        await self._scale()

    async def beat(self, now: int) -> None:
        """Say that its server lives, to others that would remove it."""
        if self._there is not None:
            change: Body = {"metadata": {"annotations": {manifests.SEEN: str(now)}}}
            await self._cluster.merge(DEPLOYMENT, self.name, change, self.kit.namespace)

    async def remove(self) -> None:
        """Remove the Deployment with all that is left of it. Silent if absent."""
        await self._cluster.delete(DEPLOYMENT, self.name, self.kit.namespace)
        await self._cluster.delete(SECRET, self.name, self.kit.namespace)
        self._there = None

    async def trouble(self) -> str:
        """Why no pod comes, in the cluster's words; empty when it does not say."""
        found = await self._cluster.get(DEPLOYMENT, self.name, self.kit.namespace)
        for condition in (found or {}).get("status", {}).get("conditions", ()):
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                return str(condition.get("message", ""))
        return ""

    # What the watch tells.

    def seen(self, pod: Body) -> None:
        """A pod of ours has come or changed."""
        name = pod["metadata"]["name"]
        worker = self._bound.get(name)
        if worker is not None:
            worker.update(pod)
        elif _is_leaving(pod) or pod.get("status", {}).get("phase") in {"Failed", "Succeeded"}:
            self._free.pop(name, None)
        else:
            self._free[name] = pod
            self._match()

    def gone(self, name: str) -> None:
        """A pod of ours is no more."""
        self._free.pop(name, None)
        worker = self._bound.get(name)
        if worker is not None:
            worker.update(None)

    def listed(self, pods: list[Body]) -> None:
        """These are all pods of ours."""
        present = {pod["metadata"]["name"] for pod in pods}
        for name in [*self._free, *self._bound]:
            if name not in present:
                self.gone(name)
        for pod in pods:
            self.seen(pod)

    def _match(self) -> None:
        while self._waiting and self._free:
            place, worker = self._waiting.popleft()
            if not place.done():
                # The oldest first: it is most likely to be ready.
                name = min(
                    self._free, key=lambda each: str(self._free[each]["metadata"]["creationTimestamp"])
                )
                # From this moment on it is that worker's: no other may get it.
                self._bound[name] = worker
                worker.given(self._free.pop(name))
                place.set_result(None)

    async def _scale(self) -> None:
        async with self._lock:
            if self._there is None:
                await self._make()
            if self._there != self._wanted:
                wanted = self._wanted
                change = {"spec": {"replicas": wanted}}
                done = await self._cluster.merge(
                    DEPLOYMENT, self.name, change, self.kit.namespace, of="scale"
                )
                self._there = wanted if done is not None else None
                if done is None:
                    log.warning("the Deployment was removed by somebody; it is made anew", name=self.name)
                    await self._make()

    async def _make(self) -> None:
        key = os.urandom(32)
        secret = manifests.secret(self._names, self.kit, self.name, key, slot=self._slot)
        if await self._cluster.create(SECRET, secret) is None:
            found = await self._cluster.get(SECRET, self.name, self.kit.namespace)
            if found is None:
                raise EngineError("the Secret of the workers was removed at this moment")
            key = base64.b64decode(found["data"]["key"])
        self.key = key
        wanted = self._wanted
        body = manifests.deployment(
            self._names, self.kit, self.name, self._sidecar, replicas=wanted, slot=self._slot
        )
        if await self._cluster.create(DEPLOYMENT, body) is None:
            there = await self._cluster.get(DEPLOYMENT, self.name, self.kit.namespace)
            wanted = there["spec"]["replicas"] if there else wanted
        self._there = wanted


class PodWorker:
    """One pod as a worker; see `hands.Hand`."""

    def __init__(self, workers: WorkerSet, cluster: Cluster, name: str) -> None:
        self.name = name
        self.body: Body | None = None
        """The pod as the cluster has it; None when it has none."""
        self._set = workers
        self._cluster = cluster
        self.pod = ""
        """Its name."""
        self._line: Line | None = None
        self._changed = asyncio.Event()
        self._tell: Callable[[str], None] | None = None
        self._why_dead = ""
        self._clean = False
        self._aborted: OscarError | None = None
        self._asking: asyncio.Task[Heard] | None = None
        workers.hired += 1

    # Its life.

    async def start(self, *, wait: float) -> None:
        """See `Hand.start`."""
        try:
            async with asyncio.timeout(wait):
                await self._set.grow(self)
                while not await self._listen():
                    await self._set.another(self)
        except TimeoutError:
            why = _why_pending(self.body) if self.body else await self._set.trouble()
            raise EngineError(
                f"the worker did not start in {wait:g} s" + (f": {why}" if why else "")
            ) from None
        finally:
            if not self.pod:
                await self._set.give_back()
        self._clean = True

    def given(self, pod: Body) -> None:
        """That pod is this worker's from now on."""
        self.pod, self.body, self._why_dead = pod["metadata"]["name"], pod, ""

    async def _listen(self) -> bool:
        """Wait until the pod has an address and its loop listens; False when the cluster has removed it."""
        while True:
            body = self.body
            if body is None or _is_leaving(body):
                return False
            if (words := _refused(body)) is not None:
                raise words
            if _restarts(body):
                raise EngineError(f"the worker ended at its start{await self._last_words()}")
            address = body.get("status", {}).get("podIP")
            if address:
                self._line = Line(address, PORT)
                if await self._is_ready(self._line):
                    return True
            self._changed.clear()
            try:
                async with asyncio.timeout(_LOOK_S if address else None):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _is_ready(self, line: Line) -> bool:
        asking = asyncio.ensure_future(line.look("/ready?wait"))
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({asking, changed}, return_when=asyncio.FIRST_COMPLETED)
            return asking.done() and asking.result().status == 200  # noqa: PLR2004
        except (OSError, EOFError, TimeoutError):
            return False
        finally:
            for each in (asking, changed):
                each.cancel()
            await asyncio.wait({asking, changed})

    def when_dead(self, tell: Callable[[str], None]) -> None:
        """See `Hand.when_dead`."""
        self._tell = tell
        if self._why_dead:
            asyncio.get_running_loop().call_soon(self._tell, self._why_dead)

    @property
    def dead(self) -> bool:
        """See `Hand.dead`."""
        return bool(self._why_dead)

    def abort(self, error: OscarError) -> None:
        """See `Hand.abort`."""
        self._aborted = error
        if self._asking is not None:
            self._asking.cancel()

    async def stop(self) -> None:
        """See `Hand.stop`."""
        self._tell = None
        if self._line is not None:
            self._line.close()
        if self.pod:
            await self._set.shrink(self.pod, at_once=not self._clean)
            self.pod = ""
        self._set.hired -= 1
        if self._set.retired and not self._set.hired:
            await self._set.remove()

    def tidy(self) -> bool | None:
        """See `Hand.tidy`: the sidecar has done it."""
        return True

    async def tidy_all(self) -> bool:
        """See `tidy`."""
        return True

    # What the watch tells.

    def update(self, body: Body | None) -> None:
        """The pod has changed, or is no more."""
        self.body = body
        self._changed.set()
        if self._why_dead:
            return
        if body is None:
            self._why_dead = "its pod was removed"
        elif _is_leaving(body):
            self._why_dead = "its pod is being ended by the cluster"
        elif _restarts(body):
            self._why_dead = f"its container ended{_end_of(body)}"
        elif body.get("status", {}).get("phase") == "Failed":
            self._why_dead = (
                f"its pod failed: {body['status'].get('message') or body['status'].get('reason')}"
            )
        if self._why_dead and self._tell is not None:
            self._tell(self._why_dead)

    async def passes(self, holds: Callable[[Body | None], bool], seconds: float) -> bool:
        """Wait until the pod is so; False when that takes longer."""
        try:
            async with asyncio.timeout(seconds):
                while not holds(self.body):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    # Its work.

    async def ask(self, order: wire.Order, payload: bytes) -> Heard:
        """Have the script run once.

        Raises:
            NotTaken: it did not begin there.
            OscarError: what the sidecar says, what `abort` was given, or that the worker was lost.
        """
        if self._aborted is not None:
            raise self._aborted
        if self._line is None or self.dead:
            raise NotTaken(self._why_dead or "the worker has not started")
        key = self._set.key
        sealed = wire.seal(order, key)
        headers = {
            "Authorization": f"Bearer {wire.token(key)}",
            wire.ORDER_LENGTH: str(len(sealed)),
            "Content-Type": "application/octet-stream",
        }
        self._clean = False
        self._asking = asyncio.ensure_future(self._line.call(headers, (sealed, payload)))
        try:
            heard = await self._asking
        except NotTaken:
            # What does not answer may hang: it is not waited for when it is ended.
            raise
        except asyncio.CancelledError:
            if self._aborted is not None:
                raise self._aborted from None
            raise
        except EngineError as error:
            raise EngineError(error.message + await self._why_lost()) from error
        finally:
            self._asking.cancel()
        if refusal := heard.headers.get(wire.REFUSED):
            self._clean = refusal == "draining"
            raise NotTaken(f"the worker is {refusal}")
        self._clean = wire.SPENT not in heard.headers
        if heard.status != 200:  # noqa: PLR2004
            failure = wire.to_error(heard.body)
            if wire.LOST in heard.headers:
                failure.message += await self._why_lost()
            raise failure
        return heard

    @property
    def reusable(self) -> bool:
        """Whether it can take another request."""
        return self._clean and not self.dead

    async def _why_lost(self) -> str:
        await self.passes(lambda body: body is None or bool(_restarts(body) or _end_of(body)), _OOM_S)
        return _end_of(self.body) if self.body else " (its pod was removed)"

    async def _last_words(self) -> str:
        words = _end_of(self.body) if self.body else ""
        try:
            said = b""
            async for piece in self._cluster.log(self.pod, self._set.kit.namespace, USER, tail=5):
                said += piece
        except OscarError:
            return words
        lines = said.decode("utf-8", "replace").splitlines()
        return words + "".join(f"\n{line.partition(' ')[2]}" for line in lines[-5:])


def _is_leaving(pod: Body) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _statuses(pod: Body) -> list[Body]:
    return list(pod.get("status", {}).get("containerStatuses") or ())


def _restarts(pod: Body) -> bool:
    """Whether a container has ended since the pod's start: the worker that we knew is no more."""
    return any(each["restartCount"] or "terminated" in each.get("state", {}) for each in _statuses(pod))


def _end_of(pod: Body) -> str:
    """How a container ended, in brackets; empty when none has."""
    for each in sorted(_statuses(pod), key=lambda each: each["name"] != USER):
        for state in (each.get("state", {}), each.get("lastState", {})):
            if ended := state.get("terminated"):
                if ended.get("reason") == "OOMKilled":
                    return " (out of memory)"
                return f" (exit code {ended.get('exitCode')})"
    status: dict[str, Any] = pod.get("status", {})
    return f" ({status['reason']})" if status.get("reason") else ""


def _refused(pod: Body) -> OscarError | None:
    """What keeps a container from ever starting."""
    for each in _statuses(pod):
        waiting = each.get("state", {}).get("waiting") or {}
        reason, words = waiting.get("reason", ""), str(waiting.get("message") or "")
        if reason in _BAD_IMAGE:
            return ImageError(f"the image {each['image']} can't be had: {words or reason}")
        if reason in _BAD_CONTAINER:
            return EngineError(f"the container {each['name']} can't start: {words or reason}")
    return None


def _why_pending(pod: Body) -> str:
    """Why a pod does not come to run, in the cluster's words."""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "")
    for each in _statuses(pod):
        if waiting := each.get("state", {}).get("waiting"):
            return f"{each['name']}: {waiting.get('message') or waiting.get('reason')}"
    return ""
