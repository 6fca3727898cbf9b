"""Which nodes count: control-plane nodes only when alone, cordoned and tainted ones never."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from oscar.compute.base import Capacity
from oscar.core.system import by_status, this_node
from oscar.model.job import JobState
from oscar.model.node import Amount, Node, described, schedulable, workers

GIB = 1024**3
CONTROL = {"node-role.kubernetes.io/control-plane": ""}
MASTER = {"node-role.kubernetes.io/master": ""}


def node(name: str, **more: object) -> Node:
    made = Node(name, Amount(4000, 1000, 500), Amount(8 * GIB, GIB, 2 * GIB))
    return replace(made, **more)  # type: ignore[arg-type]  # any field


def names(nodes: list[Node]) -> list[str]:
    return [each.name for each in nodes]


@pytest.mark.parametrize("labels", [CONTROL, MASTER])
def test_control_plane_nodes_count_only_when_there_are_no_others(labels: dict[str, str]) -> None:
    control = node("control", labels=labels)
    assert names(workers([control, node("worker")])) == ["worker"]
    assert names(schedulable([control])) == ["control"]
    # A worker that takes nothing is a worker all the same.
    assert names(schedulable([control, node("worker", unschedulable=True)])) == []


@pytest.mark.parametrize(
    ("changes", "takes"),
    [
        ({}, True),
        ({"unschedulable": True}, False),
        ({"ready": False}, False),
        ({"taints": [("gpu", "NoSchedule")]}, False),
        ({"taints": [("gpu", "NoExecute")]}, False),
        ({"taints": [("gpu", "PreferNoSchedule")]}, True),
        ({"labels": CONTROL, "taints": [("node-role.kubernetes.io/control-plane", "NoSchedule")]}, False),
    ],
)
def test_what_keeps_work_away(changes: dict[str, object], takes: bool) -> None:
    assert bool(schedulable([node("one", **changes)])) is takes


def test_the_sums_are_of_nodes_that_take_work_and_all_workers_are_shown() -> None:
    nodes = [
        node("one"),
        node("two", cpu=Amount(2000, 0, 3000), gpu=2),
        node("cordoned", unschedulable=True, gpu=1),
        node("virtual", labels={"virtual-node.interlink/type": "virtual-kubelet"}, ready=False),
        node("control", labels=CONTROL),
    ]
    said = described(nodes)
    assert said["nodes_count"] == 4
    assert [each["name"] for each in said["nodes"]] == ["one", "two", "cordoned", "virtual"]
    assert said["metrics"] == {
        "cpu": {
            "total_free_cores": 3500,
            "max_free_on_node_cores": 3500,
            "total_schedulable_cores": 5000,
            "total_schedulable_on_node_cores": 3000,
        },
        "memory": {
            "total_free_bytes": 12 * GIB,
            "max_free_on_node_bytes": 6 * GIB,
            "total_schedulable_bytes": 14 * GIB,
            "max_schedulable_on_node_bytes": 7 * GIB,
        },
        "gpu": {"total_gpu": 2},
    }
    assert [each["is_interlink"] for each in said["nodes"]] == [False, False, False, True]
    assert said["nodes"][3]["status"] == "NotReady"


def test_no_nodes_have_nothing() -> None:
    assert described([])["metrics"]["cpu"]["max_free_on_node_cores"] == 0


def test_pressure_of_this_machine_is_what_its_kernel_says(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "loadavg").write_text("1.50 1.00 0.50 1/2 3\n")
    capacity = Capacity(cpu=4000, cpu_free=3000, memory=8 * GIB, memory_free=7 * GIB, gpu=1)

    def look(available: int, reserve: int) -> Node:
        (proc / "meminfo").write_text(f"MemTotal: {8 * 1024**2} kB\nMemAvailable: {available} kB\n")
        return this_node(capacity, tmp_path, reserve=reserve, proc=proc)

    calm = look(4 * 1024**2, 0)
    assert calm.conditions == {"MemoryPressure": False, "DiskPressure": False}
    assert (calm.cpu, calm.memory) == (Amount(4000, 1000, 1500), Amount(8 * GIB, GIB, 4 * GIB))
    assert look(50 * 1024, 1 << 60).conditions == {"MemoryPressure": True, "DiskPressure": True}


def test_jobs_are_counted_by_the_words_of_the_api() -> None:
    counts = {
        JobState.QUEUED: 2,
        JobState.SUBMITTED: 1,
        JobState.RUNNING: 3,
        JobState.DEAD: 4,
        JobState.FAILED: 1,
    }
    assert by_status(counts) == {"Pending": 3, "Running": 3, "Succeeded": 0, "Failed": 5, "Suspended": 0}
