"""Where the parts of a multipart upload lie: most go straight to their place in the final file.

Called by `multipart`. Clients send parts of one size, the last one smaller. So part n of size P belongs at
offset (n - 1) * P of the final body, which is the file named by the upload's id, and completing the upload
copies nothing but the last part. A part that doesn't fit this scheme (another size, sent twice) gets a file
of its own. This memory of who writes where is rebuilt from the rows of the parts after a restart
(`Part.in_place`). Only one process may take parts: the S3 server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from oscar.model.object import Part

MIN_PART = 5 * 1024 * 1024
"""Bytes of every part but the last."""
_MARKS = 4096
MAX_FILE = 5 * 1024**4


@dataclass(slots=True)
class UploadSlots:
    """The final file of one upload."""

    size: int = 0
    """Bytes of each part in its place; 0 until there is one."""
    taken: set[int] = field(default_factory=set)
    """Numbers whose place holds a part, or is being written."""
    writing: set[int] = field(default_factory=set)
    closed: bool = False
    """Whether the upload is being completed, or over."""
    completing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Slots:
    """The uploads that this process has seen parts of."""

    def __init__(self) -> None:
        self._uploads: dict[str, UploadSlots] = {}
        self._over: deque[str] = deque()

    def get(self, upload_id: str) -> UploadSlots | None:
        """What is known of an upload, None after a restart or before its first part."""
        return self._uploads.get(upload_id)

    def load(self, upload_id: str, parts: Iterable[Part]) -> UploadSlots:
        """Begin from the rows of an upload's parts, unless it is known by now."""
        known = self._uploads.get(upload_id)
        if known is None:
            known = self._uploads[upload_id] = UploadSlots()
            for part in parts:
                if part.in_place:
                    known.size = part.size
                    known.taken.add(part.number)
        return known

    def forget(self, upload_id: str) -> None:
        """The upload is over. Its mark stays for a while, so that a late part claims no place in a finished file."""
        self._uploads[upload_id] = UploadSlots(closed=True)
        self._over.append(upload_id)
        if len(self._over) > _MARKS:
            self._uploads.pop(self._over.popleft(), None)


def claim(slots: UploadSlots, number: int, length: int | None) -> int | None:
    """The offset at which this part may be written in its place, None when it needs a file of its own."""
    if slots.closed or length is None or length < MIN_PART or number in slots.taken:
        return None
    if slots.size not in {0, length} or number * length > MAX_FILE:
        return None
    slots.size = length
    slots.taken.add(number)
    slots.writing.add(number)
    return (number - 1) * length


def settle(slots: UploadSlots, number: int, *, stored: bool) -> None:
    """The writing of a claimed place has ended; a failed one may be claimed again."""
    slots.writing.discard(number)
    if not stored:
        slots.taken.discard(number)
        if not slots.taken:
            slots.size = 0
