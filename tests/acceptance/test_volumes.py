"""Volumes and mounts on the real program: jobs, warm workers, the command line, a server that is killed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import server as servers
from tests.server import Server

ADMIN = "cluster_admin"


def http(server: Server) -> httpx2.Client:
    return httpx2.Client(base_url=server.endpoint, auth=(server.user, server.password), timeout=90)


def oscar(server: Server, home: Path, *words: str, code: int = 0) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OSCAR_", "MINIO_"))}
    done = subprocess.run(
        [sys.executable, "-m", "oscar", *words],
        check=False,
        capture_output=True,
        text=True,
        env=kept | {"HOME": str(home), "OSCAR_DATA": str(server.data)},
        timeout=90,
    )
    assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def create(client: httpx2.Client, name: str, script: str, **fields: Any) -> None:
    definition = {"name": name, "image": "none", "script": script, "log_level": "CRITICAL", **fields}
    answer = client.post("/system/services", json=definition)
    assert answer.status_code == 201, answer.text


def job(client: httpx2.Client, service: str) -> dict[str, Any]:
    """A job of the service, after its end."""
    accepted = client.post(f"/job/{service}", content=b"{}")
    assert accepted.status_code == 201, accepted.text
    found = client.get(accepted.headers["location"], params={"wait": "60s"}).json()
    assert isinstance(found, dict)
    return found


APPEND = 'echo line >> "$OSCAR_VOLUME_PATH/lines"; wc -l < "$OSCAR_VOLUME_PATH/lines"'


@pytest.mark.parametrize("kind", ["auto", "folder"])
def test_data_of_a_volume_outlives_jobs_the_server_and_services(tmp_path: Path, kind: str) -> None:
    with servers.running(tmp_path / "data", OSCAR_VOLUME_KIND=kind) as server:
        with http(server) as client:
            volume = {"size": "200Mi", "mount_path": "/data", "name": "kept", "lifecycle_policy": "retain"}
            create(client, "first", APPEND, volume=volume)
            assert job(client, "first")["status"] == "Succeeded"
            assert client.post("/run/first", content=b"{}").text.strip() == "2"
            assert client.delete("/system/volumes/kept").status_code == 400
        server.kill()
        server.start()
        with http(server) as client:
            assert client.post("/run/first", content=b"{}").text.strip() == "3"
            assert client.delete("/system/services/first").status_code == 204
            create(client, "second", APPEND, volume={"name": "kept", "mount_path": "/data"})
            assert client.post("/run/second", content=b"{}").text.strip() == "4"
            assert client.delete("/system/services/second").status_code == 204
            assert client.delete("/system/volumes/kept").status_code == 204
            assert client.get("/system/volumes").json() == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_a_mount_shows_the_bucket_to_jobs_and_warm_workers(server: Server) -> None:
    script = 'cd "$OSCAR_MOUNT_PATH"; ls; cat greeting 2>/dev/null; echo hello > greeting'
    with http(server) as client:
        create(
            client, "mounted", script, mount={"storage_provider": "minio", "path": "mounted-bucket/shared"}
        )
        assert job(client, "mounted")["status"] == "Succeeded"
        listed = client.get("/system/buckets/mounted-bucket").json()["objects"]
        assert [each["object_name"] for each in listed] == ["shared/greeting"]
        assert client.post("/run/mounted", content=b"{}").text.split() == ["greeting", "hello"]
        assert client.delete("/system/services/mounted", params={"data": "true"}).status_code == 204
        assert "mounted-bucket" in [each["bucket_name"] for each in client.get("/system/buckets").json()]
    secret = (server.data / "s3-secret").read_text().strip()
    for file in (server.data / "mounts").rglob("*"):
        assert not file.is_file() or secret not in file.read_text(errors="replace")


def test_replicas_of_an_exposed_service_have_volume_and_mount(server: Server) -> None:
    script = """
        echo "kept by the volume" > "$OSCAR_VOLUME_PATH/file"
        ln -sfn "$OSCAR_VOLUME_PATH" /tmp/volume; ln -sfn "$OSCAR_MOUNT_PATH" /tmp/mount
        echo "written by a replica" > "$OSCAR_MOUNT_PATH/from-replica"
        cd /tmp && exec python3 -m http.server "$PORT" --bind 127.0.0.1
    """
    with http(server) as client:
        create(
            client,
            "served",
            script,
            expose={"api_port": 8000, "min_scale": 1, "max_scale": 1, "probe_mode": "direct"},
            volume={"size": "200Mi", "mount_path": "/data"},
            mount={"storage_provider": "minio", "path": "served-bucket/shared"},
        )
        try:
            base = "/system/services/served/exposed"
            answer = client.get(f"{base}/volume/file")
            assert (answer.status_code, answer.text) == (200, "kept by the volume\n")
            assert client.get(f"{base}/mount/from-replica").text == "written by a replica\n"
        finally:
            # Replicas outlive their server.
            assert client.delete("/system/services/served").status_code == 204
        listed = client.get("/system/buckets/served-bucket").json()["objects"]
        assert [each["object_name"] for each in listed] == ["shared/from-replica"]
        assert client.delete("/system/buckets/served-bucket", params={"force": "true"}).status_code == 204
        assert client.get("/system/volumes/served").status_code == 404


def test_a_bucket_that_others_see_is_not_mounted(server: Server) -> None:
    with http(server) as client:
        body = {"bucket_name": "open-to-all", "visibility": "public"}
        assert client.post("/system/buckets", json=body).status_code == 201
        mount = {"storage_provider": "minio", "path": "open-to-all/x"}
        definition = {"name": "m", "image": "none", "script": "true", "mount": mount}
        answer = client.post("/system/services", json=definition)
        assert (answer.status_code, answer.json()["field"]) == (400, "mount.path")
        assert client.delete("/system/buckets/open-to-all").status_code == 204


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def test_the_command_line(server: Server, home: Path) -> None:
    assert "typed" in oscar(server, home, "volume", "create", "typed", "200Mi")
    assert "typed" in oscar(server, home, "volume", "list")
    assert '"name": "typed"' in oscar(server, home, "volume", "get", "typed", "--json")
    shown = oscar(server, home, "volume", "get", "typed")
    assert "200Mi" in shown
    oscar(server, home, "volume", "create", "typed", "200Mi", code=3)
    oscar(server, home, "volume", "delete", "typed")
    oscar(server, home, "volume", "get", "typed", code=3)


def test_a_start_removes_what_a_crash_left_half_made(tmp_path: Path) -> None:
    """A row without its place, a place without an end, and a service deleted before its volume."""
    with servers.running(tmp_path / "data") as server:
        with http(server) as client:
            for name in ("making", "removing", "whole"):
                body = {"name": name, "size": "200Mi"}
                assert client.post("/system/volumes", json=body).status_code == 201
            create(client, "gone", "true", volume={"size": "200Mi", "mount_path": "/data"})
        server.kill()
        with sqlite3.connect(server.data / "oscar.db") as database:
            database.execute("UPDATE volumes SET phase = 'Pending' WHERE name = 'making'")
            database.execute("UPDATE volumes SET phase = 'Terminating' WHERE name = 'removing'")
            database.execute("DELETE FROM volume_attachments")
            database.execute("DELETE FROM services")
        server.start()
        with http(server) as client:
            assert [each["name"] for each in client.get("/system/volumes").json()] == ["whole"]
        places = [path.name for path in (server.data / "volumes").iterdir()]
        assert [name.startswith("whole-") for name in places] == [True]
