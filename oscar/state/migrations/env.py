"""Entry point of alembic: runs the revisions on the connection that `state.migrate` hands over."""

from __future__ import annotations

from alembic import context

from oscar.state import (  # noqa: F401 - tables of the same schema
    event_tables,
    federation_tables,
    metric_tables,
    server_tables,
)
from oscar.state.tables import metadata

connection = context.config.attributes["connection"]
# The caller's transaction holds the lock, so none is opened here.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
context.run_migrations()
