"""Nodes of a cluster, and which of them count when somebody asks what could still be run.

Called by `core.system`; this machine is a cluster of one node. The rule is that of OSCAR: control-plane nodes take
no work unless there are no others, cordoned and tainted nodes take none at all. Pure. CPU in millicores, memory in
bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_CONTROL_PLANE = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
_VIRTUAL = ("type", "virtual-node.interlink/type")
_REPELLING = frozenset({"NoSchedule", "NoExecute"})


@dataclass(frozen=True, slots=True)
class Amount:
    """Of one resource of a node: what there is, what runs were promised, what is in use now."""

    capacity: int
    requested: int = 0
    used: int = 0

    @property
    def schedulable(self) -> int:
        """What can still be promised."""
        return max(0, self.capacity - self.requested)

    @property
    def free(self) -> int:
        """What nobody uses now."""
        return max(0, self.capacity - self.used)


@dataclass(frozen=True, slots=True)
class Node:
    """A node."""

    name: str
    cpu: Amount
    memory: Amount
    gpu: int = 0
    ready: bool = True
    unschedulable: bool = False
    """Cordoned."""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[tuple[str, str]] = ()
    """Key and effect of each."""
    conditions: Mapping[str, bool] = field(default_factory=dict)
    """Beside `Ready`: `MemoryPressure`, `DiskPressure`, ..."""

    @property
    def is_control_plane(self) -> bool:
        """Whether it runs the cluster itself."""
        return any(label in self.labels for label in _CONTROL_PLANE)

    @property
    def is_interlink(self) -> bool:
        """Whether it stands for another site (interLink)."""
        return any(self.labels.get(label) == "virtual-kubelet" for label in _VIRTUAL)


def workers(nodes: Iterable[Node]) -> list[Node]:
    """The nodes that are meant for work: control-plane nodes only when there are no others."""
    known = list(nodes)
    found = [node for node in known if not node.is_control_plane]
    return found or known


def schedulable(nodes: Iterable[Node]) -> list[Node]:
    """Of those meant for work the nodes that take any: ready, not cordoned, without a taint that keeps work away."""
    return [
        node
        for node in workers(nodes)
        if node.ready
        and not node.unschedulable
        and not any(effect in _REPELLING for _, effect in node.taints)
    ]


def described(nodes: Iterable[Node]) -> dict[str, Any]:
    """Nodes and what they have together, as `types.ClusterInfo` of the API."""
    shown = workers(nodes)
    taking = schedulable(shown)
    return {
        "nodes_count": len(shown),
        "metrics": {
            "cpu": {
                "total_free_cores": sum(node.cpu.free for node in taking),
                "max_free_on_node_cores": max((node.cpu.free for node in taking), default=0),
                "total_schedulable_cores": sum(node.cpu.schedulable for node in taking),
                "total_schedulable_on_node_cores": max((node.cpu.schedulable for node in taking), default=0),
            },
            "memory": {
                "total_free_bytes": sum(node.memory.free for node in taking),
                "max_free_on_node_bytes": max((node.memory.free for node in taking), default=0),
                "total_schedulable_bytes": sum(node.memory.schedulable for node in taking),
                "max_schedulable_on_node_bytes": max((node.memory.schedulable for node in taking), default=0),
            },
            "gpu": {"total_gpu": sum(node.gpu for node in taking)},
        },
        "nodes": [_node(node) for node in shown],
    }


def _node(node: Node) -> dict[str, Any]:
    conditions = {"Ready": node.ready, **node.conditions}
    return {
        "name": node.name,
        "status": "Ready" if node.ready else "NotReady",
        "is_interlink": node.is_interlink,
        "gpu": node.gpu,
        "cpu": {
            "capacity_cores": node.cpu.capacity,
            "request_cores": node.cpu.requested,
            "usage_cores": node.cpu.used,
        },
        "memory": {
            "capacity_bytes": node.memory.capacity,
            "request_bytes": node.memory.requested,
            "usage_bytes": node.memory.used,
        },
        "conditions": [{"type": kind, "status": status} for kind, status in conditions.items()],
    }
