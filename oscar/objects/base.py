"""The ports to storage: `FileStore` and `ObjectStore` (data), `BucketAdmin` (buckets), `ObjectIndex` (rows).

`Transfers` is what staging needs of a `FileStore`: `objects.webdav`, `onedata` and `rucio` are no more than the latter.
`ObjectStore` is called by `core.storage` too; implemented by `objects.s3` (any S3) and `objects.embedded.store` (the
built-in server's own folder, without HTTP). `ObjectIndex` is what the built-in server asks of the Store;
`state.objects` implements it and this package never imports it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    # Not loaded by staging containers, see `supervisor.pod`.
    from oscar.model.object import Bucket, Credential, Known, Listing, Object, Part, Upload, Usage, Visibility
    from oscar.model.producer import Producer


class Found(NamedTuple):
    """An object as a listing or a stat shows it; `modified` in Unix milliseconds."""

    key: str
    size: int
    etag: str
    modified: int
    owner: str = ""


class Transfers(Protocol):
    """Whole files from and to one store with one user's rights. What a bucket is differs: a folder, a space, a scope.

    Errors: ObjectNotFound, BucketNotFound, Forbidden, StorageError.
    """

    async def download(self, bucket: str, key: str, path: Path) -> Found:
        """Stream the object into a new file; on error the file is removed. Memory stays flat."""

    async def upload(
        self,
        bucket: str,
        key: str,
        path: Path,
        *,
        producer: Producer | None = None,
        content_type: str | None = None,
    ) -> Found:
        """Store the file under the key, atomically. Memory stays flat.

        With `producer`, the hop count travels in the object's metadata (`oscar-hops`), and the built-in store
        writes the same key for the same job only once.
        """

    async def ensure_bucket(self, bucket: str) -> None:
        """Create the bucket if it is absent and that is allowed; silent if present."""


class FileStore(Transfers, Protocol):
    """Files of one store, and what is said of them."""

    async def stat(self, bucket: str, key: str) -> Found:
        """The object's size and tag."""

    def list(self, bucket: str, prefix: str = "", *, start_after: str = "") -> AsyncIterator[Found]:
        """All objects whose key starts with prefix, in key order."""

    async def delete(self, bucket: str, key: str) -> None:
        """Remove the object; silent if absent."""


class ObjectStore(FileStore, Protocol):
    """A store that can also let others read and write single objects by URL."""

    async def metadata(self, bucket: str, key: str) -> tuple[Found, Mapping[str, str]]:
        """The object with its user metadata, names in small letters.

        Raises:
            ObjectNotFound: also when there is no such bucket.
        """

    async def presign(
        self, bucket: str, key: str, *, method: str, expires: int, headers: Mapping[str, str] | None = None
    ) -> str:
        """A URL that allows `method` (GET or PUT) on the key for `expires` seconds (at most 7 days)."""


class BucketAdmin(Protocol):
    """Buckets and keys of the platform's own store."""

    async def create_bucket(self, bucket: Bucket) -> bool:
        """Create it; False when a bucket of that name exists (left as it is).

        Raises QuotaExceeded: its owner may have no more buckets.
        """

    async def update_bucket(
        self,
        name: str,
        *,
        visibility: Visibility,
        allowed_users: Sequence[str],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Change who sees it. Raises BucketNotFound."""

    async def bucket(self, name: str) -> Bucket | None:
        """The bucket, None when there is none."""

    async def buckets(self) -> Sequence[Bucket]:
        """All buckets in name order."""

    async def delete_bucket(self, name: str, *, force: bool = False) -> None:
        """Remove an empty bucket, or with `force` all it holds. Silent if absent. Raises BucketNotEmpty."""

    async def usage(self, name: str) -> Usage:
        """How many objects and bytes it holds and may hold."""

    async def usages(self) -> Mapping[str, Usage]:
        """The same of all buckets, by name."""

    async def credential_of(self, user: str) -> Credential:
        """The user's own key pair, made when absent."""


class Upkeep(Protocol):
    """The ability of a `BucketAdmin` whose store is a server of its own: what is derived there from our rows.

    A store without it has nothing to derive: its rows are all there is. Errors: Unavailable, StorageError.
    """

    async def watch(self, bucket: str, *, wanted: bool) -> None:
        """Have writes into the bucket reported to us, or no longer. Silent if the bucket is absent and not wanted."""

    async def limit(self, owner: str) -> None:
        """Have the buckets of an owner limited as his quota says now."""

    async def user_of(self, access_key: str) -> str | None:
        """The user of an access key, as events name who wrote; None when nobody of ours has it."""

    async def metadata(self, bucket: str, key: str) -> tuple[Found, Mapping[str, str]]:
        """The object with its user metadata, lower-case names. Raises ObjectNotFound, BucketNotFound."""

    async def reconcile(self, watched: Collection[str]) -> None:
        """Have the whole store as our rows say, and finish or undo what was left half-made.

        Args:
            watched: the buckets whose writes are to be reported; others are not.
        """


class BucketIndex(Protocol):
    """The rows of buckets and key pairs when a server of its own holds the objects; see `ObjectIndex`."""

    async def credential(self, access_key: str) -> Credential | None:
        """The key pair of that access key."""

    async def credential_of(self, user: str, *, admin: bool = False) -> Credential:
        """The user's own key pair, made when absent."""

    async def credentials(self) -> Sequence[Credential]:
        """All key pairs."""

    async def bucket(self, name: str) -> Bucket | None:
        """The bucket, None when there is none."""

    async def buckets(self) -> list[Bucket]:
        """All buckets in name order."""

    async def create_bucket(self, bucket: Bucket) -> bool:
        """Insert; False when the name is taken. Raises QuotaExceeded: its owner may have no more buckets."""

    async def adopt_bucket(self, bucket: Bucket) -> bool:
        """Insert a bucket that is there already, whatever its owner's quota; False when its name has a row."""

    async def replace_bucket(self, bucket: Bucket) -> None:
        """Overwrite its settings. Raises BucketNotFound."""

    async def delete_bucket(self, name: str, *, force: bool = False) -> list[str]:
        """Remove the row. Raises BucketNotFound."""

    async def usages(self) -> Mapping[str, Usage]:
        """By name of all buckets: what they may hold, and where that limit comes from."""

    async def begin_change(self, bucket: str) -> None:
        """Note that the bucket is being made or removed in the store; durable on return."""

    async def end_change(self, bucket: str) -> None:
        """Note that this is over."""

    async def changes(self, age: float) -> Sequence[str]:
        """Buckets of such notes that are older than so many seconds: who made them is gone."""


class ObjectIndex(Protocol):
    """The rows behind the built-in store. Each verb is one transaction; errors are of `oscar.errors`."""

    async def lookup(self, *, access_key: str | None, bucket: str | None, key: str | None) -> Known:
        """Key pair, bucket and object in one read: all that most requests need of the database."""

    async def credential(self, access_key: str) -> Credential | None:
        """The key pair of that access key."""

    async def credential_of(self, user: str, *, admin: bool = False) -> Credential:
        """The user's own key pair, made when absent."""

    async def bucket(self, name: str) -> Bucket | None:
        """The bucket, None when there is none."""

    async def buckets(self) -> list[Bucket]:
        """All buckets in name order."""

    async def create_bucket(self, bucket: Bucket) -> bool:
        """Insert; False when the name is taken. Raises QuotaExceeded: its owner may have no more buckets."""

    async def replace_bucket(self, bucket: Bucket) -> None:
        """Overwrite its settings. Raises BucketNotFound."""

    async def delete_bucket(self, name: str, *, force: bool = False) -> list[str]:
        """Remove it; with force its objects and uploads too. The generations whose blobs are now free.

        Raises BucketNotFound, BucketNotEmpty.
        """

    async def usage(self, bucket: str) -> Usage:
        """Count and total size of the bucket's objects, and what it may hold."""

    async def usages(self) -> Mapping[str, Usage]:
        """The same of all buckets, by name."""

    async def room(self, bucket: str) -> int | None:
        """Bytes that may still be stored there at this moment; None without limit.

        For an early word to the client only: the commit decides.
        """

    async def get(self, bucket: str, key: str) -> Object | None:
        """The object, None when there is none."""

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
        """Make the object visible and enqueue the jobs of all services that listen there: one transaction.

        The blob must be durable on disk before. Conditions are checked inside the transaction.

        Args:
            obj: the row to insert or replace.
            event: S3 name of the event, for the jobs.
            if_none_match: the key must be new.
            if_match: the key must exist with this etag (without quotes), or at all for `*`.
            producer: the job that writes; when it has written this key before, nothing is done.
            source_ip: of the client, for the event.

        Returns:
            The generation whose blob is free now: the replaced one; `obj.generation` itself when the producer
            had delivered before; None when the key was new.

        Raises:
            BucketNotFound: the bucket is gone.
            QuotaExceeded: the bucket would hold more than its owner's quota allows.
            PreconditionFailed: `if_none_match` and the key exists, or its etag is not `if_match`.
        """

    async def retag(self, bucket: str, key: str, tags: Mapping[str, str]) -> None:
        """Replace the object's tags. Raises ObjectNotFound."""

    async def delete(self, bucket: str, keys: Sequence[str]) -> dict[str, str]:
        """Remove objects; the removed keys with their generations (absent keys are left out)."""

    async def list(
        self, bucket: str, *, prefix: str = "", delimiter: str = "", after: str = "", limit: int = 1000
    ) -> Listing:
        """A page in UTF-8 byte order of keys, after `after`; with delimiter, keys folded to prefixes.

        An `after` that is itself a folded prefix skips all keys under it. Listed objects carry no metadata,
        headers, tags or checksums: `get` does.
        """

    async def create_upload(self, upload: Upload) -> None:
        """Insert. Raises BucketNotFound."""

    async def upload(self, upload_id: str) -> Upload | None:
        """The upload in progress."""

    async def uploads(self, bucket: str, *, prefix: str = "") -> Sequence[Upload]:
        """Uploads in progress in key order."""

    async def put_part(self, part: Part) -> str | None:
        """Insert or replace the part; the generation that is free now, None when there is none.

        The upload's own file, in which parts lie in place, stays. Raises UploadNotFound, QuotaExceeded (parts take
        room as objects do).
        """

    async def parts(self, upload_id: str) -> Sequence[Part]:
        """Its parts in order of their number."""

    async def complete_upload(
        self,
        upload_id: str,
        obj: Object,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        source_ip: str = "",
    ) -> Sequence[str]:
        """`commit` the assembled object and remove the upload and its parts, in one transaction.

        Returns the generations that are free now: of parts that don't lie in place, the upload's own file
        (its id), a replaced object; never that of `obj`. Raises UploadNotFound, and what `commit` raises.
        """

    async def abort_upload(self, upload_id: str) -> Sequence[str]:
        """Remove the upload; its own file (its id) and those of its other parts. Raises UploadNotFound."""

    async def referenced(self, generations: Sequence[str]) -> set[str]:
        """Which of the generations an object or a part uses, or are the id of an upload (for the sweep)."""

    async def delivered(self, producer: Producer, bucket: str, key: str) -> bool:
        """Whether that job has already written that key."""
