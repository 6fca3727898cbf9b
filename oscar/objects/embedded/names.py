"""The rules for names of buckets and keys. Pure; called by `requests`, `buckets` and `store`.

Source: "General purpose bucket naming rules" and "Naming Amazon S3 objects" of the S3 user guide.
"""

from __future__ import annotations

import re

from oscar.objects.embedded.faults import fault

MAX_KEY_BYTES = 1024

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_IPV4 = re.compile(r"\d{1,3}(\.\d{1,3}){3}")
_RESERVED_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_RESERVED_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


def bucket_problem(name: str) -> str | None:
    """Why the name can't be a bucket's, None when it can."""
    if not 3 <= len(name) <= 63:  # noqa: PLR2004 - the limits of the rule itself
        return "A bucket name has 3 to 63 characters."
    if not _BUCKET.fullmatch(name):
        return (
            "A bucket name consists of lower-case letters, digits, dots and hyphens "
            "and begins and ends with a letter or digit."
        )
    if ".." in name or ".-" in name or "-." in name:
        return "A bucket name has no two dots in a row and no dot beside a hyphen."
    if _IPV4.fullmatch(name):
        return "A bucket name is not formatted as an IP address."
    if name.startswith(_RESERVED_PREFIXES) or name.endswith(_RESERVED_SUFFIXES):
        return "This prefix or suffix of a bucket name is reserved."
    return None


def check_bucket(name: str) -> None:
    """Raise InvalidBucketName with the reason when the name breaks the rules."""
    problem = bucket_problem(name)
    if problem:
        raise fault("InvalidBucketName", problem, BucketName=name)


def check_key(key: str) -> None:
    """Raise KeyTooLongError or InvalidArgument when the key can't be stored."""
    if len(key) > MAX_KEY_BYTES // 4 and len(key.encode()) > MAX_KEY_BYTES:
        raise fault("KeyTooLongError", MaxSizeAllowed=MAX_KEY_BYTES)
    if "\0" in key:
        # PostgreSQL can't store NUL in text, and one index must hold what the other holds.
        raise fault("InvalidArgument", "A key must not contain the character NUL.", ArgumentName="Key")
