"""Files of this machine on their way to and from foreign stores.

Called by `objects.webdav`, `onedata` and `rucio`. Downloads go to a file beside their place and are moved there
when they are whole; uploads are read from a descriptor, so that no link can be slipped in at the path's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import stat
import uuid
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from oscar.errors import OscarError, StorageError, StorageFull

CHUNK = 1024 * 1024
"""Bytes that are read, sent or written at once; all that a transfer holds in memory."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Source:
    """An open file that may be read several times over, and its size in bytes."""

    descriptor: int
    size: int

    async def pieces(self) -> AsyncIterator[bytes]:
        """Its content from the beginning."""
        offset = 0
        while offset < self.size:
            piece = await asyncio.to_thread(os.pread, self.descriptor, min(CHUNK, self.size - offset), offset)
            if not piece:
                raise StorageError("the file became shorter while it was sent")
            offset += len(piece)
            yield piece


@dataclass(frozen=True, slots=True)
class Sums:
    """Checksums in hexadecimal, as Rucio keeps them."""

    adler32: str
    md5: str


def sums(descriptor: int) -> Sums:
    """The checksums of an open file. Blocking."""
    adler, digest, offset = 1, hashlib.md5(usedforsecurity=False), 0
    while piece := os.pread(descriptor, CHUNK, offset):
        adler = zlib.adler32(piece, adler)
        digest.update(piece)
        offset += len(piece)
    return Sums(f"{adler:08x}", digest.hexdigest())


def sums_of(path: Path) -> Sums:
    """The checksums of a file. Blocking."""
    with path.open("rb") as file:
        return sums(file.fileno())


@contextlib.contextmanager
def source(path: Path) -> Iterator[Source]:
    """The file to send; a link at the path's end is refused.

    Raises:
        StorageError: it can't be read, or is not a file.
    """
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        raise local_error(error, path) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"{path.name} is not a file")
        yield Source(descriptor, status.st_size)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which is moved to `path` if the block ends without an error and removed if not.

    Raises:
        StorageFull: the disk of this machine is full.
        StorageError: it can't be written otherwise.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise local_error(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def local_error(error: OSError, path: Path) -> OscarError:
    """A failure of this machine's disk as our error."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull("the disk of the server is full")
    return StorageError(f"{path.name}: {error.strerror or error}")
