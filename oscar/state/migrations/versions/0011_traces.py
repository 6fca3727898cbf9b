"""Traces: the span that caused a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the column."""
    op.add_column("jobs", sa.Column("trace", sa.String(length=55), nullable=True))


def downgrade() -> None:
    """Remove it."""
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("trace")
