"""Any S3 server as an `ObjectStore`: Amazon's, a MinIO, the built-in server of another cluster.

Called by `supervisor.providers` and `core.storage`. Bodies travel by obstore, whose Rust moves big files fast
and flat; what it can't say goes by `objects.s3_calls`: it makes no buckets, lists by whole folders only, tells a
missing bucket from a missing object by luck, and can't name keys such as `a//b` (it even strips slashes).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import stat
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as Bucket

from oscar.errors import Forbidden, NoAnswer, NotFound, ObjectNotFound, OscarError, StorageError, StorageFull
from oscar.model.producer import PRODUCER_METADATA, Producer
from oscar.objects.base import Found
from oscar.objects.s3_signing import DEFAULT_REGION, Site, presign
from oscar.objects.s3_words import refusal

if TYPE_CHECKING:
    import httpx2
    from obstore import ObjectMeta

    from oscar.objects.gate import Gate
    from oscar.objects.s3_calls import S3Calls

AMAZON = "https://s3.{region}.amazonaws.com"

PIECE = 8 * 1024 * 1024
"""Bytes of a part, and of a read: with `PARALLEL` this bounds the memory of a transfer."""
PARALLEL = 4
PARTS = 9_000
"""Parts of one upload at most; S3 takes 10,000."""
STALL = timedelta(minutes=5)
"""How long a connection may be silent; a slow line needs minutes for the parts that are under way."""

_METADATA = "x-amz-meta-"
_STATUS = re.compile(r"status code: (\d{3})[^:]*: (.*)", re.DOTALL)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_QUOTED = re.compile(r'"([^"\n]{1,200})"')
_NESTED = re.compile(r"([A-Z]\w+)\(\s*([A-Z]\w+)")


def plain(key: str) -> bool:
    """Whether obstore can name the key: no segment is empty, `.` or `..`, and no control characters."""
    return all(part not in {"", ".", ".."} for part in key.split("/")) and not re.search(
        r"[\x00-\x1f\x7f]", key
    )


class S3Store:
    """One S3 server with one key pair. Implements `oscar.objects.base.ObjectStore`.

    Args:
        endpoint: its address with the scheme; empty for Amazon's server of the region.
        access_key: the key's name.
        secret_key: the key.
        region: us-east-1 when empty.
        verify: whether its TLS certificate is checked.
        virtual_host: whether buckets are part of the host's name, as few servers demand.
        gate: the way to what may be connected to; None for any way to anything.

    Raises:
        InvalidField: the address is none.
    """

    def __init__(
        self,
        endpoint: str,
        access_key: str,
        secret_key: str,
        region: str = "",
        *,
        verify: bool = True,
        virtual_host: bool = False,
        gate: Gate | None = None,
    ) -> None:
        region = region or DEFAULT_REGION
        self._site = Site(
            endpoint=endpoint or AMAZON.format(region=region),
            access_key=access_key,
            secret_key=secret_key,
            region=region,
            verify=verify,
            virtual_host=virtual_host,
        )
        self._gate = gate
        self._opened: S3Calls | None = None
        self._buckets: dict[str, Bucket] = {}

    def __repr__(self) -> str:
        return f"S3Store({self._site.host})"

    async def close(self) -> None:
        """End its connections."""
        if self._opened is not None:
            await self._opened.close()
        self._buckets.clear()

    async def download(self, bucket: str, key: str, path: Path) -> Found:
        """Stream the object into a new file; on error the file is removed. Memory stays flat."""
        partial = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            found = await self._fetch(bucket, key, partial)
            size = partial.stat().st_size
            if size != found.size:
                raise StorageError(f"{bucket}/{key} has {found.size} bytes, but {size} came")
            partial.replace(path)
        except OSError as error:
            raise _local(error, path) from error
        finally:
            partial.unlink(missing_ok=True)
        return found

    async def upload(
        self,
        bucket: str,
        key: str,
        path: Path,
        *,
        producer: Producer | None = None,
        content_type: str | None = None,
    ) -> Found:
        """Store the file under the key, atomically. Memory stays flat. A link at the path's end is refused."""
        attributes = {"Content-Type": content_type or "application/octet-stream"}
        if producer is not None:
            there = await self._written_by(producer, bucket, key)
            if there is not None:
                return there
            attributes |= producer.metadata()
        try:
            opened = await asyncio.to_thread(os.open, path, _READ)
        except OSError as error:
            raise _local(error, path) from error
        try:
            status = os.fstat(opened)
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{path.name} is not a file")
            put = self._put if self._by_obstore(key) else self._put_odd
            etag = await put(bucket, key, Path(f"/dev/fd/{opened}"), status.st_size, attributes)
        except OSError as error:
            raise _local(error, path) from error
        finally:
            os.close(opened)
        modified = int(time.time() * 1000)
        return Found(key=key, size=status.st_size, etag=etag.strip('"'), modified=modified)

    async def _written_by(self, producer: Producer, bucket: str, key: str) -> Found | None:
        """What that job has stored under the key before; None when it hasn't, or when keys may only write."""
        try:
            found, metadata = await self._described(bucket, key)
        except (NotFound, Forbidden):
            return None
        return found if metadata.get(PRODUCER_METADATA) == producer.job_id else None

    async def _described(self, bucket: str, key: str) -> tuple[Found, Mapping[str, Any]]:
        if not self._by_obstore(key):
            return await self.metadata(bucket, key)
        with self._translated(bucket, key):
            got = await obstore.get_async(await self._bucket(bucket), key, options={"head": True})
            return _known(key, got.meta), got.attributes

    async def metadata(self, bucket: str, key: str) -> tuple[Found, dict[str, str]]:
        """The object with its user metadata, names in lower case.

        Raises:
            ObjectNotFound: also when there is no such bucket.
        """
        response = await self._calls.call("HEAD", bucket, key)
        named = ((name.lower(), value) for name, value in response.headers.items())
        metadata = {
            name.removeprefix(_METADATA): value for name, value in named if name.startswith(_METADATA)
        }
        return _found(key, response), metadata

    async def stat(self, bucket: str, key: str) -> Found:
        """The object's size and tag."""
        try:
            response = await self._calls.call("HEAD", bucket, key)
        except ObjectNotFound:
            # The answer to HEAD has no body that would say which of the two is missing.
            await self._calls.call("HEAD", bucket)
            raise
        return _found(key, response)

    async def list(self, bucket: str, prefix: str = "", *, start_after: str = "") -> AsyncIterator[Found]:
        """All objects whose key starts with prefix, in key order."""
        query = [("list-type", "2"), ("encoding-type", "url"), ("prefix", prefix)]
        if start_after:
            query.append(("start-after", start_after))
        token = ""
        while True:
            page = [*query, ("continuation-token", token)] if token else query
            response = await self._calls.call("GET", bucket, query=page)
            answer = self._calls.document(response, "ListBucketResult")
            encoded = answer.value("EncodingType") == "url"
            for entry in answer.all("Contents"):
                key = entry.value("Key") or ""
                yield Found(
                    key=unquote_plus(key) if encoded else key,
                    size=int(entry.value("Size") or 0),
                    etag=(entry.value("ETag") or "").strip('"'),
                    modified=_iso_ms(entry.value("LastModified")),
                )
            token = answer.value("NextContinuationToken") or ""
            if answer.value("IsTruncated") != "true" or not token:
                return

    async def delete(self, bucket: str, key: str) -> None:
        """Remove the object; silent if absent."""
        with contextlib.suppress(ObjectNotFound):
            await self._calls.call("DELETE", bucket, key)

    async def ensure_bucket(self, bucket: str) -> None:
        """Create the bucket if it is absent and that is allowed; silent if present."""
        # 403 says that it exists: keys for single folders often can't ask for more.
        head = await self._calls.call("HEAD", bucket, ok=frozenset({200, 403, 404}))
        if head.status_code == 404:  # noqa: PLR2004 - no such bucket
            created = await self._calls.call("PUT", bucket, body=self._location(), ok=frozenset({200, 409}))
            if created.status_code == 409 and "BucketAlreadyOwnedByYou" not in created.text:  # noqa: PLR2004
                raise refusal(self._site.host, 403, created.text, bucket)

    async def presign(
        self,
        bucket: str,
        key: str,
        *,
        method: str,
        expires: int,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """A URL that allows `method` (GET or PUT) on the key for `expires` seconds (at most 7 days)."""
        return presign(self._site, method, bucket, key, expires=expires, headers=headers)

    def _location(self) -> bytes:
        # Amazon refuses its default region by name; all others must be named there. Others don't look.
        if self._site.region == DEFAULT_REGION:
            return b""
        return (
            f"<CreateBucketConfiguration><LocationConstraint>{self._site.region}"
            "</LocationConstraint></CreateBucketConfiguration>"
        ).encode()

    async def _fetch(self, bucket: str, key: str, path: Path) -> Found:
        if not self._by_obstore(key):
            return await self._fetch_odd(bucket, key, path)
        with self._translated(bucket, key):
            got = await obstore.get_async(await self._bucket(bucket), key)
            meta = got.meta
            with path.open("xb") as file:
                async for piece in got.stream(min_chunk_size=PIECE):
                    await asyncio.to_thread(file.write, piece)
        return _known(key, meta)

    async def _fetch_odd(self, bucket: str, key: str, path: Path) -> Found:
        import httpx2  # as late as the rest of it, see `_calls`

        async with self._calls.stream(bucket, key) as response:
            try:
                with path.open("xb") as file:
                    async for piece in response.aiter_bytes(PIECE):
                        await asyncio.to_thread(file.write, piece)
            except httpx2.TransportError as error:
                raise StorageError(f"the transfer of {bucket}/{key} broke off: {error}") from error
            return _found(key, response)

    async def _put(self, bucket: str, key: str, path: Path, size: int, attributes: dict[str, str]) -> str:
        with self._translated(bucket, key):
            stored = await obstore.put_async(
                await self._bucket(bucket),
                key,
                path,
                attributes=attributes,
                chunk_size=max(PIECE, -(-size // PARTS)),
                max_concurrency=PARALLEL,
            )
        return stored["e_tag"] or ""

    async def _put_odd(self, bucket: str, key: str, path: Path, size: int, attributes: dict[str, str]) -> str:
        headers = {
            name.lower() if name == "Content-Type" else f"x-amz-meta-{name}": value
            for name, value in attributes.items()
        }
        response = await self._calls.put_file(bucket, key, path, size, headers)
        return response.headers.get("etag", "")

    @property
    def _calls(self) -> S3Calls:
        if self._opened is None:
            # Its library takes long to load, and most stores are never asked by hand.
            from oscar.objects.s3_calls import S3Calls

            self._opened = S3Calls(self._site, self._gate.reach if self._gate else None)
        return self._opened

    def _by_obstore(self, key: str) -> bool:
        # Only TLS goes through the gate; the rest is for the other client, up to 5 GiB a file.
        return plain(key) and (self._gate is None or self._site.endpoint.startswith("https:"))

    async def _bucket(self, bucket: str) -> Bucket:
        found = self._buckets.get(bucket)
        if found is None:
            site = self._site
            # Of endpoint and virtual host obstore wants the bucket's own address.
            endpoint = site.bucket_endpoint(bucket) if site.virtual_host else site.endpoint
            found = self._buckets[bucket] = Bucket(
                bucket,
                config={
                    "endpoint": endpoint,
                    # Said twice: a variable of this process's environment would win over the first.
                    "aws_endpoint_url_s3": endpoint,
                    "region": site.region,
                    "virtual_hosted_style_request": site.virtual_host,
                    "skip_signature": False,
                    # TLS protects the body already; without it the signature does.
                    "unsigned_payload": site.endpoint.startswith("https:"),
                },
                client_options={
                    "allow_http": site.endpoint.startswith("http:"),
                    "allow_invalid_certificates": not site.verify,
                    "connect_timeout": "10s",
                    # The limit for a whole transfer, which may take hours; a silent line is what we look for.
                    "timeout": "7d",
                    "read_timeout": STALL,
                    **({"proxy_url": await self._gate.url()} if self._gate else {}),
                },
                retry_config={
                    "max_retries": 4,
                    "retry_timeout": timedelta(minutes=2),
                    "backoff": {
                        "init_backoff": timedelta(milliseconds=200),
                        "max_backoff": timedelta(seconds=5),
                    },
                },
                credential_provider=self._credential,
            )
        return found

    def _credential(self) -> Any:
        # By a function and not by config, so that a session token in the environment isn't added.
        return {
            "access_key_id": self._site.access_key,
            "secret_access_key": self._site.secret_key,
            "token": None,
            "expires_at": None,
        }

    @contextlib.contextmanager
    def _translated(self, bucket: str, key: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and error.errno is not None:
                raise  # of the local file
            raise self._error(str(error), bucket, key) from None

    def _error(self, text: str, bucket: str, key: str) -> OscarError:
        """A message of obstore as our error: the store's words, or the reason why it can't be reached."""
        said, _, debug = text.partition("Debug source:")
        if answered := _STATUS.search(said):
            return refusal(self._site.host, int(answered[1]), answered[2], bucket, key)
        # The innermost error stands last: quoted in the operating system's words, or as nested names (TLS).
        inner = debug.partition("inner:")[2]
        reasons = _QUOTED.findall(inner) or [" ".join(names) for names in _NESTED.findall(inner)]
        why = reasons[-1] if reasons else said.strip()
        return NoAnswer(f"no answer from {self._site.host}: {why}")


def _known(key: str, meta: ObjectMeta) -> Found:
    return Found(
        key=key,
        size=meta["size"],
        etag=(meta["e_tag"] or "").strip('"'),
        modified=int(meta["last_modified"].timestamp() * 1000),
    )


def _found(key: str, response: httpx2.Response) -> Found:
    headers = response.headers
    modified = headers.get("last-modified")
    return Found(
        key=key,
        size=int(headers.get("content-length", 0)),
        etag=headers.get("etag", "").strip('"'),
        modified=int(parsedate_to_datetime(modified).timestamp() * 1000) if modified else 0,
    )


def _iso_ms(text: str | None) -> int:
    if not text:
        return 0
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _local(error: OSError, path: Path) -> OscarError:
    """A failure of this machine's disk as our error."""
    if error.errno == errno.ENOSPC:
        return StorageFull("the disk is full; the file could not be stored")
    return StorageError(f"{path.name}: {error.strerror or error}")
