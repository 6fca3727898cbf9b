"""Operations on one object: put, get, head, delete, tags, attributes; and the batch delete.

Routed to by `routes`; calls `intake` for bodies and the index for rows. `commit_blob` is the one place where
a body and its row come together; copies and forms use it too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from oscar.errors import OscarError, StorageFull
from oscar.model.object import Object
from oscar.objects.embedded import buckets, names
from oscar.objects.embedded.attributes import (
    PART_SIZES,
    Attributes,
    checksum_headers,
    checksum_type,
    object_headers,
    overrides,
    parse_tagging,
    read_attributes,
    tagging_xml,
    unpack_sizes,
)
from oscar.objects.embedded.buckets import body_of, iso_time, the_bucket
from oscar.objects.embedded.conditions import check_read, parse_range, same_etag, write_conditions
from oscar.objects.embedded.faults import fault, unsupported
from oscar.objects.embedded.intake import Expected, NewBlob, Received, announced, receive_all
from oscar.objects.embedded.requests import Receive, Request
from oscar.objects.embedded.site import Answer, FileBody, Site, xml_answer
from oscar.objects.embedded.xml import Node, document, element, group, parse

T = TypeVar("T")

MAX_BATCH = 1000
_EARLY = 64 * 1024
"""Bytes of a body below which the quota is looked at only by the commit: a smaller one is here as soon as its head."""
_ATTEMPTS = 8
"""How often a read follows an object that is replaced under it."""


async def receive_blob(site: Site, receive: Receive, blob: NewBlob) -> Received:
    """Take a body into a new blob; on any failure nothing of it stays."""
    try:
        return await receive_all(receive, site.blobs, blob.feed, blob.finish)
    except BaseException:
        await site.blobs.run(blob.drop)
        raise


async def commit_blob(site: Site, blob: NewBlob, commit: Callable[[], Awaitable[T]]) -> T:
    """Commit the row of a sealed blob.

    Refused by the index, the blob is removed. When the outcome is not known (cancelled, database gone) it
    stays: the sweep removes it if it has no row.
    """
    try:
        result = await commit()
    except OscarError as error:
        # A refusal, and a full disk, are certain; another server error may have come after the commit.
        if error.status < 500 or isinstance(error, StorageFull):  # noqa: PLR2004 - HTTP's border between the two
            await site.blobs.run(blob.drop)
        else:
            blob.keep()
        raise
    except BaseException:
        blob.keep()
        raise
    blob.keep()
    return result


def new_object(
    site: Site, request: Request, attributes: Attributes, received: Received, generation: str
) -> Object:
    """The row of a body that was just received."""
    return Object(
        bucket=request.bucket,
        key=request.key,
        generation=generation,
        size=received.size,
        etag=received.md5,
        modified=site.now_ms(),
        content_type=attributes.content_type,
        headers=attributes.headers,
        metadata=attributes.metadata,
        tags=attributes.tags,
        checksums=received.checksums,
        owner=request.user,
    )


def check_early(request: Request, *, new_only: bool, match: str | None) -> None:
    """Refuse a conditional write before its body is read; the commit checks again."""
    there = request.known_object
    if new_only and there is not None:
        raise fault("PreconditionFailed", Condition="If-None-Match")
    if match is not None and (there is None or not same_etag(match, there.etag)):
        raise fault("PreconditionFailed", Condition="If-Match")


async def check_room(site: Site, request: Request, size: int, freed: Callable[[], Awaitable[int]]) -> None:
    """Refuse what a quota has no room for before its bytes are read; the commit checks again.

    Args:
        site: the server.
        request: names the bucket.
        size: bytes that the client announces.
        freed: bytes that go when these come; asked only when there is not room for all.

    Raises:
        S3Error: XMinioAdminBucketQuotaExceeded.
    """
    if size < _EARLY:
        return
    room = await site.index.room(request.bucket)
    if room is not None and size > room and size > room + await freed():
        raise fault("XMinioAdminBucketQuotaExceeded", BucketName=request.bucket)


async def check_object_room(site: Site, request: Request, size: int) -> None:
    """The same for an object of that size, which takes the place of one under the request's key."""

    async def replaced() -> int:
        there = await site.index.get(request.bucket, request.key)
        return there.size if there else 0

    await check_room(site, request, size, replaced)


async def put_object(site: Site, request: Request) -> Answer:
    """PutObject."""
    names.check_key(request.key)
    attributes = read_attributes(request)
    new_only, match = write_conditions(request.headers)
    check_early(request, new_only=new_only, match=match)
    expected = announced(request, limit=site.max_object)
    obj = await store_body(
        site, request, attributes, expected, request.receive, "Put", new_only=new_only, match=match
    )
    return Answer(headers={"etag": f'"{obj.etag}"', **checksum_headers(obj.checksums)})


async def store_body(
    site: Site,
    request: Request,
    attributes: Attributes,
    expected: Expected,
    receive: Receive,
    event: str,
    *,
    new_only: bool = False,
    match: str | None = None,
) -> Object:
    """Take a body and make it the object of the request's key: the file, then row and jobs, then the answer."""
    site.blobs.check_space(expected.length or 0)
    await check_object_room(site, request, expected.length or 0)
    blob = NewBlob(site.blobs, expected)
    received = await receive_blob(site, receive, blob)
    obj = new_object(site, request, attributes, received, blob.generation)
    freed = await commit_blob(
        site,
        blob,
        lambda: site.index.commit(
            obj,
            event=f"s3:ObjectCreated:{event}",
            if_none_match=new_only,
            if_match=match,
            source_ip=request.source_ip,
        ),
    )
    site.blobs.discard_later([freed] if freed else [])
    site.on_commit()
    return obj


def the_object(site: Site, request: Request) -> Object:
    """The object that the request names. Raises S3Error: NoSuchKey, NoSuchVersion, AccessDenied."""
    version = request.query.get("versionId")
    if version not in {None, "", "null"}:
        raise fault("NoSuchVersion", Key=request.key, VersionId=version or "")
    if request.known_object is None:
        # Who may not list must not learn which keys exist.
        if not site.authorize(request.credential, "s3:ListBucket", the_bucket(request), ""):
            raise fault("AccessDenied")
        raise fault("NoSuchKey", Key=request.key)
    return request.known_object


async def head_object(site: Site, request: Request) -> Answer:
    """HeadObject: like GetObject, without the body."""
    return _read_answer(request, the_object(site, request))[0]


async def get_object(site: Site, request: Request) -> Answer:
    """GetObject."""
    for _ in range(_ATTEMPTS):
        obj = the_object(site, request)
        answer, start = _read_answer(request, obj)
        if not answer.length:
            return answer
        try:
            descriptor = site.blobs.open(obj.generation)
        except FileNotFoundError:
            # Replaced or deleted between the look-up and here: the row knows the present one.
            request.known_object = await site.index.get(request.bucket, request.key)
            continue
        answer.file = FileBody(descriptor, start, answer.length)
        return answer
    raise fault("ServiceUnavailable", "The object is being replaced all the time; try again.")


def _read_answer(request: Request, obj: Object) -> tuple[Answer, int]:
    """The head of the answer to a GET or HEAD, and the first byte of its body."""
    headers = request.headers
    check_read(headers, obj.etag, obj.modified)
    start, length, status = 0, obj.size, 200
    extra: dict[str, str] = {}
    number = request.number("partNumber", least=1, most=10_000)
    range_header = headers.get("range")
    if number is not None:
        if range_header is not None:
            raise fault("InvalidRequest", "A request has either a Range or a partNumber.")
        start, length = _part_range(obj, number)
        status = 206
        if obj.parts:
            extra["x-amz-mp-parts-count"] = str(obj.parts)
    elif range_header is not None and _range_holds(headers.get("if-range"), obj):
        found = parse_range(range_header, obj.size)
        if found is not None:
            start, length = found
            status = 206
    if status == 206 and obj.size:  # noqa: PLR2004
        extra["content-range"] = f"bytes {start}-{start + length - 1}/{obj.size}"
    whole = length == obj.size
    wants_sums = headers.get("x-amz-checksum-mode", "").upper() == "ENABLED" and whole
    shown = object_headers(obj, with_checksums=wants_sums)
    shown.update(extra)
    replaced = overrides(request.query)
    if replaced:
        if not request.signed:
            raise fault(
                "InvalidRequest", "Request specific response headers cannot be used for anonymous GET."
            )
        shown.update(replaced)
    return Answer(status, headers=shown, length=length), start


def _range_holds(condition: str | None, obj: Object) -> bool:
    return condition is None or same_etag(condition, obj.etag)


def _part_range(obj: Object, number: int) -> tuple[int, int]:
    packed = obj.headers.get(PART_SIZES)
    sizes = unpack_sizes(packed) if packed else [obj.size]
    if number > len(sizes):
        raise fault("InvalidRange", "The object has no such part.", ActualObjectSize=obj.size)
    return sum(sizes[: number - 1]), sizes[number - 1]


async def delete_object(site: Site, request: Request) -> Answer:
    """DeleteObject; silent when there is none."""
    for name in request.headers:
        if name == "if-match" or name.startswith("x-amz-if-match-"):
            raise unsupported(f"conditional deletes (the header {name})")
    version = request.query.get("versionId")
    if version in {None, "", "null"}:
        removed = await site.index.delete(request.bucket, [request.key])
        site.blobs.discard_later(removed.values())
    return Answer(204)


async def delete_objects(site: Site, request: Request) -> Answer:
    """DeleteObjects: up to 1,000 keys, each of which may be refused."""
    body = parse(await body_of(request), "Delete")
    entries = body.all("Object")
    if not 1 <= len(entries) <= MAX_BATCH:
        raise fault("MalformedXML", f"A Delete has 1 to {MAX_BATCH} objects.")
    quiet = (body.value("Quiet") or "").strip().lower() == "true"
    allowed: list[str] = []
    rows: list[str] = []
    for entry in entries:
        key = entry.value("Key")
        if key is None:
            raise fault("MalformedXML", "An Object needs a Key.")
        problem = _delete_problem(site, request, entry, key)
        if problem is None:
            allowed.append(key)
        else:
            code, message = problem
            row = (element("Key", key), element("Code", code), element("Message", message))
            rows.append(group("Error", row))
    removed = await site.index.delete(request.bucket, list(dict.fromkeys(allowed))) if allowed else {}
    site.blobs.discard_later(removed.values())
    if not quiet:
        rows += [group("Deleted", (element("Key", key),)) for key in allowed]
    return xml_answer(document("DeleteResult", rows))


def _delete_problem(site: Site, request: Request, entry: Node, key: str) -> tuple[str, str] | None:
    if not site.authorize(request.credential, "s3:DeleteObject", the_bucket(request), key):
        return "AccessDenied", "Access Denied."
    if (entry.value("VersionId") or "null") != "null":
        return "NoSuchVersion", "The version does not exist; this server keeps one version, null."
    for name in ("ETag", "LastModifiedTime", "Size"):
        if entry.first(name) is not None:
            return (
                "NotImplemented",
                f"This server does not implement conditional deletes (the element {name}).",
            )
    return None


async def get_tagging(site: Site, request: Request) -> Answer:
    """GetObjectTagging."""
    return xml_answer(document("Tagging", tagging_xml(the_object(site, request).tags)))


async def get_acl(site: Site, request: Request) -> Answer:
    """GetObjectAcl."""
    the_object(site, request)
    return await buckets.get_acl(site, request)


async def put_tagging(site: Site, request: Request) -> Answer:
    """PutObjectTagging."""
    tags = parse_tagging(parse(await body_of(request), "Tagging"))
    await site.index.retag(request.bucket, request.key, tags)
    return Answer()


async def delete_tagging(site: Site, request: Request) -> Answer:
    """DeleteObjectTagging."""
    await site.index.retag(request.bucket, request.key, {})
    return Answer(204)


async def get_attributes(site: Site, request: Request) -> Answer:
    """GetObjectAttributes."""
    obj = the_object(site, request)
    check_read(request.headers, obj.etag, obj.modified)
    asked = {name.strip() for name in request.headers.get("x-amz-object-attributes", "").split(",")}
    known = {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"}
    if not asked <= known or not asked:
        raise fault(
            "InvalidArgument", "Invalid attribute name specified.", ArgumentName="x-amz-object-attributes"
        )
    parts: list[str] = []
    if "ETag" in asked:
        parts.append(element("ETag", obj.etag))
    if "Checksum" in asked and obj.checksums:
        sums = [element(f"Checksum{name.upper()}", value) for name, value in obj.checksums.items()]
        parts.append(group("Checksum", (*sums, element("ChecksumType", checksum_type(obj.checksums)))))
    if "ObjectParts" in asked and obj.parts:
        parts.append(group("ObjectParts", (element("TotalPartsCount", obj.parts),)))
    if "StorageClass" in asked:
        parts.append(element("StorageClass", "STANDARD"))
    if "ObjectSize" in asked:
        parts.append(element("ObjectSize", obj.size))
    shown = {"last-modified": object_headers(obj, with_checksums=False)["last-modified"]}
    return xml_answer(document("GetObjectAttributesResponse", parts), headers=shown)


def retarget(obj: Object, request: Request, generation: str, modified: int) -> Object:
    """The row of a copy: that of the source under the request's bucket and key."""
    return replace(
        obj,
        bucket=request.bucket,
        key=request.key,
        generation=generation,
        modified=modified,
        owner=request.user,
    )


def copy_result(name: str, etag: str, modified: int, sums: dict[str, str]) -> bytes:
    """CopyObjectResult or CopyPartResult."""
    parts = [element("LastModified", iso_time(modified)), element("ETag", f'"{etag}"')]
    parts += [element(f"Checksum{algorithm.upper()}", value) for algorithm, value in sums.items()]
    return document(name, parts)
