"""The store of a copy's origin: results go there by addresses that the origin signs, one for each file, for minutes.

Opened by `supervisor.providers` for a provider whose endpoint is an origin's `…/system/federation/<service>/presign`;
its secret key is the copy's key, which opens nothing but that. So no member ever has keys of somebody's store. Inputs
come by an address that is in the delegated event (`fetch`).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from oscar.errors import Forbidden, ObjectNotFound, OscarError, StorageError, StorageFull, Unsupported
from oscar.model.producer import Producer
from oscar.model.trace import Place
from oscar.objects.addresses import is_public, resolve
from oscar.objects.base import Found
from oscar.objects.local_files import CHUNK, Source, source, whole

_PRESIGN = re.compile(r"/system/federation/[^/]+/presign/?")
_ASKED = 20.0
_STALL = 60.0
KEY_HEADER = "X-Federation-Key"
"""The header in which a copy shows its key."""


def is_origin(endpoint: str) -> bool:
    """Whether a provider's endpoint is that of an origin, and no S3 server's."""
    return bool(_PRESIGN.fullmatch(urlsplit(endpoint).path))


@dataclass(frozen=True, slots=True)
class Signed:
    """An address for one file; none when the origin has it from this job."""

    url: str
    headers: Mapping[str, str]
    etag: str


class OriginStore:
    """Results of one copy on their way to its origin. Implements `oscar.objects.base.FileStore` as far as that needs.

    Args:
        endpoint: where addresses are asked for.
        key: the copy's.
        verify: whether TLS certificates are checked.
    """

    def __init__(self, endpoint: str, key: str, *, verify: bool = True) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._key = key
        self._verify = verify
        self._client: httpx2.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"OriginStore({self._endpoint})"

    async def close(self) -> None:
        """End its connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def download(self, bucket: str, key: str, path: Path) -> Found:  # noqa: ARG002
        """Refused: a copy reads inputs by the address in the event, and nothing else of its origin."""
        raise Forbidden(
            f"{bucket}/{key} lies in the store of the service's origin, which gave no address for it",
            fix="have it delegated by its origin again",
        )

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
        trace = Place.kept(producer.trace) if producer else None
        with source(path) as opened:
            signed = await self._ask(
                {
                    "operation": "upload",
                    "bucket": bucket,
                    "key": key,
                    "content_type": content_type or "application/octet-stream",
                    "hops": producer.hops if producer else 0,
                    "job": producer.job_id if producer else "",
                },
                trace,
            )
            if signed.url:
                await _check(self._endpoint, signed.url)
            etag = await self._put(signed, opened, trace) if signed.url else signed.etag
        return Found(key=key, size=opened.size, etag=etag, modified=int(time.time() * 1000))

    async def stat(self, bucket: str, key: str) -> Found:
        """Refused, as `download`."""
        raise Unsupported(f"{bucket}/{key} is on the service's origin, where a copy only writes")

    def list(self, bucket: str, prefix: str = "", *, start_after: str = "") -> AsyncIterator[Found]:  # noqa: ARG002
        """Refused, as `download`."""
        raise Unsupported(f"{bucket} is on the service's origin, where a copy only writes")

    async def delete(self, bucket: str, key: str) -> None:
        """Refused, as `download`."""
        raise Unsupported(f"{bucket}/{key} is on the service's origin, where a copy only writes")

    async def ensure_bucket(self, bucket: str) -> None:
        """The origin has made the buckets of its service."""

    async def _ask(self, what: dict[str, Any], trace: Place | None) -> Signed:
        headers = {KEY_HEADER: self._key} | (trace.headers() if trace else {})
        try:
            answer = await self._http().post(self._endpoint, json=what, headers=headers, timeout=_ASKED)
        except httpx2.TransportError as error:
            raise StorageError(f"the service's origin {self._endpoint} can't be reached: {error}") from error
        if answer.status_code != httpx2.codes.OK:
            raise _refusal(f"the service's origin {self._endpoint}", answer.status_code, answer.text)
        try:
            said = answer.json()
            return Signed(str(said["url"]), dict(said.get("headers") or {}), str(said.get("etag") or ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StorageError(f"the service's origin {self._endpoint} gave no address") from None

    async def _put(self, signed: Signed, source: Source, trace: Place | None) -> str:
        headers = (trace.headers() if trace else {}) | {**signed.headers, "Content-Length": str(source.size)}
        try:
            answer = await self._http().put(signed.url, content=source.pieces(), headers=headers)
        except httpx2.TransportError as error:
            raise StorageError(f"the store of the service's origin can't be reached: {error}") from error
        if answer.is_error:
            raise _refusal("the store of the service's origin", answer.status_code, answer.text)
        return str(answer.headers.get("etag", "")).strip('"')

    def _http(self) -> httpx2.AsyncClient:
        if self._client is None:
            timeout = httpx2.Timeout(_STALL, connect=10.0)
            self._client = httpx2.AsyncClient(verify=self._verify, timeout=timeout, follow_redirects=False)
        return self._client


async def fetch(url: str, key: str, path: Path) -> Found:
    """Stream what lies at a signed address into a new file; on error the file is removed. Memory stays flat.

    Args:
        url: the address, which `core.jobs` has taken only if its host may be reached.
        key: the object's.
        path: the file.

    Raises:
        ObjectNotFound, StorageError: it can't be had. StorageFull: this machine's disk is full.
    """
    host = urlsplit(url).hostname
    timeout = httpx2.Timeout(_STALL, connect=10.0)
    try:
        async with (
            httpx2.AsyncClient(timeout=timeout, follow_redirects=False) as http,
            http.stream("GET", url) as answer,
        ):
            if answer.status_code != httpx2.codes.OK:
                text = (await answer.aread()).decode(errors="replace")
                raise _refusal(f"{key} at {host}", answer.status_code, text)
            with whole(path) as partial:
                size = await _write(partial, answer)
                expected = answer.headers.get("content-length")
                if expected is not None and int(expected) != size:
                    raise StorageError(f"{key} at {host} has {expected} bytes, but {size} came")
            etag = str(answer.headers.get("etag", "")).strip('"')
    except httpx2.HTTPError as error:
        raise StorageError(f"{key} at {host} can't be had: {type(error).__name__} {error}") from error
    return Found(key=key, size=size, etag=etag, modified=0)


async def _write(path: Path, answer: httpx2.Response) -> int:
    size = 0
    with path.open("xb") as file:
        async for piece in answer.aiter_bytes(CHUNK):
            size += await asyncio.to_thread(file.write, piece)
    return size


def _refusal(who: str, status: int, text: str) -> OscarError:
    words = f"{who} answered {status}: {text.strip()[:300]}"
    match status:
        case 404:
            return ObjectNotFound(words)
        case 507:
            return StorageFull(words)
    return StorageError(words)


async def _check(endpoint: str, url: str) -> None:
    """Refuse an address in our own network that somebody out in the world names."""
    if await _public(endpoint) and not await _public(url):
        raise StorageError(f"{urlsplit(endpoint).hostname} names a private address for results")


async def _public(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = await resolve(parts.hostname or "", port)
    return bool(found) and all(is_public(address) for address in found)
