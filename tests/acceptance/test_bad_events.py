"""Whatever is posted to the real server: it is taken, or refused with a reason, and never breaks anything."""

from __future__ import annotations

import base64
import io
import json
import random
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from oscar.errors import BadRequest
from oscar.model.event import decode, delegate, minio_event
from oscar.model.object import Object
from tests.acceptance import calls
from tests.federation import eventually
from tests.server import Server

COPY = 'cat "$INPUT_FILE_PATH" >"$TMP_OUTPUT_DIR/copy"; cat "$EVENT_FILE" >"$TMP_OUTPUT_DIR/event"'


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.endpoint, auth=(server.user, server.password), timeout=60) as client:
        yield client


@pytest.fixture
def service(http: httpx2.Client) -> Iterator[str]:
    name = f"bad-{uuid.uuid4().hex[:8]}"
    definition = {
        "name": name,
        "image": "busybox",
        "script": COPY,
        "input": [{"storage_provider": "minio.default", "path": f"{name}/in"}],
        "log_level": "CRITICAL",
    }
    answer = http.post("/system/services", json=definition)
    assert answer.status_code == 201, answer.text
    yield name
    http.delete(f"/system/logs/{name}", params={"all": "true"})
    http.delete(f"/system/services/{name}")


def put(bucket: str, key: str, version: str = "7") -> dict[str, Any]:
    return minio_event(Object(bucket, key, version, 1, "e", 1700000000123))


def ended(http: httpx2.Client, service: str, job: str) -> dict[str, Any]:
    """The job, once it has ended."""
    for _ in range(12):
        found: dict[str, Any] = http.get(f"/system/jobs/{service}/{job}", params={"wait": "10s"}).json()
        if found.get("finish_time"):
            return found
    raise AssertionError(f"{job} did not end: {found}")


@pytest.mark.parametrize("route", ["job", "run"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"not base64!", "neither JSON nor base64"),
        (b"\xff\xd8\xff\xe0 a raw picture", "neither JSON nor base64"),
        (b'{"a": 1,}', "JSON of the body is broken"),
        (b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b'{"Records": [{"eventSource": "minio:s3"}]}', "Records[0].s3"),
        (json.dumps(put("b", "in/a") | {"Records": [{"eventSource": "aws:s3", "s3": 7}]}).encode(), "Records[0].s3"),
        (b'{"storage_provider": "x", "event": 5}', "delegated event"),
        (b'{"httpMethod": "POST", "body": "%%%"}', "neither JSON nor base64"),
    ],
)  # fmt: skip
def test_bodies_that_are_refused(
    http: httpx2.Client, service: str, route: str, body: bytes, said: str
) -> None:
    answer = http.post(f"/{route}/{service}", content=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert said in error["message"]
    assert error["field"]


def test_too_much_at_once_is_refused(http: httpx2.Client, service: str) -> None:
    answer = http.post(f"/job/{service}", content=b" " * (200 << 20))
    assert answer.status_code == 413, answer.text
    assert answer.json()["field"] == "body"


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (put("somebody-elses", "in/secret"), "is in no input of the service"),
        (put("somebody-elses", "in/secret") | {"httpMethod": "POST"}, None),
        ({"event": {"name": "f"}, "subscription": "s"}, "the service has no such input"),
    ],
)
def test_events_that_the_service_can_t_work_on(
    http: httpx2.Client, service: str, event: dict[str, Any], said: str | None
) -> None:
    accepted = http.post(f"/job/{service}", json=event)
    assert accepted.status_code == 201, accepted.text
    job = ended(http, service, accepted.json()["job_id"])
    if said is None:
        assert job["status"] == "Succeeded"
        return
    assert (job["status"], job["reason"]) == ("Failed", "refused")
    assert said in job["message"]
    assert job["attempt"] == 1


def test_an_object_that_is_gone_fails_in_the_stores_words(http: httpx2.Client, service: str) -> None:
    accepted = http.post(f"/job/{service}", json=put(service, "in/gone"))
    assert accepted.status_code == 201, accepted.text
    job = ended(http, service, accepted.json()["job_id"])
    assert (job["status"], job["reason"], job["attempt"]) == ("Failed", "refused", 1)
    assert f"{service}/in/gone" in job["message"]


def test_defect_7_a_large_body_arrives_whole(http: httpx2.Client, service: str) -> None:
    body = json.dumps({"text": "two  spaces * and $HOME `id`  " * 40_000}).encode()
    assert len(body) > 1_000_000
    answer = http.post(f"/run/{service}", content=body)
    assert answer.status_code == 200, answer.text
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(answer.content)))
    assert archive.read("copy") == body
    assert archive.read("event") == body


def listed(http: httpx2.Client, service: str) -> set[str]:
    return set(http.get(f"/system/logs/{service}").json()["jobs"])


def test_defect_5_each_object_of_an_event_is_a_job(http: httpx2.Client, service: str) -> None:
    records = [put(service, key)["Records"][0] for key in ("in/a", "in/b", "in/c")]
    answer = http.post(f"/job/{service}", json={"Records": records})
    assert answer.status_code == 201, answer.text
    assert len(listed(http, service)) == 3
    for job in listed(http, service):
        http.post(f"/system/jobs/{service}/{job}/cancel")


def test_defect_6_announced_replications_start_nothing(http: httpx2.Client, service: str) -> None:
    event = put(service, "in/a")
    event["Records"][0]["s3"]["object"]["userMetadata"]["X-Amz-Replication-Status"] = "PENDING"
    assert http.post(f"/job/{service}", json=event).status_code == 201
    assert listed(http, service) == set()


def test_an_event_of_a_long_row_of_functions_is_refused(http: httpx2.Client, service: str) -> None:
    for count, reason in ((17, "event_loop"), (10**8, "event_loop")):
        event = put(service, "in/a")
        event["Records"][0]["s3"]["object"]["userMetadata"]["X-Amz-Meta-Oscar-Hops"] = str(count)
        accepted = http.post(f"/job/{service}", json=event).json()
        assert ended(http, service, accepted["job_id"])["reason"] == reason


def test_services_in_a_circle_come_to_an_end(http: httpx2.Client) -> None:
    first, second = f"c-{uuid.uuid4().hex[:8]}", f"c-{uuid.uuid4().hex[:8]}"
    copy = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/x"'
    one = calls.create(http, copy, input=calls.at(f"{first}/in"), output=calls.at(f"{second}/in"))
    other = calls.create(http, copy, input=calls.at(f"{second}/in"), output=calls.at(f"{first}/in"))
    calls.put(http, first, "in/x")
    # At most 16 functions lead to a job: the 17th runs, and what its result starts is refused.
    found = eventually(
        lambda: calls.jobs(http, one) | calls.jobs(http, other), lambda found: len(found) == 18
    )
    ends = [calls.ended(http, one if job.startswith(one) else other, job) for job in found]
    assert [end["status"] for end in ends].count("Succeeded") == 17
    [dead] = [end for end in ends if end["status"] == "Failed"]
    assert (dead["state"], dead["reason"], dead["service"]) == ("dead", "event_loop", other)
    assert "in a circle" in dead["message"]


def payloads(count: int) -> list[bytes]:
    """Events that were right once, each with a few places changed."""
    seeds = [
        json.dumps(put("photos", "in/my photo+ñ.jpg")).encode(),
        delegate(json.dumps(put("photos", "in/a")).encode(), "minio.x"),
        json.dumps({"httpMethod": "POST", "body": json.dumps(put("photos", "in/a"))}).encode(),
        json.dumps({"event": {"name": "f"}, "subscription": "s"}).encode(),
        base64.b64encode(bytes(range(64))),
    ]
    pieces = [
        b"null",
        b"{",
        b"]",
        b'"',
        b"\\ud800",
        b"1e999",
        b"[[[[",
        b"%",
        b"\x00",
        b"\xff",
        b"NaN",
        b"-",
        b",",
    ]
    pick = random.Random(11)
    made = []
    for _ in range(count):
        payload = bytearray(pick.choice(seeds))
        for _ in range(pick.randint(1, 4)):
            start = pick.randrange(len(payload) + 1)
            payload[start : start + pick.randint(0, 12)] = pick.choice(pieces)
        made.append(bytes(payload))
    return made


def expected(payload: bytes) -> int:
    try:
        decode(payload)
    except BadRequest:
        return 400
    return 201


def memory(pid: int) -> int:
    """Bytes that the process has in memory."""
    found = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in found if row.startswith("VmRSS"))


def test_two_thousand_damaged_events(server: Server, http: httpx2.Client, service: str) -> None:
    assert server.process is not None
    early = 0
    for index, payload in enumerate(payloads(2000)):
        if index == 200:  # what is made once is there by then
            early = memory(server.process.pid)
        answer = http.post(f"/job/{service}", content=payload)
        assert answer.status_code == expected(payload), (payload, answer.text)
        said = answer.json()
        if answer.status_code == 400:
            assert said["code"] == "bad_request"
            assert said["field"]
        else:
            assert said["service"] == service
    assert http.get("/health").text == "Ok"
    assert memory(server.process.pid) - early < 16 << 20, "memory stays flat"
    # And it still works.
    answer = http.post(f"/run/{service}", content=base64.b64encode(b"still here"))
    assert answer.status_code == 200, answer.text
