"""Managed volumes, the services that have them, limits of single users."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "volumes",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("shown_size", sa.String(length=64), nullable=False),
        sa.Column("mode", sa.String(length=8), nullable=False),
        sa.Column("retain", sa.Boolean(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("phase", sa.String(length=12), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "name", name=op.f("pk_volumes")),
    )
    op.create_table(
        "volume_attachments",
        sa.Column("service_id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("volume", sa.String(length=63), nullable=False),
        sa.Column("mount_path", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["service_id"],
            ["services.id"],
            name=op.f("fk_volume_attachments_service_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("service_id", name=op.f("pk_volume_attachments")),
    )
    op.create_index("ix_volume_attachments_volume", "volume_attachments", ["owner", "volume"])
    op.create_table(
        "volume_limits",
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("disk", sa.BigInteger(), nullable=True),
        sa.Column("volumes", sa.Integer(), nullable=True),
        sa.Column("largest", sa.BigInteger(), nullable=True),
        sa.Column("smallest", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("user", name=op.f("pk_volume_limits")),
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_table("volume_limits")
    op.drop_index("ix_volume_attachments_volume", table_name="volume_attachments")
    op.drop_table("volume_attachments")
    op.drop_table("volumes")
