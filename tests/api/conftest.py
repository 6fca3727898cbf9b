"""The API in this process, with a real SQLite and the process engine: what tests of routes share.

Starlette's test client runs the application with its lifespan in a thread of its own and speaks ASGI to it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from oscar.app.api import build
from oscar.settings import Settings
from tests import postgres
from tests.server import sandbox_works

PASSWORD = "a password of tests"
BODY_LIMIT = 1024 * 1024


@dataclass(slots=True)
class Scene:
    """A running application with what tests put into it."""

    http: TestClient

    def service(self, script: str = "echo done", **fields: Any) -> str:
        """Create a service; its name."""
        name = f"s-{uuid.uuid4().hex[:8]}"
        definition = {"name": name, "image": "none", "script": script, "log_level": "CRITICAL"} | fields
        answer = self.http.post("/system/services", json=definition)
        assert answer.status_code == 201, answer.text
        return name

    def token(self, service: str) -> str:
        """The service's token."""
        return str(self.http.get(f"/system/services/{service}").json()["token"])

    def bearer(self, service: str, method: str, path: str, **more: Any) -> Response:
        """A call with the token of that service."""
        headers = {"Authorization": f"Bearer {self.token(service)}"}
        return self.stranger(method, path, headers=headers, **more)

    def stranger(self, method: str, path: str, **more: Any) -> Response:
        """A call without the administrator's password."""
        return self.http.request(method, path, auth=_nobody, **more)

    def job(self, service: str) -> str:
        """Post a job; its id."""
        answer = self.http.post(f"/job/{service}", content=b"{}")
        assert answer.status_code == 201, answer.text
        return str(answer.json()["job_id"])

    def ended(self, service: str, job: str) -> dict[str, Any]:
        """The job when it has ended."""
        answer = self.http.get(f"/system/jobs/{service}/{job}", params={"wait": "60s"})
        found: dict[str, Any] = answer.json()
        assert "finish_time" in found, found
        return found

    def bucket(self) -> str:
        """Create a bucket; its name."""
        name = f"b-{uuid.uuid4().hex[:8]}"
        assert self.http.post("/system/buckets", json={"bucket_name": name}).status_code == 201
        return name


def _nobody(request: Any) -> Any:
    # In place of the client's own account; None would mean that one.
    return request


@contextmanager
def application(data: Path, **more: Any) -> Iterator[Scene]:
    """The application on a data folder, for the length of a block."""
    settings = Settings(
        data=data,
        engine="process",
        unsafe_process=not sandbox_works(),
        url="http://oscar.test",
        minio_endpoint="http://s3.test",
        password=PASSWORD,
        max_body=BODY_LIMIT // 1024**2,
        worker_idle=600,
        # A walk over all routes without credentials is many wrong log-ins.
        login_failures=100_000,
        federation_hosts=("far.test",),
        **more,
    )
    made, _ = build(settings)
    with TestClient(made, base_url=settings.url, raise_server_exceptions=False) as http:
        http.auth = (settings.username, PASSWORD)
        # The platform is there when this answers, so that /ready says so in whatever order tests come.
        assert http.get("/system/info").status_code == 200
        yield Scene(http)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The application on SQLite."""
    with application(tmp_path_factory.mktemp("api") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def postgres_scene(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: postgres.Postgres
) -> Iterator[Scene]:
    """The application on PostgreSQL."""
    url = postgres_server.create("api")
    with application(tmp_path_factory.mktemp("api") / "data", database_url=url) as running:
        yield running
