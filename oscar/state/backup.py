"""A copy of a SQLite Store at one moment, and which files belong to it: what `core.archive` puts into an archive.

Works on a database that is in use. Only the standard library's driver: no transaction of ours is open, and nothing is
written but the copy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from oscar.errors import Conflict, StorageError
from oscar.state.migrate import HEAD


@dataclass(frozen=True, slots=True)
class Contents:
    """What a copy refers to."""

    installation: str
    schema: str
    bodies: frozenset[str]
    """Names of bodies of objects."""
    payloads: frozenset[str]
    """Names of bodies of jobs."""


def snapshot(database: Path, copy: Path) -> Contents:
    """Copy a database at one moment. Blocking.

    Args:
        database: of a server that may run.
        copy: a new file.

    Raises:
        Conflict: there is no database, or one of another version.
        StorageError: it can't be read or written.
    """
    if not database.is_file():
        raise Conflict(f"There is no installation in {database.parent}", field="OSCAR_DATA")
    with _translated(), closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True)) as source:
        source.execute("PRAGMA query_only=ON")
        with closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            found = _contents(target)
    if found.schema != HEAD:
        raise Conflict(
            f"The database has the schema {found.schema}, this program writes {HEAD}",
            fix="start the server of this version once, or export with the version that wrote it",
        )
    return found


def trim(copy: Path, *, objects: bool) -> Contents:
    """Leave out of a copy what has no place in an archive: unfinished uploads, and on request objects. Blocking.

    Raises:
        StorageError: it can't be written.
    """
    with _translated(), closing(sqlite3.connect(copy, isolation_level=None)) as target:
        # Their parts are bodies of a kind of its own, which no client will go on with elsewhere.
        target.execute("DELETE FROM parts")
        target.execute("DELETE FROM uploads")
        target.execute("UPDATE bucket_usage SET pending = 0")
        # Which server had it: the next one has a folder, and perhaps a key, of its own.
        target.execute("DELETE FROM servers")
        target.execute("DELETE FROM meta WHERE key IN ('blobs', 'server.check')")
        target.execute("UPDATE jobs SET place = ''")
        if not objects:
            target.execute("DELETE FROM objects")
            target.execute("DELETE FROM bucket_usage")
        # What was deleted stays in free pages otherwise; and one file is all there is.
        target.execute("PRAGMA journal_mode=DELETE")
        target.execute("VACUUM")
        return _contents(target)


def contents(database: Path) -> Contents:
    """What a copy refers to. Blocking.

    Raises:
        StorageError: it is no database of ours, or damaged.
    """
    with _translated(), closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as source:
        if source.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise StorageError("The database of the archive is damaged")
        return _contents(source)


def _contents(connection: sqlite3.Connection) -> Contents:
    def column(statement: str) -> frozenset[str]:
        return frozenset(str(row[0]) for row in connection.execute(statement))

    [(installation,)] = connection.execute("SELECT value FROM meta WHERE key = 'installation'")
    [(schema,)] = connection.execute("SELECT version_num FROM alembic_version")
    return Contents(
        installation=str(installation),
        schema=str(schema),
        bodies=column("SELECT generation FROM objects"),
        payloads=column("SELECT payload_ref FROM jobs WHERE payload_ref IS NOT NULL"),
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, ValueError) as error:
        raise StorageError(f"The database can't be copied: {error}") from error
