"""The S3 server killed at bad moments: nothing half is visible, nothing acknowledged lost, nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import itertools
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from botocore.awsrequest import AWSRequest

from oscar.model.object import Object
from oscar.objects.embedded.blobs import Blobs
from oscar.objects.embedded.sweep import UPLOAD_LIFE, expire_uploads, sweep
from tests import s3_server
from tests.s3_raw import MIB, admin, call, new_bodies, sign
from tests.s3_server import ALICE, Server, open_index

PART = 5 * MIB


def half_sent(server: Server, path: str, size: int, sent: int) -> socket.socket:
    """Begin a PUT and send a part of its body only."""
    request = AWSRequest("PUT", server.endpoint + path)
    request.headers["x-amz-content-sha256"] = "UNSIGNED-PAYLOAD"
    headers = {**sign(request, ALICE), "host": f"127.0.0.1:{server.port}", "content-length": str(size)}
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connection.sendall(f"PUT {path} HTTP/1.1\r\n{head}\r\n".encode() + os.urandom(sent))
    return connection


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        os.sched_yield()


def written(server: Server) -> int:
    """Bytes in the folder of bodies."""
    return sum(body.stat().st_size for body in server.bodies())


def start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(9)


def test_killed_in_the_middle_of_an_upload(tmp_path: Path) -> None:
    server = s3_server.start(tmp_path)
    assert call(server, ALICE, "PUT", "/private/before", b"earlier").status == 200
    assert call(server, ALICE, "PUT", "/private/victim", b"old").status == 200
    connections = [half_sent(server, f"/private/{name}", 50 * MIB, 8 * MIB) for name in ("victim", "new")]
    wait_for(lambda: written(server) > 8 * MIB, "the upload did not reach the disk")
    assert len(server.bodies()) == 4
    server.kill()
    for connection in connections:
        connection.close()
    again = s3_server.start(tmp_path)
    try:
        assert call(again, ALICE, "GET", "/private/new").code == "NoSuchKey"
        assert call(again, ALICE, "GET", "/private/victim").body == b"old"
        assert call(again, ALICE, "GET", "/private/before").body == b"earlier"
        wait_for(lambda: len(again.bodies()) == 2, "the sweep left the halves")
        writers = list((again.blobs / ".writers").iterdir())
        wait_for(
            lambda: len(list((again.blobs / ".writers").iterdir())) == 1, f"dead writers stay: {writers}"
        )
    finally:
        again.kill()


def test_a_client_that_goes_away_leaves_nothing(server: Server) -> None:
    before = server.bodies()
    connection = half_sent(server, "/private/gone", 50 * MIB, 4 * MIB)
    assert len(new_bodies(server, before, 1)) == 1
    connection.close()
    assert new_bodies(server, before, 0) == []
    assert call(server, ALICE, "GET", "/private/gone").code == "NoSuchKey"


def test_killed_in_the_middle_of_a_part(tmp_path: Path) -> None:
    server = s3_server.start(tmp_path)
    bodies = [os.urandom(PART), os.urandom(PART), b"end"]
    upload = admin(server).create_multipart_upload(Bucket="private", Key="big")["UploadId"]

    def send(to: Server, number: int) -> dict[str, object]:
        reply = admin(to).upload_part(
            Bucket="private", Key="big", UploadId=upload, PartNumber=number, Body=bodies[number - 1]
        )
        return {"PartNumber": number, "ETag": reply["ETag"]}

    parts = [send(server, 2)]
    path = f"/private/big?partNumber=1&uploadId={upload}"
    connection = half_sent(server, path, PART, 3 * MIB)
    wait_for(lambda: start_of(server.bodies()[0]) != bytes(9), "the part did not reach the disk")
    server.kill()
    connection.close()
    again = s3_server.start(tmp_path)
    try:
        # The finished part is there, the half one isn't; its place is free again.
        listed = admin(again).list_parts(Bucket="private", Key="big", UploadId=upload)["Parts"]
        assert [part["PartNumber"] for part in listed] == [2]
        parts = [send(again, 1), *parts, send(again, 3)]
        admin(again).complete_multipart_upload(
            Bucket="private", Key="big", UploadId=upload, MultipartUpload={"Parts": parts}
        )
        assert admin(again).get_object(Bucket="private", Key="big")["Body"].read() == b"".join(bodies)
        assert len(new_bodies(again, [], 1)) == 1
    finally:
        again.kill()


def test_killed_again_and_again_under_load(tmp_path: Path) -> None:
    """Every acknowledged write is there and whole; every object that is there is whole."""
    acknowledged: dict[str, str] = {}
    counter, dice = itertools.count(), random.Random(1)
    for _ in range(4):
        server = s3_server.start(tmp_path)
        enough = threading.Event()
        goal = len(acknowledged) + dice.randint(20, 60)

        def write(
            _: int, server: Server = server, goal: int = goal, enough: threading.Event = enough
        ) -> None:
            while not enough.is_set():
                number = next(counter)
                # Overwritten keys too; bodies that are one piece, and some that are streamed.
                key, body = f"k{number % 40}", str(number).encode() * (400_000 if number % 9 == 0 else 50)
                with suppress(OSError, http.client.HTTPException):
                    if call(server, ALICE, "PUT", f"/private/{key}-{number}", body).status == 200:
                        acknowledged[f"{key}-{number}"] = hashlib.md5(body, usedforsecurity=False).hexdigest()
                if len(acknowledged) >= goal:
                    enough.set()

        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(write, i) for i in range(8)]
            enough.wait()
            server.kill()
            for one in running:
                one.result()
    with s3_server.running(tmp_path) as server:
        s3 = admin(server)
        found: dict[str, str] = {}
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket="private"):
            for entry in page.get("Contents", []):
                body = s3.get_object(Bucket="private", Key=entry["Key"])["Body"].read()
                found[entry["Key"]] = hashlib.md5(body, usedforsecurity=False).hexdigest()
                assert entry["ETag"] == f'"{found[entry["Key"]]}"'
        assert acknowledged.items() <= found.items()
        wait_for(lambda: len(server.bodies()) == len(found), "bodies without rows stay")


def test_the_sweep_spares_what_a_living_process_writes(tmp_path: Path) -> None:
    """The API's process stages files into the same folder while the S3 server starts anew."""
    with s3_server.running(tmp_path) as server:
        folder, url = server.blobs, server.url
    store, index = open_index(url)
    living = Blobs(folder, reserve=0)
    generation = living.new_generation()
    living.write_whole(generation, [memoryview(b"staged")])
    orphan = Blobs(folder, reserve=0)
    lost = orphan.new_generation()
    orphan.write_whole(lost, [memoryview(b"lost")])
    orphan.close()

    async def act() -> None:
        other = Blobs(folder, reserve=0)
        assert await sweep(index, other) == 1
        assert living.path(generation).exists()
        assert not living.path(lost).exists()
        etag = hashlib.md5(b"staged", usedforsecurity=False).hexdigest()
        await index.commit(Object("private", "staged", generation, 6, etag, 1))
        living.close()
        # Its writer is gone, but it has its row now.
        assert await sweep(index, other) == 0
        assert other.path(generation).read_bytes() == b"staged"
        other.close()

    asyncio.run(act())
    store.close()


def test_a_strangers_file_is_left_alone(tmp_path: Path) -> None:
    with s3_server.running(tmp_path) as server:
        assert call(server, ALICE, "PUT", "/private/k", b"x").status == 200
        strange = server.bodies()[0].parent / "notes.txt"
        strange.write_text("mine")
    store, index = open_index(server.url)

    async def act() -> None:
        blobs = Blobs(server.blobs, reserve=0)
        assert await sweep(index, blobs) == 0
        blobs.close()

    asyncio.run(act())
    assert strange.read_text() == "mine"
    store.close()


def test_uploads_that_nobody_finishes_are_aborted(tmp_path: Path) -> None:
    with s3_server.running(tmp_path) as server:
        s3 = admin(server)
        upload = s3.create_multipart_upload(Bucket="private", Key="k")["UploadId"]
        s3.upload_part(Bucket="private", Key="k", UploadId=upload, PartNumber=1, Body=os.urandom(PART))
        started = s3.list_multipart_uploads(Bucket="private")["Uploads"][0]["Initiated"].timestamp()
    store, index = open_index(server.url)
    blobs = Blobs(server.blobs, reserve=0)

    async def act() -> None:
        assert await expire_uploads(index, blobs, int((started + UPLOAD_LIFE - 9) * 1000)) == 0
        assert await expire_uploads(index, blobs, int((started + UPLOAD_LIFE + 9) * 1000)) == 1
        assert await index.uploads("private") == []

    asyncio.run(act())
    blobs.close()
    assert server.bodies() == []
    store.close()
