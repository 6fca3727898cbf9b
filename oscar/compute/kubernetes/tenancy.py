"""Tenants: the namespace of an owner's services with all that keeps him apart from others, made and kept so.

Called by everything that makes objects for an owner (`ensure`), and by `backend`, which has it all put back when it was
deleted by hand. The manifests are in `tenants`; the limits come from the Store by way of a function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from oscar import telemetry
from oscar.compute.kubernetes import tenants
from oscar.compute.kubernetes.cluster import Cluster, ClusterError
from oscar.compute.kubernetes.kinds import (
    CLUSTER_QUEUE,
    LIMIT_RANGE,
    LOCAL_QUEUE,
    NAMESPACE,
    NETWORK_POLICY,
    RESOURCE_FLAVOR,
    RESOURCE_QUOTA,
    SERVICE_ACCOUNT,
)
from oscar.compute.kubernetes.names import INSTALLATION, Names
from oscar.errors import EngineError
from oscar.model.quota import Limits
from oscar.model.user import ADMIN

log = telemetry.get("kubernetes")

_ENDING_S = 120.0
"""Seconds that a namespace which is being deleted is waited for."""
_LOOK_S = 1.0


class Tenancy:
    """The namespaces of one installation.

    Args:
        cluster: the cluster.
        names: of the installation.
        limits: what an owner's runs may take together.
        server_namespace: where the server runs, which may reach into the tenants' namespaces.
    """

    def __init__(
        self,
        cluster: Cluster,
        names: Names,
        limits: Callable[[str], Awaitable[Limits]],
        server_namespace: str,
    ) -> None:
        self._cluster = cluster
        self._names = names
        self._limits = limits
        self._server_namespace = server_namespace
        self._ready: dict[str, str] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self.kueue = False
        """Whether jobs are queued by Kueue."""

    async def start(self, *, kueue: bool) -> None:
        """Find out whether Kueue is there, if it is wanted."""
        self.kueue = kueue and await self._cluster.serves(CLUSTER_QUEUE)
        if self.kueue:
            await self._cluster.apply(RESOURCE_FLAVOR, tenants.flavor(self._names))

    def queue_of(self, owner: str) -> str:
        """Kueue's queue for an owner's jobs; empty when they are not queued: the administrator's never are."""
        return tenants.QUEUE if self.kueue and owner not in {"", ADMIN} else ""

    async def ensure(self, owner: str) -> str:
        """The owner's namespace, ready for use.

        Raises:
            EngineError: it belongs to another installation, or can't be made.
        """
        known = self._ready.get(owner)
        if known is not None:
            return known
        async with self._locks.setdefault(owner, asyncio.Lock()):
            if owner not in self._ready:
                await self.apply(owner)
            return self._ready[owner]

    async def apply(self, owner: str) -> None:
        """Have all of a tenant's objects as they should be, whoever changed or deleted them.

        Raises:
            EngineError: see `ensure`.
        """
        namespace = self._names.namespace_of(owner)
        await self._claim(namespace)
        limits = await self._limits(owner)
        await self._cluster.apply(NAMESPACE, tenants.namespace(self._names, namespace, owner))
        quota = tenants.resource_quota(self._names, namespace, owner, limits)
        kinds = [
            (SERVICE_ACCOUNT, tenants.service_account(namespace)),
            (LIMIT_RANGE, tenants.limit_range(self._names, namespace, owner)),
            (NETWORK_POLICY, tenants.network_policy(self._names, namespace, owner, self._server_namespace)),
        ]
        if quota is not None and not self.queue_of(owner):
            kinds.append((RESOURCE_QUOTA, quota))
        await asyncio.gather(*(self._cluster.apply(kind, body) for kind, body in kinds))
        if quota is None or self.queue_of(owner):
            await self._cluster.delete(RESOURCE_QUOTA, tenants.TENANT, namespace)
        if self.queue_of(owner):
            await self._cluster.apply(
                CLUSTER_QUEUE, tenants.cluster_queue(self._names, namespace, owner, limits)
            )
            await self._cluster.apply(LOCAL_QUEUE, tenants.local_queue(self._names, namespace, owner))
        self._ready[owner] = namespace

    def lost(self, namespace: str) -> str | None:
        """The namespace was deleted by somebody: its owner, when it was ready; it is made again when next needed."""
        for owner, known in self._ready.items():
            if known == namespace:
                del self._ready[owner]
                return owner
        return None

    def owners(self) -> list[str]:
        """Those whose namespaces are ready."""
        return list(self._ready)

    async def _claim(self, namespace: str) -> None:
        """Wait for the end of a namespace that goes, and take none that is another installation's."""
        deadline = asyncio.get_running_loop().time() + _ENDING_S
        while True:
            found = await self._cluster.get(NAMESPACE, namespace)
            if found is None:
                return
            whose = (found["metadata"].get("labels") or {}).get(INSTALLATION, self._names.installation)
            if whose != self._names.installation:
                raise EngineError(
                    f'The namespace "{namespace}" belongs to another installation of OSCAR ({whose})',
                    field="OSCAR_SERVICES_NAMESPACE",
                    fix="give each installation on a cluster another prefix for its namespaces",
                )
            if not found["metadata"].get("deletionTimestamp"):
                return
            if asyncio.get_running_loop().time() > deadline:
                raise ClusterError(f'The namespace "{namespace}" is being deleted, which does not end')
            await asyncio.sleep(_LOOK_S)
