"""Rows of users on SQLite and on a real PostgreSQL: which issuer speaks for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from oscar.state.migrate import migrate
from oscar.state.secrets import Sealer
from oscar.state.store import Store
from oscar.state.tables import users
from oscar.state.users import Users

A, B = "https://a.example.org", "https://b.example.org"


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store(database_url, Sealer(["key-one"]))
    migrate(opened)
    yield opened
    opened.close()


def rows(store: Store) -> list[tuple[str, str, str]]:
    async def read() -> list[tuple[str, str, str]]:
        query = sa.select(users.c.id, users.c.name, users.c.issuer).order_by(users.c.id)
        return await store.read(lambda connection: [tuple(row) for row in connection.execute(query)])

    return asyncio.run(read())


def test_the_first_issuer_keeps_a_subject(store: Store) -> None:
    async def scenario() -> None:
        table = Users(store)
        assert await table.admit("ann", name="Ann", issuer=A, trusted=[A, B]) == A
        assert await table.admit("ann", name="Other", issuer=B, trusted=[A, B]) == A
        assert await table.admit("ann", name="", issuer=A, trusted=[A, B]) == A
        assert await table.admit("bob", name="", issuer=B, trusted=[A, B]) == B

    asyncio.run(scenario())
    assert rows(store) == [("ann", "Ann", A), ("bob", "", B)]


def test_an_issuer_that_moved_takes_its_people_along(store: Store) -> None:
    async def scenario() -> None:
        table = Users(store)
        await table.admit("ann", name="Ann", issuer=A, trusted=[A])
        assert await table.admit("ann", name="Ann B.", issuer=B, trusted=[B]) == B

    asyncio.run(scenario())
    assert rows(store) == [("ann", "Ann B.", B)]


def test_who_was_known_without_an_issuer_gets_one(store: Store) -> None:
    async def scenario() -> None:
        table = Users(store)
        assert await table.ensure("ann", name="Ann")
        assert not await table.ensure("ann")
        assert await table.admit("ann", name="", issuer=A, trusted=[A]) == A

    asyncio.run(scenario())
    assert rows(store) == [("ann", "Ann", A)]


def test_first_sights_at_once_are_one(store: Store) -> None:
    async def scenario() -> None:
        table = Users(store)
        claims = [(A, B)[number % 2] for number in range(20)]
        speaks = await asyncio.gather(
            *(table.admit("ann", name="Ann", issuer=issuer, trusted=[A, B]) for issuer in claims)
        )
        assert len(set(speaks)) == 1

    asyncio.run(scenario())
    assert len(rows(store)) == 1
