"""The Store: short transactions on SQLite or PostgreSQL, by SQLAlchemy Core in threads.

`app.py` makes one per process; `state.services`, `state.jobs`, `state.objects` and `state.users` hold the statements.
SQLite has one writer thread with group commit (many small transactions share one fsync, each in a savepoint of its
own) and a few read-only readers; PostgreSQL has a pool. Why threads and not SQLAlchemy's asyncio: decision 0002.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import QueuePool, StaticPool
from sqlalchemy.sql.functions import FunctionElement

from oscar.errors import BadRequest, OscarError, StorageFull, Unavailable
from oscar.state.direct import Direct
from oscar.state.secrets import Sealer

T = TypeVar("T")

_BATCH = 64
_READERS = 4
_POOL = 8
_BUSY_MS = 10_000
_CHECKPOINT_S = 60.0


class now_ms(FunctionElement[int]):  # noqa: N801 - an SQL function, written as one
    """The database's clock in Unix milliseconds, as an SQL expression."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(now_ms, "sqlite")
def _now_sqlite(_element: now_ms, _compiler: Any, **_kw: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@compiles(now_ms, "postgresql")
def _now_postgresql(_element: now_ms, _compiler: Any, **_kw: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"


class StoreError(OscarError):
    """The database refused or failed."""

    code = "store_error"


class Store:
    """One database. `write` and `read` run a function of a connection in a transaction, off the event loop."""

    def __init__(self, url: str, sealer: Sealer, *, batch: int = _BATCH) -> None:
        """Open lazily; `url` as SQLAlchemy takes it, `sqlite:///path` or `postgresql+psycopg://…`."""
        self.sealer = sealer
        self.url = sa.make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            if self.url.database:
                Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
            self._writer: _Writer = _GroupWriter(_sqlite_engine(self.url, read_only=False), batch)
            self._reader = _sqlite_engine(self.url, read_only=True)
        else:
            engine = sa.create_engine(self.url, pool_size=_POOL, max_overflow=0, pool_pre_ping=True)
            self._writer = _PoolWriter(engine)
            self._reader = engine
        self._lent: list[sqlite3.Connection] = []
        self._own: sqlite3.Connection | None = None
        self._threads = ThreadPoolExecutor(_READERS if self.is_sqlite else _POOL, "store-read")

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in one write transaction; on return it is durable. No I/O but SQL inside.

        `work` may run twice (a PostgreSQL serialisation failure), so it must have no other effect.
        """
        return await asyncio.wrap_future(self._writer.put(work))

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` on a read-only connection with one consistent view."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, work)

    def _read(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            with self._reader.connect() as connection, connection.begin():
                return work(connection)
        except DBAPIError as error:
            raise translated(error) from error

    async def look_up(self, statement: Direct, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """The rows of a statement that reads a few rows by an index; it sees what is committed.

        On SQLite in the caller's thread: changing it costs ten times such a look-up. In another one on PostgreSQL,
        and while SQLite recovers its log after a crash.
        """
        self._own = self._own or self.open_reader()
        if self._own is not None:
            try:
                return statement.rows_raw(self._own, values)
            except OperationalError:
                pass  # the other way finds out whether it is more than that
            except DBAPIError as error:
                raise translated(error) from error
        return await self.read(lambda connection: statement.rows(connection, values))

    def open_reader(self) -> sqlite3.Connection | None:
        """A read-only connection of the caller's own, for look-ups by key that cost less than a change of thread.

        It sees what is committed at each statement. None on PostgreSQL. `close` closes it.
        """
        if not self.is_sqlite:
            return None
        connection = sqlite3.connect(self.url.database or "", isolation_level=None, check_same_thread=False)
        for pragma in ("cache_size=-4000", "busy_timeout=100", "query_only=ON"):
            connection.execute(f"PRAGMA {pragma}")
        self._lent.append(connection)
        return connection

    def write_sync(self, work: Callable[[sa.Connection], T]) -> T:
        """`write` for callers without an event loop (start-up, tests)."""
        return self._writer.put(work).result()

    def close(self) -> None:
        """Finish what was asked and close; idempotent."""
        self._writer.close()
        self._threads.shutdown()
        for connection in self._lent:
            connection.close()
        self._reader.dispose()


def translated(error: DBAPIError) -> OscarError:
    """A database's error in our tree; the words of the driver without the statement and its parameters."""
    words = str(error.orig)
    if "database or disk is full" in words or "No space left" in words:
        return StorageFull()
    if "cannot contain NUL" in words:
        # SQLite takes it, and finds nothing of that name.
        return BadRequest("No name and no text may hold the character NUL", fix="leave it out")
    if isinstance(error, OperationalError):
        return Unavailable(f"The database can't be used now: {words}")
    return StoreError(f"The database refused: {words}")


class _TransactionLostError(Exception):
    """SQLite rolled back the whole transaction by itself, as it does when the disk is full."""


class _Writer:
    """Runs write transactions in threads of its own."""

    def put(self, work: Callable[[sa.Connection], T]) -> Future[T]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _PoolWriter(_Writer):
    """PostgreSQL: a pool of connections, a serialisation failure or deadlock is tried again."""

    _TRIES = 5

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(_POOL, "store-write")

    def put(self, work: Callable[[sa.Connection], T]) -> Future[T]:
        return self._threads.submit(self._run, work)

    def _run(self, work: Callable[[sa.Connection], T]) -> T:
        for left in reversed(range(self._TRIES)):
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except IntegrityError as error:
                raise translated(error) from error
            except DBAPIError as error:
                if left and getattr(error.orig, "sqlstate", "") in {"40001", "40P01"}:
                    time.sleep(0.01)
                    continue
                raise translated(error) from error
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        self._threads.shutdown()
        self._engine.dispose()


class _GroupWriter(_Writer):
    """SQLite: one thread takes all that waits, runs each in a savepoint and commits once for all."""

    def __init__(self, engine: sa.Engine, batch: int) -> None:
        self._engine = engine
        self._batch = batch
        self._queue: queue.SimpleQueue[tuple[Callable[[sa.Connection], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="store-write", daemon=True)
        self._thread.start()

    def put(self, work: Callable[[sa.Connection], T]) -> Future[T]:
        if self._closed:
            raise Unavailable("The server is shutting down")
        future: Future[T] = Future()
        self._queue.put((work, future))
        return future

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()
            self._engine.dispose()

    def _loop(self) -> None:
        checkpointed = time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=_CHECKPOINT_S)
            except queue.Empty:
                self._checkpoint()
                checkpointed = time.monotonic()
                continue
            if item is None:
                return
            batch = [item]
            last = False
            while len(batch) < self._batch:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    last = True
                    break
                batch.append(more)
            self._commit([entry for entry in batch if entry[1].set_running_or_notify_cancel()])
            if time.monotonic() - checkpointed > _CHECKPOINT_S:
                self._checkpoint()
                checkpointed = time.monotonic()
            if last:
                return

    def _commit(self, batch: list[tuple[Callable[[sa.Connection], Any], Future[Any]]]) -> None:
        done: list[tuple[Future[Any], Any]] = []
        failed: list[tuple[Future[Any], BaseException]] = []
        try:
            with self._engine.begin() as connection:
                for work, future in batch:
                    try:
                        if len(batch) == 1:
                            done.append((future, work(connection)))
                        else:
                            done.append((future, _in_savepoint(connection, work)))
                    except _TransactionLostError:
                        raise
                    except Exception as error:
                        failed.append((future, error))
                        if len(batch) == 1:
                            raise
        except Exception as error:  # noqa: BLE001 - handed to every caller whose work was not committed
            told = {future for future, _ in failed}
            cause = error.__cause__ if isinstance(error, _TransactionLostError) else None
            failed += [(future, cause or error) for _, future in batch if future not in told]
            done = []
        for future, result in done:
            future.set_result(result)
        for future, problem in failed:
            future.set_exception(translated(problem) if isinstance(problem, DBAPIError) else problem)

    def _checkpoint(self) -> None:
        # Keeps the log short although readers come and go; a busy database just does it next time.
        with self._engine.connect() as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
            connection.exec_driver_sql("BEGIN")


def _in_savepoint(connection: sa.Connection, work: Callable[[sa.Connection], T]) -> T:
    """Run `work` so that its failure undoes only its own changes.

    By the driver's statements: SQLAlchemy compiles each SAVEPOINT anew, at more than the cost of a whole insert.
    """
    driver = connection.connection.driver_connection
    if driver is None:
        raise Unavailable("The database is closed")
    driver.execute("SAVEPOINT one")
    try:
        result = work(connection)
    except BaseException as error:
        if not driver.in_transaction:
            raise _TransactionLostError from error
        driver.execute("ROLLBACK TO one")
        driver.execute("RELEASE one")
        raise
    driver.execute("RELEASE one")
    return result


def _sqlite_engine(url: sa.URL, *, read_only: bool) -> sa.Engine:
    arguments: dict[str, Any] = {
        "check_same_thread": False,
        "isolation_level": None,
        "timeout": _BUSY_MS / 1000,
    }
    if read_only:
        engine = sa.create_engine(
            url, poolclass=QueuePool, pool_size=_READERS, max_overflow=0, connect_args=arguments
        )
    else:
        engine = sa.create_engine(url, poolclass=StaticPool, connect_args=arguments)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "temp_store=MEMORY",
            "cache_size=-4000",
            f"busy_timeout={_BUSY_MS}",
            *(["query_only=ON"] if read_only else []),
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
