"""Replicas of a service on other clusters: the `federation` and `clusters` blocks of a service.

Called by `model.service`; the rules of delegation live in the core. Field names are those of
`types.Federation`, `types.Replica` and `types.Cluster` in the API of OSCAR 4.1.2. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from oscar.model.fields import Model, Name, Text, as_text, fold_keys, refuse


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
        seen: set[tuple[str, ...]] = set()
        unique = []
        for member in members:
            identity = (member.type, member.cluster_id, member.service_name, member.url)
            if identity not in seen:
                seen.add(identity)
                unique.append(member)
        return unique


def from_legacy(data: Any) -> Any:
    """A service with its top-level `replicas`, `delegation` and `rescheduler_threshold` under `federation`.

    That is how files before OSCAR 4 and its documentation write a replica list. A `federation` block wins.
    """
    if not isinstance(data, Mapping):
        return data
    lower = {str(key).lower(): key for key in data}
    if "replicas" not in lower:
        return data
    rest = dict(data)
    legacy: dict[str, Any] = {"members": rest.pop(lower["replicas"])}
    for name in ("delegation", "rescheduler_threshold"):
        if name in lower:
            legacy[name] = rest.pop(lower[name])
    present = rest.pop(lower.get("federation", "federation"), None) or {}
    rest["federation"] = {**legacy, **fold_keys(Federation, present)}
    return rest
