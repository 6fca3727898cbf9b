"""`GET /metrics`: what Prometheus is told, and who may read it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from oscar.core.gauges import may_scrape
from oscar.core.platform import Platform
from oscar.core.requests import BOUNDS, Timings
from oscar.errors import Forbidden
from oscar.model.request import RequestKind
from oscar.model.user import Caller, Entrance
from tests.api.conftest import Scene, application


def samples(scene: Scene) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = scene.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def one(found: Any, name: str, **labels: str) -> float:
    return float(found[name, frozenset(labels.items())])


def test_calls_jobs_and_workers_are_told(tmp_path: Path) -> None:
    with application(tmp_path / "data") as scene:
        name = scene.service("echo done")
        for _ in range(3):
            assert scene.http.post(f"/run/{name}").status_code == 200
        assert scene.http.post("/run/nowhere").status_code == 404
        job = scene.job(name)
        scene.ended(name, job)
        found = samples(scene)
        assert one(found, "oscar_calls_total", kind="sync", status="2xx") == 3
        assert one(found, "oscar_calls_total", kind="sync", status="4xx") == 1
        assert one(found, "oscar_calls_total", kind="async", status="2xx") == 1
        assert one(found, "oscar_call_seconds_count", kind="sync") == 4
        assert one(found, "oscar_call_seconds_bucket", kind="sync", le="+Inf") == 4
        assert one(found, "oscar_jobs", state="succeeded") == 1
        assert one(found, "oscar_queue_oldest_seconds", kind="event") == 0
        assert one(found, "oscar_leases", state="held") == 0
        assert one(found, "oscar_cold_starts_total") >= 1
        assert one(found, "oscar_workers", state="idle") >= 1
        assert any(name_ == "oscar_cold_start_seconds" for name_, _ in found)


def test_only_administrators_and_this_machine_may_read(scene: Scene) -> None:
    # The test's client has no address of a network.
    assert scene.stranger("GET", "/metrics").status_code == 401
    assert scene.bearer(scene.service(), "GET", "/metrics").status_code == 403


ADMIN = Caller("cluster_admin", Entrance.BASIC, admin=True)


@pytest.mark.parametrize(
    ("access", "caller", "address", "forwarded", "expected"),
    [
        ("admin", None, "127.0.0.1", False, False),
        ("admin", ADMIN, "192.0.2.1", True, True),
        ("loopback", None, "127.0.0.1", False, True),
        ("loopback", None, "::1", False, True),
        ("loopback", None, "127.0.0.1", True, False),
        ("loopback", None, "192.0.2.1", False, False),
        ("loopback", None, "", False, False),
        ("all", None, "192.0.2.1", True, True),
    ],
)
def test_who_may_read(
    access: str, caller: Caller | None, address: str, forwarded: bool, expected: bool
) -> None:
    platform = cast("Platform", SimpleNamespace(settings=SimpleNamespace(metrics_access=access)))
    assert may_scrape(platform, caller, address, forwarded=forwarded) is expected


def test_users_may_not_read() -> None:
    platform = cast("Platform", SimpleNamespace(settings=SimpleNamespace(metrics_access="admin")))
    with pytest.raises(Forbidden):
        may_scrape(platform, Caller("ann", Entrance.OIDC), "192.0.2.1", forwarded=False)


def test_durations_fall_into_their_buckets() -> None:
    timings = Timings()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] + 1e-9, 1e9):
        timings.add(RequestKind.SYNC, 200, seconds)
    assert timings.counts[RequestKind.SYNC][:2] == [2, 1]
    assert timings.counts[RequestKind.SYNC][-1] == 1
    assert sum(timings.counts[RequestKind.ASYNC]) == 0
