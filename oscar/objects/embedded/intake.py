"""A body on its way from the network to a file: decoded, counted, hashed, checked, written.

Called by the operations that take a body (`objects`, `multipart`, `forms`, and small documents everywhere);
calls `chunked`, `checksums`, `blobs`. The event loop gathers about a megabyte, a worker thread decodes,
hashes and writes it while the next megabyte arrives; a small body is one single piece of work in one thread.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from oscar.objects.embedded import checksums
from oscar.objects.embedded.blobs import Blobs, result, settled, write_at
from oscar.objects.embedded.chunked import MARKERS, SIGNED, UNSIGNED_TRAILER, ChunkDecoder, ChunkSigner
from oscar.objects.embedded.faults import ClientGone, fault
from oscar.objects.embedded.requests import Message, Receive, Request
from oscar.objects.sigv4 import UNSIGNED

STALL = 300.0
"""Seconds that a client may take for the next piece of its body."""
MAX_OBJECT = 5 * 1024**4
_SHA256_HEX = 64


@dataclass(slots=True)
class Expected:
    """What the request announces about its body."""

    length: int | None = None
    """Of the payload, in bytes."""
    sha256: str | None = None
    md5: bytes | None = None
    checksums: dict[str, str] = field(default_factory=dict)
    """Algorithm -> value in a header."""
    trailer: str | None = None
    """Algorithm whose value comes after the body, or the one to compute when no value is given."""
    trailer_required: bool = False
    decoder: ChunkDecoder | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A body that has arrived and been checked."""

    size: int
    md5: str
    """Hex."""
    checksums: dict[str, str]


def announced(request: Request, *, limit: int = MAX_OBJECT) -> Expected:
    """Read what the headers say about the body.

    Args:
        request: the request, its signature checked.
        limit: largest payload in bytes.

    Raises:
        S3Error: EntityTooLarge, InvalidDigest, InvalidRequest, MissingContentLength, NotImplemented.
    """
    headers, claim = request.headers, request.claim
    expected = Expected()
    marker = claim.payload if claim else headers.get("x-amz-content-sha256", UNSIGNED)
    length = headers.get("content-length")
    if marker in MARKERS:
        length = headers.get("x-amz-decoded-content-length")
        if length is None:
            raise fault("MissingContentLength", "The header x-amz-decoded-content-length is required.")
        signed = marker != UNSIGNED_TRAILER
        if signed and claim is None:
            raise fault("InvalidRequest", "Signed chunks need a signed request.")
        signer = ChunkSigner(request.signing_key, claim) if signed and claim else None
        expected.decoder = ChunkDecoder(signer=signer, trailer=marker != SIGNED)
    elif marker.startswith("STREAMING-"):
        raise fault("NotImplemented", f"This server does not implement {marker}.")
    elif marker != UNSIGNED:
        if len(marker) != _SHA256_HEX:
            raise fault(
                "InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD or a SHA-256 in hex."
            )
        expected.sha256 = marker.lower()
    if length is not None:
        if not length.isascii() or not length.isdigit():
            raise fault("InvalidArgument", "The length of the body is not a number.")
        expected.length = int(length)
        if expected.length > limit:
            raise fault("EntityTooLarge", ProposedSize=expected.length, MaxSizeAllowed=limit)
    _read_digests(request, expected)
    return expected


def _read_digests(request: Request, expected: Expected) -> None:
    headers = request.headers
    md5 = headers.get("content-md5")
    if md5 is not None:
        try:
            expected.md5 = base64.b64decode(md5, validate=True)
        except binascii.Error as error:
            raise fault("InvalidDigest", "Content-MD5 is not base64.") from error
        if len(expected.md5) != hashlib.md5(usedforsecurity=False).digest_size:
            raise fault("InvalidDigest", "Content-MD5 is not an MD5.")
    for algorithm in checksums.ALGORITHMS:
        value = headers.get(checksums.HEADER + algorithm)
        if value is not None:
            if not checksums.valid(algorithm, value):
                raise fault("InvalidRequest", f"Value for {checksums.HEADER}{algorithm} header is invalid.")
            expected.checksums[algorithm] = value
    if len(expected.checksums) > 1:
        raise fault("InvalidRequest", "Expecting a single x-amz-checksum- header.")
    trailer = headers.get("x-amz-trailer")
    if trailer is not None and expected.decoder:
        algorithm = trailer.strip().lower().removeprefix(checksums.HEADER)
        if algorithm not in checksums.ALGORITHMS:
            raise fault("InvalidRequest", "The value specified in the x-amz-trailer header is not supported.")
        expected.trailer, expected.trailer_required = algorithm, True
    elif not expected.checksums:
        asked = headers.get(
            "x-amz-sdk-checksum-algorithm", headers.get("x-amz-checksum-algorithm", "")
        ).lower()
        if asked in checksums.ALGORITHMS:
            expected.trailer = asked


class Intake:
    """Takes one body. Runs in worker threads, one call at a time."""

    def __init__(self, expected: Expected, write: Callable[[list[memoryview], int], int]) -> None:
        """Start.

        Args:
            expected: what the request announced.
            write: takes pieces and their offset in the body; the number of bytes written.
        """
        self._expected = expected
        self._write = write
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256() if expected.sha256 else None
        names = {*expected.checksums, *([expected.trailer] if expected.trailer else [])}
        self._sums = {name: checksums.new(name) for name in names}
        self.size = 0

    def feed(self, data: list[bytes]) -> None:
        """Take the next bytes from the network.

        Raises:
            S3Error: IncompleteBody, SignatureDoesNotMatch.
            StorageFull: the disk is full.
        """
        decoder = self._expected.decoder
        if decoder:
            pieces = [piece for item in data for piece in decoder.feed(item)]
        else:
            pieces = [memoryview(item) for item in data]
        for piece in pieces:
            self._md5.update(piece)
            if self._sha256:
                self._sha256.update(piece)
            for digest in self._sums.values():
                digest.update(piece)
        if pieces:
            size = self._write(pieces, self.size)
            self.size += size
            if self._expected.length is not None and self.size > self._expected.length:
                raise fault("IncompleteBody", "The body is longer than announced.")

    def finish(self) -> Received:
        """Check the whole body against what was announced.

        Raises:
            S3Error: IncompleteBody, BadDigest, XAmzContentSHA256Mismatch, MalformedTrailerError, ….
        """
        expected = self._expected
        if expected.decoder:
            expected.decoder.finish()
        if expected.length is not None and self.size != expected.length:
            raise fault("IncompleteBody", NumberBytesExpected=expected.length, NumberBytesProvided=self.size)
        if self._sha256 and not hmac.compare_digest(self._sha256.hexdigest(), expected.sha256 or ""):
            raise fault("XAmzContentSHA256Mismatch", ClientComputedContentSHA256=expected.sha256 or "")
        digest = self._md5.digest()
        if expected.md5 is not None and not hmac.compare_digest(digest, expected.md5):
            raise fault("BadDigest", "The Content-MD5 that you gave did not match what was received.")
        return Received(self.size, digest.hex(), self._check_sums())

    def _check_sums(self) -> dict[str, str]:
        expected = self._expected
        computed = {name: checksums.encode(digest.digest()) for name, digest in self._sums.items()}
        claimed = dict(expected.checksums)
        trailers = expected.decoder.trailers if expected.decoder else {}
        for name, value in trailers.items():
            algorithm = name.removeprefix(checksums.HEADER)
            if algorithm != expected.trailer:
                raise fault("MalformedTrailerError", f"The trailing header {name} was not announced.")
            claimed[algorithm] = value
        if expected.trailer_required and expected.trailer not in claimed:
            raise fault("MalformedTrailerError", "The announced trailing checksum is missing.")
        for algorithm, value in claimed.items():
            if computed[algorithm] != value:
                raise fault("BadDigest", f"The {algorithm} that you gave did not match what was received.")
        return computed


class NewBlob:
    """A body being written under a new generation: a file that is removed unless its row gets committed."""

    def __init__(self, blobs: Blobs, expected: Expected | None = None) -> None:
        """Choose the generation; the file is made with the first bytes."""
        self.generation = blobs.new_generation()
        self._blobs = blobs
        self._descriptor = -1
        self._written = False
        self._last = False
        """Whether the last bytes are being taken: if they are the first too, they are held back until checked."""
        self._held: list[memoryview] = []
        self._intake = Intake(expected or Expected(), self.write)
        self._length = expected.length or 0 if expected else 0

    def write(self, pieces: list[memoryview], offset: int) -> int:
        """Write at an offset, refusing when the disk would get too full. In a worker thread."""
        if self._last and self._descriptor < 0:
            self._held = pieces
            return sum(map(len, pieces))
        left = max(self._length - offset, sum(map(len, pieces)))
        self._blobs.check_space(left)
        return write_at(self.descriptor(), pieces, offset)

    def descriptor(self) -> int:
        """The open file, made when it isn't there yet. In a worker thread."""
        if self._descriptor < 0:
            self._written = True
            self._descriptor = self._blobs.create(self.generation)
        return self._descriptor

    def feed(self, data: list[bytes]) -> None:
        """Take bytes from the network. In a worker thread."""
        self._intake.feed(data)

    def finish(self, data: list[bytes]) -> Received:
        """Take the last bytes, check all, make it durable. In a worker thread."""
        self._last = True
        self._intake.feed(data)
        received = self._intake.finish()
        if self._descriptor < 0:
            self._written = True
            self._blobs.write_whole(self.generation, self._held)
            self._held = []
        else:
            self.seal()
        return received

    def seal(self) -> None:
        """Make it durable. In a worker thread."""
        self._blobs.seal(self.descriptor(), self.generation)

    def keep(self) -> None:
        """The row is committed: let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def drop(self) -> None:
        """No row was committed: remove the file. In a worker thread."""
        if self._written:
            self._blobs.discard([self.generation])
        self.keep()


async def receive_all(
    receive: Receive,
    blobs: Blobs,
    feed: Callable[[list[bytes]], None],
    finish: Callable[[list[bytes]], Received],
) -> Received:
    """Read a body to its end, handing batches to worker threads in order.

    Raises:
        ClientGone: the connection closed before the end of the body.
        S3Error: what `feed` and `finish` find, or RequestTimeout.
    """
    with blobs.moving():
        return await _receive_batches(receive, blobs, feed, finish)


async def _receive_batches(
    receive: Receive,
    blobs: Blobs,
    feed: Callable[[list[bytes]], None],
    finish: Callable[[list[bytes]], Received],
) -> Received:
    batch: list[bytes] = []
    size = 0
    pending: Future[None] | None = None
    try:
        while True:
            message = await _next(receive)
            body = message.get("body", b"")
            if body:
                batch.append(body)
                size += len(body)
            if not message.get("more_body", False):
                break
            if size >= blobs.piece:
                if pending:
                    await result(pending)
                pending, batch, size = blobs.submit(feed, batch), [], 0
        if pending:
            last, pending = pending, None
            await result(last)
        return await blobs.run(finish, batch)
    finally:
        # The file may be closed only when no thread writes to it any more, also when we are cancelled.
        if pending:
            await settled(pending)


async def _next(receive: Receive) -> Message:
    try:
        async with asyncio.timeout(STALL):
            message = await receive()
    except TimeoutError as error:
        raise fault("RequestTimeout") from error
    if message["type"] != "http.request":
        raise ClientGone
    return message


async def receive_document(request: Request, expected: Expected, limit: int) -> bytes:
    """A small body, such as an XML document, checked like any other.

    Raises:
        S3Error: MalformedXML when it is larger than `limit` bytes, and what `Intake` raises.
    """
    whole = bytearray()

    def keep(pieces: list[memoryview], _offset: int) -> int:
        before = len(whole)
        for piece in pieces:
            whole.extend(piece)
        return len(whole) - before

    intake = Intake(expected, keep)
    more = True
    while more:
        message = await _next(request.receive)
        intake.feed([message.get("body", b"")])
        if len(whole) > limit:
            raise fault("MalformedXML", f"The document is larger than {limit} bytes.")
        more = bool(message.get("more_body", False))
    intake.finish()
    return bytes(whole)
