"""A database from before quotas: what buckets hold and what services need is counted when it is brought up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

import oscar.state.migrate as module
from oscar.model.object import Usage
from oscar.model.quota import Defaults, Limits, Resources
from oscar.state import tables
from oscar.state.migrate import migrate
from oscar.state.objects import Objects
from oscar.state.quotas import Quotas
from oscar.state.secrets import Sealer
from oscar.state.store import Store

ROWS = [
    (
        "INSERT INTO buckets (name, owner, visibility, allowed_users, tags, created)"
        " VALUES ('one', 'ann', 'private', '[]', '{}', 1), ('two', 'ann', 'private', '[]', '{}', 1)"
    ),
    (
        "INSERT INTO objects (bucket, key, generation, size, etag, modified, content_type, headers, metadata, tags,"
        " checksums) VALUES ('one', 'a', 'g1', 10, 'e', 1, 't', '{}', '{}', '{}', '{}'),"
        " ('one', 'b', 'g2', 5, 'e', 1, 't', '{}', '{}', '{}', '{}')"
    ),
    (
        "INSERT INTO uploads (id, bucket, key, started, owner, content_type, headers, metadata, tags)"
        " VALUES ('u', 'one', 'c', 1, 'ann', 't', '{}', '{}', '{}')"
    ),
    (
        "INSERT INTO parts (upload_id, number, generation, size, etag, modified, checksums)"
        " VALUES ('u', 1, 'u.1', 7, 'e', 1, '{}')"
    ),
]
SERVICE = (
    "INSERT INTO services (id, name, owner, definition, secrets_sealed, token_sealed, token_mac, created, updated)"
    " VALUES ('s', 's', 'ann', :definition, :sealed, :sealed, :sealed, 1, 1)"
)
JOB = (
    'INSERT INTO jobs (id, service_id, service_name, owner, "user", kind, state, created, next_try, updated)'
    " VALUES ('j', 's', 's', 'ann', 'ann', 'api', 'running', 1, 1, 1)"
)


def upgrade(store: Store, revision: str) -> None:
    """Bring the database to a revision, as alembic does."""
    from alembic import command
    from alembic.config import Config

    def work(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    store.write_sync(work)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_what_is_there_is_counted(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path}/o.db" if kind == "sqlite" else request.getfixturevalue("empty_postgres_url")
    store = Store(url, Sealer(["k"]))
    upgrade(store, "0002")
    definition = '{"cpu": "0.5", "memory": "1Gi", "enable_gpu": true, "ephemeral_storage_request": "1k"}'

    def fill(connection: sa.Connection) -> None:
        for row in ROWS:
            connection.execute(sa.text(row))
        connection.execute(sa.text(SERVICE), {"definition": definition, "sealed": b"x"})
        connection.execute(sa.text(JOB))

    store.write_sync(fill)
    migrate(store)
    usages = asyncio.run(Objects(store, lambda *_: []).usages())
    assert usages == {"one": Usage(2, 15, 7), "two": Usage(0, 0, 0)}
    quotas = Quotas(store, Defaults(Limits(cpu=1000)))
    room = asyncio.run(quotas.room("ann"))
    assert room.used == Resources(cpu=500, memory=1024**3, gpu=1, ephemeral_storage=1000)
    needs = sa.select(tables.services.c.cpu, tables.services.c.gpu)
    assert store.write_sync(lambda connection: tuple(connection.execute(needs).one())) == (500, 1)
    store.close()
