"""`oscar serve` as a process: its start behind `/health`, its end, and what it hands to the S3 server's process."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import httpx2
import pytest
from botocore.config import Config

from tests.server import Server, sandbox_works

KEYS = {"MINIO_ACCESS_KEY": "test-admin", "MINIO_SECRET_KEY": "a secret key of tests"}
WITHIN = 60.0


def folder_of(tmp_path: Path, **programs: str) -> str:
    """A folder for PATH with scripts of those names, and nothing else but bubblewrap and the system's basics."""
    place = tmp_path / "programs"
    place.mkdir()
    for name, script in programs.items():
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)
    if sandbox_works():
        (place / "bwrap").symlink_to(shutil.which("bwrap") or "")
    return str(place)


def s3(server: Server) -> object:
    return boto3.client(
        "s3",
        endpoint_url=server.s3,
        aws_access_key_id=KEYS["MINIO_ACCESS_KEY"],
        aws_secret_access_key=KEYS["MINIO_SECRET_KEY"],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, connect_timeout=WITHIN, read_timeout=WITHIN),
    )


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Server]:
    """A server that is not started yet."""
    server = Server(tmp_path / "data", dict(KEYS))
    yield server
    if server.process and server.process.poll() is None:
        server.stop()


@pytest.mark.parametrize("engine", ["docker", "auto"])
def test_engine_missing_ends_the_server_with_one_line(stopped: Server, tmp_path: Path, engine: str) -> None:
    place = tmp_path / "empty"
    place.mkdir()
    environment = stopped.environment() | {
        "OSCAR_ENGINE": engine,
        "OSCAR_UNSAFE_PROCESS": "false",
        "PATH": str(place),
    }
    done = subprocess.run(
        [sys.executable, "-m", "oscar", "serve"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if "[info" not in line]
    assert len(told) == 1, done.stderr
    assert told[0].startswith("error: OSCAR_ENGINE: no engine works on this machine: ")
    assert "docker: docker can't be called" in told[0]
    assert "Install podman, docker or bubblewrap" in told[0]


def test_what_waits_for_an_engine_that_is_missing_is_told_so(stopped: Server, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    stopped.settings = {
        "OSCAR_ENGINE": "podman",
        "PATH": folder_of(tmp_path, podman=f"read -r _ < {gate}; echo broken >&2; exit 125"),
    }
    stopped.start(until="/health")
    assert stopped.process
    account = base64.b64encode(f"{stopped.user}:{stopped.password}".encode()).decode()
    address = urlsplit(stopped.endpoint)
    with socket.create_connection((address.hostname or "", address.port or 0), WITHIN) as connection:
        # Both at once: the answer to the first shows that the server has the second.
        head = f"HTTP/1.1\r\nHost: test\r\nAuthorization: Basic {account}\r\n\r\n"
        connection.sendall(f"GET /health {head}GET /system/info {head}".encode())
        said = b""
        while not said.endswith(b"Ok"):
            said += connection.recv(65536)
        gate.write_text("go\n")
        said = b"".join(iter(lambda: connection.recv(65536), b""))
    assert said.startswith(b"HTTP/1.1 503 "), said
    assert b'"engine_missing"' in said
    assert b"broken" in said
    assert stopped.process.wait(WITHIN) == 1


def test_a_cluster_that_does_not_answer_is_waited_for(stopped: Server, tmp_path: Path) -> None:
    with socket.socket() as silent:
        # Taken, and nobody listens: whoever connects is refused.
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config = {
            "clusters": [{"name": "c", "cluster": {"server": address}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
            "current-context": "c",
        }
        (tmp_path / "config").write_text(json.dumps(config))
        stopped.settings = {
            "OSCAR_ENGINE": "kubernetes",
            "OSCAR_IMAGE": "oscar",
            "KUBECONFIG": str(tmp_path / "config"),
        }
        stopped.start(until="/health")
        with httpx2.Client(base_url=stopped.endpoint, timeout=WITHIN) as http:
            while (answer := http.get("/ready")).json()["message"] == "The engine is still being started":
                time.sleep(0.05)
            assert answer.status_code == 503
            assert answer.json()["message"].startswith(
                "The engine is still being started. The Kubernetes cluster can't be used: "
            )
            assert http.get("/health").headers["x-oscar-engine"] == "starting"
        assert stopped.stop() == 0
    # Said once, however often it was tried.
    assert stopped.log.read_text().count("waiting for what the engine needs") == 1


def test_the_api_answers_and_uploads_are_taken_while_the_engine_starts(
    stopped: Server, tmp_path: Path
) -> None:
    stopped.start()
    service = {
        "name": "early",
        "image": "none",
        "script": "echo done",
        "input": [{"storage_provider": "minio.default", "path": "early/in"}],
    }
    with httpx2.Client(base_url=stopped.endpoint, auth=(stopped.user, stopped.password)) as http:
        assert http.post("/system/services", json=service, timeout=WITHIN).status_code == 201
    stopped.stop()

    # An engine that takes its time, and then does not work: the next one is taken.
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    stopped.settings = KEYS | {
        "OSCAR_ENGINE": "auto",
        "PATH": folder_of(tmp_path, podman=f"read -r _ < {gate}; exit 125"),
    }
    stopped.start(until="/health")
    account = (stopped.user, stopped.password)
    with (
        httpx2.Client(base_url=stopped.endpoint, auth=account, timeout=WITHIN) as http,
        ThreadPoolExecutor() as threads,
    ):
        health = http.get("/health")
        assert (health.status_code, health.text) == (200, "Ok")
        assert health.headers["x-oscar-engine"] == "starting"
        s3(stopped).put_object(Bucket="early", Key="in/file", Body=b"x")  # type: ignore[attr-defined]  # boto3 has no types
        waiting = threads.submit(http.get, "/system/logs/early")
        assert not waiting.done()
        gate.write_text("go\n")
        answer = waiting.result(WITHIN)
        assert answer.status_code == 200
        (job,) = answer.json()["jobs"]
        ended = http.get(f"/system/jobs/early/{job}", params={"wait": "60s"}).json()
        assert ended["status"] == "Succeeded", ended
        assert http.get("/health").headers["x-oscar-engine"] == "ready"


def test_options_reach_the_s3_server_and_secrets_stay_out_of_arguments(
    stopped: Server, tmp_path: Path
) -> None:
    # The environment says another folder: the option wins, in both processes.
    elsewhere = tmp_path / "elsewhere"
    stopped.settings = KEYS | {"OSCAR_DATA": str(elsewhere)}
    stopped.start("--data", str(stopped.data))
    assert stopped.process
    client = s3(stopped)
    client.create_bucket(Bucket="options")  # type: ignore[attr-defined]  # boto3 has no types
    client.put_object(Bucket="options", Key="k", Body=b"x")  # type: ignore[attr-defined]
    assert len(list((stopped.data / "blobs").glob("??/*"))) == 1
    assert not elsewhere.exists()
    (child,) = children(stopped.process.pid)
    said = Path(f"/proc/{child}/cmdline").read_bytes()
    assert Path(f"/proc/{child}/comm").read_text() == "oscar-s3\n"
    assert KEYS["MINIO_SECRET_KEY"].encode() not in said


def test_sigterm_ends_both_processes(stopped: Server) -> None:
    stopped.start()
    assert stopped.process
    (child,) = children(stopped.process.pid)
    descriptor = os.pidfd_open(child)
    try:
        assert stopped.stop() == 0
        assert select.select([descriptor], [], [], 0)[0], "the S3 server is still there"
    finally:
        os.close(descriptor)


def test_an_s3_server_that_was_killed_is_replaced(stopped: Server) -> None:
    stopped.start()
    assert stopped.process
    (first,) = children(stopped.process.pid)
    client = s3(stopped)
    client.create_bucket(Bucket="again")  # type: ignore[attr-defined]  # boto3 has no types
    os.kill(first, signal.SIGKILL)
    client.put_object(Bucket="again", Key="k", Body=b"x")  # type: ignore[attr-defined]
    (second,) = children(stopped.process.pid)
    assert second != first
    said = Path(f"/proc/{second}/cmdline").read_bytes()
    assert b"oscar.app.s3" in said
    assert KEYS["MINIO_SECRET_KEY"].encode() not in said
    assert stopped.stop() == 0


def test_an_s3_server_that_outlives_a_killed_server_is_in_nobodys_way(stopped: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    stopped.start("--port", port)
    assert stopped.process
    (child,) = children(stopped.process.pid)
    descriptor = os.pidfd_open(child)
    os.kill(child, signal.SIGSTOP)
    try:
        stopped.kill()
        # It holds neither the folder nor the port of the API.
        stopped.start("--port", port)
    finally:
        os.kill(child, signal.SIGCONT)
    try:
        assert select.select([descriptor], [], [], WITHIN)[0], "the S3 server is still there"
    finally:
        os.close(descriptor)
