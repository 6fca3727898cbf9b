"""A real MinIO as the platform's own store, with real processes: events, rights, faults."""

from __future__ import annotations

import signal
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from botocore.exceptions import ClientError

from oscar.model.access_log import parse
from oscar.model.request import RequestKind
from tests import minio_world, real_minio
from tests.acceptance.calls import at, client, create, jobs, objects, put
from tests.minio_world import World

pytestmark = pytest.mark.real

COPY = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"'
PATIENCE = 120.0


def until(done: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Ask until the answer is one; the last answer."""
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)
    return found


def name() -> str:
    return f"m-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    minio_world.here()
    with minio_world.running(tmp_path_factory.mktemp("minio")) as running:
        yield running


@pytest.fixture
def own(tmp_path: Path) -> Iterator[World]:
    """A world of the test's own, nothing started."""
    minio_world.here()
    with minio_world.running(tmp_path, start=False) as made:
        yield made


@pytest.fixture
def http(world: World) -> Iterator[httpx2.Client]:
    with client(world.server) as opened:
        yield opened


def succeeded(http: httpx2.Client, service: str) -> dict[str, Any]:
    return {job: info for job, info in jobs(http, service).items() if info["status"] == "Succeeded"}


def test_an_upload_by_boto3_becomes_an_output(world: World, http: httpx2.Client) -> None:
    service = create(http, COPY, input=at(f"{(bucket := name())}/in"), output=at(f"{bucket}/out"))
    s3 = world.client()
    s3.put_object(Bucket=bucket, Key="in/a  b+é.txt", Body=b"hello")
    until(lambda: "out/a  b+é.txt" in objects(http, bucket))
    assert s3.get_object(Bucket=bucket, Key="out/a  b+é.txt")["Body"].read() == b"hello"
    until(lambda: succeeded(http, service))
    assert len(jobs(http, service)) == 1
    # The line of the log that metrics can be counted from, as for an upload to the built-in store.
    lines = [line for line in world.server.log.read_text().splitlines() if f"POST /job/{service}" in line]
    assert len(lines) == 1
    access = parse(lines[0])
    assert access is not None
    assert (access.status, access.address, access.target) == (201, "127.0.0.1", (RequestKind.ASYNC, service))


def test_an_upload_that_minio_reports_is_a_request_of_who_uploaded(world: World, http: httpx2.Client) -> None:
    service = create(http, "true", input=at(f"{(bucket := name())}/in"))
    world.client().put_object(Bucket=bucket, Key="in/x", Body=b"x")
    until(lambda: jobs(http, service))
    with sqlite3.connect(f"file:{world.server.data}/oscar.db?mode=ro", uri=True) as database:
        rows = database.execute(
            'SELECT kind, owner, "user", entrance, status, address FROM requests WHERE service = ?',
            (service,),
        ).fetchall()
    assert rows == [("async", "cluster_admin", "cluster_admin", "s3", 201, "127.0.0.1")]


def test_links_for_one_object(world: World, http: httpx2.Client) -> None:
    bucket = name()
    assert http.post("/system/buckets", json={"bucket_name": bucket}).status_code == 201
    put(http, bucket, "a/b c", b"body")
    link = http.post(
        f"/system/buckets/{bucket}/presign", json={"object_key": "a/b c", "operation": "download"}
    ).json()
    assert httpx2.get(link["url"], headers=link["headers"]).content == b"body"
    assert link["url"].startswith(world.endpoint)
    shown = http.get(f"/system/buckets/{bucket}").json()
    assert shown["storage_usage"]["objects"] == 1
    assert http.delete(f"/system/buckets/{bucket}").status_code == 409
    assert http.delete(f"/system/buckets/{bucket}", params={"force": "true"}).status_code == 204
    with pytest.raises(ClientError):
        world.client().head_bucket(Bucket=bucket)


def test_defect_4_services_come_and_go_without_a_restart_of_minio(world: World, http: httpx2.Client) -> None:
    """Nor is an upload lost while they do: another service's bucket gets uploads all the time."""
    assert world.minio is not None
    assert world.minio.process is not None
    before = world.minio.process.pid
    service = create(http, "true", input=at(f"{(bucket := name())}/in"))
    s3 = world.client()
    for count in range(5):
        s3.put_object(Bucket=bucket, Key=f"in/{count}", Body=b"x")
        other = create(http, "true", input=at(f"{(its := name())}/in"))
        rules = s3.get_bucket_notification_configuration(Bucket=its)["QueueConfigurations"]
        assert [(rule["Id"], "Filter" in rule) for rule in rules] == [("oscar", False)]
        assert http.delete(f"/system/services/{other}").status_code == 204
    until(lambda: len(succeeded(http, service)) == 5)
    assert len(jobs(http, service)) == 5
    assert world.minio.process.poll() is None
    assert world.minio.process.pid == before


def test_rules_of_others_stay(world: World, http: httpx2.Client) -> None:
    s3, bucket = world.client(), name()
    s3.create_bucket(Bucket=bucket)
    theirs = {
        "Id": "theirs",
        "QueueArn": "arn:minio:sqs::OSCAR:webhook",
        "Events": ["s3:ObjectRemoved:*"],
        "Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": "elsewhere/"}]}},
    }
    s3.put_bucket_notification_configuration(
        Bucket=bucket, NotificationConfiguration={"QueueConfigurations": [theirs]}
    )
    service = create(http, "true", input=at(f"{bucket}/in"))

    def ids() -> list[str]:
        found = s3.get_bucket_notification_configuration(Bucket=bucket)
        return sorted(rule["Id"] for rule in found.get("QueueConfigurations", []))

    assert ids() == ["oscar", "theirs"]
    s3.put_object(Bucket=bucket, Key="in/x", Body=b"x")
    until(lambda: succeeded(http, service))
    assert http.delete(f"/system/services/{service}").status_code == 204
    assert ids() == ["theirs"]


def test_defect_4b_deleting_a_service_keeps_data_and_buckets_of_others(
    world: World, http: httpx2.Client
) -> None:
    service = name()
    shape = {
        "image": "none",
        "script": "true",
        "input": at(f"{service}/in"),
        "output": at(f"{service}-o/out"),
    }
    assert http.post("/system/services", json=shape | {"name": service}).status_code == 201
    world.client().put_object(Bucket=service, Key="elsewhere/kept", Body=b"x")
    assert http.delete(f"/system/services/{service}").status_code == 204
    assert objects(http, service) == ["elsewhere/kept"]
    assert http.get(f"/system/buckets/{service}-o").status_code == 404
    second = f"{service}-2"
    assert http.post("/system/services", json=shape | {"name": service}).status_code == 201
    assert http.post("/system/services", json=shape | {"name": second}).status_code == 201
    assert http.delete(f"/system/services/{service}", params={"data": "true"}).status_code == 204
    assert http.get(f"/system/buckets/{service}-o").status_code == 200


def report(bucket: str, key: str, sequencer: str, **more: Any) -> dict[str, Any]:
    """A record as MinIO sends it."""
    return {
        "eventSource": "minio:s3",
        "eventName": more.pop("event", "s3:ObjectCreated:Put"),
        "eventTime": "2026-11-27T10:00:00.000Z",
        "userIdentity": {"principalId": real_minio.ACCESS_KEY},
        "s3": {
            "bucket": {"name": bucket},
            "object": {"key": key, "size": 1, "sequencer": sequencer, "userMetadata": more},
        },
    }


def send(world: World, body: Any, token: str | None = None) -> httpx2.Response:
    known = next(value for name, value in world.environment.items() if "AUTH_TOKEN" in name)
    return httpx2.post(
        f"{world.server.endpoint}/system/events/minio",
        headers={"Authorization": f"Bearer {known if token is None else token}"},
        **({"content": body} if isinstance(body, bytes) else {"json": body}),
    )


def test_defect_5_all_records_of_a_report_count(world: World, http: httpx2.Client) -> None:
    service = create(http, "true", input=at(f"{(bucket := name())}/in"), file_stage_in=True)
    records = [report(bucket, f"in/{n}", f"18EAC86526C99B{n:02X}") for n in range(3)]
    # Apart by more than a millisecond each.
    for n, record in enumerate(records):
        record["s3"]["object"]["sequencer"] = f"{0x18EAC86526C99BBB + n * 5_000_000:X}"
    assert send(world, {"Records": records}).json() == {"jobs": 3}
    assert send(world, {"Records": records}).json() == {"jobs": 0}, "a repeated delivery"
    assert len(jobs(http, service)) == 3


def test_defect_6_a_replicated_object_starts_once(world: World, http: httpx2.Client) -> None:
    """MinIO reports one that waits for its replica, and once more when that is there."""
    service = create(http, "true", input=at(f"{(bucket := name())}/in"), file_stage_in=True)
    moment = "18EAC86526C99BBB"
    first = report(bucket, "in/x", moment, **{"X-Amz-Replication-Status": "PENDING"})
    again = report(
        bucket,
        "in/x",
        moment,
        event="s3:Replication:OperationCompletedReplication",
        **{"X-Amz-Replication-Status": "COMPLETED"},
    )
    assert [send(world, {"Records": [record]}).json()["jobs"] for record in (first, again, first)] == [
        1,
        0,
        0,
    ]
    assert len(jobs(http, service)) == 1


@pytest.mark.long  # each report takes MinIO some seconds
def test_services_in_a_circle_come_to_an_end(http: httpx2.Client) -> None:
    first, second = name(), name()
    copy = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/x"'
    one = create(http, copy, input=at(f"{first}/in"), output=at(f"{second}/in"))
    other = create(http, copy, input=at(f"{second}/in"), output=at(f"{first}/in"))
    put(http, first, "in/x")
    until(lambda: any(info["status"] == "Failed" for info in jobs(http, other).values()))
    assert (len(jobs(http, one)), len(jobs(http, other))) == (9, 9)
    assert (len(succeeded(http, one)), len(succeeded(http, other))) == (9, 8)


def test_defect_19_overlapping_inputs_start_both_services(world: World, http: httpx2.Client) -> None:
    bucket = name()
    wide = create(http, "true", input=at(f"{bucket}/in"))
    deep = create(http, "true", input=at(f"{bucket}/in/deep"))
    world.client().put_object(Bucket=bucket, Key="in/deep/file", Body=b"x")
    for service in (wide, deep):
        until(lambda service=service: succeeded(http, service))  # type: ignore[misc]
        assert len(jobs(http, service)) == 1


def test_what_is_no_job_is_answered_200_and_kept(world: World, http: httpx2.Client) -> None:
    create(http, "true", input=at(f"{(bucket := name())}/in"))
    nobody = name()
    moment = "18EAC86526C99BBB"
    quiet = [
        report(bucket, "out/y", moment),
        report(bucket, "in/", moment),
        report(bucket, "in/y", moment, event="s3:ObjectRemoved:Delete"),
        report(bucket, "in/y", moment, event="s3:ObjectCreated:PutTagging"),
    ]
    answers = [
        send(world, {"Records": quiet}),
        send(world, {"Records": [report(nobody, "in/x", moment)]}),
        send(world, b"{broken"),
        send(world, b"\xff\xfe"),
        send(world, {"Records": [{"eventSource": "minio:s3"}]}),
        send(world, {"hello": 1}),
        send(world, b"x" * (2 * 1024 * 1024)),
    ]
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"jobs": 0})] * len(answers)
    kept = http.get("/system/events/rejected", params={"limit": 6}).json()
    found = [(event["bucket"], event["key"]) for event in kept["events"]]
    assert found == [("", "")] * 5 + [(nobody, "in/x")]
    assert kept["events"][-2]["body"] == "{broken"
    assert "bytes" in kept["events"][0]["reason"]
    more = http.get("/system/events/rejected", params={"limit": 1, "page": kept["next_page"]}).json()
    assert more["events"] == [] or more["events"][0] not in kept["events"]


def test_a_wrong_token_is_refused(world: World) -> None:
    for token in ("x", "0" * 64, world.server.password):
        assert send(world, {"Records": []}, token=token).status_code == 401
    bare = httpx2.post(f"{world.server.endpoint}/system/events/minio", json={})
    assert bare.status_code == 401
    assert httpx2.get(f"{world.server.endpoint}/system/events/rejected").status_code == 401


@pytest.mark.timeout(600)
def test_minio_restarted_and_killed_while_jobs_come(own: World) -> None:
    """Nothing is lost and nothing runs twice, a crash of MinIO between uploads included."""
    # What the crash swallows the sweep finds when it is a minute old; staging that failed is tried again later.
    own.server.settings = {**own.server.settings, "OSCAR_SWEEP_SECONDS": "5"}
    own.start_minio()
    own.server.start()
    with client(own.server) as http:
        service = create(http, COPY, input=at("town/in"), output=at("town/out"))
        s3 = own.client()
        for count in range(30):
            s3.put_object(Bucket="town", Key=f"in/{count:03}", Body=b"x")
            if count == 9:
                own.stop_minio()
                answer = http.get("/system/buckets/town")
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
                assert http.post("/system/buckets", json={"bucket_name": "later"}).status_code == 503
                assert http.get("/system/services").status_code == 200
                own.start_minio()
            if count == 19:
                own.stop_minio(signal.SIGKILL)
                own.start_minio()
        until(lambda: len(succeeded(http, service)) == 30, 500)
        assert len(jobs(http, service)) == 30
        assert len([key for key in objects(http, "town") if key.startswith("out/")]) == 30
        assert http.post("/system/buckets", json={"bucket_name": "later"}).status_code == 201, (
            "what failed left nothing"
        )


def test_uploads_while_the_server_is_down_are_delivered_later(own: World) -> None:
    own.start_minio()
    own.server.start()
    with client(own.server) as http:
        service = create(http, "true", input=at("town/in"))
    own.server.kill()
    s3 = own.client()
    for count in range(50):
        s3.put_object(Bucket="town", Key=f"in/{count:03}", Body=b"x")
    assert own.queued() == 50
    own.server.start()
    with client(own.server) as http:
        until(lambda: len(succeeded(http, service)) == 50)
        assert len(jobs(http, service)) == 50
    until(lambda: own.queued() == 0)


def test_the_server_starts_without_minio_and_mends_when_it_comes(own: World) -> None:
    own.server.start()
    with client(own.server) as http:
        shape = {"name": "early", "image": "none", "script": "true", "input": at("town/in")}
        assert http.post("/system/services", json=shape).status_code == 503
        assert http.get("/system/services").json() == []
        own.start_minio()
        assert http.post("/system/services", json=shape).status_code == 201
        own.client().put_object(Bucket="town", Key="in/x", Body=b"x")
        until(lambda: succeeded(http, "early"))


def test_a_lost_event_is_found_by_the_sweep_once(tmp_path: Path) -> None:
    """What a crash of MinIO lost: its queue goes with it. The event that comes late all the same is no second one."""
    with minio_world.running(tmp_path, start=False, OSCAR_SWEEP_SECONDS="2") as own:
        own.start_minio()
        own.server.start()
        with client(own.server) as http:
            service = create(http, "true", input=at("town/in"))
        own.server.kill()
        own.client().put_object(Bucket="town", Key="in/lost", Body=b"x")
        queue = own.folder / "queue"
        [event] = queue.rglob("*.event")
        own.stop_minio(signal.SIGKILL)
        saved = event.read_bytes()
        event.unlink()
        own.start_minio()
        own.server.start()
        with client(own.server) as http:
            until(lambda: succeeded(http, service), 180)
            assert send(own, saved).json() == {"jobs": 0}
            # Deleted jobs don't come back either.
            assert http.delete(f"/system/logs/{service}").status_code == 204
            assert send(own, saved).json() == {"jobs": 0}
            time.sleep(5)
            assert jobs(http, service) == {}


def test_inputs_are_listed_where_nothing_is_reported(tmp_path: Path) -> None:
    with minio_world.running(
        tmp_path, start=False, OSCAR_STORE_EVENTS="listing", OSCAR_SWEEP_SECONDS="1"
    ) as own:
        own.environment.clear()
        own.start_minio()
        own.client().create_bucket(Bucket="town")
        own.client().put_object(Bucket="town", Key="in/before", Body=b"x")
        own.server.start()
        with client(own.server) as http:
            service = create(http, COPY, input=at("town/in"), output=at("town/out"))
            for count in range(3):
                own.client().put_object(Bucket="town", Key=f"in/{count}", Body=b"x")
            until(lambda: len(succeeded(http, service)) == 3)
            own.client().put_object(Bucket="town", Key="in/0", Body=b"again")
            until(lambda: len(succeeded(http, service)) == 4)
            time.sleep(3)
            assert len(jobs(http, service)) == 4
            assert sorted(key for key in objects(http, "town") if key.startswith("out")) == [
                "out/0",
                "out/1",
                "out/2",
            ]
