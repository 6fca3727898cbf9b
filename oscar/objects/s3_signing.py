"""An S3 store's address, and signatures for requests to it: by header, and as presigned URLs.

Called by `objects.s3_calls`, `objects.s3` and `supervisor.own`. The arithmetic is that of the built-in server, which
checks such signatures. Source: "Authenticating Requests (AWS Signature Version 4)" in the S3 API reference. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from oscar.errors import InvalidField
from oscar.objects import sigv4

DEFAULT_REGION = "us-east-1"


class Site:
    """A store's address and keys.

    Args:
        endpoint: such as `https://minio.example:9000`, with the scheme, perhaps with a path.
        access_key: the key's name.
        secret_key: the key.
        region: of the store.
        verify: whether its TLS certificate is checked.
        virtual_host: whether the bucket is part of the host's name instead of the path.

    Raises:
        InvalidField: the address is none.
    """

    def __init__(
        self,
        endpoint: str,
        access_key: str,
        secret_key: str,
        region: str = DEFAULT_REGION,
        *,
        verify: bool = True,
        virtual_host: bool = False,
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.access_key = access_key
        self.secret_key = secret_key
        self.region = region or DEFAULT_REGION
        self.verify = verify
        self.virtual_host = virtual_host
        parts = urlsplit(self.endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidField(
                f'"{self.endpoint}" is no address of a store',
                field="endpoint",
                fix="Write it with its scheme, such as https://minio.example:9000.",
            )

    @property
    def host(self) -> str:
        """Host and port as the address has them, for messages."""
        return urlsplit(self.endpoint).netloc.rpartition("@")[2]

    def bucket_endpoint(self, bucket: str) -> str:
        """The address below which the keys of a bucket are."""
        parts = urlsplit(self.endpoint)
        base = parts.path.rstrip("/")
        if self.virtual_host and bucket:
            return f"{parts.scheme}://{bucket}.{self.host}{base}"
        return f"{parts.scheme}://{self.host}{base}" + (f"/{quote(bucket, safe='-_.~')}" if bucket else "")

    def target(self, bucket: str, key: str) -> tuple[str, str]:
        """Scheme with host, and the encoded path, of an object or (with an empty key) a bucket."""
        parts = urlsplit(self.bucket_endpoint(bucket))
        path = f"{parts.path}/{quote(key, safe='/-_.~')}" if key else parts.path or "/"
        return f"{parts.scheme}://{parts.netloc}", path


def _now() -> datetime:
    return datetime.now(UTC)


def _standard_host(origin: str) -> str:
    """The Host header: without a port that is the scheme's own, as HTTP clients send it."""
    parts = urlsplit(origin)
    standard = {"http": 80, "https": 443}[parts.scheme]
    return parts.netloc.removesuffix(f":{standard}") if parts.port == standard else parts.netloc


def _signed(
    site: Site,
    method: str,
    path: str,
    query: Sequence[tuple[str, str]],
    headers: Mapping[str, str],
    digest: str,
    at: str,
) -> str:
    """The signature of a request whose headers (lower-case names) are all signed."""
    names = sorted(headers)
    canonical = "\n".join(
        (
            method,
            path,
            sigv4.canonical_query(list(query)),
            "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in names),
            ";".join(names),
            digest,
        )
    )
    scope = f"{at[:8]}/{site.region}/s3/aws4_request"
    text = f"{sigv4.ALGORITHM}\n{at}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    return sigv4.sign(sigv4.signing_key(site.secret_key, at[:8], site.region), text)


def sign_headers(
    site: Site,
    method: str,
    bucket: str,
    key: str = "",
    *,
    query: Sequence[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
    digest: str = sigv4.EMPTY_SHA256,
    now: Callable[[], datetime] = _now,
) -> dict[str, str]:
    """The headers of a signed request, the given ones (lower-case names) included.

    Args:
        site: address and keys.
        method: HTTP method.
        bucket: bucket.
        key: object, or empty for the bucket itself.
        query: of the request.
        headers: to be sent and signed.
        digest: SHA-256 of the body in hex, or UNSIGNED-PAYLOAD.
        now: the time.
    """
    origin, path = site.target(bucket, key)
    at = now().strftime("%Y%m%dT%H%M%SZ")
    all_headers = {
        **(headers or {}),
        "host": _standard_host(origin),
        "x-amz-content-sha256": digest,
        "x-amz-date": at,
    }
    signed = _signed(site, method, path, query, all_headers, digest, at)
    all_headers["authorization"] = (
        f"{sigv4.ALGORITHM} Credential={site.access_key}/{at[:8]}/{site.region}/s3/aws4_request, "
        f"SignedHeaders={';'.join(sorted(all_headers))}, Signature={signed}"
    )
    return all_headers


def presign(
    site: Site,
    method: str,
    bucket: str,
    key: str,
    *,
    expires: int,
    headers: Mapping[str, str] | None = None,
    now: Callable[[], datetime] = _now,
) -> str:
    """A URL that allows one method on one object.

    Args:
        site: address and keys.
        method: GET or PUT.
        bucket: bucket.
        key: object.
        expires: seconds, at most 7 days.
        headers: that the request must carry.
        now: the time.

    Raises:
        InvalidField: `expires` is out of bounds.
    """
    if not 1 <= expires <= sigv4.MAX_EXPIRES:
        raise InvalidField(
            f"a URL can't be valid for {expires} seconds",
            field="expires",
            fix=f"Use 1 to {sigv4.MAX_EXPIRES} seconds (7 days).",
        )
    origin, path = site.target(bucket, key)
    at = now().strftime("%Y%m%dT%H%M%SZ")
    signed_headers = {
        **{name.lower(): value for name, value in (headers or {}).items()},
        "host": _standard_host(origin),
    }
    query = [
        ("X-Amz-Algorithm", sigv4.ALGORITHM),
        ("X-Amz-Credential", f"{site.access_key}/{at[:8]}/{site.region}/s3/aws4_request"),
        ("X-Amz-Date", at),
        ("X-Amz-Expires", str(expires)),
        ("X-Amz-SignedHeaders", ";".join(sorted(signed_headers))),
    ]
    found = _signed(site, method, path, query, signed_headers, sigv4.UNSIGNED, at)
    return f"{origin}{path}?{sigv4.canonical_query(query)}&X-Amz-Signature={found}"
