"""Rows of users. Their S3 keys are in `state.objects`, where the S3 server looks them up.

Called by `core.users` when somebody is seen for the first time.
"""

from __future__ import annotations

import sqlalchemy as sa

from oscar.state.store import Store, now_ms
from oscar.state.tables import users


class Users:
    """Statements on users."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store

    async def ensure(self, user: str, *, name: str = "") -> bool:
        """Have a row of the user; True when it is new."""
        query = sa.select(users.c.id).where(users.c.id == user)
        if await self._store.read(lambda connection: connection.execute(query).first()):
            return False

        def work(connection: sa.Connection) -> bool:
            if connection.execute(query).first():
                return False
            connection.execute(users.insert().values(id=user, name=name, created=now_ms()))
            return True

        return await self._store.write(work)
