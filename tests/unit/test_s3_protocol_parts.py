"""The pure parts of the S3 server: conditions, ranges, XML, CORS, names, attributes, checksums, slots."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oscar.model.object import Object, Part
from oscar.objects.embedded import attributes, checksums, conditions, cors, names, xml
from oscar.objects.embedded.faults import CODES, NotModified, S3Error, as_fault
from oscar.objects.embedded.requests import Request
from oscar.objects.embedded.slots import MIN_PART, Slots, claim, settle

ETAG, MODIFIED = "abc", 1_700_000_000_500
SECOND = MODIFIED // 1000


def date(offset: int) -> str:
    return formatdate(SECOND + offset, usegmt=True)


def outcome(headers: dict[str, str], prefix: str = "") -> int:
    try:
        conditions.check_read(headers, ETAG, MODIFIED, prefix)
    except NotModified:
        return 304
    except S3Error as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"if-match": '"abc"'}, 200),
        ({"if-match": "abc"}, 200),
        ({"if-match": "*"}, 200),
        ({"if-match": '"x", W/"abc"'}, 200),
        ({"if-match": '"x"'}, 412),
        ({"if-none-match": '"abc"'}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"x"'}, 200),
        ({"if-modified-since": date(0)}, 304),
        ({"if-modified-since": date(-1)}, 200),
        ({"if-modified-since": "nonsense"}, 200),
        ({"if-unmodified-since": date(0)}, 200),
        ({"if-unmodified-since": date(-1)}, 412),
        ({"if-unmodified-since": "nonsense"}, 200),
        # The documented precedence: a matching tag outweighs the date, in both directions.
        ({"if-match": '"abc"', "if-unmodified-since": date(-1)}, 200),
        ({"if-none-match": '"x"', "if-modified-since": date(0)}, 200),
        ({"if-none-match": '"abc"', "if-modified-since": date(-1)}, 304),
    ],
)
def test_conditions_of_a_read(headers: dict[str, str], status: int) -> None:
    assert outcome(headers) == status
    source = {f"x-amz-copy-source-{name}": value for name, value in headers.items()}
    assert outcome(source, "x-amz-copy-source-") == (412 if status == 304 else status)


def test_not_modified_says_which_object() -> None:
    with pytest.raises(NotModified) as caught:
        conditions.check_read({"if-none-match": ETAG}, ETAG, MODIFIED)
    assert caught.value.headers == {"etag": '"abc"', "last-modified": date(0)}


def test_conditions_of_a_write() -> None:
    assert conditions.write_conditions({}) == (False, None)
    assert conditions.write_conditions({"if-none-match": "*"}) == (True, None)
    assert conditions.write_conditions({"if-match": '"abc"'}) == (False, "abc")
    for headers in ({"if-none-match": '"abc"'}, {"if-none-match": "*", "if-match": '"abc"'}):
        with pytest.raises(S3Error):
            conditions.write_conditions(headers)


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("bytes=0-9", 100, (0, 10)),
        ("bytes=90-200", 100, (90, 10)),
        ("bytes=99-", 100, (99, 1)),
        ("bytes=-5", 100, (95, 5)),
        ("bytes=-500", 100, (0, 100)),
        ("bytes=0-0", 1, (0, 1)),
        ("bytes=9-5", 100, None),
        ("bytes=0-1,5-6", 100, None),
        ("lines=0-1", 100, None),
        ("bytes=-", 100, None),
        ("bytes=a-b", 100, None),
        ("bytes=²-5", 100, None),
        ("bytes", 100, None),
    ],
)
def test_ranges(header: str, size: int, expected: tuple[int, int] | None) -> None:
    assert conditions.parse_range(header, size) == expected


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-1", 0)]
)
def test_ranges_outside(header: str, size: int) -> None:
    with pytest.raises(S3Error) as caught:
        conditions.parse_range(header, size)
    assert caught.value.code == "InvalidRange"
    assert caught.value.headers["content-range"] == f"bytes */{size}"


@given(st.integers(0, 50), st.one_of(st.none(), st.integers(0, 80)), st.one_of(st.none(), st.integers(0, 80)))
def test_ranges_agree_with_slices(size: int, first: int | None, last: int | None) -> None:
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    data = bytes(range(size))
    try:
        found = conditions.parse_range(header, size)
    except S3Error:
        assert not data[first or 0 :] if first is not None else not size or not last
        return
    if found is None:
        assert (first is None and last is None) or (first is not None and last is not None and last < first)
        return
    start, length = found
    if first is None:
        assert last is not None
        assert data[start : start + length] == data[max(size - last, 0) :]
    else:
        assert data[start : start + length] == data[first : None if last is None else last + 1]


BOMB = b"""<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<Delete><Object><Key>&b;</Key></Object></Delete>"""
OUTSIDE = b"""<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><Delete><Object><Key>&a;</Key></Object></Delete>"""


@pytest.mark.parametrize(
    "body",
    [b"", b"nonsense", b"<Delete>", b"<Other/>", BOMB, OUTSIDE, b"<Delete>" + b"<a>" * 50, b"\xff\xfe\x00"],
)
def test_bad_xml_is_refused(body: bytes) -> None:
    with pytest.raises(S3Error) as caught:
        xml.parse(body, "Delete")
    assert caught.value.code == "MalformedXML"


def test_xml_with_and_without_namespace() -> None:
    for attribute in ("", f' xmlns="{xml.NAMESPACE}"'):
        node = xml.parse(
            f"<Delete{attribute}><Object><Key>a&amp;b</Key></Object></Delete>".encode(), "Delete"
        )
        assert [child.value("Key") for child in node.all("Object")] == ["a&b"]


@given(st.text(alphabet=st.characters(min_codepoint=0x20, exclude_categories=["Cs"])))
def test_xml_text_comes_back(text: str) -> None:
    text = "".join(c for c in text if c not in "\ufffe\uffff\x7f")
    node = xml.parse(xml.document("Top", (xml.element("Text", text),)), "Top")
    assert node.value("Text") == text


def test_control_characters_are_written_as_references() -> None:
    assert xml.escape("a\x01\r\n<&>") == "a&#x1;&#xD;&#xA;&lt;&amp;&gt;"


def test_every_error_has_a_status_and_a_message() -> None:
    for code, (status, message) in CODES.items():
        assert 400 <= status < 600
        assert message.endswith(".")
        assert as_fault(S3Error(code)).code == code


@pytest.mark.parametrize("name", ["abc", "a-b.c", "123", "a" * 63, "my.bucket-1"])
def test_good_bucket_names(name: str) -> None:
    names.check_bucket(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ab",
        "a" * 64,
        "Upper",
        "under_score",
        "-start",
        "end-",
        ".start",
        "end.",
        "two..dots",
        "a.-b",
        "192.168.0.1",
        "xn--abc",
        "abc-s3alias",
        "abc--ol-s3",
        "sp ace",
        "ü-mlaut",
        "a/b",
        "a\n",
    ],
)
def test_bad_bucket_names(name: str) -> None:
    with pytest.raises(S3Error) as caught:
        names.check_bucket(name)
    assert caught.value.code == "InvalidBucketName"


def test_keys_have_up_to_1024_bytes() -> None:
    names.check_key("é" * 512)
    names.check_key("x" * 1024)
    for key in ("é" * 513, "x" * 1025, "nul\0"):
        with pytest.raises(S3Error):
            names.check_key(key)


CORS = b"""<CORSConfiguration><CORSRule><AllowedOrigin>https://*.example.org</AllowedOrigin>
<AllowedMethod>GET</AllowedMethod><AllowedMethod>PUT</AllowedMethod><AllowedHeader>x-amz-*</AllowedHeader>
<ExposeHeader>ETag</ExposeHeader><MaxAgeSeconds>60</MaxAgeSeconds></CORSRule></CORSConfiguration>"""


def preflight(origin: str, method: str, headers: str = "") -> dict[str, str]:
    asked = {"origin": origin, "access-control-request-method": method}
    if headers:
        asked["access-control-request-headers"] = headers
    return cors.preflight_headers(cors.parse_rules(CORS), asked)


def test_a_preflight_that_a_rule_allows() -> None:
    answer = preflight("https://a.example.org", "PUT", "x-amz-date, X-Amz-Acl")
    assert answer["access-control-allow-origin"] == "https://a.example.org"
    assert answer["access-control-allow-methods"] == "GET, PUT"
    assert answer["access-control-allow-headers"] == "x-amz-date, x-amz-acl"
    assert answer["access-control-expose-headers"] == "ETag"
    assert answer["access-control-max-age"] == "60"
    assert "Origin" in answer["vary"]


@pytest.mark.parametrize(
    ("origin", "method", "headers"),
    [
        ("https://evil.org", "GET", ""),
        ("http://a.example.org", "GET", ""),
        ("https://a.example.org", "DELETE", ""),
        ("https://a.example.org", "GET", "authorization"),
        ("https://a.example.org.evil.org", "GET", ""),
    ],
)
def test_preflights_that_no_rule_allows(origin: str, method: str, headers: str) -> None:
    with pytest.raises(S3Error) as caught:
        preflight(origin, method, headers)
    assert caught.value.code == "AccessDenied"


def test_brackets_in_an_origin_are_no_pattern() -> None:
    rule = cors.Rule(("http://[ab]?",), ("GET",), (), (), None)
    assert cors.find_rule([rule], "http://[ab]?", "GET") is rule
    assert cors.find_rule([rule], "http://ax", "GET") is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<CORSConfiguration/>", "MalformedXML"),
        (
            CORS.replace(b"<AllowedMethod>GET</AllowedMethod>", b"<AllowedMethod>PATCH</AllowedMethod>"),
            "InvalidRequest",
        ),
        (CORS.replace(b"https://*.example.org", b"*://*"), "InvalidRequest"),
        (CORS.replace(b"60", b"an hour"), "MalformedXML"),
    ],
)
def test_bad_cors_configurations(body: bytes, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        cors.parse_rules(body)
    assert caught.value.code == code


async def no_body() -> Any:
    raise AssertionError("attributes are read without the body")


def request(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"method": "PUT", "raw_path": b"/bucket/key", "query_string": b"", "headers": raw}
    return Request(scope, no_body, "id")


def test_attributes_of_a_put() -> None:
    found = attributes.read_attributes(
        request(
            content_type="text/plain",
            content_encoding="aws-chunked,gzip",
            cache_control="no-cache",
            x_amz_meta_name="Zoë",
            x_amz_tagging="a=1&b=%20x+y",
        )
    )
    assert found == attributes.Attributes(
        "text/plain",
        {"cache-control": "no-cache", "content-encoding": "gzip"},
        {"name": "Zoë"},
        {"a": "1", "b": " x y"},
    )
    assert attributes.read_attributes(request(content_encoding="aws-chunked")).headers == {}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"x_amz_server_side_encryption": "AES256"}, "NotImplemented"),
        ({"x_amz_server_side_encryption_customer_key": "x"}, "NotImplemented"),
        ({"x_amz_object_lock_mode": "GOVERNANCE"}, "NotImplemented"),
        ({"x_amz_grant_read": "id=1"}, "NotImplemented"),
        ({"x_amz_acl": "public-read"}, "AccessControlListNotSupported"),
        ({"x_amz_storage_class": "GLACIER"}, "InvalidStorageClass"),
        ({"x_amz_meta_big": "x" * 9000}, "MetadataTooLarge"),
        ({"x_amz_tagging": "&".join(f"k{i}=v" for i in range(11))}, "InvalidTag"),
        ({"x_amz_tagging": "k=1&k=2"}, "InvalidTag"),
        ({"x_amz_tagging": "=1"}, "InvalidTag"),
        ({"x_amz_tagging": f"k={'v' * 257}"}, "InvalidTag"),
        ({"x_amz_tagging": f"{'k' * 129}=v"}, "InvalidTag"),
        ({"x_amz_tagging": "k=%ff"}, "InvalidTag"),
    ],
)
def test_attributes_that_are_refused(headers: dict[str, str], code: str) -> None:
    with pytest.raises(S3Error) as caught:
        attributes.read_attributes(request(**headers))
    assert caught.value.code == code


@given(st.lists(st.integers(0, 5), max_size=40))
def test_sizes_of_parts_are_packed(sizes: list[int]) -> None:
    packed = attributes.pack_sizes(sizes)
    assert (attributes.unpack_sizes(packed) if packed else []) == sizes


def test_headers_of_an_object() -> None:
    obj = Object(
        "b", "k", "g", 3, "etag", MODIFIED, "text/plain", {"expires": "never", "part-sizes": "3*1"},
        {"name": "Zoë"}, {"t": "1"}, {"crc32": "AAAAAA=="},
    )  # fmt: skip
    shown = attributes.object_headers(obj, with_checksums=True)
    assert shown == {
        "last-modified": date(0),
        "etag": '"etag"',
        "content-type": "text/plain",
        "accept-ranges": "bytes",
        "expires": "never",
        "x-amz-meta-name": "Zoë",
        "x-amz-tagging-count": "1",
        "x-amz-checksum-crc32": "AAAAAA==",
        "x-amz-checksum-type": "FULL_OBJECT",
    }
    assert "x-amz-checksum-crc32" not in attributes.object_headers(obj, with_checksums=False)


# Digests of "123456789": the check values of the CRC catalogue, and hashlib's own.
CHECKS = {
    "crc32": (0xCBF43926).to_bytes(4, "big"),
    "crc32c": (0xE3069283).to_bytes(4, "big"),
    "crc64nvme": (0xAE8B14860A799888).to_bytes(8, "big"),
    "sha1": hashlib.sha1(b"123456789", usedforsecurity=False).digest(),
    "sha256": hashlib.sha256(b"123456789").digest(),
}


def digest(algorithm: str, data: bytes) -> str:
    total = checksums.new(algorithm)
    total.update(data)
    return checksums.encode(total.digest())


@pytest.mark.parametrize("algorithm", checksums.ALGORITHMS)
def test_checksums(algorithm: str) -> None:
    total = checksums.new(algorithm)
    total.update(b"1234")
    total.update(b"")
    total.update(memoryview(b"56789"))
    assert total.digest() == CHECKS[algorithm]
    assert checksums.valid(algorithm, checksums.encode(CHECKS[algorithm]))
    for wrong in ("AA==", "not base64", ""):
        assert not checksums.valid(algorithm, wrong)


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=6))
def test_checksums_of_parts_combine(parts: list[bytes]) -> None:
    for algorithm in checksums.CRC_WIDTHS:
        values = [digest(algorithm, part) for part in parts]
        whole = checksums.full_object(algorithm, values, [len(part) for part in parts])
        assert whole == digest(algorithm, b"".join(parts))
    raw = b"".join(zlib.crc32(part).to_bytes(4, "big") for part in parts)
    expected = base64.b64encode(zlib.crc32(raw).to_bytes(4, "big")).decode()
    values = [digest("crc32", part) for part in parts]
    assert checksums.composite("crc32", values) == f"{expected}-{len(parts)}"


def test_only_crcs_combine() -> None:
    with pytest.raises(ValueError, match="sha1"):
        checksums.full_object("sha1", [digest("sha1", os.urandom(5))] * 2, [5, 5])


def test_parts_of_one_size_go_to_their_places() -> None:
    slots = Slots().load("u", [])
    size = 2 * MIN_PART
    assert claim(slots, 3, size) == 2 * size
    assert claim(slots, 1, size) == 0
    # Sent twice, of another size, of unknown size, too small: a file of its own.
    assert [claim(slots, *args) for args in ((1, size), (2, size - 1), (2, None), (2, 10))] == [None] * 4
    settle(slots, 3, stored=True)
    settle(slots, 1, stored=False)
    assert claim(slots, 1, size) == 0
    assert claim(slots, 3, size) is None


def test_a_place_is_free_for_another_size_when_no_part_arrived() -> None:
    slots = Slots().load("u", [])
    assert claim(slots, 1, MIN_PART) == 0
    settle(slots, 1, stored=False)
    assert claim(slots, 2, MIN_PART + 1) == MIN_PART + 1


def test_places_are_known_again_after_a_restart() -> None:
    rows = [Part("u", 2, "u.2", MIN_PART, "e", 0), Part("u", 1, "elsewhere", MIN_PART, "e", 0)]
    slots = Slots().load("u", rows)
    assert claim(slots, 2, MIN_PART) is None
    assert claim(slots, 1, MIN_PART + 1) is None
    assert claim(slots, 1, MIN_PART) == 0


def test_no_place_in_a_finished_file() -> None:
    slots = Slots()
    early = slots.load("u", [])
    slots.forget("u")
    assert claim(slots.load("u", []), 1, MIN_PART) is None
    assert claim(early, 1, MIN_PART) == 0  # the caller who holds it had claimed before: multipart copies then
    for i in range(10_000):
        slots.forget(str(i))
    assert slots.get("u") is None
