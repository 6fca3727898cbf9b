"""CompleteMultipartUpload: the list of parts checked, and one body made of them.

Routed to by `routes`. Parts that lie in their places (see `slots`) only want the last one behind them; all others are
copied into a new body, by the kernel.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from oscar.model.object import Object, Part, Upload
from oscar.objects.embedded import checksums
from oscar.objects.embedded.attributes import PART_SIZES, checksum_type, pack_sizes
from oscar.objects.embedded.blobs import copy_range
from oscar.objects.embedded.buckets import body_of
from oscar.objects.embedded.conditions import write_conditions
from oscar.objects.embedded.faults import fault
from oscar.objects.embedded.intake import NewBlob
from oscar.objects.embedded.multipart import MAX_PARTS, slots_of, the_upload
from oscar.objects.embedded.objects import commit_blob
from oscar.objects.embedded.requests import Request
from oscar.objects.embedded.site import Answer, Site, xml_answer
from oscar.objects.embedded.slots import MIN_PART, UploadSlots
from oscar.objects.embedded.xml import Node, document, element, parse


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
    upload = await the_upload(site, request)
    slots = await slots_of(site, upload)
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
        await site.blobs.run_long(_join_last, site, upload, plan, only)
        freed = await commit()
    else:
        try:
            await site.blobs.run_long(_join_all, site, plan, blob)
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
