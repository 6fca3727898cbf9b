"""The S3 protocol spoken by hand, where obstore falls short: buckets, prefixes, odd keys, presigned headers.

Called by `objects.s3` only, which says why. Calls `objects.s3_signing`, and the XML reader of the built-in
server. Source: the S3 API reference.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from oscar.errors import NoAnswer, StorageError
from oscar.objects import sigv4
from oscar.objects.embedded import xml
from oscar.objects.embedded.faults import S3Error
from oscar.objects.reach import Reach, client
from oscar.objects.s3_signing import Site, sign_headers
from oscar.objects.s3_words import refusal

TRIES = 4
"""How often a call is made before its failure counts; all our calls may be repeated."""
FIRST_PAUSE = 0.2
CHUNK = 1024 * 1024
MAX_DOCUMENT = 16 * 1024 * 1024

_AGAIN = frozenset({429, 500, 502, 503, 504})


class S3Calls:
    """Signed requests to one store, repeated when the trouble looks transient."""

    def __init__(self, site: Site, reach: Reach | None = None) -> None:
        self.site = site
        timeout = httpx2.Timeout(60.0, connect=10.0)
        # Reading the trusted certificates takes 10 ms, which a plain connection can spare.
        verify = site.verify and site.endpoint.startswith("https:")
        self._client = client(reach, verify=verify, timeout=timeout)

    async def close(self) -> None:
        """End the connections."""
        await self._client.aclose()

    async def call(
        self,
        method: str,
        bucket: str,
        key: str = "",
        *,
        query: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        ok: frozenset[int] = frozenset({200, 204}),
    ) -> httpx2.Response:
        """Make a call with a small body and read its answer.

        Raises:
            BucketNotFound, ObjectNotFound, Forbidden, StorageError: the status is none of `ok`.
        """

        async def once() -> httpx2.Response:
            digest = hashlib.sha256(body).hexdigest()
            signed = sign_headers(
                self.site, method, bucket, key, query=query, headers=headers or {}, digest=digest
            )
            request = self._request(method, bucket, key, query, signed, body)
            return await self._client.send(request)

        response = await self._repeat(once)
        if response.status_code not in ok:
            raise refusal(self.site.host, response.status_code, response.text, bucket, key)
        return response

    @asynccontextmanager
    async def stream(self, bucket: str, key: str) -> AsyncIterator[httpx2.Response]:
        """A GET whose body is read piece by piece; its failures while reading are the caller's.

        Raises:
            BucketNotFound, ObjectNotFound, Forbidden, StorageError: there is no such body.
        """

        async def once() -> httpx2.Response:
            # Compressed bodies would be inflated on the way; the object is wanted as it is stored.
            plain = {"accept-encoding": "identity"}
            headers = sign_headers(self.site, "GET", bucket, key, headers=plain)
            request = self._request("GET", bucket, key, (), headers, b"")
            return await self._client.send(request, stream=True)

        response = await self._repeat(once)
        try:
            if response.status_code != 200:  # noqa: PLR2004 - a GET without conditions has no other success
                text = (await response.aread()).decode(errors="replace")
                raise refusal(self.site.host, response.status_code, text, bucket, key)
            yield response
        finally:
            await response.aclose()

    async def put_file(
        self, bucket: str, key: str, path: Path, size: int, headers: Mapping[str, str]
    ) -> httpx2.Response:
        """PUT a file in one request; memory stays flat.

        Raises:
            BucketNotFound, Forbidden, StorageError: it was not stored.
        """

        async def once() -> httpx2.Response:
            signed = sign_headers(
                self.site,
                "PUT",
                bucket,
                key,
                headers={**headers, "content-length": str(size)},
                digest=sigv4.UNSIGNED,
            )
            request = self._request("PUT", bucket, key, (), signed, _pieces(path))
            return await self._client.send(request)

        response = await self._repeat(once)
        if response.status_code != 200:  # noqa: PLR2004 - the one success of PutObject
            raise refusal(self.site.host, response.status_code, response.text, bucket, key)
        return response

    def document(self, response: httpx2.Response, root: str) -> xml.Node:
        """The XML of an answer.

        Raises:
            StorageError: it is none, or has another root.
        """
        try:
            return xml.parse(response.content, root)
        except S3Error as error:
            raise StorageError(
                f"{self.site.host} answered with something else than {root}: {error}"
            ) from error

    def _request(
        self,
        method: str,
        bucket: str,
        key: str,
        query: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        body: bytes | AsyncIterator[bytes],
    ) -> httpx2.Request:
        origin, path = self.site.target(bucket, key)
        target = f"{path}?{sigv4.canonical_query(list(query))}" if query else path
        # The exact target, because URLs lose "." and ".." segments, which keys may have.
        return self._client.build_request(
            method, origin, headers=dict(headers), content=body, extensions={"target": target.encode()}
        )

    async def _repeat(self, once: Callable[[], Awaitable[httpx2.Response]]) -> httpx2.Response:
        pause = FIRST_PAUSE
        for left in reversed(range(TRIES)):
            try:
                response = await once()
                if response.status_code not in _AGAIN or not left:
                    return response
                await response.aclose()
            except httpx2.TransportError as error:
                if not left:
                    words = str(error) or type(error).__name__
                    raise NoAnswer(f"no answer from {self.site.host}: {words}") from error
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
            pause *= 2
        raise AssertionError("unreachable")


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while piece := await asyncio.to_thread(file.read, CHUNK):
            yield piece
