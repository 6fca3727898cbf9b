"""The clients that people use, unmodified, as real processes and libraries against the built-in S3 server.

Each does the same work: small and big objects (multipart), odd keys, listing with folders, copy, sync, delete.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path

import obstore
import obstore.exceptions
import pytest
from boto3.s3.transfer import TransferConfig
from minio import Minio
from minio.commonconfig import CopySource, Tags
from obstore.store import S3Store

from tests.s3_raw import MIB, admin
from tests.s3_server import ADMIN, ALICE, REGION, Server

BIG = 20 * MIB + 17
ODD = "folder one/two  spaces/ünï+cödé & (1)%.bin"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a small and a big file, one with an odd name, and an empty one."""
    folder = tmp_path / "files"
    for name, size in (("small.txt", 11), ("big.bin", BIG), (ODD, 1000), ("empty", 0)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    return folder


def digests(folder: Path) -> dict[str, str]:
    """The files under a folder by relative name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def stored(server: Server, bucket: str) -> dict[str, int]:
    """Keys and sizes in a bucket, by another client than the one under test."""
    found = admin(server).list_objects_v2(Bucket=bucket)
    return {entry["Key"]: entry["Size"] for entry in found.get("Contents", [])}


def run(*arguments: str | Path, env: dict[str, str], home: Path, given: str = "") -> str:
    """Run a client on an input; what it printed. Its settings come from `env` and a home of its own."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", **env}
    done = subprocess.run(
        [*map(str, arguments)], env=environment, input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def fetch(url: str) -> bytes:
    """What an address gives to somebody without keys."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def test_boto3(server: Server, bucket: str, files: Path, tmp_path: Path) -> None:
    s3 = admin(server)
    config = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=4)
    for name in digests(files):
        s3.upload_file(str(files / name), bucket, name, Config=config)
    assert s3.head_object(Bucket=bucket, Key="big.bin")["ETag"].endswith('-5"')
    s3.copy({"Bucket": bucket, "Key": "big.bin"}, bucket, "copied.bin", Config=config)
    back = tmp_path / "back"
    for name in digests(files):
        (back / name).parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, name, str(back / name), Config=config)
    assert digests(back) == digests(files)
    s3.download_file(bucket, "copied.bin", str(tmp_path / "copied.bin"))
    assert (tmp_path / "copied.bin").read_bytes() == (files / "big.bin").read_bytes()
    folders = s3.list_objects_v2(Bucket=bucket, Delimiter="/")["CommonPrefixes"]
    assert [entry["Prefix"] for entry in folders] == ["folder one/"]
    for key in stored(server, bucket):
        s3.delete_object(Bucket=bucket, Key=key)
    s3.delete_bucket(Bucket=bucket)


def test_minio_py(server: Server, bucket: str, files: Path, tmp_path: Path) -> None:
    client = Minio(
        f"127.0.0.1:{server.port}", ADMIN.access_key, ADMIN.secret_key, secure=False, region=REGION
    )
    assert client.bucket_exists(bucket)
    tags = Tags.new_object_tags()
    tags["kind"] = "test"
    for name in digests(files):
        client.fput_object(
            bucket, name, str(files / name), metadata={"by": "minio-py"}, tags=tags, part_size=5 * MIB
        )
    client.copy_object(bucket, "copied.bin", CopySource(bucket, "big.bin"))
    for name in [*digests(files), "copied.bin"]:
        client.fget_object(bucket, name, str(tmp_path / "back" / name))
    assert (tmp_path / "back/copied.bin").read_bytes() == (files / "big.bin").read_bytes()
    (tmp_path / "back/copied.bin").unlink()
    assert digests(tmp_path / "back") == digests(files)
    status = client.stat_object(bucket, "small.txt")
    assert status.metadata is not None
    assert status.metadata["x-amz-meta-by"] == "minio-py"
    assert client.get_object_tags(bucket, "small.txt") == tags
    listed = [entry.object_name for entry in client.list_objects(bucket, "folder one/", recursive=True)]
    assert listed == [ODD]
    top = [(entry.object_name, entry.is_dir) for entry in client.list_objects(bucket)]
    assert ("folder one/", True) in top
    url = client.presigned_get_object(bucket, "small.txt")
    assert fetch(url) == (files / "small.txt").read_bytes()
    from minio.deleteobjects import DeleteObject

    keys = [DeleteObject(key) for key in stored(server, bucket)]
    assert list(client.remove_objects(bucket, keys)) == []
    client.remove_bucket(bucket)
    assert not client.bucket_exists(bucket)


def test_obstore(server: Server, bucket: str, files: Path) -> None:
    store = S3Store(
        bucket,
        endpoint=server.endpoint,
        access_key_id=ADMIN.access_key,
        secret_access_key=ADMIN.secret_key,
        region=REGION,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )

    async def act() -> None:
        for name in digests(files):
            with (files / name).open("rb") as source:
                await obstore.put_async(store, name, source, chunk_size=5 * MIB, max_concurrency=4)
        await obstore.copy_async(store, "big.bin", "copied.bin")
        for name, source_name in [*((name, name) for name in digests(files)), ("copied.bin", "big.bin")]:
            got = await obstore.get_async(store, name)
            assert bytes(await got.bytes_async()) == (files / source_name).read_bytes()
        part = await obstore.get_range_async(store, "big.bin", start=5, end=6 * MIB)
        assert bytes(part) == (files / "big.bin").read_bytes()[5 : 6 * MIB]
        listed = await obstore.list_with_delimiter_async(store)
        assert list(listed["common_prefixes"]) == ["folder one"]
        with pytest.raises(obstore.exceptions.AlreadyExistsError):
            await obstore.put_async(store, "small.txt", b"again", mode="create")
        await obstore.rename_async(store, "copied.bin", "renamed.bin")
        await obstore.delete_async(store, ["small.txt", "big.bin", "empty", ODD])

    asyncio.run(act())
    assert list(stored(server, bucket)) == ["renamed.bin"]


def program(name: str, setting: str = "") -> str:
    """A client's program: that of a setting, or on PATH."""
    found = os.environ.get(setting) or shutil.which(name)
    if not found:
        pytest.skip(f"built by ./scripts/test --real: {name}" if setting else f"{name} is not installed")
    return found


@pytest.mark.real
def test_mc(server: Server, bucket: str, files: Path, tmp_path: Path) -> None:
    host = f"http://{ADMIN.access_key}:{ADMIN.secret_key}@127.0.0.1:{server.port}"
    mc_path = program("mc", "OSCAR_TEST_MC")

    def mc(*arguments: str | Path) -> str:
        return run(mc_path, "--quiet", "--no-color", *arguments, env={"MC_HOST_s": host}, home=tmp_path)

    mc("mb", "s/from-mc")
    assert "from-mc/" in mc("ls", "s")
    mc("mirror", files, f"s/{bucket}")
    assert set(stored(server, bucket)) == set(digests(files))
    mc("cp", "--attr", "color=blue", "--tags", "a=1", files / "big.bin", f"s/{bucket}/again.bin")
    assert "blue" in mc("stat", f"s/{bucket}/again.bin")
    mc("cp", f"s/{bucket}/again.bin", f"s/{bucket}/copied.bin")
    mc("mv", f"s/{bucket}/copied.bin", f"s/{bucket}/moved.bin")
    mc("mirror", f"s/{bucket}/folder one", tmp_path / "back")
    assert digests(tmp_path / "back") == digests(files / "folder one")
    assert "big.bin" in mc("find", f"s/{bucket}", "--name", "big*")
    mc("tag", "set", f"s/{bucket}/small.txt", "x=1&y=2")
    assert "x" in mc("tag", "list", f"s/{bucket}/small.txt")
    mc("anonymous", "set", "download", f"s/{bucket}")
    assert (
        run(
            "curl",
            "-sf",
            f"{server.endpoint}/{bucket}/again.bin",
            "-o",
            tmp_path / "open",
            env={},
            home=tmp_path,
        )
        == ""
    )
    assert (tmp_path / "open").read_bytes() == (files / "big.bin").read_bytes()
    assert "download" in mc("anonymous", "get", f"s/{bucket}")
    mc("anonymous", "set", "private", f"s/{bucket}")
    link = next(
        line for line in mc("share", "download", f"s/{bucket}/small.txt").splitlines() if "Share:" in line
    )
    assert (
        run("curl", "-sf", link.partition("Share: ")[2], "-o", tmp_path / "shared", env={}, home=tmp_path)
        == ""
    )
    assert (tmp_path / "shared").read_bytes() == (files / "small.txt").read_bytes()
    mc("rm", "--recursive", "--force", f"s/{bucket}")
    mc("rb", f"s/{bucket}", "s/from-mc")
    assert bucket not in mc("ls", "s")


def test_rclone(server: Server, bucket: str, files: Path, tmp_path: Path) -> None:
    rclone_path = program("rclone")
    env = {
        "RCLONE_CONFIG": str(tmp_path / "none.conf"),
        "RCLONE_CONFIG_S_TYPE": "s3",
        "RCLONE_CONFIG_S_PROVIDER": "Other",
        "RCLONE_CONFIG_S_ENDPOINT": server.endpoint,
        "RCLONE_CONFIG_S_REGION": REGION,
        "RCLONE_CONFIG_S_ACCESS_KEY_ID": ALICE.access_key,
        "RCLONE_CONFIG_S_SECRET_ACCESS_KEY": ALICE.secret_key,
        "RCLONE_S3_CHUNK_SIZE": "5Mi",
        "RCLONE_S3_UPLOAD_CUTOFF": "5Mi",
    }

    def rclone(*arguments: str | Path) -> str:
        return run(rclone_path, *arguments, env=env, home=tmp_path)

    # As one who may not create buckets, in a folder of a bucket of one's own.
    there = f"s:private/{bucket}"
    rclone("sync", files, there)
    rclone("check", files, there)
    rclone("copy", there, tmp_path / "back")
    assert digests(tmp_path / "back") == digests(files)
    assert "small.txt" in rclone("lsf", there)
    rclone("moveto", f"{there}/small.txt", f"{there}/renamed.txt")
    (files / "small.txt").rename(files / "renamed.txt")
    rclone("sync", files, there)
    rclone("check", files, there)
    piped = "x" * (6 * MIB)
    run(rclone_path, "rcat", f"{there}/piped", env=env, home=tmp_path, given=piped)
    assert rclone("cat", f"{there}/piped") == piped
    rclone("purge", there)
    assert not [key for key in stored(server, "private") if key.startswith(bucket)]


def test_aws_cli(server: Server, bucket: str, files: Path, tmp_path: Path) -> None:
    aws_path = program("aws")
    env = {
        "AWS_ACCESS_KEY_ID": ADMIN.access_key,
        "AWS_SECRET_ACCESS_KEY": ADMIN.secret_key,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_PAGER": "",
    }

    def aws(*arguments: str | Path) -> str:
        return run(aws_path, "--endpoint-url", server.endpoint, *arguments, env=env, home=tmp_path)

    aws("s3", "mb", "s3://from-aws")
    assert "from-aws" in aws("s3", "ls")
    aws("s3", "sync", files, f"s3://{bucket}")
    assert set(stored(server, bucket)) == set(digests(files))
    assert aws("s3", "sync", files, f"s3://{bucket}") == ""
    aws("s3", "cp", f"s3://{bucket}/big.bin", f"s3://{bucket}/copied.bin")
    aws("s3", "sync", f"s3://{bucket}", tmp_path / "back")
    (tmp_path / "back/copied.bin").unlink()
    assert digests(tmp_path / "back") == digests(files)
    assert "big.bin" in aws("s3", "ls", f"s3://{bucket}/")
    aws("s3api", "put-object", "--bucket", bucket, "--key", "k", "--body", files / "small.txt",
        "--checksum-algorithm", "SHA256", "--tagging", "a=1")  # fmt: skip
    assert "SHA256" in aws(
        "s3api", "head-object", "--bucket", bucket, "--key", "k", "--checksum-mode", "ENABLED"
    )
    assert '"a"' in aws("s3api", "get-object-tagging", "--bucket", bucket, "--key", "k")
    aws("s3", "rb", "--force", f"s3://{bucket}")
    aws("s3", "rb", "s3://from-aws")
    assert "from-aws" not in aws("s3", "ls")
