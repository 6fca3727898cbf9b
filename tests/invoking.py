"""A house of warm workers for tests: an engine, the workers, and services made of a script.

Called by `tests/contract/test_invokes*.py` and `benchmarks/sync.py`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import uvloop

from oscar.compute.base import Answer, Run
from oscar.compute.crew import CrewStats, Limits
from oscar.compute.local.containers import Containers
from oscar.compute.local.engine import Engine, Facts
from oscar.compute.local.processes import Processes
from oscar.compute.local.workers import Workers
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.objects.base import ObjectStore
from oscar.objects.s3 import S3Store
from oscar.supervisor.providers import Providers

NO_STORE = S3Store("http://127.0.0.1:1", "nobody", "nothing")
"""For services without inputs and outputs: whoever asks it for something fails."""


class Tool(Protocol):
    """A container engine that works here."""

    @property
    def image(self) -> str:
        """An image with `/bin/sh`."""

    @property
    def user_image(self) -> str:
        """The same with another user than root."""

    @property
    def facts(self) -> Facts:
        """What the engine can do."""


class Answering(Protocol):
    """What the suites ask of warm workers, wherever they are."""

    async def invoke(self, run: Run) -> Answer:
        """See `Invokes`."""

    async def apply(self, service: Service) -> None:
        """See `Compute`."""

    async def remove(self, owner: str, name: str) -> None:
        """See `Compute`."""

    def stats(self) -> list[CrewStats]:
        """How the workers of each service do."""

    async def stop(self) -> None:
        """Let requests end, then end all workers."""


@dataclass(slots=True)
class House:
    """Workers somewhere."""

    workers: Answering
    image: str
    folder: Path
    present: Callable[[], Awaitable[list[str]]]
    """The names of all workers that are there."""
    kill: Callable[[str], Awaitable[None]]
    """Ends one from outside."""
    cpu: str = "2"
    memory: str = "512Mi"

    def service(self, script: str, **fields: Any) -> Service:
        """A service with enough CPU not to be slowed down by its own limit."""
        return Service(
            **{
                "name": "hello",
                "owner": "somebody",
                "image": self.image,
                "script": script,
                "cpu": self.cpu,
                "memory": self.memory,
                **fields,
            }
        )

    async def call(
        self,
        service: Service,
        payload: bytes | Path = b"{}",
        *,
        user: str = "ann",
        timeout: float | None = 60,
        environment: Mapping[str, str] | None = None,
    ) -> Answer:
        """A synchronous call."""
        run_id = uuid.uuid4().hex
        return await self.workers.invoke(
            Run(
                run_id, run_id, 1, service, payload, user=user, timeout=timeout, environment=environment or {}
            )
        )

    async def text(self, service: Service, payload: bytes = b"{}", **how: Any) -> str:
        """What a call of a script that succeeds prints."""
        answer = await self.call(service, payload, **how)
        assert answer.exit_code == 0, answer
        return answer.body.decode()

    def stats(self) -> CrewStats:
        """How the workers of the only service do."""
        (stats,) = self.workers.stats()
        return stats


@asynccontextmanager
async def open_house(
    engine: Engine, image: str, folder: Path, limits: Limits | None = None, store: ObjectStore | None = None
) -> AsyncIterator[House]:
    """Workers for the length of a block; nothing of them may be left after it."""
    own = store or NO_STORE
    workers = Workers(engine, folder, lambda run: Providers(run.service, own), limits)
    await workers.start()
    try:
        yield House(workers, image, folder, lambda: engine.names("w-"), engine.kill)
    finally:
        await workers.stop()
    assert await engine.names("w-") == []
    assert list(folder.iterdir()) == []


class Street:
    """Builds houses on one engine; where the engine needs a long look, `facts` come from an earlier one."""

    def __init__(self, kind: str, folder: Path, tool: Tool | None = None) -> None:
        self.kind = kind
        self.host = "127.0.0.1"
        """This machine as workers reach it."""
        self.own: MinIOProvider | None = None
        """The own store for workers that have no part in this process."""
        self.folder = folder
        self.image = tool.image if tool else "none"
        self.user_image = tool.user_image if tool else ""
        self._facts = tool.facts if tool else None

    async def engine(self) -> Engine:
        """The engine, as a new server would make it."""
        folder = self.folder / "engine"
        if self._facts is None:
            processes = Processes(folder, installation=f"test-{os.getpid()}")
            await processes.probe()
            return processes
        containers = Containers(self.kind, folder, installation=f"test-{self.folder.name}")
        await containers.resume(self._facts)
        return containers

    def live(
        self,
        scenario: Scenario,
        limits: Limits | None = None,
        store: ObjectStore | None = None,
        image: str = "",
    ) -> None:
        """Run a scenario in a new house."""

        async def run() -> None:
            engine = await self.engine()
            try:
                folder = self.folder / "workers"
                async with open_house(engine, image or self.image, folder, limits, store) as house:
                    await scenario(house)
            finally:
                await engine.close()

        uvloop.run(run())  # as the server does


async def until(condition: Callable[[], Any], *, seconds: float = 120) -> None:
    """Wait for something outside of this program that tells nobody when it happens."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.01)


def alive(word: str) -> bool:
    """Whether a process of this machine has that word in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0"):
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False


def lasting() -> str:
    """An argument for `sleep` that no other process has."""
    return f"{100_000 + uuid.uuid4().int % 900_000}.{uuid.uuid4().int % 900_000}"


def encoded(content: bytes) -> bytes:
    """A body that isn't JSON, as clients send it."""
    return base64.b64encode(content)


def as_json(value: Any) -> bytes:
    """A JSON body."""
    return json.dumps(value).encode()


Scenario = Callable[[House], Awaitable[None]]
