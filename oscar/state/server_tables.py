"""The tables of several servers on one Store, the same on SQLite and PostgreSQL.

Used by `state.servers` and `state.payloads`; `state.tables` has all others and the rules that hold for them.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, LargeBinary, Table, Text
from sqlalchemy.types import String

from oscar.state.tables import metadata

# Servers whose engine is a machine of their own, by the place that this is: where runs, logs and volumes are.
servers = Table(
    "servers",
    metadata,
    Column("place", String(64), primary_key=True),
    Column("url", Text, nullable=False),
    Column("seen", BigInteger, nullable=False),
)

# Bodies of jobs that are too large for a row of `jobs`, where several servers must reach them.
bodies = Table(
    "bodies",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("time", BigInteger, nullable=False),
)
