"""Requests by hour and day, CPU and GPU time of services."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; the server fills them from the records that are there."""
    op.create_table(
        "request_series",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("service", sa.String(length=39), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("entrance", sa.String(length=8), nullable=False),
        sa.Column("country", sa.String(length=2), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request_series")),
    )
    op.create_index(
        "uq_request_series",
        "request_series",
        ["service", "owner", "kind", "user", "entrance", "country"],
        unique=True,
    )
    op.create_table(
        "request_counts",
        sa.Column("span", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("series", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("span", "start", "series", name=op.f("pk_request_counts")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_hours",
        sa.Column("span", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("service", sa.String(length=39), nullable=False),
        sa.Column("cpu", sa.BigInteger(), nullable=False),
        sa.Column("gpu", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("span", "start", "owner", "service", name=op.f("pk_usage_hours")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_meters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cpu", sa.BigInteger(), nullable=False),
        sa.Column("read", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_usage_meters")),
    )


def downgrade() -> None:
    """Remove them; the records stay."""
    op.drop_table("usage_meters")
    op.drop_table("usage_hours")
    op.drop_table("request_counts")
    op.drop_index("uq_request_series", table_name="request_series")
    op.drop_table("request_series")
    op.execute("DELETE FROM meta WHERE key = 'requests_rolled'")
