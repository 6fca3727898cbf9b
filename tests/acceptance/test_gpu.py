"""Services that ask for a GPU, on a machine that has one; everywhere else they say that there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest

from oscar.compute.local import machine
from tests.acceptance.calls import client, create, ended, submit
from tests.server import Server, sandbox_works

SEES = """for it in 0 1 2 3 4 5 6 7; do [ -c "/dev/nvidia$it" ] && echo "gpu $it"; done
exec 3<>/dev/nvidiactl && echo driver"""


@pytest.fixture
def http(tmp_path: Path) -> Iterator[httpx2.Client]:
    server = Server(tmp_path / "data")
    server.start()
    with client(server) as calls:
        yield calls
    server.stop()


def log(http: httpx2.Client, service: str, job: str) -> list[str]:
    return http.get(f"/system/logs/{service}/{job}").text.splitlines()


@pytest.mark.skipif(machine.gpu_nodes() != (), reason="this machine has a GPU")
def test_without_a_gpu_it_is_said_at_once(http: httpx2.Client) -> None:
    answer = http.post(
        "/system/services",
        json={"name": "wants-a-gpu", "image": "none", "script": "true", "enable_gpu": True},
    )
    assert answer.status_code == 201
    assert "enable_gpu" in answer.text


@pytest.mark.skipif(machine.gpu_nodes() == (), reason="no GPU here")
def test_only_a_service_that_asks_for_it_has_the_gpu(http: httpx2.Client) -> None:
    granted = create(http, SEES, enable_gpu=True, cpu="1", memory="2Gi")
    job = submit(http, granted)
    assert ended(http, granted, job)["status"] == "Succeeded"
    assert log(http, granted, job) == [*(f"gpu {number}" for number in range(machine.gpus())), "driver"]
    if sandbox_works():
        refused = create(http, SEES)
        job = submit(http, refused)
        assert ended(http, refused, job)["status"] == "Failed"
        assert not [line for line in log(http, refused, job) if line.startswith(("gpu", "driver"))]


@pytest.mark.skipif(machine.gpu_nodes() == (), reason="no GPU here")
def test_a_job_waits_for_the_gpu_and_its_hours_are_counted(http: httpx2.Client) -> None:
    service = create(http, "date +%s.%N; sleep 2; date +%s.%N", enable_gpu=True, cpu="0.1", memory="64Mi")
    posted = [submit(http, service) for _ in range(machine.gpus() + 1)]
    for job in posted:
        assert ended(http, service, job)["status"] == "Succeeded"
    times = [[float(line) for line in log(http, service, job)] for job in posted]
    for begin, _ in times:
        running = sum(other <= begin < end for other, end in times)
        assert running <= machine.gpus(), "more ran at once than there are GPUs"
    today = datetime.now(UTC).date().isoformat()
    found = http.get(
        f"/system/metrics/{service}", params={"metric": "gpu-hours", "start": today, "end": today}
    ).json()
    assert found["value"] >= 2 * len(posted) / 3600 * 0.99


@pytest.mark.skipif("OSCAR_TEST_CUDA" not in os.environ, reason="no CUDA program is named by OSCAR_TEST_CUDA")
def test_a_cuda_program_computes(http: httpx2.Client) -> None:
    """`OSCAR_TEST_CUDA` is a command that computes on the GPU and prints `ok`."""
    service = create(http, os.environ["OSCAR_TEST_CUDA"], enable_gpu=True, cpu="4", memory="16Gi")
    job = submit(http, service)
    assert ended(http, service, job)["status"] == "Succeeded", log(http, service, job)
    assert log(http, service, job)[-1] == "ok"
    # And synchronously, in a warm worker.
    assert http.post(f"/run/{service}", content=b"{}").text.endswith("ok\n")
