"""Removes what a crash left in the folder of bodies, and uploads that nobody finishes.

Run in the background by `server`, at start and every few hours. A body may go when no row names it and the
process that wrote it is dead. That it is dead is known before the rows are asked, so nothing can be committed
in between.
"""

from __future__ import annotations

from oscar.errors import UploadNotFound
from oscar.objects.base import ObjectIndex
from oscar.objects.embedded.blobs import Blobs

_BATCH = 500
UPLOAD_LIFE = 7 * 24 * 3600
"""Seconds after which an upload in progress is aborted: as long as a presigned URL may live."""


async def sweep(index: ObjectIndex, blobs: Blobs) -> int:
    """Remove all orphans; the number of files removed."""
    removed = 0
    _, dead = await blobs.run(blobs.writers)
    folders = blobs.unowned()
    while (names := await blobs.run(next, folders, None)) is not None:
        for start in range(0, len(names), _BATCH):
            suspects = names[start : start + _BATCH]
            used = await index.referenced(suspects)
            orphans = [name for name in suspects if name not in used]
            await blobs.run(blobs.discard, orphans)
            removed += len(orphans)
    await blobs.run(blobs.forget_writers, dead)
    return removed


async def expire_uploads(index: ObjectIndex, blobs: Blobs, now_ms: int) -> int:
    """Abort uploads begun too long ago; their number."""
    count = 0
    for bucket in await index.buckets():
        for upload in await index.uploads(bucket.name):
            if now_ms - upload.started > UPLOAD_LIFE * 1000:
                try:
                    blobs.discard_later(await index.abort_upload(upload.id))
                except UploadNotFound:
                    continue  # finished or aborted by its client in the meantime
                count += 1
    return count
