"""Multipart uploads in the Store: the part of `ObjectIndex` about uploads and their parts.

Base class of `state.objects.Objects`, split off for size. An upload's id is also the name of its own file of
bodies; parts that lie in place there (`Part.in_place`) have no file to free.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from oscar.errors import BucketNotFound, UploadNotFound
from oscar.model.object import Part, Upload
from oscar.model.quota import Defaults
from oscar.state import tables
from oscar.state.object_rows import successor, to_part, to_upload
from oscar.state.store import Store
from oscar.state.usage import Counter


class Uploads:
    """Uploads and parts; see `ObjectIndex`."""

    def __init__(self, store: Store, quotas: Defaults) -> None:
        """Build the statements once."""
        self._store = store
        self._usage = Counter(is_sqlite=store.is_sqlite, defaults=quotas)
        insert = sqlite.insert if store.is_sqlite else postgresql.insert
        part = insert(tables.parts)
        columns = ("generation", "size", "etag", "modified", "checksums")
        self._upsert_part = part.on_conflict_do_update(
            index_elements=["upload_id", "number"],
            set_={name: part.excluded[name] for name in columns},
        )

    async def create_upload(self, upload: Upload) -> None:
        """See `ObjectIndex.create_upload`."""
        values = {
            "id": upload.id,
            "bucket": upload.bucket,
            "key": upload.key,
            "started": upload.started,
            "owner": upload.owner,
            "content_type": upload.content_type,
            "headers": dict(upload.headers),
            "metadata": dict(upload.metadata),
            "tags": dict(upload.tags),
            "checksum_algorithm": upload.checksum_algorithm,
            "checksum_type": upload.checksum_type,
        }

        def work(connection: sa.Connection) -> None:
            try:
                connection.execute(sa.insert(tables.uploads), values)
            except IntegrityError as error:
                raise BucketNotFound from error

        await self._store.write(work)

    async def upload(self, upload_id: str) -> Upload | None:
        """See `ObjectIndex.upload`."""
        statement = sa.select(tables.uploads).where(tables.uploads.c.id == upload_id)

        def work(connection: sa.Connection) -> Upload | None:
            row = connection.execute(statement).first()
            return None if row is None else to_upload(row)

        return await self._store.read(work)

    async def uploads(self, bucket: str, *, prefix: str = "") -> list[Upload]:
        """See `ObjectIndex.uploads`."""
        table = tables.uploads
        statement = sa.select(table).where(table.c.bucket == bucket, table.c.key >= prefix)
        end = successor(prefix)
        if end is not None:
            statement = statement.where(table.c.key < end)
        statement = statement.order_by(table.c.key, table.c.id)
        return await self._store.read(
            lambda connection: [to_upload(row) for row in connection.execute(statement)]
        )

    async def put_part(self, part: Part) -> str | None:
        """See `ObjectIndex.put_part`."""
        table = tables.parts
        values = {
            "upload_id": part.upload_id,
            "number": part.number,
            "generation": part.generation,
            "size": part.size,
            "etag": part.etag,
            "modified": part.modified,
            "checksums": dict(part.checksums),
        }
        before = sa.select(table).where(table.c.upload_id == part.upload_id, table.c.number == part.number)
        bucket_of = sa.select(tables.uploads.c.bucket).where(tables.uploads.c.id == part.upload_id)

        def work(connection: sa.Connection) -> str | None:
            bucket = connection.execute(bucket_of).scalar()
            row = connection.execute(before).first()
            try:
                connection.execute(self._upsert_part, values)
            except IntegrityError as error:
                raise UploadNotFound from error
            if bucket is None:
                raise UploadNotFound
            self._usage.add(connection, bucket, pending=part.size - (row.size if row else 0))
            if row is None or to_part(row).in_place or row.generation == part.generation:
                return None
            return str(row.generation)

        return await self._store.write(work)

    async def parts(self, upload_id: str) -> list[Part]:
        """See `ObjectIndex.parts`."""
        table = tables.parts
        statement = sa.select(table).where(table.c.upload_id == upload_id).order_by(table.c.number)
        return await self._store.read(
            lambda connection: [to_part(row) for row in connection.execute(statement)]
        )

    async def abort_upload(self, upload_id: str) -> list[str]:
        """See `ObjectIndex.abort_upload`."""
        bucket_of = sa.select(tables.uploads.c.bucket).where(tables.uploads.c.id == upload_id)

        def work(connection: sa.Connection) -> list[str]:
            bucket = connection.execute(bucket_of).scalar()
            freed, pending = remove_upload(connection, upload_id)
            if bucket is not None and pending:
                self._usage.add(connection, bucket, pending=-pending)
            return freed

        return await self._store.write(work)


def remove_upload(connection: sa.Connection, upload_id: str) -> tuple[list[str], int]:
    """Remove an upload and its parts; the files that are free now, and the bytes of its parts.

    Raises:
        UploadNotFound: there is none of that id.
    """
    parts = [
        to_part(row)
        for row in connection.execute(
            sa.delete(tables.parts).where(tables.parts.c.upload_id == upload_id).returning(tables.parts)
        )
    ]
    removed = connection.execute(sa.delete(tables.uploads).where(tables.uploads.c.id == upload_id))
    if not removed.rowcount:
        raise UploadNotFound
    return [upload_id, *files_of(parts)], sum(part.size for part in parts)


def files_of(parts: Iterable[Part]) -> list[str]:
    """The files of parts that have one of their own."""
    return [part.generation for part in parts if not part.in_place]
