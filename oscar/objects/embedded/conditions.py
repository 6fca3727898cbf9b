"""Conditional requests and ranges: pure decisions over headers, an ETag and a time.

Called by `objects` (GET, HEAD, PUT), `copies` (source of a copy) and `multipart` (completion). Source: RFC
9110, sections 13 and 14, with the precedence that S3 documents for GetObject and CopyObject.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from oscar.objects.embedded.faults import NotModified, fault


def same_etag(header: str, etag: str) -> bool:
    """Whether a list of entity tags, or `*`, names this one (given without quotes)."""
    for item in header.split(","):
        candidate = item.strip()
        if candidate == "*" or candidate.removeprefix("W/").strip('"') == etag:
            return True
    return False


def _seconds(value: str) -> int | None:
    try:
        return int(parsedate_to_datetime(value).timestamp())
    except (ValueError, TypeError, OverflowError):
        # RFC 9110: a condition whose date can't be read is ignored.
        return None


def check_read(headers: Mapping[str, str], etag: str, modified: int, prefix: str = "") -> None:
    """Check the conditions of a read.

    Args:
        headers: of the request.
        etag: of the object, without quotes.
        modified: Unix milliseconds.
        prefix: `x-amz-copy-source-` for the source of a copy, whose conditions never answer 304.

    Raises:
        NotModified: the client's copy is good.
        S3Error: PreconditionFailed.
    """
    second = modified // 1000
    match = headers.get(prefix + "if-match")
    none_match = headers.get(prefix + "if-none-match")
    if match is not None:
        if not same_etag(match, etag):
            raise fault("PreconditionFailed", Condition="If-Match")
    elif (value := headers.get(prefix + "if-unmodified-since")) is not None:
        limit = _seconds(value)
        if limit is not None and second > limit:
            raise fault("PreconditionFailed", Condition="If-Unmodified-Since")
    if none_match is not None:
        unchanged, condition = same_etag(none_match, etag), "If-None-Match"
    else:
        limit = _seconds(headers.get(prefix + "if-modified-since", ""))
        unchanged, condition = limit is not None and second <= limit, "If-Modified-Since"
    if unchanged:
        if prefix:
            raise fault("PreconditionFailed", Condition=condition)
        raise NotModified(etag, modified)


def write_conditions(headers: Mapping[str, str]) -> tuple[bool, str | None]:
    """The conditions of a write: whether the key must be new, and the ETag that it must have.

    Raises:
        S3Error: NotImplemented for forms that S3 hasn't either.
    """
    none_match = headers.get("if-none-match")
    match = headers.get("if-match")
    if none_match is not None and none_match.strip() != "*":
        raise fault("NotImplemented", "A write takes If-None-Match only with the value *.")
    if match is not None and none_match is not None:
        raise fault("InvalidRequest", "A write takes either If-Match or If-None-Match.")
    return none_match is not None, None if match is None else match.strip().strip('"')


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and length of a range, None when the header is to be ignored (several ranges, other units).

    Raises:
        S3Error: InvalidRange when the range lies outside of the object.
    """
    unit, separator, spec = header.partition("=")
    first, dash, last = spec.strip().partition("-")
    numbers = all(text.isascii() and text.isdigit() for text in (first, last) if text)
    if unit.strip().lower() != "bytes" or not separator or not dash or not numbers or not (first or last):
        return None
    if not first:
        length = min(int(last), size)
        if not length:
            raise _unsatisfiable(header, size)
        return size - length, length
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise _unsatisfiable(header, size)
    stop = min(int(last), size - 1) if last else size - 1
    return start, stop - start + 1


def _unsatisfiable(header: str, size: int) -> Exception:
    error = fault("InvalidRange", RangeRequested=header, ActualObjectSize=size)
    error.headers["content-range"] = f"bytes */{size}"
    return error
