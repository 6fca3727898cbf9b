"""Tables of what metrics are added up from: requests by the hour and the day, CPU and GPU time, readings of meters.

Part of the schema of `state.tables`. Used by `state.metrics` and `state.usage_hours`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, Text

from oscar.state.tables import metadata

# What is told apart of requests. A row here is short-hand for six texts, so that counts are narrow.
request_series = Table(
    "request_series",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("service", String(39), nullable=False),
    Column("owner", Text, nullable=False),
    Column("kind", String(8), nullable=False),
    Column("user", Text, nullable=False),
    Column("entrance", String(8), nullable=False),
    Column("country", String(2), nullable=False),
    Index("uq_request_series", "service", "owner", "kind", "user", "entrance", "country", unique=True),
)

# Requests of a series in an hour, and in a day (UTC): `span` is the length, `start` the begin, in milliseconds.
request_counts = Table(
    "request_counts",
    metadata,
    Column("span", BigInteger, primary_key=True, autoincrement=False),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("series", BigInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Microseconds of CPU and of GPU devices that a service has used in an hour, and in a day.
usage_hours = Table(
    "usage_hours",
    metadata,
    Column("span", BigInteger, primary_key=True, autoincrement=False),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("owner", Text, primary_key=True),
    Column("service", String(39), primary_key=True),
    Column("cpu", BigInteger, nullable=False),
    Column("gpu", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# The last reading of each container that goes on working (warm workers, replicas): what it adds is the difference.
usage_meters = Table(
    "usage_meters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("cpu", BigInteger, nullable=False),
    Column("read", BigInteger, nullable=False),
)
