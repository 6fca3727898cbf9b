"""Signature Version 4 against the worked examples of the S3 API reference, and what must be refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from oscar.objects.embedded.faults import S3Error
from oscar.objects.embedded.requests import Claim, Request
from oscar.objects.embedded.signature import MAX_KEYS_KEPT, SigningKeys, parse_timestamp, read_claim, verify
from oscar.objects.sigv4 import EMPTY_SHA256, signing_key

# Keys and signatures as printed in "Authenticating Requests: Using the Authorization Header".
ACCESS, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
HOST = "examplebucket.s3.amazonaws.com"
DATE = "20130524T000000Z"
NOW = parse_timestamp(DATE)
KEY = signing_key(SECRET, "20130524", "us-east-1")


async def no_body() -> Any:
    raise AssertionError("a signature is checked without the body")


def make(
    method: str = "GET", path: str = "/", query: str = "", headers: Mapping[str, str] | None = None
) -> Request:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    scope = {
        "method": method,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": raw,
        "client": ("192.0.2.1", 1),
    }
    return Request(scope, no_body, "id")


def authorization(signed: str, signature: str, scope: str = "20130524/us-east-1/s3/aws4_request") -> str:
    return f"AWS4-HMAC-SHA256 Credential={ACCESS}/{scope},SignedHeaders={signed},Signature={signature}"


EXAMPLES = [
    pytest.param(
        make(
            "GET",
            "/test.txt",
            "",
            {
                "Host": HOST,
                "Range": "bytes=0-9",
                "x-amz-date": DATE,
                "x-amz-content-sha256": EMPTY_SHA256,
                "Authorization": authorization(
                    "host;range;x-amz-content-sha256;x-amz-date",
                    "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
                ),
            },
        ),
        id="get-object",
    ),
    pytest.param(
        make(
            "PUT",
            "/test%24file.text",
            "",
            {
                "Date": "Fri, 24 May 2013 00:00:00 GMT",
                "Host": HOST,
                "x-amz-date": DATE,
                "x-amz-storage-class": "REDUCED_REDUNDANCY",
                "x-amz-content-sha256": "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
                "Authorization": authorization(
                    "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
                    "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
                ),
            },
        ),
        id="put-object",
    ),
    pytest.param(
        make(
            "GET",
            "/",
            "lifecycle",
            {
                "Host": HOST,
                "x-amz-date": DATE,
                "x-amz-content-sha256": EMPTY_SHA256,
                "Authorization": authorization(
                    "host;x-amz-content-sha256;x-amz-date",
                    "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
                ),
            },
        ),
        id="sub-resource",
    ),
    pytest.param(
        make(
            "GET",
            "/",
            "max-keys=2&prefix=J",
            {
                "Host": HOST,
                "x-amz-date": DATE,
                "x-amz-content-sha256": EMPTY_SHA256,
                "Authorization": authorization(
                    "host;x-amz-content-sha256;x-amz-date",
                    "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
                ),
            },
        ),
        id="list",
    ),
    pytest.param(
        make(
            "GET",
            "/test.txt",
            "X-Amz-Algorithm=AWS4-HMAC-SHA256"
            f"&X-Amz-Credential={ACCESS}%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date={DATE}"
            "&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
            "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
            {"Host": HOST},
        ),
        id="presigned",
    ),
]


def claimed(request: Request, now: float = NOW) -> Claim:
    claim = read_claim(request, now)
    assert claim is not None
    return claim


def code_of(request: Request, now: float = NOW) -> str:
    with pytest.raises(S3Error) as caught:
        verify(request, claimed(request, now), KEY)
    return caught.value.code


@pytest.mark.parametrize("request_", EXAMPLES)
def test_worked_examples(request_: Request) -> None:
    claim = claimed(request_)
    assert claim.access_key == ACCESS
    verify(request_, claim, KEY)


@pytest.mark.parametrize("request_", EXAMPLES)
def test_any_change_breaks_the_signature(request_: Request) -> None:
    claim = claimed(request_)
    for change in ("method", "path", "pairs", "headers"):
        before = getattr(request_, change)
        changed: Any = {
            "method": "DELETE",
            "path": request_.path + "x",
            "pairs": [*request_.pairs, ("extra", "1")],
            "headers": {**request_.headers, "host": "other.example"},
        }[change]
        setattr(request_, change, changed)
        with pytest.raises(S3Error, match="does not match"):
            verify(request_, claim, KEY)
        setattr(request_, change, before)
    with pytest.raises(S3Error, match="does not match"):
        verify(request_, claim, signing_key(SECRET + "x", "20130524", "us-east-1"))


def signed_headers(**more: str) -> dict[str, str]:
    return {
        "Host": HOST,
        "x-amz-date": DATE,
        "x-amz-content-sha256": EMPTY_SHA256,
        "Authorization": authorization("host;x-amz-content-sha256;x-amz-date", "0" * 64),
        **more,
    }


def test_a_request_without_signature_is_anonymous() -> None:
    assert read_claim(make(headers={"Host": HOST}), NOW) is None


@pytest.mark.parametrize("seconds", [-901, 901])
def test_skewed_clocks(seconds: int) -> None:
    assert code_of(make(headers=signed_headers()), NOW + seconds) == "RequestTimeTooSkewed"


@pytest.mark.parametrize("seconds", [-899, 899])
def test_clocks_may_differ_by_15_minutes(seconds: int) -> None:
    assert code_of(make(headers=signed_headers()), NOW + seconds) == "SignatureDoesNotMatch"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"Authorization": "AWS AKIA:signature"}, "InvalidRequest"),
        ({"Authorization": "AWS4-HMAC-SHA256 Credential=x"}, "AuthorizationHeaderMalformed"),
        ({"Authorization": "AWS4-HMAC-SHA256 nonsense"}, "AuthorizationHeaderMalformed"),
        (
            {"Authorization": authorization("host", "0" * 64, "20130524/us-east-1/ec2/aws4_request")},
            "AuthorizationHeaderMalformed",
        ),
        (
            {"Authorization": authorization("host", "0" * 64, "20130525/us-east-1/s3/aws4_request")},
            "AuthorizationHeaderMalformed",
        ),
        ({"Authorization": authorization("x-amz-date", "0" * 64)}, "AccessDenied"),
        ({"x-amz-date": "yesterday"}, "AccessDenied"),
        ({"x-amz-date": "20130532T000000Z"}, "AccessDenied"),
        # Would copy any object its signer may read, were it not signed.
        ({"x-amz-copy-source": "/other/secret"}, "AccessDenied"),
        ({}, "SignatureDoesNotMatch"),
    ],
)
def test_refused_headers(changes: dict[str, str], code: str) -> None:
    assert code_of(make(headers=signed_headers(**changes))) == code


def test_missing_parts_of_a_header_signature() -> None:
    for name, code in (
        ("x-amz-date", "AccessDenied"),
        ("x-amz-content-sha256", "MissingSecurityHeader"),
        ("Host", "AccessDenied"),
    ):
        headers = signed_headers()
        del headers[name]
        assert code_of(make(headers=headers)) == code


def presigned(**changes: str) -> Request:
    fields = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{ACCESS}%2F20130524%2Fus-east-1%2Fs3%2Faws4_request",
        "X-Amz-Date": DATE,
        "X-Amz-Expires": "86400",
        "X-Amz-SignedHeaders": "host",
        "X-Amz-Signature": "0" * 64,
    }
    fields.update({name.replace("_", "-"): value for name, value in changes.items()})
    query = "&".join(f"{name}={value}" for name, value in fields.items() if value)
    return make("GET", "/test.txt", query, {"Host": HOST})


@pytest.mark.parametrize(
    ("changes", "seconds", "code"),
    [
        ({}, 86_401, "AccessDenied"),
        ({}, -901, "AccessDenied"),
        ({"X_Amz_Expires": "604801"}, 0, "AuthorizationQueryParametersError"),
        ({"X_Amz_Expires": "0"}, 0, "AuthorizationQueryParametersError"),
        ({"X_Amz_Expires": "-1"}, 0, "AuthorizationQueryParametersError"),
        ({"X_Amz_Expires": "soon"}, 0, "AuthorizationQueryParametersError"),
        ({"X_Amz_Expires": ""}, 0, "AuthorizationQueryParametersError"),
        ({"X_Amz_Date": "2013"}, 0, "AuthorizationQueryParametersError"),
        ({"X_Amz_Date": "20130525T000000Z"}, 0, "AuthorizationQueryParametersError"),
        ({"X_Amz_Algorithm": "HMAC"}, 0, "AuthorizationQueryParametersError"),
        ({"X_Amz_Credential": "x"}, 0, "AuthorizationQueryParametersError"),
        ({"X_Amz_SignedHeaders": "range"}, 0, "AccessDenied"),
        ({"X_Amz_Expires": "604800"}, 604_800, "SignatureDoesNotMatch"),
    ],
)
def test_presigned_urls(changes: dict[str, str], seconds: int, code: str) -> None:
    assert code_of(presigned(**changes), NOW + seconds) == code


def test_version_2_is_named() -> None:
    with pytest.raises(S3Error, match="Version 2"):
        read_claim(make(query="AWSAccessKeyId=x&Signature=y&Expires=1"), NOW)


def test_derived_keys_follow_the_secret() -> None:
    keys = SigningKeys()
    assert keys.get(SECRET, "20130524", "us-east-1") == KEY
    assert keys.get(SECRET, "20130524", "us-east-1") is keys.get(SECRET, "20130524", "us-east-1")
    assert keys.get("changed", "20130524", "us-east-1") != KEY
    for day in range(2 * MAX_KEYS_KEPT):
        keys.get(SECRET, str(day), "us-east-1")
    assert keys.get(SECRET, "20130524", "us-east-1") == KEY
