"""Bringing the database to the schema of this program, by alembic, at start.

Called by `app.py` before anything else touches the Store. PostgreSQL: under an advisory lock, so that several
servers may start at once; SQLite: under the write lock of the migration's own transaction.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.errors import Conflict
from oscar.state import tables
from oscar.state.store import Store

_LOCK = 0x05CA2
HEAD = "0012"
"""The newest revision in `migrations/versions`; a test compares it with alembic's own word."""


def migrate(store: Store) -> str:
    """Upgrade to the newest schema; returns the installation id (made at the first start).

    Raises:
        Conflict: the database was written by a newer program.
    """

    def work(connection: sa.Connection) -> str:
        if not store.is_sqlite:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        if _revision(connection) != HEAD:
            _upgrade(connection)
        return _installation(connection, is_sqlite=store.is_sqlite)

    return store.write_sync(work)


def _revision(connection: sa.Connection) -> str | None:
    # alembic takes 150 ms to import; a database that is up to date is recognised without it.
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise Conflict(
            f"The database has a schema that this program does not know: {error}",
            fix="run the newer program, or restore the backup made before the upgrade (docs/upgrade.md)",
        ) from error


def _installation(connection: sa.Connection, *, is_sqlite: bool) -> str:
    insert = (sqlite.insert if is_sqlite else postgresql.insert)(tables.meta)
    connection.execute(
        insert.values(key="installation", value=uuid.uuid4().hex[:12]).on_conflict_do_nothing()
    )
    return str(
        connection.execute(
            sa.select(tables.meta.c.value).where(tables.meta.c.key == "installation")
        ).scalar_one()
    )
