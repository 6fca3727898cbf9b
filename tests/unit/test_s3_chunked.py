"""The aws-chunked decoder: the worked example, any cut, and every tampered byte."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oscar.objects.embedded.chunked import ChunkDecoder, ChunkSigner
from oscar.objects.embedded.faults import S3Error
from oscar.objects.embedded.requests import Claim
from oscar.objects.sigv4 import EMPTY_SHA256, sign, signing_key

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
KEY = signing_key(SECRET, "20130524", "us-east-1")
CLAIM = Claim(
    "AKIAIOSFODNN7EXAMPLE",
    "20130524",
    "us-east-1",
    "20130524T000000Z",
    (),
    # Seed and chunk signatures as printed in "Transferring Payload in Multiple Chunks".
    "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    presigned=False,
)
EXAMPLE = (
    b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n"
    + b"a" * 65536
    + b"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n"
    + b"a" * 1024
    + b"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
)


def decode(body: bytes, cuts: list[int], *, signed: bool, trailer: bool) -> tuple[bytes, dict[str, str]]:
    decoder = ChunkDecoder(signer=ChunkSigner(KEY, CLAIM) if signed else None, trailer=trailer)
    payload = b""
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    for start, end in pairwise(edges):
        payload += b"".join(decoder.feed(body[start:end]))
    decoder.finish()
    return payload, decoder.trailers


def encode(chunks: list[bytes], trailers: dict[str, str], *, signed: bool, trailer: bool) -> bytes:
    """A client's side, written from the documentation and not from the decoder."""
    previous, body = CLAIM.signature, b""
    for chunk in [*chunks, b""]:
        extension = ""
        if signed:
            lines = ("AWS4-HMAC-SHA256-PAYLOAD", CLAIM.timestamp, CLAIM.scope, previous, EMPTY_SHA256)
            previous = sign(KEY, "\n".join((*lines, hashlib.sha256(chunk).hexdigest())))
            extension = f";chunk-signature={previous}"
        body += f"{len(chunk):x}{extension}\r\n".encode()
        body += chunk + b"\r\n" if chunk else b""
    if trailer:
        canonical = "".join(f"{name}:{value}\n" for name, value in sorted(trailers.items()))
        body += "".join(f"{name}:{value}\r\n" for name, value in trailers.items()).encode()
        if signed:
            digest = hashlib.sha256(canonical.encode()).hexdigest()
            lines = ("AWS4-HMAC-SHA256-TRAILER", CLAIM.timestamp, CLAIM.scope, previous, digest)
            body += f"x-amz-trailer-signature:{sign(KEY, chr(10).join(lines))}\r\n".encode()
    return body + b"\r\n"


def test_worked_example() -> None:
    assert decode(EXAMPLE, [], signed=True, trailer=False) == (b"a" * 66560, {})


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=300), max_size=6),
    cuts=st.lists(st.integers(0, 4000), max_size=12),
    signed=st.booleans(),
    trailer=st.booleans(),
)
def test_any_body_in_any_pieces(chunks: list[bytes], cuts: list[int], signed: bool, trailer: bool) -> None:
    trailer = trailer or not signed
    trailers = {"x-amz-checksum-crc32": "AAAAAA=="} if trailer else {}
    body = encode(chunks, trailers, signed=signed, trailer=trailer)
    assert decode(body, cuts, signed=signed, trailer=trailer) == (b"".join(chunks), trailers)


@given(position=st.integers(0, 10_000), value=st.integers(1, 255), trailer=st.booleans())
def test_a_changed_byte_never_yields_another_payload(position: int, value: int, trailer: bool) -> None:
    chunks, trailers = [b"x" * 100, b"y" * 50], {"x-amz-checksum-crc32": "AAAAAA=="} if trailer else {}
    body = bytearray(encode(chunks, trailers, signed=True, trailer=trailer))
    body[position % len(body)] ^= value
    try:
        result = decode(bytes(body), [], signed=True, trailer=trailer)
    except S3Error:
        return
    # What is not signed is only the framing: blanks, line ends, the letter case of a size.
    assert result == (b"x" * 100 + b"y" * 50, trailers)


@given(st.integers(0, 2000))
def test_a_body_cut_short_is_refused(end: int) -> None:
    body = encode([b"x" * 700, b"y" * 400], {}, signed=True, trailer=False)
    last = body.rindex(b"0;chunk-signature")
    with pytest.raises(S3Error) as caught:
        decode(body[: min(end, last)], [], signed=True, trailer=False)
    assert caught.value.code in {"IncompleteBody", "SignatureDoesNotMatch"}


@given(st.binary(max_size=2000), st.booleans())
def test_noise_raises_nothing_but_our_errors(noise: bytes, signed: bool) -> None:
    with suppress(S3Error):
        decode(noise, [7, 100], signed=signed, trailer=True)


def test_chunks_can_t_be_reordered_or_repeated() -> None:
    body = encode([b"x" * 100, b"y" * 100], {}, signed=True, trailer=False)
    second, last = body.index(b"64;", 1), body.index(b"\r\n0;") + 2
    swapped = body[second:last] + body[:second] + body[last:]
    repeated = body[:second] + body[:second] + body[second:]
    for tampered in (swapped, repeated):
        with pytest.raises(S3Error) as caught:
            decode(tampered, [], signed=True, trailer=False)
        assert caught.value.code == "SignatureDoesNotMatch"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", "SignatureDoesNotMatch"),
        (b"zz;chunk-signature=1\r\n", "IncompleteBody"),
        (b"-5;chunk-signature=1\r\n", "IncompleteBody"),
        (b"5" * 2000, "IncompleteBody"),
        (b"", "IncompleteBody"),
    ],
)
def test_malformed_chunks(body: bytes, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        decode(body, [], signed=True, trailer=False)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("body", "trailer", "code"),
    [
        (b"5\r\nhelloworld\r\n0\r\n\r\n", True, "IncompleteBody"),
        (b"0\r\nx-amz-checksum-crc32\r\n\r\n", True, "MalformedTrailerError"),
        (b"0\r\nx-amz-checksum-crc32:\xff\r\n\r\n", True, "MalformedTrailerError"),
        (b"0\r\n" + b"a:b\r\n" * 10_000, True, "MalformedTrailerError"),
        (b"0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", False, "IncompleteBody"),
    ],
)
def test_malformed_trailers(body: bytes, trailer: bool, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        decode(body, [], signed=False, trailer=trailer)
    assert caught.value.code == code


def test_a_trailer_needs_its_signature() -> None:
    trailers = {"x-amz-checksum-crc32": "AAAAAA=="}
    body = encode([b"x"], trailers, signed=True, trailer=True)
    without = body[: body.index(b"x-amz-trailer-signature")] + b"\r\n"
    changed = body.replace(b"AAAAAA==", b"BBBBBB==")
    for tampered in (without, changed):
        with pytest.raises(S3Error) as caught:
            decode(tampered, [], signed=True, trailer=True)
        assert caught.value.code == "SignatureDoesNotMatch"
