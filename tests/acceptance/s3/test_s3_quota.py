"""Quotas of buckets over S3: whatever way bytes come in, and however many at once; clients are told early."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError

from oscar.model.object import Bucket
from oscar.model.quota import Defaults
from oscar.state.quotas import Quotas
from tests.s3_raw import MIB, admin, boto, code_of, new_bodies, send, sign
from tests.s3_server import ADMIN, Server, open_index

LIMIT = 20 * MIB
EXCEEDED = "XMinioAdminBucketQuotaExceeded"


@pytest.fixture
def full(server: Server, request: pytest.FixtureRequest) -> str:
    """A bucket of an owner who may keep 20 MiB in it."""
    name = "q-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    store, index = open_index(server.url)

    async def prepare() -> None:
        await Quotas(store, Defaults()).change(name, {"storage_per_bucket": LIMIT})
        await index.create_bucket(Bucket(name, name))

    asyncio.run(prepare())
    store.close()
    return name


def held(s3: Any, bucket: str) -> int:
    return sum(entry["Size"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", []))


def test_sixteen_uploads_at_once_stay_within_the_quota(server: Server, full: str) -> None:
    s3 = admin(server)
    before = server.bodies()

    def put(number: int) -> str:
        return code_of(s3.put_object, Bucket=full, Key=f"k{number}", Body=bytes(3 * MIB))

    with ThreadPoolExecutor(16) as threads:
        codes = list(threads.map(put, range(16)))
    assert codes.count("") == 6
    assert codes.count(EXCEEDED) == 10
    assert held(s3, full) == 18 * MIB
    assert len(new_bodies(server, before, 6)) == 6


def test_a_size_that_cant_fit_is_refused_before_it_is_sent(server: Server, full: str) -> None:
    target = f"/{full}/large"
    headers = {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
    request = AWSRequest("PUT", server.endpoint + target, headers=headers)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("PUT", target, skip_host=True)
    for name, value in sign(request, ADMIN).items():
        connection.putheader(name, value)
    if not request.headers.get("host"):
        connection.putheader("host", f"127.0.0.1:{server.port}")
    connection.putheader("content-length", str(LIMIT + 1))
    connection.endheaders()
    # Nothing of the body is sent, and the answer is there.
    answer = connection.getresponse()
    assert answer.status == 400
    assert EXCEEDED.encode() in answer.read()
    connection.close()


def test_a_size_that_is_not_announced_is_refused_in_the_end(server: Server, full: str) -> None:
    before = server.bodies()
    body = bytes(LIMIT + 1)
    chunked = {
        "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
        "transfer-encoding": "chunked",
    }
    request = AWSRequest(
        "PUT", f"{server.endpoint}/{full}/k", headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
    )
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    pieces = (body[start : start + MIB] for start in range(0, len(body), MIB))
    connection.request(
        "PUT", f"/{full}/k", body=pieces, headers={**sign(request, ADMIN), **chunked}, encode_chunked=True
    )
    answer = connection.getresponse()
    assert (answer.status, EXCEEDED.encode() in answer.read()) == (400, True)
    connection.close()
    assert held(admin(server), full) == 0
    assert new_bodies(server, before, 0) == []


def test_replacing_counts_by_the_difference(server: Server, full: str) -> None:
    s3 = admin(server)
    s3.put_object(Bucket=full, Key="k", Body=bytes(15 * MIB))
    s3.put_object(Bucket=full, Key="k", Body=bytes(19 * MIB))
    assert code_of(s3.put_object, Bucket=full, Key="k", Body=bytes(21 * MIB)) == EXCEEDED
    assert code_of(s3.put_object, Bucket=full, Key="other", Body=bytes(2 * MIB)) == EXCEEDED
    assert len(s3.get_object(Bucket=full, Key="k")["Body"].read()) == 19 * MIB
    s3.delete_object(Bucket=full, Key="k")
    s3.put_object(Bucket=full, Key="other", Body=bytes(20 * MIB))


def test_copies_count(server: Server, full: str) -> None:
    s3 = admin(server)
    s3.put_object(Bucket=full, Key="k", Body=bytes(8 * MIB))
    source = {"Bucket": full, "Key": "k"}
    s3.copy_object(Bucket=full, Key="copy", CopySource=source)
    assert code_of(s3.copy_object, Bucket=full, Key="more", CopySource=source) == EXCEEDED
    assert held(s3, full) == 16 * MIB


def test_parts_count_before_they_are_an_object(server: Server, full: str) -> None:
    s3 = admin(server)
    s3.put_object(Bucket=full, Key="source", Body=bytes(6 * MIB))
    upload = s3.create_multipart_upload(Bucket=full, Key="k")["UploadId"]
    of = {"Bucket": full, "Key": "k", "UploadId": upload}
    before = server.bodies()

    def part(number: int) -> tuple[int, str]:
        try:
            return number, s3.upload_part(**of, PartNumber=number, Body=bytes(5 * MIB))["ETag"]
        except ClientError as error:
            return number, error.response["Error"]["Code"]

    with ThreadPoolExecutor(8) as threads:
        tried = list(threads.map(part, range(1, 9)))
    stored = [entry for entry in tried if entry[1] != EXCEEDED]
    assert len(stored) == 2
    assert code_of(s3.put_object, Bucket=full, Key="other", Body=bytes(5 * MIB)) == EXCEEDED
    copied = {"CopySource": {"Bucket": full, "Key": "source"}}
    assert code_of(s3.upload_part_copy, **of, PartNumber=9, **copied) == EXCEEDED
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in stored]
    s3.complete_multipart_upload(**of, MultipartUpload={"Parts": parts})
    assert held(s3, full) == 16 * MIB
    again = s3.create_multipart_upload(Bucket=full, Key="more")["UploadId"]
    s3.upload_part(Bucket=full, Key="more", UploadId=again, PartNumber=1, Body=bytes(4 * MIB))
    assert code_of(s3.put_object, Bucket=full, Key="small", Body=b"x") == EXCEEDED
    s3.abort_multipart_upload(Bucket=full, Key="more", UploadId=again)
    s3.put_object(Bucket=full, Key="small", Body=b"x")
    assert len(new_bodies(server, before, 2)) == 2


def test_a_form_counts(server: Server, full: str) -> None:
    s3 = admin(server)
    s3.put_object(Bucket=full, Key="k", Body=bytes(19 * MIB))
    post = boto(server, ADMIN, signature_version="s3v4").generate_presigned_post(full, "form")
    boundary = "a-boundary"
    rows = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in post["fields"].items()
    ]
    rows.append(f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n')
    body = "".join(rows).encode() + bytes(2 * MIB) + f"\r\n--{boundary}--\r\n".encode()
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    answer = send(server, "POST", f"/{full}", body, kind)
    assert (answer.status, answer.code) == (400, EXCEEDED)
    assert held(s3, full) == 19 * MIB


def test_buckets_of_others_have_no_part_in_it(server: Server, full: str, bucket: str) -> None:
    s3 = admin(server)
    s3.put_object(Bucket=full, Key="k", Body=bytes(LIMIT))
    s3.put_object(Bucket=bucket, Key="k", Body=bytes(LIMIT + 1))
