"""A platform whose own store is a real MinIO: both as processes, each on a port that it keeps over restarts.

Called by the fixtures of the acceptance tests of MinIO and of several servers. MinIO gets the environment that
`oscar minio-environment` prints, as an administrator would give it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests import real_minio
from tests.real_minio import ACCESS_KEY, SECRET_KEY, Minio
from tests.s3_server import free_port
from tests.server import Server

REGION = "us-east-1"


def s3(endpoint: str, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Any:
    """A client of boto3."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=REGION,
        config=Config(retries={"max_attempts": 10, "mode": "standard"}, signature_version="s3v4"),
    )


@dataclass(slots=True)
class World:
    """MinIO and a server."""

    folder: Path
    server: Server
    minio_port: int
    environment: dict[str, str] = field(default_factory=dict)
    minio: Minio | None = None

    @property
    def endpoint(self) -> str:
        """MinIO's address."""
        return f"http://127.0.0.1:{self.minio_port}"

    def client(self) -> Any:
        """A client of MinIO with its administrator's keys."""
        return s3(self.endpoint)

    def start_minio(self) -> None:
        """Start MinIO on its folder and port."""
        data = self.folder / "minio"
        data.mkdir(exist_ok=True)
        self.minio = real_minio.start(data, port=self.minio_port, environment=self.environment)

    def stop_minio(self, sign: signal.Signals = signal.SIGTERM) -> None:
        """End MinIO."""
        if self.minio is not None:
            real_minio.stop(self.minio, sign)
            self.minio = None

    def queued(self) -> int:
        """Events that MinIO has not delivered yet."""
        return sum(1 for _ in (self.folder / "queue").rglob("*.event"))


def printed(server: Server, queue: Path) -> dict[str, str]:
    """What `oscar minio-environment` prints for a server."""
    words = [sys.executable, "-m", "oscar", "minio-environment", "--json", "--queue", str(queue)]
    out = subprocess.run(words, env=server.environment(), check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = json.loads(out)
    return found


def settings(minio_port: int, port: int, **more: str) -> dict[str, str]:
    """The settings of a server with that MinIO as its store."""
    return {
        "OSCAR_STORE": "minio",
        "OSCAR_SERVICE_PORT": str(port),
        "OSCAR_URL": f"http://127.0.0.1:{port}",
        "OSCAR_SECRET_KEY": uuid.uuid4().hex,
        "MINIO_ENDPOINT": f"http://127.0.0.1:{minio_port}",
        "MINIO_ACCESS_KEY": ACCESS_KEY,
        "MINIO_SECRET_KEY": SECRET_KEY,
        **more,
    }


@contextmanager
def running(folder: Path, *, start: bool = True, **more: str) -> Iterator[World]:
    """Both for the length of a block.

    Args:
        folder: for their data.
        start: whether both are started.
        more: settings of the server.
    """
    minio_port = free_port()
    server = Server(folder / "data", settings(minio_port, free_port(), **more))
    world = World(folder, server, minio_port, printed(server, folder / "queue"))
    try:
        if start:
            world.start_minio()
            server.start()
        yield world
    finally:
        server.end()
        world.stop_minio()


def here() -> None:
    """Skip the test where MinIO's program is not."""
    try:
        real_minio.program()
    except real_minio.MinioMissing as missing:
        pytest.skip(str(missing))
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
