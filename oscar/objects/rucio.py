"""Files of Rucio as a `FileStore`: the catalogue by its REST interface, content by WebDAV.

Called by `supervisor.providers`. Buckets are scopes; a slash in a key becomes two underscores in a file's name, as
in OSCAR. An upload is registered only when it lies complete on the storage element, so that the catalogue never
names half a file. Files of Rucio never change: another content needs another name. Source: Rucio's REST API.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from oscar.errors import BucketNotFound, Forbidden, InvalidField, ObjectNotFound, OscarError, StorageError
from oscar.model.producer import Producer
from oscar.objects.base import Found
from oscar.objects.local_files import Sums, source, sums, sums_of, whole
from oscar.objects.reach import Reach
from oscar.objects.rucio_token import Tokens
from oscar.objects.web import Web
from oscar.objects.web_put import Answer
from oscar.objects.webdav import WebDavStore

SCHEMES = {"davs": "https", "https": "https", "dav": "http", "http": "http"}
"""Protocols of storage elements that we speak, and what is under them."""
_CREATED = frozenset({200, 201})
_KNOWN = 409
_NO_SCOPE = "ScopeNotFound"


@dataclass(frozen=True, slots=True)
class Site:
    """A Rucio server and what is done there.

    Attributes:
        url: its address with the scheme.
        account: in whose name.
        rse: the storage element that is written to.
        lifetime: seconds that written files are kept; 0 for no end.
    """

    url: str
    account: str
    rse: str = ""
    lifetime: int = 0
    verify: bool = True


class RucioStore:
    """One Rucio server with one account. Implements `oscar.objects.base.FileStore`."""

    def __init__(self, site: Site, tokens: Tokens, *, reach: Reach | None = None) -> None:
        async def catalogue() -> Mapping[str, str]:
            return {
                "x-rucio-auth-token": await tokens.get(),
                "x-rucio-account": site.account,
                "accept": "application/json, application/x-json-stream",
                "content-type": "application/json",
            }

        async def storage() -> Mapping[str, str]:
            return {"authorization": f"Bearer {await tokens.get()}"}

        self._site = site
        self._tokens = tokens
        self._storage = storage
        self._web = Web(catalogue, secrets=tokens.secrets, verify=site.verify, reach=reach)
        self._reach = reach
        self._elements: dict[str, WebDavStore] = {}

    def __repr__(self) -> str:
        return f"RucioStore({urlsplit(self._site.url).netloc})"

    async def close(self) -> None:
        """End its connections."""
        await self._web.close()
        await self._tokens.close()
        elements, self._elements = self._elements, {}
        for element in elements.values():
            await element.close()

    async def download(self, bucket: str, key: str, path: Path) -> Found:
        """Fetch the file from the first of its replicas that gives it whole; memory stays flat."""
        name, known = await self._replicas(bucket, key)
        places = sorted(
            (int(facts.get("priority") or 0), pfn)
            for pfn, facts in (known.get("pfns") or {}).items()
            if self._usable(pfn)
        )
        if not places:
            raise ObjectNotFound(f"no replica of {bucket}:{name} can be had by WebDAV")
        failed: OscarError | None = None
        for _, pfn in places:
            try:
                return await self._fetch(pfn, path, key, known)
            except OscarError as error:
                failed = error
        assert failed is not None, "there was a place"  # noqa: S101 - narrows the type
        raise failed

    async def upload(
        self,
        bucket: str,
        key: str,
        path: Path,
        *,
        producer: Producer | None = None,
        content_type: str | None = None,
    ) -> Found:
        """Store the file on the storage element, then register it and its rule. Memory stays flat.

        Nothing is done when the catalogue has the same content under that name already.

        Raises:
            StorageError: it has another content.
        """
        name = did_name(key)
        if not self._site.rse:
            raise InvalidField(
                "no storage element is named to write to", field="rse", fix="Name it as rse of the provider."
            )
        with source(path) as opened:
            checked = await asyncio.to_thread(sums, opened.descriptor)
            if not await self._is_there(bucket, name, opened.size, checked):
                pfn = await self._pfn(bucket, name)
                element, inside = self._element(pfn)
                await element.upload("", inside, path, producer=producer, content_type=content_type)
                try:
                    await self._register(bucket, name, opened.size, checked)
                except BaseException:
                    await _discard(element, inside)
                    raise
        await self._add_rule(bucket, name)
        return Found(key, opened.size, checked.md5, 0)

    async def stat(self, bucket: str, key: str) -> Found:
        """The file's size; its tag is its MD5 sum."""
        known = await self._meta(bucket, did_name(key))
        if known is None:
            raise ObjectNotFound(f"there is no {bucket}:{did_name(key)} at {urlsplit(self._site.url).netloc}")
        return Found(key, int(known.get("bytes") or 0), str(known.get("md5") or ""), 0)

    async def list(self, bucket: str, prefix: str = "", *, start_after: str = "") -> AsyncIterator[Found]:
        """All files whose name starts with the prefix, in order; the keys are names as Rucio has them."""
        start, after = did_name(prefix), did_name(start_after)
        query = urlencode({"type": "file", "long": "True", "name": f"{start}*"})
        answer = await self._call("GET", f"dids/{_quoted(bucket)}/dids/search?{query}")
        for known in sorted(_lines(answer.body), key=lambda known: str(known.get("name", ""))):
            name = str(known.get("name", ""))
            if name.startswith(start) and name > after:
                yield Found(name, int(known.get("bytes") or 0), "", 0)

    async def delete(self, bucket: str, key: str) -> None:
        """Give up our rules for the file; Rucio removes it when nobody else holds it. Silent if absent."""
        try:
            answer = await self._call("GET", f"dids/{_quoted(bucket)}/{_quoted(did_name(key))}/rules")
        except ObjectNotFound:
            return
        for rule in _lines(answer.body):
            if rule.get("account") == self._site.account:
                await self._call("DELETE", f"rules/{_quoted(str(rule.get('id')))}", ok=_CREATED | {404})

    async def ensure_bucket(self, bucket: str) -> None:
        """Make the scope, as far as the account may."""
        path = f"accounts/{_quoted(self._site.account)}/scopes/{_quoted(bucket)}"
        await self._call("POST", path, ok=_CREATED | {_KNOWN})

    async def _replicas(self, scope: str, key: str) -> tuple[str, dict[str, Any]]:
        """The name and replicas of a file, by our way to write names or else by the key as it is."""
        for name in dict.fromkeys((did_name(key), key)):
            body = {
                "dids": [{"scope": scope, "name": name}],
                "schemes": list(SCHEMES),
                "ignore_availability": False,
            }
            answer = await self._call("POST", "replicas/list", body, ok=_CREATED | {404})
            if answer.status in _CREATED and (found := _lines(answer.body)) and found[0].get("pfns"):
                return name, found[0]
        raise ObjectNotFound(
            f"there is no replica of {scope}:{did_name(key)} at {urlsplit(self._site.url).netloc}"
        )

    async def _fetch(self, pfn: str, path: Path, key: str, known: Mapping[str, Any]) -> Found:
        element, inside = self._element(pfn)
        with whole(path) as partial:
            found = await element.download("", inside, partial)
            await _check(partial, found.size, known)
        return Found(key, found.size, str(known.get("md5") or ""), found.modified)

    async def _is_there(self, scope: str, name: str, size: int, checked: Sums) -> bool:
        known = await self._meta(scope, name)
        if known is None:
            return False
        if int(known.get("bytes") or 0) != size or not _same(known.get("adler32"), checked.adler32):
            raise StorageError(
                f"{scope}:{name} is in Rucio with another content, and files there never change"
            )
        answer = await self._call(
            "POST", "replicas/list", {"dids": [{"scope": scope, "name": name}], "all_states": False}
        )
        return any(self._site.rse in (replica.get("rses") or {}) for replica in _lines(answer.body))

    async def _meta(self, scope: str, name: str) -> dict[str, Any] | None:
        try:
            answer = await self._call("GET", f"dids/{_quoted(scope)}/{_quoted(name)}/meta")
        except ObjectNotFound:
            return None
        found = _lines(answer.body)
        return found[0] if found else None

    async def _pfn(self, scope: str, name: str) -> str:
        """Where the file is to lie, as the server reckons it."""
        refused: OscarError | None = None
        for scheme in SCHEMES:
            query = urlencode({"lfn": f"{scope}:{name}", "scheme": scheme, "operation": "write"})
            try:
                answer = await self._call("GET", f"rses/{_quoted(self._site.rse)}/lfns2pfns?{query}")
            except Forbidden:
                raise
            except OscarError as error:
                refused = error
                continue
            for found in _lines(answer.body):
                pfn = next((str(pfn) for pfn in found.values()), "")
                if self._usable(pfn):
                    return pfn
        reason = f": {refused.message}" if refused else ""
        raise StorageError(f"the storage element {self._site.rse} takes no files by WebDAV{reason}")

    async def _register(self, scope: str, name: str, size: int, checked: Sums) -> None:
        file = {
            "scope": scope,
            "name": name,
            "bytes": size,
            "adler32": checked.adler32,
            "md5": checked.md5,
            "state": "A",
        }
        body = {"rse": self._site.rse, "files": [file], "ignore_availability": True}
        try:
            answer = await self._call("POST", "replicas", body, ok=_CREATED | {_KNOWN})
        except ObjectNotFound as error:
            if _NO_SCOPE in error.message:
                raise BucketNotFound(error.message) from error
            raise
        if answer.status == _KNOWN and not await self._is_there(scope, name, size, checked):
            raise self._web.refusal("POST", f"{self._site.url}/replicas", answer)

    async def _add_rule(self, scope: str, name: str) -> None:
        body = {
            "dids": [{"scope": scope, "name": name}],
            "account": self._site.account,
            "copies": 1,
            "rse_expression": self._site.rse,
            "grouping": "DATASET",
            "lifetime": self._site.lifetime or None,
        }
        # 409: the rule is there already.
        await self._call("POST", "rules/", body, ok=_CREATED | {_KNOWN})

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        ok: frozenset[int] = _CREATED,
    ) -> Answer:
        url = f"{self._site.url}/{path}"
        sent = json.dumps(body).encode() if body is not None else b""
        answer = await self._web.call(method, url, body=sent, ok=ok | {404})
        if answer.status in ok:
            return answer
        # The path says nothing about what is missing; Rucio's own words do.
        kind = answer.headers.get("exceptionclass", "") or answer.body
        name = _NO_SCOPE if _NO_SCOPE in kind else ""
        said = self._web.refusal(method, url, Answer(400, answer.headers, answer.body)).message
        raise ObjectNotFound(f"{name} {said}".strip().replace("answered 400", "answered 404"))

    def _usable(self, pfn: str) -> bool:
        """Whether we can speak with the place; in clear only where the server itself is reached so."""
        scheme = SCHEMES.get(urlsplit(pfn).scheme)
        return scheme == "https" or (scheme == "http" and self._site.url.startswith("http:"))

    def _element(self, pfn: str) -> tuple[WebDavStore, str]:
        """The storage of a place, and the path there."""
        parts = urlsplit(pfn)
        url = f"{SCHEMES[parts.scheme]}://{parts.netloc.rpartition('@')[2]}"
        element = self._elements.get(url)
        if element is None:
            element = self._elements[url] = WebDavStore(
                url,
                self._storage,
                secrets=self._tokens.secrets,
                verify=self._site.verify,
                reach=self._reach,
            )
        return element, "/".join(part for part in parts.path.split("/") if part)


def did_name(key: str) -> str:
    """The name of a file in Rucio, which takes no slashes."""
    return key.strip("/").replace("/", "__")


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _lines(body: str) -> list[dict[str, Any]]:
    """The objects of an answer, which has one in each line, or is one object or list.

    Raises:
        StorageError: it is none of these.
    """
    try:
        values = [json.loads(line) for line in body.splitlines() if line.strip()]
    except ValueError as error:
        raise StorageError(f"the answer of Rucio is no JSON: {error}") from error
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [item for item in flat if isinstance(item, dict)]


def _same(known: Any, adler32: str) -> bool:
    """Whether the catalogue's checksum, which may have lost leading zeros, is this one."""
    return str(known or "").lstrip("0").lower() == adler32.lstrip("0")


async def _check(path: Path, size: int, known: Mapping[str, Any]) -> None:
    expected = int(known.get("bytes") or size)
    if size != expected:
        raise StorageError(f"the replica has {size} bytes, the catalogue {expected}")
    if not known.get("adler32") and not known.get("md5"):
        return
    found = await asyncio.to_thread(sums_of, path)
    if known.get("adler32") and not _same(known["adler32"], found.adler32):
        raise StorageError("the replica is damaged: its Adler-32 sum is not the catalogue's")
    if known.get("md5") and str(known["md5"]).lower() != found.md5:
        raise StorageError("the replica is damaged: its MD5 sum is not the catalogue's")


async def _discard(element: WebDavStore, inside: str) -> None:
    """Remove a file that could not be registered. Its failure must not hide the one that led here."""
    try:
        await asyncio.shield(element.delete("", inside))
    except OscarError:
        return
