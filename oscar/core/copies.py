"""What a service wants of the members of its federation: checked when it is defined, noted in the same transaction.

Called by `core.services` when a service is made, changed or removed; `core.propagation` then tells the members. Rules:
docs/federation.md.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oscar.core import members
from oscar.core.members import Access
from oscar.core.platform import Platform
from oscar.errors import Conflict, InvalidField
from oscar.model.copies import COPY_VERSION, name_of
from oscar.model.federation import (
    COPY_ID,
    ORIGIN_CLUSTER,
    ORIGIN_SERVICE,
    REFRESH_TOKEN,
    Replica,
    Topology,
)
from oscar.model.secrets import with_secrets
from oscar.model.service import Service
from oscar.model.user import Caller
from oscar.state.copies import Change, Copy, NewCopy
from oscar.state.services import ServiceRow

if TYPE_CHECKING:
    from oscar.auth.exchange import Fresh

REFRESH_PATH = f"/environment/secrets/{REFRESH_TOKEN}"
"""Where a service's refresh token lies among its secrets."""


@dataclass(frozen=True, slots=True)
class Bearers:
    """Tokens that a change may show members, in the order in which they are tried."""

    caller: str = ""
    fresh: Fresh | None = None
    """From the refresh token that the change itself brings."""

    @property
    def all(self) -> list[str]:
        """Those that there are."""
        return [token for token in (self.caller, self.fresh.access if self.fresh else "") if token]


def stored(row: ServiceRow) -> Service:
    """A row's definition with all its secrets, the refresh token included."""
    service = Service.model_validate(json.loads(row.definition))
    service = with_secrets(service, row.secrets or {})
    return service.model_copy(update={"token": row.token, "owner": row.owner})


def given_token(row: ServiceRow) -> str:
    """The refresh token as the user gave it; empty when the service has none."""
    return (row.secrets or {}).get(REFRESH_PATH, "")


def cluster_of(p: Platform, service: Service) -> str:
    """The id by which other clusters know this one."""
    return service.cluster_id or p.settings.cluster_id or p.settings.name


def named(service: Service) -> Service:
    """The service with the names that its members and replicas leave out: its own."""

    def full(replica: Replica) -> Replica:
        if replica.type == "endpoint" or replica.service_name:
            return replica
        return replica.model_copy(update={"service_name": service.name})

    update: dict[str, Any] = {}
    if service.replicas:
        update["replicas"] = [full(replica) for replica in service.replicas]
    if service.federation and service.federation.members:
        listed = [full(member) for member in service.federation.members]
        update["federation"] = service.federation.model_copy(update={"members": listed})
    return service.model_copy(update=update) if update else service


def check(p: Platform, service: Service, before: Service | None = None) -> None:
    """Refuse members that can't be reached as they are described.

    Args:
        p: the platform.
        service: as it will be, with its secrets.
        before: as it is; what it has already is not asked about again.

    Raises:
        InvalidField: naming the member's cluster or address.
    """
    known = {member.identity for member in before.delegates_to} if before else set()
    for member in service.delegates_to:
        if member.type == "endpoint":
            if member.identity not in known:
                members.check_address(p.settings, member.url, field="federation.members.url")
            continue
        cluster = service.clusters.get(member.cluster_id)
        field = f"clusters.{member.cluster_id}"
        if cluster is None or not cluster.endpoint:
            raise InvalidField(
                f'The cluster "{member.cluster_id}" of a member is not described',
                field=field,
                fix=f"add {field} with its endpoint",
            )
        if before is None or before.clusters.get(member.cluster_id) != cluster:
            members.check_address(p.settings, cluster.endpoint, field=f"{field}.endpoint")
    home = cluster_of(p, service)
    for member in service.copies:
        if (member.cluster_id, name_of(service, member)) == (home, service.name):
            raise InvalidField(
                f'The member "{home}" with the service "{service.name}" is this service itself',
                field="federation.members",
                fix="leave it out",
            )


async def check_token(p: Platform, service: Service, before: str = "") -> Fresh | None:
    """Try the refresh token of a star or a mesh, if it is another than before.

    Returns:
        What its issuer gave for it; None when there was nothing to try.

    Raises:
        InvalidField, RefreshTokenInvalid (400), Unavailable (503).
    """
    if service.topology is Topology.NONE or service.is_copy:
        return None
    token = service.environment.secrets.get(REFRESH_TOKEN, "")
    if not token:
        raise InvalidField(
            "environment.secrets.refresh_token: a federated service needs a refresh token",
            field="environment.secrets.refresh_token",
            fix="Add it, or set federation.topology to none.",
        )
    p.tokens.require()
    return None if token == before else await p.tokens.check(token)


def access_of(service: Service, cluster_id: str) -> dict[str, Any]:
    """How a member is reached, for the Store, which seals it: also after the service is gone."""
    token = service.environment.secrets.get(REFRESH_TOKEN, "")
    return Access.of(service.clusters[cluster_id]).as_dict() | {"refresh_token": token}


def new_copies(service: Service, *, but: Collection[tuple[str, str]] = ()) -> list[NewCopy]:
    """Copies that the service wants and that don't exist yet."""
    return [
        NewCopy(
            member.cluster_id,
            name_of(service, member),
            access_of(service, member.cluster_id),
            secrets.token_urlsafe(32),
        )
        for member in service.copies
        if (member.cluster_id, name_of(service, member)) not in but
    ]


def change(service: Service, present: Collection[Copy], *, leave: bool = False) -> Change:
    """What a changed service means for its copies.

    Args:
        service: as it is now, with its secrets.
        present: its copies as they were.
        leave: members that are no longer wanted keep what they have.
    """
    wanted = {(member.cluster_id, name_of(service, member)) for member in service.copies}
    kept = {
        (copy.cluster_id, copy.name): copy
        for copy in present
        if copy.wanted and (copy.cluster_id, copy.name) in wanted
    }
    gone = [copy.id for copy in present if copy.wanted and (copy.cluster_id, copy.name) not in kept]
    return Change(
        add=new_copies(service, but=kept),
        keep={copy.id: access_of(service, copy.cluster_id) for copy in kept.values()},
        drop=() if leave else gone,
        leave=gone if leave else (),
    )


def guard(before: Service, after: Service) -> None:
    """Refuse to change a copy, unless its origin does it.

    Raises:
        Conflict: naming the origin; or the change is older than the copy.
    """
    if not before.is_copy:
        return
    mine, theirs = before.annotations, after.annotations
    origin = (mine.get(ORIGIN_CLUSTER), mine.get(ORIGIN_SERVICE))
    if not after.is_copy or (theirs.get(ORIGIN_CLUSTER), theirs.get(ORIGIN_SERVICE)) != origin:
        raise not_here(before)
    if mine.get(COPY_ID) == theirs.get(COPY_ID) and _version(theirs) < _version(mine):
        raise Conflict("The copy has a newer definition already", field=f"annotations.{COPY_VERSION}")


def not_here(service: Service) -> Conflict:
    """What is said to who changes a copy."""
    cluster, name = service.annotations.get(ORIGIN_CLUSTER), service.annotations.get(ORIGIN_SERVICE)
    at = service.clusters.get(cluster or "")
    where = f" ({at.endpoint})" if at and at.endpoint else ""
    return Conflict(
        f'"{service.name}" is a copy of the service "{name}" of the cluster "{cluster}"{where}, which keeps it',
        fix=f'change the service "{name}" there',
    )


def _version(annotations: Mapping[str, str]) -> int:
    text = annotations.get(COPY_VERSION, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def bearers(caller: Caller, fresh: Fresh | None) -> Bearers:
    """The tokens that a change may show members."""
    return Bearers(caller.bearer, fresh)
