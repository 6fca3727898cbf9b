"""Signatures are those of the examples in Amazon's documentation ("Authenticating Requests", S3 API reference)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from oscar.errors import InvalidField
from oscar.objects.s3_signing import Site, presign, sign_headers

SITE = Site(
    endpoint="https://s3.amazonaws.com",
    access_key="AKIAIOSFODNN7EXAMPLE",
    secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    virtual_host=True,
)


def then() -> datetime:
    return datetime(2013, 5, 24, tzinfo=UTC)


def test_get_object() -> None:
    headers = sign_headers(SITE, "GET", "examplebucket", "test.txt", headers={"range": "bytes=0-9"}, now=then)
    assert headers["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


def test_list_objects() -> None:
    query = [("prefix", "J"), ("max-keys", "2")]
    headers = sign_headers(SITE, "GET", "examplebucket", query=query, now=then)
    assert headers["authorization"].endswith(
        "Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    )


def test_presigned_url() -> None:
    assert presign(SITE, "GET", "examplebucket", "test.txt", expires=86400, now=then) == (
        "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


@pytest.mark.parametrize(
    ("endpoint", "host", "path"),
    [
        ("http://minio:9000", "minio:9000", "/bucket/a%20b/c"),
        ("http://minio:80", "minio", "/bucket/a%20b/c"),
        ("https://minio:443", "minio", "/bucket/a%20b/c"),
        ("https://minio:80", "minio:80", "/bucket/a%20b/c"),
        ("https://host/behind/", "host", "/behind/bucket/a%20b/c"),
        ("https://user:pw@host", "host", "/bucket/a%20b/c"),
    ],
)
def test_addresses(endpoint: str, host: str, path: str) -> None:
    site = Site(endpoint, "a", "b")
    assert sign_headers(site, "GET", "bucket", "a b/c")["host"] == host
    assert site.target("bucket", "a b/c")[1] == path
    assert "pw" not in site.host


def test_secrets_are_not_shown() -> None:
    assert SITE.secret_key not in repr(SITE)
    with pytest.raises(InvalidField) as caught:
        Site("nowhere", "a", "the-secret")
    assert "the-secret" not in repr(caught.value)
