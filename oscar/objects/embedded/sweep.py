"""Removes what a crash left in the folder of bodies, and uploads that nobody finishes.

Started in the background by `server` at start. A body may go when no row names it and no writer holds its lock: the
lock is taken before the rows are asked for the last time, so a writer has either committed by then or is dead.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence

from oscar.errors import UploadNotFound
from oscar.objects.base import ObjectIndex
from oscar.objects.embedded.blobs import Blobs

_BATCH = 500
UPLOAD_LIFE = 7 * 24 * 3600
"""Seconds after which an upload in progress is aborted: as long as a presigned URL may live."""


async def sweep(index: ObjectIndex, blobs: Blobs) -> int:
    """Remove all orphans; the number of files removed."""
    removed = 0
    before = blobs.new_generation()
    for folder in await blobs.run(lambda: list(blobs.all())):
        # What is newer than this sweep has a writer that is alive, or is left to the next sweep.
        names = [name for name in folder if name < before]
        for start in range(0, len(names), _BATCH):
            removed += await _sweep_some(index, blobs, names[start : start + _BATCH])
    return removed


async def _sweep_some(index: ObjectIndex, blobs: Blobs, names: Sequence[str]) -> int:
    used = await index.referenced(names)
    suspects = [name for name in names if name not in used]
    if not suspects:
        return 0
    locked = await blobs.run(_lock, blobs, suspects)
    try:
        used = await index.referenced(list(locked))
        orphans = [name for name in locked if name not in used]
        await blobs.run(blobs.discard, orphans)
    finally:
        for descriptor in locked.values():
            os.close(descriptor)
    return len(orphans)


def _lock(blobs: Blobs, names: Sequence[str]) -> dict[str, int]:
    """Those files that no writer holds, with descriptors that hold their locks. Blocks."""
    locked = {}
    for name in names:
        try:
            descriptor = blobs.open(name)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            locked[name] = descriptor
    return locked


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
