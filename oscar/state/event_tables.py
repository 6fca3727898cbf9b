"""The tables of events that come from a store of its own, the same on SQLite and PostgreSQL.

Used by `state.events` and `state.bucket_changes`; `state.tables` has all others and the rules that hold for them.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Table, Text
from sqlalchemy.types import String

from oscar.state.tables import Key, metadata

# Events that made their jobs, or needed none, and whose job is gone or was another's: they come again for a while.
past_events = Table(
    "past_events",
    metadata,
    Column("event_key", String(64), primary_key=True),
    Column("time", BigInteger, nullable=False, index=True),
)

# What the webhook answered 200 and made no job of.
rejected_events = Table(
    "rejected_events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("time", BigInteger, nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("bucket", Text, nullable=False, server_default=""),
    Column("key", Key, nullable=False, server_default=""),
    Column("size", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

# Buckets that are being made or removed in the store: what a crash left is found by them.
bucket_changes = Table(
    "bucket_changes",
    metadata,
    Column("bucket", String(63), primary_key=True),
    Column("time", BigInteger, nullable=False),
)

# Who does now what only one of several servers should do.
leases = Table(
    "leases",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("until", BigInteger, nullable=False),
)
