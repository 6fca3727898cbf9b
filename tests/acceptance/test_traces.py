"""Traces of OpenTelemetry, from upload to output: real servers tell them to a receiver in this process."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest

from tests import otlp
from tests.acceptance.calls import at, client, create, ended, jobs, put, submit
from tests.acceptance.test_federation import world_on
from tests.federation import NO_ROOM, account, eventually, foreign, grid, replica
from tests.otlp import Receiver, Told
from tests.s3_server import free_port
from tests.server import Server, running

pytestmark = pytest.mark.timeout(300)

SERVER, CLIENT = 2, 3
"""Kinds of spans."""
PARTS = ["queue", "stage-in", "run", "stage-out"]


@pytest.fixture(scope="module")
def told() -> Iterator[Receiver]:
    with otlp.receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, told: Receiver) -> Iterator[dict[str, Server]]:
    with grid(tmp_path_factory.mktemp("traces"), "a", "b", **told.settings()) as servers:
        yield servers


@pytest.fixture(scope="module")
def http(servers: dict[str, Server]) -> Iterator[httpx2.Client]:
    with client(servers["a"]) as http:
        yield http


def at_least(count: int) -> Callable[[list[Told]], bool]:
    return lambda spans: len(spans) >= count


def traceparent(*, sampled: bool = True) -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{'01' if sampled else '00'}"


def test_an_upload_its_job_and_what_that_starts_are_one_trace(http: httpx2.Client, told: Receiver) -> None:
    first = create(
        http, 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/y"', input=at("t-in/x"), output=at("t-mid/x")
    )
    second = create(
        http, 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/z"', input=at("t-mid/x"), output=at("t-out/x")
    )
    put(http, "t-in", "x/one")
    [one] = eventually(lambda: jobs(http, first), lambda found: len(found) == 1)
    [two] = eventually(lambda: jobs(http, second), lambda found: len(found) == 1)
    assert ended(http, second, two)["status"] == "Succeeded"
    job, following = told.job(one), told.job(two)
    spans = told.until(job.trace, lambda spans: len(spans) >= 11)
    assert len(spans) == 11
    [upload] = [span for span in spans if span.name == "upload"]
    assert (upload.parent, upload.kind, upload.resource["oscar.process"]) == ("", SERVER, "s3")
    assert upload.attributes["http.response.status_code"] == 200
    assert upload.attributes["url.path"] == "/t-in/x/one"
    assert job.parent == upload.span
    # What the result starts is below the job that stored it.
    assert (following.trace, following.parent) == (job.trace, job.span)
    for whole in (job, following):
        parts = [span for span in spans if span.parent == whole.span and span.name != "job"]
        assert [part.name for part in parts] == PARTS
        for part in parts:
            assert whole.start <= part.start <= part.end <= whole.end + 1_000_000_000
            assert part.attributes["oscar.attempt"] == 1
            assert not part.failed
        assert all(early.end <= late.start for early, late in pairwise(parts[1:]))
    assert job.attributes == {
        "oscar.job": one,
        "oscar.service": first,
        "oscar.kind": "event",
        "oscar.state": "succeeded",
    }
    assert job.resource["service.name"] == "oscar"


def test_a_call_goes_on_with_its_callers_trace(http: httpx2.Client, told: Receiver) -> None:
    service = create(http, "echo hello")
    given = traceparent()
    job = submit(http, service, headers={"traceparent": given})
    ended(http, service, job)
    found = told.job(job)
    assert found.trace == given.split("-")[1]
    spans = told.until(found.trace, lambda spans: any("POST" in span.name for span in spans))
    [call] = [span for span in spans if "POST" in span.name]
    assert (call.name, call.parent, call.span) == (
        "POST /job/{serviceName}",
        given.split("-")[2],
        found.parent,
    )
    sync = traceparent()
    assert http.post(f"/run/{service}", headers={"traceparent": sync}).status_code == 200
    [run] = told.until(sync.split("-")[1], bool)
    assert (run.name, run.kind, run.failed) == ("POST /run/{serviceName}", SERVER, False)


def test_what_a_caller_does_not_sample_is_not_told(http: httpx2.Client, told: Receiver) -> None:
    service = create(http, "echo hello")
    quiet = traceparent(sampled=False)
    ended(http, service, submit(http, service, headers={"traceparent": quiet}))
    ended(http, service, loud := submit(http, service))
    told.job(loud)  # that came later, and is there
    assert told.of(quiet.split("-")[1]) == []
    # What is no trace context begins a trace of its own.
    odd = submit(http, service, headers={"traceparent": "00-" + "0" * 32 + "-" + "1" * 16 + "-01"})
    ended(http, service, odd)
    assert told.job(odd).trace.strip("0")


def test_failures_are_told(http: httpx2.Client, told: Receiver) -> None:
    service = create(http, "exit 3")
    job = submit(http, service)
    ended(http, service, job)
    assert told.job(job).failed
    run = told.job(job, "run")
    assert (run.failed, run.attributes["oscar.exit_code"]) == (True, 3)
    assert "exit code 3" in run.message
    assert not told.job(job, "stage-in").failed
    waiting = create(http, "sleep 60", cpu=NO_ROOM)
    job = submit(http, waiting)
    assert http.post(f"/system/jobs/{waiting}/{job}/cancel").status_code == 202
    ended(http, waiting, job)
    assert told.job(job).attributes["oscar.state"] == "cancelled"


def test_a_delegated_job_is_one_trace_over_both_clusters(
    servers: dict[str, Server], http: httpx2.Client, told: Receiver
) -> None:
    with client(servers["b"]) as member:
        create(member, "echo there", name="there")
        members = {"replicas": [replica("b", "there")], "clusters": {"b": account(servers["b"])}}
        service = create(http, "echo here", cluster_id="a", cpu=NO_ROOM, **members)
        job = submit(http, service)
        assert ended(http, service, job)["delegation"]["cluster_id"] == "b"
    handed = told.job(job, "delegation")
    assert (handed.kind, handed.failed) == (CLIENT, False)
    assert (handed.attributes["oscar.member"], handed.attributes["oscar.policy"]) == ("b", "static")
    spans = told.until(handed.trace, lambda spans: len([s for s in spans if s.name == "job"]) == 2)
    here, there = [span for span in spans if span.name == "job"]
    [call] = [span for span in spans if span.parent == handed.span]
    assert call.name == "POST /job/{serviceName}"
    assert handed.parent == here.span
    assert there.parent == call.span
    assert (here.attributes["oscar.service"], there.attributes["oscar.service"]) == (service, "there")
    assert [span.name for span in spans if span.parent == there.span] == PARTS
    assert [span.name for span in spans if span.parent == here.span] == ["queue", "delegation"]


def test_a_result_from_a_member_is_part_of_the_trace(tmp_path: Path, told: Receiver) -> None:
    """And what it starts at home; whatever others keep with the trace comes along everywhere."""
    with world_on(tmp_path, "a", "b", **told.settings()) as world:
        given, state = traceparent(), "vendor=1,tenant@other=x y"
        world.make("away", "b")
        a = world.http()
        following = create(a, "true", input=at("away/out"))
        job = submit(a, "away", headers={"traceparent": given, "tracestate": state})
        [next_] = eventually(lambda: jobs(a, following), lambda found: len(found) == 1)
        assert ended(a, following, next_)["status"] == "Succeeded"
        assert ended(a, "away", job)["delegation"]["cluster_id"] == "b"
        # An upload at the member begins there, and goes on here as well.
        put(world.http("b"), "away", "in/x")
        [other] = eventually(lambda: set(jobs(a, following)) - {next_}, lambda found: len(found) == 1)
        assert ended(a, following, other)["status"] == "Succeeded"
    # The member is called twice: it takes no tokens, and then the account.
    for begun, count in ((next_, 17), (other, 12)):
        whole = told.job(begun)
        spans = told.until(whole.trace, at_least(count))
        by_id = {span.span: span for span in spans}
        assert len(spans) == len(by_id) == count
        upload = by_id[whole.parent]
        assert (upload.name, upload.attributes["url.path"].rpartition("/")[0]) == ("upload", "/away/out")
        there = by_id[upload.parent]
        assert (there.name, there.attributes["oscar.service"]) == ("job", "away")
        assert [span.name for span in spans if span.parent == there.span] == [*PARTS, "upload"]
        assert [span.name for span in spans if span.parent == whole.span] == PARTS
    home = told.of(given.split("-")[1])
    assert next_ in {span.attributes.get("oscar.job") for span in home}
    assert {span.state for span in home} == {state}


def test_a_delegation_in_vain_is_told_and_an_endpoint_hears_of_the_trace(
    http: httpx2.Client, told: Receiver
) -> None:
    with foreign() as endpoint:
        members = [{"type": "endpoint", "url": f"{endpoint.url}/x"}]
        service = create(http, "echo here", cluster_id="a", cpu=NO_ROOM, replicas=members)
        job = submit(http, service)
        ended(http, service, job)
        assert endpoint.asked[0][2]["traceparent"] == told.job(job, "delegation").header
        endpoint.status = 403
        refused = submit(http, service)
        vain = told.job(refused, "delegation")
        assert vain.failed
        assert "403" in vain.message
        http.delete(f"/system/logs/{service}", params={"all": "true"})


def test_no_secret_is_told(http: httpx2.Client, told: Receiver) -> None:
    secret = secrets.token_hex(16)
    service = create(http, "echo $PLANTED; false", environment={"secrets": {"PLANTED": secret}})
    token = http.get(f"/system/services/{service}").json()["token"]
    job = submit(http, service, headers={"Authorization": f"Bearer {token}"}, auth=None)
    http.post(f"/job/{service}?token={token}", content=secret)
    ended(http, service, job)
    told.job(job)
    for body in told.raw:
        assert secret.encode() not in body
        assert token.encode() not in body


def test_a_restart_in_the_middle_loses_no_span_of_the_job(tmp_path: Path) -> None:
    with otlp.receiver() as told, running(tmp_path / "data", **told.settings()) as server:
        with client(server) as http:
            service = create(http, "sleep 3")
            job = submit(http, service)
            eventually(lambda: http.get(f"/system/jobs/{service}/{job}").json()["status"], "Running")
        server.kill()
        server.start()
        with client(server) as http:
            ended(http, service, job)
        whole = told.job(job)
        for part in ("run", "stage-out"):
            assert told.job(job, part).parent == whole.span
        assert told.job(job, "run").end - told.job(job, "run").start >= 2_000_000_000


def test_a_receiver_that_is_away_disturbs_nobody(tmp_path: Path) -> None:
    away = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{free_port()}/v1/traces"}
    with running(tmp_path / "data", **away) as server, client(server) as http:
        service = create(http, "echo hello")
        assert ended(http, service, submit(http, service))["status"] == "Succeeded"
        assert server.stop() == 0
