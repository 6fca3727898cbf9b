"""The tables of federations: copies on members, jobs that went to one, refresh tokens that were rotated.

Beside `state.tables`, whose rules hold here too.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, LargeBinary, Table, Text, text
from sqlalchemy.types import String

from oscar.state.tables import metadata

# What a member should have and has: the outbox of changes. A row outlives its service until the member has removed
# the copy. `next_try` is null when nothing is pending.
copies = Table(
    "copies",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("service_id", String(36), index=True),
    Column("service_name", String(39), nullable=False),
    Column("owner", Text, nullable=False),
    Column("cluster_id", Text, nullable=False),
    Column("copy_name", String(39), nullable=False),
    Column("wanted", Boolean, nullable=False),
    Column("version", Integer, nullable=False, server_default="1"),
    Column("applied", Integer, nullable=False, server_default="0"),
    Column("access_sealed", LargeBinary, nullable=False),
    Column("key_sealed", LargeBinary, nullable=False),
    Column("key_mac", LargeBinary, nullable=False, index=True),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("next_try", BigInteger),
    Column("problem", Text),
    Column("created", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
    Index(
        "ix_copies_pending",
        "next_try",
        sqlite_where=text("next_try IS NOT NULL"),
        postgresql_where=text("next_try IS NOT NULL"),
    ),
)

# Which member a job went to and why; also of jobs that came back. The state itself is the job's.
delegations = Table(
    "delegations",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("service_id", String(36), nullable=False),
    Column("policy", String(16), nullable=False, server_default=""),
    Column("cluster_id", Text, nullable=False, server_default=""),
    Column("member", Text, nullable=False, server_default=""),
    Column("member_sealed", LargeBinary),
    Column("reason", Text, nullable=False, server_default=""),
    Column("problem", Text),
    Column("sends", Integer, nullable=False, server_default="0"),
    Column("remote_state", String(16), nullable=False, server_default=""),
    Column("rounds", Integer, nullable=False, server_default="0"),
    Column("next_try", BigInteger, nullable=False),
    Column("heard", BigInteger),
    Column("updated", BigInteger, nullable=False),
)

# The newest refresh token of a service, where the issuer gave another one than the user did.
refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("service_id", ForeignKey("services.id", ondelete="CASCADE"), primary_key=True),
    Column("given_mac", LargeBinary, nullable=False),
    Column("token_sealed", LargeBinary, nullable=False),
    Column("updated", BigInteger, nullable=False),
)
