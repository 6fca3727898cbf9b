"""Federations of services: who the members are. Changing them comes with delegation.

Called by `api.federation`. Both routes, `/system/federation` and the older `/system/replicas`, show what is stored in
the service's definition; they differ in the names of their fields.
"""

from __future__ import annotations

from typing import Any

from oscar.auth.rules import Action, require_user
from oscar.core import services
from oscar.core.platform import Platform
from oscar.errors import NotEnabled
from oscar.model.federation import Replica, Topology
from oscar.model.user import Caller

_TREE = "tree"
"""What the older route calls a star."""


async def members(p: Platform, caller: Caller, name: str, *, owner: str | None = None) -> dict[str, Any]:
    """Topology and members of a service's federation, as `types.FederationResponse` of the API.

    Raises:
        ServiceNotFound (404): there is no such service, or the caller may not see it. BadRequest (400).
    """
    topology, found = await _stored(p, caller, name, owner)
    return {"topology": topology.value, "members": [_shown(replica) for replica in found]}


async def replicas(p: Platform, caller: Caller, name: str, *, owner: str | None = None) -> dict[str, Any]:
    """The same in the form of the older route. Raises as `members`."""
    topology, found = await _stored(p, caller, name, owner)
    word = _TREE if topology is Topology.STAR else topology.value
    return {"topology": word, "replicas": [_shown(replica) for replica in found]}


async def change(p: Platform, caller: Caller, name: str, *, owner: str | None = None) -> None:
    """Refuse to change a federation, once it is known that the caller might.

    Raises:
        ServiceNotFound (404), Forbidden (403), NotEnabled (501).
    """
    require_user(caller)
    await services.find(p, caller, name, action=Action.CHANGE, owner=owner)
    raise NotEnabled(
        "Federation is not enabled in this release: members can't be added, changed or removed by this route",
        fix="write the service's federation block by PUT /system/services",
    )


async def _stored(
    p: Platform, caller: Caller, name: str, owner: str | None
) -> tuple[Topology, list[Replica]]:
    require_user(caller)
    known = await services.find(p, caller, name, action=Action.SEE, owner=owner)
    federation = known.service.federation
    if federation is None:
        return Topology.NONE, []
    return federation.topology, sorted(federation.members, key=lambda replica: replica.priority)


def _shown(replica: Replica) -> dict[str, Any]:
    # Headers may hold credentials for the member: their names are shown, their values are not.
    shown = replica.model_dump(mode="json")
    if replica.headers:
        shown["headers"] = dict.fromkeys(replica.headers, "hidden")
    return {key: value for key, value in shown.items() if value not in ("", {})}
