"""Rows of users. Their S3 keys are in `state.objects`, where the S3 server looks them up.

Called by `core.users` when somebody is seen for the first time.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.state.store import Store, now_ms
from oscar.state.tables import users


class Users:
    """Statements on users."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert

    async def ensure(self, user: str, *, name: str = "") -> bool:
        """Have a row of the user; True when it is new."""
        query = sa.select(users.c.id).where(users.c.id == user)
        if await self._store.read(lambda connection: connection.execute(query).first()):
            return False
        new = self._insert(users).values(id=user, name=name, created=now_ms()).on_conflict_do_nothing()
        return bool(await self._store.write(lambda connection: connection.execute(new).rowcount))

    async def name_of(self, user: str) -> str:
        """The user's name for people; "" when it isn't known."""
        query = sa.select(users.c.name).where(users.c.id == user)
        return await self._store.read(lambda connection: connection.execute(query).scalar()) or ""

    async def admit(self, user: str, *, name: str, issuer: str, trusted: Collection[str]) -> str:
        """Have a row of an OIDC user; the issuer that speaks for him.

        A subject is that of the issuer which named it first, as long as that one is trusted: what two issuers call
        alike are two people, and only one of them can have the id. A new name replaces the old one.

        Args:
            user: his subject.
            name: for people to read; "" when it isn't known.
            issuer: who vouches for him now.
            trusted: all issuers that are trusted now.
        """
        query = sa.select(users.c.issuer, users.c.name).where(users.c.id == user)

        def change(row: sa.Row[str, str]) -> dict[str, str]:
            """What of the row must become another."""
            if row.issuer != issuer and row.issuer in trusted:
                return {}
            now = {"issuer": issuer, "name": name or row.name}
            return {} if now == {"issuer": row.issuer, "name": row.name} else now

        row = await self._store.read(lambda connection: connection.execute(query).first())
        if row is not None and not change(row):
            return str(row.issuer)

        def work(connection: sa.Connection) -> str:
            values = {"id": user, "name": name, "issuer": issuer, "created": now_ms()}
            connection.execute(self._insert(users).values(values).on_conflict_do_nothing())
            present = connection.execute(query).one()
            if changed := change(present):
                connection.execute(users.update().where(users.c.id == user).values(changed))
            return str(changed.get("issuer", present.issuer))

        return await self._store.write(work)
