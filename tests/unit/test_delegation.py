"""The order in which members are tried: each policy on figures, TOPSIS against a formula written down another way."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oscar.model.delegation import (
    COSTS,
    NEAR,
    WEIGHTS,
    Figures,
    criteria,
    figures_of,
    load,
    order,
    topsis,
)
from oscar.model.federation import Delegation, Replica

GIB = 1024**3


def replica(name: str, **more: Any) -> Replica:
    return Replica.model_validate({"cluster_id": name, "service_name": "s", **more})


def figures(cpu: int, memory: int = 8 * GIB, **more: Any) -> Figures:
    """A member of one node with 8 cores and 8 GiB, of which so much is free."""
    facts = {
        "cpu_total": 8000,
        "cpu_free": cpu,
        "cpu_largest": cpu,
        "memory_total": 8 * GIB,
        "memory_free": memory,
        "memory_largest": memory,
    }
    return Figures(**(facts | more))


def names(
    policy: Delegation, known: dict[str, Figures], *extra: Replica, cpu: int = 1000, seed: int = 1
) -> list[str]:
    replicas = [*(replica(name) for name in known), *extra]
    by_identity = {replica(name).identity: each for name, each in known.items()}
    found = order(policy, replicas, by_identity, cpu=cpu, memory=GIB, chance=random.Random(seed))
    return [choice.replica.cluster_id or choice.replica.url for choice in found]


def test_static_keeps_the_priorities_and_asks_for_no_figures() -> None:
    replicas = [replica("first", priority=0), replica("second", priority=3)]
    found = order(Delegation.STATIC, replicas, {}, cpu=1, memory=1, chance=random.Random(1))
    assert [(choice.replica.cluster_id, choice.reason) for choice in found] == [
        ("first", "priority 0"),
        ("second", "priority 3"),
    ]


@pytest.mark.parametrize("policy", [Delegation.RANDOM, Delegation.LOAD_BASED, Delegation.TOPSIS])
def test_members_without_figures_or_room_are_left_out(policy: Delegation) -> None:
    known = {"full": figures(500), "small": figures(4000, memory=GIB // 2), "free": figures(4000)}
    assert names(policy, known, replica("silent")) == ["free"]
    assert names(policy, {"full": figures(500)}) == []


@pytest.mark.parametrize("policy", [Delegation.RANDOM, Delegation.LOAD_BASED, Delegation.TOPSIS])
def test_endpoints_come_last(policy: Delegation) -> None:
    endpoint = Replica.model_validate({"type": "endpoint", "url": "https://e.test/x"})
    assert names(policy, {"b": figures(4000)}, endpoint) == ["b", "https://e.test/x"]


@pytest.mark.parametrize("policy", list(Delegation))
def test_defect_22_priorities_stay_as_they_were_written(policy: Delegation) -> None:
    """B 22: a policy wrote its own figures into the priorities of the members."""
    replicas = [replica("x", priority=7), replica("y", priority=3), replica("z", priority=5)]
    before = [each.model_copy(deep=True) for each in replicas]
    known = {each.identity: figures(2000 + 1000 * index) for index, each in enumerate(replicas)}
    found = order(policy, replicas, known, cpu=1000, memory=GIB, chance=random.Random(1))
    assert len(found) == 3
    assert replicas == before
    assert {choice.replica.cluster_id: choice.replica.priority for choice in found} == {
        "x": 7,
        "y": 3,
        "z": 5,
    }


def test_random_gives_everybody_a_turn() -> None:
    known = {name: figures(4000) for name in ("a", "b", "c")}
    first = Counter(names(Delegation.RANDOM, known, seed=seed)[0] for seed in range(300))
    assert set(first) == {"a", "b", "c"}
    assert min(first.values()) > 60


def test_load_is_that_of_the_formula() -> None:
    assert load(figures(8000)) == 0
    assert load(figures(0)) == 100
    assert load(figures(2000, memory=2 * GIB)) == 75
    assert load(figures(4000, memory=2 * GIB)) == 100 - round(100 * math.sqrt(0.125))
    assert load(Figures()) == 100


def test_load_based_takes_the_least_loaded() -> None:
    known = {"busy": figures(1000), "idle": figures(8000), "half": figures(4000)}
    assert names(Delegation.LOAD_BASED, known) == ["idle", "half", "busy"]


def test_topsis_prefers_free_cpu() -> None:
    known = {
        "slow": figures(8000, latency=2.0, mean_time=100.0),
        "near": figures(1500, latency=0.01, mean_time=1.0),
    }
    assert names(Delegation.TOPSIS, known) == ["slow", "near"]


def test_topsis_shuffles_those_that_are_nearly_as_good() -> None:
    known = {"a": figures(8000), "b": figures(7900), "far": figures(1000, memory=GIB)}
    seen = {tuple(names(Delegation.TOPSIS, known, seed=seed)) for seed in range(50)}
    assert seen == {("a", "b", "far"), ("b", "a", "far")}


def test_defect_13_topsis_indexes_every_member_once() -> None:
    """B 13: upstream took the index of a member one too high, past the end of the list for the last one."""
    known = {name: figures(1000 + 900 * index) for index, name in enumerate("abcdefgh")}
    assert sorted(names(Delegation.TOPSIS, known)) == sorted(known)
    assert names(Delegation.TOPSIS, {"only": figures(4000)}) == ["only"]


def test_defect_13_jobs_are_read_as_the_api_answers() -> None:
    """B 13: upstream read `{"jobs": ..., "next_page": ...}` as a map of jobs, and so never got a figure."""
    status = {
        "cluster": {
            "nodes_count": 2,
            "metrics": {
                "cpu": {"total_schedulable_cores": 3000, "total_schedulable_on_node_cores": 2000},
                "memory": {"total_schedulable_bytes": 9, "max_schedulable_on_node_bytes": 5},
            },
            "nodes": [
                {"cpu": {"capacity_cores": 4000}, "memory": {"capacity_bytes": 10}},
                {"cpu": {"capacity_cores": 4000}, "memory": {"capacity_bytes": 10}},
            ],
        }
    }
    jobs = {
        "jobs": {
            "s-1": {
                "status": "Succeeded",
                "start_time": "2026-01-01T00:00:00Z",
                "finish_time": "2026-01-01T00:00:10Z",
            },
            "s-2": {
                "status": "Failed",
                "start_time": "2026-01-01T00:00:00Z",
                "finish_time": "2026-01-01T00:00:20Z",
            },
            "s-3": {"status": "Pending"},
            "s-4": {"status": "Suspended", "start_time": None},
            "s-5": {"status": "Running", "start_time": "2026-01-01T00:00:00Z"},
        },
        "next_page": "x",
    }
    found = figures_of(status, jobs, latency=0.5)
    assert found == Figures(
        latency=0.5,
        nodes=2,
        cpu_total=8000,
        cpu_free=3000,
        cpu_largest=2000,
        memory_total=20,
        memory_free=9,
        memory_largest=5,
        mean_time=15.0,
        pending=2,
    )
    assert found.fits(2000, 5)
    assert not found.fits(2001, 5)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["cluster", "metrics", "cpu", "memory", "nodes", "jobs", "total_schedulable_cores"]
                ),
                inner,
            )
        ),
    )
)
@example({"cluster": {"nodes": 1}})
@example({"cluster": {"nodes": {"one": 1}}, "jobs": {"one": {"status": []}}})
def test_any_answer_gives_figures(answer: Any) -> None:
    whole = answer if isinstance(answer, dict) else {"cluster": answer}
    assert isinstance(figures_of(whole, whole, latency=0.0), Figures)


# TOPSIS.


def reference(matrix: list[list[float]], weights: tuple[float, ...], costs: tuple[bool, ...]) -> list[float]:
    """Hwang and Yoon's closeness by another way: squared distances from sums, the ideal point never built.

    With v = w·x/|x| for each criterion, the distance to the best is that of v to max v (to min v for a cost).
    """
    alternatives, number = range(len(matrix)), range(len(weights))
    lengths = [math.hypot(*(matrix[i][j] for i in alternatives)) for j in number]

    def value(i: int, j: int) -> float:
        return 0.0 if lengths[j] == 0 else matrix[i][j] / lengths[j] * weights[j]

    closeness = []
    for i in alternatives:
        best = worst = 0.0
        for j in number:
            column = [value(k, j) for k in alternatives]
            low, high = min(column), max(column)
            good, bad = (low, high) if costs[j] else (high, low)
            best += (value(i, j) - good) ** 2
            worst += (value(i, j) - bad) ** 2
        both = math.sqrt(best) + math.sqrt(worst)
        closeness.append(1.0 if both == 0 else math.sqrt(worst) / both)
    return closeness


def test_topsis_on_a_worked_example() -> None:
    """Two criteria, one of them a cost, by hand: columns (3, 4) and (4, 3) have length 5."""
    found = topsis([[3.0, 4.0], [4.0, 3.0]], (1.0, 1.0), (False, True))
    assert found == pytest.approx([0.0, 1.0])
    found = topsis([[3.0, 3.0], [4.0, 4.0]], (1.0, 3.0), (False, True))
    # Distances: of the first 0.2 to the best by the benefit, 0.6 to the worst by the cost.
    assert found == pytest.approx([0.75, 0.25])


amounts = st.floats(0, 1e12, allow_nan=False)
rows = st.lists(st.tuples(*([amounts] * 6)).map(list), min_size=1, max_size=12)


@settings(max_examples=500)
@given(rows)
def test_topsis_is_the_published_formula(matrix: list[list[float]]) -> None:
    assert topsis(matrix, WEIGHTS, COSTS) == pytest.approx(
        reference(matrix, WEIGHTS, COSTS), rel=1e-6, abs=1e-6
    )


@given(rows, st.integers(0, 5), st.floats(0.001, 1000))
def test_topsis_does_not_depend_on_units(matrix: list[list[float]], column: int, unit: float) -> None:
    other = [[value * unit if j == column else value for j, value in enumerate(row)] for row in matrix]
    assert topsis(other, WEIGHTS, COSTS) == pytest.approx(topsis(matrix, WEIGHTS, COSTS), rel=1e-6, abs=1e-6)


whole = st.integers(0, 10**6)
members = st.builds(
    Figures,
    latency=st.floats(0, 10),
    nodes=st.integers(1, 20),
    cpu_free=whole,
    memory_free=whole,
    mean_time=st.floats(0, 1e5),
    pending=st.integers(0, 1000),
    cpu_largest=st.just(10**9),
    memory_largest=st.just(10**12),
)


@given(st.lists(members, min_size=1, max_size=8), st.integers(0, 99))
def test_who_is_first_by_topsis_is_nearly_the_best(known: list[Figures], seed: int) -> None:
    replicas = [replica(f"m{index}") for index in range(len(known))]
    by_identity = {each.identity: its for each, its in zip(replicas, known, strict=True)}
    found = order(Delegation.TOPSIS, replicas, by_identity, cpu=1, memory=1, chance=random.Random(seed))
    assert sorted(choice.replica.cluster_id for choice in found) == sorted(
        each.cluster_id for each in replicas
    )
    preferences = reference([list(criteria(its)) for its in known], WEIGHTS, COSTS)
    first = preferences[replicas.index(found[0].replica)]
    assert max(preferences) - first < NEAR + 1e-6
    later = [preferences[replicas.index(choice.replica)] for choice in found]
    beyond = [value for value in later if max(preferences) - value >= NEAR + 1e-6]
    assert beyond == sorted(beyond, reverse=True)
