"""A connection to PostgreSQL that stays: it says that this server lives, and hears what others have done.

Made by `app.lifespan`. A session's advisory lock goes with its connection, so who gets it alone knows that no other
server lives. News come by NOTIFY of the triggers of migration 0010: without them the polls of the dispatcher and of
those who wait find the same, seconds later. On SQLite there is one server, and nothing to hear.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from oscar.state.store import Store, translated

_LOCK = 0x05CA3
_LISTEN_S = 2.0
_AGAIN_S = 1.0
LOST = "?"
"""News that may have been missed: everything may have changed."""


class Presence:
    """This server's presence; `alone` from the moment it was made."""

    def __init__(self, store: Store, told: Callable[[str], None]) -> None:
        """Connect.

        Args:
            store: the Store.
            told: called from a thread with each piece of news: `w` for work, `e<job>` for one that ended, `s` for
                services that changed, `LOST` after trouble.

        Raises:
            Unavailable: the database can't be used.
        """
        self._told = told
        self._over = threading.Event()
        self.alone = True
        if store.is_sqlite:
            return
        # Beside the pool: it may be cut, but never lent.
        self._engine = sa.create_engine(store.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        try:
            connection, self.alone = self._connected()
        except DBAPIError as error:
            raise translated(error) from error
        self._thread = threading.Thread(target=self._listen, args=(connection,), name="presence", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Be here no longer."""
        self._over.set()
        if hasattr(self, "_thread"):
            self._thread.join()
            self._engine.dispose()

    def _connected(self) -> tuple[sa.Connection, bool]:
        connection = self._engine.connect()
        alone = bool(connection.execute(sa.select(sa.func.pg_try_advisory_lock(_LOCK))).scalar())
        connection.execute(sa.select(sa.func.pg_advisory_lock_shared(_LOCK)))
        if alone:
            connection.execute(sa.select(sa.func.pg_advisory_unlock(_LOCK)))
        connection.exec_driver_sql("LISTEN oscar")
        return connection, alone

    def _listen(self, connection: sa.Connection | None) -> None:
        while not self._over.is_set():
            try:
                if connection is None:
                    connection = self._connected()[0]
                    self._told(LOST)
                self._hear(connection)
            except Exception:  # noqa: BLE001 - psycopg's own errors, which only `state.store` may name, and SQLAlchemy's
                with contextlib.suppress(Exception):
                    if connection is not None:
                        connection.close()
                connection = None
                self._over.wait(_AGAIN_S)
        if connection is not None:
            connection.close()

    def _hear(self, connection: sa.Connection) -> None:
        driver: Any = connection.connection.driver_connection
        while not self._over.is_set():
            for news in driver.notifies(timeout=_LISTEN_S, stop_after=1):
                self._told(news.payload)
