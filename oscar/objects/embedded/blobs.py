"""The folder of bodies: immutable files `blobs/<aa>/<generation>`, each durable before its row is committed.

Called by `intake`, the operations and `store`; calls only the file system. A file without a row is nothing:
readers come by the row. So a body is written straight under its own, unique name, without a temporary file
and rename (one journal commit less per object). Each writing process holds a lock on a file of its own as
long as it lives, and the names of its bodies end in that file's name; the sweep at start removes bodies that
have neither a row nor a living writer. See `docs/s3.md`, "On disk".
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from oscar.errors import StorageError, StorageFull

P = ParamSpec("P")
T = TypeVar("T")

COPY_STEP = 64 * 1024 * 1024
"""Bytes asked of the kernel in one copy call."""
WRITERS = ".writers"
"""Folder of the lock files of the processes that write bodies."""
MAX_PIECE = 1024 * 1024
_MIN_PIECE = 64 * 1024
_MEMORY = 64 * 1024 * 1024
"""Bytes that all moving bodies hold together, as long as there are not more than a thousand."""
_BUFFER = 1024 * 1024
_NAMES_FOLLOW = frozenset({"ext4", "xfs", "btrfs"})
"""File systems on which making a new file durable makes its name durable: both are in one transaction of the journal.
Elsewhere the folder is flushed by itself, as POSIX wants it."""
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_WRITER = slice(14, None)
_NAME_LENGTH = 22
_DEVICE = 2
"""Field of a line of mountinfo."""
_FOLDER = slice(12, 14)
"""The part of a name that changes fastest also names its folder, so that bodies spread over 256 of them."""
_MAX_VECTORS = 512
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Blobs:
    """Bodies under one folder. The methods without `async` block: they run in worker threads, by `run`."""

    def __init__(self, folder: Path, *, reserve: int = 512 * 1024 * 1024, threads: int = 8) -> None:
        """Open or make the folder.

        Args:
            folder: holds `aa/<generation>`.
            reserve: bytes of the disk to leave free; intake is refused below.
            threads: how many bodies are written or read at the same time.
        """
        self.folder = folder
        self.reserve = reserve
        self._writer = secrets.token_hex(4)
        self._last = 0
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="blobs")
        self._long_threads = ThreadPoolExecutor(threads, thread_name_prefix="copies")
        self._moving = 0
        self._folders: dict[str, int] = {}
        self._opening = threading.Lock()
        (folder / WRITERS).mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = folder / WRITERS / self._writer
        self._names_follow = file_system(folder) in _NAMES_FOLLOW
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """End the worker threads after their present work; idempotent."""
        self._threads.shutdown(wait=True)
        self._long_threads.shutdown(wait=True)
        if self._lock < 0:
            return
        for descriptor in self._folders.values():
            os.close(descriptor)
        self._folders.clear()
        (self.folder / WRITERS / self._writer).unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start blocking work in a worker thread."""
        return self._threads.submit(work, *args, **kwargs)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work in a worker thread; see `result`."""
        return await result(self._threads.submit(work, *args, **kwargs))

    async def run_long(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for work on whole bodies, which must not keep the short work of others waiting."""
        return await result(self._long_threads.submit(work, *args, **kwargs))

    @contextmanager
    def moving(self) -> Iterator[None]:
        """While a body moves between the network and here: shares the memory that `piece` gives out."""
        self._moving += 1
        try:
            yield
        finally:
            self._moving -= 1

    @property
    def piece(self) -> int:
        """Bytes of a body to hold in memory at once, less when many move at the same time."""
        return max(min(_MEMORY // max(self._moving, 1), MAX_PIECE), _MIN_PIECE)

    def new_generation(self) -> str:
        """A new name that sorts by time: 14 hex digits of microseconds, then the name of this writer.

        To be called from one thread only: that of the event loop.
        """
        self._last = max(time.time_ns() // 1000, self._last + 1)
        return f"{self._last:014x}{self._writer}"

    def path(self, generation: str) -> Path:
        """Where the body lies."""
        return self.folder / generation[_FOLDER] / generation

    def _folder_of(self, generation: str) -> int:
        """A descriptor of the folder of a body; kept open, there are 256 at most."""
        name = generation[_FOLDER]
        descriptor = self._folders.get(name)
        if descriptor is None:
            with self._opening:
                descriptor = self._folders.get(name)
                if descriptor is None:
                    path = self.folder / name
                    if not path.is_dir():
                        path.mkdir(mode=0o700, exist_ok=True)
                        _sync_folder(self.folder)
                    descriptor = self._folders[name] = os.open(
                        path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                    )
        return descriptor

    def check_space(self, size: int) -> None:
        """Raise StorageFull when so many more bytes would leave less than the reserve."""
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < size + self.reserve:
            raise StorageFull

    def create(self, generation: str) -> int:
        """A descriptor of a new, empty body."""
        folder = self._folder_of(generation)
        with translated():
            return os.open(generation, _NEW, 0o600, dir_fd=folder)

    def write_whole(self, generation: str, pieces: list[memoryview]) -> None:
        """Write a small body that is complete, durable on return, with as few system calls as can be."""
        folder = self._folder_of(generation)
        with translated():
            descriptor = os.open(generation, _NEW | os.O_SYNC, 0o600, dir_fd=folder)
        try:
            if not write_at(descriptor, pieces, 0):
                with translated():
                    os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if not self._names_follow:
            with translated():
                os.fsync(folder)

    def open(self, generation: str) -> int:
        """A descriptor for reading. Raises FileNotFoundError when the body was replaced in the meantime."""
        return os.open(generation, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder_of(generation))

    def reopen(self, generation: str) -> int:
        """A descriptor for writing into a body that exists or not: the file of a multipart upload."""
        folder = self._folder_of(generation)
        with translated():
            return os.open(generation, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)

    def seal(self, descriptor: int, generation: str) -> None:
        """Make the body and its name durable."""
        with translated():
            os.fsync(descriptor)
            os.fsync(self._folder_of(generation))

    def discard(self, generations: Iterable[str]) -> None:
        """Remove bodies; silent if absent. Who has one open reads on."""
        for generation in generations:
            with suppress(FileNotFoundError):
                os.unlink(generation, dir_fd=self._folder_of(generation))

    def discard_later(self, generations: Iterable[str]) -> None:
        """Remove bodies in the background; what a crash leaves, the next start's sweep removes."""
        freed = [generation for generation in generations if generation]
        if freed:
            self._long_threads.submit(self.discard, freed)

    def writers(self) -> tuple[set[str], set[str]]:
        """The names of writing processes that live, and of those that ended without closing. Blocks."""
        alive, dead = set(), set()
        for path in (self.folder / WRITERS).iterdir():
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # closed just now
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alive.add(path.name)
            else:
                dead.add(path.name)
            finally:
                os.close(descriptor)
        return alive, dead

    def forget_writers(self, names: Iterable[str]) -> None:
        """Remove the lock files of dead writers, of whose bodies nothing is left to sweep. Blocks."""
        for name in names:
            (self.folder / WRITERS / name).unlink(missing_ok=True)

    def unowned(self) -> Iterator[list[str]]:
        """The names of all bodies whose writer is dead, a folder at a time. Blocks.

        The folder is read before the writers are asked: a writer found dead then has no commit to come.
        """
        for folder in sorted(self.folder.iterdir()):
            if folder.name != WRITERS and folder.is_dir():
                names = sorted(body.name for body in folder.iterdir())
                alive, _ = self.writers()
                yield [name for name in names if _is_body(name, folder.name) and name[_WRITER] not in alive]


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that holds a folder, "" when it can't be found out.

    Source of the format: proc(5), /proc/pid/mountinfo.
    """
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) > _DEVICE and fields[_DEVICE] == wanted:
            return after.partition(" ")[0]
    return ""


def _is_body(name: str, folder: str) -> bool:
    """Whether we made the file: a stranger's is not ours to remove."""
    return len(name) == _NAME_LENGTH and name[_FOLDER] == folder


class translated:  # noqa: N801 - reads as a clause: with translated()
    """Errors of the file system in our own tree: a full disk is StorageFull, the rest StorageError."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Translate."""
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            if error.errno in _FULL:
                raise StorageFull from error
            raise StorageError(f"The folder of bodies can't be written: {error.strerror}.") from error


async def result(work: Future[T]) -> T:
    """Wait for work. A cancelled caller leaves when the thread has, so it may close what that uses."""
    try:
        return await asyncio.wrap_future(work)
    except asyncio.CancelledError:
        await settled(work)
        raise


async def settled(work: Future[T]) -> None:
    """Withdraw work that hasn't begun, else wait for its end, whatever that is."""
    if not work.cancel() and not work.done():
        await asyncio.wait([asyncio.wrap_future(work)])


def write_at(descriptor: int, pieces: list[memoryview], offset: int) -> int:
    """Write all pieces one after the other from that offset; the number of bytes."""
    total = 0
    with translated():
        for first in range(0, len(pieces), _MAX_VECTORS):
            vectors = pieces[first : first + _MAX_VECTORS]
            while vectors:
                written = os.pwritev(descriptor, vectors, offset + total)
                total += written
                while vectors and written >= len(vectors[0]):
                    written -= len(vectors.pop(0))
                if vectors and written:
                    vectors[0] = vectors[0][written:]
    return total


def copy_range(source: int, target: int, size: int, source_offset: int = 0, target_offset: int = 0) -> None:
    """Copy bytes between two open files inside the kernel (as a reflink where the file system has it).

    Raises:
        StorageFull: the disk is full.
        StorageError: the source ended early, or another error of the file system.
    """
    done = 0
    with translated():
        while done < size:
            step = min(size - done, COPY_STEP)
            try:
                copied = os.copy_file_range(source, target, step, source_offset + done, target_offset + done)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                copied = _copy_by_hand(
                    source, target, min(step, _BUFFER), source_offset + done, target_offset + done
                )
            if not copied:
                raise StorageError("A body is shorter than its row says.")
            done += copied


def _copy_by_hand(source: int, target: int, size: int, source_offset: int, target_offset: int) -> int:
    data = os.pread(source, size, source_offset)
    return write_at(target, [memoryview(data)], target_offset) if data else 0


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
