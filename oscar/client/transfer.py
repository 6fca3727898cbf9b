"""Files to and from the object store, in pieces: memory stays flat whatever their size.

Speaks S3 by obstore with the keys that `/system/config` gives to each user, so it works against the built-in server,
MinIO and any S3. Called by `client.rest` (which makes it) and users; raises `oscar.errors`. The library's blocking
calls are used, in threads: after its asynchronous ones, threads of its own come back to Python even while that is
being taken down, and abort one of seven short programs (PyO3/pyo3-async-runtimes#40).
"""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, TypeVar

import obstore
from obstore import exceptions
from obstore.store import S3Store

from oscar.client.records import Progress
from oscar.errors import BucketNotFound, Forbidden, InvalidField, ObjectNotFound, OscarError, StorageError
from oscar.model.storage import MinIOProvider

PIECE = 8 * 1024 * 1024
"""Bytes of a piece; files below it go in one request."""
MOST_PARTS = 9000
"""Kept under the 10,000 parts that S3 allows."""
AT_ONCE = 4

T = TypeVar("T")
Told = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as a listing shows it; `modified` is None for a folder."""

    key: str
    size: int
    modified: datetime | None
    etag: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether it stands for all keys that start with it."""
        return self.key.endswith("/") and self.modified is None


class Storage:
    """Objects of one store with one user's keys."""

    def __init__(self, provider: MinIOProvider) -> None:
        """Take the address and keys of a store; nothing is asked of it yet."""
        if not provider.endpoint:
            raise InvalidField("the store has no address", field="endpoint")
        self.provider = provider

    def _bucket(self, bucket: str) -> S3Store:
        return S3Store(
            bucket,
            endpoint=self.provider.endpoint.rstrip("/"),
            region=self.provider.region or "us-east-1",
            access_key_id=self.provider.access_key,
            secret_access_key=self.provider.secret_key,
            virtual_hosted_style_request=False,
            client_options={
                "allow_http": True,
                "allow_invalid_certificates": not self.provider.verify,
                "connect_timeout": timedelta(seconds=10),
                # Of one request; a slow link must get a piece across within it.
                "timeout": timedelta(minutes=30),
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        )

    async def put(
        self,
        file: Path,
        bucket: str,
        key: str,
        *,
        content_type: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Store a file; in parts when it is large.

        Raises:
            BucketNotFound, Forbidden, StorageError: in the store's words.
            OSError: the file can't be read.
        """
        kind = content_type or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        size = (await asyncio.to_thread(file.stat)).st_size
        if size <= PIECE:
            body = await asyncio.to_thread(file.read_bytes)
            await self.put_bytes(body, bucket, key, content_type=kind)
            if progress:
                progress(len(body))
            return
        piece = max(PIECE, -(-size // MOST_PARTS))

        def send(told: Told) -> None:
            with file.open("rb") as opened:
                obstore.put(
                    self._bucket(bucket),
                    key,
                    _pieces(opened, piece, told),
                    attributes={"Content-Type": kind},
                    chunk_size=piece,
                    max_concurrency=AT_ONCE,
                )

        with _translating(bucket, key):
            await _in_thread(send, progress)

    async def put_bytes(
        self, body: bytes, bucket: str, key: str, *, content_type: str = "application/octet-stream"
    ) -> None:
        """Store bytes. Raises as `put`."""
        with _translating(bucket, key):
            await asyncio.to_thread(
                obstore.put,
                self._bucket(bucket),
                key,
                body,
                attributes={"Content-Type": content_type},
                use_multipart=False,
            )

    async def get(
        self,
        bucket: str,
        key: str,
        file: Path,
        *,
        progress: Progress | None = None,
        expect: Progress | None = None,
    ) -> int:
        """Fetch an object into a file, which appears whole or not at all.

        Args:
            bucket: where it is.
            key: its name.
            file: replaced when it exists; its folder must exist.
            progress: told of the pieces.
            expect: told the size before the first piece.

        Returns:
            its size in bytes.

        Raises:
            ObjectNotFound, Forbidden, StorageError: in the store's words.
            OSError: the file can't be written.
        """
        with _translating(bucket, key):
            result = await asyncio.to_thread(obstore.get, self._bucket(bucket), key)
        if expect:
            expect(result.meta["size"])
        descriptor, name = await asyncio.to_thread(
            tempfile.mkstemp, dir=file.parent, prefix=f".{file.name[:50]}."
        )
        part = Path(name)

        def receive(told: Told) -> int:
            size = 0
            with os.fdopen(descriptor, "wb") as opened:
                for piece in result.stream(min_chunk_size=PIECE):
                    opened.write(piece)
                    size += len(piece)
                    told(len(piece))
            _appear(part, file)
            return size

        try:
            with _translating(bucket, key):
                return await _in_thread(receive, progress)
        finally:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()

    async def get_bytes(self, bucket: str, key: str) -> bytes:
        """Fetch an object into memory. Raises as `get`."""
        with _translating(bucket, key):
            result = await asyncio.to_thread(obstore.get, self._bucket(bucket), key)
            return bytes(await asyncio.to_thread(result.bytes))

    async def list(self, bucket: str, prefix: str = "", *, recursive: bool = True) -> AsyncIterator[Stored]:
        """The objects whose key starts with a prefix, in key order.

        Args:
            bucket: where to look.
            prefix: any text; only whole folders when it ends in a slash.
            recursive: False folds what lies deeper than the prefix's last slash into folders.

        Raises:
            BucketNotFound, Forbidden, StorageError: in the store's words.
        """
        # The library lists by whole folders: ask for the folder, then compare the rest here.
        folder = prefix.rpartition("/")[0]
        store = self._bucket(bucket)
        if not recursive:
            with _translating(bucket, prefix):
                found = await asyncio.to_thread(obstore.list_with_delimiter, store, prefix=folder or None)
            entries = [Stored(f"{name}/", 0, None) for name in found["common_prefixes"]]
            entries += [_stored(entry) for entry in found["objects"]]
            for entry in sorted(entries, key=lambda entry: entry.key):
                if entry.key.startswith(prefix):
                    yield entry
            return
        pages = obstore.list(store, prefix=folder or None)
        while True:
            with _translating(bucket, prefix):
                page = await asyncio.to_thread(next, pages, None)
            if page is None:
                return
            for listed in page:
                if listed["path"].startswith(prefix):
                    yield _stored(listed)

    async def delete(self, bucket: str, *keys: str) -> None:
        """Remove objects; absent ones are no error.

        Raises:
            BucketNotFound, Forbidden, StorageError: in the store's words.
        """
        with contextlib.suppress(ObjectNotFound), _translating(bucket, ", ".join(keys)):
            await asyncio.to_thread(obstore.delete, self._bucket(bucket), list(keys))


@contextlib.contextmanager
def _translating(bucket: str, key: str) -> Iterator[None]:
    """Turn the library's errors into ours; some of them are Python's own FileNotFoundError."""
    try:
        yield
    except (exceptions.BaseError, FileNotFoundError) as error:
        raise _translated(error, bucket, key) from error


async def _in_thread(work: Callable[[Told], T], progress: Progress | None) -> T:
    """Run blocking work in a thread; it ends at its next piece when this task is cancelled.

    `work` is given a function to tell of each piece; `progress` is called in the loop's own thread.
    """
    loop = asyncio.get_running_loop()
    given_up = threading.Event()

    def told(size: int) -> None:
        if given_up.is_set():
            raise StorageError("given up")
        if progress:
            loop.call_soon_threadsafe(progress, size)

    try:
        return await asyncio.to_thread(work, told)
    finally:
        given_up.set()


def _stored(listed: obstore.ObjectMeta) -> Stored:
    return Stored(listed["path"], listed["size"], listed["last_modified"], (listed["e_tag"] or "").strip('"'))


def _pieces(file: BinaryIO, size: int, told: Told) -> Iterator[bytes]:
    while piece := file.read(size):
        yield piece
        # Counted when the library takes the next piece; what is under way at the end is a few pieces.
        told(len(piece))


def _appear(part: Path, file: Path) -> None:
    """Give the finished file its name, with the permissions that a new file gets."""
    umask = os.umask(0)
    os.umask(umask)
    part.chmod(0o666 & ~umask)
    part.replace(file)


def _translated(error: Exception, bucket: str, key: str) -> OscarError:
    words = str(error)
    place = f"{bucket}/{key}".rstrip("/")
    if "NoSuchBucket" in words:
        return BucketNotFound(f"there is no bucket {bucket}, or you may not see it")
    if isinstance(error, exceptions.NotFoundError | FileNotFoundError):
        return ObjectNotFound(f"there is no object {place}")
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return Forbidden(f"you may not do that with {place}")
    return StorageError(f"{place}: {words.splitlines()[0] if words else type(error).__name__}")
