"""The `aws-chunked` body: chunks with signatures and trailing headers, taken apart without I/O.

Called by `intake`, in a worker thread. Feed it bytes in any pieces; it gives back the payload and refuses a
chunk or trailer whose signature is wrong, and a body that ends early or late. Source: "Signature Calculations
for the Authorization Header: Transferring Payload in Multiple Chunks" and "… Including Trailing Headers", S3
API reference.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from oscar.objects.embedded.faults import fault
from oscar.objects.embedded.requests import Claim
from oscar.objects.sigv4 import EMPTY_SHA256, matches

SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
MARKERS = frozenset({SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER})

_MAX_HEADER = 1024
"""Bytes of a chunk's header line: a hex size and a signature."""
_MAX_TRAILERS = 16 * 1024
_MAX_SIZE_DIGITS = 13
_TRAILER_SIGNATURE = "x-amz-trailer-signature"


@dataclass(slots=True)
class ChunkSigner:
    """The chain of chunk signatures; it starts with the signature of the request's headers."""

    key: bytes
    """The derived signing key."""
    claim: Claim
    previous: str = ""

    def __post_init__(self) -> None:
        """Begin with the seed signature."""
        self.previous = self.claim.signature

    def _check(self, kind: str, middle: str, digest: str, signature: str) -> None:
        text = f"{kind}\n{self.claim.timestamp}\n{self.claim.scope}\n{self.previous}\n{middle}{digest}"
        if not matches(self.key, text, signature):
            raise fault("SignatureDoesNotMatch", "The signature of a chunk or of the trailer does not match.")
        self.previous = signature

    def chunk(self, digest: str, signature: str) -> None:
        """Check a chunk by the hex SHA-256 of its data. Raises S3Error: SignatureDoesNotMatch."""
        self._check("AWS4-HMAC-SHA256-PAYLOAD", f"{EMPTY_SHA256}\n", digest, signature)

    def trailer(self, digest: str, signature: str) -> None:
        """Check the trailer by the hex SHA-256 of its lines. Raises S3Error: SignatureDoesNotMatch."""
        self._check("AWS4-HMAC-SHA256-TRAILER", "", digest, signature)


class ChunkDecoder:
    """Takes an `aws-chunked` body apart. `trailers` is filled when the body is complete."""

    def __init__(self, *, signer: ChunkSigner | None, trailer: bool) -> None:
        """Make a decoder.

        Args:
            signer: checks chunk signatures; None for the unsigned form.
            trailer: whether trailing headers are expected.
        """
        self.trailers: dict[str, str] = {}
        self._signer = signer
        self._expects_trailer = trailer
        self._line = bytearray()
        self._left = 0
        """Bytes of the present chunk's data that are still to come."""
        self._gap = False
        """Whether the line break after a chunk's data comes next."""
        self._hash = hashlib.sha256()
        self._signature = ""
        self._ended = False
        self._tail = bytearray()

    def feed(self, data: bytes) -> list[memoryview]:
        """The payload in the next bytes of the body.

        Raises:
            S3Error: SignatureDoesNotMatch, IncompleteBody, MalformedTrailerError.
        """
        payload: list[memoryview] = []
        view = memoryview(data)
        position, end = 0, len(data)
        while position < end:
            if self._left:
                piece = view[position : position + self._left]
                if self._signer:
                    self._hash.update(piece)
                payload.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._close_chunk()
                    self._gap = True
            elif self._ended:
                self._tail += view[position:]
                position = end
                if len(self._tail) > _MAX_TRAILERS:
                    raise fault("MalformedTrailerError", "The trailing headers are too long.")
            else:
                position = self._read_line(data, position)
        return payload

    def _read_line(self, data: bytes, position: int) -> int:
        """Take bytes up to a line break into the header line; the position after them."""
        found = data.find(b"\n", position)
        stop = len(data) if found < 0 else found + 1
        self._line += data[position:stop]
        if len(self._line) > _MAX_HEADER:
            raise fault("IncompleteBody", "The header of a chunk is too long.")
        if found >= 0:
            line = bytes(self._line).rstrip(b"\r\n")
            self._line.clear()
            if self._gap:
                if line:
                    raise fault("IncompleteBody", "A chunk is longer than its size says.")
                self._gap = False
            else:
                self._open_chunk(line)
        return stop

    def _open_chunk(self, line: bytes) -> None:
        size, _, extension = line.partition(b";")
        size = size.strip()
        if not size or len(size) > _MAX_SIZE_DIGITS or not all(c in b"0123456789abcdefABCDEF" for c in size):
            raise fault("IncompleteBody", "The size of a chunk is not a hexadecimal number.")
        name, _, value = extension.strip().partition(b"=")
        if self._signer:
            if name != b"chunk-signature":
                raise fault("SignatureDoesNotMatch", "A chunk has no signature.")
            self._signature = value.decode("latin-1")
            self._hash = hashlib.sha256()
        self._left = int(size, 16)
        if not self._left:
            self._close_chunk()
            self._ended = True

    def _close_chunk(self) -> None:
        if self._signer:
            self._signer.chunk(self._hash.hexdigest(), self._signature)

    def finish(self) -> None:
        """The body has ended: check that it is complete, and the trailer.

        Raises:
            S3Error: IncompleteBody, MalformedTrailerError, SignatureDoesNotMatch.
        """
        if not self._ended:
            raise fault("IncompleteBody", "The body ended before its last chunk.")
        lines = [line.strip() for line in bytes(self._tail).split(b"\n")]
        lines = [line for line in lines if line]
        if lines and not self._expects_trailer:
            raise fault("IncompleteBody", "There are bytes after the last chunk.")
        for line in lines:
            name, separator, value = line.partition(b":")
            if not separator or not name.isascii() or not value.isascii():
                raise fault("MalformedTrailerError")
            self.trailers[name.decode().strip().lower()] = value.decode().strip()
        signature = self.trailers.pop(_TRAILER_SIGNATURE, None)
        if self._signer and self._expects_trailer:
            if signature is None:
                raise fault("SignatureDoesNotMatch", "The trailer has no signature.")
            canonical = "".join(f"{name}:{value}\n" for name, value in sorted(self.trailers.items()))
            self._signer.trailer(hashlib.sha256(canonical.encode()).hexdigest(), signature)
