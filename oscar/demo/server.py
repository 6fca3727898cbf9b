"""A server for the demo: the real program as a process, on free ports, with its own data folder.

Called by `oscar.demo.run`; starts `oscar serve`, waits until it answers, and ends it again.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from oscar.client import Client
from oscar.errors import Unavailable

START_WITHIN = 60.0
STOP_WITHIN = 30.0


class NotStarted(Unavailable):
    """The server did not start; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a running server is, and its administrator's account."""

    url: str
    s3: str
    user: str
    password: str = field(repr=False)
    log: Path


@asynccontextmanager
async def running(
    engine: str, folder: Path, *, unsafe: bool = False, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """Run a server for as long as the block lasts.

    Args:
        engine: `podman`, `docker`, `process` or `kubernetes`.
        folder: for its data and its log; the caller removes it.
        unsafe: let the process engine work without a sandbox.
        settings: more environment variables.

    Raises:
        NotStarted: it did not start, with the end of its log.
    """
    log = folder / "server.log"
    # No setting of a server that the user has reaches this one.
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("OSCAR_", "MINIO_"))
    }
    environment |= {
        "OSCAR_DATA": str(folder / "data"),
        "OSCAR_SERVICE_PORT": "0",
        "OSCAR_S3_PORT": "0",
        "OSCAR_ENGINE": engine,
        "OSCAR_UNSAFE_PROCESS": str(unsafe).lower(),
        **(settings or {}),
    }
    with log.open("wb") as words:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "oscar",
            "serve",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=environment,
        )
    try:
        yield await answering(process, folder / "data" / "client.json", log)
    finally:
        await ended(process)


async def answering(process: asyncio.subprocess.Process, facts: Path, log: Path) -> Server:
    """Wait until the server's engine works; it writes where it is into its file of facts.

    Raises:
        NotStarted: it ended, or does not answer in time.
    """

    async def ask() -> Server:
        while process.returncode is None:
            # Not by /health, which answers before the engine has been tried: a server without one ends.
            with suppress(FileNotFoundError, Unavailable):
                said = json.loads(facts.read_text())
                async with Client(said["endpoint"], user=said["user"], password=said["password"]) as client:
                    await client.info()
                    return Server(said["endpoint"], said["s3"], said["user"], said["password"], log)
            await asyncio.sleep(0.02)  # nobody tells when a process of ours listens
        raise NotStarted(f"The server ended with code {process.returncode}:\n{tail(log)}")

    try:
        return await asyncio.wait_for(ask(), START_WITHIN)
    except TimeoutError:
        raise NotStarted(f"The server does not answer:\n{tail(log)}") from None


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
