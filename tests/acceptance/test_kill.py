"""The server killed with -9 at random moments while files are uploaded and jobs are posted.

Nothing that was acknowledged is lost, no script runs twice, and no object is there by half.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import botocore.config
import botocore.exceptions
import httpx2
import pytest

from tests.server import Server

SCRIPT = """echo "started $STORAGE_OBJECT_KEY"
cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/$JOB_UUID"
"""
NAME = "killed"


@dataclass(slots=True)
class Acknowledged:
    """What the server has said yes to."""

    objects: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, bytes] = field(default_factory=dict)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def body(number: int) -> bytes:
    """Contents that tell whether they are whole: a digest of all that follows."""
    rest = random.Random(number).randbytes(2000 + number % 300 * 100)
    return hashlib.sha256(rest).hexdigest().encode() + rest


def whole(data: bytes) -> bool:
    return hashlib.sha256(data[64:]).hexdigest().encode() == data[:64]


def s3(server: Server) -> object:
    config = httpx2.get(
        f"{server.endpoint}/system/config", auth=(server.user, server.password), timeout=30
    ).json()
    keys = config["minio_provider"]
    return boto3.client(
        "s3",
        endpoint_url=server.s3,
        aws_access_key_id=keys["access_key"],
        aws_secret_access_key=keys["secret_key"],
        region_name=keys["region"],
        config=botocore.config.Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30),
    )


def upload(client: object, numbers: list[int], done: Acknowledged) -> None:
    """Upload each file until it is acknowledged."""
    for number in numbers:
        data = body(number)
        while True:
            try:
                client.put_object(Bucket=NAME, Key=f"in/{number}", Body=data)  # type: ignore[attr-defined]
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                time.sleep(0.1)  # the server is just being started again
                continue
            done.objects[f"in/{number}"] = data
            break


def post(server: Server, numbers: list[int], done: Acknowledged) -> None:
    """Post each job until it is acknowledged, under one key so that a repetition is the same job."""
    account = (server.user, server.password)
    for number in numbers:
        payload = json.dumps({"number": number}).encode()
        while True:
            try:
                answer = httpx2.post(
                    f"{server.endpoint}/job/{NAME}",
                    content=payload,
                    auth=account,
                    headers={"Idempotency-Key": str(number)},
                    timeout=30,
                )
            except httpx2.TransportError:
                time.sleep(0.1)
                continue
            assert answer.status_code == 201, answer.text
            done.jobs[answer.json()["job_id"]] = payload
            break


def jobs_of(http: httpx2.Client) -> dict[str, str]:
    """All jobs of the service with their status."""
    found: dict[str, str] = {}
    page = ""
    while True:
        answer = http.get(f"/system/logs/{NAME}", params={"page": page}).json()
        found |= {name: job["status"] for name, job in answer["jobs"].items()}
        page = answer.get("next_page", "")
        if not page:
            return found


def kill_often(tmp_path: Path, kills: int, events: int) -> None:
    settings = {
        "OSCAR_SERVICE_PORT": str(free_port()),
        "OSCAR_S3_PORT": str(free_port()),
        "JOB_LISTING_LIMIT": "1000",
        "OSCAR_MAX_RUNNING_JOBS": "8",
    }
    server = Server(tmp_path / "data", settings)
    server.start()
    try:
        account = (server.user, server.password)
        definition = {
            "name": NAME,
            "image": "none",
            "script": SCRIPT,
            "memory": "64Mi",
            "input": [{"storage_provider": "minio.default", "path": f"{NAME}/in"}],
            "output": [{"storage_provider": "minio.default", "path": f"{NAME}/out"}],
        }
        made = httpx2.post(f"{server.endpoint}/system/services", json=definition, auth=account, timeout=30)
        assert made.status_code == 201, made.text
        done = Acknowledged()
        half = events // 2
        client = s3(server)
        senders = [
            *(
                threading.Thread(target=upload, args=(client, list(range(n, half, 2)), done))
                for n in range(2)
            ),
            *(threading.Thread(target=post, args=(server, list(range(n, half, 2)), done)) for n in range(2)),
        ]
        for sender in senders:
            sender.start()
        moments = random.Random()
        for _ in range(kills):
            time.sleep(moments.uniform(0.2, 2.0))
            server.kill()
            server.start()
        for sender in senders:
            sender.join()
        check(server, client, done, events, kills)
    finally:
        server.end()


def check(server: Server, client: object, done: Acknowledged, events: int, kills: int) -> None:
    assert len(done.objects) + len(done.jobs) == events // 2 * 2
    with httpx2.Client(base_url=server.endpoint, auth=(server.user, server.password), timeout=60) as http:
        deadline = time.monotonic() + 60 + events / 2
        jobs = jobs_of(http)
        while {"Pending", "Running"} & set(jobs.values()):
            assert time.monotonic() < deadline, "jobs do not come to an end"
            time.sleep(0.5)
            jobs = jobs_of(http)
        assert done.jobs.keys() <= jobs.keys()
        assert set(jobs.values()) == {"Succeeded"}, {
            job: jobs[job] for job in jobs if jobs[job] != "Succeeded"
        }
        started: dict[str, int] = {}
        for job in jobs:
            log = http.get(f"/system/logs/{NAME}/{job}").text
            lines = [line for line in log.splitlines() if line.startswith("started")]
            assert len(lines) == 1, (job, log)
            started[lines[0]] = started.get(lines[0], 0) + 1
    # An upload that was cut before its answer may be there as well; it was sent again under the same key.
    for key in done.objects:
        assert started[f"started {key}"] >= 1, key
    assert len(jobs) - len(done.jobs) - len(done.objects) <= kills * 2
    inputs, outputs = listed(client, "in/"), listed(client, "out/")
    assert inputs == {key: len(data) for key, data in done.objects.items()}
    assert outputs.keys() == {f"out/{job}" for job in jobs}
    for key, data in done.objects.items():
        assert client.get_object(Bucket=NAME, Key=key)["Body"].read() == data  # type: ignore[attr-defined]
    for job, payload in done.jobs.items():
        stored = client.get_object(Bucket=NAME, Key=f"out/{job}")["Body"].read()  # type: ignore[attr-defined]
        assert stored == payload
    for key in outputs.keys() - {f"out/{job}" for job in done.jobs}:
        assert whole(client.get_object(Bucket=NAME, Key=key)["Body"].read()), key  # type: ignore[attr-defined]
    figures = {
        "kills": kills,
        "acknowledged uploads": len(done.objects),
        "acknowledged jobs": len(done.jobs),
        "uploads repeated after a cut": len(jobs) - len(done.jobs) - len(done.objects),
        "jobs that ran once": len(jobs),
        "lost": 0,
        "run twice": 0,
    }
    print(json.dumps(figures))


def listed(client: object, prefix: str) -> dict[str, int]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix=prefix)  # type: ignore[attr-defined]
    return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}


@pytest.mark.timeout(300)
def test_five_kills_lose_nothing_and_run_nothing_twice(tmp_path: Path) -> None:
    kill_often(tmp_path, kills=5, events=100)


@pytest.mark.real  # in the run that takes its time
@pytest.mark.timeout(900)
def test_twenty_kills_lose_nothing_and_run_nothing_twice(tmp_path: Path) -> None:
    kill_often(tmp_path, kills=20, events=500)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_two_hundred_kills_lose_nothing_and_run_nothing_twice(tmp_path: Path) -> None:
    kill_often(tmp_path, kills=200, events=5000)
