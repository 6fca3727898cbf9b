"""Managed volumes on a Kubernetes cluster: implements `HasVolumes` by PersistentVolumeClaims.

Made by `app.engines` beside the engine. Rules, limits and life cycle are `core.volumes`'; here a volume is a claim in
its owner's namespace, named by its key. What pods get of it is in `attachments`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from oscar.compute.base import VolumeUsage
from oscar.compute.kubernetes.cluster import Body, Cluster
from oscar.compute.kubernetes.kinds import CLAIM
from oscar.compute.kubernetes.names import Names, object_name
from oscar.errors import EngineError
from oscar.model.resources import parse_memory

VOLUME = "volume"
"""Word of the label that says what an object is for."""
KEY = "oscar.grycap/volume"
"""Label: the volume's key."""
_GONE_S = 60.0


def claim(
    names: Names, key: str, size: int, *, owner: str, namespace: str, storage_class: str, mode: str
) -> Body:
    """The claim of a volume.

    Args:
        names: of the installation.
        key: of the volume.
        size: in bytes.
        owner: whose it is.
        namespace: of the owner.
        storage_class: empty for the cluster's default.
        mode: `ReadWriteMany`, or `ReadWriteOnce` where pods of one node only can share it.
    """
    return {
        **CLAIM.head,
        "metadata": {
            "name": object_name(key),
            "namespace": namespace,
            "labels": names.labels(VOLUME, owner) | {KEY: object_name(key)},
        },
        "spec": {
            "accessModes": [mode],
            "resources": {"requests": {"storage": str(size)}},
            **({"storageClassName": storage_class} if storage_class else {}),
        },
    }


class ClaimVolumes:
    """Implements `HasVolumes` with claims."""

    def __init__(
        self,
        cluster: Cluster,
        names: Names,
        ensure: Callable[[str], Awaitable[str]],
        *,
        storage_class: str = "",
        mode: str = "ReadWriteMany",
    ) -> None:
        """Make it.

        Args:
            cluster: the way to the API server.
            names: of the installation.
            ensure: makes an owner's namespace ready; its name.
            storage_class: of new claims; empty for the cluster's default.
            mode: how new claims can be shared.
        """
        self._cluster = cluster
        self._names = names
        self._ensure = ensure
        self._class = storage_class
        self._mode = mode

    async def create_volume(self, key: str, size: int, *, owner: str) -> None:
        """See `HasVolumes.create_volume`."""
        namespace = await self._ensure(owner)
        body = claim(
            self._names,
            key,
            size,
            owner=owner,
            namespace=namespace,
            storage_class=self._class,
            mode=self._mode,
        )
        name = body["metadata"]["name"]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _GONE_S
        while await self._cluster.create(CLAIM, body) is None:
            there = await self._cluster.get(CLAIM, name, namespace)
            if there is not None and "deletionTimestamp" not in there["metadata"]:
                return
            if loop.time() > deadline:
                raise EngineError(
                    f"the volume's earlier claim {name} is still held by a pod", fix="Try again later."
                )
            await asyncio.sleep(0.5)  # one of that name is being removed

    async def delete_volume(self, key: str) -> None:
        """See `HasVolumes.delete_volume`: the cluster removes it when the last pod that has it is gone."""
        for found in await self._find(key):
            meta = found["metadata"]
            await self._cluster.delete(CLAIM, meta["name"], meta["namespace"])

    async def volume_usage(self, key: str) -> VolumeUsage:
        """See `HasVolumes.volume_usage`: what lies in it, the cluster does not say."""
        there = [found for found in await self._find(key) if "deletionTimestamp" not in found["metadata"]]
        if not there:
            raise EngineError(f"there is no volume {key}")
        status = there[0].get("status", {})
        size = (
            status.get("capacity", {}).get("storage") or there[0]["spec"]["resources"]["requests"]["storage"]
        )
        return VolumeUsage(0, parse_memory(size), enforced=True, known=False)

    async def _find(self, key: str) -> list[Body]:
        selector = f"{self._names.selector(VOLUME)},{KEY}={object_name(key)}"
        return await self._cluster.items(CLAIM, labels=selector)
