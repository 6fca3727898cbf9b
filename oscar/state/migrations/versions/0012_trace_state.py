"""Traces: room for what systems of others keep with them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the limit away; SQLite has none."""
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("jobs", "trace", type_=sa.String())


def downgrade() -> None:
    """Leave what was there before, the `traceparent` of 55 characters."""
    op.execute("UPDATE jobs SET trace = substr(trace, 1, 55) WHERE length(trace) > 55")
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("jobs", "trace", type_=sa.String(length=55))
