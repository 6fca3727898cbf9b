"""What every S3 operation works with (`Site`) and what it gives back (`Answer`).

`Site` is put together by `server.S3App` from what the composition root hands in; the operations get it as
their first argument. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from oscar.model.object import Bucket, Credential
from oscar.objects.base import ObjectIndex
from oscar.objects.embedded.blobs import Blobs
from oscar.objects.embedded.slots import Slots

Authorize = Callable[[Credential | None, str, Bucket, str], bool]
"""May this key pair (None: nobody) do that action (`s3:GetObject`) on the bucket and key ("" for none)?"""
CheckPolicy = Callable[[str, str], None]
"""Check the text of a policy for the bucket of that name; raises InvalidField with the reason."""

XML_TYPE = "application/xml"


@dataclass(frozen=True, slots=True)
class Site:
    """The parts of a running S3 server."""

    index: ObjectIndex
    blobs: Blobs
    slots: Slots
    authorize: Authorize
    check_policy: CheckPolicy
    may_create: Callable[[Credential], bool]
    on_commit: Callable[[], None]
    """Called after a commit that may have enqueued jobs."""
    region: str
    max_object: int
    """Bytes."""
    cors_origins: Sequence[str]
    now: Callable[[], float]
    """Unix seconds."""

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return int(self.now() * 1000)


@dataclass(slots=True)
class FileBody:
    """A part of an open file; the sender closes it."""

    descriptor: int
    offset: int
    length: int


@dataclass(slots=True)
class Answer:
    """A response; names of headers in lower case."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    file: FileBody | None = None
    length: int | None = None
    """Content-Length where it isn't that of the body: HEAD."""


def xml_answer(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """An answer with an XML document."""
    return Answer(status, body, {"content-type": XML_TYPE, **(headers or {})})
