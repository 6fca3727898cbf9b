"""Every call leaves a record: who, what, when, from where, how it went; the log has a line for it.

Through the real program; the records are read from its database, as the metrics will.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx2
import pytest

from tests import countries
from tests.server import Server, running

SERVICE = {
    "name": "recorded",
    "image": "none",
    "script": 'cat "$INPUT_FILE_PATH"; [ ! -s "$INPUT_FILE_PATH" ] || true',
}
INPUT = [{"storage_provider": "minio.default", "path": "recorded/in"}]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that knows countries and writes its log as JSON."""
    place = tmp_path_factory.mktemp("requests")
    file = countries.database(
        place / "c.mmdb", {"127.0.0.0/8": countries.geolite("ES"), "192.0.2.0/24": countries.geolite("FR")}
    )
    with running(place / "data", OSCAR_COUNTRY_DATABASE=str(file), OSCAR_LOG_JSON="true") as server:
        made = httpx2.post(
            f"{server.endpoint}/system/services",
            json={**SERVICE, "input": INPUT},
            auth=(server.user, server.password),
        )
        assert made.status_code == 201, made.text
        yield server


def records(server: Server, expected: int, **wanted: Any) -> list[dict[str, Any]]:
    """Records with these values, as soon as there are so many: those of calls are written behind."""
    where = " AND ".join(f'"{name}" = ?' for name in wanted)
    with sqlite3.connect(f"file:{server.data}/oscar.db?mode=ro", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        for _ in range(200):
            rows = connection.execute(
                f"SELECT * FROM requests WHERE {where} ORDER BY id",  # noqa: S608 - names of our own columns
                tuple(wanted.values()),
            ).fetchall()
            if len(rows) >= expected:
                break
            time.sleep(0.05)  # nobody tells when the server has written behind
    return [dict(row) for row in rows]


def token(server: Server) -> str:
    answer = httpx2.get(f"{server.endpoint}/system/services/recorded", auth=(server.user, server.password))
    return str(answer.json()["token"])


def test_a_synchronous_call(watched: Server) -> None:
    before = int(time.time() * 1000)
    answer = httpx2.post(
        f"{watched.endpoint}/run/recorded",
        content=b"aGVsbG8=",
        auth=(watched.user, watched.password),
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    [record] = records(watched, 1, kind="sync", entrance="basic")
    assert record["service"] == "recorded"
    assert record["user"] == record["owner"] == "cluster_admin"
    assert record["status"] == 200
    assert (record["address"], record["country"]) == ("127.0.0.1", "ES")
    assert before - 1 <= record["time"] <= time.time() * 1000
    assert 0 < record["duration"] < 60e6


def test_jobs_by_token_and_by_upload(watched: Server) -> None:
    answer = httpx2.post(
        f"{watched.endpoint}/job/recorded",
        content=b"{}",
        headers={"Authorization": f"Bearer {token(watched)}"},
    )
    assert answer.status_code == 201
    # Written in the transaction that accepted it: there is nothing to wait for.
    [record] = records(watched, 0, kind="async", entrance="token")
    assert (record["service"], record["status"], record["country"]) == ("recorded", 201, "ES")

    keys = httpx2.get(f"{watched.endpoint}/system/config", auth=(watched.user, watched.password)).json()[
        "minio_provider"
    ]
    store = boto3.client(
        "s3",
        endpoint_url=watched.s3,
        aws_access_key_id=keys["access_key"],
        aws_secret_access_key=keys["secret_key"],
        region_name="us-east-1",
    )
    store.put_object(Bucket="recorded", Key="in/one.txt", Body=b"1")
    [record] = records(watched, 0, kind="async", entrance="s3")
    assert (record["user"], record["address"], record["country"]) == ("cluster_admin", "127.0.0.1", "ES")


def test_a_repeated_job_is_one_request(watched: Server) -> None:
    before = len(records(watched, 0, kind="async", entrance="basic"))
    for _ in range(3):
        httpx2.post(
            f"{watched.endpoint}/job/recorded",
            content=b"{}",
            headers={"Idempotency-Key": "once"},
            auth=(watched.user, watched.password),
        )
    assert len(records(watched, 0, kind="async", entrance="basic")) == before + 1


def test_calls_that_reach_no_service_leave_none(watched: Server) -> None:
    before = len(records(watched, 0, kind="sync"))
    wrong = httpx2.post(f"{watched.endpoint}/run/recorded", auth=("oscar", "wrong"))
    absent = httpx2.post(f"{watched.endpoint}/run/absent", auth=(watched.user, watched.password))
    assert (wrong.status_code, absent.status_code) == (401, 404)
    # A call after them shows that all before it are written.
    httpx2.post(f"{watched.endpoint}/run/recorded", auth=(watched.user, watched.password), timeout=60)
    assert len(records(watched, before + 1, kind="sync")) == before + 1


def test_the_log_has_a_line_for_each_call(watched: Server) -> None:
    httpx2.post(
        f"{watched.endpoint}/run/recorded", auth=(watched.user, watched.password), timeout=60
    ).raise_for_status()
    lines = [
        json.loads(line) for line in watched.log.read_text().splitlines() if "GIN-EXECUTIONS-LOGGER" in line
    ]
    last = [line for line in lines if line["status"] == 200][-1]
    assert (last["method"], last["path"], last["user"]) == ("POST", "/run/recorded", "cluster_admin")
    assert last["address"] == "127.0.0.1"


def test_only_proxies_that_are_trusted_tell_the_address(tmp_path: Path) -> None:
    spoofed = {"X-Forwarded-For": "198.51.100.9, 192.0.2.7"}
    for trusted, expected in (("", "127.0.0.1"), ("127.0.0.0/8", "192.0.2.7")):
        with running(tmp_path / f"data{bool(trusted)}", OSCAR_TRUSTED_PROXIES=trusted) as server:
            account = (server.user, server.password)
            made = httpx2.post(f"{server.endpoint}/system/services", json=SERVICE, auth=account)
            assert made.status_code == 201, made.text
            httpx2.post(
                f"{server.endpoint}/job/recorded", content=b"{}", headers=spoofed, auth=account
            ).raise_for_status()
            [record] = records(server, 1, kind="async")
            assert record["address"] == expected


def test_a_guesser_and_a_busy_user_are_slowed_down(tmp_path: Path) -> None:
    with running(
        tmp_path / "data", OSCAR_LOGIN_FAILURES="5", OSCAR_USER_RATE="0.01", OSCAR_USER_BURST="20"
    ) as server:
        url = f"{server.endpoint}/system/info"
        account = (server.user, server.password)
        answers = [httpx2.get(url, auth=account) for _ in range(25)]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert int(answers[-1].headers["Retry-After"]) > 0
        assert answers[-1].json()["code"] == "too_many_requests"
        guesses = [httpx2.get(url, auth=(server.user, f"guess {number}")) for number in range(7)]
        assert [guess.status_code for guess in guesses] == [401] * 5 + [429] * 2
