"""From settings to an engine with its abilities.

Called by `lifespan` once the Store is open; knows each engine by name and imports only the one that is used. The parts
of an engine that begin and end are begun and ended here, by the stack of the caller.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from oscar import telemetry
from oscar.compute.base import (
    Compute,
    Exposes,
    HasNodes,
    HasQuotas,
    HasVolumes,
    Invokes,
    Measures,
    Paces,
    Reconciles,
    Withdraws,
)
from oscar.errors import EngineMissing, Unavailable
from oscar.model.quota import Limits
from oscar.model.storage import MinIOProvider
from oscar.objects.base import ObjectStore
from oscar.objects.reach import reach_of
from oscar.settings import Settings

if TYPE_CHECKING:
    from oscar.compute.kubernetes.cluster import Cluster
    from oscar.compute.kubernetes.routes import Way

log = telemetry.get("app")


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine; abilities that it lacks are None."""

    compute: Compute
    invokes: Invokes | None = None
    holds: HasVolumes | None = None
    exposes: Exposes | None = None
    paces: Paces | None = None
    withdraws: Withdraws | None = None
    nodes: HasNodes | None = None
    quotas: HasQuotas | None = None
    reconciles: Reconciles | None = None
    measures: tuple[Measures, ...] = ()
    bound: bool = False
    """Its runs are on this machine, where no other server finds them."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What an engine stands on."""

    settings: Settings
    installation: str
    objects: ObjectStore
    """The platform's own store, with all rights."""
    own_store: Callable[[str], Awaitable[MinIOProvider]]
    """By a user's name: the own store for programs beside this server, with his keys."""
    limits: Callable[[str], Awaitable[Limits]]
    """By a user's name: what holds for him."""
    inside: str
    """The own store's address for what this server starts."""


async def start(ground: Ground, stack: contextlib.AsyncExitStack) -> Engine:
    """The engine that the settings ask for, started; the stack stops it.

    Args:
        ground: what it stands on.
        stack: of the caller.

    Raises:
        EngineMissing: there is none; naming what is missing.
        Unavailable: something that it needs does not answer now.
    """
    if ground.settings.engine != "kubernetes":
        return await _local(ground, stack)
    from oscar.compute.kubernetes.cluster import ClusterError

    try:
        return await _kubernetes(ground, stack)
    except ClusterError as error:
        trouble = Unavailable if error.is_unknown else EngineMissing
        raise trouble(
            f"The Kubernetes cluster can't be used: {error.message}", field="KUBECONFIG", fix=error.fix
        ) from error


async def begin(compute: Compute, stack: contextlib.AsyncExitStack) -> None:
    """Start an engine; the stack stops it."""
    stack.push_async_callback(compute.stop)
    await compute.start()
    log.info("engine", engine=compute.describe())


async def _local(ground: Ground, stack: contextlib.AsyncExitStack) -> Engine:
    """This machine as an engine."""
    from oscar.compute.crew import Limits
    from oscar.compute.local.backend import LocalCompute
    from oscar.compute.local.detect import Place, choose, recheck
    from oscar.compute.local.exposed import LocalExposes

    settings = ground.settings
    place = Place(settings.data, ground.installation, unsafe=settings.unsafe_process)
    engine = await choose(settings.engine, place)
    if settings.oidc_enable and engine.name == "process":
        await engine.close()
        raise EngineMissing(
            "Processes are for one administrator: with OIDC on, functions run in containers",
            field="OIDC_ENABLE",
            fix="install podman or docker (`oscar doctor` says what is missing), or turn OIDC off",
        )
    local = LocalCompute(
        engine,
        settings.data,
        ground.objects,
        chosen=settings.engine == "process",
        recheck=lambda: recheck(engine, place),
        images=settings.volume_images,
        own_store=lambda service: ground.own_store(service.owner),
        reach=reach_of(_private_hosts(settings)),
        limits=Limits(
            queue=settings.worker_queue,
            wait=settings.worker_wait,
            idle=settings.worker_idle,
            drain=settings.drain,
            workers=settings.worker_limit,
        ),
    )
    await begin(local, stack)
    exposes = LocalExposes(
        local.engine, settings.data, drain=settings.exposed_drain, attachments=local.attachments
    )
    stack.push_async_callback(exposes.stop)
    await exposes.start()
    return Engine(
        compute=local, invokes=local, holds=local, exposes=exposes, measures=(local, exposes), bound=True
    )


def _private_hosts(settings: Settings) -> tuple[str, ...]:
    """Hosts that stores of users' services may have although their addresses are private."""
    own = urlsplit(settings.minio_endpoint).hostname
    return (*settings.storage_hosts, *((own,) if own else ()))


async def _kubernetes(ground: Ground, stack: contextlib.AsyncExitStack) -> Engine:
    """A cluster as an engine."""
    from oscar.compute.crew import Limits
    from oscar.compute.kubernetes.backend import KubernetesCompute, Options, installation_bucket
    from oscar.compute.kubernetes.cluster import Cluster, config
    from oscar.compute.kubernetes.exposed import PodExposes
    from oscar.compute.kubernetes.kinds import KNATIVE_SERVICE
    from oscar.compute.kubernetes.knative import KnativeInvokes
    from oscar.compute.kubernetes.kserve import Models
    from oscar.compute.kubernetes.launch import Launcher, Wares
    from oscar.compute.kubernetes.logs import Logs
    from oscar.compute.kubernetes.manifests import Staging
    from oscar.compute.kubernetes.names import Names, digest
    from oscar.compute.kubernetes.routes import Routes
    from oscar.compute.kubernetes.sync import PodInvokes
    from oscar.compute.kubernetes.tenancy import Tenancy
    from oscar.compute.kubernetes.volumes import ClaimVolumes
    from oscar.compute.kubernetes.worker_manifests import Sidecar

    settings = ground.settings
    if not settings.image:
        raise EngineMissing(
            "The image of the containers beside a user's is not known",
            field="OSCAR_IMAGE",
            fix="name this server's own image, as the nodes of the cluster can pull it",
        )

    async def own_store(user: str) -> MinIOProvider:
        return (await ground.own_store(user)).model_copy(update={"endpoint": ground.inside})

    names = Names(ground.installation, settings.services_namespace)
    staging = Staging(settings.image)
    bucket = installation_bucket(ground.installation)
    folder = settings.data / "kubernetes"
    hosts = _private_hosts(settings)
    cluster = Cluster(config(settings.kubeconfig))
    stack.push_async_callback(cluster.close)
    tenancy = Tenancy(cluster, names, ground.limits, settings.namespace)
    launcher = Launcher(
        cluster,
        names,
        tenancy,
        Wares(ground.objects, bucket, folder, own_store, hosts),
        staging,
        scheduler="yunikorn" if settings.yunikorn else "",
    )
    sidecar = Sidecar(
        settings.image, grace=settings.read_timeout + 30, verify=settings.minio_tls_verify, hosts=hosts
    )
    limits = Limits(
        queue=settings.worker_queue,
        wait=settings.worker_wait,
        idle=settings.worker_idle,
        drain=settings.drain,
        start=settings.worker_wait,
        workers=settings.max_workers,
    )
    workers = PodInvokes(
        cluster,
        names,
        sidecar,
        tenancy.ensure,
        own_store,
        limits,
        # With a database of its own there is one server, which takes over the workers of the one before. Two on one
        # host would remove each other's.
        slot=""
        if settings.database.startswith("sqlite")
        else digest(f"{socket.gethostname()} {settings.data.resolve()}")[:6],
    )
    invokes: PodInvokes | KnativeInvokes = workers
    if settings.serverless == "knative":
        if not await cluster.serves(KNATIVE_SERVICE):
            raise EngineMissing(
                "The cluster has no Knative Serving",
                field="SERVERLESS_BACKEND",
                fix="install it, or leave it empty",
            )
        invokes = KnativeInvokes(
            cluster, names, sidecar, tenancy.ensure, workers, limits, timeout=settings.read_timeout
        )
    exposes = PodExposes(
        cluster,
        names,
        tenancy.ensure,
        Routes(cluster, names, await _way(settings, cluster)),
        own_store,
        image=settings.image,
        drain=settings.exposed_drain,
        verify=settings.minio_tls_verify,
    )
    models = Models(cluster, names)
    volumes = ClaimVolumes(
        cluster,
        names,
        tenancy.ensure,
        storage_class=settings.volume_class,
        mode=settings.volume_mode,
    )
    compute = KubernetesCompute(
        cluster,
        names,
        tenancy,
        launcher,
        Logs(ground.objects, bucket, folder),
        Options(staging, kueue=settings.kueue, waiting=settings.waiting_runs),
        invokes,
        models,
    )
    await begin(compute, stack)
    await models.start()
    stack.push_async_callback(exposes.stop)
    await exposes.start()
    stack.push_async_callback(workers.stop)
    await workers.start()
    return Engine(
        compute=compute,
        invokes=invokes,
        exposes=exposes,
        holds=volumes,
        paces=compute,
        withdraws=compute,
        nodes=compute,
        quotas=compute,
        reconciles=compute,
    )


async def _way(settings: Settings, cluster: Cluster) -> Way:
    """The direct way to exposed services that the settings ask for."""
    from oscar.compute.kubernetes.kinds import HTTP_ROUTE, MIDDLEWARE
    from oscar.compute.kubernetes.routes import Way

    kind = settings.route_kind
    if kind == "httproute" and not settings.gateway:
        raise EngineMissing(
            "HTTPRoutes need a Gateway", field="HTTPROUTE_GATEWAY_NAME", fix="name the Gateway of the cluster"
        )
    if kind == "httproute" and not await cluster.serves(HTTP_ROUTE):
        raise EngineMissing(
            "The cluster has no HTTPRoutes",
            field="EXPOSED_SERVICES_ROUTE_KIND",
            fix="install the Gateway API",
        )
    return Way(
        kind=kind,
        host=settings.ingress_host,
        ingress_class=settings.ingress_class,
        gateway=settings.gateway,
        gateway_namespace=settings.gateway_namespace,
        traefik=kind == "httproute" and await cluster.serves(MIDDLEWARE),
        api_url=settings.internal_url,
        cors_origins=", ".join(settings.cors_origins),
        cors_methods=settings.cors_methods,
        cors_headers=settings.cors_headers,
    )
