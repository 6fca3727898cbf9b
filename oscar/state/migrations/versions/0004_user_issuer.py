"""The OIDC issuer that speaks for a user."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; whoever is known already is bound at his next token."""
    op.add_column("users", sa.Column("issuer", sa.Text(), server_default="", nullable=False))


def downgrade() -> None:
    """Remove it."""
    op.drop_column("users", "issuer")
