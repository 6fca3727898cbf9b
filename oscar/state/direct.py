"""Hot statements without SQLAlchemy's execution layer on SQLite.

Used by `state.objects` for the few statements that every S3 request runs: there the layer costs five times the
statement itself. The same Core statement is compiled once; SQLite runs its text on the driver's connection, other
databases run it as usual. JSON goes in as Python data and comes out as text on SQLite: read it by `plain`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError


class Direct:
    """One statement with named parameters."""

    def __init__(self, statement: sa.Executable) -> None:
        """Compile it for SQLite."""
        self._statement = statement
        compiled = statement.compile(dialect=sqlite.dialect())  # type: ignore[attr-defined]  # of every construct
        self._text = str(compiled)
        self._names: Sequence[str] = compiled.positiontup or ()
        self._fixed: Mapping[str, Any] = compiled.params

    def rows(self, connection: sa.Connection, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Run it in a transaction of the Store. Raises SQLAlchemy's errors."""
        if connection.dialect.name != "sqlite":
            result = connection.execute(self._statement, values)
            return result.all() if result.returns_rows else ()
        driver = connection.connection.driver_connection
        if driver is None:
            raise ValueError("the connection is closed")
        return self.rows_raw(driver, values)

    def many(self, connection: sa.Connection, values: Sequence[Mapping[str, Any]]) -> None:
        """Run it once for each of many parameters, without results. Raises SQLAlchemy's errors."""
        if not values:
            return
        if connection.dialect.name != "sqlite":
            connection.execute(self._statement, values)
            return
        driver = connection.connection.driver_connection
        if driver is None:
            raise ValueError("the connection is closed")
        try:
            driver.executemany(self._text, [self._parameters(each) for each in values])
        except sqlite3.Error as error:
            raise DBAPIError.instance(self._text, None, error, sqlite3.Error) from error

    def rows_raw(self, driver: sqlite3.Connection, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Run it on a connection of the driver. Raises SQLAlchemy's errors."""
        try:
            return driver.execute(self._text, self._parameters(values)).fetchall()
        except sqlite3.Error as error:
            raise DBAPIError.instance(self._text, None, error, sqlite3.Error) from error

    def _parameters(self, values: Mapping[str, Any]) -> list[Any]:
        fixed = self._fixed
        return [_bound(values[name] if name in values else fixed[name]) for name in self._names]


def _bound(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def plain(value: Any) -> Any:
    """The data of a JSON column, which SQLite gives as text."""
    return json.loads(value) if isinstance(value, str) else value
