"""The built-in store without HTTP: `ObjectStore` and `BucketAdmin` straight on bodies and rows.

Used by the API's process for staging and for `/system/buckets`, with all rights. Bodies move inside the kernel (a
reflink where the file system has it); a row is committed exactly as the S3 server does it, events included.
"""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oscar.errors import BucketNotFound, ObjectNotFound, OscarError, QuotaExceeded, StorageError
from oscar.model.object import Bucket, Credential, Object, Usage, Visibility
from oscar.model.producer import HOPS_METADATA, Producer
from oscar.model.user import ADMIN
from oscar.objects import s3_signing
from oscar.objects.base import Found, ObjectIndex
from oscar.objects.embedded.blobs import Blobs, copy_range

_CHUNK = 1024 * 1024
_ATTEMPTS = 8
_PAGE = 1000
DEFAULT_TYPE = "application/octet-stream"


class EmbeddedStore:
    """The platform's own objects, buckets and keys."""

    def __init__(
        self,
        index: ObjectIndex,
        blobs: Blobs,
        *,
        endpoint: str,
        region: str,
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Put it together.

        Args:
            index: the rows.
            blobs: the bodies.
            endpoint: the S3 server as clients reach it, for presigned URLs.
            region: that presigned URLs are signed for.
            on_commit: called after a commit that may have enqueued jobs.
        """
        self._index = index
        self._blobs = blobs
        self._endpoint = endpoint
        self._region = region
        self._on_commit = on_commit

    # Objects

    async def download(self, bucket: str, key: str, path: Path) -> Found:
        """See `ObjectStore.download`."""
        for _ in range(_ATTEMPTS):
            obj = await self._object(bucket, key)
            try:
                await self._blobs.run_long(self._copy_out, obj, path)
            except FileNotFoundError:
                # Its body was replaced between the look and the open: look again.
                continue
            return _found(obj)
        raise StorageError(f"{bucket}/{key} is being replaced all the time")

    def _copy_out(self, obj: Object, path: Path) -> None:
        source = self._blobs.open(obj.generation)
        try:
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                copy_range(source, target, obj.size)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)

    async def upload(
        self,
        bucket: str,
        key: str,
        path: Path,
        *,
        producer: Producer | None = None,
        content_type: str | None = None,
    ) -> Found:
        """See `ObjectStore.upload`."""
        if producer and await self._index.delivered(producer, bucket, key):
            return await self.stat(bucket, key)
        owner = await self._owner(bucket)
        room = await self._index.room(bucket)
        if room is not None:
            there = await self._index.get(bucket, key)
            if (await asyncio.to_thread(os.stat, path)).st_size > room + (there.size if there else 0):
                usage = await self._index.usage(bucket)
                raise QuotaExceeded(
                    f'The quota of the bucket "{bucket}" has no room for this file: it may hold {usage.limit} bytes '
                    f"and holds {usage.size + usage.pending}"
                )
        generation = self._blobs.new_generation()
        descriptor, size, etag = await self._blobs.run_long(self._copy_in, path, generation)
        obj = Object(
            bucket=bucket,
            key=key,
            generation=generation,
            size=size,
            etag=etag,
            modified=int(time.time() * 1000),
            content_type=content_type or mimetypes.guess_type(key)[0] or DEFAULT_TYPE,
            metadata={HOPS_METADATA: str(producer.hops)} if producer and producer.hops else {},
            owner=owner,
        )
        try:
            replaced = await self._index.commit(obj, producer=producer)
        except OscarError as error:
            if error.status < 500:  # noqa: PLR2004 - a refusal; otherwise it may have been committed
                self._blobs.discard_later([generation])
            raise
        finally:
            os.close(descriptor)
        self._blobs.discard_later([replaced] if replaced else [])
        self._on_commit()
        return _found(obj)

    def _copy_in(self, path: Path, generation: str) -> tuple[int, int, str]:
        """Copy a file into a new, durable body: its open descriptor, size and MD5."""
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(source).st_size
            self._blobs.check_space(size)
            target = self._blobs.create(generation)
            try:
                copy_range(source, target, size)
                digest = hashlib.md5(usedforsecurity=False)
                buffer = bytearray(_CHUNK)
                offset = 0
                while offset < size and (count := os.preadv(target, [buffer], offset)):
                    digest.update(memoryview(buffer)[:count])
                    offset += count
                self._blobs.seal(target, generation)
            except BaseException:
                self._blobs.discard([generation])
                os.close(target)
                raise
        finally:
            os.close(source)
        return target, size, digest.hexdigest()

    async def stat(self, bucket: str, key: str) -> Found:
        """See `ObjectStore.stat`."""
        return _found(await self._object(bucket, key))

    async def metadata(self, bucket: str, key: str) -> tuple[Found, Mapping[str, str]]:
        """See `ObjectStore.metadata`."""
        try:
            obj = await self._object(bucket, key)
        except BucketNotFound as error:
            raise ObjectNotFound(error.message) from None
        return _found(obj), obj.metadata

    async def list(self, bucket: str, prefix: str = "", *, start_after: str = "") -> AsyncIterator[Found]:
        """See `ObjectStore.list`."""
        await self._owner(bucket)
        after = start_after
        while True:
            page = await self._index.list(bucket, prefix=prefix, after=after, limit=_PAGE)
            for obj in page.objects:
                yield _found(obj)
            if not page.truncated or page.next_key is None:
                return
            after = page.next_key

    async def delete(self, bucket: str, key: str) -> None:
        """See `ObjectStore.delete`."""
        removed = await self._index.delete(bucket, [key])
        self._blobs.discard_later(removed.values())

    async def ensure_bucket(self, bucket: str) -> None:
        """See `ObjectStore.ensure_bucket`."""
        await self._index.create_bucket(Bucket(bucket, ADMIN))

    async def presign(
        self, bucket: str, key: str, *, method: str, expires: int, headers: Mapping[str, str] | None = None
    ) -> str:
        """See `ObjectStore.presign`; signed with the bucket owner's key, so that it ends with the bucket."""
        keys = await self._index.credential_of(await self._owner(bucket))
        site = s3_signing.Site(self._endpoint, keys.access_key, keys.secret_key, self._region)
        return s3_signing.presign(site, method, bucket, key, expires=expires, headers=headers)

    # Buckets

    async def create_bucket(self, bucket: Bucket) -> bool:
        """See `BucketAdmin.create_bucket`."""
        created = bucket if bucket.created else replace(bucket, created=int(time.time() * 1000))
        return await self._index.create_bucket(created)

    async def update_bucket(
        self,
        name: str,
        *,
        visibility: Visibility,
        allowed_users: Sequence[str],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """See `BucketAdmin.update_bucket`."""
        present = await self._index.bucket(name)
        if present is None:
            raise BucketNotFound(f'There is no bucket "{name}"')
        await self._index.replace_bucket(
            replace(
                present,
                visibility=visibility,
                allowed_users=tuple(allowed_users),
                tags=present.tags if tags is None else tags,
            )
        )

    async def bucket(self, name: str) -> Bucket | None:
        """See `BucketAdmin.bucket`."""
        return await self._index.bucket(name)

    async def buckets(self) -> Sequence[Bucket]:
        """See `BucketAdmin.buckets`."""
        return await self._index.buckets()

    async def delete_bucket(self, name: str, *, force: bool = False) -> None:
        """See `BucketAdmin.delete_bucket`."""
        try:
            freed = await self._index.delete_bucket(name, force=force)
        except BucketNotFound:
            return
        self._blobs.discard_later(freed)

    async def usage(self, name: str) -> Usage:
        """See `BucketAdmin.usage`."""
        return await self._index.usage(name)

    async def usages(self) -> Mapping[str, Usage]:
        """See `BucketAdmin.usages`."""
        return await self._index.usages()

    async def credential_of(self, user: str) -> Credential:
        """See `BucketAdmin.credential_of`."""
        return await self._index.credential_of(user)

    async def _owner(self, bucket: str) -> str:
        present = await self._index.bucket(bucket)
        if present is None:
            raise BucketNotFound(f'There is no bucket "{bucket}"')
        return present.owner

    async def _object(self, bucket: str, key: str) -> Object:
        obj = await self._index.get(bucket, key)
        if obj is None:
            await self._owner(bucket)
            raise ObjectNotFound(f'There is no object "{key}" in the bucket "{bucket}"')
        return obj


def _found(obj: Object) -> Found:
    return Found(obj.key, obj.size, obj.etag, obj.modified, obj.owner)
