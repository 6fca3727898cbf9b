"""Rows of refresh tokens: the newest one of each service, where the issuer has replaced what the user gave.

Called by `core.tokens`. What the user gave lies sealed with the service's other secrets; a row here takes its place as
long as he does not give another.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.state.federation_tables import refresh_tokens
from oscar.state.store import Store, now_ms

_PURPOSE = "refresh_tokens.token"


class RefreshTokens:
    """Statements on rotated refresh tokens."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store
        self._sealer = store.sealer
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert

    async def newest(self, service_id: str, given: str) -> str:
        """The token to use: the one that came after `given`, else that itself."""
        query = sa.select(refresh_tokens).where(refresh_tokens.c.service_id == service_id)
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        if not rows or rows[0].given_mac not in self._sealer.macs(given):
            return given
        return self._sealer.open(rows[0].token_sealed, _PURPOSE).decode()

    async def keep(self, service_id: str, given: str, token: str) -> None:
        """Remember what the issuer gave in place of the user's token."""
        await self._store.write(lambda connection: self.keep_in(connection, service_id, given, token))

    def keep_in(self, connection: sa.Connection, service_id: str, given: str, token: str) -> None:
        """The same within a transaction, such as the one that inserts the service."""
        values: dict[str, Any] = {
            "given_mac": self._sealer.macs(given)[0],
            "token_sealed": self._sealer.seal(token.encode(), _PURPOSE),
            "updated": now_ms(),
        }
        connection.execute(
            self._insert(refresh_tokens)
            .values(service_id=service_id, **values)
            .on_conflict_do_update(index_elements=["service_id"], set_=values)
        )
