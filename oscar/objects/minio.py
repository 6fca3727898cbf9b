"""A MinIO as the platform's own store: implements `ObjectStore`, `BucketAdmin` and `Upkeep`.

Made by `app.stores`. Our rows are the truth about buckets, who sees them and whose keys are whose; what MinIO has of
it (buckets, tags, users, groups, policies, quotas, notification rules) is derived from them, by the S3 protocol and
`objects.minio_admin`. A bucket is shared by membership in groups, so that no policy grows with what a user has.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oscar import telemetry
from oscar.errors import (
    BucketNotEmpty,
    BucketNotFound,
    NoAnswer,
    OscarError,
    Unavailable,
)
from oscar.model.object import Bucket, Credential, Usage, Visibility
from oscar.model.producer import Producer
from oscar.model.user import ADMIN
from oscar.objects import minio_rules as rules
from oscar.objects.base import BucketIndex, Found
from oscar.objects.minio_admin import Accounts
from oscar.objects.s3 import S3Store
from oscar.objects.s3_calls import S3Calls
from oscar.objects.s3_signing import Site, presign

log = telemetry.get("minio")

_ABANDONED_S = 120.0
"""A bucket that is being made for so long is not being made by anybody any more."""
_COUNTED = 1000
"""Objects up to which a bucket is counted; above, the store's own figures are told, minutes old."""
_SIZES_S = 20.0
_OK, _NO_CONTENT, _NOT_FOUND, _CONFLICT = 200, 204, 404, 409


class MinioStore:
    """The platform's own objects, buckets and keys on a MinIO.

    Args:
        index: the rows.
        accounts: MinIO's administration.
        site: MinIO as this server reaches it, with its administrator's keys.
        public: its address as clients reach it, for presigned URLs.
        target: name of our webhook in MinIO; "" when writes are found by listing.
        name_of: a user's name for people.
    """

    def __init__(
        self,
        index: BucketIndex,
        accounts: Accounts,
        site: Site,
        *,
        public: str,
        target: str,
        name_of: Callable[[str], Awaitable[str]],
    ) -> None:
        self._index = index
        self._accounts = accounts
        self._site = site
        self._public = public
        self._target = target
        self._name_of = name_of
        self._calls = S3Calls(site)
        self._files = S3Store(
            site.endpoint, site.access_key, site.secret_key, site.region, verify=site.verify
        )
        self._known_users: set[str] = set()
        self._sizes: tuple[float, Mapping[str, tuple[int, int]]] = (0.0, {})
        self._changing: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def close(self) -> None:
        """End its connections."""
        await self._calls.close()
        await self._files.close()

    # Objects

    async def download(self, bucket: str, key: str, path: Path) -> Found:
        """See `ObjectStore.download`."""
        with _reached():
            return await self._files.download(bucket, key, path)

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
        with _reached():
            return await self._files.upload(bucket, key, path, producer=producer, content_type=content_type)

    async def stat(self, bucket: str, key: str) -> Found:
        """See `ObjectStore.stat`."""
        with _reached():
            return await self._files.stat(bucket, key)

    async def metadata(self, bucket: str, key: str) -> tuple[Found, Mapping[str, str]]:
        """See `Upkeep.metadata`."""
        with _reached():
            return await self._files.metadata(bucket, key)

    async def list(self, bucket: str, prefix: str = "", *, start_after: str = "") -> AsyncIterator[Found]:
        """See `ObjectStore.list`."""
        with _reached():
            async for found in self._files.list(bucket, prefix, start_after=start_after):
                yield found

    async def delete(self, bucket: str, key: str) -> None:
        """See `ObjectStore.delete`."""
        with _reached():
            await self._files.delete(bucket, key)

    async def ensure_bucket(self, bucket: str) -> None:
        """See `ObjectStore.ensure_bucket`."""
        await self.create_bucket(Bucket(bucket, ADMIN))

    async def presign(
        self, bucket: str, key: str, *, method: str, expires: int, headers: Mapping[str, str] | None = None
    ) -> str:
        """See `ObjectStore.presign`; signed with the bucket owner's key, so that it ends with the bucket."""
        present = await self.bucket(bucket)
        if present is None:
            raise BucketNotFound(f'There is no bucket "{bucket}"')
        keys = await self._keys_of(present.owner)
        site = Site(self._public, keys.access_key, keys.secret_key, self._site.region)
        return presign(site, method, bucket, key, expires=expires, headers=headers)

    # Buckets

    async def create_bucket(self, bucket: Bucket) -> bool:
        """See `BucketAdmin.create_bucket`. A bucket of MinIO that we have no row of becomes a known one."""
        created = bucket if bucket.created else replace(bucket, created=int(time.time() * 1000))
        async with self._alone(bucket.name):
            if await self._index.bucket(bucket.name) is not None:
                return False
            with _reached():
                if await self._adopt(bucket.name):
                    return False
                # Before the row, so that after a crash the bucket can be told from somebody else's.
                await self._index.begin_change(bucket.name)
                try:
                    made = await self._index.create_bucket(created)
                except OscarError:
                    await self._index.end_change(bucket.name)
                    raise
                if not made:
                    return False
                try:
                    await self._make(bucket.name)
                    await self._derive(created)
                except OscarError:
                    await self._unmake(bucket.name)
                    raise
            await self._index.end_change(bucket.name)
            return True

    async def update_bucket(
        self,
        name: str,
        *,
        visibility: Visibility,
        allowed_users: Sequence[str],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """See `BucketAdmin.update_bucket`."""
        async with self._alone(name):
            present = await self.bucket(name)
            if present is None:
                raise BucketNotFound(f'There is no bucket "{name}"')
            wanted = replace(
                present,
                visibility=visibility,
                allowed_users=tuple(allowed_users),
                tags=present.tags if tags is None else tags,
            )
            with _reached():
                await self._derive(wanted)
            await self._index.replace_bucket(wanted)

    async def bucket(self, name: str) -> Bucket | None:
        """See `BucketAdmin.bucket`."""
        present = await self._index.bucket(name)
        if present is not None:
            return present
        with _reached():
            return await self._index.bucket(name) if await self._adopt(name) else None

    async def buckets(self) -> Sequence[Bucket]:
        """See `BucketAdmin.buckets`."""
        return await self._index.buckets()

    async def delete_bucket(self, name: str, *, force: bool = False) -> None:
        """See `BucketAdmin.delete_bucket`."""
        async with self._alone(name):
            with _reached():
                await self._remove(name, force=force)
                with contextlib.suppress(BucketNotFound):
                    await self._index.delete_bucket(name)
                await self._close_groups(name)

    async def usage(self, name: str) -> Usage:
        """See `BucketAdmin.usage`: counted for small buckets, else as MinIO counted last."""
        limit = (await self._index.usages()).get(name, Usage(0, 0))
        count = size = 0
        async for found in self.list(name):
            if count == _COUNTED:
                count, size = (await self._counted()).get(name, (count, size))
                break
            count, size = count + 1, size + found.size
        return replace(limit, objects=count, size=size, pending=0)

    async def usages(self) -> Mapping[str, Usage]:
        """See `BucketAdmin.usages`: as MinIO counted last, which may be minutes ago."""
        counted = await self._counted()
        return {
            name: replace(
                limit, objects=counted.get(name, (0, 0))[0], size=counted.get(name, (0, 0))[1], pending=0
            )
            for name, limit in (await self._index.usages()).items()
        }

    async def credential_of(self, user: str) -> Credential:
        """See `BucketAdmin.credential_of`; MinIO knows it on return."""
        keys = await self._index.credential_of(user)
        if not keys.admin and keys.access_key not in self._known_users:
            with _reached():
                await self._accounts.put_user(keys.access_key, keys.secret_key)
                await self._accounts.join(rules.EVERYBODY, keys.access_key)
            self._known_users.add(keys.access_key)
        return keys

    async def user_of(self, access_key: str) -> str | None:
        """See `Upkeep.user_of`."""
        if access_key == self._site.access_key:
            return ADMIN
        keys = await self._index.credential(access_key)
        return keys.user if keys else None

    # Upkeep

    async def watch(self, bucket: str, *, wanted: bool) -> None:
        """See `Upkeep.watch`."""
        if not self._target:
            return
        with _reached():
            arn = await self._arn() if wanted else None
            async with self._alone(bucket):
                try:
                    await self._put_rule(bucket, arn)
                except BucketNotFound:
                    if wanted:
                        raise

    async def limit(self, owner: str) -> None:
        """See `Upkeep.limit`."""
        limits = await self._index.usages()
        with _reached():
            for bucket in await self._index.buckets():
                if bucket.owner == owner:
                    await self._accounts.put_quota(bucket.name, limits.get(bucket.name, Usage(0, 0)).limit)

    async def reconcile(self, watched: Collection[str]) -> None:
        """See `Upkeep.reconcile`."""
        with _reached():
            for name in await self._index.changes(_ABANDONED_S):
                await self._finish(name)
            for keys in await self._index.credentials():
                if not keys.admin:
                    await self.credential_of(keys.user)
            there = await self._names()
            arn = await self._arn() if self._target and watched else None
            for name in there:
                # Somebody else's bucket becomes known, so that its name counts as taken and its owner sees it.
                if await self._index.bucket(name) is None:
                    await self._adopt(name)
            for bucket in await self._index.buckets():
                try:
                    await self._restore(
                        bucket, arn if bucket.name in watched else None, made=bucket.name in there
                    )
                except NoAnswer:
                    raise
                except OscarError as error:
                    # One bucket's trouble is not that of all others.
                    log.warning("bucket not as it should be", bucket=bucket.name, error=error.message)

    async def _restore(self, bucket: Bucket, arn: str | None, *, made: bool) -> None:
        async with self._alone(bucket.name):
            if await self._index.bucket(bucket.name) is None:
                return
            if not made:
                log.warning("bucket made again", bucket=bucket.name)
                await self._make(bucket.name)
            await self._derive(bucket)
            if self._target:
                await self._put_rule(bucket.name, arn)

    async def _finish(self, name: str) -> None:
        """End what a crash left: with a row the bucket is made by `reconcile`, without one its remains go."""
        if await self._index.bucket(name) is None:
            with contextlib.suppress(BucketNotEmpty):
                await self._remove(name, force=False)
            await self._close_groups(name)
        await self._index.end_change(name)

    @contextlib.asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        """One change of a bucket at a time in this process."""
        lock = self._changing.setdefault(name, asyncio.Lock())
        async with lock:
            yield

    async def _derive(self, bucket: Bucket) -> None:
        """Have tags, groups, policies and quota of a bucket as its row says."""
        name = bucket.name
        await self._calls.call(
            "PUT", name, query=[("tagging", "")], body=rules.tagging(await self._tags(bucket))
        )
        await self._accounts.put_policy(rules.owners(name), rules.owner_policy(name))
        await self._accounts.put_policy(rules.users(name), rules.users_policy(name))
        owner = await self._members([bucket.owner])
        await self._accounts.put_group(rules.owners(name), owner, rules.owners(name))
        shared = bucket.visibility is Visibility.RESTRICTED
        friends = await self._members(bucket.allowed_users if shared else ())
        await self._accounts.put_group(name, friends, rules.users(name))
        if bucket.visibility is Visibility.PUBLIC:
            await self._accounts.allow(rules.EVERYBODY, rules.users(name))
        else:
            await self._accounts.disallow(rules.EVERYBODY, rules.users(name))
        limit = (await self._index.usages()).get(name, Usage(0, 0)).limit
        await self._accounts.put_quota(name, limit)

    async def _tags(self, bucket: Bucket) -> dict[str, str]:
        tags = {"owner": bucket.owner, "from_service": bucket.service or "false", **bucket.tags}
        name = await self._name_of(bucket.owner)
        return tags | ({"owner_name": name} if name else {})

    async def _members(self, users: Sequence[str]) -> Sequence[str]:
        """The access keys of users, who exist in MinIO on return; the administrator needs no policy."""
        keys = [await self._keys_of(user) for user in dict.fromkeys(users) if user]
        return [each.access_key for each in keys if not each.admin]

    async def _keys_of(self, owner: str) -> Credential:
        if not owner:
            return Credential(self._site.access_key, self._site.secret_key, admin=True)
        return await self.credential_of(owner)

    async def _make(self, name: str) -> None:
        body = b""
        # 409 says that it is there: it is ours by its row or note.
        await self._calls.call("PUT", name, body=body, ok=frozenset({_OK, _CONFLICT}))

    async def _unmake(self, name: str) -> None:
        """Undo a bucket that could not be made whole; what MinIO doesn't let us undo now, `reconcile` does."""
        with contextlib.suppress(BucketNotFound):
            await self._index.delete_bucket(name)
        try:
            await self._remove(name, force=False)
            await self._close_groups(name)
        except OscarError as error:
            log.warning("a half-made bucket is left for later", bucket=name, error=error.message)
            return
        await self._index.end_change(name)

    async def _remove(self, name: str, *, force: bool) -> None:
        ok = frozenset({_OK, _NO_CONTENT, _NOT_FOUND, _CONFLICT})
        headers = {"x-minio-force-delete": "true"} if force else {}
        answer = await self._calls.call("DELETE", name, ok=ok, headers=headers)
        if answer.status_code == _CONFLICT:
            raise BucketNotEmpty(f'The bucket "{name}" still holds objects')

    async def _close_groups(self, name: str) -> None:
        await self._accounts.disallow(rules.EVERYBODY, rules.users(name))
        for group in (rules.owners(name), name):
            await self._accounts.put_group(group, (), "")
        for policy in (rules.owners(name), rules.users(name)):
            await self._accounts.remove_policy(policy)

    async def _adopt(self, name: str) -> bool:
        """Give a bucket of MinIO that we have no row of one; False when there is none, or it is being made."""
        there = await self._calls.call("HEAD", name, ok=frozenset({_OK, _NOT_FOUND}))
        if there.status_code == _NOT_FOUND:
            return False
        if name in await self._index.changes(0.0):
            return False
        answer = await self._calls.call("GET", name, query=[("tagging", "")], ok=frozenset({_OK, _NOT_FOUND}))
        tags = rules.read_tags(answer.content) if answer.status_code == _OK else {}
        owner, service = tags.get("owner", ""), tags.get("from_service", "")
        kept = {key: value for key, value in tags.items() if key != "owner_name"}
        bucket = Bucket(
            name=name,
            owner=owner,
            service=service if service not in {"", "false", "true"} else None,
            tags=kept,
        )
        log.info("a bucket that was made elsewhere", bucket=name, owner=owner)
        return await self._index.adopt_bucket(bucket)

    async def _names(self) -> set[str]:
        answer = await self._calls.call("GET", "")
        document = self._calls.document(answer, "ListAllMyBucketsResult")
        return {
            entry.value("Name") or "" for group in document.all("Buckets") for entry in group.all("Bucket")
        }

    async def _arn(self) -> str:
        arn = await self._accounts.target(self._target)
        if arn is None:
            raise Unavailable(
                f'MinIO has no webhook "{self._target}" by which it would report uploads',
                field="OSCAR_EVENTS_TARGET",
                fix="start MinIO with the environment that `oscar minio-environment` prints",
            )
        return arn

    async def _put_rule(self, bucket: str, arn: str | None) -> None:
        query = [("notification", "")]
        present = await self._calls.call("GET", bucket, query=query)
        wanted = rules.with_rule(present.content, arn)
        if wanted is not None:
            await self._calls.call("PUT", bucket, query=query, body=wanted)

    async def _counted(self) -> Mapping[str, tuple[int, int]]:
        moment, sizes = self._sizes
        if time.monotonic() - moment > _SIZES_S or not moment:
            with _reached():
                sizes = await self._accounts.sizes()
            self._sizes = time.monotonic(), sizes
        return sizes


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """A MinIO that doesn't answer is a platform that can't be used now, not a provider of somebody's that fails."""
    try:
        yield
    except NoAnswer as error:
        raise Unavailable(
            f"The object store can't be used now: {error.message}",
            fix="try again; if it lasts, see whether MinIO runs and MINIO_ENDPOINT is right",
            headers={"Retry-After": "5"},
        ) from error
