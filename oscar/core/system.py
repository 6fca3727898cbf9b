"""What the installation is and how it does: info and status.

Called by `api.system`; calls the engine for its words and capacity, and the machine for what is in use. Configuration
is in `core.config`, the server's own log in `core.logs`.
"""

from __future__ import annotations

import asyncio
import os
import platform as machine
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import oscar
from oscar.auth.rules import may_administer
from oscar.compute.base import Capacity
from oscar.core.jobs import rfc3339
from oscar.core.platform import Platform
from oscar.core.propagation import FEATURE
from oscar.model.job import ApiStatus, JobState, api_status
from oscar.model.node import Amount, Node, described
from oscar.model.user import Caller

MIB = 1024 * 1024
_LITTLE_MEMORY = 100 * MIB
"""Free bytes below which a machine is short of memory: what Kubernetes evicts at."""


async def info(p: Platform) -> dict[str, Any]:
    """The installation as `types.Info` of the API; `serverless_backend` names the engine."""
    return {
        "version": oscar.__version__,
        "git_commit": "",
        "architecture": machine.machine(),
        "kubernetes_version": p.nodes.version() if p.nodes else "",
        "serverless_backend": {"name": "cluster" if p.nodes else "embedded", "version": p.compute.describe()},
        # Ours: how servers of this kind know one another.
        "features": [FEATURE],
    }


async def status(p: Platform, caller: Caller) -> dict[str, Any]:
    """Capacity, use, jobs and objects as `types.StatusInfo` of the API.

    An administrator sees the jobs and buckets of all, others their own.
    """
    everybody = may_administer(caller)
    nodes = await _nodes(p)
    counts = await p.jobs.counts(None if everybody else caller.id)
    buckets = [bucket for bucket in await p.buckets.buckets() if everybody or bucket.owner == caller.id]
    usages = await p.buckets.usages()
    return {
        "cluster": described(nodes),
        "oscar": {
            "deployment_name": p.settings.name,
            "ready": True,
            "deployment": {
                "replicas": 1,
                "ready_replicas": 1,
                "available_replicas": 1,
                "creation_timestamp": rfc3339(p.started),
                "strategy": "Recreate",
                "labels": {"app": p.settings.name},
            },
            "jobs_count": sum(counts.values()),
            "pods": {"total": sum(counts.values()), "states": by_status(counts)},
            "oidc": {
                "enabled": p.settings.oidc_enable,
                "issuers": list(p.settings.oidc_issuers),
                "groups": list(p.settings.oidc_groups),
            },
        },
        "minio": {
            "buckets_count": len(buckets),
            "total_objects": sum(usages[bucket.name].objects for bucket in buckets if bucket.name in usages),
        },
    }


async def _nodes(p: Platform) -> Sequence[Node]:
    """The machines that run functions: the engine's, or this one."""
    if p.nodes is not None:
        return await p.nodes.nodes()
    capacity = await p.compute.capacity()
    reserve = p.settings.disk_reserve * MIB
    return [await asyncio.to_thread(this_node, capacity, p.settings.data, reserve=reserve)]


def by_status(counts: dict[JobState, int]) -> dict[str, int]:
    """Jobs by the API's words for their states."""
    words = dict.fromkeys((status.value for status in ApiStatus), 0)
    for state, count in counts.items():
        words[api_status(state).value] += count
    return words


def this_node(capacity: Capacity, data: Path, *, reserve: int, proc: Path = Path("/proc")) -> Node:
    """This machine as a node. Blocks for a moment.

    Args:
        capacity: what the engine has, and what runs have not taken of it.
        data: the data folder, whose disk counts.
        reserve: bytes of it that are kept free.
        proc: where the kernel tells what is in use.
    """
    free = _free_memory(proc)
    disk = os.statvfs(data)
    # The engine may have less than the machine: of the machine's use that is what can be in use of it.
    used = max(0, _total_memory(proc) - free)
    load = int(float((proc / "loadavg").read_text().split()[0]) * 1000)
    return Node(
        name=machine.node(),
        cpu=Amount(capacity.cpu, capacity.cpu - capacity.cpu_free, min(load, capacity.cpu)),
        memory=Amount(capacity.memory, capacity.memory - capacity.memory_free, min(used, capacity.memory)),
        gpu=capacity.gpu,
        conditions={
            "MemoryPressure": free < _LITTLE_MEMORY,
            "DiskPressure": disk.f_bavail * disk.f_frsize <= reserve,
        },
    )


def _free_memory(proc: Path) -> int:
    return _of_memory(proc, "MemAvailable:")


def _total_memory(proc: Path) -> int:
    return _of_memory(proc, "MemTotal:")


def _of_memory(proc: Path, name: str) -> int:
    for row in (proc / "meminfo").read_text().splitlines():
        if row.startswith(name):
            return int(row.split()[1]) * 1024
    return 0
