"""Buckets, objects and key pairs in the Store: implements `ObjectIndex` for the built-in S3 server.

Made by `app.py`, called by `objects.embedded` and `core.storage`. The one transaction of `commit` is what
makes an object visible and enqueues the jobs of the services that listen there: no object without its event,
no event without its object. Which jobs those are is decided by a function that the composition root hands in.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, OperationalError

from oscar import tracing
from oscar.errors import BucketNotEmpty, BucketNotFound, ObjectNotFound, PreconditionFailed
from oscar.model.job import NewJob
from oscar.model.object import Bucket, Credential, Known, Listener, Listing, Object, Usage
from oscar.model.producer import Producer
from oscar.model.quota import Defaults
from oscar.state import tables
from oscar.state.direct import Direct
from oscar.state.job_rows import insert_jobs
from oscar.state.object_rows import (
    SECRET_PURPOSE,
    from_bucket,
    from_object,
    list_page,
    to_bucket,
    to_credential,
    to_object,
)
from oscar.state.store import Store, now_ms
from oscar.state.uploads import Uploads, remove_upload

T = TypeVar("T")

JobsFor = Callable[[Object, str, Producer | None, str, Sequence[Listener]], Sequence[NewJob]]
"""(object, event, producer, source ip, listeners of its bucket) -> the jobs to enqueue."""

_PAIR = len(tables.credentials.c)
_BUCKET = _PAIR + len(tables.buckets.c)
"""Where the columns of key pair, bucket and object end in a row of the look-up."""
_PLAIN_KEY = re.compile(r"[A-Za-z0-9@._|:+-]{3,128}")


class Objects(Uploads):
    """The rows behind the built-in store; see `ObjectIndex` for what each verb promises."""

    def __init__(
        self,
        store: Store,
        jobs_for: JobsFor,
        *,
        quotas: Defaults | None = None,
        on_jobs: Callable[[Sequence[NewJob]], None] | None = None,
    ) -> None:
        """Build the statements of the hot paths once, so that SQLAlchemy compiles them once.

        Args:
            store: the Store.
            jobs_for: the jobs that a written object starts.
            quotas: the limits of owners for whom nothing is stored; none when absent.
            on_jobs: is told of jobs that an object has started, once they are durable.
        """
        super().__init__(store, quotas or Defaults())
        self._jobs_for = jobs_for
        self._on_jobs = on_jobs
        insert = sqlite.insert if store.is_sqlite else postgresql.insert
        self._insert = insert
        changed = [column.name for column in tables.objects.c if column.name not in {"bucket", "key"}]
        columns = {column.name: sa.bindparam(column.name, type_=column.type) for column in tables.objects.c}
        upsert = insert(tables.objects).values(columns)
        self._upsert = Direct(
            upsert.on_conflict_do_update(
                index_elements=["bucket", "key"], set_={name: upsert.excluded[name] for name in changed}
            )
        )
        self._lookup = Direct(_lookup_statement())
        self._reader = store.open_reader()
        self._present = Direct(
            sa.select(tables.objects.c.generation, tables.objects.c.etag, tables.objects.c.size).where(
                tables.objects.c.bucket == sa.bindparam("in_bucket"),
                tables.objects.c.key == sa.bindparam("in_key"),
            )
        )
        inputs, services = tables.service_inputs, tables.services
        self._listeners = Direct(
            sa.select(
                inputs.c.service_id, services.c.name, services.c.owner, inputs.c.bucket, inputs.c.prefix
            )
            .join(services, services.c.id == inputs.c.service_id)
            .where(inputs.c.bucket == sa.bindparam("in_bucket"))
            .order_by(inputs.c.service_id, inputs.c.prefix)
        )

    # Key pairs.

    async def lookup(self, *, access_key: str | None, bucket: str | None, key: str | None) -> Known:
        """See `ObjectIndex.lookup`: one statement, because nearly every request begins with it."""
        values = {"access_key": access_key, "bucket": bucket, "key": key}
        row = self._lookup_here(values)
        if row is None:
            row = (await self._store.read(lambda connection: self._lookup.rows(connection, values)))[0]
        pair, there, obj = row[:_PAIR], row[_PAIR:_BUCKET], row[_BUCKET:]
        return Known(
            None if pair[0] is None else to_credential(pair, self._store.sealer),
            None if there[0] is None else to_bucket(there),
            None if obj[0] is None else to_object(obj),
        )

    def _lookup_here(self, values: Mapping[str, Any]) -> Sequence[Any] | None:
        """The same without a change of thread, which costs ten times three look-ups by primary key.

        None where that can't be: on PostgreSQL, and while SQLite recovers its log after a crash.
        """
        if self._reader is None:
            return None
        try:
            return self._lookup.rows_raw(self._reader, values)[0]
        except OperationalError:
            return None

    async def credential(self, access_key: str) -> Credential | None:
        """See `ObjectIndex.credential`."""
        return (await self.lookup(access_key=access_key, bucket=None, key=None)).credential

    async def credential_of(self, user: str, *, admin: bool = False) -> Credential:
        """See `ObjectIndex.credential_of`. The access key is the user's id where that can be one."""
        table = tables.credentials
        mine = (
            sa.select(table)
            .where(table.c.user == user)
            .order_by(table.c.created, table.c.access_key)
            .limit(1)
        )
        row = await self._store.read(lambda connection: connection.execute(mine).first())
        if row is not None:
            return to_credential(row, self._store.sealer)
        plain = _PLAIN_KEY.fullmatch(user)
        access_key = user if plain else hashlib.sha256(user.encode()).hexdigest()[:32]
        values = self._credential_row(Credential(access_key, secrets.token_urlsafe(30), user, admin))
        # For an id that is somebody's access key already, such as the administrator's: that pair is not his.
        spare = hashlib.sha256(b"user " + user.encode()).hexdigest()[:32]

        def work(connection: sa.Connection) -> Any:
            for name in (access_key, spare):
                row = self._insert(table).values(values | {"access_key": name}).on_conflict_do_nothing()
                connection.execute(row)
                found = connection.execute(sa.select(table).where(table.c.access_key == name)).one()
                if found.user == user:
                    break
            return found

        return to_credential(await self._store.write(work), self._store.sealer)

    async def put_credential(self, credential: Credential) -> None:
        """Insert or replace a key pair that settings name, such as the admin's."""
        values = self._credential_row(credential)
        statement = self._insert(tables.credentials).values(values)
        statement = statement.on_conflict_do_update(
            index_elements=["access_key"],
            set_={name: statement.excluded[name] for name in ("secret_sealed", "user", "admin")},
        )
        await self._store.write(lambda connection: connection.execute(statement))

    def _credential_row(self, credential: Credential) -> dict[str, Any]:
        return {
            "access_key": credential.access_key,
            "secret_sealed": self._store.sealer.seal(credential.secret_key.encode(), SECRET_PURPOSE),
            "user": credential.user,
            "admin": credential.admin,
            "created": now_ms(),
        }

    # Buckets.

    async def bucket(self, name: str) -> Bucket | None:
        """See `ObjectIndex.bucket`."""
        return (await self.lookup(access_key=None, bucket=name, key=None)).bucket

    async def buckets(self) -> list[Bucket]:
        """See `ObjectIndex.buckets`."""
        statement = sa.select(tables.buckets)
        rows = await self._store.read(lambda connection: connection.execute(statement).all())
        # Sorted here: PostgreSQL would put "a-b" and "ab" in the order of its locale.
        return sorted((to_bucket(row) for row in rows), key=lambda bucket: bucket.name)

    async def create_bucket(self, bucket: Bucket) -> bool:
        """See `ObjectIndex.create_bucket`."""
        statement = self._insert(tables.buckets).values(
            created=bucket.created or now_ms(), **from_bucket(bucket)
        )
        # By RETURNING: the row count of an INSERT that may do nothing is not known on every driver.
        made = statement.on_conflict_do_nothing().returning(tables.buckets.c.name)

        def work(connection: sa.Connection) -> bool:
            if connection.execute(made).first() is None:
                return False
            self._usage.check_new_bucket(connection, bucket.owner)
            return True

        return await self._store.write(work)

    async def replace_bucket(self, bucket: Bucket) -> None:
        """See `ObjectIndex.replace_bucket`."""
        statement = (
            sa.update(tables.buckets).where(tables.buckets.c.name == bucket.name).values(from_bucket(bucket))
        )

        def work(connection: sa.Connection) -> None:
            if not connection.execute(statement).rowcount:
                raise BucketNotFound

        await self._store.write(work)

    async def delete_bucket(self, name: str, *, force: bool = False) -> list[str]:
        """See `ObjectIndex.delete_bucket`."""
        objects, uploads = tables.objects, tables.uploads

        def work(connection: sa.Connection) -> list[str]:
            there = sa.select(tables.buckets.c.name).where(tables.buckets.c.name == name).with_for_update()
            if connection.execute(there).first() is None:
                raise BucketNotFound
            inside = sa.select(objects.c.key).where(objects.c.bucket == name).limit(1)
            if not force and connection.execute(inside).first() is not None:
                raise BucketNotEmpty
            removed = sa.delete(objects).where(objects.c.bucket == name).returning(objects.c.generation)
            freed = list(connection.execute(removed).scalars())
            for upload_id in (
                connection.execute(sa.select(uploads.c.id).where(uploads.c.bucket == name)).scalars().all()
            ):
                freed += remove_upload(connection, upload_id)[0]
            connection.execute(sa.delete(tables.buckets).where(tables.buckets.c.name == name))
            return freed

        return await self._store.write(work)

    async def usage(self, bucket: str) -> Usage:
        """See `ObjectIndex.usage`."""
        found = await self._store.read(lambda connection: self._usage.usages(connection, bucket))
        return found.get(bucket, Usage(0, 0))

    async def usages(self) -> dict[str, Usage]:
        """See `ObjectIndex.usages`."""
        return await self._store.read(self._usage.usages)

    async def room(self, bucket: str) -> int | None:
        """See `ObjectIndex.room`."""
        if self._reader is not None:
            with contextlib.suppress(OperationalError):
                return self._usage.left_here(self._reader, bucket)
        return await self._store.read(lambda connection: self._usage.left(connection, bucket))

    # Objects.

    async def get(self, bucket: str, key: str) -> Object | None:
        """See `ObjectIndex.get`."""
        return (await self.lookup(access_key=None, bucket=bucket, key=key)).object

    async def list(
        self, bucket: str, *, prefix: str = "", delimiter: str = "", after: str = "", limit: int = 1000
    ) -> Listing:
        """See `ObjectIndex.list`."""
        return await self._store.read(
            lambda connection: list_page(connection, bucket, prefix, delimiter, after, limit)
        )

    async def commit(
        self,
        obj: Object,
        *,
        event: str = "s3:ObjectCreated:Put",
        if_none_match: bool = False,
        if_match: str | None = None,
        producer: Producer | None = None,
        source_ip: str = "",
    ) -> str | None:
        """See `ObjectIndex.commit`."""
        values = from_object(obj)
        made: list[NewJob] = []
        here = tracing.here()  # the transaction is in another thread

        def work(connection: sa.Connection) -> str | None:
            if producer is not None and not self._first_delivery(connection, producer, obj):
                return obj.generation
            replaced, size = self._put(
                connection, obj, values, if_none_match=if_none_match, if_match=if_match
            )
            made[:] = self._enqueue(connection, obj, event, producer, source_ip, here)
            self._usage.add(connection, obj.bucket, objects=0 if replaced else 1, size=obj.size - size)
            return replaced

        return self._telling(await self._store.write(work), made)

    async def complete_upload(
        self,
        upload_id: str,
        obj: Object,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        source_ip: str = "",
    ) -> Sequence[str]:
        """See `ObjectIndex.complete_upload`."""
        values = from_object(obj)
        made: list[NewJob] = []
        here = tracing.here()  # the transaction is in another thread

        def work(connection: sa.Connection) -> Sequence[str]:
            freed, pending = remove_upload(connection, upload_id)
            replaced, size = self._put(
                connection, obj, values, if_none_match=if_none_match, if_match=if_match
            )
            event = "s3:ObjectCreated:CompleteMultipartUpload"
            made[:] = self._enqueue(connection, obj, event, None, source_ip, here)
            self._usage.add(
                connection,
                obj.bucket,
                objects=0 if replaced else 1,
                size=obj.size - size,
                pending=-pending,
            )
            return [file for file in (*freed, replaced) if file and file != obj.generation]

        return self._telling(await self._store.write(work), made)

    def _telling(self, result: T, made: Sequence[NewJob]) -> T:
        """Tell of jobs, now that they are durable."""
        if made and self._on_jobs is not None:
            self._on_jobs(made)
        return result

    def _first_delivery(self, connection: sa.Connection, producer: Producer, obj: Object) -> bool:
        row = {"job_id": producer.job_id, "bucket": obj.bucket, "key": obj.key}
        statement = self._insert(tables.deliveries).values(row).on_conflict_do_nothing()
        return connection.execute(statement.returning(tables.deliveries.c.key)).first() is not None

    def _put(
        self,
        connection: sa.Connection,
        obj: Object,
        values: Mapping[str, Any],
        *,
        if_none_match: bool,
        if_match: str | None,
    ) -> tuple[str | None, int]:
        """Insert or replace the row; generation and size of what was replaced."""
        if not self._store.is_sqlite:
            # Two writers of one new key must not both find it absent. SQLite has one writer anyway.
            lock = sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"{obj.bucket}/{obj.key}", 0))
            connection.execute(sa.select(lock))
        rows = self._present.rows(connection, {"in_bucket": obj.bucket, "in_key": obj.key})
        generation, etag, size = rows[0] if rows else (None, "", 0)
        if if_none_match and rows:
            raise PreconditionFailed
        if if_match is not None and (not rows or if_match not in {"*", etag}):
            raise PreconditionFailed
        try:
            self._upsert.rows(connection, values)
        except IntegrityError as error:
            raise BucketNotFound from error
        return generation, size

    def _enqueue(
        self,
        connection: sa.Connection,
        obj: Object,
        event: str,
        producer: Producer | None,
        source_ip: str,
        here: tracing.Here | None,
    ) -> Sequence[NewJob]:
        """Insert the jobs that it starts; those that are new."""
        rows = self._listeners.rows(connection, {"in_bucket": obj.bucket})
        if not rows:
            return []
        listeners = [Listener(*row) for row in rows]
        jobs = self._jobs_for(obj, event, producer, source_ip, listeners)
        if not jobs:
            return []
        if tracing.enabled():
            # The span of the job whose result it is, or of the request that stored it.
            cause = (producer.trace or None) if producer else tracing.cause_of(here)
            jobs = [replace(job, trace=cause) for job in jobs]
        inserted = {job.id for job in insert_jobs(connection, jobs, self._store.sealer)}
        return [job for job in jobs if job.id in inserted]

    async def retag(self, bucket: str, key: str, tags: Mapping[str, str]) -> None:
        """See `ObjectIndex.retag`."""
        table = tables.objects
        statement = (
            sa.update(table).where(table.c.bucket == bucket, table.c.key == key).values(tags=dict(tags))
        )

        def work(connection: sa.Connection) -> None:
            if not connection.execute(statement).rowcount:
                raise ObjectNotFound

        await self._store.write(work)

    async def delete(self, bucket: str, keys: Sequence[str]) -> dict[str, str]:
        """See `ObjectIndex.delete`."""
        table = tables.objects
        statement = (
            sa.delete(table)
            .where(table.c.bucket == bucket, table.c.key.in_(list(keys)))
            .returning(table.c.key, table.c.generation, table.c.size)
        )

        def work(connection: sa.Connection) -> dict[str, str]:
            rows = connection.execute(statement).all()
            if rows:
                size = sum(row.size for row in rows)
                self._usage.add(connection, bucket, objects=-len(rows), size=-size)
            return {row.key: row.generation for row in rows}

        return await self._store.write(work)

    async def referenced(self, generations: Sequence[str]) -> set[str]:
        """See `ObjectIndex.referenced`."""
        columns = (tables.objects.c.generation, tables.parts.c.generation, tables.uploads.c.id)
        statements = [sa.select(column).where(column.in_(list(generations))) for column in columns]

        def work(connection: sa.Connection) -> set[str]:
            return {name for statement in statements for name in connection.execute(statement).scalars()}

        return await self._store.read(work)

    async def delivered(self, producer: Producer, bucket: str, key: str) -> bool:
        """See `ObjectIndex.delivered`."""
        table = tables.deliveries
        statement = sa.select(table.c.job_id).where(
            table.c.job_id == producer.job_id, table.c.bucket == bucket, table.c.key == key
        )
        return await self._store.read(lambda connection: connection.execute(statement).first() is not None)


def _labelled(table: sa.Table, prefix: str) -> Iterable[sa.Label[Any]]:
    return (column.label(prefix + column.name) for column in table.c)


def _lookup_statement() -> sa.Select[Any]:
    """Key pair, bucket and object in one row; what isn't there, or not asked (NULL), is NULL."""
    one = sa.select(sa.literal(1).label("one")).subquery("one")
    pairs, buckets, objects = tables.credentials, tables.buckets, tables.objects
    return sa.select(
        *_labelled(pairs, "c_"), *_labelled(buckets, "b_"), *_labelled(objects, "o_")
    ).select_from(
        one.outerjoin(pairs, pairs.c.access_key == sa.bindparam("access_key", type_=sa.Text))
        .outerjoin(buckets, buckets.c.name == sa.bindparam("bucket", type_=sa.Text))
        .outerjoin(
            objects,
            sa.and_(
                objects.c.bucket == sa.bindparam("bucket", type_=sa.Text),
                objects.c.key == sa.bindparam("key", type_=sa.Text),
            ),
        )
    )
