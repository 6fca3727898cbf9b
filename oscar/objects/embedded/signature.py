"""AWS Signature Version 4: who signed a request, and is the signature right?

Called by `server` for every request and by `forms` for browser uploads. `read_claim` finds what the request
says about its signature (header or presigned URL); the caller looks the secret up; `verify` compares. The
chunk signatures of streamed bodies continue from the `Claim` in `chunked`. Source: "Authenticating Requests
(AWS Signature Version 4)" in the S3 API reference.
"""

from __future__ import annotations

import hashlib
from calendar import timegm
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from oscar.objects.embedded.faults import fault
from oscar.objects.embedded.requests import Claim, Request
from oscar.objects.sigv4 import ALGORITHM, MAX_EXPIRES, UNSIGNED, canonical_query, matches, signing_key

MAX_SKEW = 15 * 60
MAX_KEYS_KEPT = 1024

# Part of the string to sign by themselves, or set by browsers' SDKs without weight: they may stay unsigned.
_MAY_BE_UNSIGNED = frozenset(
    {"x-amz-content-sha256", "x-amz-date", "x-amz-user-agent", "x-amz-security-token"}
)


def parse_timestamp(text: str) -> int:
    """Unix seconds of `YYYYMMDDTHHMMSSZ`. Raises ValueError."""
    if len(text) != 16 or text[8] != "T" or text[15] != "Z" or not (text[:8] + text[9:15]).isdigit():  # noqa: PLR2004
        raise ValueError(text)
    fields = (text[0:4], text[4:6], text[6:8], text[9:11], text[11:13], text[13:15])
    # datetime checks the ranges, which timegm doesn't.
    return timegm(datetime(*map(int, fields), tzinfo=UTC).timetuple())  # type: ignore[misc, arg-type]  # six numbers


def read_claim(request: Request, now: float) -> Claim | None:
    """The signature of a request by header or by query, None for an anonymous one.

    Args:
        request: the request.
        now: Unix seconds.

    Raises:
        S3Error: malformed, too old, expired, or of a scheme that isn't supported.
    """
    authorization = request.headers.get("authorization")
    if authorization is not None:
        return _from_header(request, authorization, now)
    if "X-Amz-Signature" in request.query or "X-Amz-Algorithm" in request.query:
        return _from_query(request, now)
    if "Signature" in request.query and "AWSAccessKeyId" in request.query:
        raise fault("InvalidRequest", f"Signature Version 2 is not supported; please use {ALGORITHM}.")
    return None


def _from_header(request: Request, authorization: str, now: float) -> Claim:
    scheme, _, rest = authorization.partition(" ")
    if scheme != ALGORITHM:
        raise fault(
            "InvalidRequest", f"The authorization mechanism is not supported; please use {ALGORITHM}."
        )
    fields: dict[str, str] = {}
    for item in rest.split(","):
        name, separator, value = item.strip().partition("=")
        if not separator or name in fields:
            raise fault("AuthorizationHeaderMalformed")
        fields[name] = value
    try:
        credential, signed, signature = fields["Credential"], fields["SignedHeaders"], fields["Signature"]
    except KeyError as error:
        raise fault("AuthorizationHeaderMalformed", f"The authorization header lacks {error}.") from error
    access_key, date, region = read_scope(credential, "AuthorizationHeaderMalformed")
    timestamp = request.headers.get("x-amz-date")
    seconds = _signing_time(timestamp, request.headers.get("date"))
    if timestamp is None:
        timestamp = datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%SZ")
    if not timestamp.startswith(date):
        raise fault("AuthorizationHeaderMalformed", "The date of the credential is not that of the request.")
    if abs(now - seconds) > MAX_SKEW:
        raise fault("RequestTimeTooSkewed", RequestTime=timestamp, MaxAllowedSkewMilliseconds=MAX_SKEW * 1000)
    payload = request.headers.get("x-amz-content-sha256")
    if payload is None:
        raise fault("MissingSecurityHeader", "The header x-amz-content-sha256 is required.")
    return Claim(
        access_key, date, region, timestamp, tuple(signed.split(";")), signature, payload, presigned=False
    )


def _signing_time(timestamp: str | None, date: str | None) -> int:
    try:
        if timestamp is not None:
            return parse_timestamp(timestamp)
        if date is not None:
            return int(parsedate_to_datetime(date).timestamp())
    except (ValueError, TypeError, OverflowError) as error:
        raise fault("AccessDenied", "The date of the request is not valid.") from error
    raise fault("AccessDenied", "Authenticated requests need the header x-amz-date or Date.")


def _from_query(request: Request, now: float) -> Claim:
    malformed = "AuthorizationQueryParametersError"
    names = ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")
    values = [request.query.get(f"X-Amz-{name}") for name in names]
    for name, value in zip(names, values, strict=True):
        if value is None:
            raise fault(malformed, f"The query parameter X-Amz-{name} is missing.")
    algorithm, credential, timestamp, expires, signed, signature = (value or "" for value in values)
    if algorithm != ALGORITHM:
        raise fault(malformed, f"X-Amz-Algorithm must be {ALGORITHM}.")
    if not expires.isascii() or not expires.isdigit() or not 1 <= int(expires) <= MAX_EXPIRES:
        raise fault(malformed, f"X-Amz-Expires must be a number of seconds from 1 to {MAX_EXPIRES} (7 days).")
    access_key, date, region = read_scope(credential, malformed)
    try:
        start = parse_timestamp(timestamp)
    except ValueError as error:
        raise fault(malformed, "X-Amz-Date must be in the ISO 8601 basic format.") from error
    if not timestamp.startswith(date):
        raise fault(malformed, "The date of the credential is not that of the request.")
    if start - now > MAX_SKEW:
        raise fault("AccessDenied", "The request is not valid yet.")
    if now > start + int(expires):
        raise fault("AccessDenied", "The request has expired.", Expires=expires)
    payload = request.query.get("X-Amz-Content-Sha256", UNSIGNED)
    headers = tuple(signed.split(";"))
    if "x-amz-content-sha256" in headers:
        payload = request.headers.get("x-amz-content-sha256", payload)
    return Claim(access_key, date, region, timestamp, headers, signature, payload, presigned=True)


def read_scope(credential: str, malformed: str) -> tuple[str, str, str]:
    """Access key, date and region of a credential; `malformed` is the code of the error when it isn't one."""
    # Access keys may contain "/", so the scope is taken from the end.
    parts = credential.rsplit("/", 4)
    if len(parts) != 5 or parts[3:] != ["s3", "aws4_request"]:  # noqa: PLR2004
        raise fault(malformed, "The credential must be <access key>/<date>/<region>/s3/aws4_request.")
    access_key, date, region = parts[:3]
    if not access_key or len(date) != 8 or not date.isdigit():  # noqa: PLR2004
        raise fault(malformed, "The credential must be <access key>/<date>/<region>/s3/aws4_request.")
    return access_key, date, region


def canonical_request(request: Request, claim: Claim) -> str:
    """The canonical request; see "Task 1" of the signing documentation."""
    headers = request.headers
    lines = []
    for name in claim.signed_headers:
        value = headers.get(name)
        if value is None:
            raise fault("AccessDenied", f"The signed header {name} is not in the request.")
        lines.append(f"{name}:{value if '  ' not in value else ' '.join(value.split())}".rstrip(" ") + "\n")
    return "\n".join(
        (
            request.method,
            quote(request.path, safe="/-_.~"),
            canonical_query(request.pairs) if request.pairs else "",
            "".join(lines),
            ";".join(claim.signed_headers),
            claim.payload,
        )
    )


class SigningKeys:
    """Derived keys, kept because clients use the same secret, day and region for thousands of requests."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str, str], bytes] = {}

    def get(self, secret: str, date: str, region: str) -> bytes:
        """The derived key; the secret is part of the look-up, so a changed secret never finds an old key."""
        name = (secret, date, region)
        key = self._keys.get(name)
        if key is None:
            if len(self._keys) >= MAX_KEYS_KEPT:
                self._keys.clear()
            key = self._keys[name] = signing_key(secret, date, region)
        return key


def verify(request: Request, claim: Claim, key: bytes) -> None:
    """Check the signature with the derived key.

    Raises:
        S3Error: SignatureDoesNotMatch, or AccessDenied when headers that matter were left unsigned.
    """
    signed = frozenset(claim.signed_headers)
    if "host" not in signed:
        raise fault("AccessDenied", "The header host must be signed.")
    for name in request.headers:
        # An unsigned x-amz-copy-source would turn a presigned PUT into a read of any object of its signer.
        if name.startswith("x-amz-") and name not in signed and name not in _MAY_BE_UNSIGNED:
            raise fault(
                "AccessDenied", "There were headers present that were not signed.", HeadersNotSigned=name
            )
    digest = hashlib.sha256(canonical_request(request, claim).encode("latin-1")).hexdigest()
    text = f"{ALGORITHM}\n{claim.timestamp}\n{claim.scope}\n{digest}"
    if not matches(key, text, claim.signature):
        raise fault("SignatureDoesNotMatch")
