"""Replicas of a service on other clusters: the `federation` and `clusters` blocks of a service.

Called by `model.service`; the rules of delegation live in the core. Field names are those of
`types.Federation`, `types.Replica` and `types.Cluster` in the API of OSCAR 4.1.2. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from oscar.model.fields import Model, Name, Text, as_text, fold_keys, refuse

WORKER = "oscar.grycap/federation-worker"
"""Annotation that marks the copy of a federated service on a member cluster: "true"."""
ORIGIN_CLUSTER = "oscar.grycap/origin-cluster"
"""Annotation of a copy: the id of the cluster that made it."""
ORIGIN_SERVICE = "oscar.grycap/origin-service"
"""Annotation of a copy: the name of the service there."""
COPY_ID = "oscar.grycap/federation-copy"
"""Annotation of a copy, ours: which of the origin's copies it is. A service without it is never touched."""

REFRESH_TOKEN = "refresh_token"  # noqa: S105 - a name
"""The entry of `environment.secrets` with which an origin gets tokens for its members; no script ever sees it."""


class Topology(StrEnum):
    """Who delegates to whom."""

    NONE = "none"
    STAR = "star"
    MESH = "mesh"


class Delegation(StrEnum):
    """How a member is chosen."""

    STATIC = "static"
    RANDOM = "random"
    LOAD_BASED = "load-based"
    TOPSIS = "topsis"


def _topology(value: Any) -> Topology:
    text = as_text(value).strip().lower() or "none"
    # The route /system/replicas and older files call the star a tree.
    text = "star" if text == "tree" else text
    try:
        return Topology(text)
    except ValueError:
        raise refuse(f'"{text}" is not a topology', fix="Use none, star or mesh.") from None


def _delegation(value: Any) -> Delegation:
    text = as_text(value).strip().lower() or "static"
    try:
        return Delegation(text)
    except ValueError:
        raise refuse(
            f'"{text}" is not a delegation policy', fix="Use static, random, load-based or topsis."
        ) from None


def _replica_type(value: Any) -> str:
    text = as_text(value).strip().lower()
    if text not in {"oscar", "endpoint"}:
        raise refuse(f'"{text}" is not a type of replica', fix="Use oscar or endpoint.")
    return text


class Cluster(Model):
    """Another OSCAR server that holds a replica, with the account used there."""

    endpoint: Name = ""
    auth_user: Text = ""
    auth_password: Text = Field(default="", repr=False)
    ssl_verify: bool = True


class Replica(Model):
    """A place to send jobs to: a service of another cluster, or any URL that takes the event by POST.

    `priority` 0 is tried first. Header values are treated as secrets.
    """

    type: Annotated[Literal["oscar", "endpoint"], BeforeValidator(_replica_type)] = "oscar"
    cluster_id: Name = ""
    service_name: Name = ""
    url: Name = ""
    ssl_verify: bool = True
    priority: int = Field(default=0, ge=0)
    headers: dict[str, Text] = Field(default={}, repr=False)

    @model_validator(mode="after")
    def _named(self) -> Replica:
        if self.type == "endpoint" and not self.url.startswith(("http://", "https://")):
            raise refuse(
                "an endpoint replica needs the address to send to", field="url", fix="Write an http(s) URL."
            )
        if self.type == "oscar" and not self.cluster_id:
            raise refuse(
                "an oscar replica needs the id of its cluster", field="cluster_id", fix="Name the cluster."
            )
        return self

    @property
    def identity(self) -> tuple[str, str, str]:
        """What makes it this replica and no other: an endpoint has only its address."""
        if self.type == "endpoint":
            return ("endpoint", self.url, "")
        return ("oscar", self.cluster_id, self.service_name)


class Federation(Model):
    """The group of clusters that share a service's jobs. `group_id` is the service's name when not given."""

    group_id: Name = ""
    topology: Annotated[Topology, BeforeValidator(_topology)] = Topology.NONE
    delegation: Annotated[Delegation, BeforeValidator(_delegation)] = Delegation.STATIC
    rescheduler_threshold: int = Field(default=0, ge=0)
    """Seconds that a job may wait before it is delegated; 0 for the server's own figure."""
    members: list[Replica] = []

    @field_validator("members")
    @classmethod
    def _once_each(cls, members: list[Replica]) -> list[Replica]:
        return once_each(members)


def once_each(replicas: Iterable[Replica]) -> list[Replica]:
    """The replicas in their order, each once."""
    unique: dict[tuple[str, str, str], Replica] = {}
    for replica in replicas:
        unique.setdefault(replica.identity, replica)
    return list(unique.values())


def from_legacy(data: Any) -> Any:
    """A service with its top-level `delegation` and `rescheduler_threshold` under `federation`.

    That is how files before OSCAR 4 and its documentation write a replica list. A `federation` block wins. The
    `replicas` themselves stay: nothing is made on their clusters. Of a star or a mesh without members they are those.
    """
    if not isinstance(data, Mapping):
        return data
    lower = {str(key).lower(): key for key in data}
    if "replicas" not in lower:
        return data
    rest = dict(data)
    legacy: dict[str, Any] = {}
    for name in ("delegation", "rescheduler_threshold"):
        if name in lower:
            legacy[name] = rest.pop(lower[name])
    found = rest.pop(lower.get("federation", "federation"), None) or {}
    present = fold_keys(Federation, found)
    if not isinstance(present, Mapping):
        return {**rest, "federation": found}
    block = {**legacy, **present}
    if _is_group(block.get("topology")) and not block.get("members") and not _is_copy(rest, lower):
        block["members"] = rest.pop(lower["replicas"])
    if block:
        rest["federation"] = block
    return rest


def _is_group(topology: Any) -> bool:
    return isinstance(topology, str) and topology.strip().lower() in {"star", "tree", "mesh"}


def _is_copy(data: Mapping[str, Any], lower: Mapping[str, str]) -> bool:
    annotations = data.get(lower.get("annotations", "annotations"))
    return isinstance(annotations, Mapping) and str(annotations.get(WORKER, "")).lower() == "true"
