"""Operations that list objects: ListObjects, ListObjectsV2, ListObjectVersions.

Routed to by `routes`; calls the index, which pages in the order of UTF-8 bytes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from urllib.parse import quote

from oscar.model.object import Listing, Object
from oscar.objects.embedded.buckets import iso_time, owner_xml, the_bucket
from oscar.objects.embedded.faults import fault
from oscar.objects.embedded.requests import Request
from oscar.objects.embedded.site import Answer, Site, xml_answer
from oscar.objects.embedded.xml import document, element, escape, group

MAX_KEYS = 1000


def url_encoder(request: Request) -> Callable[[str], str]:
    """How keys are written: as they are, or URL-encoded on demand (XML can't hold all characters)."""
    kind = request.query.get("encoding-type")
    if kind is None or kind == "":
        return str
    if kind != "url":
        raise fault(
            "InvalidArgument", "Invalid Encoding Method specified in Request.", ArgumentName="encoding-type"
        )
    return lambda text: quote(text, safe="/-_.~*")


def _limit(request: Request, name: str = "max-keys") -> int:
    return min(request.number(name, MAX_KEYS) or 0, MAX_KEYS)


async def _page(site: Site, request: Request, after: str, limit: int) -> Listing:
    if not limit:
        return Listing((), (), truncated=False, next_key=None)
    query = request.query
    return await site.index.list(
        the_bucket(request).name,
        prefix=query.get("prefix", ""),
        delimiter=query.get("delimiter", ""),
        after=after,
        limit=limit,
    )


def _contents(obj: Object, encode: Callable[[str], str], *, owner: bool) -> str:
    owned = owner_xml(obj.owner) if owner else ""
    return (
        f"<Contents><Key>{escape(encode(obj.key))}</Key><LastModified>{iso_time(obj.modified)}</LastModified>"
        f"<ETag>&quot;{obj.etag}&quot;</ETag><Size>{obj.size}</Size>{owned}"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


def _prefixes(listing: Listing, encode: Callable[[str], str]) -> list[str]:
    return [group("CommonPrefixes", (element("Prefix", encode(prefix)),)) for prefix in listing.prefixes]


def _head(request: Request, encode: Callable[[str], str], limit: int, *, truncated: bool) -> list[str]:
    query = request.query
    parts = [
        element("Name", request.bucket),
        element("Prefix", encode(query.get("prefix", ""))),
        element("MaxKeys", limit),
        element("IsTruncated", truncated),
    ]
    if query.get("delimiter"):
        parts.append(element("Delimiter", encode(query["delimiter"])))
    if query.get("encoding-type"):
        parts.append(element("EncodingType", "url"))
    return parts


async def list_objects(site: Site, request: Request) -> Answer:
    """ListObjects, the first version."""
    encode, limit = url_encoder(request), _limit(request)
    marker = request.query.get("marker", "")
    listing = await _page(site, request, marker, limit)
    parts = _head(request, encode, limit, truncated=listing.truncated)
    parts.append(element("Marker", encode(marker)))
    if listing.truncated and listing.next_key is not None:
        parts.append(element("NextMarker", encode(listing.next_key)))
    parts += [_contents(obj, encode, owner=True) for obj in listing.objects]
    parts += _prefixes(listing, encode)
    return xml_answer(document("ListBucketResult", parts))


async def list_objects_v2(site: Site, request: Request) -> Answer:
    """ListObjectsV2."""
    encode, limit, query = url_encoder(request), _limit(request), request.query
    token, start_after = query.get("continuation-token"), query.get("start-after", "")
    after = start_after if token is None else _read_token(token)
    listing = await _page(site, request, after, limit)
    parts = _head(request, encode, limit, truncated=listing.truncated)
    parts.append(element("KeyCount", len(listing.objects) + len(listing.prefixes)))
    if token is not None:
        parts.append(element("ContinuationToken", token))
    if start_after:
        parts.append(element("StartAfter", encode(start_after)))
    if listing.truncated and listing.next_key is not None:
        parts.append(element("NextContinuationToken", _write_token(listing.next_key)))
    owner = query.get("fetch-owner", "").lower() == "true"
    parts += [_contents(obj, encode, owner=owner) for obj in listing.objects]
    parts += _prefixes(listing, encode)
    return xml_answer(document("ListBucketResult", parts))


def _write_token(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _read_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise fault("InvalidArgument", "The continuation token provided is incorrect.") from error


async def list_versions(site: Site, request: Request) -> Answer:
    """ListObjectVersions: each object has one version, `null`."""
    encode, limit = url_encoder(request), _limit(request)
    marker = request.query.get("key-marker", "")
    listing = await _page(site, request, marker, limit)
    parts = _head(request, encode, limit, truncated=listing.truncated)
    parts += [element("KeyMarker", encode(marker)), element("VersionIdMarker", "")]
    if listing.truncated and listing.next_key is not None:
        parts += [element("NextKeyMarker", encode(listing.next_key)), element("NextVersionIdMarker", "null")]
    for obj in listing.objects:
        row = (
            element("Key", encode(obj.key)),
            element("VersionId", "null"),
            element("IsLatest", text=True),
            element("LastModified", iso_time(obj.modified)),
            element("ETag", f'"{obj.etag}"'),
            element("Size", obj.size),
            owner_xml(obj.owner),
            element("StorageClass", "STANDARD"),
        )
        parts.append(group("Version", row))
    parts += _prefixes(listing, encode)
    return xml_answer(document("ListVersionsResult", parts))
