"""Nodes of the cluster as the model has them: what there is, what was promised, what is in use. Pure.

Called by `backend`. Quantities are those of Kubernetes (https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from oscar.model.node import Amount, Node

Body = dict[str, Any]

GPU = "nvidia.com/gpu"
SGX = "sgx.intel.com/enclave"

_UNITS = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}


def quantity(text: str) -> Decimal:
    """A quantity of the API as a number; 0 for what is none."""
    for unit in sorted(_UNITS, key=len, reverse=True):
        if text.endswith(unit):
            try:
                return Decimal(text[: len(text) - len(unit)]) * _UNITS[unit]
            except InvalidOperation:
                continue
    return Decimal(0)


def cpu(text: str) -> int:
    """CPU in millicores."""
    return math.ceil(quantity(text) * 1000)


def memory(text: str) -> int:
    """Bytes."""
    return math.ceil(quantity(text))


def node(
    item: Body, requested: Mapping[str, tuple[int, int]], used: Mapping[str, tuple[int, int]] | None
) -> Node:
    """A node of the model.

    Args:
        item: a Node of the API.
        requested: CPU and memory by node that its pods ask for.
        used: the same in use, as metrics-server says; None without it: then what was asked for counts as used.
    """
    name = item["metadata"]["name"]
    status, spec = item.get("status", {}), item.get("spec", {})
    there = status.get("allocatable") or status.get("capacity") or {}
    asked = requested.get(name, (0, 0))
    busy = asked if used is None else used.get(name, (0, 0))
    conditions = {each["type"]: each["status"] == "True" for each in status.get("conditions") or ()}
    return Node(
        name=name,
        cpu=Amount(cpu(there.get("cpu", "0")), asked[0], busy[0]),
        memory=Amount(memory(there.get("memory", "0")), asked[1], busy[1]),
        gpu=int(quantity(there.get(GPU, "0"))),
        ready=conditions.pop("Ready", False),
        unschedulable=bool(spec.get("unschedulable")),
        labels=item["metadata"].get("labels") or {},
        taints=[(each["key"], each["effect"]) for each in spec.get("taints") or ()],
        conditions=conditions,
    )


def requests(pod: Body) -> tuple[int, int]:
    """CPU and memory that the scheduler counts for a pod: the larger of what starts it and what stays."""
    spec = pod["spec"]
    started, stays = [(0, 0)], [_asked(each) for each in spec.get("containers") or ()]
    beside: list[tuple[int, int]] = []
    for each in spec.get("initContainers") or ():
        if each.get("restartPolicy") == "Always":
            beside.append(_asked(each))
        else:
            started.append(_sum([_asked(each), *beside]))
    whole = _sum([*stays, *beside])
    extra = spec.get("overhead") or {}
    return (
        max(whole[0], *(each[0] for each in started)) + cpu(extra.get("cpu", "0")),
        max(whole[1], *(each[1] for each in started)) + memory(extra.get("memory", "0")),
    )


def promised(pods: Iterable[Body]) -> dict[str, tuple[int, int]]:
    """By node what its pods ask for; pods that have ended don't count."""
    found: dict[str, tuple[int, int]] = {}
    for pod in pods:
        name = pod["spec"].get("nodeName")
        if name and pod["status"].get("phase") not in {"Succeeded", "Failed"}:
            found[name] = _sum([found.get(name, (0, 0)), requests(pod)])
    return found


def in_use(metrics: Iterable[Body]) -> dict[str, tuple[int, int]]:
    """By node what is in use, from metrics-server's `NodeMetrics`."""
    return {
        each["metadata"]["name"]: (cpu(each["usage"]["cpu"]), memory(each["usage"]["memory"]))
        for each in metrics
    }


def _asked(container: Body) -> tuple[int, int]:
    resources = container.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return cpu(asked.get("cpu", "0")), memory(asked.get("memory", "0"))


def _sum(amounts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    listed = list(amounts)
    return sum(each[0] for each in listed), sum(each[1] for each in listed)
