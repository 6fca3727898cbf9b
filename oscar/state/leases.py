"""Leases: which of several servers on one Store does what only one should do.

Called by `core.leading`. A holder that ends without giving back is followed when its time is over.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.state.event_tables import leases
from oscar.state.store import Store, now_ms


class Leases:
    """Statements on leases."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert

    async def take(self, name: str, holder: str, seconds: float) -> bool:
        """Hold the lease for so long from now; False when somebody else does."""
        until = now_ms() + int(seconds * 1000)
        new = self._insert(leases).values(name=name, holder=holder, until=until)
        statement = new.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": holder, "until": until},
            where=(leases.c.holder == holder) | (leases.c.until < now_ms()),
        ).returning(leases.c.name)
        return await self._store.write(lambda connection: connection.execute(statement).first() is not None)

    async def give_back(self, name: str, holder: str) -> None:
        """Hold it no longer. Silent if somebody else does."""
        statement = sa.delete(leases).where(leases.c.name == name, leases.c.holder == holder)
        await self._store.write(lambda connection: connection.execute(statement))
