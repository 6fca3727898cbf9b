"""Copies inside the server: CopyObject, and the source of UploadPartCopy.

Routed to by `routes`. A copy is made by the kernel (a reflink where the file system has it), never a hard
link.
"""

from __future__ import annotations

import os
from dataclasses import replace
from urllib.parse import unquote

from oscar.model.object import Object
from oscar.objects.embedded import names
from oscar.objects.embedded.attributes import PART_SIZES, read_attributes
from oscar.objects.embedded.blobs import Blobs, copy_range
from oscar.objects.embedded.conditions import check_read, write_conditions
from oscar.objects.embedded.faults import fault, unsupported
from oscar.objects.embedded.intake import NewBlob
from oscar.objects.embedded.objects import check_early, check_object_room, commit_blob, copy_result, retarget
from oscar.objects.embedded.requests import Request
from oscar.objects.embedded.site import Answer, Site, xml_answer

SOURCE = "x-amz-copy-source"
_ATTEMPTS = 8


def parse_source(header: str) -> tuple[str, str]:
    """Bucket and key of a copy source. Raises S3Error: InvalidArgument, NoSuchVersion, NotImplemented."""
    path, _, query = header.partition("?")
    if path.startswith("arn:"):
        raise unsupported("access points")
    if query and query not in {"versionId=null", "versionId="}:
        raise fault("NoSuchVersion")
    try:
        text = unquote(path, errors="strict")
    except UnicodeDecodeError as error:
        raise fault("InvalidArgument", "The copy source is not UTF-8.", ArgumentName=SOURCE) from error
    bucket, separator, key = text.removeprefix("/").partition("/")
    if not bucket or not separator or not key or "\0" in text:
        raise fault("InvalidArgument", "A copy source must be <bucket>/<key>.", ArgumentName=SOURCE)
    return bucket, key


async def open_source(site: Site, request: Request) -> tuple[Object, int]:
    """The source of a copy, permitted and its conditions checked, with an open descriptor of its body.

    Raises:
        S3Error: NoSuchBucket, NoSuchKey, AccessDenied, PreconditionFailed.
    """
    bucket_name, key = parse_source(request.headers[SOURCE])
    for _ in range(_ATTEMPTS):
        known = await site.index.lookup(access_key=None, bucket=bucket_name, key=key)
        if known.bucket is None:
            raise fault("NoSuchBucket", BucketName=bucket_name)
        if not site.authorize(request.credential, "s3:GetObject", known.bucket, key):
            raise fault("AccessDenied")
        if known.object is None:
            raise fault("NoSuchKey", Key=key)
        check_read(request.headers, known.object.etag, known.object.modified, SOURCE + "-")
        try:
            return known.object, site.blobs.open(known.object.generation)
        except FileNotFoundError:
            # Replaced in the meantime: look again.
            continue
    raise fault("ServiceUnavailable", "The source is being replaced all the time; try again.")


def copy_body(blobs: Blobs, source: int, size: int, blob: NewBlob) -> None:
    """Copy a whole body into a new blob and make it durable. Blocks."""
    blobs.check_space(size)
    copy_range(source, blob.descriptor(), size)
    blob.seal()


async def copy_object(site: Site, request: Request) -> Answer:
    """CopyObject."""
    names.check_key(request.key)
    attributes = read_attributes(request)
    new_only, match = write_conditions(request.headers)
    check_early(request, new_only=new_only, match=match)
    fresh_metadata = _directive(request, "x-amz-metadata-directive")
    fresh_tags = _directive(request, "x-amz-tagging-directive")
    source, descriptor = await open_source(site, request)
    blob = NewBlob(site.blobs)
    try:
        if (source.bucket, source.key) == (request.bucket, request.key) and not (
            fresh_metadata or fresh_tags
        ):
            raise fault(
                "InvalidRequest",
                "This copy request is illegal because it is trying to copy an object to itself "
                "without changing its metadata or tags.",
            )
        await check_object_room(site, request, source.size)
        try:
            await site.blobs.run_long(copy_body, site.blobs, descriptor, source.size, blob)
        except BaseException:
            await site.blobs.run(blob.drop)
            raise
    finally:
        os.close(descriptor)
    obj = retarget(source, request, blob.generation, site.now_ms())
    if fresh_metadata:
        sizes = {name: value for name, value in source.headers.items() if name == PART_SIZES}
        obj = replace(
            obj,
            content_type=attributes.content_type,
            headers={**attributes.headers, **sizes},
            metadata=attributes.metadata,
        )
    if fresh_tags:
        obj = replace(obj, tags=attributes.tags)
    freed = await commit_blob(
        site,
        blob,
        lambda: site.index.commit(
            obj,
            event="s3:ObjectCreated:Copy",
            if_none_match=new_only,
            if_match=match,
            source_ip=request.source_ip,
        ),
    )
    site.blobs.discard_later([freed] if freed else [])
    site.on_commit()
    return xml_answer(copy_result("CopyObjectResult", obj.etag, obj.modified, dict(obj.checksums)))


def _directive(request: Request, header: str) -> bool:
    """Whether a directive says REPLACE. Raises S3Error: InvalidArgument."""
    value = request.headers.get(header, "COPY")
    if value not in {"COPY", "REPLACE"}:
        raise fault("InvalidArgument", f"{header} must be COPY or REPLACE.", ArgumentName=header)
    return value == "REPLACE"
