"""Metrics where neither Loki nor records are: counted in the server's own log, as OSCAR 4 does in those of its pods."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.acceptance.calls import at, client, create, ended, put, submit
from tests.federation import eventually
from tests.server import Server, running

pytestmark = pytest.mark.timeout(300)


def totals(http: httpx2.Client, **params: str) -> tuple[dict[str, Any], dict[str, str]]:
    said = http.get("/system/metrics", params=params).json()
    return said["totals"], {each["name"]: each["status"] for each in said["sources"]}


def rows(server: Server) -> int:
    """Records in the database."""
    with sqlite3.connect(f"file:{server.data / 'oscar.db'}?mode=ro", uri=True) as database:
        return int(database.execute("SELECT count(*) FROM requests WHERE kind <> 'async'").fetchone()[0])


def test_requests_are_counted_in_the_servers_own_log(tmp_path: Path) -> None:
    with running(tmp_path / "data", OSCAR_REQUESTS_TTL="0") as server, client(server) as http:
        one = create(http, "echo one", input=at("own-log/in"))
        two = create(http, "echo two")
        for _ in range(3):
            assert http.post(f"/run/{one}").status_code == 200
        ended(http, two, submit(http, two))
        repeated = {"headers": {"Idempotency-Key": "same"}}
        assert submit(http, two, **repeated) == submit(http, two, **repeated)
        put(http, "own-log", "in/x")
        assert http.post("/run/nobodys").status_code == 404
        found, sources = eventually(
            lambda: totals(http), lambda answer: answer[0].get("requests_count_total") == 6
        )
        assert sources == {"server-log": "ok", "exposed-request-logs": "ok", "job-accounting": "ok"}
        assert {kind: found[f"requests_count_{kind}"] for kind in ("sync", "async", "exposed")} == {
            "sync": 3,
            "async": 3,
            "exposed": 0,
        }
        assert found["users"] == ["cluster_admin"]
        by = http.get("/system/metrics/breakdown", params={"group_by": "service"}).json()["items"]
        assert {row["key"]: row["requests_count_total"] for row in by} == {one: 4, two: 2}
        said = http.get(f"/system/metrics/{one}", params={"metric": "requests-sync-per-service"}).json()
        assert said["value"] == 3
        past, _ = totals(http, start="2020-01-01", end="2020-01-02")
        assert past["requests_count_total"] == 0
        assert rows(server) == 0
        # They outlive the server.
        server.stop()
        server.start()
        with client(server) as again:
            assert totals(again)[0]["requests_count_total"] == 6


def test_what_the_log_has_forgotten_is_told(tmp_path: Path) -> None:
    with running(tmp_path / "data", OSCAR_REQUESTS_TTL="0") as server, client(server) as http:
        service = create(http, "true")
        for _ in range(2):
            http.post(f"/run/{service}")
        log = server.data / "server-log" / "requests.log"
        server.stop()
        # As after so many requests that the earlier file was replaced: both of these came in this minute.
        log.replace(log.with_name("requests.log.1"))
        server.start()
        with client(server) as again:
            again.post(f"/run/{service}")
            found, sources = totals(again)
            assert found["requests_count_sync"] == 3
            assert sources["server-log"] == "partial"
            [note] = [
                each["notes"]
                for each in again.get("/system/metrics").json()["sources"]
                if each["name"] == "server-log"
            ]
            assert "the log goes back to" in note
