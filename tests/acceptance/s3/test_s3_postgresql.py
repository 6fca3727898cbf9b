"""The S3 server with its rows in a real PostgreSQL."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import s3_server
from tests.s3_raw import MIB, admin, call, new_bodies
from tests.s3_server import ALICE

PART = 5 * MIB


@pytest.mark.postgres
def test_the_same_on_postgresql(tmp_path: Path, empty_postgres_url: str) -> None:
    with s3_server.running(tmp_path, url=empty_postgres_url) as server:
        s3, body = admin(server), os.urandom(3 * MIB)
        keys = ["a", "a/b", "a-b", "ab", "é", "Z", "a b", "_"]
        for key in keys:
            s3.put_object(Bucket="private", Key=key, Body=body, Metadata={"k": "v"}, Tagging="t=1")
        found = s3.get_object(Bucket="private", Key="a/b")
        assert found["Body"].read() == body
        assert (found["Metadata"], found["TagCount"]) == ({"k": "v"}, 1)
        listed = [entry["Key"] for entry in s3.list_objects_v2(Bucket="private")["Contents"]]
        assert listed == sorted(keys, key=str.encode)
        folders = s3.list_objects_v2(Bucket="private", Delimiter="/")["CommonPrefixes"]
        assert [entry["Prefix"] for entry in folders] == ["a/"]
        upload = s3.create_multipart_upload(Bucket="private", Key="big")["UploadId"]
        parts = []
        for number, part in enumerate((os.urandom(PART), b"end"), 1):
            sent = s3.upload_part(Bucket="private", Key="big", UploadId=upload, PartNumber=number, Body=part)
            parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        s3.complete_multipart_upload(
            Bucket="private", Key="big", UploadId=upload, MultipartUpload={"Parts": parts}
        )
        s3.copy_object(Bucket="private", Key="copy", CopySource="private/big")
        assert s3.head_object(Bucket="private", Key="copy")["ContentLength"] == PART + 3

        def one(number: int) -> int:
            headers = {"if-none-match": "*"}
            return call(server, ALICE, "PUT", "/private/new", str(number).encode(), headers=headers).status

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(one, range(16))) == [200] + [412] * 15
        everything = [{"Key": key} for key in [*keys, "big", "copy", "new"]]
        assert len(s3.delete_objects(Bucket="private", Delete={"Objects": everything})["Deleted"]) == len(
            everything
        )
        assert new_bodies(server, [], 0) == []
