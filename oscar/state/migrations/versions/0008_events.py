"""Events of a store of its own, notes of buckets that change, and leases."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.add_column("service_inputs", sa.Column("since", sa.BigInteger(), server_default="0", nullable=False))
    # What lies in the inputs of today was seen when it came.
    inputs = sa.table("service_inputs", sa.column("since", sa.BigInteger))
    op.execute(inputs.update().values(since=int(time.time() * 1000)))
    op.create_table(
        "past_events",
        sa.Column("event_key", sa.String(length=64), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("event_key", name=op.f("pk_past_events")),
    )
    op.create_index(op.f("ix_past_events_time"), "past_events", ["time"])
    op.create_table(
        "rejected_events",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("bucket", sa.Text(), server_default="", nullable=False),
        sa.Column("key", _KEY, server_default="", nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejected_events")),
    )
    op.create_index(op.f("ix_rejected_events_time"), "rejected_events", ["time"])
    op.create_table(
        "bucket_changes",
        sa.Column("bucket", sa.String(length=63), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("bucket", name=op.f("pk_bucket_changes")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )


def downgrade() -> None:
    """Remove them."""
    for table in ("leases", "bucket_changes", "rejected_events", "past_events"):
        op.drop_table(table)
    with op.batch_alter_table("service_inputs") as batch:
        batch.drop_column("since")
