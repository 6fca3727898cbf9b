"""Buckets, objects and their access: the records that `state` keeps and `objects` serves.

Called by `objects` (S3 protocol, blob folder), `state.objects` (rows), `core.storage`. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Visibility(StrEnum):
    """Who sees a bucket or a service besides its owner and the admin."""

    PRIVATE = "private"
    RESTRICTED = "restricted"
    PUBLIC = "public"


@dataclass(frozen=True, slots=True)
class Credential:
    """A key pair for the S3 API and the user that it stands for."""

    access_key: str
    secret_key: str = field(repr=False)
    user: str = ""
    admin: bool = False


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket; `owner` is a user id, times are Unix milliseconds."""

    name: str
    owner: str
    visibility: Visibility = Visibility.PRIVATE
    allowed_users: tuple[str, ...] = ()
    created: int = 0
    service: str | None = None
    """Name of the service that created it; None when a user did."""
    tags: Mapping[str, str] = field(default_factory=dict)
    cors: str | None = None
    """CORS configuration as the XML that the client sent; None = the server's default."""
    policy: str | None = None
    """Bucket policy as the JSON that the client sent."""


@dataclass(frozen=True, slots=True)
class Object:
    """An object: a row that points at an immutable body file, `blobs/<generation>`.

    `etag` is without quotes: MD5 of the body in hex, or `<md5 of md5s>-<parts>` after a multipart upload.
    `generation` is unique over all writes and sorts by time; it stands for the version in event keys.
    """

    bucket: str
    key: str
    generation: str
    size: int
    etag: str
    modified: int
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)
    """Stored system headers, lower-case: content-encoding, cache-control, content-disposition, ..."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """User metadata, lower-case names without the `x-amz-meta-` prefix."""
    tags: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Checksums as sent, by lower-case algorithm name: crc32, crc32c, crc64nvme, sha1, sha256; values base64."""
    parts: int = 0
    """Number of parts of a multipart upload, 0 for a simple one."""
    owner: str = ""
    """The user who wrote it: the `principalId` of its event."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload in progress."""

    id: str
    bucket: str
    key: str
    started: int
    owner: str
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    checksum_algorithm: str = ""
    checksum_type: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One uploaded part, its bytes in `blobs/<generation>` unless they lie in place."""

    upload_id: str
    number: int
    generation: str
    size: int
    etag: str
    modified: int
    checksums: Mapping[str, str] = field(default_factory=dict)

    @property
    def in_place(self) -> bool:
        """Whether its bytes lie in the upload's own file `blobs/<upload_id>`, at (number - 1) * size."""
        return self.generation.startswith(self.upload_id + ".")


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a listing: objects and common prefixes in key order."""

    objects: tuple[Object, ...]
    prefixes: tuple[str, ...]
    truncated: bool
    next_key: str | None
    """The key or prefix after which the next page starts; None at the end."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A service that a stored object may start: a row of its inputs."""

    service_id: str
    service_name: str
    owner: str
    bucket: str
    prefix: str
    """Folder in the bucket, without slashes at its ends."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the rows say about the three nouns of a request; None for what there is not or was not asked."""

    credential: Credential | None
    bucket: Bucket | None
    object: Object | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a bucket holds, in bytes, and what it may hold."""

    objects: int
    size: int
    pending: int = 0
    """Bytes of the parts of uploads in progress: they take room as objects do."""
    limit: int | None = None
    """Bytes that it may hold; None for no limit."""
    limit_source: str = ""
    """Where the limit comes from: `user` (set for its owner) or `default`."""
