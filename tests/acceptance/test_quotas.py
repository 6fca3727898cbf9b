"""Quotas and allowed images in the real program: both processes and a restart keep them, the command line sets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import httpx2
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from oscar_python.client import Client

from tests.server import Server, running

MIB = 1024 * 1024
USER = "ann@example.org"
EXCEEDED = "XMinioAdminBucketQuotaExceeded"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with defaults for users: two buckets of 1 MiB, half a core."""
    folder = tmp_path_factory.mktemp("quotas") / "data"
    with running(
        folder,
        MINIO_QUOTA_ENABLED="true",
        OSCAR_QUOTA_BUCKETS="2",
        OSCAR_QUOTA_BUCKET_STORAGE="1Mi",
        OSCAR_QUOTA_CPU="500m",
    ) as started:
        yield started


def ask(server: Server, method: str, path: str, **more: Any) -> httpx2.Response:
    return httpx2.request(
        method, server.endpoint + path, auth=(server.user, server.password), timeout=60, **more
    )


def service(server: Server, name: str, **fields: Any) -> httpx2.Response:
    definition = {"name": name, "image": "none", "script": "true", "owner": USER, "cpu": "0.1", **fields}
    return ask(server, "POST", "/system/services", json=definition)


def output(bucket: str) -> dict[str, str]:
    return {"storage_provider": "minio", "path": f"{bucket}/out"}


def s3(server: Server) -> Any:
    keys = ask(server, "GET", "/system/config").json()["minio_provider"]
    return boto3.client(
        "s3",
        endpoint_url=server.s3,
        region_name=keys["region"],
        aws_access_key_id=keys["access_key"],
        aws_secret_access_key=keys["secret_key"],
        config=Config(retries={"max_attempts": 1, "mode": "standard"}, max_pool_connections=16),
    )


def put(client: Any, bucket: str, key: str, size: int) -> str:
    try:
        client.put_object(Bucket=bucket, Key=key, Body=bytes(size))
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


def oscar(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OSCAR_", "MINIO_"))}
    return subprocess.run(
        [sys.executable, "-m", "oscar", *words],
        check=False,
        capture_output=True,
        text=True,
        env=kept | {"OSCAR_DATA": str(server.data)},
        timeout=90,
    )


def test_defaults_of_the_settings_hold_in_both_processes(server: Server) -> None:
    assert service(server, "makes", output=[output("ann-one"), output("ann-two")]).status_code == 201
    refused = service(server, "more", output=[output("ann-three")])
    assert (refused.status_code, refused.json()["code"]) == (403, "quota_exceeded")
    assert service(server, "large", cpu="1").json()["field"] == "cpu"
    client = s3(server)
    with ThreadPoolExecutor(16) as threads:
        codes = list(threads.map(lambda n: put(client, "ann-one", f"k{n}", 300_000), range(16)))
    assert (codes.count(""), codes.count(EXCEEDED)) == (3, 13)
    shown = ask(server, "GET", "/system/buckets/ann-one").json()
    assert shown["storage_quota"] == {"max": "1Mi", "max_bytes": MIB, "source": "default"}
    assert shown["storage_usage"]["used_bytes"] == 900_000
    # A presigned address is no way around it.
    link = ask(
        server,
        "POST",
        "/system/buckets/ann-one/presign",
        json={"object_key": "up", "operation": "upload", "expires_in": 7 * 24 * 3600},
    ).json()
    answer = httpx2.request(link["method"], link["url"], content=bytes(200_000), headers=link["headers"])
    assert (answer.status_code, EXCEEDED in answer.text) == (400, True)
    # The administrator's own buckets have no limit.
    assert ask(server, "POST", "/system/buckets", json={"bucket_name": "free"}).status_code == 201
    assert put(client, "free", "large", 2 * MIB) == ""


def test_the_command_line_sets_them_and_a_restart_keeps_them(server: Server) -> None:
    assert service(server, "cli", output=[output("ann-one")]).status_code == 201
    done = oscar(server, "quota", "set", USER, "--bucket-storage", "3Mi", "--cpu", "none", "--volumes", "1")
    assert done.returncode == 0, done.stderr
    assert "no limit" in done.stdout
    assert "3Mi" in done.stdout
    wrong = oscar(server, "quota", "set", USER, "--memory", "much", "--json")
    assert wrong.returncode == 3
    assert json.loads(wrong.stderr)["field"] == "memory"
    assert oscar(server, "quota", "set", USER).returncode == 2
    images = {"allowed_image_repositories": ["ghcr.io/grycap", "none"]}
    assert ask(server, "PUT", "/system/config", json=images).status_code == 200
    server.kill()
    server.start()
    said = json.loads(oscar(server, "quota", "get", USER, "--json").stdout)
    assert said["resources"]["cpu"] == {"used": 0}
    assert said["minio"]["storage_per_bucket"] == {"max": "3Mi"}
    assert said["volumes"]["volumes"]["max"] == "1"
    assert put(s3(server), "ann-one", "now", 2 * MIB) == ""
    assert put(s3(server), "ann-one", "then", 2 * MIB) == EXCEEDED
    assert service(server, "evil", image="evil.io/ghcr.io/grycap/x").json()["field"] == "image"
    assert "cluster_admin" in oscar(server, "quota", "get").stdout


def test_the_public_python_client_knows_the_form(server: Server) -> None:
    options = {
        "cluster_id": "c",
        "endpoint": server.endpoint,
        "user": server.user,
        "password": server.password,
        "ssl": False,
    }
    client = Client(options)
    somebody = "bob@example.org"
    assert client.get_own_quota().json()["user_id"] == "cluster_admin"
    assert client.update_user_quota(somebody, "1500", "2147483648").status_code == 200
    resources = client.get_user_quota(somebody).json()["resources"]
    assert resources["cpu"] == {"max": 1500, "used": 0}
    assert resources["memory"] == {"max": 2 * 1024**3, "used": 0}
    assert service(server, "federated").status_code == 201
    assert client.get_federation("federated").json() == {"topology": "none", "members": []}


def test_the_log_outlives_a_restart_and_holds_no_secret(server: Server, tmp_path: Path) -> None:
    keys = ask(server, "GET", "/system/config").json()["minio_provider"]
    ask(server, "POST", "/run/there-is-none", headers={"X-Request-Id": "seen"})
    httpx2.post(f"{server.endpoint}/job/x", headers={"Authorization": "Bearer planted-token-of-a-user"})
    server.stop()
    server.start()
    said = ask(server, "GET", "/system/logs", params={"all": "true", "tail": 10_000}).json()["logs"]
    text = "\n".join(entry["raw"] for entry in said)
    assert "POST /run/there-is-none" in text
    assert text.count("serving") >= 2
    kept = b"".join(path.read_bytes() for path in (server.data / "server-log").iterdir())
    for secret in (server.password, keys["secret_key"], "planted-token-of-a-user"):
        assert secret.encode() not in kept
    assert (server.data / "server-log").stat().st_mode & 0o077 == 0


def test_warm_workers_count_against_the_quota_of_the_services_owner(server: Server) -> None:
    quota = f"/system/quotas/user/{USER}"
    assert ask(server, "PUT", quota, json={"cpu": "500"}).status_code == 200
    for name, cpu in (("first", "0.4"), ("second", "0.2")):
        assert service(server, name, cpu=cpu, script="echo done", log_level="CRITICAL").status_code == 201
    assert ask(server, "POST", "/run/first").status_code == 200
    assert ask(server, "GET", quota).json()["resources"]["cpu"] == {"max": 500, "used": 400}
    refused = ask(server, "POST", "/run/second")
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert refused.headers["retry-after"] == "5"
    # The worker that is there serves on, whatever the others want.
    assert ask(server, "POST", "/run/first").status_code == 200
    job = ask(server, "POST", "/job/second").json()["job_id"]
    assert ask(server, "GET", f"/system/jobs/second/{job}").json()["status"] == "Suspended"
    assert ask(server, "DELETE", "/system/services/first").status_code == 204
    ended = ask(server, "GET", f"/system/jobs/second/{job}", params={"wait": "50s"}).json()
    assert ended["status"] == "Succeeded"
    assert ask(server, "POST", "/run/second").status_code == 200
    # What never fits is not a matter of waiting.
    assert ask(server, "PUT", quota, json={"cpu": "100"}).status_code == 200
    refused = ask(server, "POST", "/run/second")
    assert (refused.status_code, refused.json()["field"]) == (400, "cpu")
    assert ask(server, "PUT", quota, json={"cpu": "500"}).status_code == 200
    assert ask(server, "DELETE", "/system/services/second").status_code == 204
