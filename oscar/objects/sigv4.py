"""The arithmetic of AWS Signature Version 4, for who signs (`s3_signing`) and who checks (`embedded.signature`).

Loads little, because staging containers (`supervisor.pod`) sign with it. Source: "Authenticating Requests (AWS
Signature Version 4)" in the S3 API reference. Pure.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
MAX_EXPIRES = 7 * 24 * 3600
"""Seconds that a presigned URL may be valid."""


def canonical_query(pairs: list[tuple[str, str]]) -> str:
    """The query in the canonical form: encoded, sorted, without the signature itself."""
    encoded = [(quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in pairs]
    return "&".join(f"{name}={value}" for name, value in sorted(encoded) if name != "X-Amz-Signature")


def signing_key(secret: str, date: str, region: str) -> bytes:
    """The key derived from a secret for one day and region."""
    key = _hmac(b"AWS4" + secret.encode(), date)
    return _hmac(_hmac(_hmac(key, region), "s3"), "aws4_request")


def sign(key: bytes, text: str) -> str:
    """The hex signature of a string to sign."""
    return _hmac(key, text).hex()


def matches(key: bytes, text: str, signature: str) -> bool:
    """Compare a signature in constant time."""
    return hmac.compare_digest(sign(key, text).encode(), signature.encode("utf-8", "replace"))


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
