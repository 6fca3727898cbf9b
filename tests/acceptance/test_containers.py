"""The real program with containers: its words about images, warm workers, and lists that ask no engine."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests import server as servers
from tests.acceptance.calls import SPAN, client, create, ended, jobs, one_at_a_time, submit
from tests.server import Server

pytestmark = pytest.mark.containers


@dataclass(frozen=True, slots=True)
class Watched:
    """A server whose calls of its engine are written down."""

    server: Server
    engine: str
    image: str
    calls: Path

    def asked(self) -> list[str]:
        """The calls until now, those that only wait for news left out."""
        return [line for line in self.calls.read_text().splitlines() if " events " not in f" {line} "]

    def remove_containers(self, job: str) -> None:
        """Take away what the engine may still have of a job."""
        program = shutil.which(self.engine) or self.engine
        ask = [program, "ps", "--all", "--quiet", "--filter", f"label=oscar.job={job}"]
        for container in subprocess.run(ask, check=True, capture_output=True, text=True).stdout.split():
            subprocess.run([program, "rm", "--force", container], check=True, capture_output=True)


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, container_engine: str, busybox_image: str
) -> Iterator[Watched]:
    place = tmp_path_factory.mktemp("containers")
    calls = place / "calls"
    calls.touch()
    (place / "bin").mkdir()
    program = place / "bin" / container_engine
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec {shutil.which(container_engine)} "$@"\n')
    program.chmod(0o755)
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    with servers.running(
        place / "data", OSCAR_ENGINE=container_engine, PATH=path, OSCAR_WORKER_IDLE_SECONDS="600"
    ) as running:
        yield Watched(running, container_engine, busybox_image, calls)


@pytest.fixture
def http(watched: Watched) -> Iterator[httpx2.Client]:
    with client(watched.server) as made:
        yield made


def test_an_image_that_can_not_be_pulled_is_told_in_the_engines_words(
    http: httpx2.Client, watched: Watched
) -> None:
    image = "localhost:1/there/is-none:1"
    name = create(http, "echo never", image=image, retry={"delay": 0.1, "max_delay": 0.2})
    job = submit(http, name)
    found = ended(http, name, job)
    assert (found["status"], found["state"], found["reason"]) == ("Failed", "dead", "ours")
    assert found["attempt"] == 4, "trouble of ours is tried again three times"
    said = subprocess.run([watched.engine, "pull", image], check=False, capture_output=True, text=True).stderr
    assert "connection refused" in said
    for text in (found["message"], http.get(f"/system/logs/{name}/{job}").text):
        assert image in text
        assert "connection refused" in text
    answer = http.post(f"/run/{name}", content=b"{}")
    assert answer.status_code == 502, answer.text
    assert answer.json()["code"] == "image_error"
    assert "connection refused" in answer.json()["message"]


METRICS = {"meta", "requests", "request_series", "request_counts", "usage_hours", "usage_meters"}
"""In `meta` is how far requests have been added up."""


def rows(data: Path) -> dict[str, int]:
    """How many rows each table has, but for those of metrics, which come by time."""
    with contextlib.closing(sqlite3.connect(f"file:{data}/oscar.db?mode=ro", uri=True)) as store:
        names = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: store.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608 - our own tables
            for name in names
            if name not in METRICS
        }


def test_defect_8_a_call_of_a_users_service_makes_nothing_to_be_admitted(
    http: httpx2.Client, watched: Watched
) -> None:
    user = "ann@example.org"
    limits = http.put(f"/system/quotas/user/{user}", json={"cpu": "2000m", "memory": "2Gi"})
    assert limits.status_code == 200, limits.text
    name = create(http, "echo done", image=watched.image, owner=user, cpu="0.1", synchronous={"max_scale": 1})
    assert http.post(f"/run/{name}", content=b"{}").text == "done\n"
    before, asked = rows(watched.server.data), watched.asked()
    for _ in range(30):
        assert http.post(f"/run/{name}", content=b"{}").text == "done\n"
    assert rows(watched.server.data) == before, "no workload, job or reservation comes of a call"
    made = {"create", "run", "start", "exec", "rm", "kill", "stop"}
    assert not [call for call in watched.asked()[len(asked) :] if made & set(call.split()[:2])]


def test_defect_9_synchronous_calls_share_a_warm_container_one_at_a_time(
    http: httpx2.Client, watched: Watched
) -> None:
    name = create(http, SPAN, image=watched.image, synchronous={"max_scale": 1})
    assert len(one_at_a_time(http, name)) == 1, "all in one container"


def test_defect_21_lists_of_jobs_ask_no_engine_and_ended_jobs_need_no_container(
    http: httpx2.Client, watched: Watched
) -> None:
    name = create(http, "echo words", image=watched.image)
    wanted = [submit(http, name) for _ in range(3)]
    for job in wanted:
        assert ended(http, name, job)["status"] == "Succeeded"
        watched.remove_containers(job)
    before = watched.asked()
    for _ in range(20):
        found = jobs(http, name)
        assert {found[job]["status"] for job in wanted} == {"Succeeded"}
        assert all(found[job]["finish_time"] for job in wanted)
    for job in wanted:
        assert http.get(f"/system/logs/{name}/{job}").text == "words\n"
    calls = [
        call for call in watched.asked()[len(before) :] if " ps " in f" {call} " or " logs " in f" {call} "
    ]
    assert len(calls) < 3, "at most what the server asks by itself meanwhile"
