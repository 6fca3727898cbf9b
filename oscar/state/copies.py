"""Rows of copies: what each member of a federation should have, and what it has. The durable outbox of changes.

Called by `core.copies` and `core.propagation`, and by `core.services` inside the transaction that changes a service:
the wish is written with the change itself, so no crash can lose it. A change bumps `version`; who applied an older one
changes nothing here.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from oscar.state.federation_tables import copies
from oscar.state.store import Store, now_ms

_ACCESS, _KEY = "copies.access", "copies.key"


@dataclass(frozen=True, slots=True)
class NewCopy:
    """A copy that is to be made: on which cluster, how it is reached, and the key with which it asks its origin."""

    cluster_id: str
    name: str
    access: Mapping[str, Any] = field(repr=False)
    key: str = field(repr=False)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy as it stands. Times are Unix milliseconds."""

    id: str
    service_id: str | None
    service_name: str
    owner: str
    cluster_id: str
    name: str
    wanted: bool
    version: int
    applied: int
    access: Mapping[str, Any] = field(repr=False)
    key: str = field(repr=False)
    tries: int
    next_try: int | None
    problem: str | None

    @property
    def pending(self) -> bool:
        """Whether the member does not have yet what it should."""
        return self.next_try is not None


@dataclass(frozen=True, slots=True)
class Change:
    """What a change of a service means for its copies, by id where they exist."""

    add: Sequence[NewCopy] = ()
    keep: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Those that get the new definition, with how their member is reached now."""
    drop: Collection[str] = ()
    leave: Collection[str] = ()
    """Those that are let go without a word to their member."""


class Copies:
    """Statements on copies."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store
        self._sealer = store.sealer

    async def stage(self, new: Sequence[NewCopy], *, service: str, owner: str, undo: float) -> None:
        """Note copies that are about to be made for a service that does not exist yet.

        Unless `adopt` takes them within so many seconds, they are removed from their members again.
        """
        rows = [
            self._values(copy, service, owner)
            | {"service_id": None, "wanted": False, "next_try": now_ms() + int(undo * 1000)}
            for copy in new
        ]

        def work(connection: sa.Connection) -> None:
            for row in rows:
                connection.execute(copies.insert().values(**row))

        await self._store.write(work)

    def adopt(self, connection: sa.Connection, service_id: str, ids: Collection[str]) -> None:
        """Staged copies are made and belong to a service: in the transaction that inserts it."""
        connection.execute(
            copies.update()
            .where(copies.c.id.in_(ids))
            .values(
                service_id=service_id,
                wanted=True,
                version=copies.c.version + 1,
                applied=copies.c.version + 1,
                tries=0,
                next_try=None,
                problem=None,
                updated=now_ms(),
            )
        )

    async def undo(self, ids: Collection[str]) -> None:
        """Staged copies are to be removed at once."""
        statement = copies.update().where(copies.c.id.in_(ids)).values(next_try=now_ms(), updated=now_ms())
        await self._store.write(lambda connection: connection.execute(statement))

    def change(
        self, connection: sa.Connection, service_id: str, change: Change, *, service: str, owner: str
    ) -> None:
        """Note what a changed service wants of its members: in the transaction that changes it."""
        for new in change.add:
            connection.execute(
                copies.insert().values(
                    **self._values(new, service, owner), service_id=service_id, wanted=True, next_try=now_ms()
                )
            )
        again = {
            "version": copies.c.version + 1,
            "tries": 0,
            "next_try": now_ms(),
            "problem": None,
            "updated": now_ms(),
        }
        for copy_id, access in change.keep.items():
            connection.execute(
                copies.update()
                .where(copies.c.id == copy_id)
                .values(**again, access_sealed=self._sealed(access))
            )
        if change.drop:
            connection.execute(
                copies.update().where(copies.c.id.in_(change.drop)).values(**again, wanted=False)
            )
        if change.leave:
            connection.execute(copies.delete().where(copies.c.id.in_(change.leave)))

    def drop_all(self, connection: sa.Connection, service_id: str) -> None:
        """The service goes: its copies are to go too. In the transaction that removes it."""
        connection.execute(
            copies.update()
            .where(copies.c.service_id == service_id)
            .values(
                wanted=False,
                version=copies.c.version + 1,
                tries=0,
                next_try=now_ms(),
                problem=None,
                updated=now_ms(),
            )
        )

    async def of_service(self, service_id: str) -> list[Copy]:
        """The copies of a service, those that are to go included."""
        query = (
            sa.select(copies)
            .where(copies.c.service_id == service_id)
            .order_by(copies.c.created, copies.c.cluster_id, copies.c.copy_name)
        )
        return await self._store.read(
            lambda connection: [self._copy(row) for row in connection.execute(query)]
        )

    async def get(self, ids: Collection[str]) -> list[Copy]:
        """The copies of those ids."""
        query = sa.select(copies).where(copies.c.id.in_(ids))
        return await self._store.read(
            lambda connection: [self._copy(row) for row in connection.execute(query)]
        )

    async def take(self, *, hold: float, ids: Collection[str] | None = None, limit: int = 16) -> list[Copy]:
        """Copies whose members are to be told something now; nobody else is given them for so many seconds."""
        condition = copies.c.next_try <= now_ms()
        if ids is not None:
            condition = copies.c.next_try.is_not(None) & copies.c.id.in_(ids)

        def work(connection: sa.Connection) -> list[Copy]:
            found = list(
                connection.execute(
                    sa.select(copies.c.id)
                    .where(condition)
                    .order_by(copies.c.next_try)
                    .limit(limit)
                    .with_for_update(skip_locked=True)
                ).scalars()
            )
            rows = connection.execute(
                copies.update()
                .where(copies.c.id.in_(found))
                .values(next_try=now_ms() + int(hold * 1000))
                .returning(*copies.c)
            ).all()
            return [self._copy(row) for row in rows]

        return await self._store.write(work)

    async def done(self, copy: Copy) -> bool:
        """The member has what it should; False when that has changed meanwhile."""
        mine = (copies.c.id == copy.id) & (copies.c.version == copy.version)
        if copy.wanted:
            statement: Any = (
                copies.update()
                .where(mine)
                .values(applied=copy.version, tries=0, next_try=None, problem=None, updated=now_ms())
            )
        else:
            statement = copies.delete().where(mine)
        return await self._store.write(lambda connection: bool(connection.execute(statement).rowcount))

    async def failed(self, copy: Copy, problem: str, delay: float) -> None:
        """The member could not be told; it is tried again after so many seconds."""
        statement = (
            copies.update()
            .where(copies.c.id == copy.id, copies.c.version == copy.version)
            .values(
                tries=copies.c.tries + 1,
                next_try=now_ms() + int(delay * 1000),
                problem=problem[:500],
                updated=now_ms(),
            )
        )
        await self._store.write(lambda connection: connection.execute(statement))

    async def next_due(self) -> int | None:
        """Milliseconds until the next member is to be told something; None when nothing is pending."""
        query = sa.select(sa.func.min(copies.c.next_try) - now_ms()).where(copies.c.next_try.is_not(None))
        return await self._store.read(lambda connection: connection.execute(query).scalar())

    async def by_key(self, key: str) -> Copy | None:
        """The copy whose key that is, as long as it is wanted."""
        query = sa.select(copies).where(copies.c.key_mac.in_(self._sealer.macs(key)), copies.c.wanted)
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        return self._copy(rows[0]) if rows else None

    def _values(self, new: NewCopy, service: str, owner: str) -> dict[str, Any]:
        return {
            "id": new.id,
            "service_name": service,
            "owner": owner,
            "cluster_id": new.cluster_id,
            "copy_name": new.name,
            "access_sealed": self._sealed(new.access),
            "key_sealed": self._sealer.seal(new.key.encode(), _KEY),
            "key_mac": self._sealer.macs(new.key)[0],
            "created": now_ms(),
            "updated": now_ms(),
        }

    def _sealed(self, access: Mapping[str, Any]) -> bytes:
        return self._sealer.seal(json.dumps(dict(access)).encode(), _ACCESS)

    def _copy(self, row: Any) -> Copy:
        return Copy(
            id=row.id,
            service_id=row.service_id,
            service_name=row.service_name,
            owner=row.owner,
            cluster_id=row.cluster_id,
            name=row.copy_name,
            wanted=bool(row.wanted),
            version=row.version,
            applied=row.applied,
            access=json.loads(self._sealer.open(row.access_sealed, _ACCESS)),
            key=self._sealer.open(row.key_sealed, _KEY).decode(),
            tries=row.tries,
            next_try=row.next_try,
            problem=row.problem,
        )
