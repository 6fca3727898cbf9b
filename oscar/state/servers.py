"""Rows of servers, and what makes several of them one installation: the same keys, and objects that all reach.

Called by `app.lifespan` at start and by `core.peers`.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.errors import Conflict
from oscar.state.secrets import SealError
from oscar.state.server_tables import servers
from oscar.state.store import Store, now_ms
from oscar.state.tables import meta

ALIVE_S = 60.0
"""Seconds after which a server that wasn't seen counts as away."""
_CHECK = "server.check"


class Servers:
    """Statements on servers."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert

    async def seen(self, place: str, url: str) -> None:
        """Note that the server of a place lives, and where it is reached."""
        new = self._insert(servers).values(place=place, url=url, seen=now_ms())
        statement = new.on_conflict_do_update(index_elements=["place"], set_={"url": url, "seen": now_ms()})
        await self._store.write(lambda connection: connection.execute(statement))

    async def url_of(self, place: str) -> str | None:
        """Where the server of a place was reached last."""
        query = sa.select(servers.c.url).where(servers.c.place == place)
        return await self._store.read(lambda connection: connection.execute(query).scalar())

    async def others(self, place: str, age: float = ALIVE_S) -> list[str]:
        """Other places whose servers were seen within so many seconds."""
        query = sa.select(servers.c.place).where(
            servers.c.place != place, servers.c.seen > now_ms() - int(age * 1000)
        )
        return await self._store.read(lambda connection: list(connection.execute(query).scalars()))

    async def check(self, blobs: str | None) -> None:
        """Refuse to be a server that can't read what others have written.

        Args:
            blobs: names the folder that holds the bodies of objects; None when they are in a store of its own.

        Raises:
            Conflict: the secret key is another one, or the bodies are in another server's folder.
        """
        sealer = self._store.sealer

        def known(connection: sa.Connection, key: str, value: str) -> str:
            connection.execute(self._insert(meta).values(key=key, value=value).on_conflict_do_nothing())
            return str(connection.execute(sa.select(meta.c.value).where(meta.c.key == key)).scalar_one())

        def work(connection: sa.Connection) -> tuple[str, str]:
            sealed = known(connection, _CHECK, sealer.seal(b"oscar", _CHECK).hex())
            return sealed, known(connection, "blobs", blobs) if blobs else ""

        sealed, there = await self._store.write(work)
        try:
            sealer.open(bytes.fromhex(sealed), _CHECK)
        except SealError:
            raise Conflict(
                "The secrets in this database were sealed with another key",
                field="OSCAR_SECRET_KEY",
                fix="set OSCAR_SECRET_KEY to the key of the server that wrote them; all servers need the same",
            ) from None
        if blobs and there != blobs:
            raise Conflict(
                "The objects of this database are in the data folder of another server",
                field="OSCAR_STORE",
                fix="several servers need a store that all reach: set OSCAR_STORE=minio, or OSCAR_DATA to that folder",
            )
