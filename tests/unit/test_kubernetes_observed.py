"""What Jobs and pods mean, and nodes of the cluster: objects as a cluster of version 1.34 gave them, cut down."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oscar.compute.base import Phase, RunState
from oscar.compute.kubernetes import nodes, observed
from oscar.compute.kubernetes.observed import End
from oscar.compute.kubernetes.runs import Runs, steps
from oscar.model.node import Node, schedulable, workers
from oscar.model.trouble import Trouble
from oscar.supervisor.order import Report

Body = dict[str, Any]
BEGUN, ENDED = "2026-11-27T09:00:10Z", "2026-11-27T09:00:20Z"
STARTED, FINISHED = 1795770010000, 1795770020000


def job(conditions: dict[str, Body] | None = None, end: End | None = None, **fields: Any) -> Body:
    annotations = {"oscar.grycap/run": "cat-1"} | ({"oscar.grycap/end": end.as_text()} if end else {})
    return {
        "metadata": {
            "name": "cat-1",
            "namespace": "ns",
            "uid": "j",
            "resourceVersion": "5",
            "annotations": annotations,
        },
        "spec": {
            "template": {
                "spec": {
                    "initContainers": [
                        {"name": "stage-in"},
                        {
                            "name": "oscar-container",
                            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
                        },
                    ]
                }
            },
            **fields.pop("spec", {}),
        },
        "status": {
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": ENDED, **more}
                for kind, more in (conditions or {}).items()
            ],
            **fields,
        },
    }


def running() -> Body:
    return {"running": {"startedAt": BEGUN}}


def terminated(code: int = 0, reason: str = "", message: str = "") -> Body:
    return {
        "terminated": {
            "exitCode": code,
            "reason": reason or ("Error" if code else "Completed"),
            "message": message,
            "startedAt": BEGUN,
            "finishedAt": ENDED,
        }
    }


def waiting(reason: str = "PodInitializing", message: str = "") -> Body:
    return {"waiting": {"reason": reason, "message": message}}


def pod(stage_in: Body, script: Body | None = None, stage_out: Body | None = None, **status: Any) -> Body:
    states = {
        "stage-in": stage_in,
        "oscar-container": script or waiting(),
        "stage-out": stage_out or waiting(),
    }
    listed = [{"name": name, "image": "busybox", "state": state} for name, state in states.items()]
    return {
        "metadata": {
            "name": "cat-1-x",
            "namespace": "ns",
            "uid": "p",
            "labels": {"batch.kubernetes.io/job-name": "cat-1"},
        },
        "spec": {"nodeName": status.pop("node", "node0")},
        "status": {
            "phase": "Pending",
            "initContainerStatuses": listed[:2],
            "containerStatuses": listed[2:],
            **status,
        },
    }


DONE_IN = terminated()
EVICTED = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "EvictionByEvictionAPI",
    "message": "by a drain",
}
COLLECTED = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": "no node"}


@pytest.mark.parametrize(
    ("pod_", "phase"),
    [
        (None, Phase.SUBMITTED),
        (pod(waiting()), Phase.SUBMITTED),
        (pod(running()), Phase.SUBMITTED),
        (pod(DONE_IN), Phase.SUBMITTED),
        (pod(DONE_IN, running()), Phase.RUNNING),
        (pod(DONE_IN, terminated()), Phase.SETTLING),
        (pod(DONE_IN, terminated(), running(), phase="Running"), Phase.SETTLING),
        (pod(DONE_IN, terminated(3)), Phase.SETTLING),
    ],
)
def test_phases(pod_: Body | None, phase: Phase) -> None:
    found = observed.state(job(), pod_)
    assert (found.name, found.phase, found.trouble) == ("cat-1", phase, None)
    assert (found.started is not None) == (phase is not Phase.SUBMITTED)


def test_success() -> None:
    ended = pod(DONE_IN, terminated(), terminated(), phase="Succeeded")
    found = RunState("cat-1", Phase.DONE, None, None, 0, STARTED, FINISHED, ended=FINISHED)
    assert observed.state(job(), ended) == found
    # Its pod may be gone by then.
    assert observed.state(job({"Complete": {}}), None).trouble is None


SUSPENDED = job(spec={"suspend": True})


def resumed(at: str) -> Body:
    """A Job that was suspended until then."""
    found = job()
    found["status"]["conditions"] = [{"type": "Suspended", "status": "False", "lastTransitionTime": at}]
    return found


def made(pod_: Body, *, leaves: bool = False) -> Body:
    """The pod with its times."""
    times = {"creationTimestamp": BEGUN} | ({"deletionTimestamp": ENDED} if leaves else {})
    return pod_ | {"metadata": pod_["metadata"] | times}


@pytest.mark.parametrize(
    ("job_", "pod_", "gone", "trouble"),
    [
        # While the script ran, before it ran, after it and before its results were stored.
        (
            SUSPENDED,
            made(pod(DONE_IN, terminated(143), phase="Failed"), leaves=True),
            False,
            Trouble.LOST,
        ),
        (SUSPENDED, made(pod(DONE_IN, running())), True, Trouble.LOST),
        (SUSPENDED, made(pod(running(), phase="Failed"), leaves=True), False, Trouble.OUR),
        (SUSPENDED, made(pod(DONE_IN, terminated(), running())), True, Trouble.OUR),
        # It has a place again by now, for a second pod that starts nothing.
        (resumed(ENDED), made(pod(DONE_IN, terminated(143), phase="Failed")), False, Trouble.LOST),
    ],
)
def test_a_queue_takes_a_place_back(job_: Body, pod_: Body, gone: bool, trouble: Trouble) -> None:
    found = observed.state(job_, pod_, gone=gone)
    assert (found.phase, found.trouble) == (Phase.DONE, trouble)
    assert "suspended" in (found.message or "")


def test_a_queue_that_has_only_let_a_job_in_took_nothing_back() -> None:
    found = observed.state(resumed(BEGUN), made(pod(DONE_IN, terminated(7), phase="Failed")))
    assert (found.trouble, found.exit_code) == (Trouble.SCRIPT, 7)
    # The Job may be shown as suspended for a moment longer than its pod is there.
    assert observed.state(SUSPENDED, made(pod(DONE_IN, running()))).phase is Phase.RUNNING


REPORTED = Report(trouble=Trouble.REFUSED, message="no such object").as_message()


@pytest.mark.parametrize(
    ("pod_", "trouble", "words", "code"),
    [
        (pod(DONE_IN, terminated(7)), Trouble.SCRIPT, "exit code 7", 7),
        (pod(DONE_IN, terminated(137, "OOMKilled")), Trouble.SCRIPT, "out of memory (limit 64Mi)", 137),
        (pod(DONE_IN, terminated(137, "ContainerStatusUnknown")), Trouble.LOST, "nobody knows", None),
        (pod(DONE_IN, terminated(128, "StartError", "no /bin/sh")), Trouble.OUR, "no /bin/sh", None),
        (pod(DONE_IN, terminated(119, message="oscar: started twice")), Trouble.LOST, "second time", None),
        (pod(DONE_IN, terminated(119)), Trouble.SCRIPT, "exit code 119", 119),
        (pod(terminated(1, message=REPORTED)), Trouble.REFUSED, "no such object", None),
        (pod(terminated(137, "OOMKilled")), Trouble.OUR, "stage-in ended with exit code 137", None),
        (pod(terminated(137, "ContainerStatusUnknown")), Trouble.OUR, "before the script started", None),
        (
            pod(
                DONE_IN,
                terminated(),
                terminated(1, message=Report(trouble=Trouble.QUOTA, message="full").as_message()),
            ),
            Trouble.QUOTA,
            "full",
            None,
        ),
        (pod(DONE_IN, terminated(), terminated(137, "OOMKilled")), Trouble.OUR, "stage-out ended", None),
        # Evicted: by the kubelet, by the API, by the node's end.
        (
            pod(DONE_IN, terminated(137), reason="Evicted", message="low on memory"),
            Trouble.LOST,
            "low on memory",
            None,
        ),
        (
            pod(DONE_IN, waiting(), reason="Evicted", message="low on memory"),
            Trouble.OUR,
            "low on memory",
            None,
        ),
        (pod(DONE_IN, terminated(143), conditions=[EVICTED]), Trouble.LOST, "by a drain", None),
        (pod(running(), conditions=[EVICTED]), Trouble.OUR, "by a drain", None),
        (pod(DONE_IN, terminated(), running(), conditions=[EVICTED]), Trouble.OUR, "by a drain", None),
        # The status of a pod whose node is gone is an old one.
        (pod(running(), conditions=[COLLECTED]), Trouble.LOST, "no node", None),
        (pod(waiting(), node="", conditions=[COLLECTED]), Trouble.OUR, "no node", None),
    ],
)
def test_why_a_run_failed(pod_: Body, trouble: Trouble, words: str, code: int | None) -> None:
    pod_["status"]["phase"] = "Failed"
    found = observed.state(job({"Failed": {"reason": "BackoffLimitExceeded"}}), pod_)
    assert (found.phase, found.trouble, found.exit_code) == (Phase.DONE, trouble, code)
    assert words in (found.message or "")


def test_a_pod_that_nobody_saw_leaves_the_outcome_unknown() -> None:
    failed = job({"Failed": {"reason": "BackoffLimitExceeded", "message": "Job has reached the limit"}})
    assert observed.state(failed, None).trouble is Trouble.LOST
    policy = job(
        {"Failed": {"reason": "PodFailurePolicy", "message": "Pod ns/x has condition DisruptionTarget"}}
    )
    assert "DisruptionTarget" in (observed.state(policy, None).message or "")
    assert observed.state(job(), None, gone=True).trouble is Trouble.LOST
    assert observed.state(job(), pod(waiting(), node=""), gone=True).trouble is Trouble.OUR


def test_our_own_decision_counts_when_the_job_has_ended() -> None:
    end = End(Trouble.TIMEOUT, "killed: it ran longer than 5 s", STARTED)
    killed = pod(DONE_IN, terminated(137), phase="Failed")
    assert observed.state(job(end=end), killed).phase is Phase.SETTLING
    found = observed.state(job({"Failed": {"reason": "DeadlineExceeded"}}, end), None)
    assert found == RunState(
        "cat-1", Phase.DONE, Trouble.TIMEOUT, "killed: it ran longer than 5 s", None, STARTED, FINISHED
    )
    # It was done before it could be ended.
    assert observed.state(job({"Complete": {}}, end), None).trouble is None


def test_jobs_that_kueue_suspends_are_held() -> None:
    held = observed.state(job(spec={"suspend": True}), None)
    assert (held.phase, held.held) == (Phase.SUBMITTED, True)
    cancelled = observed.state(job(end=End(Trouble.CANCELLED, "cancelled"), spec={"suspend": True}), None)
    assert (cancelled.phase, cancelled.trouble) == (Phase.DONE, Trouble.CANCELLED)


def test_the_kubelets_words_when_there_is_no_hope() -> None:
    assert observed.hopeless(pod(DONE_IN, waiting())) is None
    words = observed.hopeless(pod(DONE_IN, waiting("ErrImagePull", "failed to resolve x: not found")))
    assert words == "ErrImagePull: failed to resolve x: not found"


def test_no_phase_is_left_out_and_none_told_twice() -> None:
    first = RunState("cat-1", Phase.SUBMITTED)
    done = RunState("cat-1", Phase.DONE, None, None, 0, STARTED, FINISHED)
    assert [each.phase for each in steps(first, done)] == [Phase.RUNNING, Phase.SETTLING, Phase.DONE]
    assert steps(None, done) == [done]
    assert steps(done, done) == []
    refused = RunState("cat-1", Phase.DONE, Trouble.REFUSED, "no")
    assert steps(first, refused) == [refused]
    assert steps(done, RunState("cat-1", Phase.RUNNING, started=STARTED)) == []
    held = RunState("cat-1", Phase.SUBMITTED, held=True)
    assert steps(first, held) == [held]


def test_runs_that_wait_are_counted() -> None:
    runs = Runs()
    runs.put(job())
    assert runs.waiting() == (1, {})
    runs.put_pod(pod(waiting(), node=""))
    assert runs.waiting() == (1, {})
    known = runs.get("cat-1")
    assert known is not None
    known.pod = pod(waiting())
    assert runs.waiting() == (0, {})
    runs.put({**job(spec={"suspend": True})})
    assert runs.waiting() == (0, {"": 1})


def test_a_second_pod_does_not_take_the_place_of_the_first() -> None:
    runs = Runs()
    first, second = pod(DONE_IN, running()), pod(running())
    second["metadata"]["uid"] = "other"
    assert runs.put_pod(first) is None  # before its Job
    assert runs.put(job()).pod == first
    assert runs.put_pod(second) is None
    known = runs.get("cat-1")
    assert known is not None
    assert known.pod == first


# Nodes.


def node(
    name: str, labels: dict[str, str] | None = None, taints: list[Body] | None = None, **spec: Any
) -> Body:
    """A Node as kubeadm's clusters have it."""
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": {"podCIDR": "10.244.0.0/24", **({"taints": taints} if taints else {}), **spec},
        "status": {
            "allocatable": {"cpu": "3920m", "memory": "16051200Ki", "pods": "110"},
            "capacity": {"cpu": "4", "memory": "16384000Ki", "pods": "110"},
            "conditions": [
                {"type": "MemoryPressure", "status": "False"},
                {"type": "DiskPressure", "status": "True"},
                {"type": "Ready", "status": "True"},
            ],
        },
    }


CONTROL = {"node-role.kubernetes.io/control-plane": ""}
TAINT = [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]


def read(*items: Body) -> list[Node]:
    return [nodes.node(item, {}, {}) for item in items]


def test_a_node_of_the_api() -> None:
    found = nodes.node(node("w1"), {"w1": (500, 2**30)}, {"w1": (250, 2**29)})
    assert (found.cpu.capacity, found.cpu.schedulable, found.cpu.free) == (3920, 3420, 3670)
    assert found.memory.capacity == 16051200 * 1024
    assert (found.ready, found.conditions) == (True, {"MemoryPressure": False, "DiskPressure": True})
    # Without metrics-server what was asked for counts as used.
    assert nodes.node(node("w1"), {"w1": (500, 2**30)}, None).cpu.used == 500


def test_control_plane_nodes_count_when_there_are_no_others() -> None:
    control, worker = node("cp", CONTROL, TAINT), node("w1")
    assert [each.name for each in workers(read(control, worker))] == ["w1"]
    assert [each.name for each in workers(read(control))] == ["cp"]
    assert schedulable(read(control)) == []  # its taint keeps work away
    assert [each.name for each in schedulable(read(node("cp", CONTROL)))] == ["cp"]  # k3s, kind with one node
    assert [each.name for each in schedulable(read(worker, node("w2", unschedulable=True)))] == ["w1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("250m", 250), ("2", 2000), ("1.5", 1500), ("123456789n", 124), ("1k", 1_000_000), ("nonsense", 0)],
)
def test_cpu(text: str, expected: int) -> None:
    assert nodes.cpu(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("64Mi", 2**26), ("1G", 10**9), ("128974848", 128974848), ("1e3", 1000)]
)
def test_memory(text: str, expected: int) -> None:
    assert nodes.memory(text) == expected


def test_what_a_pod_asks_for_is_the_larger_of_its_start_and_its_stay() -> None:
    def container(cpu: str, **more: Any) -> Body:
        return {"resources": {"requests": {"cpu": cpu, "memory": "10Mi"}}, **more}

    spec = {
        "initContainers": [container("500m"), container("100m", restartPolicy="Always")],
        "containers": [container("50m")],
    }
    assert nodes.requests({"spec": spec}) == (500, 20 * 2**20)
    limited = {"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}
    assert nodes.requests({"spec": limited}) == (1000, 2**30)


def test_metrics() -> None:
    usage = {"metadata": {"name": "w1"}, "usage": {"cpu": "356837n", "memory": "1234Ki"}}
    assert nodes.in_use([usage]) == {"w1": (1, 1234 * 1024)}
    assert json.loads(End(Trouble.OUR, "x").as_text())["trouble"] == "ours"


def test_a_decision_that_the_job_does_not_carry_out_yet() -> None:
    end = End(Trouble.TIMEOUT, "killed: it ran longer than 1 s", STARTED)
    assert observed.half_ended(job()) is None
    assert observed.half_ended(job(end=end)) == end
    assert observed.half_ended(job(end=end, spec={"activeDeadlineSeconds": 0})) is None
