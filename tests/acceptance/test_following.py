"""Watching a job from afar: long polls, logs that are followed as a stream of events, as text and by polling."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import httpx2
import pytest

from tests.acceptance.calls import client, create, ended, submit
from tests.server import Server


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with client(server) as made:
        yield made


def test_a_long_poll_answers_at_the_end_or_at_its_own(http: httpx2.Client) -> None:
    name = create(http, "sleep 600")
    job = submit(http, name)
    place = f"/system/jobs/{name}/{job}"
    assert "finish_time" not in http.get(place, params={"wait": "100ms"}).json()
    answers: list[httpx2.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(http.get(place, params={"wait": "55s"})))
    waiting.start()
    assert http.post(f"{place}/cancel").status_code == 202
    waiting.join()
    assert answers[0].json()["state"] == "cancelled"
    assert http.get(place, params={"wait": "55s"}).json()["state"] == "cancelled"


def test_a_log_as_a_stream_of_events(http: httpx2.Client) -> None:
    name = create(http, "printf 'one\\ntwo\\rhalf\\n'; exec sleep 600")
    job = submit(http, name)
    headers = {"Accept": "text/event-stream"}
    with http.stream(
        "GET", f"/system/logs/{name}/{job}", params={"follow": "true"}, headers=headers
    ) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store"
        lines = stream.iter_lines()
        assert [next(lines) for _ in range(5)] == ["data: one", "", "data: two", "data: half", ""]
        assert http.post(f"/system/jobs/{name}/{job}/cancel").status_code == 202
        rest = list(lines)
    end = rest.index("event: end")
    said = json.loads(rest[end + 1].removeprefix("data: "))
    assert (said["job_id"], said["state"]) == (job, "cancelled")
    assert rest[end + 2 :] == [""]


def test_a_followed_log_goes_on_over_retries(http: httpx2.Client) -> None:
    name = create(http, "echo try; exit 1", retry={"attempts": 2, "delay": 0.1})
    job = submit(http, name)
    with http.stream("GET", f"/system/logs/{name}/{job}", params={"follow": "true"}) as stream:
        lines = [line for line in stream.iter_lines() if line == "try"]
    assert len(lines) == 3
    assert ended(http, name, job)["state"] == "dead"


def test_a_log_is_followed_by_polling(http: httpx2.Client) -> None:
    name = create(http, "echo one; echo two >&2; exec sleep 600")
    job = submit(http, name)
    for _ in range(600):
        answer = http.get(f"/system/logs/{name}/{job}", params={"timestamps": "true"})
        assert answer.status_code == 200
        rows = answer.text.splitlines()
        if len(rows) == 2:
            break
        http.get(f"/system/jobs/{name}/{job}", params={"wait": "100ms"})
    assert [row.split(" ", 1)[1] for row in rows] == ["one", "two"]
    assert rows == sorted(rows)
    assert http.get(f"/system/logs/{name}/{job}", params={"tail": "1"}).text == "two\n"
    assert http.delete(f"/system/logs/{name}/{job}").status_code == 204
    gone = http.get(f"/system/logs/{name}/{job}")
    assert (gone.status_code, gone.json()["code"]) == (404, "job_not_found")


def test_a_follower_who_leaves_disturbs_nobody(http: httpx2.Client) -> None:
    name = create(http, "while :; do echo word; sleep 0.01; done")
    job = submit(http, name)
    place = f"/system/logs/{name}/{job}"
    for _ in range(5):
        with http.stream("GET", place, params={"follow": "true"}) as stream:
            assert next(stream.iter_lines()) == "word"
    assert http.get("/health").text == "Ok"
    assert http.post(f"/system/jobs/{name}/{job}/cancel").status_code == 202
    assert ended(http, name, job)["state"] == "cancelled"
