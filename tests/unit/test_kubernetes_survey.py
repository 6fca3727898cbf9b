"""What the doctor judges without a cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from oscar.compute.kubernetes.backend import is_old
from oscar.compute.kubernetes.survey import MISSING, Wish, is_loopback, survey


@pytest.mark.parametrize(
    ("host", "loops"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("0.0.0.0", True),  # noqa: S104 - nothing is bound
        ("localhost", True),
        ("s3.localhost", True),
        ("10.0.0.1", False),
        ("minio.example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_where_a_pod_would_find_itself(host: str, loops: bool) -> None:
    assert is_loopback(host) is loops


@pytest.mark.parametrize(
    ("version", "old"),
    [("v1.28.9", True), ("v1.29.0", False), ("v1.34.2+k3s1", False), ("v2.0.0", False), ("", True)],
)
def test_versions(version: str, old: bool) -> None:
    assert is_old(version) is old


def test_without_a_cluster_that_is_all_there_is_to_say(tmp_path: Path) -> None:
    (seen,) = asyncio.run(survey(Wish(tmp_path / "missing", "", "127.0.0.1")))
    assert (seen.topic, seen.level) == ("engine kubernetes", MISSING)
