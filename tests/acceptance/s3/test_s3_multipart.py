"""Multipart uploads over S3: parts in any order and size, again, by copy, at once; lists; refusals."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.s3_raw import MIB, admin, call, code_of, new_bodies
from tests.s3_server import ADMIN, Server

PART = 5 * MIB


def begin(s3: Any, bucket: str, **more: Any) -> str:
    return str(s3.create_multipart_upload(Bucket=bucket, Key="big", **more)["UploadId"])


def send_part(s3: Any, bucket: str, upload: str, number: int, body: bytes, **more: Any) -> dict[str, Any]:
    reply = s3.upload_part(Bucket=bucket, Key="big", UploadId=upload, PartNumber=number, Body=body, **more)
    return {"PartNumber": number, "ETag": reply["ETag"]}


def complete(s3: Any, bucket: str, upload: str, parts: list[dict[str, Any]], **more: Any) -> Any:
    return s3.complete_multipart_upload(
        Bucket=bucket, Key="big", UploadId=upload, MultipartUpload={"Parts": parts}, **more
    )


@pytest.mark.parametrize(
    ("order", "sizes"),
    [
        ([1, 2, 3], [PART, PART, 17]),
        ([3, 1, 2], [PART, PART, PART]),
        ([2, 1], [PART, 5]),
        ([1], [3]),
        ([1, 2, 3], [PART, PART + 1, 2]),
        ([2, 3, 1], [PART + 9, PART, PART + 5]),
        ([1, 2], [PART, PART + 9]),
        ([5, 9, 2], [0, PART, 0, 0, PART, 0, 0, 0, 7]),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_parts_in_any_order_and_size(server: Server, bucket: str, order: list[int], sizes: list[int]) -> None:
    s3, before = admin(server), server.bodies()
    bodies = {number: os.urandom(sizes[number - 1]) for number in order}
    upload = begin(s3, bucket, Metadata={"a": "1"}, ContentType="x/y", Tagging="t=1")
    parts = {number: send_part(s3, bucket, upload, number, bodies[number]) for number in order}
    whole = b"".join(bodies[number] for number in sorted(order))
    assert call(server, ADMIN, "GET", f"/{bucket}/big").code == "NoSuchKey"
    etag = complete(s3, bucket, upload, [parts[number] for number in sorted(order)])["ETag"]
    digests = b"".join(hashlib.md5(bodies[n], usedforsecurity=False).digest() for n in sorted(order))
    assert etag == f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(order)}"'
    found = s3.get_object(Bucket=bucket, Key="big")
    assert found["Body"].read() == whole
    assert (found["ETag"], found["ContentLength"]) == (etag, len(whole))
    assert (found["Metadata"], found["ContentType"], found["TagCount"]) == ({"a": "1"}, "x/y", 1)
    numbers = sorted(order)
    for position, number in enumerate(numbers, 1):
        piece = s3.get_object(Bucket=bucket, Key="big", PartNumber=position)
        assert piece["Body"].read() == bodies[number]
        assert piece["PartsCount"] == len(order)
    assert code_of(lambda: s3.list_parts(Bucket=bucket, Key="big", UploadId=upload)) == "NoSuchUpload"
    assert [path.stat().st_size for path in new_bodies(server, before, 1)] == [len(whole)]


def test_a_part_sent_again_replaces_the_first(server: Server, bucket: str) -> None:
    s3, before = admin(server), server.bodies()
    upload = begin(s3, bucket)
    first, again, last = os.urandom(PART), os.urandom(PART), b"end"
    stale = send_part(s3, bucket, upload, 1, first)
    tail = send_part(s3, bucket, upload, 2, last)
    fresh = send_part(s3, bucket, upload, 1, again)
    assert code_of(lambda: complete(s3, bucket, upload, [stale, tail])) == "InvalidPart"
    complete(s3, bucket, upload, [fresh, tail])
    assert s3.get_object(Bucket=bucket, Key="big")["Body"].read() == again + last
    assert len(new_bodies(server, before, 1)) == 1


def test_a_part_that_failed_can_be_sent_again(server: Server, bucket: str) -> None:
    s3 = admin(server)
    upload = begin(s3, bucket)
    bodies = [os.urandom(PART) for _ in range(3)]
    parts = [send_part(s3, bucket, upload, 2, bodies[1])]
    query = {"partNumber": "1", "uploadId": upload}
    bad = {"content-md5": base64.b64encode(b"0" * 16).decode()}
    assert (
        call(server, ADMIN, "PUT", f"/{bucket}/big", bodies[2], query=query, headers=bad).code == "BadDigest"
    )
    parts = [
        send_part(s3, bucket, upload, 1, bodies[0]),
        *parts,
        send_part(s3, bucket, upload, 3, bodies[2][:9]),
    ]
    complete(s3, bucket, upload, parts)
    assert s3.get_object(Bucket=bucket, Key="big")["Body"].read() == bodies[0] + bodies[1] + bodies[2][:9]


def test_completing_with_some_of_the_parts(server: Server, bucket: str) -> None:
    s3 = admin(server)
    upload = begin(s3, bucket)
    bodies = [os.urandom(PART) for _ in range(3)]
    parts = [send_part(s3, bucket, upload, number + 1, body) for number, body in enumerate(bodies)]
    complete(s3, bucket, upload, parts[:2])
    assert s3.get_object(Bucket=bucket, Key="big")["Body"].read() == bodies[0] + bodies[1]


def test_refused_completions(server: Server, bucket: str) -> None:
    s3 = admin(server)
    upload = begin(s3, bucket)
    small = send_part(s3, bucket, upload, 1, b"small")
    part = send_part(s3, bucket, upload, 2, os.urandom(PART))
    assert code_of(lambda: complete(s3, bucket, upload, [small, part])) == "EntityTooSmall"
    assert code_of(lambda: complete(s3, bucket, upload, [part, small])) == "InvalidPartOrder"
    assert code_of(lambda: complete(s3, bucket, upload, [part, part])) == "InvalidPartOrder"
    wrong = {**part, "ETag": small["ETag"]}
    assert code_of(lambda: complete(s3, bucket, upload, [wrong])) == "InvalidPart"
    assert code_of(lambda: complete(s3, bucket, upload, [{**part, "PartNumber": 3}])) == "InvalidPart"
    assert code_of(lambda: complete(s3, bucket, "no-such-upload", [part])) == "NoSuchUpload"
    for body in (
        "<CompleteMultipartUpload/>",
        "nonsense",
        "<CompleteMultipartUpload><Part/></CompleteMultipartUpload>",
    ):
        query = {"uploadId": upload}
        assert (
            call(server, ADMIN, "POST", f"/{bucket}/big", body.encode(), query=query).code == "MalformedXML"
        )
    s3.put_object(Bucket=bucket, Key="big", Body=b"there")
    assert code_of(lambda: complete(s3, bucket, upload, [part], IfNoneMatch="*")) == "PreconditionFailed"
    assert s3.get_object(Bucket=bucket, Key="big")["Body"].read() == b"there"
    assert call(
        server, ADMIN, "PUT", f"/{bucket}/big", b"", query={"uploadId": upload, "partNumber": "10001"}
    ).code == ("InvalidArgument")
    # After all of that it can still be completed.
    complete(s3, bucket, upload, [part])
    assert s3.head_object(Bucket=bucket, Key="big")["ContentLength"] == PART


def test_listing_and_aborting_uploads(server: Server, bucket: str) -> None:
    s3, before = admin(server), server.bodies()
    upload = begin(s3, bucket)
    other = s3.create_multipart_upload(Bucket=bucket, Key="folder/x")["UploadId"]
    for number in (3, 1, 2):
        send_part(s3, bucket, upload, number, os.urandom(PART) if number < 3 else b"x")
    page = s3.list_parts(Bucket=bucket, Key="big", UploadId=upload, MaxParts=2)
    assert [(part["PartNumber"], part["Size"]) for part in page["Parts"]] == [(1, PART), (2, PART)]
    assert (page["IsTruncated"], page["NextPartNumberMarker"]) == (True, 2)
    rest = s3.list_parts(Bucket=bucket, Key="big", UploadId=upload, PartNumberMarker=2)
    assert [part["PartNumber"] for part in rest["Parts"]] == [3]
    listed = s3.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [(entry["Key"], entry["UploadId"]) for entry in listed] == [("big", upload), ("folder/x", other)]
    folded = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert [entry["Prefix"] for entry in folded["CommonPrefixes"]] == ["folder/"]
    first = s3.list_multipart_uploads(Bucket=bucket, MaxUploads=1)
    assert first["IsTruncated"]
    second = s3.list_multipart_uploads(
        Bucket=bucket, KeyMarker=first["NextKeyMarker"], UploadIdMarker=first["NextUploadIdMarker"]
    )
    assert [entry["UploadId"] for entry in second["Uploads"]] == [other]
    s3.abort_multipart_upload(Bucket=bucket, Key="big", UploadId=upload)
    assert (
        code_of(lambda: s3.abort_multipart_upload(Bucket=bucket, Key="big", UploadId=upload))
        == "NoSuchUpload"
    )
    assert code_of(lambda: send_part(s3, bucket, upload, 1, b"late")) == "NoSuchUpload"
    assert new_bodies(server, before, 0) == []


@pytest.mark.parametrize("kind", ["COMPOSITE", "FULL_OBJECT"])
def test_checksums_of_multipart_uploads(server: Server, bucket: str, kind: str) -> None:
    s3 = admin(server)
    upload = begin(s3, bucket, ChecksumAlgorithm="CRC32", ChecksumType=kind)
    bodies = [os.urandom(PART), b"end"]
    parts = []
    for number, body in enumerate(bodies, 1):
        part = send_part(s3, bucket, upload, number, body, ChecksumAlgorithm="CRC32")
        value = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
        parts.append({**part, "ChecksumCRC32": value})
    wrong = [{**parts[0], "ChecksumCRC32": parts[1]["ChecksumCRC32"]}, parts[1]]
    assert code_of(lambda: complete(s3, bucket, upload, wrong)) == "InvalidPart"
    reply = complete(s3, bucket, upload, parts)
    crcs = b"".join(zlib.crc32(body).to_bytes(4, "big") for body in bodies)
    composite = base64.b64encode(zlib.crc32(crcs).to_bytes(4, "big")).decode() + "-2"
    full = base64.b64encode(zlib.crc32(b"".join(bodies)).to_bytes(4, "big")).decode()
    assert reply["ChecksumCRC32"] == (composite if kind == "COMPOSITE" else full)
    found = s3.head_object(Bucket=bucket, Key="big", ChecksumMode="ENABLED")
    assert (found["ChecksumCRC32"], found["ChecksumType"]) == (reply["ChecksumCRC32"], kind)


def test_parts_by_copy(server: Server, bucket: str) -> None:
    s3, source = admin(server), os.urandom(PART + 100)
    s3.put_object(Bucket=bucket, Key="source", Body=source)
    upload = begin(s3, bucket)

    def copy(number: int, **more: Any) -> dict[str, Any]:
        reply = s3.upload_part_copy(
            Bucket=bucket,
            Key="big",
            UploadId=upload,
            PartNumber=number,
            CopySource=f"{bucket}/source",
            **more,
        )
        return {"PartNumber": number, "ETag": reply["CopyPartResult"]["ETag"]}

    parts = [copy(1), copy(2, CopySourceRange="bytes=100-199")]
    for outside in ("bytes=0-9999999", "bytes=5", "bytes=-5"):
        assert code_of(copy, number=3, CopySourceRange=outside) == "InvalidArgument"
    complete(s3, bucket, upload, parts)
    assert s3.get_object(Bucket=bucket, Key="big")["Body"].read() == source + source[100:200]


def test_parts_all_at_once(server: Server, bucket: str) -> None:
    s3, upload_size = admin(server), 9
    upload = begin(s3, bucket)
    bodies = [os.urandom(PART if number < upload_size - 1 else 1234) for number in range(upload_size)]
    with ThreadPoolExecutor(upload_size) as pool:
        parts = list(pool.map(lambda n: send_part(s3, bucket, upload, n + 1, bodies[n]), range(upload_size)))
    complete(s3, bucket, upload, parts)
    assert s3.get_object(Bucket=bucket, Key="big")["Body"].read() == b"".join(bodies)
