"""The real program with a real cluster as its engine: uploads, jobs, logs, a server that is killed; defects by name.

The server runs on this machine; pods reach its S3 server at the address that they know this machine by.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests import on_cluster
from tests.acceptance.calls import SPAN, one_at_a_time
from tests.cluster.cluster import Cluster
from tests.on_cluster import accepted, ended, http, job, objects, service, until
from tests.server import Server

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

NODE = {"apiVersion": "v1", "kind": "Node"}


@pytest.fixture(scope="module")
def running(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with on_cluster.running(kubernetes, tmp_path_factory.mktemp("kubernetes")) as started:
        yield started


@pytest.fixture
def client(running: Server) -> Iterator[httpx2.Client]:
    with http(running) as client:
        yield client


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


def ids(kubernetes: Cluster, kind: str, namespace: str) -> set[str]:
    return {each["metadata"]["uid"] for each in kubernetes.get(kind, "-n", namespace)["items"]}


def namespaces(kubernetes: Cluster, running: Server, beginning: str) -> list[str]:
    """The namespaces of users whose ids begin so."""
    prefix = running.settings["OSCAR_SERVICES_NAMESPACE"]
    found = [each["metadata"]["name"] for each in kubernetes.get("namespaces")["items"]]
    return [name for name in found if name.startswith(f"{prefix}-{beginning}")]


def test_defects_8_and_9_calls_share_a_warm_pod_one_at_a_time_and_make_nothing(
    running: Server, client: httpx2.Client, kubernetes: Cluster
) -> None:
    user = f"kim-{uuid.uuid4().hex[:8]}"
    name = service(client, SPAN, owner=user, synchronous={"min_scale": 1, "max_scale": 1})
    first = until(lambda: (got := client.post(f"/run/{name}", content="{}")).is_success and got.text.split())
    (place,) = namespaces(kubernetes, running, "kim")
    kinds = ("pods", "jobs", "secrets", "deployments")
    before = {kind: ids(kubernetes, kind, place) for kind in kinds}
    assert one_at_a_time(client, name) == {first[0]}, "all in one pod"
    assert {kind: ids(kubernetes, kind, place) for kind in kinds} == before


def test_defect_15_a_refresh_token_is_in_nothing_that_a_pod_reads(
    running: Server, client: httpx2.Client, kubernetes: Cluster
) -> None:
    user = f"lea-{uuid.uuid4().hex[:8]}"
    token, mine = f"refresh{uuid.uuid4().hex}", uuid.uuid4().hex
    name = service(
        client,
        'env; cat /oscar/config/*; echo "begun"; sleep 20',
        owner=user,
        environment={"secrets": {"refresh_token": token, "MINE": mine}},
        synchronous={"min_scale": 1},
        expose={"api_port": 8080},
    )
    job_id = accepted(client, name)
    until(lambda: "begun" in client.get(f"/system/logs/{name}/{job_id}").text)
    log = client.get(f"/system/logs/{name}/{job_id}").text
    assert (mine in log, token in log) == (True, False)
    (place,) = namespaces(kubernetes, running, "lea")
    until(lambda: len(kubernetes.get("deployments", "-n", place)["items"]) == 2)
    held = [kubernetes.get(kind, "-n", place) for kind in ("secrets", "pods", "jobs", "deployments")]
    decoded = [
        base64.b64decode(value).decode(errors="replace")
        for secret in held[0]["items"]
        for value in secret.get("data", {}).values()
    ]
    assert any(mine in text for text in decoded)
    assert not any(token in text for text in (*decoded, json.dumps(held)))


def test_defect_17_users_whose_ids_look_alike_have_namespaces_of_their_own(
    running: Server, client: httpx2.Client, kubernetes: Cluster
) -> None:
    tail = uuid.uuid4().hex[:8]
    users = [f"max.{tail}@one.example.org", f"max-{tail}@one.example.org", f"Max-{tail}@one.example.org"]
    made = {user: service(client, f"echo of {user}", owner=user) for user in users}
    for user, name in made.items():
        job_id = accepted(client, name)
        assert ended(client, name, job_id)["status"] == "Succeeded"
        assert client.get(f"/system/logs/{name}/{job_id}").text == f"of {user}\n"
    assert len(set(namespaces(kubernetes, running, "max"))) == len(users)


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


def test_control_plane_nodes_count_only_when_there_are_no_others(
    client: httpx2.Client, kubernetes: Cluster
) -> None:
    def shown() -> set[str]:
        return {each["name"] for each in client.get("/system/status").json()["cluster"]["nodes"]}

    role = "node-role.kubernetes.io/control-plane"
    (only,) = shown()
    control, worker = f"control-{uuid.uuid4().hex[:8]}", f"worker-{uuid.uuid4().hex[:8]}"
    try:
        kubernetes.apply([{**NODE, "metadata": {"name": control, "labels": {role: ""}}}])
        kubernetes.kubectl("label", "node", only, f"{role}=")
        until(lambda: shown() == {only, control})
        kubernetes.apply([{**NODE, "metadata": {"name": worker}}])
        until(lambda: shown() == {worker})
        kubernetes.kubectl("label", "node", only, f"{role}-")
        until(lambda: shown() == {only, worker})
    finally:
        kubernetes.try_kubectl("label", "node", only, f"{role}-")
        kubernetes.try_kubectl("delete", "node", control, worker)
    until(lambda: shown() == {only})


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


WEB = """mkdir -p /tmp/www; echo "here is $OSCAR_SERVICE_NAME" > /tmp/www/index.html
exec httpd -f -p "$OSCAR_BIND_ADDRESS:$PORT" -h /tmp/www
"""


@pytest.mark.long
def test_a_namespace_that_is_deleted_by_hand_comes_back_with_all_that_is_in_it(
    running: Server, client: httpx2.Client, kubernetes: Cluster
) -> None:
    user = f"eve-{uuid.uuid4().hex[:8]}"
    web = service(client, WEB, owner=user, expose={"api_port": 8080, "max_scale": 1}, image_prefetch=True)
    calls = service(client, "echo called", owner=user, synchronous={"min_scale": 1})
    long = service(client, 'echo "begun $JOB_UUID"; sleep 600', owner=user)
    shown = f"/system/services/{web}/exposed/"
    until(lambda: client.get(shown).text == f"here is {web}\n")
    assert client.post(f"/run/{calls}", content="{}").text == "called\n"
    cut = accepted(client, long)
    until(lambda: "begun" in client.get(f"/system/logs/{long}/{cut}").text)
    (place,) = namespaces(kubernetes, running, "eve")
    kubernetes.kubectl("delete", "namespace", place, "--wait=false")
    # What was running is told as lost, what comes after works as before.
    found = ended(client, long, cut)
    assert (found["status"], found["attempt"]) == ("Failed", 1), found
    after = service(client, "echo again", owner=user)
    assert ended(client, after, accepted(client, after))["status"] == "Succeeded"
    until(lambda: client.get(shown).text == f"here is {web}\n")
    until(lambda: client.post(f"/run/{calls}", content="{}").text == "called\n")
    until(lambda: kubernetes.get("daemonsets", "-n", place)["items"])
    assert kubernetes.get("networkpolicies", "-n", place)["items"]
    log = client.get(f"/system/logs/{long}/{cut}").text
    assert log.count(f"begun {cut}") == 1
