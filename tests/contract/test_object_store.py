"""The built-in store without HTTP: `ObjectStore` and `BucketAdmin` on bodies and rows.

`S3Store`, the other `ObjectStore`, has its suite in `test_s3_store.py`; here it is checked that both see the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from oscar.errors import BucketNotEmpty, BucketNotFound, ObjectNotFound, StorageError, StorageFull
from oscar.model.object import Bucket, Usage, Visibility
from oscar.model.producer import Producer
from oscar.objects.base import BucketAdmin, ObjectStore
from oscar.objects.embedded.blobs import Blobs
from oscar.objects.embedded.store import EmbeddedStore
from oscar.objects.s3 import S3Store
from oscar.state.objects import Objects
from oscar.state.store import Store
from tests import s3_server
from tests.s3_raw import MIB, Reply, admin, send
from tests.s3_server import ALICE, Server, open_index, populate


@dataclass(slots=True)
class World:
    """A store on a folder, and how often it told that something was committed."""

    store: EmbeddedStore
    state: Store
    index: Objects
    blobs: Blobs
    commits: list[None] = field(default_factory=list)

    def run(self, act: Callable[[EmbeddedStore], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            return await act(self.store)

        return asyncio.run(main())

    def close(self) -> None:
        self.blobs.close()
        self.state.close()


def make(folder: Path, endpoint: str = "http://127.0.0.1:1", reserve: int = 0) -> World:
    state, index = open_index(f"sqlite:///{folder}/oscar.db")
    asyncio.run(populate(index))
    blobs = Blobs(folder / "blobs", reserve=reserve)
    commits: list[None] = []
    store = EmbeddedStore(
        index, blobs, endpoint=endpoint, region=s3_server.REGION, on_commit=lambda: commits.append(None)
    )
    return World(store, state, index, blobs, commits)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make(tmp_path)
    yield made
    made.close()


def conforms(store: EmbeddedStore) -> tuple[ObjectStore, BucketAdmin]:
    """That this module type-checks says that EmbeddedStore is both."""
    return store, store


def bodies(world: World) -> list[Path]:
    return sorted(world.blobs.folder.glob("[0-9a-f][0-9a-f]/*"))


@pytest.mark.parametrize("size", [0, 1, 5000, 3 * MIB + 1])
def test_there_and_back(world: World, tmp_path: Path, size: int) -> None:
    source, copy = tmp_path / "source.png", tmp_path / "copy"
    source.write_bytes(os.urandom(size))
    stored = world.run(lambda store: store.upload("private", "a/b  c+é.png", source))
    assert stored.etag == hashlib.md5(source.read_bytes(), usedforsecurity=False).hexdigest()
    assert (stored.key, stored.size) == ("a/b  c+é.png", size)
    assert world.run(lambda store: store.download("private", "a/b  c+é.png", copy)) == stored
    assert copy.read_bytes() == source.read_bytes()
    assert world.run(lambda store: store.stat("private", "a/b  c+é.png")) == stored
    assert len(world.commits) == 1
    found = asyncio.run(world.index.get("private", "a/b  c+é.png"))
    assert found is not None
    assert (found.content_type, found.owner) == ("image/png", ALICE.user)


def test_never_a_hard_link(world: World, tmp_path: Path) -> None:
    """The user's script owns its input: what it writes there must not reach the store, nor the other way round."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"first")
    world.run(lambda store: store.upload("private", "k", source))
    world.run(lambda store: store.download("private", "k", copy))
    source.write_bytes(b"other")
    copy.write_bytes(b"other")
    assert [body.read_bytes() for body in bodies(world)] == [b"first"]
    assert [body.stat().st_nlink for body in bodies(world)] == [1]


def test_the_original_may_be_changed_while_it_is_stored(world: World, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100)
    stored = world.run(lambda store: store.upload("private", "k", source, content_type="a/b"))
    source.write_bytes(b"y")
    copy = tmp_path / "copy"
    world.run(lambda store: store.download("private", "k", copy))
    assert hashlib.md5(copy.read_bytes(), usedforsecurity=False).hexdigest() == stored.etag


def test_a_delivery_is_made_once(world: World, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    producer = Producer("job-1", 4)
    stored = world.run(lambda store: store.upload("private", "out/x", first, producer=producer))
    again = world.run(lambda store: store.upload("private", "out/x", second, producer=producer))
    assert again == stored
    assert len(world.commits) == 1
    assert len(bodies(world)) == 1
    found = asyncio.run(world.index.get("private", "out/x"))
    assert found is not None
    assert found.metadata == {"oscar-hops": "4"}
    # Another job may replace it.
    world.run(lambda store: store.upload("private", "out/x", second, producer=Producer("job-2")))
    assert world.run(lambda store: store.stat("private", "out/x")).size == 6


def test_what_is_missing(world: World, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"x")
    for act in (
        lambda store: store.download("private", "absent", copy),
        lambda store: store.stat("private", "absent"),
    ):
        with pytest.raises(ObjectNotFound):
            world.run(act)

    async def listed(store: EmbeddedStore) -> list[str]:
        return [found.key async for found in store.list("nowhere")]

    for act in (
        lambda store: store.download("nowhere", "k", copy),
        lambda store: store.stat("nowhere", "k"),
        lambda store: store.upload("nowhere", "k", source),
        lambda store: store.presign("nowhere", "k", method="GET", expires=5),
        listed,
    ):
        with pytest.raises(BucketNotFound):
            world.run(act)
    assert not copy.exists()
    assert bodies(world) == []
    world.run(lambda store: store.delete("private", "absent"))


def test_a_target_that_exists_is_not_overwritten(world: World, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"x")
    copy.write_bytes(b"there")
    world.run(lambda store: store.upload("private", "k", source))
    with pytest.raises(OSError, match="exists"):
        world.run(lambda store: store.download("private", "k", copy))
    assert copy.read_bytes() == b"there"


def test_links_are_not_followed(world: World, tmp_path: Path) -> None:
    """A script may leave a link to a file of the server in its output folder."""
    secret, link = tmp_path / "secret", tmp_path / "link"
    secret.write_bytes(b"secret")
    link.symlink_to(secret)
    with pytest.raises(OSError, match=r"symbolic|loop"):
        world.run(lambda store: store.upload("private", "k", link))
    assert bodies(world) == []


def test_listing(world: World, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    keys = ["a", "a/b", "a/c", "b", "é"]

    async def fill(store: EmbeddedStore) -> None:
        for key in reversed(keys):
            await store.upload("private", key, source)

    world.run(fill)

    async def listed(store: EmbeddedStore, **how: str) -> list[str]:
        return [found.key async for found in store.list("private", **how)]

    assert world.run(listed) == keys
    assert world.run(lambda store: listed(store, prefix="a/")) == ["a/b", "a/c"]
    assert world.run(lambda store: listed(store, start_after="a/b")) == ["a/c", "b", "é"]


def test_deleting_frees_the_disk(world: World, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    world.run(lambda store: store.upload("private", "k", source))
    world.run(lambda store: store.upload("private", "k", source))
    world.run(lambda store: store.delete("private", "k"))
    world.blobs.close()
    assert bodies(world) == []


def test_a_nearly_full_disk(tmp_path: Path) -> None:
    world, source = make(tmp_path, reserve=2**60), tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(StorageFull):
        world.run(lambda store: store.upload("private", "k", source))
    assert bodies(world) == []
    world.close()


def test_a_damaged_body_is_told(world: World, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"x" * 100)
    world.run(lambda store: store.upload("private", "k", source))
    os.truncate(bodies(world)[0], 50)
    with pytest.raises(StorageError, match="shorter"):
        world.run(lambda store: store.download("private", "k", copy))
    assert not copy.exists()


def test_readers_and_a_writer(world: World, tmp_path: Path) -> None:
    contents = [bytes([number]) * (number + 1) * 10_000 for number in range(6)]
    for number, content in enumerate(contents):
        (tmp_path / f"source{number}").write_bytes(content)

    async def act(store: EmbeddedStore) -> None:
        await store.upload("private", "k", tmp_path / "source0")

        async def write() -> None:
            for number in (*range(6), *range(6)):
                await store.upload("private", "k", tmp_path / f"source{number}")

        async def read(reader: int) -> None:
            for turn in range(12):
                copy = tmp_path / f"copy-{reader}-{turn}"
                found = await store.download("private", "k", copy)
                data = copy.read_bytes()
                assert data in contents
                assert len(data) == found.size

        await asyncio.gather(write(), *(read(reader) for reader in range(4)))

    world.run(act)


def test_buckets(world: World) -> None:
    made = Bucket("new-one", "bob", tags={"owner": "bob"}, service="svc")
    assert world.run(lambda store: store.create_bucket(made))
    assert not world.run(lambda store: store.create_bucket(made))
    found = world.run(lambda store: store.bucket("new-one"))
    assert (found.owner, found.tags, found.service) == ("bob", {"owner": "bob"}, "svc")
    assert found.created > 1_700_000_000_000
    world.run(
        lambda store: store.update_bucket(
            "new-one", visibility=Visibility.RESTRICTED, allowed_users=["carol"]
        )
    )
    found = world.run(lambda store: store.bucket("new-one"))
    assert (found.visibility, found.allowed_users, found.tags) == (
        Visibility.RESTRICTED,
        ("carol",),
        {"owner": "bob"},
    )
    assert "new-one" in [bucket.name for bucket in world.run(lambda store: store.buckets())]
    assert world.run(lambda store: store.bucket("nowhere")) is None
    with pytest.raises(BucketNotFound):
        world.run(
            lambda store: store.update_bucket("nowhere", visibility=Visibility.PUBLIC, allowed_users=[])
        )
    world.run(lambda store: store.ensure_bucket("new-one"))
    world.run(lambda store: store.ensure_bucket("another"))
    assert world.run(lambda store: store.bucket("new-one")).owner == "bob"
    assert world.run(lambda store: store.bucket("another")) is not None


def test_removing_buckets(world: World, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"12345")
    world.run(lambda store: store.upload("private", "k", source))
    assert world.run(lambda store: store.usage("private")) == Usage(1, 5)
    with pytest.raises(BucketNotEmpty):
        world.run(lambda store: store.delete_bucket("private"))
    world.run(lambda store: store.delete_bucket("private", force=True))
    world.run(lambda store: store.delete_bucket("private"))
    assert world.run(lambda store: store.bucket("private")) is None
    world.blobs.close()
    assert bodies(world) == []


def test_users_have_keys_of_their_own(world: World) -> None:
    dave = world.run(lambda store: store.credential_of("dave"))
    assert world.run(lambda store: store.credential_of("dave")) == dave
    assert dave.user == "dave"
    assert dave.secret_key not in repr(dave)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[World, Server]]:
    """The store in this process, and an S3 server in another on the same folder."""
    with s3_server.running(tmp_path) as server:
        world = make(tmp_path, server.endpoint)
        yield world, server
        world.close()


def test_what_one_stores_the_other_sees(both: tuple[World, Server], tmp_path: Path) -> None:
    world, server = both
    source = tmp_path / "source"
    source.write_bytes(os.urandom(9 * MIB))
    mine = world.run(lambda store: store.upload("private", "mine", source, producer=Producer("j", 2)))
    s3 = admin(server)
    seen = s3.get_object(Bucket="private", Key="mine")
    assert seen["Body"].read() == source.read_bytes()
    assert (seen["ETag"], seen["Metadata"]) == (f'"{mine.etag}"', {"oscar-hops": "2"})
    s3.upload_file(str(source), "private", "theirs")
    copy = tmp_path / "copy"
    theirs = world.run(lambda store: store.download("private", "theirs", copy))
    assert copy.read_bytes() == source.read_bytes()

    async def over_http(_: EmbeddedStore) -> None:
        store = S3Store(server.endpoint, ALICE.access_key, ALICE.secret_key)
        try:
            found = [entry async for entry in store.list("private")]
        finally:
            await store.close()
        assert [(entry.key, entry.size, entry.etag) for entry in found] == [
            ("mine", mine.size, mine.etag),
            ("theirs", theirs.size, theirs.etag),
        ]

    world.run(over_http)


def test_presigned_urls(both: tuple[World, Server]) -> None:
    world, server = both

    def follow(method: str, url: str, body: bytes = b"", **headers: str) -> Reply:
        return send(server, method, url.removeprefix(server.endpoint), body, headers)

    def presign(method: str, **how: Any) -> str:
        return str(
            world.run(lambda store: store.presign("private", "a b+é", method=method, expires=60, **how))
        )

    assert follow("PUT", presign("PUT"), b"linked").status == 200
    assert follow("GET", presign("GET")).body == b"linked"
    assert follow("DELETE", presign("GET")).status == 403
    typed = presign("PUT", headers={"Content-Type": "text/x"})
    assert follow("PUT", typed, b"x", **{"Content-Type": "text/y"}).status == 403
    assert follow("PUT", typed, b"x", **{"Content-Type": "text/x"}).status == 200


PEAK = """
import asyncio, os, sys
from pathlib import Path
from tests.contract.test_object_store import make
folder = Path(sys.argv[1])
world = make(folder)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
async def main():
    before = resident()
    await world.store.upload("private", "big", folder / "big")
    await world.store.download("private", "big", folder / "copy")
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    print(peak - before)
asyncio.run(main())
world.close()
"""


def test_memory_stays_flat(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 300 * MIB)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert int(done.stdout) < 30 * MIB
    assert (tmp_path / "copy").stat().st_size == 300 * MIB
