"""Faults of our own in the way of one job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oscar.compute.local.backend import LocalCompute
from oscar.core import dispatcher
from tests.api.conftest import application


def test_a_fault_of_ours_is_said_and_the_job_is_given_to_the_engine_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    submit, tries = LocalCompute.submit, []

    async def faulty(self: LocalCompute, run: Any, **how: Any) -> None:
        tries.append(run.name)
        if len(tries) <= 2:
            raise ZeroDivisionError("a fault of ours")
        await submit(self, run, **how)

    monkeypatch.setattr(LocalCompute, "submit", faulty)
    monkeypatch.setattr(dispatcher, "_FAULT_S", 0.05)
    with application(tmp_path / "data") as scene:
        service = scene.service("echo once")
        job = scene.job(service)
        found = scene.ended(service, job)
        assert (found["status"], found["attempt"]) == ("Succeeded", 1)
        assert scene.http.get(f"/system/logs/{service}/{job}").text == "once\n"
    assert tries == [f"{job}-1"] * 3
    assert logged().count("a job could not be given to the engine") == 2
    assert "ZeroDivisionError: a fault of ours" in logged()
