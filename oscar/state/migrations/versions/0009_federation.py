"""Copies of federated services on members, jobs that went to one, rotated refresh tokens."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_REMOTE = sa.text("state IN ('delegating','delegated')")
_PENDING = sa.text("next_try IS NOT NULL")


def upgrade() -> None:
    """Make the tables, and note which services have members."""
    op.add_column("services", sa.Column("delegates", sa.Integer(), nullable=True))
    op.create_index(
        "ix_jobs_remote",
        "jobs",
        ["state", "lease_until"],
        sqlite_where=_REMOTE,
        postgresql_where=_REMOTE,
    )
    op.create_table(
        "copies",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("service_id", sa.String(length=36), nullable=True),
        sa.Column("service_name", sa.String(length=39), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("copy_name", sa.String(length=39), nullable=False),
        sa.Column("wanted", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("applied", sa.Integer(), server_default="0", nullable=False),
        sa.Column("access_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("key_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("key_mac", sa.LargeBinary(), nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_try", sa.BigInteger(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_copies")),
    )
    op.create_index(op.f("ix_copies_service_id"), "copies", ["service_id"])
    op.create_index(op.f("ix_copies_key_mac"), "copies", ["key_mac"])
    op.create_index(
        "ix_copies_pending", "copies", ["next_try"], sqlite_where=_PENDING, postgresql_where=_PENDING
    )
    op.create_table(
        "delegations",
        sa.Column("job_id", sa.String(length=80), nullable=False),
        sa.Column("service_id", sa.String(length=36), nullable=False),
        sa.Column("policy", sa.String(length=16), server_default="", nullable=False),
        sa.Column("cluster_id", sa.Text(), server_default="", nullable=False),
        sa.Column("member", sa.Text(), server_default="", nullable=False),
        sa.Column("member_sealed", sa.LargeBinary(), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("sends", sa.Integer(), server_default="0", nullable=False),
        sa.Column("remote_state", sa.String(length=16), server_default="", nullable=False),
        sa.Column("rounds", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_try", sa.BigInteger(), nullable=False),
        sa.Column("heard", sa.BigInteger(), nullable=True),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_delegations_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_delegations")),
    )
    op.create_table(
        "refresh_tokens",
        sa.Column("service_id", sa.String(length=36), nullable=False),
        sa.Column("given_mac", sa.LargeBinary(), nullable=False),
        sa.Column("token_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["service_id"],
            ["services.id"],
            name=op.f("fk_refresh_tokens_service_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("service_id", name=op.f("pk_refresh_tokens")),
    )
    connection = op.get_bind()
    for service_id, text in connection.execute(sa.text("SELECT id, definition FROM services")).all():
        threshold = _threshold(json.loads(text))
        if threshold is not None:
            connection.execute(
                sa.text("UPDATE services SET delegates = :threshold WHERE id = :id"),
                {"threshold": threshold, "id": service_id},
            )


def _threshold(definition: dict[str, object]) -> int | None:
    federation = definition.get("federation")
    if not isinstance(federation, dict) or federation.get("topology") in {None, "none"}:
        return None
    return int(federation.get("rescheduler_threshold") or 0) if federation.get("members") else None


def downgrade() -> None:
    """Remove them."""
    op.drop_table("refresh_tokens")
    op.drop_table("delegations")
    op.drop_index("ix_copies_pending", "copies")
    op.drop_index(op.f("ix_copies_key_mac"), "copies")
    op.drop_index(op.f("ix_copies_service_id"), "copies")
    op.drop_table("copies")
    op.drop_index("ix_jobs_remote", "jobs")
    with op.batch_alter_table("services") as batch:
        batch.drop_column("delegates")
