"""Quotas of users, what buckets hold, what jobs need."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from oscar.errors import InvalidField
from oscar.model.resources import parse_cpu, parse_memory

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NEEDS = ("cpu", "memory", "gpu", "ephemeral_storage")
_LIMITS = (*_NEEDS, "buckets", "storage_per_bucket")


def upgrade() -> None:
    """Make the tables and count what is there."""
    op.create_table(
        "quotas",
        sa.Column("user", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in _LIMITS),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user", name=op.f("pk_quotas")),
    )
    op.create_table(
        "bucket_usage",
        sa.Column("bucket", sa.String(length=63), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("objects", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("pending", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["bucket"], ["buckets.name"], name=op.f("fk_bucket_usage_bucket"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("bucket", "slot", name=op.f("pk_bucket_usage")),
    )
    op.create_index(op.f("ix_buckets_owner"), "buckets", ["owner"])
    for table in ("services", "jobs"):
        for name in _NEEDS:
            op.add_column(table, sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    connection = op.get_bind()
    connection.execute(
        sa.text(
            "INSERT INTO bucket_usage (bucket, slot, objects, size, pending) SELECT b.name, 0,"
            " (SELECT count(*) FROM objects o WHERE o.bucket = b.name),"
            " (SELECT coalesce(sum(o.size), 0) FROM objects o WHERE o.bucket = b.name),"
            " (SELECT coalesce(sum(p.size), 0) FROM parts p JOIN uploads u ON u.id = p.upload_id"
            "  WHERE u.bucket = b.name) FROM buckets b"
        )
    )
    for service_id, definition in connection.execute(sa.text("SELECT id, definition FROM services")).all():
        _count(connection, service_id, definition)


def _count(connection: sa.Connection, service_id: str, definition: str) -> None:
    fields = json.loads(definition)
    try:
        needs = {
            "cpu": parse_cpu(fields.get("cpu") or "0"),
            "memory": parse_memory(fields.get("memory") or "0"),
            "gpu": 1 if fields.get("enable_gpu") else 0,
            "ephemeral_storage": parse_memory(fields.get("ephemeral_storage_request") or "0"),
        }
    except InvalidField:
        # Cannot have been stored by a program of ours; such a service can't be parsed and so never runs.
        return
    for table, key in (("services", "id"), ("jobs", "service_id")):
        values = ", ".join(f"{name} = :{name}" for name in _NEEDS)
        active = " AND finished IS NULL" if table == "jobs" else ""
        connection.execute(
            sa.text(f"UPDATE {table} SET {values} WHERE {key} = :id{active}"),  # noqa: S608 - names of ours
            {**needs, "id": service_id},
        )


def downgrade() -> None:
    """Remove them."""
    for table in ("jobs", "services"):
        with op.batch_alter_table(table) as batch:
            for name in reversed(_NEEDS):
                batch.drop_column(name)
    op.drop_index(op.f("ix_buckets_owner"), "buckets")
    op.drop_table("bucket_usage")
    op.drop_table("quotas")
