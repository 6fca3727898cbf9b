"""Bodies of jobs too large for a row: files beside the database, or rows of their own where servers share them.

Called by `core.jobs` (write before the row is committed) and `core.dispatcher` (hand to the engine). What no job names
is swept at start.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Collection
from pathlib import Path

import sqlalchemy as sa

from oscar.errors import StorageError, StorageFull
from oscar.state.server_tables import bodies
from oscar.state.store import Store, now_ms

_YOUNG_S = 600.0


class Payloads:
    """A folder of immutable bodies. All verbs block."""

    def __init__(self, folder: Path, *, reserve: int = 0) -> None:
        """Work in that folder, made when absent; `reserve` bytes of its disk are to stay free."""
        self._folder = folder
        self._reserve = reserve
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(self, body: bytes) -> str:
        """Store a body durably; its name.

        Raises:
            StorageFull: the disk is full; nothing was stored.
        """
        name = uuid.uuid4().hex
        self._put(name, body)
        return name

    def _put(self, name: str, body: bytes) -> None:
        path = self._folder / name
        draft = path.with_name(f"{name}.{uuid.uuid4().hex}")
        try:
            with draft.open("xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            draft.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StorageFull from error
            raise

    def check_space(self, size: int) -> None:
        """Refuse what would leave less of the disk than the reserve.

        Raises:
            StorageFull: so many more bytes would.
        """
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < size + self._reserve:
            raise StorageFull

    def fetch(self, name: str) -> Path:
        """A file of this machine with the body of that name."""
        return self._folder / name

    def read(self, name: str) -> bytes:
        """The body of that name."""
        return self.fetch(name).read_bytes()

    def remove(self, name: str) -> None:
        """Remove a body; silent if absent."""
        (self._folder / name).unlink(missing_ok=True)

    def sweep(self, used: Collection[str]) -> None:
        """Remove bodies that no job names; young ones may belong to a job about to be committed."""
        limit = time.time() - _YOUNG_S
        for path in self._folder.iterdir():
            if path.name not in used and path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)


class SharedPayloads(Payloads):
    """The same for several servers on one PostgreSQL: the bodies are rows, the folder has copies of what runs here."""

    def __init__(self, store: Store, folder: Path, *, reserve: int = 0) -> None:
        """Work on that Store and folder."""
        super().__init__(folder, reserve=reserve)
        self._store = store

    def write(self, body: bytes) -> str:
        """See `Payloads.write`."""
        name = uuid.uuid4().hex
        new = sa.insert(bodies).values(name=name, body=body, time=now_ms())
        self._store.write_sync(lambda connection: connection.execute(new))
        return name

    def fetch(self, name: str) -> Path:
        """See `Payloads.fetch`."""
        path = self._folder / name
        if not path.exists():
            query = sa.select(bodies.c.body).where(bodies.c.name == name)
            body = self._store.write_sync(lambda connection: connection.execute(query).scalar())
            if body is not None:
                self._put(name, body)
            elif not path.exists():
                raise StorageError("The body of the job is gone")
        return path

    def remove(self, name: str) -> None:
        """See `Payloads.remove`."""
        super().remove(name)
        self._store.write_sync(
            lambda connection: connection.execute(bodies.delete().where(bodies.c.name == name))
        )

    def sweep(self, used: Collection[str]) -> None:
        """See `Payloads.sweep`."""
        super().sweep(used)
        old = bodies.c.time < now_ms() - int(_YOUNG_S * 1000)
        query = sa.select(bodies.c.name).where(old)
        names = self._store.write_sync(lambda connection: list(connection.execute(query).scalars()))
        for name in set(names) - set(used):
            self.remove(name)
