"""Buckets of the platform's own store: create, list, read, update, delete, presign.

Called by `api.storage`; calls the ports `BucketAdmin` and `ObjectStore` and `auth.rules`. Objects themselves go by the
S3 API, whose own server applies the same visibility.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from oscar.auth.rules import Action, Thing, may, require_user
from oscar.core.jobs import rfc3339
from oscar.core.platform import Platform
from oscar.errors import AlreadyExists, BucketNotFound, Conflict, Forbidden, InvalidField
from oscar.model.object import Bucket, Usage, Visibility
from oscar.model.resources import format_memory
from oscar.model.user import Caller
from oscar.objects.s3_signing import Site
from oscar.objects.s3_signing import presign as presign_at

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
PRESIGN_DEFAULT = 3600
PRESIGN_LIMIT = 7 * 24 * 3600
_PAGE = 1000
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]{0,2000}")
_OPERATIONS = {"download": "GET", "upload": "PUT"}


async def create(
    p: Platform, caller: Caller, *, name: str, visibility: str = "", allowed_users: Sequence[str] = ()
) -> None:
    """Create a bucket of the caller's.

    Raises:
        InvalidField, AlreadyExists (400).
    """
    require_user(caller)
    if not _NAME.fullmatch(name) or ".." in name or re.fullmatch(r"[\d.]+", name):
        raise InvalidField(
            f'"{name}" is not a name for a bucket',
            field="bucket_name",
            fix='use 3 to 63 lower-case letters, digits, "-" or ".", with a letter or digit at both ends',
        )
    made = await p.buckets.create_bucket(
        Bucket(
            name=name,
            owner=caller.id,
            visibility=_visibility(visibility),
            allowed_users=tuple(allowed_users),
            tags={"owner": caller.id, "from_service": "false"},
        )
    )
    if not made:
        raise AlreadyExists(
            f'A bucket named "{name}" exists already', field="bucket_name", fix="choose another name"
        )


async def update(
    p: Platform, caller: Caller, *, name: str, visibility: str = "", allowed_users: Sequence[str] = ()
) -> None:
    """Change who sees a bucket.

    Raises:
        InvalidField (400), BucketNotFound (404), Forbidden (403).
    """
    bucket = await _find(p, caller, name, Action.CHANGE)
    await p.buckets.update_bucket(
        bucket.name, visibility=_visibility(visibility), allowed_users=tuple(allowed_users)
    )


async def list_all(p: Platform, caller: Caller) -> list[dict[str, Any]]:
    """The buckets that the caller may see."""
    require_user(caller)
    buckets = [bucket for bucket in await p.buckets.buckets() if may(caller, Action.SEE, _thing(bucket))]
    usages = await p.buckets.usages()
    return [_described(bucket, usages.get(bucket.name, Usage(0, 0))) for bucket in buckets]


async def read(p: Platform, caller: Caller, name: str, *, page: str | None = None) -> dict[str, Any]:
    """A bucket with a page of its objects; `page` is the key after which the page starts."""
    bucket = await _find(p, caller, name, Action.SEE)
    objects: list[dict[str, Any]] = []
    truncated = False
    async for found in p.objects.list(name, start_after=page or ""):
        if len(objects) == _PAGE:
            truncated = True
            break
        objects.append(
            {
                "object_name": found.key,
                "size_bytes": found.size,
                "last_modified": rfc3339(found.modified),
                "owner": found.owner,
            }
        )
    answer = {
        **_described(bucket, await p.buckets.usage(bucket.name)),
        "objects": objects,
        "returned_items": len(objects),
        "is_truncated": truncated,
    }
    if truncated:
        answer["next_page"] = objects[-1]["object_name"]
    return answer


async def delete(p: Platform, caller: Caller, name: str, *, force: bool = False) -> None:
    """Remove an empty bucket, or with `force` also what it holds.

    Raises:
        BucketNotFound (404), Forbidden (403), BucketNotEmpty, Conflict (409): a service still uses it.
    """
    bucket = await _find(p, caller, name, Action.CHANGE)
    if users := await p.services.users_of_bucket(name):
        raise Conflict(
            f"The bucket is used by the service {', '.join(users)}",
            fix="delete the service first, or change it",
        )
    await p.buckets.delete_bucket(bucket.name, force=force)


async def presign(
    p: Platform,
    caller: Caller,
    name: str,
    *,
    key: str,
    operation: str,
    expires: int = 0,
    content_type: str = "",
    extra_headers: Mapping[str, str] | None = None,
) -> tuple[str, str, int, dict[str, str]]:
    """A URL for one object.

    Returns:
        Method, URL, seconds that it holds, and the headers that the caller must send.

    Raises:
        InvalidField (400), BucketNotFound (404), Forbidden (403).
    """
    await _find(p, caller, name, Action.CALL)
    method = _OPERATIONS.get(operation.lower())
    if method is None:
        raise InvalidField(
            f'"{operation}" is not an operation', field="operation", fix='use "upload" or "download"'
        )
    if not key or len(key.encode()) > 1024:  # noqa: PLR2004 - S3's limit for keys
        raise InvalidField("A key has 1 to 1024 bytes", field="object_key")
    seconds = expires or PRESIGN_DEFAULT
    if not 1 <= seconds <= PRESIGN_LIMIT:
        raise InvalidField(
            f"A link holds 1 to {PRESIGN_LIMIT} seconds (7 days)", field="expires_in", fix="ask for less"
        )
    headers = dict(extra_headers or {})
    if content_type and method == "PUT":
        headers["Content-Type"] = content_type
    for header, value in headers.items():
        if not (_HEADER.fullmatch(header) and _HEADER_VALUE.fullmatch(value)):
            raise InvalidField(
                f'"{header}: {value}" is not a header',
                field="content_type" if header == "Content-Type" else "extra_headers",
                fix="use the letters of ASCII, and no line breaks",
            )
    url = await p.objects.presign(name, key, method=method, expires=seconds, headers=headers)
    return method, url, seconds, headers


async def sign(
    p: Platform,
    bucket: str,
    key: str,
    *,
    method: str,
    expires: int,
    headers: Mapping[str, str] | None = None,
) -> str | None:
    """An address for one object with the rights of its bucket's owner; None when there is no such bucket.

    For other clusters that have, or had, a job of ours: the caller has checked that.
    """
    found = await p.buckets.bucket(bucket)
    if found is None:
        return None
    keys = await p.buckets.credential_of(found.owner)
    site = Site(p.store.endpoint, keys.access_key, keys.secret_key, p.store.region, verify=p.store.verify)
    return presign_at(site, method, bucket, key, expires=expires, headers=headers)


async def _find(p: Platform, caller: Caller, name: str, action: Action) -> Bucket:
    require_user(caller)
    bucket = await p.buckets.bucket(name)
    if bucket is None or not may(caller, Action.SEE, _thing(bucket)):
        raise BucketNotFound(f'There is no bucket named "{name}", or you may not see it', field="bucket")
    if not may(caller, action, _thing(bucket)):
        raise Forbidden(f'Only the owner or an administrator may change the bucket "{name}"')
    return bucket


def _thing(bucket: Bucket) -> Thing:
    return Thing(bucket.owner, bucket.visibility, bucket.allowed_users)


def _visibility(text: str) -> Visibility:
    try:
        return Visibility((text or "private").strip().lower())
    except ValueError:
        raise InvalidField(
            f'"{text}" is not a visibility', field="visibility", fix="use private, restricted or public"
        ) from None


def _described(bucket: Bucket, usage: Usage) -> dict[str, Any]:
    """A bucket as `utils.MinIOBucket` of the API."""
    shown: dict[str, Any] = {
        "bucket_name": bucket.name,
        "visibility": bucket.visibility.value,
        "allowed_users": list(bucket.allowed_users),
        "owner": bucket.owner,
        # The owner has a field of his own.
        "metadata": {name: value for name, value in bucket.tags.items() if name != "owner"},
        "attribution": _attribution(bucket),
        "storage_usage": {
            "used_bytes": usage.size + usage.pending,
            "used": format_memory(usage.size + usage.pending),
            "objects": usage.objects,
        },
    }
    if usage.limit is not None:
        shown["storage_quota"] = {
            "max": format_memory(usage.limit),
            "max_bytes": usage.limit,
            "source": usage.limit_source,
        }
    return shown


def _attribution(bucket: Bucket) -> str:
    return f"service:{bucket.service}" if bucket.service else "user"
