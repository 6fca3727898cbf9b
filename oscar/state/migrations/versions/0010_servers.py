"""Several servers: where a job runs, which servers there are, bodies for all of them, news by PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_FUNCTION = """
CREATE FUNCTION oscar_news() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'jobs' THEN
        IF NEW.finished IS NOT NULL THEN
            PERFORM pg_notify('oscar', 'e' || NEW.id);
        ELSE
            PERFORM pg_notify('oscar', 'w');
        END IF;
    ELSE
        PERFORM pg_notify('oscar', 's');
    END IF;
    RETURN NULL;
END $$
"""
_TRIGGERS = (
    "CREATE TRIGGER oscar_new_job AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION oscar_news()",
    (
        "CREATE TRIGGER oscar_job AFTER UPDATE ON jobs FOR EACH ROW WHEN ("
        "(NEW.state IS DISTINCT FROM OLD.state AND (NEW.finished IS NOT NULL OR NEW.state = 'queued'))"
        " OR (NEW.cancel_requested AND NOT OLD.cancel_requested)) EXECUTE FUNCTION oscar_news()"
    ),
    (
        "CREATE TRIGGER oscar_service AFTER INSERT OR UPDATE OR DELETE ON services"
        " FOR EACH STATEMENT EXECUTE FUNCTION oscar_news()"
    ),
    (
        "CREATE TRIGGER oscar_exposure AFTER INSERT OR UPDATE ON exposures"
        " FOR EACH STATEMENT EXECUTE FUNCTION oscar_news()"
    ),
)


def upgrade() -> None:
    """Make them."""
    op.add_column("jobs", sa.Column("place", sa.String(length=64), server_default="", nullable=False))
    op.create_table(
        "servers",
        sa.Column("place", sa.String(length=64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("seen", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("place", name=op.f("pk_servers")),
    )
    op.create_table(
        "bodies",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_bodies")),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_FUNCTION)
        for trigger in _TRIGGERS:
            op.execute(trigger)


def downgrade() -> None:
    """Remove them."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION oscar_news() CASCADE")
    op.drop_table("bodies")
    op.drop_table("servers")
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("place")
