"""The copy of a federated service that a member gets: its definition, from the origin's.

Called by `core.copies`. Pure. What a copy is: docs/federation.md. The rules are those of OSCAR 4.1.2's replicas: no
members of its own, clusters without accounts, in a mesh the origin and all other members as replicas; results go to the
origin's store, inputs are the copy's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oscar.model.federation import (
    COPY_ID,
    ORIGIN_CLUSTER,
    ORIGIN_SERVICE,
    REFRESH_TOKEN,
    WORKER,
    Replica,
    Topology,
)
from oscar.model.provider import DEFAULT_PROVIDER, OWN_STORE, ProviderType, parse_provider
from oscar.model.service import Service, definition
from oscar.model.storage import MinIOProvider

COPY_VERSION = "oscar.grycap/federation-version"
"""Annotation of a copy, ours: how new it is, so that a change that comes late undoes no later one."""

PRESIGN = "presign"
"""Last part of the path under which an origin gives addresses for results: the endpoint of a copy's provider."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The cluster that makes copies, as its members know it."""

    cluster_id: str
    endpoint: str
    """Of its API."""
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells a copy from all other services of its name."""

    id: str
    version: int
    key: str = field(repr=False)


def name_of(service: Service, member: Replica) -> str:
    """What the copy is called on the member."""
    return member.service_name or service.name


def copy_of(
    service: Service,
    member: Replica,
    *,
    origin: Origin,
    mark: Mark,
    store: MinIOProvider,
    refresh_token: bool,
) -> dict[str, Any]:
    """The definition of a copy as the member's API takes it, secrets included.

    Args:
        service: the origin's, with its secrets.
        member: where the copy goes.
        origin: the cluster that makes it.
        mark: of this copy.
        store: the origin's store, as the member may use it for results.
        refresh_token: pass on the owner's refresh token, where the member can't ask the origin for tokens.
    """
    home = f"{ProviderType.MINIO}.{origin.cluster_id}"
    secrets = dict(service.environment.secrets)
    if not refresh_token:
        secrets.pop(REFRESH_TOKEN, None)
    body = definition(service)
    for name in ("bucket_list", "namespace", "deployment", "volume_status"):
        body.pop(name, None)
    body |= {
        "name": name_of(service, member),
        "cluster_id": member.cluster_id,
        "environment": {"variables": dict(service.environment.variables), "secrets": secrets},
        "annotations": {
            **service.annotations,
            WORKER: "true",
            ORIGIN_CLUSTER: origin.cluster_id,
            ORIGIN_SERVICE: service.name,
            COPY_ID: mark.id,
            COPY_VERSION: str(mark.version),
        },
        "input": [_place(service, raw, own=str(OWN_STORE)) for raw in body["input"]],
        "output": [_place(service, raw, own=home) for raw in body["output"]],
        "storage_providers": _providers(service, member, body, origin, store),
        "clusters": _clusters(service, member, origin),
        "replicas": [_plain(replica) for replica in _replicas(service, member, origin)],
    }
    if service.mount is not None and service.is_own_store(service.mount):
        body["mount"]["storage_provider"] = str(OWN_STORE)
    if service.federation is not None:
        body["federation"] = {**body.get("federation", {}), "members": []}
    return body


def _place(service: Service, raw: dict[str, Any], *, own: str) -> dict[str, Any]:
    """A place of the definition, with what the origin calls its own store under the name that it has for the copy."""
    ref = parse_provider(raw["storage_provider"])
    mine = ref == OWN_STORE or bool(service.cluster_id and ref == (ProviderType.MINIO, service.cluster_id))
    return {**raw, "storage_provider": own} if mine else raw


def _providers(
    service: Service, member: Replica, body: Mapping[str, Any], origin: Origin, store: MinIOProvider
) -> dict[str, Any]:
    providers = {kind: dict(defined) for kind, defined in body.get("storage_providers", {}).items()}
    minio = providers.setdefault("minio", {})
    # The member's own store, and what the origin calls its own, have other names there.
    for name in (DEFAULT_PROVIDER, member.cluster_id, service.cluster_id):
        minio.pop(name, None)
    minio[origin.cluster_id] = store.model_dump(mode="json")
    return providers


def _clusters(service: Service, member: Replica, origin: Origin) -> dict[str, Any]:
    others = {
        name: {"endpoint": cluster.endpoint, "ssl_verify": cluster.ssl_verify}
        for name, cluster in service.clusters.items()
        if service.topology is Topology.MESH and name not in {member.cluster_id, origin.cluster_id}
    }
    return {**others, origin.cluster_id: {"endpoint": origin.endpoint, "ssl_verify": origin.verify}}


def _replicas(service: Service, member: Replica, origin: Origin) -> list[Replica]:
    """In a mesh everybody delegates to everybody."""
    if service.federation is None or service.topology is not Topology.MESH:
        return []
    home = Replica(type="oscar", cluster_id=origin.cluster_id, service_name=service.name, priority=0)
    others = [
        other
        if other.type == "endpoint"
        else other.model_copy(update={"service_name": name_of(service, other)})
        for other in service.federation.members
        if other.identity != member.identity
    ]
    return [home, *others]


def _plain(replica: Replica) -> dict[str, Any]:
    return replica.model_dump(mode="json")
