"""Rows of services: definition without secrets as ready JSON, secrets and token sealed beside it.

Called by `core.services` and `core.users`. The definition is kept as the text that lists answer with, so that a list
of a thousand services is a concatenation. Every call of a service looks it up: rows that were opened once are kept,
and only their generation is read again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa

from oscar.errors import AlreadyExists, Conflict, ServiceNotFound
from oscar.model.job import JobState
from oscar.model.quota import NOTHING, Resources
from oscar.state.direct import Direct
from oscar.state.store import Store, now_ms
from oscar.state.tables import jobs, service_buckets, service_inputs, services

_KEPT = 1024


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """A stored service; `definition` is JSON text without secrets and token."""

    id: str
    name: str
    owner: str
    definition: str
    token: str = field(repr=False)
    generation: int
    created: int
    updated: int
    secrets: Mapping[str, str] | None = field(repr=False, default=None)
    """None in lists, which don't open them."""


@dataclass(frozen=True, slots=True)
class BucketUse:
    """A bucket that a service uses and whether the service created it."""

    bucket: str
    created: bool


def taken_name(name: str) -> AlreadyExists:
    """The error of a second service of that name and owner."""
    return AlreadyExists(
        f'A service named "{name}" exists already',
        field="name",
        fix="choose another name, or update the service with PUT /system/services",
    )


class Services:
    """Statements on services; each verb is one transaction."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store
        self._sealer = store.sealer
        self._opened: dict[str, ServiceRow] = {}
        stamp = sa.select(services.c.id, services.c.generation).order_by(services.c.owner)
        name = services.c.name == sa.bindparam("in_name")
        self._by_name = Direct(stamp.where(name))
        self._by_owner = Direct(stamp.where(name, services.c.owner == sa.bindparam("in_owner")))
        self._by_id = Direct(stamp.where(services.c.id == sa.bindparam("in_id")))
        self._by_mac = Direct(stamp.where(services.c.token_mac == sa.bindparam("in_mac")))

    async def insert(
        self,
        *,
        name: str,
        owner: str,
        definition: str,
        token: str,
        secrets: Mapping[str, str],
        inputs: Sequence[tuple[str, str]],
        buckets: Sequence[BucketUse],
        concurrency: int,
        need: Resources = NOTHING,
        delegates: int | None = None,
        also: Callable[[sa.Connection, str], None] | None = None,
    ) -> str:
        """Store a new service; returns its id. `also` is done in the same transaction, given that id.

        Raises:
            AlreadyExists: the owner has one of that name.
        """
        service_id = str(uuid.uuid4())
        values = {
            **self._values(definition, token, secrets, concurrency, need),
            "delegates": delegates,
            "id": service_id,
            "name": name,
            "owner": owner,
            "created": now_ms(),
        }

        def work(connection: sa.Connection) -> str:
            taken = sa.select(services.c.id).where(services.c.name == name, services.c.owner == owner)
            if connection.execute(taken).first():
                raise taken_name(name)
            connection.execute(services.insert().values(**values))
            self._relate(connection, service_id, inputs, buckets)
            if also is not None:
                also(connection, service_id)
            return service_id

        return await self._store.write(work)

    async def replace(
        self,
        service_id: str,
        *,
        definition: str,
        token: str,
        secrets: Mapping[str, str],
        inputs: Sequence[tuple[str, str]],
        buckets: Sequence[BucketUse],
        concurrency: int,
        need: Resources = NOTHING,
        delegates: int | None = None,
        generation: int | None = None,
        also: Callable[[sa.Connection], None] | None = None,
    ) -> int:
        """Overwrite a service; a bucket that it created once stays marked so. Returns its new generation.

        `also` is done in the same transaction.

        Raises:
            ServiceNotFound: it is gone.
            Conflict: it has another generation than that one by now.
        """
        values = self._values(definition, token, secrets, concurrency, need) | {"delegates": delegates}
        before = generation

        def work(connection: sa.Connection) -> int:
            generation = connection.execute(
                services.update()
                .where(services.c.id == service_id)
                .values(**values, generation=services.c.generation + 1)
                .returning(services.c.generation)
            ).scalar()
            if generation is None:
                raise ServiceNotFound
            if before is not None and generation != before + 1:
                raise Conflict("The service was changed by somebody else meanwhile", fix="try again")
            kept = {use.bucket for use in self._uses(connection, service_id) if use.created}
            since = self._since(connection, service_id)
            connection.execute(service_inputs.delete().where(service_inputs.c.service_id == service_id))
            connection.execute(service_buckets.delete().where(service_buckets.c.service_id == service_id))
            merged = [BucketUse(use.bucket, use.created or use.bucket in kept) for use in buckets]
            self._relate(connection, service_id, inputs, merged, since)
            if also is not None:
                also(connection)
            return int(generation)

        return await self._store.write(work)

    async def get(self, name: str, owner: str | None = None) -> list[ServiceRow]:
        """The services of that name (one per owner), with their secrets."""
        if owner is None:
            return await self._find(self._by_name, {"in_name": name})
        return await self._find(self._by_owner, {"in_name": name, "in_owner": owner})

    async def by_id(self, service_id: str) -> ServiceRow | None:
        """The service of that id, with its secrets."""
        rows = await self._find(self._by_id, {"in_id": service_id})
        return rows[0] if rows else None

    async def by_token(self, token: str) -> ServiceRow | None:
        """The service whose token that is, with its secrets."""
        for mac in self._sealer.macs(token):
            if rows := await self._find(self._by_mac, {"in_mac": mac}):
                return rows[0]
        return None

    async def _find(self, stamps: Direct, values: Mapping[str, Any]) -> list[ServiceRow]:
        """The rows of the services that the statement names by id and generation."""
        found = []
        for service_id, generation in await self._store.look_up(stamps, values):
            row = self._opened.get(service_id)
            if row is None or row.generation != generation:
                row = await self._open(service_id)
            if row is not None:
                found.append(row)
        return found

    async def _open(self, service_id: str) -> ServiceRow | None:
        query = sa.select(services).where(services.c.id == service_id)
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        if not rows:
            return None
        if len(self._opened) >= _KEPT:
            self._opened.clear()
        row = self._opened[service_id] = self._row(rows[0], secrets=True)
        return row

    async def rows(self, owner: str | None = None) -> list[ServiceRow]:
        """All services, or those of an owner, in name order, without their secrets."""
        query = sa.select(
            services.c.id,
            services.c.name,
            services.c.owner,
            services.c.definition,
            services.c.token_sealed,
            services.c.generation,
            services.c.created,
            services.c.updated,
        ).order_by(services.c.name, services.c.owner)
        if owner is not None:
            query = query.where(services.c.owner == owner)
        # Of thousands of rows, values by place take half the time of values by name.
        return await self._store.read(
            lambda connection: [
                ServiceRow(of, name, whose, definition, self._token(sealed), *rest)
                for of, name, whose, definition, sealed, *rest in connection.execute(query).all()
            ]
        )

    async def delete(
        self, service_id: str, *, also: Callable[[sa.Connection], None] | None = None
    ) -> list[BucketUse]:
        """Remove a service and cancel its waiting jobs; silent if absent. `also` is done in the same transaction.

        Returns:
            The buckets that only it used.
        """

        def work(connection: sa.Connection) -> list[BucketUse]:
            uses = self._uses(connection, service_id)
            others = set(
                connection.execute(
                    sa.select(service_buckets.c.bucket).where(
                        service_buckets.c.bucket.in_([use.bucket for use in uses]),
                        service_buckets.c.service_id != service_id,
                    )
                ).scalars()
            )
            connection.execute(
                jobs.update()
                .where(jobs.c.service_id == service_id, jobs.c.state == JobState.QUEUED)
                .values(
                    state=JobState.CANCELLED, reason="service_deleted", finished=now_ms(), updated=now_ms()
                )
            )
            connection.execute(
                jobs.update()
                .where(jobs.c.service_id == service_id, jobs.c.finished.is_(None))
                .values(cancel_requested=True, updated=now_ms())
            )
            if also is not None:
                also(connection)
            connection.execute(services.delete().where(services.c.id == service_id))
            return [use for use in uses if use.bucket not in others]

        self._opened.pop(service_id, None)
        return await self._store.write(work)

    async def uses(self, service_id: str) -> list[BucketUse]:
        """The buckets that a service uses."""
        return await self._store.read(lambda connection: self._uses(connection, service_id))

    async def users_of_bucket(self, bucket: str) -> list[str]:
        """Names of the services that use the bucket."""
        query = (
            sa.select(services.c.name)
            .join(service_buckets, service_buckets.c.service_id == services.c.id)
            .where(service_buckets.c.bucket == bucket)
        )
        return await self._store.read(lambda connection: list(connection.execute(query).scalars()))

    def _values(
        self, definition: str, token: str, secrets: Mapping[str, str], concurrency: int, need: Resources
    ) -> dict[str, Any]:
        return {
            **asdict(need),
            "definition": definition,
            "secrets_sealed": self._sealer.seal(json.dumps(dict(secrets)).encode(), "services.secrets"),
            "token_sealed": self._sealer.seal(token.encode(), "services.token"),
            "token_mac": self._sealer.macs(token)[0],
            "concurrency": concurrency,
            "updated": now_ms(),
        }

    def _token(self, sealed: bytes) -> str:
        return self._sealer.open(sealed, "services.token").decode()

    def _row(self, row: Any, *, secrets: bool = False) -> ServiceRow:
        return ServiceRow(
            id=row.id,
            name=row.name,
            owner=row.owner,
            definition=row.definition,
            token=self._token(row.token_sealed),
            generation=row.generation,
            created=row.created,
            updated=row.updated,
            secrets=json.loads(self._sealer.open(row.secrets_sealed, "services.secrets"))
            if secrets
            else None,
        )

    @staticmethod
    def _relate(
        connection: sa.Connection,
        service_id: str,
        inputs: Sequence[tuple[str, str]],
        buckets: Sequence[BucketUse],
        since: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        for bucket, prefix in inputs:
            values = {"service_id": service_id, "bucket": bucket, "prefix": prefix}
            known = (since or {}).get((bucket, prefix))
            connection.execute(
                service_inputs.insert().values(**values, since=now_ms() if known is None else known)
            )
        if buckets:
            rows2 = [
                {"service_id": service_id, "bucket": use.bucket, "created": use.created} for use in buckets
            ]
            connection.execute(service_buckets.insert(), rows2)

    @staticmethod
    def _since(connection: sa.Connection, service_id: str) -> dict[tuple[str, str], int]:
        """Since when the service's inputs are looked at: the sweep goes on there when a definition changes."""
        table = service_inputs.c
        query = sa.select(table.bucket, table.prefix, table.since).where(table.service_id == service_id)
        return {(row.bucket, row.prefix): row.since for row in connection.execute(query)}

    @staticmethod
    def _uses(connection: sa.Connection, service_id: str) -> list[BucketUse]:
        query = sa.select(service_buckets.c.bucket, service_buckets.c.created).where(
            service_buckets.c.service_id == service_id
        )
        return [BucketUse(row.bucket, row.created) for row in connection.execute(query)]
