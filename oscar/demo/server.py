"""A server for the demo: the real program as a process, on free ports, with its own data folder.

Called by `oscar.demo.run`; starts `oscar serve`, waits until it answers, and ends it again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from oscar.client import Client
from oscar.errors import Unavailable, Unreachable

USER = "oscar"
START_WITHIN = 60.0
STOP_WITHIN = 20.0


@dataclass(frozen=True, slots=True)
class Server:
    """Where a running server is; `password` is the administrator's."""

    url: str
    s3: str
    password: str = field(repr=False)
    log: Path


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, no two the same."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@asynccontextmanager
async def running(engine: str, folder: Path, *, unsafe: bool = False) -> AsyncIterator[Server]:
    """Run a server for as long as the block lasts.

    Args:
        engine: `podman`, `docker` or `process`.
        folder: for its data and its log; the caller removes it.
        unsafe: let the process engine work without a sandbox.

    Raises:
        Unavailable: it did not start, with the end of its log.
    """
    port, s3_port = free_ports(2)
    server = Server(
        url=f"http://127.0.0.1:{port}",
        s3=f"http://127.0.0.1:{s3_port}",
        password=secrets.token_urlsafe(16),
        log=folder / "server.log",
    )
    # No OSCAR_ setting of the user's own server reaches this one.
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("OSCAR_", "MINIO_"))
    }
    environment |= {
        "OSCAR_DATA": str(folder / "data"),
        "OSCAR_USERNAME": USER,
        "OSCAR_PASSWORD": server.password,
        "OSCAR_SERVICE_PORT": str(port),
        "OSCAR_S3_PORT": str(s3_port),
        "OSCAR_ENGINE": engine,
        "OSCAR_UNSAFE_PROCESS": str(unsafe).lower(),
    }
    with server.log.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "oscar",
            "serve",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        await answers(process, server)
        yield server
    finally:
        await ended(process)


async def answers(process: asyncio.subprocess.Process, server: Server) -> None:
    """Wait until the server answers /health.

    Raises:
        Unavailable: it ended, or does not answer in time.
    """

    async def ask() -> None:
        async with Client(server.url) as client:
            while process.returncode is None:
                with suppress(Unreachable):
                    if await client.health():
                        return
                await asyncio.sleep(0.02)  # nobody tells when a process of ours listens
        raise Unavailable(f"The server ended with code {process.returncode}:\n{tail(server.log)}")

    try:
        await asyncio.wait_for(ask(), START_WITHIN)
    except TimeoutError:
        raise Unavailable(f"The server does not answer:\n{tail(server.log)}") from None


async def ended(process: asyncio.subprocess.Process) -> None:
    """End the server: first by asking, then by force."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_WITHIN)
    except TimeoutError:
        process.kill()
        await process.wait()


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
