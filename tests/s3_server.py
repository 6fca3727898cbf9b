"""A real S3 server for tests: the ASGI application under uvicorn, in a process of its own on 127.0.0.1.

Called by the fixtures of the S3 tests and by `benchmarks/s3.py`. The Store is a new SQLite file unless a URL is
given. `python -m tests.s3_server <folder> <port> <url> <domain>` is the process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from oscar.auth.s3 import check_policy, may_create, may_s3
from oscar.model.object import Bucket, Credential, Visibility
from oscar.objects.embedded.blobs import Blobs
from oscar.objects.embedded.server import S3App
from oscar.state.migrate import migrate
from oscar.state.objects import Objects
from oscar.state.secrets import Sealer
from oscar.state.store import Store

ADMIN = Credential("admin", "admin-secret-1234", "oscar", admin=True)
ALICE = Credential("alice@example.org", "alice-secret-1234", "alice@example.org")
BOB = Credential("bob", "bob-secret-12345", "bob")
CAROL = Credential("carol", "carol-secret-123", "carol")
USERS = (ADMIN, ALICE, BOB, CAROL)
BUCKETS = (
    Bucket("private", ALICE.user),
    Bucket("shared", ALICE.user, Visibility.RESTRICTED, (BOB.user,)),
    Bucket("open", ALICE.user, Visibility.PUBLIC),
)
REGION = "us-east-1"


def open_index(url: str) -> tuple[Store, Objects]:
    """A Store brought up to the present schema, and the objects in it; no service listens."""
    store = Store(url, Sealer(["a key for tests"]))
    migrate(store)
    return store, Objects(store, lambda *_: [])


async def populate(index: Objects) -> None:
    """The users and buckets that the tests know."""
    for credential in USERS:
        await index.put_credential(credential)
    for bucket in BUCKETS:
        await index.create_bucket(bucket)


@dataclass(slots=True)
class Server:
    """A running server."""

    port: int
    folder: Path
    url: str
    process: subprocess.Popen[bytes]
    host: str = "127.0.0.1"

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://{self.host}:{self.port}"

    @property
    def blobs(self) -> Path:
        """Its folder of bodies."""
        return self.folder / "blobs"

    def bodies(self) -> list[Path]:
        """All files in the folder of bodies."""
        return sorted(self.blobs.glob("[0-9a-f][0-9a-f]/*"))

    def kill(self) -> None:
        """End it at once, as a power failure would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    folder: Path, url: str | None = None, domain: str = "", reserve: int = 0, host: str = "127.0.0.1"
) -> Server:
    """Start a server on a folder and wait until it answers."""
    port = free_port()
    store = url or f"sqlite:///{folder}/oscar.db"
    arguments = [
        sys.executable,
        "-m",
        "tests.s3_server",
        str(folder),
        str(port),
        store,
        domain,
        str(reserve),
        host,
    ]
    process = subprocess.Popen(arguments, cwd=Path(__file__).parent.parent)
    server = Server(port, folder, store, process, host)
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection((host, port), 1).close()
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the S3 server did not start") from None
            time.sleep(0.02)
        else:
            return server


@contextmanager
def running(
    folder: Path, url: str | None = None, domain: str = "", reserve: int = 0, host: str = "127.0.0.1"
) -> Iterator[Server]:
    """A server for the length of a block."""
    server = start(folder, url, domain, reserve, host)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def main() -> None:
    """Be the server process."""
    import uvicorn

    folder, port, url, domain, reserve, host = sys.argv[1:]
    store, index = open_index(url)
    asyncio.run(populate(index))
    blobs = Blobs(Path(folder) / "blobs", reserve=int(reserve))
    app = S3App(
        index,
        blobs,
        may_s3,
        check_policy=check_policy,
        may_create=may_create,
        region=REGION,
        domain=domain or None,
    )
    uvicorn.run(
        app,
        host=host,
        port=int(port),
        log_level=os.environ.get("OSCAR_TEST_S3_LOG", "warning"),
        access_log=False,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    blobs.close()
    store.close()


if __name__ == "__main__":
    main()
