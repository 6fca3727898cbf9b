"""The public client of OSCAR, `oscar-python` from PyPI, unmodified against the real server."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import requests
from oscar_python.client import Client
from oscar_python.client_anon import AnonymousClient

from tests.server import Server

SCRIPT = """#!/bin/sh
tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/$(basename "$INPUT_FILE_PATH").out"
echo "seen $SIZE"
"""


@pytest.fixture
def client(server: Server) -> Client:
    return Client(
        {
            "cluster_id": "my-cluster",
            "endpoint": server.endpoint,
            "user": server.user,
            "password": server.password,
            "ssl": False,
        }
    )


def fdl(folder: Path, name: str) -> str:
    (folder / "script.sh").write_text(SCRIPT)
    file = folder / "service.yaml"
    file.write_text(
        "functions:\n  oscar:\n  - my-cluster:\n"
        f"      name: {name}\n      image: busybox\n      cpu: 0.5\n      memory: 64Mi\n      script: script.sh\n"
        "      environment:\n        Variables:\n          SIZE: large\n"
        f"      input:\n      - storage_provider: minio.default\n        path: {name}/in\n"
        f"      output:\n      - storage_provider: minio.default\n        path: {name}/out\n"
    )
    return str(file)


def finished(client: Client, name: str, count: int) -> dict[str, Any]:
    """The service's jobs after their end; its client can't wait, so that is asked of the server here."""
    jobs = client.list_jobs(name).json()["jobs"]
    assert len(jobs) == count
    for job in jobs:
        where = f"{client.endpoint}/system/jobs/{name}/{job}?wait=60s"
        requests.get(where, auth=(client.user, client.password), timeout=90).raise_for_status()
    found: dict[str, Any] = client.list_jobs(name).json()["jobs"]
    return found


def status_of(error: requests.HTTPError) -> int:
    assert error.response is not None
    return error.response.status_code


def test_the_life_of_a_service(client: Client, tmp_path: Path) -> None:
    file = fdl(tmp_path, "oscar-python")
    assert client.create_service(file).status_code == 201
    with pytest.raises(ValueError, match="already present"):
        client.create_service(file)
    found = client.get_service("oscar-python").json()
    assert (found["cpu"], found["memory"], found["environment"]["variables"]) == (
        "0.5",
        "64Mi",
        {"SIZE": "large"},
    )
    assert len(found["token"]) == 64
    assert "oscar-python" in [service["name"] for service in client.list_services().json()]

    # A synchronous call with text, with a file, and as somebody who has only the token.
    assert base64.b64decode(client.run_service("oscar-python", input="hello").text) == b"HELLO"
    (tmp_path / "input.bin").write_bytes(b"ab\x00\xff")
    client.run_service("oscar-python", input=str(tmp_path / "input.bin"), output=str(tmp_path / "output.bin"))
    assert (tmp_path / "output.bin").read_bytes() == b"AB\x00\xff"
    anonymous = AnonymousClient({"cluster_id": "x", "endpoint": client.endpoint, "ssl": False})
    assert (
        base64.b64decode(anonymous.run_service("oscar-python", input="x", token=found["token"]).text) == b"X"
    )

    # A job, its list and its log.
    accepted = client.run_service("oscar-python", input="a job", async_call=True)
    assert accepted.status_code == 201
    [(job, facts)] = finished(client, "oscar-python", 1).items()
    assert facts["status"] == "Succeeded"
    assert {"creation_time", "start_time", "finish_time"} <= facts.keys()
    assert "seen large" in client.get_job_logs("oscar-python", job).text.splitlines()

    # Files through its storage client; an upload starts a job.
    storage = client.create_storage_client("oscar-python")
    (tmp_path / "up.txt").write_text("uploaded")
    storage.upload_file("minio.default", str(tmp_path / "up.txt"), "oscar-python/in")
    finished(client, "oscar-python", 2)
    listed = storage.list_files_from_path("minio.default", "oscar-python/out")
    keys = [entry["Key"] for entry in listed["Contents"]]
    assert "out/up.txt.out" in keys
    storage.download_file("minio.default", str(tmp_path), "oscar-python/out/up.txt.out")
    assert (tmp_path / "up.txt.out").read_text() == "UPLOADED"

    # An update keeps the token.
    assert client.update_service("oscar-python", {**found, "memory": "128Mi"}).status_code in {200, 204}
    again = client.get_service("oscar-python").json()
    assert (again["memory"], again["token"]) == ("128Mi", found["token"])

    assert client.remove_job("oscar-python", job).status_code == 204
    assert client.remove_all_jobs("oscar-python").status_code == 204
    assert client.list_jobs("oscar-python").json()["jobs"] == {}
    assert client.remove_service("oscar-python").status_code == 204
    with pytest.raises(requests.HTTPError) as gone:
        client.get_service("oscar-python")
    assert status_of(gone.value) == 404


def test_the_server(client: Client, server: Server) -> None:
    assert client.health_check().status_code == 200
    assert client.get_cluster_info().json()["version"]
    assert client.get_cluster_config().json()["minio_provider"]["endpoint"] == server.s3
    assert client.get_cluster_status().json()["cluster"]["nodes_count"] == 1


def test_buckets(client: Client) -> None:
    assert client.create_bucket("oscar-python-bucket", "private").status_code == 201
    assert "oscar-python-bucket" in [bucket["bucket_name"] for bucket in client.list_buckets().json()]
    signed = client.presign_bucket("oscar-python-bucket", "k", operation="upload", expires=60).json()
    assert requests.request(signed["method"], signed["url"], data=b"x", timeout=10).status_code == 200
    assert client.get_bucket("oscar-python-bucket").json()["objects"][0]["object_name"] == "k"
    assert client.update_bucket("oscar-python-bucket", "public").status_code in {200, 204}
    storage = client.create_storage_client()
    assert storage.list_files_from_path("minio.default", "oscar-python-bucket")["Contents"][0]["Size"] == 1
    with pytest.raises(requests.HTTPError) as full:
        client.delete_bucket("oscar-python-bucket")
    assert status_of(full.value) == 409
    emptied = requests.delete(
        f"{client.endpoint}/system/buckets/oscar-python-bucket?force=true",
        auth=(client.user, client.password),
        timeout=30,
    )
    assert emptied.status_code == 204
    client.create_bucket("oscar-python-bucket")
    assert client.delete_bucket("oscar-python-bucket").status_code == 204


def test_volumes(client: Client) -> None:
    made = client.create_volume("oscar-python-volume", "200Mi")
    assert (made.status_code, made.json()["size"]) == (201, "200Mi")
    assert "oscar-python-volume" in [volume["name"] for volume in client.list_volumes().json()]
    assert client.get_volume("oscar-python-volume").json()["lifecycle_policy"] == "retain"
    assert client.delete_volume("oscar-python-volume").status_code == 204
    with pytest.raises(requests.HTTPError) as gone:
        client.get_volume("oscar-python-volume")
    assert status_of(gone.value) == 404


def test_deployments_and_the_log_of_the_server(client: Client) -> None:
    client.create_service(
        {
            "name": "oscar-python-server",
            "image": "none",
            "script": "echo up; exec sleep 600",
            "expose": {"api_port": 8080, "min_scale": 1, "max_scale": 1},
        }
    )
    try:
        assert client.get_deployment_status("oscar-python-server").json()["state"]
        assert (
            client.get_deployment_logs("oscar-python-server").json()["service_name"] == "oscar-python-server"
        )
        assert client.get_federation("oscar-python-server").json()["topology"] == "none"
    finally:
        client.remove_service("oscar-python-server")
    assert client.get_system_logs(timestamps=True).status_code == 200


def test_metrics(client: Client) -> None:
    client.create_service(
        {"name": "oscar-python-counted", "image": "none", "script": "echo counted", "memory": "64Mi"}
    )
    try:
        before = client.get_metrics_summary().json()["totals"]["requests_count_sync"]
        for _ in range(3):
            client.run_service("oscar-python-counted", input="x")
        assert client.get_metrics_summary().json()["totals"]["requests_count_sync"] == before + 3
        metrics = client.get_service_metrics("oscar-python-counted").json()["metrics"]
        found = {each["metric"]: each["value"] for each in metrics}
        assert (found["requests-sync-per-service"], found["users-per-service"]) == (3, 1)
        for group, key in (("service", "oscar-python-counted"), ("user", "cluster_admin")):
            rows = client.get_metrics_breakdown(group_by=group).json()["items"]
            assert key in {row["key"] for row in rows}
    finally:
        client.remove_service("oscar-python-counted")


def test_every_method_is_tried() -> None:
    # Called by the client's making, but the one that asks a program `oidc-agent` and nothing of ours.
    makers = {"basic_auth_client", "oidc_agent_client", "oidc_client", "set_auth_type"}
    here = Path(__file__)
    files = (here, *(here.with_name(f"test_{name}.py") for name in ("quotas", "federation", "keycloak")))
    tried = "".join(file.read_text() for file in files)
    methods = {name for name in vars(Client) if not name.startswith("_")}
    assert {name for name in methods if f"client.{name}(" not in tried} == makers


def test_failures_are_told(client: Client) -> None:
    with pytest.raises(requests.HTTPError) as refused:
        client.create_service(
            {"name": "oscar-python-bad", "image": "busybox", "script": "x", "memory": "abc"}
        )
    assert status_of(refused.value) == 400
    assert refused.value.response is not None
    assert json.loads(refused.value.response.text)["field"] == "memory"
    client.create_service({"name": "oscar-python-fails", "image": "busybox", "script": "exit 3"})
    client.run_service("oscar-python-fails", input="x", async_call=True)
    [(_, facts)] = finished(client, "oscar-python-fails", 1).items()
    assert facts["status"] == "Failed"
    client.remove_service("oscar-python-fails")
