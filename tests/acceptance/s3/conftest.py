"""Fixtures of the S3 acceptance tests (elsewhere `server` is the whole program): an S3 server, a fresh bucket on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests import s3_server
from tests.s3_raw import call
from tests.s3_server import ADMIN, Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One S3 server for all tests that don't harm it."""
    with s3_server.running(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def bucket(server: Server, request: pytest.FixtureRequest) -> str:
    """The name of a bucket of the admin's, made for one test."""
    name = "t-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    assert call(server, ADMIN, "PUT", f"/{name}").status == 200
    return name
