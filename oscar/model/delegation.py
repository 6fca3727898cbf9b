"""Which member gets a job: the policies static, random, load-based and topsis, as pure functions of figures.

Called by `core.delegation`, which asks the members for their figures. Names and weights are those of OSCAR 4.1.2;
its TOPSIS never worked (it read the wrong answer and an index past the end), this one is the published method:
Hwang and Yoon, Multiple Attribute Decision Making, 1981.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from oscar.model.federation import Delegation, Replica

WEIGHTS = (1.0, 8.0, 18.0, 65.0, 2.0, 6.0)
"""Of latency, nodes, free memory, free CPU, mean time of a job, waiting jobs."""
COSTS = (True, False, False, False, True, True)
"""Of which of these less is better."""
NEAR = 0.2
"""Members whose preference is this close to the best are as good, and take turns."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a member says of itself: CPU in millicores, memory in bytes, times in seconds."""

    latency: float = 0.0
    """How long the answer took."""
    nodes: int = 1
    cpu_total: int = 0
    cpu_free: int = 0
    cpu_largest: int = 0
    """Free on the node that has most."""
    memory_total: int = 0
    memory_free: int = 0
    memory_largest: int = 0
    mean_time: float = 0.0
    """Of the service's jobs there that have ended."""
    pending: int = 0

    def fits(self, cpu: int, memory: int) -> bool:
        """Whether a node has room for a job that needs that."""
        return self.cpu_largest >= cpu and self.memory_largest >= memory


@dataclass(frozen=True, slots=True)
class Choice:
    """A member and why it has its place in the order."""

    replica: Replica
    reason: str


def figures_of(status: Mapping[str, Any], jobs: Mapping[str, Any], *, latency: float) -> Figures:
    """A member's figures.

    Args:
        status: its answer to `GET /system/status`.
        jobs: its answer to `GET /system/logs/<service>`: `{"jobs": {...}, "next_page": ...}`.
        latency: seconds that the first took.
    """
    cluster = _map(status.get("cluster"))
    metrics = _map(cluster.get("metrics"))
    cpu, memory = _map(metrics.get("cpu")), _map(metrics.get("memory"))
    told = cluster.get("nodes")
    nodes = [_map(node) for node in told] if isinstance(told, list) else []
    cpu_free = _first(cpu, "total_schedulable_cores", "total_free_cores", "total_free")
    memory_free = _first(memory, "total_schedulable_bytes", "total_free_bytes")
    infos = [_map(info) for info in _map(jobs.get("jobs")).values()]
    times = [seconds for info in infos if (seconds := _duration(info)) is not None]
    return Figures(
        latency=latency,
        nodes=_first(cluster, "nodes_count") or len(nodes),
        cpu_total=max(cpu_free, sum(_first(_map(node.get("cpu")), "capacity_cores") for node in nodes)),
        cpu_free=cpu_free,
        cpu_largest=_first(
            cpu, "total_schedulable_on_node_cores", "max_free_on_node_cores", "max_free_on_node"
        ),
        memory_total=max(
            memory_free, sum(_first(_map(node.get("memory")), "capacity_bytes") for node in nodes)
        ),
        memory_free=memory_free,
        memory_largest=_first(memory, "max_schedulable_on_node_bytes", "max_free_on_node_bytes"),
        mean_time=sum(times) / len(times) if times else 0.0,
        pending=sum(info.get("status") in ("Pending", "Suspended") for info in infos),
    )


def needs_figures(policy: Delegation) -> bool:
    """Whether members have to be asked before one is chosen."""
    return policy is not Delegation.STATIC


def order(
    policy: Delegation,
    replicas: Sequence[Replica],
    figures: Mapping[tuple[str, str, str], Figures],
    *,
    cpu: int,
    memory: int,
    chance: random.Random,
) -> list[Choice]:
    """The members in the order in which they are tried.

    Args:
        policy: the service's.
        replicas: the members, priority 0 first.
        figures: of those that answered, by identity. Endpoints have none: they are tried last.
        cpu: millicores that the job needs.
        memory: bytes that it needs.
        chance: for `random`, and for members that are equally good.
    """
    if not needs_figures(policy):
        return [Choice(replica, f"priority {replica.priority}") for replica in replicas]
    able = [
        replica
        for replica in replicas
        if (known := figures.get(replica.identity)) is not None and known.fits(cpu, memory)
    ]
    endpoints = [replica for replica in replicas if replica.type == "endpoint"]
    if policy is Delegation.RANDOM:
        drawn = sorted((chance.randint(0, 100), index) for index in range(len(able)))
        chosen = [Choice(able[index], f"random {number} of 100") for number, index in drawn]
    elif policy is Delegation.LOAD_BASED:
        loads = sorted(((load(figures[replica.identity]), index) for index, replica in enumerate(able)))
        chosen = [Choice(able[index], f"load {number} of 100") for number, index in loads]
    else:
        chosen = _by_topsis(able, figures, chance)
    return [
        *chosen,
        *(Choice(replica, "an endpoint, which tells no figures, comes last") for replica in endpoints),
    ]


def load(figures: Figures) -> int:
    """How loaded a member is: 0 all is free, 100 nothing is."""
    if figures.cpu_total <= 0 or figures.memory_total <= 0:
        return 100
    free = (figures.cpu_free / figures.cpu_total) * (figures.memory_free / figures.memory_total)
    return 100 - round(100 * math.sqrt(min(1.0, max(0.0, free))))


def _by_topsis(
    able: Sequence[Replica], figures: Mapping[tuple[str, str, str], Figures], chance: random.Random
) -> list[Choice]:
    if not able:
        return []
    known = [figures[replica.identity] for replica in able]
    preferences = topsis([criteria(each) for each in known], WEIGHTS, COSTS)
    best = max(preferences)
    ranked = sorted(range(len(able)), key=lambda index: -preferences[index])
    near = [index for index in ranked if best - preferences[index] < NEAR]
    chance.shuffle(near)
    return [
        Choice(able[index], f"topsis preference {preferences[index]:.3f}")
        for index in [*near, *ranked[len(near) :]]
    ]


def criteria(figures: Figures) -> tuple[float, ...]:
    """A row of the decision matrix, its columns as `WEIGHTS` has them."""
    return (
        figures.latency,
        float(figures.nodes),
        float(figures.memory_free),
        float(figures.cpu_free),
        figures.mean_time,
        float(figures.pending),
    )


def topsis(matrix: Sequence[Sequence[float]], weights: Sequence[float], costs: Sequence[bool]) -> list[float]:
    """How close each alternative is to the ideal one: 1 is the ideal, 0 its opposite.

    Args:
        matrix: a row for each alternative, a column for each criterion; none negative.
        weights: of the criteria.
        costs: for each criterion whether less is better.
    """
    columns = list(zip(*matrix, strict=True))
    weighted = []
    for column, weight in zip(columns, weights, strict=True):
        # By the largest first: squares of bytes would lose what differs between small figures.
        largest = max(column, default=0.0)
        scaled = [value / largest for value in column] if largest else list(column)
        norm = math.sqrt(math.fsum(value * value for value in scaled))
        weighted.append([weight * value / norm if norm else 0.0 for value in scaled])
    ideal = [min(column) if cost else max(column) for column, cost in zip(weighted, costs, strict=True)]
    worst = [max(column) if cost else min(column) for column, cost in zip(weighted, costs, strict=True)]
    return [_closeness(row, ideal, worst) for row in zip(*weighted, strict=True)]


def _closeness(row: Sequence[float], ideal: Sequence[float], worst: Sequence[float]) -> float:
    to_ideal, to_worst = math.dist(row, ideal), math.dist(row, worst)
    # All alternatives are the same: each is the best.
    return to_worst / (to_ideal + to_worst) if to_ideal + to_worst else 1.0


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _first(values: Mapping[str, Any], *names: str) -> int:
    """The first of these that is a number."""
    for name in names:
        value = values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return max(0, int(value))
    return 0


def _duration(info: Mapping[str, Any]) -> float | None:
    try:
        started = datetime.fromisoformat(str(info["start_time"]))
        finished = datetime.fromisoformat(str(info["finish_time"]))
        return max(0.0, (finished - started).total_seconds())
    except (KeyError, ValueError, TypeError):
        return None
