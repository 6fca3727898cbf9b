"""The ASGI application of the S3 server in this process: what a real connection can't show."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSRequest

from oscar.auth.s3 import check_policy, may_create, may_s3
from oscar.model.object import Object
from oscar.objects.embedded.blobs import MAX_PIECE, Blobs
from oscar.objects.embedded.server import S3App
from oscar.state.objects import Objects
from tests.s3_raw import MIB, sign
from tests.s3_server import ALICE, open_index, populate

HOST = "127.0.0.1:9000"


class World:
    """An application on a folder."""

    def __init__(self, folder: Path) -> None:
        self.store, self.index = open_index(f"sqlite:///{folder}/oscar.db")
        self.blobs = Blobs(folder / "blobs", reserve=0)
        self.commits = 0
        self.app = S3App(
            self.index,
            self.blobs,
            may_s3,
            check_policy=check_policy,
            may_create=may_create,
            on_commit=self.committed,
        )

    def committed(self) -> None:
        self.commits += 1

    def close(self) -> None:
        self.blobs.close()
        self.store.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    asyncio.run(populate(made.index))
    yield made
    made.close()


def scope(method: str, path: str, body: bytes = b"") -> dict[str, Any]:
    request = AWSRequest(method, f"http://{HOST}{path}", data=body)
    headers = {**sign(request, ALICE), "host": HOST, "content-length": str(len(body))}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("192.0.2.1", 5),
    }


async def call(
    world: World, asked: dict[str, Any], body: bytes = b"", *, leave_after: int | None = None
) -> tuple[int, bytes]:
    """Call the application; `leave_after`: the client goes away after so many pieces of the answer."""
    sent: list[dict[str, Any]] = []
    left = asyncio.Event()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if leave_after is not None and len(sent) > leave_after:
            left.set()

    await world.app(asked, receive, send)  # type: ignore[arg-type]  # dicts are what servers give
    return sent[0]["status"] if sent else 0, b"".join(message.get("body", b"") for message in sent[1:])


def test_the_dispatcher_is_woken_after_each_commit_only(world: World) -> None:
    assert asyncio.run(call(world, scope("PUT", "/private/k", b"x"), b"x"))[0] == 200
    assert world.commits == 1
    assert asyncio.run(call(world, scope("PUT", "/private/k", b"x"), b"y"))[0] == 400
    assert asyncio.run(call(world, scope("GET", "/private/k")))[1] == b"x"
    assert world.commits == 1


def test_nobody_is_sent_to_who_has_gone(world: World) -> None:
    body = bytes(30 * MIB)

    async def act() -> None:
        assert (await call(world, scope("PUT", "/private/k", body), body))[0] == 200
        status, got = await call(world, scope("GET", "/private/k"), leave_after=3)
        assert status == 200
        assert len(got) <= 6 * MAX_PIECE
        status, got = await call(world, scope("GET", "/private/k"))
        assert got == body

    asyncio.run(act())


def test_many_transfers_share_the_memory(world: World) -> None:
    with contextlib.ExitStack() as stack:
        pieces = []
        for _ in range(2000):
            stack.enter_context(world.blobs.moving())
            pieces.append(world.blobs.piece)
    assert pieces[0] == pieces[63] == MAX_PIECE
    assert all(count * size <= 64 * MIB for count, size in enumerate(pieces[:1024], 1))
    assert pieces[-1] == 64 * 1024
    assert world.blobs.piece == MAX_PIECE


def test_a_client_that_leaves_before_its_body_gets_no_answer(world: World) -> None:
    async def act() -> int:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        sent: list[Any] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await world.app(scope("PUT", "/private/k", b"x"), receive, send)  # type: ignore[arg-type]  # as above
        return len(sent)

    assert asyncio.run(act()) == 0
    assert asyncio.run(world.index.get("private", "k")) is None


def test_inner_errors_keep_their_words_to_themselves(world: World, logged: Callable[[], str]) -> None:
    etag = hashlib.md5(b"", usedforsecurity=False).hexdigest()
    damaged = Object("private", "k", "0" * 22, 5, etag, 0)
    asyncio.run(world.index.commit(damaged))
    status, body = asyncio.run(call(world, scope("GET", "/private/k")))
    assert (status, b"ServiceUnavailable" in body) == (503, True)

    class Broken(Objects):
        async def lookup(self, **_: Any) -> Any:
            raise RuntimeError("the words of the database")

    world.app = S3App(
        Broken(world.store, lambda *_: []),
        world.blobs,
        may_s3,
        check_policy=check_policy,
        may_create=may_create,
    )
    status, body = asyncio.run(call(world, scope("GET", "/private/k")))
    assert (status, b"InternalError" in body) == (500, True)
    assert b"words" not in body
    assert "the words of the database" in logged()


def lifespan(app: S3App, between: Callable[[], Awaitable[None]]) -> list[str]:
    said: list[str] = []

    async def main() -> None:
        down = asyncio.Event()
        events = iter(["lifespan.startup"])

        async def receive() -> dict[str, Any]:
            for event in events:
                return {"type": event}
            await down.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: dict[str, Any]) -> None:
            said.append(message["type"])

        running = asyncio.create_task(app({"type": "lifespan"}, receive, send))  # type: ignore[arg-type]  # as above
        await between()
        down.set()
        await running

    asyncio.run(main())
    return said


def test_the_start_sweeps_in_the_background(world: World, tmp_path: Path) -> None:
    crashed = Blobs(tmp_path / "blobs", reserve=0)
    lost = crashed.new_generation()
    crashed.write_whole(lost, [memoryview(b"half")])
    crashed.close()

    async def swept() -> None:
        async with asyncio.timeout(20):
            while world.blobs.path(lost).exists():  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0)

    assert lifespan(world.app, swept) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
