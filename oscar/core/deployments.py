"""The long-running parts of services: brought to what the Store says, and how they do.

Called by `core.services` and at start; calls the engine's ability to expose. What users ask for is in `core.exposed`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from oscar import telemetry
from oscar.compute.base import Deployment, DeploymentState, Exposure, FollowsExposed
from oscar.core.platform import Known, Platform
from oscar.errors import InvalidField, OscarError
from oscar.model.service import Service
from oscar.state.exposures import ExposureRow
from oscar.state.services import ServiceRow

log = telemetry.get("deployments")

NODE_PORTS = range(30000, 32768)
"""Ports that `expose.nodePort` may name, as on Kubernetes."""


def check(service: Service, others: Iterable[Service]) -> None:
    """Refuse ports of the node that can't be had.

    Raises:
        InvalidField: naming the port.
    """
    wanted = service.expose.nodePort if service.expose.active else []
    if len(wanted) > len(service.expose.api_port):
        raise InvalidField(
            "there are more ports of the node than ports of the service",
            field="expose.nodePort",
            fix="Give api_port as many ports: the first leads to the first, and so on.",
        )
    taken = {port: other.name for other in others for port in other.expose.nodePort if other.expose.active}
    for port in wanted:
        if port not in NODE_PORTS:
            raise InvalidField(
                f"{port} is not a port that services may have",
                field="expose.nodePort",
                fix=f"Use one from {NODE_PORTS.start} to {NODE_PORTS.stop - 1}.",
            )
        if port in taken or wanted.count(port) > 1:
            raise InvalidField(
                f"the port {port} is taken by another service",
                field="expose.nodePort",
                fix="Use another one.",
            )


async def apply(p: Platform, known: Known, row: ExposureRow | None = None) -> None:
    """Have the service's replicas as its definition says, if it is exposed; none if not."""
    if p.exposes is None:
        return
    if not known.service.expose.active:
        await remove(p, known.row.owner, known.row.name)
        return
    done = await p.exposures.get(known.row.id) if row is None else row
    await p.exposes.expose(Exposure(known.service, stopped=done.stopped, restarts=done.restarts))
    p.signals.exposed.set()


async def remove(p: Platform, owner: str, name: str) -> None:
    """Remove all replicas. Silent if there are none."""
    if p.exposes is not None:
        await p.exposes.unexpose(owner, name)
        p.signals.exposed.set()


async def follow(p: Platform, known: Known, row: ExposureRow) -> None:
    """Take over what another server has made of the service; on an engine of this machine alone, make it here too."""
    follower = _follower(p.exposes)
    if follower is None:
        await apply(p, known, row)
    elif known.service.expose.active:
        await follower.follow_exposed(Exposure(known.service, stopped=row.stopped, restarts=row.restarts))
    else:
        await leave(p, known.row.owner, known.row.name)


async def leave(p: Platform, owner: str, name: str) -> None:
    """Another server has removed all replicas; on an engine of this machine alone, they are removed here too."""
    follower = _follower(p.exposes)
    if follower is None:
        await remove(p, owner, name)
    else:
        await follower.leave_exposed(owner, name)


def _follower(ability: object) -> FollowsExposed | None:
    return ability if isinstance(ability, FollowsExposed) else None


async def apply_all(p: Platform, services: Iterable[Known]) -> None:
    """Have all replicas as the Store says, and none besides; at start."""
    if p.exposes is None:
        return
    rows = await p.exposures.all()
    exposed = [known for known in services if known.service.expose.active]
    for known in exposed:
        try:
            await apply(p, known, rows.get(known.row.id, ExposureRow()))
        except OscarError as error:
            log.warning("service not exposed", service=known.row.name, error=error.message)
    await p.exposes.keep({(known.row.owner, known.row.name) for known in exposed})


async def deployment(p: Platform, row: ServiceRow, *, exposed: bool) -> Deployment:
    """How the service's long-running part does."""
    if not exposed:
        reason = "The service is not exposed: it has no long-running part"
        return Deployment(DeploymentState.UNAVAILABLE, reason, row.updated)
    if p.exposes is None:
        return Deployment(DeploymentState.UNAVAILABLE, "This engine can't expose services", row.updated)
    return await p.exposes.deployment(row.owner, row.name)


def summary(found: Deployment) -> dict[str, Any]:
    """`types.ServiceDeploymentSummary`."""
    return {
        "state": found.state.value,
        "reason": found.reason,
        "resource_kind": found.kind,
        "last_transition_time": _rfc3339(found.changed) if found.changed else "",
        "active_instances": found.active,
        "affected_instances": found.affected,
    }


def _rfc3339(milliseconds: int) -> str:
    return (
        datetime.fromtimestamp(milliseconds / 1000, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


@dataclass(frozen=True, slots=True)
class NodePort:
    """A port of this machine that leads to a service's port, past the platform's log-in."""

    owner: str
    service: str
    api_port: int


async def node_ports(p: Platform) -> dict[int, NodePort]:
    """Those that services have now."""
    found: dict[int, NodePort] = {}
    for row in await p.services.rows():
        if '"nodePort":[' not in row.definition:
            continue
        expose = Service.model_validate(json.loads(row.definition)).expose
        for port, inside in zip(expose.nodePort, expose.api_port, strict=False):
            found.setdefault(port, NodePort(row.owner, row.name, inside))
    return found
