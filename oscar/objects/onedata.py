"""A space of Onedata as a `FileStore`, by the CDMI interface of a Oneprovider.

Called by `supervisor.providers`. Buckets are spaces. Content travels as it is, by requests without CDMI's version
header; folders, renaming and attributes need that header and JSON. A file is written under a name of its own beside
its place and then moved. Source: Onedata's user guide, "CDMI"; CDMI 1.1.1.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from oscar.errors import BucketNotFound, ObjectNotFound, OscarError, StorageError
from oscar.model.producer import Producer
from oscar.model.record import is_partial
from oscar.objects.base import Found
from oscar.objects.local_files import Source, source, whole
from oscar.objects.reach import Reach
from oscar.objects.web import Web
from oscar.objects.web_words import place
from oscar.objects.webdav import on_its_way

VERSION = {"x-cdmi-specification-version": "1.1.1"}
_FOLDER = {**VERSION, "content-type": "application/cdmi-container", "accept": "application/cdmi-container"}
_FILE = {**VERSION, "content-type": "application/cdmi-object", "accept": "application/cdmi-object"}
_WRITTEN = frozenset({200, 201, 202, 204})
_MISSING = frozenset({400, 404})
"""Answers to a PUT whose folder is missing: Onedata's errors of POSIX, such as `enoent`, have status 400."""
_TAKEN = frozenset({400, 409})

Parts = tuple[str, ...]


class OnedataStore:
    """One Oneprovider with one access token. Implements `oscar.objects.base.FileStore`.

    Args:
        url: the Oneprovider's address with the scheme.
        token: access token.
        verify: whether its TLS certificate is checked.
        reach: what may be connected to; None for anything.
    """

    def __init__(self, url: str, token: str, *, verify: bool = True, reach: Reach | None = None) -> None:
        async def credentials() -> Mapping[str, str]:
            return {"x-auth-token": token}

        self._url = url.rstrip("/")
        self._web = Web(credentials, secrets=[token], verify=verify, reach=reach)

    def __repr__(self) -> str:
        return f"OnedataStore({urlsplit(self._url).netloc})"

    async def close(self) -> None:
        """End its connections."""
        await self._web.close()

    async def download(self, bucket: str, key: str, path: Path) -> Found:
        """Stream the file into a new file; on error that is removed. Memory stays flat."""
        with whole(path) as partial:
            await self._web.fetch(self._place(_parts(bucket, key)), partial)
            return Found(key, partial.stat().st_size, "", 0)

    async def upload(
        self,
        bucket: str,
        key: str,
        path: Path,
        *,
        producer: Producer | None = None,
        content_type: str | None = None,
    ) -> Found:
        """Store the file under the key, with the folders on the way. Memory stays flat."""
        parts = _parts(bucket, key)
        partial = (*parts[:-1], on_its_way("/".join(parts), producer))
        # Never CDMI's own types: the body would be read as JSON.
        headers = {"content-type": content_type or "application/octet-stream"}
        with source(path) as opened:
            try:
                await self._put(partial, opened, headers)
                await self._move(partial, parts, opened.size)
            except BaseException:
                await self._discard(partial)
                raise
        return await self._found(parts, key)

    async def stat(self, bucket: str, key: str) -> Found:
        """The file's size and time; it has no tag."""
        return await self._found(_parts(bucket, key), key)

    async def list(self, bucket: str, prefix: str = "", *, start_after: str = "") -> AsyncIterator[Found]:
        """All files whose key starts with prefix, in key order; one request for each folder and file."""
        below = tuple(part for part in prefix.split("/")[:-1] if part)
        try:
            async for found in self._walk(bucket, below, prefix, start_after):
                yield found
        except ObjectNotFound as error:
            if not below:
                raise BucketNotFound(f"there is no space {bucket} at {urlsplit(self._url).netloc}") from error

    async def delete(self, bucket: str, key: str) -> None:
        """Remove the file; silent if absent."""
        await self._web.call("DELETE", self._place(_parts(bucket, key)), headers=VERSION, ok=_WRITTEN | {404})

    async def ensure_bucket(self, bucket: str) -> None:
        """Spaces are made in Onezone, not here; this only looks."""
        try:
            await self._web.call("GET", f"{self._place((bucket,))}/?objectName", headers=VERSION)
        except ObjectNotFound as error:
            raise BucketNotFound(f"there is no space {bucket} at {urlsplit(self._url).netloc}") from error

    def _place(self, parts: Parts) -> str:
        return f"{self._url}/cdmi/" + "/".join(quote(part, safe="") for part in parts)

    async def _put(self, parts: Parts, opened: Source, headers: Mapping[str, str]) -> None:
        url = self._place(parts)
        answer = await self._web.send(url, opened, headers, ok=_WRITTEN | _MISSING)
        if answer.status in _MISSING and len(parts) > 2:  # noqa: PLR2004 - space and name: no folder between
            await self._make_folder(parts[:-1])
            answer = await self._web.send(url, opened, headers, ok=_WRITTEN)
        if answer.status not in _WRITTEN:
            raise self._web.refusal("PUT", url, answer)

    async def _make_folder(self, parts: Parts) -> None:
        """Make a folder and those above it, the space excepted."""
        url = f"{self._place(parts)}/"
        answer = await self._web.call("PUT", url, headers=_FOLDER, body=b"{}", ok=_WRITTEN | {400, 404, 409})
        if answer.status in _WRITTEN or await self._is_folder(parts):
            return
        if len(parts) > 2:  # noqa: PLR2004 - space and first folder: nothing else to make
            await self._make_folder(parts[:-1])
            answer = await self._web.call("PUT", url, headers=_FOLDER, body=b"{}", ok=_WRITTEN | {400, 409})
            if answer.status in _WRITTEN or await self._is_folder(parts):
                return
        raise self._web.refusal("PUT", url, answer)

    async def _is_folder(self, parts: Parts) -> bool:
        answer = await self._web.call(
            "GET", f"{self._place(parts)}/?objectName", headers=VERSION, ok={200, 400, 404}
        )
        return answer.status == 200  # noqa: PLR2004 - there

    async def _move(self, partial: Parts, parts: Parts, size: int) -> None:
        url = self._place(parts)
        body = json.dumps({"move": "/" + "/".join(partial)}).encode()

        async def move() -> int:
            return (
                await self._web.call("PUT", url, headers=_FILE, body=body, ok=_WRITTEN | {400, 404, 409})
            ).status

        status = await move()
        if status in _TAKEN and await self._exists(parts):
            await self._web.call("DELETE", url, headers=VERSION, ok=_WRITTEN | {404})
            status = await move()
        # A repeated request finds nothing to move when the first one was carried out and its answer lost.
        if status not in _WRITTEN and (
            await self._exists(partial)
            or not await self._exists(parts)
            or (await self._found(parts, "")).size != size
        ):
            raise StorageError(
                f"{self._web.scrub(place(url))}: moving it to its place was answered with {status}"
            )

    async def _exists(self, parts: Parts) -> bool:
        try:
            await self._found(parts, "")
        except ObjectNotFound:
            return False
        return True

    async def _discard(self, parts: Parts) -> None:
        """Remove what is half-made. Its failure must not hide the one that led here."""
        try:
            await asyncio.shield(
                self._web.call(
                    "DELETE", self._place(parts), headers=VERSION, ok=_WRITTEN | {400, 404}, again=False
                )
            )
        except OscarError:
            return

    async def _found(self, parts: Parts, key: str) -> Found:
        url = f"{self._place(parts)}?metadata"
        known = (await self._json(url)).get("metadata")
        if not isinstance(known, dict):
            raise StorageError(f"{self._web.scrub(place(url))}: the answer has no metadata")
        size = str(known.get("cdmi_size", ""))
        return Found(key, int(size) if size.isdigit() else 0, "", _milliseconds(known.get("cdmi_mtime")))

    async def _json(self, url: str) -> dict[str, Any]:
        answer = await self._web.call("GET", url, headers=VERSION)
        try:
            value = json.loads(answer.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise StorageError(f"{self._web.scrub(place(url))}: the answer is no JSON object")
        return value

    async def _walk(self, space: str, below: Parts, prefix: str, start_after: str) -> AsyncIterator[Found]:
        listed = (await self._json(f"{self._place((space, *below))}/?children")).get("children")
        # Folders end in a slash, so that they sort by their keys as they are.
        for name in sorted(child for child in listed or [] if isinstance(child, str)):
            key = "/".join((*below, name))
            if name.endswith("/"):
                if key.startswith(prefix[: len(key)]) and (key > start_after or start_after.startswith(key)):
                    async for found in self._walk(space, (*below, name.rstrip("/")), prefix, start_after):
                        yield found
            elif key.startswith(prefix) and key > start_after and not is_partial(name):
                yield await self._found((space, *below, name), key)


def _parts(bucket: str, key: str) -> Parts:
    parts = (bucket, *key.split("/"))
    if any(part in {"", ".", ".."} or "\x00" in part for part in parts):
        raise StorageError(f"{bucket}/{key} can't be the path of a file in a space")
    return parts


def _milliseconds(text: Any) -> int:
    try:
        return int(datetime.fromisoformat(str(text)).timestamp() * 1000)
    except ValueError:
        return 0
