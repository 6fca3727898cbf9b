"""The platform's own store as a staging container uses it: whole files up and down, blocking, and little to load.

Called by `pod`, through `stage`. Its coroutines wait for nothing (see `ways.finish`), so that no event loop is needed;
what is large goes by `objects.s3` in parts. Trouble that may pass is waited out.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from oscar.errors import BucketNotFound, Forbidden, NoAnswer, NotFound, OscarError, StorageError, StorageFull
from oscar.model.producer import PRODUCER_METADATA, Producer
from oscar.objects.base import Found
from oscar.objects.s3_signing import Site, sign_headers
from oscar.objects.s3_words import refusal
from oscar.supervisor.asking import Answer, Web
from oscar.supervisor.asking import NoAnswer as NothingSaid
from oscar.supervisor.order import Keys

SMALL = 8 * 1024 * 1024
"""Bytes of a file that is sent at once; as large as the parts of a larger one."""

_PAUSES = (0.2, 0.4, 0.8, 1.6)
"""Seconds before a transfer is tried again."""
_OK, _SERVER_ERROR = 200, 500
_PASSING = frozenset({409, 429})
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def insist(request: Callable[[], Answer], pauses: Sequence[float] = _PAUSES) -> Answer:
    """The answer to a request, which is made again while trouble may pass.

    Args:
        request: makes it.
        pauses: seconds before each further try.

    Raises:
        asking.NoAnswer: there was none to the last one.
    """
    for pause in pauses:
        try:
            answer = request()
        except NothingSaid:
            pass
        else:
            if answer.status < _SERVER_ERROR and answer.status not in _PASSING:
                return answer
        time.sleep(pause)
    return request()


class OwnStore:
    """Files of the own store, with one user's keys: what `stage` needs. Implements `Transfers`.

    Args:
        keys: with its address.
        web: to ask it.
    """

    def __init__(self, keys: Keys, web: Web) -> None:
        self._web = web
        self._site = Site(keys.endpoint, keys.access_key, keys.secret_key, keys.region, verify=keys.verify)

    async def download(self, bucket: str, key: str, path: Path) -> Found:
        """See `Transfers.download`."""

        def request() -> Answer:
            with path.open("wb") as file:
                return self._ask("GET", bucket, key, into=file)

        try:
            answer = self._insist(request, bucket, key)
            if answer.status != _OK:
                raise refusal(self._site.host, answer.status, "", bucket, key)
            return Found(key, path.stat().st_size, answer.headers.get("etag", "").strip('"'), 0)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise _local(error, path) from error
        except OscarError:
            path.unlink(missing_ok=True)
            raise

    async def upload(
        self,
        bucket: str,
        key: str,
        path: Path,
        *,
        producer: Producer | None = None,
        content_type: str | None = None,
    ) -> Found:
        """See `Transfers.upload`."""
        if producer is not None:
            there = self._written_by(producer, bucket, key)
            if there is not None:
                return there
        try:
            body = _read(path)
        except OSError as error:
            raise _local(error, path) from error
        if body is None:
            return self._upload_large(bucket, key, path, producer, content_type)
        headers = {"content-type": content_type or "application/octet-stream"}
        if producer is not None:
            headers |= {f"x-amz-meta-{name}": value for name, value in producer.metadata().items()}
        answer = self._insist(lambda: self._ask("PUT", bucket, key, body, headers), bucket, key)
        return Found(key, len(body), answer.headers.get("etag", "").strip('"'), int(time.time() * 1000))

    async def ensure_bucket(self, bucket: str) -> None:
        """See `Transfers.ensure_bucket`; the own store's buckets are made by the core."""
        raise BucketNotFound(f"there is no bucket {bucket} at {self._site.host}")

    def _written_by(self, producer: Producer, bucket: str, key: str) -> Found | None:
        """What that job has stored under the key before; None when it hasn't, or when keys may only write."""
        try:
            headers = self._insist(lambda: self._ask("HEAD", bucket, key), bucket, key).headers
        except (NotFound, Forbidden):
            return None
        if headers.get(f"x-amz-meta-{PRODUCER_METADATA}") != producer.job_id:
            return None
        return Found(key, int(headers.get("content-length", 0)), headers.get("etag", "").strip('"'), 0)

    def _upload_large(
        self, bucket: str, key: str, path: Path, producer: Producer | None, content_type: str | None
    ) -> Found:
        import asyncio  # with the rest of it, for files that take longer than this

        from oscar.objects.s3 import S3Store

        async def upload() -> Found:
            site = self._site
            store = S3Store(site.endpoint, site.access_key, site.secret_key, site.region, verify=site.verify)
            try:
                return await store.upload(bucket, key, path, producer=producer, content_type=content_type)
            finally:
                await store.close()

        return asyncio.run(upload())

    def _ask(
        self,
        method: str,
        bucket: str,
        key: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        into: BinaryIO | None = None,
    ) -> Answer:
        origin, path = self._site.target(bucket, key)
        digest = hashlib.sha256(body).hexdigest()
        signed = sign_headers(self._site, method, bucket, key, headers=headers, digest=digest)
        return self._web.ask(method, origin + path, body, signed, into=into)

    def _insist(self, request: Callable[[], Answer], bucket: str, key: str) -> Answer:
        host = self._site.host
        try:
            answer = insist(request)
        except NothingSaid as error:
            raise NoAnswer(f"no answer from {host}: {error}") from error
        if not answer.is_success:
            raise refusal(host, answer.status, answer.body.decode(errors="replace"), bucket, key)
        return answer


def _read(path: Path) -> bytes | None:
    """The file; None when it is large.

    Raises:
        StorageError: it is a link, or no file.
    """
    opened = os.open(path, _READ)
    try:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"{path.name} is not a file")
        if status.st_size > SMALL:
            return None
        with open(opened, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(opened)


def _local(error: OSError, path: Path) -> OscarError:
    """A failure of this machine's disk as our error."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull("the disk is full; the file could not be stored")
    return StorageError(f"{path.name}: {error.strerror or error}")
