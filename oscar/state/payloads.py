"""Bodies of jobs that are too large for a row: files beside the database, named in the job.

Called by `core.jobs` (write before the row is committed) and `core.dispatcher` (hand to the engine). Files without a
row are swept at start.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Collection
from pathlib import Path

from oscar.errors import StorageFull

_YOUNG_S = 600.0


class Payloads:
    """A folder of immutable bodies."""

    def __init__(self, folder: Path, *, reserve: int = 0) -> None:
        """Work in that folder, made when absent; `reserve` bytes of its disk are to stay free."""
        self._folder = folder
        self._reserve = reserve
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(self, body: bytes) -> str:
        """Store a body durably; its name. Blocking.

        Raises:
            StorageFull: the disk is full; nothing was stored.
        """
        name = uuid.uuid4().hex
        path = self.path(name)
        try:
            with path.open("xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            path.unlink(missing_ok=True)
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StorageFull from error
            raise
        return name

    def check_space(self, size: int) -> None:
        """Refuse what would leave less of the disk than the reserve.

        Raises:
            StorageFull: so many more bytes would.
        """
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < size + self._reserve:
            raise StorageFull

    def path(self, name: str) -> Path:
        """Where the body of that name lies."""
        return self._folder / name

    def remove(self, name: str) -> None:
        """Remove a body; silent if absent."""
        self.path(name).unlink(missing_ok=True)

    def sweep(self, used: Collection[str]) -> None:
        """Remove bodies that no job names; young ones may belong to a job about to be committed."""
        limit = time.time() - _YOUNG_S
        for path in self._folder.iterdir():
            if path.name not in used and path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
