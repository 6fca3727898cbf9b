"""What administrators set while the server runs: texts by name, durable.

Called by `core.config`, which knows what the texts mean. Kept in the table `meta`, beside the installation's id.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.state.store import Store
from oscar.state.tables import meta

_PREFIX = "config."


class Configuration:
    """Statements on what administrators set."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store

    async def get(self, name: str) -> str | None:
        """The text of that name; None when it was never set."""
        query = sa.select(meta.c.value).where(meta.c.key == _PREFIX + name)
        found: str | None = await self._store.read(lambda connection: connection.execute(query).scalar())
        return found

    async def put(self, name: str, value: str) -> None:
        """Set it."""
        insert = (sqlite.insert if self._store.is_sqlite else postgresql.insert)(meta)
        statement = insert.values(key=_PREFIX + name, value=value).on_conflict_do_update(
            index_elements=["key"], set_={"value": value}
        )
        await self._store.write(lambda connection: connection.execute(statement))
