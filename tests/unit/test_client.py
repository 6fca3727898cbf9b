"""The client's own pieces: errors from answers, encoding of calls, records. The rest is tested on a real server."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oscar import errors
from oscar.client import Client, Storage
from oscar.client.records import Bucket, BucketContent, Job, JobSummary
from oscar.client.rest import _decoded, encoded
from oscar.client.wire import classes, from_answer, path
from oscar.model.event import decode
from oscar.model.storage import MinIOProvider


@pytest.mark.parametrize("code", sorted(classes()))
def test_errors_come_back_as_their_class(code: str) -> None:
    kind = classes()[code]
    sent = kind("what is wrong", field="input[0].path", fix="mend it")
    error = from_answer(kind.status, json.dumps(sent.as_dict()).encode())
    assert type(error) is kind
    assert error.as_dict() == sent.as_dict()
    assert error.status == kind.status


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (401, b"", errors.Unauthorized, "the server answered 401"),
        (404, b"not here\n", errors.NotFound, "not here"),
        (400, b'"quoted by Go"', errors.BadRequest, "quoted by Go"),
        (418, b"<html>", errors.OscarError, "<html>"),
        (500, b"\xff", errors.OscarError, "\ufffd"),
        (502, b"[]", errors.Unavailable, "[]"),
        (409, b'{"code": "unheard_of", "message": "m"}', errors.Conflict, "m"),
        (503, b'{"error": "m"}', errors.Unavailable, '{"error": "m"}'),
    ],
)
def test_errors_of_other_servers(
    status: int, body: bytes, kind: type[errors.OscarError], message: str
) -> None:
    error = from_answer(status, body)
    assert type(error) is kind
    assert (error.message, error.status) == (message, status)


def test_retry_after_is_kept() -> None:
    error = from_answer(429, b"", {"Retry-After": "3", "Server": "x"})
    assert error.headers == {"Retry-After": "3"}


@given(st.binary(max_size=60))
def test_the_server_reads_what_was_sent(body: bytes) -> None:
    """The server takes JSON as it is: what the client encodes must never read as JSON."""
    if body:
        assert decode(encoded(body)).content == body


@pytest.mark.parametrize("text", [b"1234", b"true", b"null", b"12345678"])
def test_base64_that_is_json_too(text: bytes) -> None:
    body = base64.b64decode(text)
    with pytest.raises(ValueError):
        json.loads(encoded(body))
    assert decode(encoded(body)).content == body


@given(st.binary(min_size=1, max_size=60))
def test_answers_are_decoded(body: bytes) -> None:
    assert _decoded(base64.b64encode(body)) == body
    assert _decoded(base64.encodebytes(body)) == body


@pytest.mark.parametrize("answer", [b"", b"hello, world", b"abc", b"ab=c", b"\xff\xff\xff\xff"])
def test_logs_are_left_alone(answer: bytes) -> None:
    assert _decoded(answer) is None


def test_paths_hold_any_name() -> None:
    assert path("system", "services", "a/b ?#%") == "/system/services/a%2Fb%20%3F%23%25"


@pytest.mark.parametrize("time", ["", None, "0001-01-01T00:00:00Z"])
def test_no_time(time: str | None) -> None:
    job = JobSummary.model_validate({"name": "j", "status": "Pending", "start_time": time})
    assert job.start_time is None


def test_times() -> None:
    job = JobSummary.model_validate(
        {"name": "j", "status": "Running", "start_time": "2026-01-02T03:04:05.678Z", "more": 1}
    )
    assert job.start_time == datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)


@pytest.mark.parametrize(
    ("status", "done", "succeeded"),
    [
        ("Pending", False, False),
        ("Suspended", False, False),
        ("Running", False, False),
        ("Failed", True, False),
        ("Succeeded", True, True),
    ],
)
def test_ends_of_jobs(status: str, done: bool, succeeded: bool) -> None:
    job = Job(job_id="j", service="s", status=status)
    assert (job.done, job.succeeded) == (done, succeeded)


def test_null_lists_of_go() -> None:
    assert Bucket.read({"bucket_name": "b", "allowed_users": None}).allowed_users == ()
    content = BucketContent.read({"bucket_name": "b", "objects": None, "next_page": None, "owner": None})
    assert (content.objects, content.next_page, content.owner) == ((), "", "")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:8080", "", "ftp://x"])
def test_addresses(endpoint: str) -> None:
    with pytest.raises(errors.InvalidField) as caught:
        Client(endpoint)
    assert caught.value.field == "endpoint"


def test_a_store_needs_an_address() -> None:
    with pytest.raises(errors.InvalidField):
        Storage(MinIOProvider())


@pytest.mark.anyio
async def test_nobody_there() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        port = taken.getsockname()[1]
        async with Client(f"http://127.0.0.1:{port}", user="u", password="p") as client:
            with pytest.raises(errors.Unreachable, match=str(port)):
                await client.health()
