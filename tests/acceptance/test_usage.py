"""CPU and GPU hours of jobs, calls and exposed services, against what their own programs say that they have used."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from tests.server import Server, running

pytestmark = pytest.mark.timeout(600)

BURN = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done"
"""Some tenths of a second of CPU in any shell."""
SCRIPT = f"({BURN}) & {BURN}; wait; times"


@pytest.fixture(scope="module", params=["process", "containers"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, str]]:
    """A server on each kind of engine, and an image for it."""
    settings, image = {"OSCAR_ENGINE": "process"}, "none"
    if request.param == "containers":
        image = request.getfixturevalue("busybox_image")
        settings = {"OSCAR_ENGINE": request.getfixturevalue("container_engine")}
    with running(
        tmp_path_factory.mktemp("usage") / "data", OSCAR_WORKER_IDLE_SECONDS="600", **settings
    ) as at:
        yield at, image


def call(server: Server, method: str, path: str, **more: Any) -> httpx2.Response:
    answer = httpx2.request(
        method, server.endpoint + path, auth=(server.user, server.password), timeout=120, **more
    )
    assert answer.status_code < 300, answer.text
    return answer


def create(server: Server, image: str, name: str, **fields: Any) -> None:
    definition = {"name": name, "image": image, "script": SCRIPT, "cpu": "2", "memory": "64Mi", **fields}
    call(server, "POST", "/system/services", json=definition)


def hours(server: Server, name: str, kind: str = "cpu") -> float:
    said = call(server, "GET", f"/system/metrics/{name}", params={"metric": f"{kind}-hours"}).json()
    assert said["sources"] == [{"name": "job-accounting", "status": "ok"}]
    return float(said["value"])


def told(text: str) -> float:
    """Seconds in the words of `times`: of the shell, then of its children, user and system each."""
    found = re.findall(r"(\d+)m([\d.]+)s", text)
    assert len(found) == 4, text
    return sum(int(minutes) * 60 + float(seconds) for minutes, seconds in found)


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)  # nobody tells when a reading is taken


def test_a_job(server: tuple[Server, str]) -> None:
    at, image = server
    create(at, image, "burns", enable_gpu=False)
    used = 0.0
    for _ in range(2):
        job = call(at, "POST", "/job/burns", content=b"{}").json()["job_id"]
        job_is = call(at, "GET", f"/system/jobs/burns/{job}", params={"wait": "100s"}).json()
        assert job_is["status"] == "Succeeded"
        used += told(call(at, "GET", f"/system/logs/burns/{job}").text)
    # What starts and ends the sandbox is counted with it: some hundredths of a second.
    assert used - 0.05 <= hours(at, "burns") * 3600 <= used * 1.2 + 0.6
    assert hours(at, "burns", "gpu") == 0


def test_a_job_that_fails_has_used_as_much(server: tuple[Server, str]) -> None:
    at, image = server
    create(at, image, "fails", script=f"{SCRIPT}; exit 3")
    job = call(at, "POST", "/job/fails", content=b"{}").json()["job_id"]
    assert call(at, "GET", f"/system/jobs/fails/{job}", params={"wait": "100s"}).json()["status"] == "Failed"
    used = told(call(at, "GET", f"/system/logs/fails/{job}").text)
    assert used - 0.05 <= hours(at, "fails") * 3600 <= used * 1.2 + 0.4


def test_a_job_that_is_killed_has_used_cpu_too(server: tuple[Server, str]) -> None:
    at, image = server
    create(at, image, "endless", script="while :; do :; done", timeout=3)
    job = call(at, "POST", "/job/endless", content=b"{}").json()["job_id"]
    said = call(at, "GET", f"/system/jobs/endless/{job}", params={"wait": "100s"}).json()
    assert said["reason"] == "timeout"
    assert 0.02 <= hours(at, "endless") * 3600 <= 8


def test_synchronous_calls(server: tuple[Server, str]) -> None:
    at, image = server
    create(at, image, "answers")
    used = sum(told(call(at, "POST", "/run/answers", content=b"").text) for _ in range(3))
    # Readings are taken every 20 s, and when the server ends, because its workers do then.
    at.stop()
    at.start()
    assert used * 0.9 <= hours(at, "answers") * 3600 <= used * 1.5 + 1


def test_an_exposed_service_goes_on_after_a_restart(server: tuple[Server, str]) -> None:
    at, image = server
    script = f"{BURN}; echo burnt; while :; do {BURN}; sleep 0.2; done"
    create(at, image, "stays", script=script, expose={"api_port": 8080, "max_scale": 1})
    try:
        until(lambda: "burnt" in call(at, "GET", "/system/services/stays/deployment/logs").text)
        seen = [0.0]
        for _ in range(2):
            at.stop()
            at.start()
            # It has gone on, whether a server was there or not.
            seen.append(hours(at, "stays"))
        assert seen == sorted(set(seen))
    finally:
        # Replicas outlive their server: this one would burn for ever.
        call(at, "DELETE", "/system/services/stays")


def test_totals(server: tuple[Server, str]) -> None:
    at, _ = server
    said = call(at, "GET", "/system/metrics").json()["totals"]
    names = ("burns", "fails", "endless", "answers", "stays")
    assert said["cpu_hours_total"] == pytest.approx(sum(hours(at, name) for name in names), rel=0.2)


def test_the_units(server: tuple[Server, str]) -> None:
    at, _ = server
    metrics = call(at, "GET", "/system/metrics/burns").json()["metrics"]
    assert {each["unit"] for each in metrics if each["metric"] in {"cpu-hours", "gpu-hours"}} == {"hours"}
