"""Signatures on the wire: tampered requests, bodies, chunks and trailers; presigned URLs; browser forms."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.awsrequest import AWSRequest
from botocore.config import Config

from oscar.model.object import Credential
from oscar.objects.embedded import checksums
from tests import s3_server
from tests.s3_raw import MIB, Reply, admin, boto, call, new_bodies, send, sign, signer
from tests.s3_server import ADMIN, ALICE, REGION, Server


def test_wrong_keys(server: Server) -> None:
    stranger = Credential("nobody-knows", "secret", "x")
    assert call(server, stranger, "GET", "/private/x").code == "InvalidAccessKeyId"
    impostor = Credential(ALICE.access_key, "guessed", "x")
    reply = call(server, impostor, "GET", "/private/x")
    assert (reply.status, reply.code) == (403, "SignatureDoesNotMatch")
    assert reply.headers["content-type"] == "application/xml"
    assert ALICE.secret_key.encode() not in reply.body


@pytest.mark.parametrize("name", ["x-amz-date", "x-amz-content-sha256", "host"])
def test_changed_headers(server: Server, name: str) -> None:
    changed = {"x-amz-date": "20200101T000000Z", "x-amz-content-sha256": "0" * 64, "host": "other:80"}[name]
    reply = call(server, ALICE, "GET", "/private/x", late_headers={name: changed})
    assert reply.status == (400 if name == "x-amz-date" else 403)


def test_an_unsigned_copy_source_is_refused(server: Server) -> None:
    reply = call(server, ALICE, "PUT", "/private/x", late_headers={"x-amz-copy-source": "/private/secret"})
    assert reply.code == "AccessDenied"


def test_a_body_that_is_not_the_signed_one(server: Server, bucket: str) -> None:
    before = server.bodies()
    reply = call(server, ADMIN, "PUT", f"/{bucket}/k", b"signed", sent_body=b"forged")
    assert (reply.status, reply.code) == (400, "XAmzContentSHA256Mismatch")
    wrong = base64.b64encode(hashlib.md5(b"other", usedforsecurity=False).digest()).decode()
    assert (
        call(server, ADMIN, "PUT", f"/{bucket}/k", b"x", headers={"content-md5": wrong}).code == "BadDigest"
    )
    assert (
        call(server, ADMIN, "PUT", f"/{bucket}/k", b"x", headers={"content-md5": "?"}).code == "InvalidDigest"
    )
    bad = {"x-amz-checksum-crc32": base64.b64encode(b"1234").decode()}
    assert call(server, ADMIN, "PUT", f"/{bucket}/k", b"x", headers=bad).code == "BadDigest"
    big = os.urandom(3 * MIB)
    assert call(server, ADMIN, "PUT", f"/{bucket}/k", big, headers=bad).code == "BadDigest"
    assert call(server, ADMIN, "GET", f"/{bucket}/k").code == "NoSuchKey"
    assert new_bodies(server, before, 0) == []


@pytest.mark.parametrize("algorithm", ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"])
def test_checksums_are_kept_and_shown(server: Server, bucket: str, algorithm: str) -> None:
    s3, field = admin(server), f"Checksum{algorithm.upper()}"
    digest = checksums.new(algorithm)
    digest.update(b"abc")
    value = checksums.encode(digest.digest())
    stored = s3.put_object(Bucket=bucket, Key="k", Body=b"abc", **{field: value})
    assert stored[field] == value
    assert s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")[field] == stored[field]
    assert field not in s3.head_object(Bucket=bucket, Key="k")
    asked = s3.get_object_attributes(
        Bucket=bucket, Key="k", ObjectAttributes=["Checksum", "ObjectSize", "ETag"]
    )
    assert asked["Checksum"][field] == stored[field]
    assert asked["ObjectSize"] == 3


def streaming(server: Server, path: str, chunks: list[bytes], trailer: bool, tamper: str = "") -> Reply:
    """A PUT with signed chunks, as the SDKs of Java, Go and Rust send it; computed here by hand."""
    marker = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" + ("-TRAILER" if trailer else "")
    payload = b"".join(chunks)
    request = AWSRequest("PUT", server.endpoint + path)
    request.headers["x-amz-content-sha256"] = marker
    request.headers["x-amz-decoded-content-length"] = str(len(payload))
    request.headers["content-encoding"] = "aws-chunked"
    if trailer:
        request.headers["x-amz-trailer"] = "x-amz-checksum-crc32"
    headers = sign(request, ALICE)
    date = headers["x-amz-date"]
    scope = f"{date[:8]}/{REGION}/s3/aws4_request"
    previous = headers["authorization"].rpartition("Signature=")[2]
    by_key = signer(ALICE, date)

    def chain(kind: str, middle: str, digest: str) -> str:
        return by_key("\n".join((kind, date, scope, previous, *([middle] if middle else []), digest)))

    empty = hashlib.sha256(b"").hexdigest()
    body = b""
    for chunk in [*chunks, b""]:
        previous = chain("AWS4-HMAC-SHA256-PAYLOAD", empty, hashlib.sha256(chunk).hexdigest())
        body += f"{len(chunk):x};chunk-signature={previous}\r\n".encode()
        body += chunk + b"\r\n" if chunk else b""
    if trailer:
        value = base64.b64encode(zlib.crc32(payload).to_bytes(4, "big")).decode()
        line = f"x-amz-checksum-crc32:{value}\n"
        previous = chain("AWS4-HMAC-SHA256-TRAILER", "", hashlib.sha256(line.encode()).hexdigest())
        body += f"{line.strip()}\r\nx-amz-trailer-signature:{previous}\r\n".encode()
    body += b"\r\n"
    if tamper == "chunk":
        body = body.replace(b"first", b"FIRST")
    elif tamper == "trailer":
        body = body.replace(b"crc32:", b"crc32:A")
    elif tamper == "drop":
        body = body[: body.index(b"0;chunk-signature")]
    return send(server, "PUT", path, body, headers)


@pytest.mark.parametrize("trailer", [False, True])
def test_signed_chunks(server: Server, trailer: bool) -> None:
    path = f"/private/streamed-{trailer}"
    chunks = [b"first chunk" * 1000, os.urandom(70_000), b"end"]
    assert streaming(server, path, chunks, trailer).status == 200
    reply = call(server, ALICE, "GET", path)
    assert reply.body == b"".join(chunks)
    assert "content-encoding" not in reply.headers


@pytest.mark.parametrize(
    ("trailer", "tamper", "code"),
    [
        (False, "chunk", "SignatureDoesNotMatch"),
        (True, "chunk", "SignatureDoesNotMatch"),
        (True, "trailer", "SignatureDoesNotMatch"),
        (False, "drop", "IncompleteBody"),
    ],
)
def test_tampered_chunks(server: Server, trailer: bool, tamper: str, code: str) -> None:
    reply = streaming(server, "/private/tampered", [b"first", b"second"], trailer, tamper)
    assert reply.code == code
    assert call(server, ALICE, "GET", "/private/tampered").code == "NoSuchKey"


def unsigned_trailer(server: Server, path: str, payload: bytes, value: str, announced: str) -> Reply:
    headers = {
        "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "x-amz-decoded-content-length": str(len(payload)),
        "x-amz-trailer": announced,
        "content-encoding": "aws-chunked",
    }
    body = f"{len(payload):x}\r\n".encode() + payload + b"\r\n0\r\n"
    body += (f"x-amz-checksum-crc32:{value}\r\n" if value else "").encode() + b"\r\n"
    return call(server, ALICE, "PUT", path, headers=headers, sent_body=body)


def test_unsigned_trailers(server: Server) -> None:
    path, good = "/private/trailing", base64.b64encode(zlib.crc32(b"hello").to_bytes(4, "big")).decode()
    name = "x-amz-checksum-crc32"
    assert unsigned_trailer(server, path, b"hello", "AAAAAA==", name).code == "BadDigest"
    assert unsigned_trailer(server, path, b"hello", "", name).code == "MalformedTrailerError"
    assert (
        unsigned_trailer(server, path, b"hello", good, "x-amz-checksum-sha1").code == "MalformedTrailerError"
    )
    assert unsigned_trailer(server, path, b"hello", good, "x-other").code == "InvalidRequest"
    assert call(server, ALICE, "GET", path).code == "NoSuchKey"
    assert unsigned_trailer(server, path, b"hello", good, name).status == 200
    reply = call(server, ALICE, "GET", path, headers={"x-amz-checksum-mode": "ENABLED"})
    assert (reply.body, reply.headers[name]) == (b"hello", good)


def test_presigned_urls(server: Server) -> None:
    s3 = boto(server, ALICE, signature_version="s3v4")
    params = {"Bucket": "private", "Key": "pre signed+ü"}
    put = s3.generate_presigned_url("put_object", params, ExpiresIn=60)
    get = s3.generate_presigned_url(
        "get_object",
        {**params, "ResponseContentType": "text/x", "ResponseContentDisposition": "attachment"},
        60,
    )

    def follow(url: str, method: str, body: bytes = b"", **headers: str) -> Reply:
        parts = urlsplit(url)
        return send(server, method, f"{parts.path}?{parts.query}", body, {"Host": parts.netloc, **headers})

    assert follow(put, "PUT", b"by link").status == 200
    reply = follow(get, "GET")
    assert (reply.status, reply.body) == (200, b"by link")
    assert (reply.headers["content-type"], reply.headers["content-disposition"]) == ("text/x", "attachment")
    assert follow(get, "DELETE").code == "SignatureDoesNotMatch"
    assert follow(put, "PUT", b"", **{"x-amz-copy-source": "/private/secret"}).code == "AccessDenied"
    assert follow(get.replace("Expires=60", "Expires=61"), "GET").code == "SignatureDoesNotMatch"
    assert (
        follow(get.replace("Expires=60", "Expires=604801"), "GET").code == "AuthorizationQueryParametersError"
    )


def test_form_uploads(server: Server) -> None:
    s3 = boto(server, ALICE, signature_version="s3v4")

    def post(
        changes: dict[str, str], content: bytes = b"from a form", conditions: list[Any] | None = None
    ) -> Reply:
        form = s3.generate_presigned_post(
            "private",
            "forms/${filename}",
            Fields={
                "x-amz-meta-from": "browser",
                "Content-Type": "text/plain",
                "success_action_status": "201",
            },
            Conditions=[
                {"x-amz-meta-from": "browser"},
                ["starts-with", "$Content-Type", "text/"],
                {"success_action_status": "201"},
                *(conditions if conditions is not None else [["content-length-range", 1, 1000]]),
            ],
        )
        fields = {**form["fields"], **changes}
        boundary = "xxBOUNDARYxx"
        body = b""
        for name, value in fields.items():
            body += (
                f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            )
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a b.txt"\r\n'
            "Content-Type: text/plain\r\n\r\n"
        ).encode()
        body += content + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return send(server, "POST", "/private", body, headers)

    reply = post({})
    assert (reply.status, reply.text("Key")) == (201, "forms/a b.txt")
    got = call(server, ALICE, "GET", "/private/forms/a b.txt")
    assert (got.body, got.headers["x-amz-meta-from"], got.headers["content-type"]) == (
        b"from a form",
        "browser",
        "text/plain",
    )
    tricky = b"\r\n--xxBOUNDARY\r\n--xx" * 40_000
    assert post({}, tricky, [["content-length-range", 1, len(tricky)]]).status == 201
    assert call(server, ALICE, "GET", "/private/forms/a b.txt").body == tricky
    assert post({}, b"x" * 1001).code == "EntityTooLarge"
    assert post({}, b"").code == "EntityTooSmall"
    assert post({"x-amz-meta-from": "me"}).code == "AccessDenied"
    assert post({"x-amz-meta-extra": "1"}).code == "AccessDenied"
    assert post({"Content-Type": "image/png"}).code == "AccessDenied"
    assert post({"key": "elsewhere"}).code == "AccessDenied"
    assert post({"x-amz-signature": "0" * 64}).code == "SignatureDoesNotMatch"
    assert post({"policy": base64.b64encode(b"{}").decode()}).code == "SignatureDoesNotMatch"
    assert (
        send(server, "POST", "/private", b"x", {"Content-Type": "text/plain"}).code == "MalformedPOSTRequest"
    )
    form = b'--b\r\nContent-Disposition: form-data; name="key"\r\n\r\nk\r\n--b\r\n'
    form += b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\nx\r\n--b--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    assert send(server, "POST", "/private", form, kind).code == "AccessDenied"
    assert send(server, "POST", "/open", form[:90], kind).code == "MalformedPOSTRequest"


def test_virtual_hosts(tmp_path: Path) -> None:
    with s3_server.running(tmp_path, domain="s3.example.org") as server:

        def at(host: str, method: str, path: str, body: bytes = b"") -> Reply:
            request = AWSRequest(method, f"http://{host}{path}", data=body)
            return send(server, method, path, body, {**sign(request, ALICE), "host": host})

        assert at("private.s3.example.org:9000", "PUT", "/k/x", b"v").status == 200
        assert at("private.s3.example.org", "GET", "/k/x").body == b"v"
        assert at("private.s3.example.org", "GET", "/?list-type=2").texts("Key") == ["k/x"]
        assert at("s3.example.org", "GET", "/private/k/x").body == b"v"


@pytest.mark.parametrize(
    "path", ["/private/%ff", "/private/%c3%28", "/private/nul%00", "/private?prefix=%00"]
)
def test_paths_that_are_not_utf_8(server: Server, path: str) -> None:
    assert send(server, "GET", path, b"", {}).code == "InvalidURI"


def test_lengths_that_lie(server: Server) -> None:
    headers = {"x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-decoded-content-length": "9"}
    assert call(server, ALICE, "PUT", "/private/x", headers=headers, sent_body=b"ok").status == 200
    marker = {
        "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "x-amz-trailer": "x-amz-checksum-crc32",
    }
    assert call(server, ALICE, "PUT", "/private/x", headers=marker, sent_body=b"0\r\n\r\n").code == (
        "MissingContentLength"
    )
    huge = {**marker, "x-amz-decoded-content-length": str(6 * 1024**4)}
    assert (
        call(server, ALICE, "PUT", "/private/x", headers=huge, sent_body=b"0\r\n\r\n").code
        == "EntityTooLarge"
    )


def test_a_refusal_comes_before_the_body_is_asked_for(server: Server) -> None:
    """With Expect: 100-continue a client learns that it may not before it sends gigabytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("PUT", "/private/x")
    connection.putheader("Content-Length", str(10 * 1024**3))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 403
    connection.close()


def test_a_nearly_full_disk_takes_nothing(tmp_path: Path) -> None:
    with s3_server.running(tmp_path, reserve=2**60) as server:
        for body in (b"x", os.urandom(2 * MIB)):
            reply = call(server, ALICE, "PUT", "/private/x", body)
            assert (reply.status, reply.code) == (507, "InsufficientStorage")
        assert server.bodies() == []
        assert call(server, ALICE, "GET", "/private").status == 200


def test_readers_see_whole_objects_while_many_write(server: Server, bucket: str) -> None:
    """Bodies of different sizes and one byte each: any mixture would show."""
    s3 = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=REGION,
        aws_access_key_id=ADMIN.access_key,
        aws_secret_access_key=ADMIN.secret_key,
        config=Config(max_pool_connections=20),
    )

    def body(number: int) -> bytes:
        return bytes([number]) * (1000 + number * 70_000)

    s3.put_object(Bucket=bucket, Key="k", Body=body(0))

    def write(number: int) -> None:
        for _ in range(6):
            s3.put_object(Bucket=bucket, Key="k", Body=body(number))

    def read(_: int) -> None:
        for _ in range(25):
            found = s3.get_object(Bucket=bucket, Key="k")
            data = found["Body"].read()
            assert data == body(data[0])
            assert found["ETag"] == f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'

    with ThreadPoolExecutor(16) as pool:
        for done in [*pool.map(write, range(8)), *pool.map(read, range(8))]:
            assert done is None
