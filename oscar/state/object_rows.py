"""Rows of buckets, objects and uploads as records, and the page of a listing.

Used by `state.objects` and `state.uploads`. Functions of a connection; no transaction of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from oscar.model.object import Bucket, Credential, Listing, Object, Part, Upload, Visibility
from oscar.state import tables
from oscar.state.direct import plain
from oscar.state.secrets import Sealer

SECRET_PURPOSE = "credentials.secret"  # noqa: S105 - the name of a column, not a secret
_CHUNK = 128
"""Rows read at a time when keys are folded to prefixes."""
_LAST = 0x10FFFF
_BEFORE_SURROGATES, _AFTER_SURROGATES = 0xD7FF, 0xE000

_listed = sa.select(
    tables.objects.c.key,
    tables.objects.c.generation,
    tables.objects.c.size,
    tables.objects.c.etag,
    tables.objects.c.modified,
    tables.objects.c.owner,
)


def to_credential(row: Sequence[Any], sealer: Sealer) -> Credential:
    """The columns of `credentials`, in their order."""
    access_key, sealed, user, admin, _created = row
    return Credential(access_key, sealer.open(sealed, SECRET_PURPOSE).decode(), user, bool(admin))


def to_bucket(row: Sequence[Any]) -> Bucket:
    """The columns of `buckets`, in their order."""
    name, owner, visibility, allowed, service, tags, cors, policy, created = row
    return Bucket(
        name=name,
        owner=owner,
        visibility=Visibility(visibility),
        allowed_users=tuple(plain(allowed)),
        created=created,
        service=service,
        tags=plain(tags),
        cors=cors,
        policy=policy,
    )


def from_bucket(bucket: Bucket) -> dict[str, Any]:
    """The columns of a bucket, `created` left out."""
    return {
        "name": bucket.name,
        "owner": bucket.owner,
        "visibility": bucket.visibility.value,
        "allowed_users": list(bucket.allowed_users),
        "service": bucket.service,
        "tags": dict(bucket.tags),
        "cors": bucket.cors,
        "policy": bucket.policy,
    }


def to_object(row: Sequence[Any]) -> Object:
    """The columns of `objects`, in their order."""
    return Object(*row[:7], *map(plain, row[7:11]), *row[11:])


def from_object(obj: Object) -> dict[str, Any]:
    """The columns of an object."""
    return {
        "bucket": obj.bucket,
        "key": obj.key,
        "generation": obj.generation,
        "size": obj.size,
        "etag": obj.etag,
        "modified": obj.modified,
        "content_type": obj.content_type,
        "headers": dict(obj.headers),
        "metadata": dict(obj.metadata),
        "tags": dict(obj.tags),
        "checksums": dict(obj.checksums),
        "parts": obj.parts,
        "owner": obj.owner,
    }


def to_upload(row: Any) -> Upload:
    """A row of `uploads`."""
    return Upload(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for the row as a mapping


def to_part(row: Any) -> Part:
    """A row of `parts`."""
    return Part(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for the row as a mapping


def successor(prefix: str) -> str | None:
    """The least text greater than all that begin with the prefix; None when there is none."""
    while prefix:
        code = ord(prefix[-1])
        prefix = prefix[:-1]
        if code < _LAST:
            return prefix + chr(_AFTER_SURROGATES if code == _BEFORE_SURROGATES else code + 1)
    return None


def list_page(
    connection: sa.Connection, bucket: str, prefix: str, delimiter: str, after: str, limit: int
) -> Listing:
    """A page of a listing; see `ObjectIndex.list`.

    With a delimiter, a folder of many keys costs one chunk of rows: the next chunk starts behind the folder.
    """

    def fold(key: str) -> str | None:
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        return key[: cut + len(delimiter)] if cut >= 0 else None

    end = successor(prefix)
    start: str | None = after
    inclusive = False
    if prefix > after:
        start, inclusive = prefix, True
    elif after.startswith(prefix) and fold(after) == after:
        start, inclusive = successor(after), True
    found: list[Object] = []
    folders: list[str] = []
    last: str | None = None
    chunk = min(_CHUNK, limit + 1) if delimiter else limit + 1
    while start is not None:
        folder: str | None = None
        rows = _rows(connection, bucket, start, end, chunk, inclusive=inclusive)
        for row in rows:
            if folder and row.key.startswith(folder):
                continue
            if len(found) + len(folders) >= limit:
                return Listing(tuple(found), tuple(folders), truncated=True, next_key=last)
            folder = fold(row.key)
            if folder:
                folders.append(folder)
            else:
                found.append(_listed_object(bucket, row))
            last = folder or row.key
        if len(rows) < chunk:
            break
        start, inclusive = (successor(folder), True) if folder else (rows[-1].key, False)
    return Listing(tuple(found), tuple(folders), truncated=False, next_key=None)


def _rows(
    connection: sa.Connection, bucket: str, start: str, end: str | None, limit: int, *, inclusive: bool
) -> Sequence[Any]:
    key = tables.objects.c.key
    statement = _listed.where(tables.objects.c.bucket == bucket, key >= start if inclusive else key > start)
    if end is not None:
        statement = statement.where(key < end)
    return connection.execute(statement.order_by(key).limit(limit)).all()


def _listed_object(bucket: str, row: Any) -> Object:
    return Object(bucket, row.key, row.generation, row.size, row.etag, row.modified, owner=row.owner)
