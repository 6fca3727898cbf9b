"""Multipart uploads: begin, parts, abort, lists. `completion` makes the object of them.

Routed to by `routes`. Where the bytes of a part go is decided by `slots`; completing an upload whose parts
lie in their places copies nothing but the last one.
"""

from __future__ import annotations

import os

from oscar.errors import UploadNotFound
from oscar.model.object import Part, Upload
from oscar.objects.embedded import checksums, names
from oscar.objects.embedded.attributes import (
    checksum_headers,
    read_attributes,
)
from oscar.objects.embedded.blobs import write_at
from oscar.objects.embedded.buckets import body_of, iso_time, owner_xml
from oscar.objects.embedded.conditions import parse_range
from oscar.objects.embedded.copies import SOURCE, open_source
from oscar.objects.embedded.faults import fault
from oscar.objects.embedded.intake import Expected, Intake, NewBlob, Received, announced, receive_all
from oscar.objects.embedded.listings import url_encoder
from oscar.objects.embedded.objects import check_room, commit_blob, copy_result, receive_blob
from oscar.objects.embedded.requests import Request
from oscar.objects.embedded.site import Answer, Site, xml_answer
from oscar.objects.embedded.slots import UploadSlots, claim, settle
from oscar.objects.embedded.xml import document, element, group

MAX_PARTS = 10_000
_COPY_BUFFER = 1024 * 1024


async def create_upload(site: Site, request: Request) -> Answer:
    """CreateMultipartUpload. The upload's id is the generation of the object to come."""
    names.check_key(request.key)
    attributes = read_attributes(request)
    await body_of(request)
    algorithm = request.headers.get("x-amz-checksum-algorithm", "").lower()
    if algorithm and algorithm not in checksums.ALGORITHMS:
        raise fault("InvalidRequest", "The checksum algorithm is not supported.")
    kind = request.headers.get("x-amz-checksum-type", "").upper()
    if algorithm and not kind:
        kind = "FULL_OBJECT" if algorithm == "crc64nvme" else "COMPOSITE"
    if kind == "FULL_OBJECT" and algorithm not in checksums.CRC_WIDTHS:
        raise fault(
            "InvalidRequest", f"The type FULL_OBJECT is not possible for {algorithm or 'no algorithm'}."
        )
    upload = Upload(
        id=site.blobs.new_generation(),
        bucket=request.bucket,
        key=request.key,
        started=site.now_ms(),
        owner=request.user,
        content_type=attributes.content_type,
        headers=attributes.headers,
        metadata=attributes.metadata,
        tags=attributes.tags,
        checksum_algorithm=algorithm,
        checksum_type=kind,
    )
    await site.index.create_upload(upload)
    parts = (
        element("Bucket", upload.bucket),
        element("Key", upload.key),
        element("UploadId", upload.id),
    )
    headers = {}
    if algorithm:
        headers = {"x-amz-checksum-algorithm": algorithm.upper(), "x-amz-checksum-type": kind}
    return xml_answer(document("InitiateMultipartUploadResult", parts), headers=headers)


async def the_upload(site: Site, request: Request) -> Upload:
    """The upload that the request names. Raises S3Error: NoSuchUpload."""
    upload_id = request.query.get("uploadId", "")
    upload = await site.index.upload(upload_id)
    if upload is None or (upload.bucket, upload.key) != (request.bucket, request.key):
        raise fault("NoSuchUpload", UploadId=upload_id)
    return upload


def _part_number(request: Request) -> int:
    number = request.number("partNumber", least=1, most=MAX_PARTS)
    if number is None:
        raise fault("InvalidArgument", "partNumber is missing.", ArgumentName="partNumber")
    return number


async def slots_of(site: Site, upload: Upload) -> UploadSlots:
    """Where the parts of the upload lie, from memory or from their rows."""
    return site.slots.get(upload.id) or site.slots.load(upload.id, await site.index.parts(upload.id))


class _Place:
    """A part being written into its place in the upload's own file."""

    def __init__(self, site: Site, upload: Upload, offset: int, expected: Expected) -> None:
        self._blobs = site.blobs
        self._generation = upload.id
        self._offset = offset
        self._descriptor = -1
        self._length = expected.length or 0
        self._intake = Intake(expected, self.write)

    def write(self, pieces: list[memoryview], offset: int) -> int:
        if offset + sum(map(len, pieces)) > self._length:
            # Never into the place of the next part.
            raise fault("IncompleteBody", "The body is longer than announced.")
        self._blobs.check_space(self._length - offset)
        return write_at(self.descriptor(), pieces, self._offset + offset)

    def descriptor(self) -> int:
        if self._descriptor < 0:
            self._descriptor = self._blobs.reopen(self._generation)
        return self._descriptor

    def feed(self, data: list[bytes]) -> None:
        self._intake.feed(data)

    def finish(self, data: list[bytes]) -> Received:
        self._intake.feed(data)
        received = self._intake.finish()
        self._blobs.seal(self.descriptor(), self._generation)
        return received

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


async def upload_part(site: Site, request: Request) -> Answer:
    """UploadPart."""
    if SOURCE in request.headers:
        return await _copy_part(site, request)
    number = _part_number(request)
    expected = announced(request, limit=site.max_object)
    upload = await the_upload(site, request)
    _expect_checksum(upload, expected)
    site.blobs.check_space(expected.length or 0)
    await _check_part_room(site, request, upload, number, expected.length or 0)
    slots = await slots_of(site, upload)
    offset = claim(slots, number, expected.length)
    if offset is None:
        blob = NewBlob(site.blobs, expected)
        received = await receive_blob(site, request.receive, blob)
        await _put_part(site, upload, number, received, blob)
    else:
        received = await _fill_place(site, request, upload, number, expected, slots, offset)
    return Answer(headers={"etag": f'"{received.md5}"', **_sums(received.checksums)})


async def _check_part_room(site: Site, request: Request, upload: Upload, number: int, size: int) -> None:
    async def replaced() -> int:
        return sum(part.size for part in await site.index.parts(upload.id) if part.number == number)

    await check_room(site, request, size, replaced)


def _expect_checksum(upload: Upload, expected: Expected) -> None:
    """Have the algorithm of the upload computed for every part, also where the client gives no value."""
    algorithm = upload.checksum_algorithm
    given = next(iter(expected.checksums), None) or expected.trailer
    if algorithm and given is None:
        expected.trailer = algorithm
    elif algorithm and given != algorithm:
        raise fault(
            "InvalidRequest",
            f"The upload was begun with the checksum {algorithm}, this part has {given}.",
        )


def _sums(values: dict[str, str]) -> dict[str, str]:
    headers = checksum_headers(values)
    headers.pop("x-amz-checksum-type", None)
    return headers


async def _fill_place(
    site: Site,
    request: Request,
    upload: Upload,
    number: int,
    expected: Expected,
    slots: UploadSlots,
    offset: int,
) -> Received:
    place = _Place(site, upload, offset, expected)
    stored = False
    try:
        received = await receive_all(request.receive, site.blobs, place.feed, place.finish)
        # From here on the row may exist, whatever happens: this place is never given away again.
        stored = True
        part = Part(
            upload.id,
            number,
            f"{upload.id}.{number}",
            received.size,
            received.md5,
            site.now_ms(),
            received.checksums,
        )
        freed = await site.index.put_part(part)
        site.blobs.discard_later([freed] if freed else [])
    except UploadNotFound:
        # Aborted, or completed by copying since a place was being written: nobody needs the upload's own file.
        site.blobs.discard_later([upload.id])
        raise
    finally:
        settle(slots, number, stored=stored)
        place.close()
    return received


async def _put_part(site: Site, upload: Upload, number: int, received: Received, blob: NewBlob) -> Part:
    part = Part(
        upload.id, number, blob.generation, received.size, received.md5, site.now_ms(), received.checksums
    )
    freed = await commit_blob(site, blob, lambda: site.index.put_part(part))
    site.blobs.discard_later([freed] if freed else [])
    return part


async def _copy_part(site: Site, request: Request) -> Answer:
    """UploadPartCopy: read once more, because the part needs an MD5 of its own."""
    number = _part_number(request)
    upload = await the_upload(site, request)
    source, descriptor = await open_source(site, request)
    try:
        start, length = 0, source.size
        asked = request.headers.get(SOURCE + "-range")
        if asked is not None:
            found = parse_range(asked, source.size)
            if found is None or not asked.endswith(str(found[0] + found[1] - 1)):
                raise fault(
                    "InvalidArgument",
                    "x-amz-copy-source-range must be of the form bytes=first-last within the source.",
                    ArgumentName=SOURCE + "-range",
                )
            start, length = found
        await _check_part_room(site, request, upload, number, length)
        expected = Expected(length=length, trailer=upload.checksum_algorithm or None)
        blob = NewBlob(site.blobs, expected)
        try:
            received = await site.blobs.run_long(_read_into, descriptor, start, length, blob)
        except BaseException:
            await site.blobs.run(blob.drop)
            raise
    finally:
        os.close(descriptor)
    part = await _put_part(site, upload, number, received, blob)
    return xml_answer(copy_result("CopyPartResult", part.etag, part.modified, dict(part.checksums)))


def _read_into(source: int, start: int, length: int, blob: NewBlob) -> Received:
    done = 0
    while done < length:
        data = os.pread(source, min(_COPY_BUFFER, length - done), start + done)
        if not data:
            break
        blob.feed([data])
        done += len(data)
    return blob.finish([])


async def abort_upload(site: Site, request: Request) -> Answer:
    """AbortMultipartUpload."""
    upload = await the_upload(site, request)
    slots = await slots_of(site, upload)
    async with slots.completing:
        slots.closed = True
        freed = await site.index.abort_upload(upload.id)
        site.slots.forget(upload.id)
    site.blobs.discard_later(freed)
    return Answer(204)


async def list_parts(site: Site, request: Request) -> Answer:
    """ListParts."""
    upload = await the_upload(site, request)
    marker = request.number("part-number-marker", 0) or 0
    limit = min(request.number("max-parts", 1000) or 0, 1000)
    rest = [part for part in await site.index.parts(upload.id) if part.number > marker]
    page = rest[:limit]
    encode = url_encoder(request)
    parts = [
        element("Bucket", upload.bucket),
        element("Key", encode(upload.key)),
        element("UploadId", upload.id),
        owner_xml(upload.owner, "Initiator"),
        owner_xml(upload.owner),
        element("StorageClass", "STANDARD"),
        element("PartNumberMarker", marker),
        element("MaxParts", limit),
        element("IsTruncated", len(rest) > len(page)),
    ]
    if page:
        parts.append(element("NextPartNumberMarker", page[-1].number))
    if upload.checksum_algorithm:
        parts.append(element("ChecksumAlgorithm", upload.checksum_algorithm.upper()))
        parts.append(element("ChecksumType", upload.checksum_type))
    for part in page:
        row = [
            element("PartNumber", part.number),
            element("LastModified", iso_time(part.modified)),
            element("ETag", f'"{part.etag}"'),
            element("Size", part.size),
        ]
        row += [element(f"Checksum{name.upper()}", value) for name, value in part.checksums.items()]
        parts.append(group("Part", row))
    return xml_answer(document("ListPartsResult", parts))


async def list_uploads(site: Site, request: Request) -> Answer:
    """ListMultipartUploads."""
    query, encode = request.query, url_encoder(request)
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    key_marker, id_marker = query.get("key-marker", ""), query.get("upload-id-marker", "")
    limit = min(request.number("max-uploads", 1000) or 0, 1000)
    rows: list[str] = []
    folded: list[str] = []
    last: tuple[str, str] | None = None
    truncated = False
    for upload in await site.index.uploads(request.bucket, prefix=prefix):
        cut = upload.key.find(delimiter, len(prefix)) if delimiter else -1
        common = upload.key[: cut + len(delimiter)] if cut >= 0 else ""
        if common in folded or (common and common <= key_marker):
            continue
        position = (upload.key, upload.id)
        if key_marker and not common and position <= (key_marker, id_marker or "\U0010ffff"):
            continue
        if len(rows) + len(folded) >= limit:
            truncated = True
            break
        if common:
            folded.append(common)
            last = (common, "")
        else:
            rows.append(_upload_row(upload, encode(upload.key)))
            last = position
    parts = [
        element("Bucket", request.bucket),
        element("KeyMarker", encode(key_marker)),
        element("UploadIdMarker", id_marker),
        element("Prefix", encode(prefix)),
        element("MaxUploads", limit),
        element("IsTruncated", truncated),
    ]
    if delimiter:
        parts.append(element("Delimiter", encode(delimiter)))
    if query.get("encoding-type"):
        parts.append(element("EncodingType", "url"))
    if truncated and last:
        parts += [element("NextKeyMarker", encode(last[0])), element("NextUploadIdMarker", last[1])]
    parts += rows
    parts += [group("CommonPrefixes", (element("Prefix", encode(common)),)) for common in folded]
    return xml_answer(document("ListMultipartUploadsResult", parts))


def _upload_row(upload: Upload, key: str) -> str:
    row = [
        element("Key", key),
        element("UploadId", upload.id),
        owner_xml(upload.owner, "Initiator"),
        owner_xml(upload.owner),
        element("StorageClass", "STANDARD"),
        element("Initiated", iso_time(upload.started)),
    ]
    if upload.checksum_algorithm:
        row.append(element("ChecksumAlgorithm", upload.checksum_algorithm.upper()))
        row.append(element("ChecksumType", upload.checksum_type))
    return group("Upload", row)
