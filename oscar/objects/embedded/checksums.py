"""The checksums of S3: crc32, crc32c, crc64nvme, sha1, sha256; over bodies, and combined over parts.

Called by `intake` (while a body streams in) and `multipart` (when parts become an object). Values travel as
base64 of the big-endian digest. Source: "Checking object integrity" in the S3 user guide.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Sequence
from typing import Protocol

ALGORITHMS = ("crc32", "crc32c", "crc64nvme", "sha1", "sha256")
CRC_WIDTHS = {"crc32": 4, "crc32c": 4, "crc64nvme": 8}
SIZES = {**CRC_WIDTHS, "sha1": 20, "sha256": 32}
"""Length of the raw digest in bytes."""
HEADER = "x-amz-checksum-"

_MODELS = {"crc32": "CRC32", "crc32c": "CRC32-ISCSI", "crc64nvme": "CRC64-NVME"}


class Hash(Protocol):
    """Something that digests a stream."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""

    def digest(self) -> bytes:
        """The raw digest of all bytes so far."""


class _Crc32:
    def __init__(self) -> None:
        self.value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self.value = zlib.crc32(data, self.value)

    def digest(self) -> bytes:
        return self.value.to_bytes(4, "big")


class _Crc:
    def __init__(self, algorithm: str) -> None:
        # Imported on first use: most clients send crc32 only, and this process should stay small.
        import anycrc

        self._calc = anycrc.Model(_MODELS[algorithm]).calc
        self._width = CRC_WIDTHS[algorithm]
        self._value = self._calc(b"")

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = self._calc(data, self._value)

    def digest(self) -> bytes:
        return int(self._value).to_bytes(self._width, "big")


def new(algorithm: str) -> Hash:
    """A fresh digest of one of `ALGORITHMS`."""
    if algorithm == "crc32":
        return _Crc32()
    if algorithm in CRC_WIDTHS:
        return _Crc(algorithm)
    # SHA-1 is one of the checksums of the protocol, not used for security.
    return hashlib.sha1(usedforsecurity=False) if algorithm == "sha1" else hashlib.sha256()


def encode(digest: bytes) -> str:
    """The form in which a digest travels."""
    return base64.b64encode(digest).decode()


def valid(algorithm: str, value: str) -> bool:
    """Whether the value is base64 of a digest of the algorithm's length."""
    try:
        return len(base64.b64decode(value, validate=True)) == SIZES[algorithm]
    except binascii.Error:
        return False


def composite(algorithm: str, values: Sequence[str]) -> str:
    """The checksum of a multipart object of type COMPOSITE: digest of the parts' digests, then `-<parts>`."""
    total = new(algorithm)
    for value in values:
        total.update(base64.b64decode(value))
    return f"{encode(total.digest())}-{len(values)}"


def full_object(algorithm: str, values: Sequence[str], sizes: Sequence[int]) -> str:
    """The checksum of the whole object from the CRCs of its parts, without reading them again.

    Raises:
        ValueError: the algorithm is no CRC and so can't be combined.
    """
    if algorithm not in CRC_WIDTHS:
        raise ValueError(f"{algorithm} can't be combined")
    import anycrc

    combine = anycrc.Model(_MODELS[algorithm]).combine
    numbers = [int.from_bytes(base64.b64decode(value), "big") for value in values]
    total = numbers[0]
    for number, size in zip(numbers[1:], sizes[1:], strict=True):
        total = combine(total, number, size)
    return encode(int(total).to_bytes(CRC_WIDTHS[algorithm], "big"))
