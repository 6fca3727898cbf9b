"""Objects over S3: any key, any size, attributes, ranges, conditions, copies, tags, lists, deletes."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.s3_raw import MIB, admin, boto, call, code_of, new_bodies
from tests.s3_server import ADMIN, CAROL, Server

ODD_KEYS = [
    "a",
    "a/b",
    "a/b/",
    "two  spaces",
    "plus+and%2Bpercent%",
    "double//slash",
    "/leading",
    "trailing ",
    "ünïcödé/日本語/🦉",
    "quotes\"'<&>",
    "control\x01\t",
    "dots/../up/./here",
    "?query#fragment;x=y&z",
    "~!@$^*()[]{}|\\:,",
    "k" * 1024,
]


def test_any_key(server: Server, bucket: str) -> None:
    s3 = admin(server)
    for key in ODD_KEYS:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    for key in ODD_KEYS:
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode(), key
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 4})
    listed = [entry["Key"] for page in pages for entry in page["Contents"]]
    assert listed == sorted(ODD_KEYS, key=str.encode)
    # XML has no way to name the key with a control character.
    s3.delete_object(Bucket=bucket, Key=next(key for key in ODD_KEYS if "\x01" in key))
    rest = [{"Key": key} for key in ODD_KEYS if "\x01" not in key]
    assert len(s3.delete_objects(Bucket=bucket, Delete={"Objects": rest})["Deleted"]) == len(rest)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    assert code_of(lambda: s3.put_object(Bucket=bucket, Key="k" * 1025, Body=b"")) == "KeyTooLongError"


@pytest.mark.parametrize("size", [0, 1, 4096, MIB - 1, MIB, MIB + 1, 5 * MIB + 3])
def test_bodies_come_back(server: Server, bucket: str, size: int) -> None:
    s3, body = admin(server), os.urandom(size)
    etag = s3.put_object(Bucket=bucket, Key="k", Body=body)["ETag"]
    assert etag == f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
    found = s3.get_object(Bucket=bucket, Key="k")
    assert found["Body"].read() == body
    assert (found["ContentLength"], found["ETag"]) == (size, etag)
    assert s3.head_object(Bucket=bucket, Key="k")["ContentLength"] == size


def test_attributes_come_back(server: Server, bucket: str) -> None:
    s3 = admin(server)
    given = {
        "ContentType": "text/html; charset=utf-8",
        "CacheControl": "max-age=5",
        "ContentDisposition": 'attachment; filename="x"',
        "ContentEncoding": "gzip",
        "ContentLanguage": "de",
        "Metadata": {"color": "blue", "long": "v" * 500},
    }
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Tagging="a=1&b=2", **given)
    for found in (s3.head_object(Bucket=bucket, Key="k"), s3.get_object(Bucket=bucket, Key="k")):
        assert {name: found[name] for name in given} == given
    assert s3.get_object(Bucket=bucket, Key="k")["TagCount"] == 2
    assert (
        code_of(lambda: s3.put_object(Bucket=bucket, Key="k", ServerSideEncryption="AES256"))
        == "NotImplemented"
    )


def test_ranges(server: Server, bucket: str) -> None:
    s3, body = admin(server), os.urandom(3 * MIB)
    s3.put_object(Bucket=bucket, Key="k", Body=body)

    def get(header: str) -> tuple[int, bytes, str | None]:
        reply = call(server, ADMIN, "GET", f"/{bucket}/k", headers={"range": header})
        return reply.status, reply.body, reply.headers.get("content-range")

    size = len(body)
    assert get("bytes=0-0") == (206, body[:1], f"bytes 0-0/{size}")
    assert get(f"bytes=5-{MIB * 2}") == (206, body[5 : MIB * 2 + 1], f"bytes 5-{MIB * 2}/{size}")
    assert get("bytes=-7") == (206, body[-7:], f"bytes {size - 7}-{size - 1}/{size}")
    assert get(f"bytes={size - 1}-") == (206, body[-1:], f"bytes {size - 1}-{size - 1}/{size}")
    assert get("bytes=1-0") == (200, body, None)
    status, refused, total = get(f"bytes={size}-")
    assert (status, total) == (416, f"bytes */{size}")
    assert b"<Code>InvalidRange</Code>" in refused
    old = {"range": "bytes=0-1", "if-range": '"other"'}
    assert call(server, ADMIN, "GET", f"/{bucket}/k", headers=old).status == 200


def test_conditional_reads(server: Server, bucket: str) -> None:
    s3 = admin(server)
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["ETag"]
    for method in ("GET", "HEAD"):
        reply = call(server, ADMIN, method, f"/{bucket}/k", headers={"if-none-match": etag})
        assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", etag)
        assert call(server, ADMIN, method, f"/{bucket}/k", headers={"if-match": '"no"'}).status == 412
        assert call(server, ADMIN, method, f"/{bucket}/k", headers={"if-match": etag}).status == 200


def test_conditional_writes(server: Server, bucket: str) -> None:
    s3 = admin(server)
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    for body in (b"2", os.urandom(2 * MIB)):
        put = {"Bucket": bucket, "Key": "k", "Body": body}
        assert code_of(s3.put_object, **put, IfNoneMatch="*") == "PreconditionFailed"
        assert code_of(s3.put_object, **put, IfMatch='"x"') == "PreconditionFailed"
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"
    s3.put_object(Bucket=bucket, Key="k", Body=b"3", IfMatch=etag)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"3"


def test_of_many_conditional_writers_one_wins(server: Server, bucket: str) -> None:
    def one(number: int) -> int:
        headers = {"if-none-match": "*"}
        return call(server, ADMIN, "PUT", f"/{bucket}/k", str(number).encode(), headers=headers).status

    with ThreadPoolExecutor(12) as pool:
        statuses = sorted(pool.map(one, range(24)))
    assert statuses == [200] + [412] * 23


def test_copies(server: Server, bucket: str) -> None:
    s3, body, before = admin(server), os.urandom(2 * MIB), server.bodies()
    s3.put_object(
        Bucket=bucket, Key="from é+ x", Body=body, Metadata={"a": "1"}, Tagging="t=1", ContentType="x/y"
    )
    source = {"Bucket": bucket, "Key": "from é+ x"}
    copied = s3.copy_object(Bucket=bucket, Key="to", CopySource=source)["CopyObjectResult"]
    found = s3.get_object(Bucket=bucket, Key="to")
    assert found["Body"].read() == body
    assert (found["Metadata"], found["ContentType"], found["TagCount"]) == ({"a": "1"}, "x/y", 1)
    assert copied["ETag"] == found["ETag"]
    s3.copy_object(
        Bucket=bucket, Key="to", CopySource=source, MetadataDirective="REPLACE", Metadata={"b": "2"},
        TaggingDirective="REPLACE", Tagging="u=2",
    )  # fmt: skip
    found = s3.head_object(Bucket=bucket, Key="to")
    assert (found["Metadata"], found["ContentType"]) == ({"b": "2"}, "application/octet-stream")
    assert s3.get_object_tagging(Bucket=bucket, Key="to")["TagSet"] == [{"Key": "u", "Value": "2"}]
    # The copy lives by itself.
    s3.delete_object(**source)
    assert s3.get_object(Bucket=bucket, Key="to")["Body"].read() == body
    assert all(path.stat().st_nlink == 1 for path in new_bodies(server, before, 1))

    def copy(**more: Any) -> Any:
        return s3.copy_object(**{"Bucket": bucket, "Key": "to", "CopySource": f"{bucket}/to", **more})

    assert code_of(copy) == "InvalidRequest"
    copy(MetadataDirective="REPLACE", Metadata={"c": "3"})
    assert s3.head_object(Bucket=bucket, Key="to")["Metadata"] == {"c": "3"}
    assert s3.get_object(Bucket=bucket, Key="to")["Body"].read() == body
    assert code_of(lambda: copy(CopySource=f"{bucket}/absent")) == "NoSuchKey"
    assert code_of(lambda: copy(CopySource="absent-bucket/x")) == "NoSuchBucket"
    assert code_of(lambda: copy(Key="x", CopySourceIfMatch='"no"')) == "PreconditionFailed"
    assert code_of(lambda: copy(Key="x", CopySourceIfNoneMatch=found["ETag"])) == "PreconditionFailed"
    assert code_of(lambda: copy(Key="x", MetadataDirective="KEEP")) == "InvalidArgument"
    assert (
        call(server, CAROL, "PUT", "/open/x", headers={"x-amz-copy-source": f"/{bucket}/to"}).code
        == "AccessDenied"
    )


def test_tagging(server: Server, bucket: str) -> None:
    s3 = admin(server)
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    tags = [{"Key": "a b", "Value": "ü"}, {"Key": "c", "Value": ""}]
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": tags})
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == tags
    s3.delete_object_tagging(Bucket=bucket, Key="k")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    assert (
        code_of(lambda: s3.put_object_tagging(Bucket=bucket, Key="no", Tagging={"TagSet": tags}))
        == "NoSuchKey"
    )
    many = [{"Key": str(i), "Value": ""} for i in range(11)]
    assert (
        code_of(lambda: s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": many}))
        == "InvalidTag"
    )


def test_listing(server: Server, bucket: str) -> None:
    s3 = admin(server)
    keys = ["a", "b/1", "b/2", "b/c/3", "d+e", "z"]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    for lister in (s3.list_objects, s3.list_objects_v2):
        page = lister(Bucket=bucket, Delimiter="/")
        assert [entry["Key"] for entry in page["Contents"]] == ["a", "d+e", "z"]
        assert [entry["Prefix"] for entry in page["CommonPrefixes"]] == ["b/"]
        page = lister(Bucket=bucket, Delimiter="/", Prefix="b/")
        assert [entry["Key"] for entry in page["Contents"]] == ["b/1", "b/2"]
        assert [entry["Prefix"] for entry in page["CommonPrefixes"]] == ["b/c/"]
        assert lister(Bucket=bucket, MaxKeys=0)["IsTruncated"] is False
    first = s3.list_objects(Bucket=bucket, Delimiter="/", MaxKeys=2)
    assert (first["IsTruncated"], first["NextMarker"]) == (True, "b/")
    second = s3.list_objects(Bucket=bucket, Delimiter="/", Marker="b/")
    assert [entry["Key"] for entry in second["Contents"]] == ["d+e", "z"]
    assert "CommonPrefixes" not in second
    page = s3.list_objects_v2(Bucket=bucket, StartAfter="b/1", MaxKeys=2, FetchOwner=True)
    assert [entry["Key"] for entry in page["Contents"]] == ["b/2", "b/c/3"]
    assert page["Contents"][0]["Owner"]["ID"] == ADMIN.user
    rest = s3.list_objects_v2(Bucket=bucket, ContinuationToken=page["NextContinuationToken"])
    assert [entry["Key"] for entry in rest["Contents"]] == ["d+e", "z"]
    versions = s3.list_object_versions(Bucket=bucket)["Versions"]
    assert [(entry["Key"], entry["VersionId"], entry["IsLatest"]) for entry in versions] == [
        (key, "null", True) for key in keys
    ]
    assert code_of(lambda: s3.list_objects_v2(Bucket=bucket, ContinuationToken="?")) == "InvalidArgument"
    assert call(server, ADMIN, "GET", f"/{bucket}", query={"max-keys": "many"}).code == "InvalidArgument"
    assert call(server, ADMIN, "GET", f"/{bucket}", query={"encoding-type": "x"}).code == "InvalidArgument"


def test_batch_deletes(server: Server, bucket: str) -> None:
    s3 = admin(server)
    for key in "abc":
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    reply = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}, {"Key": "absent"}]})
    assert [entry["Key"] for entry in reply["Deleted"]] == ["a", "absent"]
    quiet = s3.delete_objects(
        Bucket=bucket, Delete={"Quiet": True, "Objects": [{"Key": "b"}, {"Key": "c", "VersionId": "x"}]}
    )
    assert "Deleted" not in quiet
    assert [(entry["Key"], entry["Code"]) for entry in quiet["Errors"]] == [("c", "NoSuchVersion")]
    denied = boto(server, CAROL).delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "c"}]})
    assert denied["Errors"][0]["Code"] == "AccessDenied"
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["c"]
    many = "".join(f"<Object><Key>{i}</Key></Object>" for i in range(1001))
    for body in (f"<Delete>{many}</Delete>", "<Delete/>", "<Delete><Object/></Delete>", "nonsense"):
        assert (
            call(server, ADMIN, "POST", f"/{bucket}", body.encode(), query={"delete": ""}).code
            == "MalformedXML"
        )


def test_entity_bombs_are_refused(server: Server, bucket: str) -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><Delete><Object><Key>&a;</Key></Object></Delete>'
    assert call(server, ADMIN, "POST", f"/{bucket}", bomb, query={"delete": ""}).code == "MalformedXML"
    huge = b"<Delete>" + b" " * (5 * MIB) + b"</Delete>"
    assert call(server, ADMIN, "POST", f"/{bucket}", huge, query={"delete": ""}).code == "MalformedXML"


def test_a_removed_body_is_removed_from_disk(server: Server, bucket: str) -> None:
    s3, before = admin(server), server.bodies()
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    s3.put_object(Bucket=bucket, Key="k", Body=b"2")
    s3.delete_object(Bucket=bucket, Key="k")
    assert new_bodies(server, before, 0) == []
