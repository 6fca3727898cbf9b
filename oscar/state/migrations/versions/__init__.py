"""Revisions of the schema, applied by alembic."""
