"""`oscar export` and `oscar import`: an installation survives a move, and nothing damaged becomes one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx2
import pytest
from boto3.s3.transfer import TransferConfig

from tests import server as servers
from tests.server import Server

SECRET = f"planted-{uuid.uuid4().hex}"
LARGE = os.urandom(12 * 1024 * 1024)


def oscar(*words: str, expect: int = 0, **env: str) -> Any:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OSCAR_", "MINIO_"))}
    command = [sys.executable, "-m", "oscar", *words, "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=kept | env)
    assert done.returncode == expect, done.stderr
    return json.loads(done.stderr.splitlines()[-1] if expect else done.stdout)


def client(server: Server) -> httpx2.Client:
    return httpx2.Client(base_url=server.endpoint, auth=(server.user, server.password), timeout=60)


def storage(server: Server, http: httpx2.Client) -> Any:
    keys = http.get("/system/config").json()["minio_provider"]
    return boto3.client(
        "s3",
        endpoint_url=server.s3,
        aws_access_key_id=keys["access_key"],
        aws_secret_access_key=keys["secret_key"],
        region_name="us-east-1",
    )


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """What the installation held."""
    return {}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, facts: dict[str, Any]) -> Iterator[Server]:
    """An installation with something of everything."""
    with servers.running(tmp_path_factory.mktemp("archive") / "data") as running, client(running) as http:
        definition = {
            "name": "kept",
            "image": "none",
            "script": 'test "$PASS" && echo "the log" && wc -c < "$INPUT_FILE_PATH"',
            "input": [{"storage_provider": "minio", "path": "kept/in"}],
            "environment": {"secrets": {"PASS": SECRET}},
            "log_level": "CRITICAL",
        }
        assert http.post("/system/services", json=definition).status_code == 201
        job = http.post("/job/kept", content=json.dumps({"text": "x" * 200_000})).json()["job_id"]
        ended = http.get(f"/system/jobs/kept/{job}", params={"wait": "60s"}).json()
        assert ended["status"] == "Succeeded"
        s3 = storage(running, http)
        s3.put_object(Bucket="kept", Key="a/é  b", Body=b"small", Metadata={"who": "me"})
        config = TransferConfig(multipart_threshold=1, multipart_chunksize=5 * 1024 * 1024)
        s3.upload_fileobj(io.BytesIO(LARGE), "kept", "large", Config=config)
        unfinished = s3.create_multipart_upload(Bucket="kept", Key="unfinished")
        part = {"Bucket": "kept", "Key": "unfinished", "UploadId": unfinished["UploadId"], "PartNumber": 1}
        s3.upload_part(**part, Body=LARGE[: 5 * 1024 * 1024])
        facts.update(
            job=ended,
            log=http.get(f"/system/logs/kept/{job}").text,
            service=http.get("/system/services/kept").json(),
            keys=http.get("/system/config").json()["minio_provider"]["secret_key"],
        )
        yield running


@pytest.fixture(scope="module")
def archive(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the running server."""
    file = tmp_path_factory.mktemp("exported") / "oscar.tar"
    said = oscar("export", str(file), "--data", str(server.data))
    assert said["objects"] == 2
    assert said["manifest"]["keys"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert not list(server.data.glob(".export-*"))
    return file


def test_a_round_trip(server: Server, archive: Path, facts: dict[str, Any], tmp_path: Path) -> None:
    said = oscar("import", str(archive), "--data", str(tmp_path / "data"))
    assert said["objects"] == 2
    with servers.running(tmp_path / "data") as moved, client(moved) as http:
        assert moved.password == server.password
        assert http.get("/system/services/kept").json()["token"] == facts["service"]["token"]
        job = facts["job"]["job_id"]
        assert http.get(f"/system/jobs/kept/{job}").json() == facts["job"]
        assert http.get(f"/system/logs/kept/{job}").text == facts["log"]
        again = http.post(f"/system/jobs/kept/{job}/rerun").json()["job_id"]
        ended = http.get(f"/system/jobs/kept/{again}", params={"wait": "60s"}).json()
        assert ended["status"] == "Succeeded", "its secret was opened"
        assert http.get(f"/system/logs/kept/{again}").text == facts["log"]
        s3 = storage(moved, http)
        small = s3.get_object(Bucket="kept", Key="a/é  b")
        assert (small["Body"].read(), small["Metadata"]) == (b"small", {"who": "me"})
        assert s3.get_object(Bucket="kept", Key="large")["Body"].read() == LARGE
        assert "Uploads" not in s3.list_multipart_uploads(Bucket="kept")
        assert http.get("/system/config").json()["minio_provider"]["secret_key"] == facts["keys"]
        # And it works: an upload starts a job.
        s3.put_object(Bucket="kept", Key="in/new", Body=b"new")
        assert len(http.get("/system/logs/kept").json()["jobs"]) == 3


def test_an_export_while_objects_come_and_go(server: Server, tmp_path: Path) -> None:
    with client(server) as http:
        s3 = storage(server, http)
        stop = threading.Event()

        def churn() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                s3.put_object(Bucket="kept", Key=f"churn/{number % 5}", Body=str(number).encode())
                if number % 3 == 0:
                    s3.delete_object(Bucket="kept", Key=f"churn/{number % 7}")

        threads = [threading.Thread(target=churn) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for number in range(3):
                oscar("export", str(tmp_path / f"{number}.tar.gz"), "--data", str(server.data))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        for number in range(5):
            s3.delete_object(Bucket="kept", Key=f"churn/{number}")
    for number in range(3):
        # Refuses an archive that lacks a body.
        said = oscar("import", str(tmp_path / f"{number}.tar.gz"), "--data", str(tmp_path / f"data{number}"))
        assert said["objects"] >= 2


def test_without_objects_and_without_keys(server: Server, facts: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "bare.tar"
    said = oscar("export", str(file), "--data", str(server.data), "--without-objects", "--without-keys")
    assert said["objects"] == 0
    secret = (server.data / "secret-key").read_text().strip()
    content = file.read_bytes()
    for hidden in (SECRET, secret, server.password, facts["service"]["token"], facts["keys"]):
        assert hidden.encode() not in content
    oscar("import", str(file), "--data", str(tmp_path / "data"))
    with servers.running(tmp_path / "data", OSCAR_SECRET_KEY=secret) as moved, client(moved) as http:
        assert http.get("/system/services/kept").json()["token"] == facts["service"]["token"]
        assert http.get("/system/buckets/kept").json()["objects"] == []
        assert http.get("/system/buckets/kept").json()["storage_usage"]["used_bytes"] == 0
        assert moved.password != server.password


def test_what_is_refused(server: Server, archive: Path, tmp_path: Path) -> None:
    error = oscar("import", str(archive), "--data", str(server.data), expect=3)
    assert (error["code"], error["field"]) == ("conflict", "OSCAR_DATA")
    error = oscar("export", str(archive), "--data", str(server.data), expect=3)
    assert error["code"] == "conflict"
    error = oscar("export", str(tmp_path / "x.tar"), "--data", str(tmp_path / "nothing"), expect=3)
    assert (error["code"], error["field"]) == ("conflict", "OSCAR_DATA")
    postgres = {"OSCAR_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1/none"}
    error = oscar("export", str(tmp_path / "x.tar"), "--data", str(server.data), expect=3, **postgres)
    assert error["field"] == "OSCAR_DATABASE_URL"
    assert list(tmp_path.iterdir()) == []


def change(archive: Path, target: Path, **changed: bytes | None) -> None:
    """Copy an archive with other contents; None leaves the member out."""
    with tarfile.open(archive) as source, tarfile.open(target, "w") as out:
        for member in source:
            content = source.extractfile(member)
            assert content is not None
            data = content.read()
            if member.name in changed:
                new = changed[member.name]
                if new is None:
                    continue
                data = new
                member.size = len(data)
            out.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    "damage", ["cut", "end", "database", "body", "outside", "link", "format", "nonsense", "empty"]
)
def test_a_damaged_archive_leaves_nothing(archive: Path, tmp_path: Path, damage: str) -> None:
    file, data = tmp_path / "damaged.tar", tmp_path / "data"
    with tarfile.open(archive) as whole:
        names = whole.getnames()
    body = next(name for name in names if name.startswith("blobs/"))
    match damage:
        case "cut":
            file.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
        case "end":
            change(archive, file, **{"end.json": None})
        case "database":
            change(archive, file, **{"oscar.db": b"not a database" * 1000})
        case "body":
            change(archive, file, **{body: None})
        case "format":
            change(archive, file, **{"manifest.json": json.dumps({"format": 99, "version": "9"}).encode()})
        case "outside" | "link":
            with tarfile.open(file, "w") as out, tarfile.open(archive) as source:
                manifest = source.getmember("manifest.json")
                out.addfile(manifest, source.extractfile(manifest))
                info = tarfile.TarInfo("../outside" if damage == "outside" else "logs/link")
                if damage == "link":
                    info.type, info.linkname = tarfile.SYMTYPE, "/etc"
                out.addfile(info)
        case "nonsense":
            file.write_bytes(b"nonsense" * 500)
        case "empty":
            file.touch()
    error = oscar("import", str(file), "--data", str(data), expect=3)
    assert error["code"] in {"damaged_archive", "storage_error"}, error
    assert not data.exists()
    assert not (tmp_path / "outside").exists()
    # The folder is as good as before.
    oscar("import", str(archive), "--data", str(data))
