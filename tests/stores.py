"""Databases with the present schema, copied from one that was brought up to it once.

Called by the fixtures of databases and by `tests.server`. The migrations themselves are shown by tests that begin with
an empty database. An installation's id is no part of a copy: each server makes its own, as on an empty one.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import sqlalchemy as sa

from oscar.state import tables
from oscar.state.migrate import migrate
from oscar.state.secrets import Sealer
from oscar.state.store import Store


def bring_up(url: str) -> None:
    """Give an empty database the present schema, and no more."""
    store = Store(url, Sealer(["a key that seals nothing"]))
    try:
        migrate(store)
        own = sa.delete(tables.meta).where(tables.meta.c.key == "installation")
        store.write_sync(lambda connection: connection.execute(own))
    finally:
        store.close()


def sqlite(file: Path) -> str:
    """Make a database with the present schema.

    Returns:
        its URL for SQLAlchemy.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.write_bytes(_template())
    return f"sqlite:///{file}"


@functools.cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "oscar.db"
        bring_up(f"sqlite:///{file}")
        return file.read_bytes()
