"""A WebDAV server, such as dCache, as a `FileStore`.

Called by `supervisor.providers`, and by `objects.rucio` for storage that speaks it. Buckets are the first folder
below the server's address; an empty bucket is the address itself. A file is written under a name of its own beside
its place and then renamed, so that readers see it whole or not at all. Source: RFC 4918.
"""

from __future__ import annotations

import asyncio
import base64
import re
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

from oscar.errors import InvalidField, ObjectNotFound, OscarError, StorageError
from oscar.model.producer import Producer
from oscar.model.record import is_partial, partial_name
from oscar.objects import webdav_xml
from oscar.objects.base import Found
from oscar.objects.local_files import Source, source, whole
from oscar.objects.reach import Reach
from oscar.objects.web import Credentials, Web, nobody
from oscar.objects.web_words import place
from oscar.objects.webdav_xml import Entry

_WRITTEN = frozenset({200, 201, 202, 204})
_MISSING = frozenset({404, 409})
"""What servers answer when a folder on the way is missing: RFC 4918 says 409."""
_THERE = frozenset({301, 405})
"""What servers answer when a folder that is to be made exists."""
_REFUSED = frozenset({403})
"""What Apache answers also when another makes the folder at the same moment."""
_UNABLE = frozenset({403, 405, 501})
"""What servers answer that don't rename, or don't let this user do it."""
_TAKEN = frozenset({403, 409, 412})
"""What servers answer that don't replace a file by renaming; some dCache doors are set so."""


def on_its_way(key: str, producer: Producer | None) -> str:
    """The name of a file while it is written.

    The same for the same job and key, so that a repeated stage-out finds what a crash left.
    """
    return partial_name(f"{producer.job_id}\n{key}" if producer else uuid.uuid4().hex)


def address(text: str, field: str) -> str:
    """The address of a server as a URL: `https://` unless another scheme is written, no slash at its end.

    Raises:
        InvalidField: it is none, or carries a user.
    """
    url = text if "://" in text else f"https://{text}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or re.search(r"[\s\x00-\x1f]", url):
        raise InvalidField(
            f"{field} is no address of a server",
            field=field,
            fix="Write its name, perhaps with a port and a folder, such as dcache.example.org:2880.",
        )
    if "@" in parts.netloc:
        # Not repeated in the message: it may be a password.
        raise InvalidField(
            f"{field} contains a user", field=field, fix="Write user and password into their own fields."
        )
    return url.rstrip("/")


def basic(login: str, password: str) -> Credentials:
    """Credentials of HTTP's basic scheme."""
    token = base64.b64encode(f"{login}:{password}".encode()).decode()
    return _constant(f"Basic {token}")


def bearer(token: str) -> Credentials:
    """Credentials of a token: a macaroon of dCache, or an access token."""
    return _constant(f"Bearer {token}")


def _constant(value: str) -> Credentials:
    async def headers() -> Mapping[str, str]:
        return {"authorization": value}

    return headers


class WebDavStore:
    """One WebDAV server with the rights of one user. Implements `oscar.objects.base.FileStore`.

    Args:
        url: its address with the scheme, perhaps with a folder.
        credentials: see `basic` and `bearer`.
        secrets: texts that no error may show.
        verify: whether its TLS certificate is checked.
        trusted: other hosts that get the credentials when the server redirects there.
        reach: what may be connected to; None for anything.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials = nobody,
        *,
        secrets: Collection[str] = (),
        verify: bool = True,
        trusted: Collection[str] = (),
        reach: Reach | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._web = Web(credentials, secrets=secrets, verify=verify, trusted=trusted, reach=reach)

    def __repr__(self) -> str:
        return f"WebDavStore({urlsplit(self._url).netloc})"

    async def close(self) -> None:
        """End its connections."""
        await self._web.close()

    async def download(self, bucket: str, key: str, path: Path) -> Found:
        """Stream the file into a new file; on error that is removed. Memory stays flat."""
        with whole(path) as partial:
            headers = await self._web.fetch(self._place(_parts(bucket, key)), partial)
            size = partial.stat().st_size
        return Found(key, size, _tag(headers), _time(headers))

    async def upload(
        self,
        bucket: str,
        key: str,
        path: Path,
        *,
        producer: Producer | None = None,
        content_type: str | None = None,
    ) -> Found:
        """Store the file under the key, with the folders on the way. Memory stays flat.

        Atomic where the server renames. The hop count of `producer` has no place on such a server.
        """
        headers = {"content-type": content_type or "application/octet-stream"}
        with source(path) as opened:
            parts = _parts(bucket, key)
            await self._store(parts, opened, headers, producer)
            # Looked at, because servers were seen that take the name apart and put the file elsewhere.
            entry = await self._entry(parts)
            if entry.size != opened.size:
                raise StorageError(
                    f"{self._web.scrub(place(self._place(parts)))} has {entry.size} bytes after {opened.size} were sent"
                )
            return Found(key, entry.size, entry.etag, entry.modified)

    async def stat(self, bucket: str, key: str) -> Found:
        """The file's size, tag and time."""
        entry = await self._entry(_parts(bucket, key))
        if entry.folder:
            raise ObjectNotFound(f"{key} is a folder at {urlsplit(self._url).netloc}")
        return Found(key, entry.size, entry.etag, entry.modified)

    async def list(self, bucket: str, prefix: str = "", *, start_after: str = "") -> AsyncIterator[Found]:
        """All files whose key starts with prefix, in key order; one request for each folder."""
        top = tuple(part for part in bucket.split("/") if part)
        # Only the folder that the prefix names is looked into, and what is below it.
        below = tuple(part for part in prefix.split("/")[:-1] if part)
        if below:
            try:
                entry = await self._entry((*top, *below))
            except ObjectNotFound:
                return
            if not entry.folder:
                return
        async for found in self._walk(top, below, prefix, start_after):
            yield found

    async def delete(self, bucket: str, key: str) -> None:
        """Remove the file; silent if absent."""
        await self._web.call("DELETE", self._place(_parts(bucket, key)), ok=_WRITTEN | {404})

    async def ensure_bucket(self, bucket: str) -> None:
        """Make the folder of that name if it is absent."""
        parts = tuple(part for part in bucket.split("/") if part)
        if parts:
            await self._make_folder(parts)

    def _place(self, parts: tuple[str, ...], *, folder: bool = False) -> str:
        path = "/".join(quote(part, safe="") for part in parts)
        return f"{self._url}/{path}" + ("/" if folder and path else "")

    async def _store(
        self, parts: tuple[str, ...], opened: Source, headers: Mapping[str, str], producer: Producer | None
    ) -> None:
        partial = (*parts[:-1], on_its_way("/".join(parts), producer))
        try:
            await self._put(partial, opened, headers)
            renamed = await self._rename(partial, parts, opened.size)
        except BaseException:
            await self._discard(partial)
            raise
        if not renamed:
            await self._discard(partial)
            await self._put_in_place(parts, opened, headers)

    async def _put(self, parts: tuple[str, ...], opened: Source, headers: Mapping[str, str]) -> None:
        url = self._place(parts)
        answer = await self._web.send(url, opened, headers, ok=_WRITTEN | _MISSING)
        if answer.status in _MISSING and len(parts) > 1:
            await self._make_folder(parts[:-1])
            answer = await self._web.send(url, opened, headers, ok=_WRITTEN)
        if answer.status not in _WRITTEN:
            raise self._web.refusal("PUT", url, answer)

    async def _put_in_place(self, parts: tuple[str, ...], opened: Source, headers: Mapping[str, str]) -> None:
        """Write without a rename; a new file that breaks off is removed, a replaced one can't be had back."""
        known = await self._exists(parts)
        try:
            await self._put(parts, opened, headers)
        except BaseException:
            if not known:
                await self._discard(parts)
            raise

    async def _rename(self, partial: tuple[str, ...], parts: tuple[str, ...], size: int) -> bool:
        """Whether the file is in its place now; False when this server or user can't rename."""
        answer = await self._move(partial, parts, size)
        if answer in _TAKEN and await self._exists(parts):
            await self._web.call("DELETE", self._place(parts), ok=_WRITTEN | {404})
            answer = await self._move(partial, parts, size)
        if answer in _WRITTEN:
            return True
        if answer in _UNABLE:
            return False
        raise StorageError(
            f"{self._web.scrub(place(self._place(parts)))}: renaming was answered with {answer}"
        )

    async def _move(self, partial: tuple[str, ...], parts: tuple[str, ...], size: int) -> int:
        headers = {"destination": self._place(parts), "overwrite": "T"}
        ok = _WRITTEN | _TAKEN | _UNABLE
        try:
            answer = await self._web.call("MOVE", self._place(partial), headers=headers, ok=ok)
        except ObjectNotFound:
            # A repeated request finds nothing to rename when the first one was carried out and its answer lost.
            if (await self._entry(parts)).size != size:
                raise
            return 201
        return answer.status

    async def _discard(self, parts: tuple[str, ...]) -> None:
        """Remove what is half-made. Its failure must not hide the one that led here."""
        try:
            await asyncio.shield(
                self._web.call("DELETE", self._place(parts), ok=_WRITTEN | {404}, again=False)
            )
        except OscarError:
            return

    async def _make_folder(self, parts: tuple[str, ...]) -> None:
        """Make a folder and those above it; there is no harm in two doing it at once."""
        url = self._place(parts, folder=True)
        ok = _WRITTEN | _THERE | _MISSING | _REFUSED
        answer = await self._web.call("MKCOL", url, ok=ok)
        if answer.status in _MISSING and len(parts) > 1:
            await self._make_folder(parts[:-1])
            answer = await self._web.call("MKCOL", url, ok=ok)
        if answer.status in _MISSING or (answer.status in _REFUSED and not await self._is_folder(url)):
            raise self._web.refusal("MKCOL", url, answer)

    async def _is_folder(self, url: str) -> bool:
        try:
            found = await self._propfind(url, "0")
        except OscarError:
            return False
        return bool(found) and found[0].folder

    async def _exists(self, parts: tuple[str, ...]) -> bool:
        try:
            await self._entry(parts)
        except ObjectNotFound:
            return False
        return True

    async def _entry(self, parts: tuple[str, ...]) -> Entry:
        found = await self._propfind(self._place(parts), "0")
        if not found:
            raise ObjectNotFound(f"there is no {'/'.join(parts)} at {urlsplit(self._url).netloc}")
        return found[0]

    async def _propfind(self, url: str, depth: str) -> Sequence[Entry]:
        headers = {"depth": depth, "content-type": "application/xml; charset=utf-8"}
        answer = await self._web.call("PROPFIND", url, headers=headers, body=webdav_xml.ASKED, ok={207})
        return await asyncio.to_thread(webdav_xml.entries, answer.body)

    async def _walk(
        self, top: tuple[str, ...], below: tuple[str, ...], prefix: str, start_after: str
    ) -> AsyncIterator[Found]:
        url = self._place((*top, *below), folder=True)
        own = webdav_xml.path_parts(url)
        # A folder sorts by its keys, which continue with a slash.
        children = sorted(
            (entry.name + ("/" if entry.folder else ""), entry)
            for entry in await self._propfind(url, "1")
            if entry.parts != own
        )
        for name, entry in children:
            key = "/".join((*below, name))
            if entry.folder:
                # Passed over when none of its keys can be asked for.
                if key.startswith(prefix[: len(key)]) and (key > start_after or start_after.startswith(key)):
                    async for found in self._walk(top, (*below, entry.name), prefix, start_after):
                        yield found
            elif key.startswith(prefix) and key > start_after and not is_partial(entry.name):
                yield Found(key, entry.size, entry.etag, entry.modified)


def _parts(bucket: str, key: str) -> tuple[str, ...]:
    """The parts of a file's path.

    Raises:
        StorageError: the key can't be one of a file in folders.
    """
    parts = (*(part for part in bucket.split("/") if part), *key.split("/"))
    if any(part in {"", ".", ".."} or "\x00" in part for part in parts):
        raise StorageError(f"{bucket}/{key} can't be the path of a file")
    return parts


def _tag(headers: Mapping[str, str]) -> str:
    return headers.get("etag", "").removeprefix("W/").strip('"')


def _time(headers: Mapping[str, str]) -> int:
    try:
        return int(parsedate_to_datetime(headers.get("last-modified", "")).timestamp() * 1000)
    except ValueError:
        return 0
