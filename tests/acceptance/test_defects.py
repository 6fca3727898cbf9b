"""What OSCAR does badly, done right: a test for each defect of the present implementation that this part concerns."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.server import Server


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.endpoint, auth=(server.user, server.password), timeout=60) as client:
        yield client


def create(http: httpx2.Client, script: str, **more: Any) -> str:
    name = f"d-{uuid.uuid4().hex[:8]}"
    definition = {"name": name, "image": "none", "script": script, "memory": "64Mi"} | more
    answer = http.post("/system/services", json=definition)
    assert answer.status_code == 201, answer.text
    return name


def at(name: str, folder: str) -> list[dict[str, str]]:
    return [{"storage_provider": "minio.default", "path": f"{name}/{folder}"}]


def run_job(http: httpx2.Client, name: str) -> dict[str, Any]:
    answer = http.post(f"/job/{name}", content=b"{}")
    assert answer.status_code == 201, answer.text
    location = answer.headers["location"]
    found: dict[str, Any] = http.get(location, params={"wait": "60s"}).json()
    return found


def put(http: httpx2.Client, bucket: str, key: str, body: bytes = b"x") -> None:
    link = http.post(
        f"/system/buckets/{bucket}/presign", json={"object_key": key, "operation": "upload"}
    ).json()
    httpx2.put(link["url"], content=body, headers=link["headers"]).raise_for_status()


def objects(http: httpx2.Client, bucket: str) -> list[str]:
    return [found["object_name"] for found in http.get(f"/system/buckets/{bucket}").json()["objects"]]


def test_defect_1_a_failing_script_is_a_failed_job_with_its_exit_code(http: httpx2.Client) -> None:
    job = run_job(http, create(http, "echo before; exit 7"))
    assert (job["status"], job["exit_code"], job["reason"]) == ("Failed", 7, "script")


def test_defect_2_the_log_is_there_while_the_job_runs(http: httpx2.Client) -> None:
    name = create(http, "echo first; sleep 600", log_level="CRITICAL")
    job = http.post(f"/job/{name}", content=b"{}").json()["job_id"]
    with http.stream("GET", f"/system/logs/{name}/{job}", params={"follow": "true"}) as lines:
        assert next(lines.iter_lines()) == "first"
    assert http.post(f"/system/jobs/{name}/{job}/cancel").status_code == 202
    ended = http.get(f"/system/jobs/{name}/{job}", params={"wait": "60s"}).json()
    assert ended["state"] == "cancelled"
    assert http.get(f"/system/logs/{name}/{job}").text.splitlines()[0] == "first"


def test_defect_3_retries_a_dead_letter_and_a_rerun(http: httpx2.Client) -> None:
    name = create(http, "echo try; exit 3", retry={"attempts": 1, "delay": 0.1}, log_level="CRITICAL")
    job = run_job(http, name)
    assert (job["state"], job["attempt"], job["exit_code"]) == ("dead", 2, 3)
    log = http.get(f"/system/logs/{name}/{job['job_id']}").text
    assert log.splitlines().count("try") == 2
    again = http.post(f"/system/jobs/{name}/{job['job_id']}/rerun")
    assert again.status_code == 201
    assert again.json()["job_id"] != job["job_id"]


def test_defect_4b_deleting_a_service_keeps_data_and_buckets_of_others(http: httpx2.Client) -> None:
    name = f"d-{uuid.uuid4().hex[:8]}"
    definition = {
        "image": "none",
        "script": "true",
        "input": at(name, "in"),
        "output": at(f"{name}-o", "out"),
    }
    assert http.post("/system/services", json=definition | {"name": name}).status_code == 201
    put(http, name, "elsewhere/kept")
    assert http.delete(f"/system/services/{name}").status_code == 204
    assert objects(http, name) == ["elsewhere/kept"]
    assert http.get(f"/system/buckets/{name}-o").status_code == 404
    second = f"{name}-2"
    assert http.post("/system/services", json=definition | {"name": name}).status_code == 201
    assert http.post("/system/services", json=definition | {"name": second}).status_code == 201
    assert http.delete(f"/system/services/{name}", params={"data": "true"}).status_code == 204
    assert http.get(f"/system/buckets/{name}-o").status_code == 200


def test_defect_15_secrets_reach_the_script_and_no_answer(http: httpx2.Client) -> None:
    secret = uuid.uuid4().hex
    name = create(
        http,
        'test "$PASS" = "$WANTED" && echo right',
        environment={"secrets": {"PASS": secret}, "variables": {"WANTED": secret}},
    )
    assert run_job(http, name)["status"] == "Succeeded"
    shown = http.get(f"/system/services/{name}").json()
    assert shown["environment"]["secrets"] == {"PASS": ""}
    token = shown["token"]
    assert http.put("/system/services", json=shown).status_code == 204
    assert http.get(f"/system/services/{name}").json()["token"] == token
    assert run_job(http, name)["status"] == "Succeeded", "an update with blank secrets keeps them"


def test_defect_19_overlapping_inputs_start_both_services(http: httpx2.Client) -> None:
    shared = f"d-{uuid.uuid4().hex[:8]}"
    wide = create(http, "true", input=at(shared, "in"))
    deep = create(http, "true", input=at(shared, "in/deep"))
    put(http, shared, "in/deep/file")
    for name in (wide, deep):
        deadline = time.monotonic() + 60
        while not (jobs := http.get(f"/system/logs/{name}").json()["jobs"]):
            assert time.monotonic() < deadline
        assert len(jobs) == 1


def test_a_service_token_opens_its_own_service_and_nothing_else(server: Server, http: httpx2.Client) -> None:
    name, other = create(http, "true"), create(http, "true")
    token = http.get(f"/system/services/{name}").json()["token"]
    with httpx2.Client(base_url=server.endpoint, headers={"Authorization": f"Bearer {token}"}) as bearer:
        assert bearer.post(f"/job/{name}", content=b"{}").status_code == 201
        assert bearer.post(f"/job/{other}", content=b"{}").status_code == 404
        assert bearer.get("/system/services").status_code == 403
        assert bearer.get("/system/config").status_code == 403
        assert bearer.delete(f"/system/services/{name}").status_code == 403
    with httpx2.Client(base_url=server.endpoint, headers={"Authorization": f"Bearer {'0' * 64}"}) as foreign:
        assert foreign.post(f"/job/{name}", content=b"{}").status_code == 401


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "n" * 40}, "name"),
        ({"image": ""}, "image"),
        ({"memory": "abc"}, "memory"),
        ({"input": [{"storage_provider": "minio.default", "path": " / "}]}, "input[0].path"),
        ({"output": [{"storage_provider": "s3.nowhere", "path": "b/o"}]}, "output[0].storage_provider"),
    ],
)
def test_bad_definitions_name_the_field(http: httpx2.Client, change: dict[str, Any], field: str) -> None:
    answer = http.post("/system/services", json={"name": "bad", "image": "i", "script": "true"} | change)
    assert answer.status_code == 400
    assert answer.json()["field"] == field
    assert http.get("/system/services/bad").status_code == 404


def test_broken_json_and_unknown_services(http: httpx2.Client) -> None:
    assert http.post("/system/services", content=b'{"name": ').status_code == 400
    assert http.post("/job/there-is-none", content=b"{}").status_code == 404
    assert http.get("/system/services/there-is-none").status_code == 404
