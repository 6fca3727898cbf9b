"""A platform whose places are all taken: jobs wait for them, and one that holds a place can be told to end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.api.conftest import Scene, application


@pytest.fixture(scope="module")
def one_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with application(tmp_path_factory.mktemp("places") / "data", max_running=1) as running:
        yield running


def test_jobs_run_one_after_another_when_there_is_one_place(one_place: Scene) -> None:
    service = one_place.service("true")
    jobs = [one_place.ended(service, job) for job in [one_place.job(service) for _ in range(4)]]
    assert [job["status"] for job in jobs] == ["Succeeded"] * 4
    in_order = sorted(jobs, key=lambda job: str(job["start_time"]))
    assert all(one["finish_time"] <= other["start_time"] for one, other in pairwise(in_order))


def test_cancelling_the_job_that_holds_the_last_place_gives_it_to_the_next(one_place: Scene) -> None:
    slow, quick = one_place.service("sleep 600"), one_place.service("true")
    holding = one_place.job(slow)
    waiting = one_place.job(quick)
    assert one_place.http.post(f"/system/jobs/{slow}/{holding}/cancel").status_code == 202
    assert one_place.ended(slow, holding)["reason"] == "cancelled"
    assert one_place.ended(quick, waiting)["status"] == "Succeeded"
