"""Jobs of users where Kueue's own controller works: what it admits, what it holds back, and what it takes back."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests import computing, on_cluster
from tests.cluster.cluster import Cluster
from tests.on_cluster import accepted, ended, http, job, service, until
from tests.server import Server

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(900)]

USER = "ann@example.org"
QUOTA = 300
HELD_BACK = 8
"""Runs of an owner that Kueue may hold before the rest waits in our queue."""
AT_ONCE = 32
"""How many may be on their way to the cluster before it is known that it holds them."""


@pytest.fixture(scope="module")
def running(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    kubernetes.add("kueue")
    folder = tmp_path_factory.mktemp("kueue")
    with on_cluster.running(kubernetes, folder, KUEUE_ENABLE="true", OSCAR_QUOTA_CPU=f"{QUOTA}m") as started:
        yield started
    for found in kubernetes.get("clusterqueues")["items"]:
        if found["metadata"]["name"].startswith(started.settings["OSCAR_SERVICES_NAMESPACE"]):
            kubernetes.kubectl("delete", "clusterqueue", found["metadata"]["name"], "--wait=false")


@pytest.fixture
def client(running: Server) -> Iterator[httpx2.Client]:
    with http(running) as client:
        yield client


@pytest.fixture
def place(running: Server, client: httpx2.Client, kubernetes: Cluster) -> str:
    """The user's namespace, which is there when he has a service."""
    service(client, "true", owner=USER)
    return tenant(kubernetes, running, "ann")


def tenant(kubernetes: Cluster, running: Server, user: str) -> str:
    """The namespace of a user whose id begins so."""
    prefix = running.settings["OSCAR_SERVICES_NAMESPACE"]
    names = (each["metadata"]["name"] for each in kubernetes.get("namespaces")["items"])
    return str(next(each for each in names if each.startswith(f"{prefix}-{user}")))


def suspended(kubernetes: Cluster, name: str) -> list[bool]:
    """Of each Job of a service, whether Kueue holds it."""
    found = kubernetes.get("jobs", "-A", "-l", f"oscar_service={name}")["items"]
    return [bool(each["spec"].get("suspend")) for each in found]


def others(namespace: str, cpu: str) -> dict[str, Any]:
    """Work in the owner's queue that the platform knows nothing of."""
    container = {
        "name": "main",
        "image": computing.BUSYBOX,
        "command": ["sleep", "900"],
        "resources": {"requests": {"cpu": cpu, "memory": "8Mi"}},
    }
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"other-{uuid.uuid4().hex[:8]}",
            "namespace": namespace,
            "labels": {"kueue.x-k8s.io/queue-name": "oscar"},
        },
        "spec": {"suspend": True, "template": {"spec": pod}},
    }


def test_a_job_is_admitted_by_the_owners_queue(
    client: httpx2.Client, kubernetes: Cluster, place: str
) -> None:
    name = service(client, "sleep 5; echo ran", owner=USER)
    job_id = accepted(client, name)
    assert cpu_of(kubernetes, place) == f"{QUOTA}m"
    workload = until(lambda: kubernetes.get("workloads.kueue.x-k8s.io", "-n", place)["items"])
    assert {each["spec"]["queueName"] for each in workload} == {"oscar"}
    until(lambda: any(admitted(each) for each in kubernetes.get("workloads", "-n", place)["items"]))
    assert ended(client, name, job_id)["status"] == "Succeeded"
    # What the administrator runs is not queued.
    own = service(client, "sleep 3")
    its = accepted(client, own)
    made = until(lambda: kubernetes.get("jobs", "-A", "-l", f"oscar_service={own}")["items"])
    assert "kueue.x-k8s.io/queue-name" not in made[0]["metadata"]["labels"]
    assert ended(client, own, its)["status"] == "Succeeded"


def cpu_of(kubernetes: Cluster, queue: str) -> str:
    """The CPU that a ClusterQueue has."""
    group = kubernetes.get("clusterqueue", queue)["spec"]["resourceGroups"][0]
    return str({each["name"]: each["nominalQuota"] for each in group["flavors"][0]["resources"]}["cpu"])


def admitted(workload: dict[str, Any]) -> bool:
    conditions = workload.get("status", {}).get("conditions", [])
    return any(each["type"] == "Admitted" and each["status"] == "True" for each in conditions)


def test_jobs_over_the_queues_quota_are_suspended_and_the_rest_waits_here(
    running: Server, client: httpx2.Client, kubernetes: Cluster
) -> None:
    """Others have taken the owner's queue, so that the platform's own count lets through what Kueue doesn't."""
    user = f"cat-{uuid.uuid4().hex[:8]}"
    assert client.put(f"/system/quotas/user/{user}", json={"cpu": "2000"}).is_success
    name = service(client, "true", owner=user, cpu="20m")
    assert ended(client, name, accepted(client, name))["status"] == "Succeeded"
    place = tenant(kubernetes, running, "cat")
    taken = others(place, "2000m")
    kubernetes.apply([taken])
    meta = taken["metadata"]
    until(lambda: not kubernetes.get("job", meta["name"], "-n", place)["spec"].get("suspend"))
    most = HELD_BACK + AT_ONCE
    jobs = [accepted(client, name) for _ in range(most + 6)]

    def held() -> list[str]:
        return [each for each in jobs if job(client, name, each)["status"] == "Suspended"]

    until(lambda: len(held()) >= HELD_BACK)
    # The cluster is given no more, and another owner's job goes past them.
    other = service(client, "true")
    assert ended(client, other, accepted(client, other))["status"] == "Succeeded"
    assert HELD_BACK <= len(suspended(kubernetes, name)) <= most
    assert all(suspended(kubernetes, name))
    # One that is held can be cancelled.
    given_up = held()[0]
    assert client.post(f"/system/jobs/{name}/{given_up}/cancel").is_success
    assert ended(client, name, given_up)["state"] == "cancelled"
    assert len(suspended(kubernetes, name)) <= most
    kubernetes.kubectl("delete", "job", meta["name"], "-n", place)
    for each in jobs:
        if each != given_up:
            found = ended(client, name, each)
            assert (found["status"], found["attempt"]) == ("Succeeded", 1), found


def test_a_running_job_from_which_kueue_takes_its_place_is_interrupted(
    client: httpx2.Client, kubernetes: Cluster, place: str
) -> None:
    name = service(client, "echo begun; sleep 600", owner=USER)
    job_id = accepted(client, name)
    until(lambda: "begun" in client.get(f"/system/logs/{name}/{job_id}").text)
    stop(kubernetes, place, "HoldAndDrain")
    try:
        found = ended(client, name, job_id)
        assert (found["status"], found["reason"], found["attempt"]) == ("Failed", "lost", 1), found
        assert "suspended" in found["message"]
        waits = accepted(client, name)
        until(lambda: job(client, name, waits)["status"] == "Suspended")
        assert client.post(f"/system/jobs/{name}/{waits}/cancel").is_success
        assert ended(client, name, waits)["state"] == "cancelled"
    finally:
        stop(kubernetes, place, "None")
    quick = service(client, "echo again", owner=USER)
    assert ended(client, quick, accepted(client, quick))["status"] == "Succeeded"


def stop(kubernetes: Cluster, queue: str, policy: str) -> None:
    kubernetes.kubectl(
        "patch", "clusterqueue", queue, "--type=merge", "-p", f'{{"spec": {{"stopPolicy": "{policy}"}}}}'
    )


def test_a_changed_quota_is_the_queues(client: httpx2.Client, kubernetes: Cluster, place: str) -> None:
    name = service(client, "sleep 2", owner=USER)
    first = accepted(client, name)
    assert client.put(f"/system/quotas/user/{USER}", json={"cpu": "250"}).is_success
    until(lambda: cpu_of(kubernetes, place) == "250m")
    assert ended(client, name, first)["status"] == "Succeeded"


def test_warm_workers_and_replicas_take_of_the_quota(client: httpx2.Client, kubernetes: Cluster) -> None:
    user = f"bob-{uuid.uuid4().hex[:8]}"

    def used() -> int:
        shown = client.get(f"/system/quotas/user/{user}").json()
        return int(shown["resources"]["cpu"]["used"])

    calls = service(client, "echo called", owner=user, cpu="100m", synchronous={"min_scale": 1})
    assert client.post(f"/run/{calls}", content="{}").text == "called\n"
    until(lambda: used() == 100)
    script = 'exec httpd -f -p "$OSCAR_BIND_ADDRESS:$PORT" -h /tmp'
    web = service(client, script, owner=user, cpu="100m", expose={"api_port": 8080, "max_scale": 1})
    until(lambda: used() == 200)
    large = service(client, "true", owner=user, cpu="200m")
    waits = accepted(client, large)
    until(lambda: job(client, large, waits)["status"] == "Suspended")
    # It is not Kueue that holds it: the cluster was not asked.
    assert suspended(kubernetes, large) == []
    assert client.post(f"/system/services/{web}/stop").is_success
    assert ended(client, large, waits)["status"] == "Succeeded"
    assert used() == 100
