"""The real program with a real cluster as its engine: uploads, jobs, logs, a server that is killed; defects by name.

The server runs on this machine; pods reach its S3 server at the address that they know this machine by.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from minio import Minio

from tests import computing, server
from tests.cluster.cluster import Cluster
from tests.server import Server

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

PATIENCE = 300


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def running(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose ports stay the same over its starts, as pods know them."""
    prefix = f"oscar-{uuid.uuid4().hex[:8]}"
    settings = {
        "OSCAR_ENGINE": "kubernetes",
        "OSCAR_HOST": kubernetes.host,
        "OSCAR_SERVICE_PORT": str(free_port(kubernetes.host)),
        "OSCAR_S3_PORT": str(free_port(kubernetes.host)),
        "OSCAR_SERVICES_NAMESPACE": prefix,
        "OSCAR_IMAGE": computing.SERVER_IMAGE,
        "KUBECONFIG": str(kubernetes.kubeconfig),
    }
    with server.running(tmp_path_factory.mktemp("kubernetes") / "data", **settings) as started:
        yield started
    names = kubernetes.kubectl("get", "namespaces", "-o", "name").split()
    for name in names:
        if name.startswith(f"namespace/{prefix}"):
            kubernetes.kubectl("delete", name, "--wait=false")


@pytest.fixture
def client(running: Server) -> Iterator[httpx2.Client]:
    with http(running) as client:
        yield client


def http(running: Server) -> httpx2.Client:
    return httpx2.Client(base_url=running.endpoint, auth=(running.user, running.password), timeout=90)


def service(client: httpx2.Client, script: str, **fields: Any) -> str:
    name = f"s{uuid.uuid4().hex[:8]}"
    definition = {
        "name": name,
        "image": computing.BUSYBOX,
        "script": script,
        "cpu": "50m",
        "memory": "64Mi",
        "log_level": "CRITICAL",
        **fields,
    }
    answer = client.post("/system/services", json=definition)
    assert answer.status_code == 201, answer.text
    return name


def accepted(client: httpx2.Client, name: str, body: bytes = b"{}") -> str:
    answer = client.post(f"/job/{name}", content=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["job_id"])


def job(client: httpx2.Client, name: str, job_id: str) -> dict[str, Any]:
    found = client.get(f"/system/jobs/{name}/{job_id}").json()
    assert isinstance(found, dict)
    return found


def until(true: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.3)
    return found


def ended(client: httpx2.Client, name: str, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = until(
        lambda: (its := job(client, name, job_id))["status"] in {"Succeeded", "Failed"} and its
    )
    return found


def objects(running: Server, client: httpx2.Client) -> Minio:
    provider = client.get("/system/config").json()["minio_provider"]
    return Minio(
        running.s3.removeprefix("http://"), provider["access_key"], provider["secret_key"], secure=False
    )


def test_an_upload_runs_a_pod_whose_output_and_log_are_kept(
    running: Server, client: httpx2.Client, tmp_path: Path
) -> None:
    bucket = f"b{uuid.uuid4().hex[:8]}"
    place = {"storage_provider": "minio.default"}
    name = service(
        client,
        'echo "got $STORAGE_OBJECT_KEY"\ntr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/out.txt"',
        input=[place | {"path": f"{bucket}/in"}],
        output=[place | {"path": f"{bucket}/out"}],
        log_level="INFO",
    )
    store = objects(running, client)
    (tmp_path / "note").write_text("some words\n")
    store.fput_object(bucket, "in/two  spaces.txt", str(tmp_path / "note"))
    until(lambda: any(store.list_objects(bucket, "out/")))
    assert store.get_object(bucket, "out/out.txt").read() == b"SOME WORDS\n"
    jobs = until(lambda: client.get(f"/system/logs/{name}").json()["jobs"])
    (job_id,) = jobs
    assert ended(client, name, job_id)["status"] == "Succeeded"
    log = client.get(f"/system/logs/{name}/{job_id}").text
    assert "got in/two  spaces.txt" in log
    assert f"{bucket}/out/out.txt" in log


def test_defect_1_a_failing_script_is_a_failed_job(client: httpx2.Client) -> None:
    name = service(client, "echo oh dear\nexit 7")
    found = ended(client, name, accepted(client, name))
    assert (found["status"], found["exit_code"], found["reason"]) == ("Failed", 7, "script")


def test_defect_2_the_log_is_there_while_the_script_runs(client: httpx2.Client) -> None:
    name = service(client, "echo first words\nsleep 20")
    job_id = accepted(client, name)
    until(lambda: "first words" in client.get(f"/system/logs/{name}/{job_id}").text)
    assert job(client, name, job_id)["status"] == "Running"
    assert ended(client, name, job_id)["status"] == "Succeeded"


def test_defect_3_a_job_is_tried_again_and_can_be_run_again(client: httpx2.Client) -> None:
    name = service(client, "echo tried; exit 1", retry={"attempts": 1, "delay": 1})
    job_id = accepted(client, name)
    found = ended(client, name, job_id)
    assert (found["state"], found["attempt"]) == ("dead", 2)
    again = client.post(f"/system/jobs/{name}/{job_id}/rerun")
    assert again.status_code == 201, again.text


def test_defect_7_a_large_body_arrives_whole(client: httpx2.Client) -> None:
    name = service(client, 'wc -c < "$INPUT_FILE_PATH"; head -c 24 "$INPUT_FILE_PATH"')
    body = b'"two  spaces * $HOME ' + b"x" * 2_000_000 + b'"'
    job_id = accepted(client, name, body)
    assert ended(client, name, job_id)["status"] == "Succeeded"
    log = client.get(f"/system/logs/{name}/{job_id}").text
    assert str(len(body)) in log
    assert '"two  spaces * $HOME xxx' in log


def test_defects_20_and_21_a_list_of_jobs_asks_the_cluster_nothing(
    client: httpx2.Client, kubernetes: Cluster
) -> None:
    name = service(client, "true")
    jobs = [accepted(client, name) for _ in range(5)]
    for job_id in jobs:
        assert ended(client, name, job_id)["status"] == "Succeeded"
    # Their pods are gone, as they are removed once their end is recorded; nothing looks suspended for that.
    until(lambda: not kubernetes.get("jobs", "-A", "-l", f"oscar_service={name}")["items"])
    listed = client.get(f"/system/logs/{name}").json()["jobs"]
    assert {each["status"] for each in listed.values()} == {"Succeeded"}
    assert set(listed) == set(jobs)


def test_an_image_that_is_missing_fails_the_job_in_the_kubelets_words(client: httpx2.Client) -> None:
    name = service(client, "true", image="localhost/missing:1")
    job_id = accepted(client, name)
    found = until(
        lambda: (
            (its := job(client, name, job_id))["message"] and "localhost/missing:1" in its["message"] and its
        )
    )
    assert found["reason"] == "ours"
    client.post(f"/system/jobs/{name}/{job_id}/cancel")


def test_status_and_info_are_the_clusters(client: httpx2.Client, kubernetes: Cluster) -> None:
    nodes = kubernetes.get("nodes")["items"]
    status = client.get("/system/status").json()["cluster"]
    assert [each["name"] for each in status["nodes"]] == [each["metadata"]["name"] for each in nodes]
    info = client.get("/system/info").json()
    assert info["kubernetes_version"].startswith("v1.")


def test_a_server_that_is_killed_loses_nothing_and_runs_nothing_twice(
    running: Server, client: httpx2.Client, kubernetes: Cluster
) -> None:
    bucket = f"b{uuid.uuid4().hex[:8]}"
    name = service(
        client,
        'echo "begun $JOB_UUID"\nsleep 3\necho "$JOB_UUID" > "$TMP_OUTPUT_DIR/$JOB_UUID"',
        output=[{"storage_provider": "minio.default", "path": f"{bucket}/out"}],
    )
    jobs = [accepted(client, name) for _ in range(15)]
    for _ in range(3):
        # Somewhere between being submitted, running and being settled.
        time.sleep(4)
        running.kill()
        running.start()
    with http(running) as again:
        for job_id in jobs:
            found = ended(again, name, job_id)
            assert (found["status"], found["attempt"]) == ("Succeeded", 1), found
            log = again.get(f"/system/logs/{name}/{job_id}").text
            assert log.count(f"begun {job_id}") == 1
        stored = {each.object_name for each in objects(running, again).list_objects(bucket, "out/")}
        assert stored == {f"out/{job_id}" for job_id in jobs}
        until(lambda: not kubernetes.get("jobs", "-A", "-l", f"oscar_service={name}")["items"])
