"""An S3 server's refusals as our errors. Called by `objects.s3`, `objects.s3_calls` and `supervisor.own`. Pure.

Source: "Error responses" in the S3 API reference.
"""

from __future__ import annotations

import re

from oscar.errors import BucketNotFound, Forbidden, NoAnswer, ObjectNotFound, OscarError, StorageError

_FORBIDDEN = frozenset({401, 403})
_NOT_FOUND = 404
_SERVER_ERROR = 500
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,500})</Message>")


def refusal(host: str, status: int, body: str, bucket: str, key: str = "") -> OscarError:
    """The answer of a store as our error, with the store's own words.

    Args:
        host: of the store.
        status: of the answer.
        body: the error document, empty for HEAD.
        bucket: that was asked for.
        key: that was asked for, if any.
    """
    import html  # loads long tables, which only trouble needs

    code = _CODE.search(body)
    message = _MESSAGE.search(body)
    # An answer to HEAD has no body, so that the status must do.
    said = " ".join(html.unescape(found[1]) for found in (code, message) if found) or _phrase(status)
    name = code[1] if code else ""
    if name == "NoSuchBucket" or (status == _NOT_FOUND and not key):
        return BucketNotFound(f"there is no bucket {bucket} at {host}")
    if name == "NoSuchKey" or status == _NOT_FOUND:
        return ObjectNotFound(f"there is no object {bucket}/{key} at {host}")
    words = f"{host} answered {status} to a request for {bucket}/{key}: {said}"
    if status in _FORBIDDEN:
        return Forbidden(words)
    return NoAnswer(words) if status >= _SERVER_ERROR else StorageError(words)


def _phrase(status: int) -> str:
    from http import HTTPStatus

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "an unknown status"
