"""A real MinIO server for tests, when its program is on this machine.

Called by the fixtures of the storage tests. The program is that of `OSCAR_MINIO` or on PATH; `./scripts/test --real`
builds it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.s3_server import free_port

ACCESS_KEY = "minio-root"
SECRET_KEY = "minio-root-secret-123"


class MinioMissing(Exception):
    """built by ./scripts/test --real: minio"""


@dataclass(frozen=True, slots=True)
class Minio:
    """A running server."""

    port: int
    scheme: str = "http"
    process: subprocess.Popen[bytes] | None = field(default=None, compare=False)

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"{self.scheme}://127.0.0.1:{self.port}"


def program() -> str:
    """Where MinIO's server is.

    Raises:
        MinioMissing: nowhere.
    """
    found = os.environ.get("OSCAR_MINIO") or shutil.which("minio")
    if not found or not Path(found).is_file():
        raise MinioMissing(MinioMissing.__doc__)
    return found


@contextmanager
def running(
    folder: Path,
    *,
    certificates: Path | None = None,
    domain: str = "",
    port: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Minio]:
    """A server on a folder for the length of a block.

    Args:
        folder: where it keeps its data.
        certificates: a folder with `public.crt` and `private.key`; it speaks TLS then.
        domain: buckets are also hosts of this domain.
        port: where it listens; a free one when absent.
        environment: more variables, such as those of its webhook.
    """
    server = start(folder, certificates=certificates, domain=domain, port=port, environment=environment)
    try:
        yield server
    finally:
        stop(server)


def start(
    folder: Path,
    *,
    certificates: Path | None = None,
    domain: str = "",
    port: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Minio:
    """Start one and wait until it answers; arguments as of `running`."""
    port = port or free_port()
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "MINIO_ROOT_USER": ACCESS_KEY,
        "MINIO_ROOT_PASSWORD": SECRET_KEY,
        "MINIO_BROWSER": "off",
        **({"MINIO_DOMAIN": domain} if domain else {}),
        **(environment or {}),
    }
    arguments = [program(), "server", "--quiet", "--address", f"127.0.0.1:{port}"]
    if certificates:
        arguments += ["--certs-dir", str(certificates)]
    process = subprocess.Popen([*arguments, str(folder)], env=variables, stdout=subprocess.DEVNULL)
    server = Minio(port, "https" if certificates else "http", process)
    try:
        _wait(server, process)
    except BaseException:
        stop(server)
        raise
    return server


def stop(server: Minio, sign: signal.Signals = signal.SIGTERM) -> None:
    """End it; silent if it has ended."""
    if server.process is not None and server.process.poll() is None:
        server.process.send_signal(sign)
        server.process.wait()


def _wait(server: Minio, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not _answers(server):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("MinIO did not start")
        time.sleep(0.05)


def _answers(server: Minio) -> bool:
    try:
        if server.scheme == "https":
            socket.create_connection(("127.0.0.1", server.port), 1).close()
        else:
            urllib.request.urlopen(f"{server.endpoint}/minio/health/ready", timeout=1).close()
    except (OSError, urllib.error.URLError):
        return False
    return True
