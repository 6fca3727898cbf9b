"""The folder of bodies by itself: names, durability by kind of file system, copies, errors of the disk."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oscar.errors import StorageError, StorageFull
from oscar.objects.embedded import blobs as module
from oscar.objects.embedded.blobs import Blobs, copy_range, file_system, translated, write_at


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[Blobs]:
    made = Blobs(tmp_path / "blobs", reserve=0)
    yield made
    made.close()


def test_names_are_new_and_sort_by_time(blobs: Blobs, tmp_path: Path) -> None:
    names = [blobs.new_generation() for _ in range(5000)]
    assert names == sorted(set(names))
    assert {len(name) for name in names} == {22}
    assert len({blobs.path(name).parent for name in names}) == 256
    other = Blobs(tmp_path / "other", reserve=0)
    assert other.new_generation()[14:] != names[0][14:]
    other.close()


@pytest.mark.parametrize("pieces", [[], [b""], [b"abc"], [b"ab", b"", b"c" * 100_000]])
def test_small_bodies(blobs: Blobs, pieces: list[bytes]) -> None:
    name = blobs.new_generation()
    blobs.write_whole(name, [memoryview(piece) for piece in pieces])
    assert blobs.path(name).read_bytes() == b"".join(pieces)
    assert blobs.path(name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(StorageError):
        blobs.write_whole(name, [memoryview(b"a second time")])


@pytest.mark.parametrize("follows", [True, False])
def test_the_folder_is_flushed_where_its_names_need_it(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch, follows: bool
) -> None:
    flushed: list[bool] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").is_dir())
        fsync(descriptor)

    name = blobs.new_generation()
    blobs.discard([name])  # makes the folder, which is flushed once
    blobs._names_follow = follows
    monkeypatch.setattr(os, "fsync", watched)
    blobs.write_whole(name, [memoryview(b"x")])
    assert flushed == ([] if follows else [True])


def test_file_systems_are_told_by_their_device(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    here = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"21 1 0:5 / /proc rw - proc proc rw\n36 35 {here} / /data rw,noatime shared:1 - xfs /dev/x rw\n"
    )
    assert file_system(tmp_path, mounts) == "xfs"
    mounts.write_text("21 1 0:5 / /proc rw - proc proc rw\nnonsense\n")
    assert file_system(tmp_path, mounts) == ""
    assert file_system(tmp_path, tmp_path / "absent") == ""
    assert file_system(Path("/proc")) == "proc"


def test_a_removed_body_can_be_read_by_who_has_it_open(blobs: Blobs) -> None:
    name = blobs.new_generation()
    blobs.write_whole(name, [memoryview(b"still here")])
    descriptor = blobs.open(name)
    blobs.discard([name, blobs.new_generation()])
    assert os.read(descriptor, 100) == b"still here"
    os.close(descriptor)
    with pytest.raises(FileNotFoundError):
        blobs.open(name)


def test_copies_where_the_kernel_can_t(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "other file system")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    body = os.urandom(3_000_000)
    (tmp_path / "source").write_bytes(body)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    copy_range(source, target, len(body) - 100, 50, 7)
    assert (tmp_path / "target").read_bytes() == bytes(7) + body[50:-50]
    with pytest.raises(StorageError, match="shorter"):
        copy_range(source, target, len(body) + 1)
    os.close(source)
    os.close(target)


def test_many_pieces_in_one_go(tmp_path: Path) -> None:
    pieces = [bytes([i % 256]) * (i % 7) for i in range(3000)]
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert write_at(descriptor, [memoryview(piece) for piece in pieces], 5) == sum(map(len, pieces))
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"".join(pieces)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, StorageError)]
)
def test_errors_of_the_disk(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind), translated():
        raise OSError(number, os.strerror(number))


def test_a_reserve_is_kept(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    blobs = Blobs(tmp_path / "blobs", reserve=free.f_bavail * free.f_frsize // 2)
    blobs.check_space(0)
    with pytest.raises(StorageFull):
        blobs.check_space(free.f_bavail * free.f_frsize)
    blobs.close()


def test_who_is_cancelled_leaves_when_the_thread_has(blobs: Blobs) -> None:
    """Else it would close files that a thread still writes to."""
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def work() -> None:
        begun.set()
        go_on.wait()
        done.append("work")

    async def act() -> None:
        waiting = asyncio.create_task(blobs.run(work))
        await asyncio.to_thread(begun.wait)
        waiting.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert done == ["work"]

    asyncio.run(act())


def test_writers_are_known_by_their_locks(tmp_path: Path) -> None:
    first, second = Blobs(tmp_path, reserve=0), Blobs(tmp_path, reserve=0)
    name = second.new_generation()
    second.write_whole(name, [memoryview(b"x")])
    assert first.writers() == ({first._writer, second._writer}, set())
    assert [bodies for bodies in first.unowned() if bodies] == []
    os.close(second._lock)  # as the kernel does when the process dies
    second._lock = -1
    assert first.writers() == ({first._writer}, {second._writer})
    assert [bodies for bodies in first.unowned() if bodies] == [[name]]
    second.close()
    first.close()
    first.close()
    assert module.WRITERS in [path.name for path in tmp_path.iterdir()]
