"""What a cluster can do as an engine, and what is missing for what the settings ask of it: for `oscar doctor`.

Called by `core.doctor`, without a server. Only looks: versions, nodes, rights, what is installed. Changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from oscar.compute.kubernetes import nodes
from oscar.compute.kubernetes.backend import OLDEST, is_old
from oscar.compute.kubernetes.cluster import Cluster, ClusterError, config
from oscar.compute.kubernetes.kinds import (
    ACCESS_REVIEW,
    CLUSTER_QUEUE,
    GATEWAY,
    HTTP_ROUTE,
    INGRESS_CLASS,
    KNATIVE_SERVICE,
    NODE,
    NODE_METRICS,
    STORAGE_CLASS,
)
from oscar.errors import EngineMissing
from oscar.model.finding import Finding
from oscar.model.node import schedulable
from oscar.model.resources import format_cpu

OK, WARNING, MISSING = "ok", "warning", "missing"
PATIENCE_S = 5.0
_GIB = 1024**3
_FORBIDDEN = 403
_ALL = ("get", "list", "watch", "create", "patch", "delete")
RIGHTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("", ("namespaces",), _ALL),
    ("", ("nodes",), ("get", "list", "watch")),
    ("", ("pods",), ("get", "list", "watch", "delete", "patch")),
    ("", ("pods/log",), ("get",)),
    (
        "",
        (
            "secrets",
            "services",
            "persistentvolumeclaims",
            "resourcequotas",
            "limitranges",
            "serviceaccounts",
        ),
        ("get", "list", "create", "patch", "delete"),
    ),
    ("batch", ("jobs",), _ALL),
    ("apps", ("deployments", "daemonsets"), _ALL),
    ("apps", ("deployments/scale",), ("patch",)),
    ("networking.k8s.io", ("networkpolicies",), ("create", "patch")),
    ("autoscaling", ("horizontalpodautoscalers",), ("create", "patch", "delete")),
)
"""What the engine must be allowed to do in all namespaces, whatever the settings: group, resources, verbs."""
KUEUE = ("kueue.x-k8s.io", ("clusterqueues", "localqueues", "resourceflavors"), ("get", "create", "patch"))
KNATIVE = ("serving.knative.dev", ("services",), _ALL)
ROUTES = {
    "ingress": ("networking.k8s.io", ("ingresses",), ("create", "patch", "delete")),
    "httproute": ("gateway.networking.k8s.io", ("httproutes",), ("create", "patch", "delete")),
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the settings ask of the cluster."""

    kubeconfig: Path | None
    image: str
    store: str
    """Host of the own store as pods reach it."""
    kueue: bool = False
    knative: bool = False
    route_kind: str = ""
    ingress_class: str = ""
    gateway: str = ""
    gateway_namespace: str = ""
    volume_class: str = ""


async def survey(wish: Wish) -> list[Finding]:
    """Look at everything; without a cluster that answers there is nothing else to see."""
    try:
        cluster = Cluster(config(wish.kubeconfig), patience=PATIENCE_S)
    except EngineMissing as error:
        return [Finding("engine kubernetes", MISSING, error.message, error.fix or "")]
    try:
        return [seen async for seen in _all(cluster, wish)]
    except ClusterError as error:
        return [Finding("engine kubernetes", MISSING, error.message, error.fix or "")]
    finally:
        await cluster.close()


async def _all(cluster: Cluster, wish: Wish) -> AsyncIterator[Finding]:
    version = await cluster.version()
    if is_old(version):
        fix = f"use v{OLDEST[0]}.{OLDEST[1]} or newer"
        yield Finding("engine kubernetes", MISSING, f"Kubernetes {version} is too old", fix)
        return
    yield Finding("engine kubernetes", OK, f"Kubernetes {version} runs the functions")
    denied = await _denied(cluster, wish)
    if denied:
        fix = "Give its account the rights that docs/helm.md lists."
        yield Finding("rights", MISSING, f"may not {', '.join(denied)}", fix)
    else:
        yield Finding("rights", OK, "all that the engine needs")
    yield _image(wish)
    yield _store(wish)
    for look in (_nodes, _metrics, _kueue, _knative, _routes, _volumes):
        try:
            seen = await look(cluster, wish)
        except ClusterError as error:
            if error.http != _FORBIDDEN:
                raise
            seen = Finding(look.__name__.strip("_"), WARNING, "not looked at: its account may not")
        if seen is not None:
            yield seen


async def _denied(cluster: Cluster, wish: Wish) -> list[str]:
    wanted = [*RIGHTS]
    if wish.kueue and await cluster.serves(CLUSTER_QUEUE):
        wanted.append(KUEUE)
    if wish.knative:
        wanted.append(KNATIVE)
    if wish.route_kind:
        wanted.append(ROUTES[wish.route_kind])
    asked = [
        (group, resource, verb)
        for group, resources, verbs in wanted
        for resource in resources
        for verb in verbs
    ]
    allowed = await asyncio.gather(*(_may(cluster, *each) for each in asked))
    return [
        f"{verb} {resource}{'.' * bool(group)}{group}"
        for (group, resource, verb), may in zip(asked, allowed, strict=True)
        if not may
    ]


async def _may(cluster: Cluster, group: str, resource: str, verb: str) -> bool:
    name, _, part = resource.partition("/")
    asked = {"group": group, "resource": name, "subresource": part, "verb": verb}
    body = {**ACCESS_REVIEW.head, "spec": {"resourceAttributes": asked}}
    answer = await cluster.request("POST", ACCESS_REVIEW.path(), body=body)
    return bool(answer["status"]["allowed"])


def _image(wish: Wish) -> Finding:
    if wish.image:
        return Finding(
            "image", OK, f"{wish.image} is beside users' containers (nodes must be able to pull it)"
        )
    fix = "Set OSCAR_IMAGE to this server's own image, as the nodes of the cluster can pull it."
    return Finding("image", MISSING, "the image beside users' containers is not known", fix)


def _store(wish: Wish) -> Finding:
    if not is_loopback(wish.store):
        return Finding("own store", OK, f"pods reach it at {wish.store}")
    fix = "Set OSCAR_S3_INTERNAL_ENDPOINT to an address of the S3 server that pods reach."
    return Finding(
        "own store", MISSING, f"pods don't reach it at {wish.store}: there they are themselves", fix
    )


def is_loopback(host: str) -> bool:
    """Whether a pod finds itself there, or nothing."""
    try:
        address = ip_address(host)
    except ValueError:
        return host.rpartition(".")[2] == "localhost"
    return address.is_loopback or address.is_unspecified


async def _nodes(cluster: Cluster, _: Wish) -> Finding:
    found = [nodes.node(item, {}, {}) for item in await cluster.items(NODE)]
    taking = schedulable(found)
    cores = sum(each.cpu.capacity for each in taking)
    memory = sum(each.memory.capacity for each in taking)
    gpus = sum(each.gpu for each in taking)
    words = (
        f"{len(taking)} of {len(found)} take work: {format_cpu(cores)} cores, {memory / _GIB:.1f} GiB of memory, "
        f"{gpus or 'no'} GPUs"
    )
    level = OK if len(taking) == len(found) else WARNING
    return Finding("nodes", level if taking else MISSING, words, "" if taking else "Jobs wait for a node.")


async def _metrics(cluster: Cluster, _: Wish) -> Finding:
    if await cluster.serves(NODE_METRICS):
        return Finding("metrics-server", OK, "use is measured")
    fix = "Without it the status shows what pods ask for, and exposed services don't scale by their load."
    return Finding("metrics-server", WARNING, "is not installed", fix)


async def _kueue(cluster: Cluster, wish: Wish) -> Finding:
    if not wish.kueue:
        return Finding("kueue", OK, "not asked for: ResourceQuotas keep to quotas")
    if await cluster.serves(CLUSTER_QUEUE):
        return Finding("kueue", OK, "queues the jobs of users")
    return Finding("kueue", OK, "is not installed: ResourceQuotas keep to quotas")


async def _knative(cluster: Cluster, wish: Wish) -> Finding | None:
    if not wish.knative:
        return None
    if await cluster.serves(KNATIVE_SERVICE):
        return Finding("knative", OK, "scales synchronous calls")
    return Finding(
        "knative", MISSING, "Knative Serving is not installed", "Install it, or unset SERVERLESS_BACKEND."
    )


async def _routes(cluster: Cluster, wish: Wish) -> Finding | None:
    if wish.route_kind == "ingress":
        if await cluster.get(INGRESS_CLASS, wish.ingress_class) is not None:
            return Finding("routes", OK, f"Ingresses of the class {wish.ingress_class}")
        words, fix = f"no class of Ingresses is called {wish.ingress_class!r}", "Set OSCAR_INGRESS_CLASS."
        return Finding("routes", MISSING, words, fix)
    if wish.route_kind == "httproute":
        return await _gateway(cluster, wish)
    return None


async def _gateway(cluster: Cluster, wish: Wish) -> Finding:
    if not await cluster.serves(HTTP_ROUTE):
        return Finding("routes", MISSING, "the cluster has no HTTPRoutes", "Install the Gateway API.")
    place = wish.gateway_namespace or "default"
    found = await cluster.get(GATEWAY, wish.gateway, place) if wish.gateway else None
    if found is None:
        words, fix = f"there is no Gateway {wish.gateway!r} in {place}", "Set HTTPROUTE_GATEWAY_NAME."
        return Finding("routes", MISSING, words, fix)
    conditions = (found.get("status") or {}).get("conditions") or ()
    if any(each["type"] == "Programmed" and each["status"] == "True" for each in conditions):
        return Finding("routes", OK, f"HTTPRoutes of the Gateway {place}/{wish.gateway}")
    return Finding(
        "routes", WARNING, f"the Gateway {place}/{wish.gateway} is not programmed: nothing serves it"
    )


_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


async def _volumes(cluster: Cluster, wish: Wish) -> Finding:
    found: dict[str, bool] = {
        item["metadata"]["name"]: (item["metadata"].get("annotations") or {}).get(_DEFAULT_CLASS) == "true"
        for item in await cluster.items(STORAGE_CLASS)
    }
    chosen = wish.volume_class or next((name for name, default in found.items() if default), "")
    if chosen in found:
        return Finding("volumes", OK, f"claims of the class {chosen}")
    words = f"there is no storage class {chosen!r}" if chosen else "no storage class is the default"
    return Finding("volumes", WARNING, words, "Services with volumes wait; set OSCAR_VOLUME_STORAGE_CLASS.")
