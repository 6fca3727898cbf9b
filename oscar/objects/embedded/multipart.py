"""Multipart uploads: begin, parts, complete, abort, lists.

Routed to by `routes`. Where the bytes of a part go is decided by `slots`; completing an upload whose parts
lie in their places copies nothing but the last one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from oscar.errors import UploadNotFound
from oscar.model.object import Object, Part, Upload
from oscar.objects.embedded import checksums, names
from oscar.objects.embedded.attributes import (
    PART_SIZES,
    checksum_headers,
    checksum_type,
    pack_sizes,
    read_attributes,
)
from oscar.objects.embedded.blobs import copy_range, write_at
from oscar.objects.embedded.buckets import body_of, iso_time, owner_xml
from oscar.objects.embedded.conditions import parse_range, write_conditions
from oscar.objects.embedded.copies import SOURCE, open_source
from oscar.objects.embedded.faults import fault
from oscar.objects.embedded.intake import Expected, Intake, NewBlob, Received, announced, receive_all
from oscar.objects.embedded.listings import url_encoder
from oscar.objects.embedded.objects import commit_blob, copy_result, receive_blob
from oscar.objects.embedded.requests import Request
from oscar.objects.embedded.site import Answer, Site, xml_answer
from oscar.objects.embedded.slots import MIN_PART, UploadSlots, claim, settle
from oscar.objects.embedded.xml import Node, document, element, group, parse

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


async def _the_upload(site: Site, request: Request) -> Upload:
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


async def _slots_of(site: Site, upload: Upload) -> UploadSlots:
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
    upload = await _the_upload(site, request)
    _expect_checksum(upload, expected)
    site.blobs.check_space(expected.length or 0)
    slots = await _slots_of(site, upload)
    offset = claim(slots, number, expected.length)
    if offset is None:
        blob = NewBlob(site.blobs, expected)
        received = await receive_blob(site, request.receive, blob)
        await _put_part(site, upload, number, received, blob)
    else:
        received = await _fill_place(site, request, upload, number, expected, slots, offset)
    return Answer(headers={"etag": f'"{received.md5}"', **_sums(received.checksums)})


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
    upload = await _the_upload(site, request)
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
        expected = Expected(length=length, trailer=upload.checksum_algorithm or None)
        blob = NewBlob(site.blobs, expected)
        try:
            received = await site.blobs.run(_read_into, descriptor, start, length, blob)
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


@dataclass(frozen=True, slots=True)
class _Plan:
    """A checked list of parts and what follows from it."""

    parts: Sequence[Part]
    sizes: list[int]
    size: int
    etag: str
    sums: dict[str, str]


async def complete_upload(site: Site, request: Request) -> Answer:
    """CompleteMultipartUpload."""
    entries = parse(await body_of(request), "CompleteMultipartUpload").all("Part")
    new_only, match = write_conditions(request.headers)
    upload = await _the_upload(site, request)
    slots = await _slots_of(site, upload)
    async with slots.completing:
        there = {part.number: part for part in await site.index.parts(upload.id)}
        plan = _check_parts(request, upload, entries, there)
        slots.closed = True
        try:
            obj = await _assemble(
                site,
                request,
                upload,
                plan,
                slots,
                only=len(there) == len(plan.parts),
                new_only=new_only,
                match=match,
            )
        except BaseException:
            slots.closed = False
            raise
        site.slots.forget(upload.id)
    site.on_commit()
    parts = (
        element("Location", f"http://{request.host}{request.path}"),
        element("Bucket", obj.bucket),
        element("Key", obj.key),
        element("ETag", f'"{obj.etag}"'),
        *(element(f"Checksum{name.upper()}", value) for name, value in plan.sums.items()),
        *((element("ChecksumType", checksum_type(plan.sums)),) if plan.sums else ()),
    )
    return xml_answer(document("CompleteMultipartUploadResult", parts))


def _check_parts(request: Request, upload: Upload, entries: list[Node], there: dict[int, Part]) -> _Plan:
    if not 1 <= len(entries) <= MAX_PARTS:
        raise fault("MalformedXML", f"An upload is completed with 1 to {MAX_PARTS} parts.")
    parts: list[Part] = []
    for entry in entries:
        number, etag = (
            (entry.value("PartNumber") or "").strip(),
            (entry.value("ETag") or "").strip().strip('"'),
        )
        if not number.isascii() or not number.isdigit() or not etag:
            raise fault("MalformedXML", "A Part needs a PartNumber and an ETag.")
        if parts and int(number) <= parts[-1].number:
            raise fault("InvalidPartOrder", UploadId=upload.id)
        part = there.get(int(number))
        if part is None or part.etag != etag or not _sums_agree(entry, part):
            raise fault("InvalidPart", UploadId=upload.id, PartNumber=int(number), ETag=etag)
        parts.append(part)
    for part in parts[:-1]:
        if part.size < MIN_PART:
            raise fault(
                "EntityTooSmall",
                ProposedSize=part.size,
                MinSizeAllowed=MIN_PART,
                PartNumber=part.number,
                ETag=part.etag,
            )
    sizes = [part.size for part in parts]
    announced_size = request.headers.get("x-amz-mp-object-size")
    if announced_size is not None and announced_size != str(sum(sizes)):
        raise fault("InvalidRequest", "x-amz-mp-object-size is not the sum of the sizes of the parts.")
    md5 = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts), usedforsecurity=False)
    etag = f"{md5.hexdigest()}-{len(parts)}"
    return _Plan(parts, sizes, sum(sizes), etag, _total_sums(request, upload, parts, sizes))


def _sums_agree(entry: Node, part: Part) -> bool:
    for algorithm in checksums.ALGORITHMS:
        value = entry.value(f"Checksum{algorithm.upper()}")
        if value is not None and part.checksums.get(algorithm) != value.strip():
            return False
    return True


def _total_sums(request: Request, upload: Upload, parts: list[Part], sizes: list[int]) -> dict[str, str]:
    algorithm = upload.checksum_algorithm
    if not algorithm:
        return {}
    values = [part.checksums.get(algorithm, "") for part in parts]
    if not all(values):
        return {}
    if upload.checksum_type == "FULL_OBJECT":
        total = checksums.full_object(algorithm, values, sizes)
    else:
        total = checksums.composite(algorithm, values)
    claimed = request.headers.get(checksums.HEADER + algorithm)
    if claimed is not None and claimed.partition("-")[0] != total.partition("-")[0]:
        raise fault("BadDigest", f"The {algorithm} that you gave is not that of the parts together.")
    return {algorithm: total}


async def _assemble(
    site: Site,
    request: Request,
    upload: Upload,
    plan: _Plan,
    slots: UploadSlots,
    *,
    only: bool,
    new_only: bool,
    match: str | None,
) -> Object:
    in_place = not slots.writing and _fits(plan)
    blob = None if in_place else NewBlob(site.blobs)

    async def commit() -> Sequence[str]:
        return await site.index.complete_upload(
            upload.id, obj, if_none_match=new_only, if_match=match, source_ip=request.source_ip
        )

    obj = Object(
        bucket=upload.bucket,
        key=upload.key,
        generation=blob.generation if blob else upload.id,
        size=plan.size,
        etag=plan.etag,
        modified=site.now_ms(),
        content_type=upload.content_type,
        headers={**upload.headers, PART_SIZES: pack_sizes(plan.sizes)},
        metadata=upload.metadata,
        tags=upload.tags,
        checksums=plan.sums,
        parts=len(plan.parts),
        owner=upload.owner,
    )
    if blob is None:
        await site.blobs.run(_join_last, site, upload, plan, only)
        freed = await commit()
    else:
        try:
            await site.blobs.run(_join_all, site, plan, blob)
        except BaseException:
            await site.blobs.run(blob.drop)
            raise
        freed = await commit_blob(site, blob, commit)
    site.blobs.discard_later(freed)
    return obj


def _fits(plan: _Plan) -> bool:
    """Whether the parts, but perhaps the last, lie one after the other in the upload's own file."""
    numbers = [part.number for part in plan.parts]
    if numbers != list(range(1, len(numbers) + 1)):
        return False
    *before, last = plan.parts
    placed = all(part.in_place for part in before)
    if last.in_place:
        return placed
    return placed and bool(before) and last.size <= before[-1].size


def _join_last(site: Site, upload: Upload, plan: _Plan, only: bool) -> None:
    """Put the last part behind the others in the upload's own file. Blocks."""
    last = plan.parts[-1]
    if last.in_place and not only:
        return
    target = site.blobs.reopen(upload.id)
    try:
        if not last.in_place:
            site.blobs.check_space(last.size)
            source = site.blobs.open(last.generation)
            try:
                copy_range(source, target, last.size, 0, plan.size - last.size)
            finally:
                os.close(source)
        if only and os.fstat(target).st_size > plan.size:
            # Left by a failed part. With rows of parts beyond, those bytes may still be asked for.
            os.ftruncate(target, plan.size)
        site.blobs.seal(target, upload.id)
    finally:
        os.close(target)


def _join_all(site: Site, plan: _Plan, blob: NewBlob) -> None:
    """Copy all parts into a new blob. Blocks."""
    site.blobs.check_space(plan.size)
    offset, target = 0, blob.descriptor()
    for part in plan.parts:
        source = site.blobs.open(part.upload_id if part.in_place else part.generation)
        try:
            start = (part.number - 1) * part.size if part.in_place else 0
            copy_range(source, target, part.size, start, offset)
        finally:
            os.close(source)
        offset += part.size
    blob.seal()


async def abort_upload(site: Site, request: Request) -> Answer:
    """AbortMultipartUpload."""
    upload = await _the_upload(site, request)
    slots = await _slots_of(site, upload)
    async with slots.completing:
        slots.closed = True
        freed = await site.index.abort_upload(upload.id)
        site.slots.forget(upload.id)
    site.blobs.discard_later(freed)
    return Answer(204)


async def list_parts(site: Site, request: Request) -> Answer:
    """ListParts."""
    upload = await _the_upload(site, request)
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
