"""The verbs of the REST API that are about federations, as methods of `Client`.

A part of `client.rest.Client`, which has the connection. Bodies are `types.FederationRequest` of the API.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oscar.client.records import Submitted
from oscar.client.wire import Wire, path
from oscar.model.federation import Replica
from oscar.model.trace import Place

DELEGATED_JOB = "X-Delegated-Job-ID"
"""Header: the id of a job at the cluster that gives it away, kept by the one that takes it."""
DELEGATED_FROM = "X-Delegated-From"
"""Header: the id of the cluster that gives the job away."""
DELEGATED_HOPS = "X-Delegated-Hops"
"""Header, ours: how many functions in a row led to the job."""
FEDERATION_KEY = "X-Federation-Key"
"""Header, ours: a copy's key, with which its cluster asks the origin."""

Member = Replica | Mapping[str, Any]


class Federations:
    """Methods about federations."""

    _wire: Wire

    async def federation(self, service: str, *, owner: str | None = None) -> dict[str, Any]:
        """Topology and members of a service, and what is pending: `types.FederationResponse`."""
        return await self._federation("GET", service, owner)

    async def add_members(
        self,
        service: str,
        members: Sequence[Member],
        *,
        clusters: Mapping[str, Any] | None = None,
        owner: str | None = None,
    ) -> dict[str, Any]:
        """Add members; those that are there stay as they are.

        Args:
            service: its name.
            members: what to add.
            clusters: by id where they are and the accounts used there.
            owner: which one, when several owners have a service of that name.

        Returns:
            As `federation`; members that have not taken the change yet are in `pending`.

        Raises:
            InvalidField, ServiceNotFound, Forbidden, Conflict.
        """
        body: dict[str, Any] = {"members": [_plain(member) for member in members]}
        return await self._federation("POST", service, owner, body, clusters)

    async def update_members(
        self,
        service: str,
        members: Sequence[Member],
        update: Sequence[Member],
        *,
        clusters: Mapping[str, Any] | None = None,
        owner: str | None = None,
    ) -> dict[str, Any]:
        """Replace each of `members` by the entry of `update` at the same place; a single one goes for all."""
        body = {
            "members": [_plain(member) for member in members],
            "update": [_plain(member) for member in update],
        }
        return await self._federation("PUT", service, owner, body, clusters)

    async def remove_members(
        self, service: str, members: Sequence[Member], *, delete: bool = True, owner: str | None = None
    ) -> dict[str, Any]:
        """Remove members; with `delete` their copies of the service too, and never a service that is no copy."""
        body = {"members": [_plain(member) for member in members], "delete": delete}
        return await self._federation("DELETE", service, owner, body)

    async def _federation(
        self,
        method: str,
        service: str,
        owner: str | None,
        body: dict[str, Any] | None = None,
        clusters: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        options: dict[str, Any] = {"params": {"owner": owner} if owner else {}}
        if body is not None:
            options["json"] = body | ({"clusters": dict(clusters)} if clusters else {})
        response = await self._wire.request(method, path("system", "federation", service), **options)
        data: dict[str, Any] = response.json()
        return data

    async def change_federation(self, method: str, service: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """`types.FederationRequest` as it is, by POST, PUT or DELETE: how one server has another make a change."""
        return await self._federation(method, service, None, dict(body))

    async def delegate(
        self,
        service: str,
        event: bytes,
        *,
        job_id: str,
        origin: str,
        hops: int = 0,
        trace: Place | None = None,
    ) -> Submitted:
        """Give a job to this server, once: the same id again is the same job there.

        Args:
            service: that takes it.
            event: a delegated one (`model.event.delegate`).
            job_id: of the job; the server keeps it.
            origin: id of the cluster that gives it away.
            hops: how many functions in a row led to it.
            trace: what the server's spans are below.
        """
        headers = {
            "Content-Type": "application/json",
            DELEGATED_JOB: job_id,
            DELEGATED_FROM: origin,
            DELEGATED_HOPS: str(hops),
            **(trace.headers() if trace else {}),
        }
        response = await self._wire.request("POST", path("job", service), content=event, headers=headers)
        data = response.json() if response.content.startswith(b"{") else {}
        return Submitted.model_validate({"service": service, **data})

    async def federation_token(self, service: str, key: str) -> dict[str, Any]:
        """A fresh access token of the service's owner, for the key of a copy: `access_token`, `expires_in`."""
        where = path("system", "federation", service, "token")
        response = await self._wire.request("POST", where, headers={FEDERATION_KEY: key})
        data: dict[str, Any] = response.json()
        return data


def _plain(member: Member) -> dict[str, Any]:
    if isinstance(member, Replica):
        return member.model_dump(mode="json", exclude_defaults=False)
    return dict(member)
