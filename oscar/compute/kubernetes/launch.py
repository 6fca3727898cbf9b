"""Making the objects of a run: once by its name, whatever becomes of the requests for it.

Called by `backend`. Asks for the own store's keys of the run's user, packs what the staging containers are told, and
goes on asking while the API server's answer is unknown. Bodies that don't fit into a Secret travel by the own store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2

from oscar import telemetry
from oscar.compute.base import Run
from oscar.compute.kubernetes import manifests
from oscar.compute.kubernetes.attachments import mount_of
from oscar.compute.kubernetes.attachments import secret_data as mounted_data
from oscar.compute.kubernetes.cluster import Body, Cluster, ClusterError
from oscar.compute.kubernetes.kinds import JOB, SECRET
from oscar.compute.kubernetes.manifests import Files, Place, Staging
from oscar.compute.kubernetes.names import INSTALLATION, Names, object_name
from oscar.compute.kubernetes.tenancy import Tenancy
from oscar.errors import BadRequest, EngineError, OscarError, StorageError
from oscar.model.storage import MinIOProvider
from oscar.model.user import ADMIN
from oscar.objects.base import ObjectStore
from oscar.objects.s3 import S3Store
from oscar.supervisor.order import CONFIG, PAYLOAD, SCRIPT, WITHDRAWN, Marker, size_of
from oscar.supervisor.orders import config_of, order_of
from oscar.supervisor.plan import Plan, plan, service_environment

log = telemetry.get("kubernetes")

_PAUSE_S = 1.0
_CLAIM_S = 10.0
_FITS = 700_000
"""Bytes in base64 that go into a Secret; etcd takes 1.5 MiB, and the API server 1 MiB of data."""
_URL_S = 7 * 24 * 3600
"""As long as a URL may be valid; a run that waits longer is tried anew."""
_NOT_FOUND, _TOO_MANY = 404, 429


@dataclass(frozen=True, slots=True)
class Wares:
    """Where runs find the own store, and what is kept there for them."""

    store: ObjectStore
    """With all rights, as this server reaches it."""
    bucket: str
    """Of the platform itself."""
    folder: Path
    """For files in passing."""
    keys: Callable[[str], Awaitable[MinIOProvider]]
    """By a user's name: the own store as pods reach it, with his keys."""
    hosts: tuple[str, ...] = ()
    """Which stores of users' services may have private addresses."""


class Launcher:
    """Makes runs.

    Args:
        cluster: the cluster.
        names: of the installation.
        tenancy: its namespaces.
        wares: the own store.
        staging: the staging containers.
        scheduler: of the pods; the cluster's own when empty.
    """

    def __init__(
        self,
        cluster: Cluster,
        names: Names,
        tenancy: Tenancy,
        wares: Wares,
        staging: Staging,
        *,
        scheduler: str = "",
    ) -> None:
        self._cluster = cluster
        self._names = names
        self._tenancy = tenancy
        self._wares = wares
        self._staging = staging
        self._scheduler = scheduler
        self._signer: S3Store | None = None

    async def close(self) -> None:
        """End connections."""
        if self._signer is not None:
            await self._signer.close()

    async def find(self, run: Run) -> Body | None:
        """The run's Job; None when there is certainly none."""
        namespace = self._names.namespace_of(run.service.owner)
        job = await self._get(object_name(run.name), namespace)
        if job is None or job["metadata"].get("deletionTimestamp"):
            return None
        await self.complete(run, job)
        return job

    async def launch(self, run: Run) -> Body:
        """Have the run's Job and Secret made, or find those that are there.

        Raises:
            BadRequest: Kubernetes does not take the definition.
            EngineError: it was certainly not made.
        """
        while True:
            namespace = await self._tenancy.ensure(run.service.owner)
            files, environment = await self._pack(run)
            queue = self._tenancy.queue_of(run.service.owner)
            place = Place(namespace, self._staging, queue, self._scheduler)
            body = manifests.job(self._names, run, place, files, environment)
            try:
                job = await self._cluster.create(JOB, body) or await self._get(
                    body["metadata"]["name"], namespace
                )
            except ClusterError as error:
                await self._bear(error, run.name, namespace)
                continue
            if job is None:
                continue  # it was there and is gone: whose it was nobody knows
            if job["metadata"]["labels"].get(INSTALLATION) != self._names.installation:
                raise EngineError(f"a Job {run.name} of somebody else is in the namespace {namespace}")
            await self._complete(run, job, files, environment)
            return job

    async def complete(self, run: Run, job: Body) -> None:
        """Make the Secret of a run whose Job is there, if it is missing."""
        namespace, name = job["metadata"]["namespace"], object_name(run.name)
        if job.get("status", {}).get("conditions"):
            return
        while True:
            try:
                if await self._cluster.get(SECRET, name, namespace) is None:
                    files, environment = await self._pack(run)
                    await self._complete(run, job, files, environment)
            except ClusterError as error:
                await self._bear(error, run.name, namespace)
            else:
                return

    async def clean(self, name: str) -> None:
        """Remove what the run has left in the own store, but its log. Silent if absent."""
        for key in (_marker(name), *(_body(name, what) for what in (PAYLOAD, SCRIPT, CONFIG))):
            await self._wares.store.delete(self._wares.bucket, key)

    async def claim(self, name: str) -> bool:
        """Set the run's marker in the place of its pod, which can't begin then; False when the pod has set it.

        Raises:
            StorageError: nobody knows which.
        """
        marker = await self._mark(name)
        own = await self._wares.keys(ADMIN)
        try:
            async with httpx2.AsyncClient(verify=own.verify, timeout=_CLAIM_S, trust_env=False) as web:
                headers = {"If-None-Match": "*"}
                answer = await web.put(marker.put, content=WITHDRAWN.encode(), headers=headers)
                if answer.status_code == httpx2.codes.PRECONDITION_FAILED:
                    # Our own, when an earlier answer was lost.
                    return (await web.get(marker.get)).text == WITHDRAWN
        except httpx2.HTTPError as error:
            raise StorageError(f"the own store does not answer: {type(error).__name__}") from error
        if not answer.is_success:
            raise StorageError(f"the own store answered {answer.status_code}")
        return True

    async def _complete(self, run: Run, job: Body, files: Files, environment: dict[str, str]) -> None:
        namespace = job["metadata"]["namespace"]
        secret = manifests.secret(self._names, run, namespace, files, environment, job)
        while True:
            try:
                await self._cluster.create(SECRET, secret)
            except ClusterError as error:
                await self._bear(error, run.name, namespace)
            except OscarError:
                # The Job alone would wait for ever.
                await self._cluster.delete(JOB, job["metadata"]["name"], namespace)
                raise
            else:
                return

    async def _get(self, name: str, namespace: str) -> Body | None:
        while True:
            try:
                return await self._cluster.get(JOB, name, namespace)
            except ClusterError as error:
                await self._bear(error, name, namespace)

    async def _bear(self, error: ClusterError, name: str, namespace: str) -> None:
        """Wait out what may pass: only the API server's own word says that a run was not made.

        Raises:
            ClusterError: it will not pass.
        """
        if error.http == _NOT_FOUND or "being terminated" in error.message:
            # The namespace was deleted behind our back.
            self._tenancy.lost(namespace)
        elif not (error.is_unknown or error.http == _TOO_MANY):
            raise error
        log.warning("the cluster has to be asked again", run=name, reason=error.message)
        await asyncio.sleep(_PAUSE_S)

    # What staging is told.

    async def _pack(self, run: Run) -> tuple[Files, dict[str, str]]:
        payload = run.payload
        if isinstance(payload, Path):
            payload = await asyncio.to_thread(payload.read_bytes)
        service, fault = run.service, ""
        try:
            planned = plan(service, payload, job_id=run.job_id, environment=run.environment, resource_id="")
        except BadRequest as error:
            # Staging says it, so that its words come with the run's end.
            planned, fault = None, error.message
        bodies = {
            PAYLOAD: payload,
            SCRIPT: service.script.encode("utf-8", "surrogateescape"),
            CONFIG: config_of(service),
        }
        kept, urls = await self._place(run.name, bodies)
        order = order_of(run.job_id, service, planned, await self._wares.keys(_user(run, planned)))._replace(
            hops=run.hops,
            trace=run.trace,
            fault=fault,
            hosts=self._wares.hosts,
            marker=await self._mark(run.name),
            urls=urls,
        )
        mounted = mounted_data(await mount_of(service, self._wares.keys))
        environment = (
            dict(planned.environment) if planned else {**service_environment(service), **run.environment}
        )
        return Files(order.as_file(), kept, mounted), environment

    async def _place(self, name: str, bodies: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, str]]:
        """Which bodies lie in the Secret, and the URLs of the others: the largest goes first."""
        kept = {key: body for key, body in bodies.items() if body}
        urls: dict[str, str] = {}
        while size_of(list(kept.values())) > _FITS:
            largest = max(kept, key=lambda key: len(kept[key]))
            key = _body(name, largest)
            await self._put(key, kept.pop(largest))
            urls[largest] = await self._sign("GET", key)
        return kept, urls

    async def _put(self, key: str, content: bytes) -> None:
        path = self._wares.folder / object_name(key)
        try:
            await asyncio.to_thread(path.write_bytes, content)
            await self._wares.store.upload(self._wares.bucket, key, path)
        finally:
            path.unlink(missing_ok=True)

    async def _mark(self, name: str) -> Marker:
        key = _marker(name)
        return Marker(put=await self._sign("PUT", key), get=await self._sign("GET", key))

    async def _sign(self, method: str, key: str) -> str:
        if self._signer is None:
            own = await self._wares.keys(ADMIN)
            self._signer = S3Store(
                own.endpoint, own.access_key, own.secret_key, own.region, verify=own.verify
            )
        headers = {"If-None-Match": "*"} if method == "PUT" else None
        return await self._signer.presign(
            self._wares.bucket, key, method=method, expires=_URL_S, headers=headers
        )


def _user(run: Run, planned: Plan | None) -> str:
    """The user whose keys staging gets."""
    touched = {record.bucket for record in planned.event.records} if planned else set()
    # With USER isolation the bucket is that of the user, and the owner has no right to it.
    return run.user if run.user and touched & set(run.service.bucket_list) else run.service.owner


def _marker(name: str) -> str:
    return f"runs/{name}"


def _body(name: str, what: str) -> str:
    return f"bodies/{name}/{what}"
