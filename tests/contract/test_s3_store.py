"""S3Store against real servers: the built-in one, and MinIO where its program is."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from minio import Minio as MinioClient

from oscar.errors import BucketNotFound, Forbidden, InvalidField, ObjectNotFound, StorageError
from oscar.model.producer import Producer
from oscar.objects.base import ObjectStore
from oscar.objects.s3 import PIECE, S3Store, plain
from tests import real_minio, s3_server

BUCKET = "private"


@dataclass(frozen=True, slots=True)
class Target:
    """A server with the keys of a user and of somebody else."""

    endpoint: str
    access_key: str
    secret_key: str
    builtin: bool

    def store(self, secret_key: str = "") -> S3Store:
        return S3Store(self.endpoint, self.access_key, secret_key or self.secret_key)

    def client(self) -> MinioClient:
        return MinioClient(urlsplit(self.endpoint).netloc, self.access_key, self.secret_key, secure=False)


@pytest.fixture(scope="module", params=["builtin", pytest.param("minio", marks=pytest.mark.real)])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("s3")
    if request.param == "builtin":
        with s3_server.running(folder) as server:
            yield Target(
                server.endpoint, s3_server.ALICE.access_key, s3_server.ALICE.secret_key, builtin=True
            )
        return
    try:
        with real_minio.running(folder) as minio:
            found = Target(minio.endpoint, real_minio.ACCESS_KEY, real_minio.SECRET_KEY, builtin=False)
            run(found, lambda store: store.ensure_bucket(BUCKET))
            yield found
    except real_minio.MinioMissing as missing:
        pytest.skip(str(missing))


def run(target: Target, act: Callable[[S3Store], Awaitable[None]], secret_key: str = "") -> None:
    async def main() -> None:
        store = target.store(secret_key)
        try:
            await act(store)
        finally:
            await store.close()

    asyncio.run(main())


def conforms(store: S3Store) -> ObjectStore:
    """That this module type-checks says that S3Store is an ObjectStore."""
    return store


KEYS = [
    "a",
    "deep/er/b.txt",
    "two  spaces +%41ñ☃?#&='\"",
    "~!*'();:@$,[]",
    "end/",
    "line\nbreak",
    "tab\tand\x7f",
]
ODD_KEYS = ["a//b", "/lead", "a/../b", "./c", ".", "..", "a/./b", "//", "end//"]


def test_obstore_gets_only_keys_that_it_can_name() -> None:
    assert all(plain(key) for key in ("a", "deep/er/b.txt", "a b%2F", "..a", "ñ☃", "a..b/.c", "\u0085"))
    assert not any(plain(key) for key in ("", *ODD_KEYS, "end/", "line\nbreak", "a\x7f"))


@pytest.mark.parametrize("key", KEYS + ODD_KEYS)
def test_there_and_back(target: Target, tmp_path: Path, key: str) -> None:
    if key in ODD_KEYS and not target.builtin:
        # MinIO keeps objects as paths and refuses these names, or changes them.
        return
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"content of " + key.encode())

    async def act(store: S3Store) -> None:
        stored = await store.upload(
            BUCKET, key, source, content_type="text/x-test", producer=Producer("j", 3)
        )
        fetched = await store.download(BUCKET, key, copy)
        seen = await store.stat(BUCKET, key)
        listed = [found async for found in store.list(BUCKET, key) if found.key == key]
        size = source.stat().st_size
        for found in (stored, fetched, seen, *listed):
            assert (found.key, found.size, found.etag) == (key, size, stored.etag)
            assert abs(found.modified - stored.modified) < 60_000
        assert len(listed) == 1
        await store.delete(BUCKET, key)
        with pytest.raises(ObjectNotFound):
            await store.stat(BUCKET, key)

    run(target, act)
    assert copy.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "source"]


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_files_of_any_size_with_their_metadata(target: Target, tmp_path: Path, size: int) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(size))

    async def act(store: S3Store) -> None:
        await store.upload(
            BUCKET, "sized", source, content_type="image/png", producer=Producer(f"job-{size}", 11)
        )
        assert (await store.download(BUCKET, "sized", copy)).size == size

    run(target, act)
    assert copy.read_bytes() == source.read_bytes()
    headers = target.client().stat_object(BUCKET, "sized").metadata
    assert headers is not None
    assert headers["x-amz-meta-oscar-hops"] == "11"
    assert headers["Content-Type"] == "image/png"


def test_replacing_keeps_no_earlier_metadata(target: Target, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")

    async def act(store: S3Store) -> None:
        await store.upload(BUCKET, "again", source, producer=Producer("job", 5))
        await store.upload(BUCKET, "again", source)

    run(target, act)
    headers = target.client().stat_object(BUCKET, "again").metadata
    assert headers is not None
    assert "x-amz-meta-oscar-hops" not in headers
    assert headers["Content-Type"] == "application/octet-stream"


def test_listing_by_any_prefix_in_order_and_in_pages(target: Target, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    many = sorted(f"list/{number:04}" for number in range(1003))
    others = ["list.txt", "listen/a", "list/ñ", "list/a b+c", "list/sub/x"]

    async def act(store: S3Store) -> None:
        gate = asyncio.Semaphore(16)

        async def put(key: str) -> None:
            async with gate:
                await store.upload(BUCKET, key, source)

        await asyncio.gather(*(put(key) for key in (*many, *others)))

        async def keys(prefix: str, start_after: str = "") -> list[str]:
            return [found.key async for found in store.list(BUCKET, prefix, start_after=start_after)]

        everything = sorted([*many, *others], key=str.encode)
        assert await keys("list") == everything
        assert await keys("list/") == [key for key in everything if key.startswith("list/")]
        # Not whole folders only.
        assert await keys("list/10") == ["list/1000", "list/1001", "list/1002"]
        assert await keys("list/a b+") == ["list/a b+c"]
        assert await keys("nothing") == []
        assert await keys("list/", start_after="list/1001") == [
            "list/1002", "list/a b+c", "list/sub/x", "list/ñ"
        ]  # fmt: skip

    run(target, act)


def test_what_is_missing_is_told_apart(target: Target, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    goal = tmp_path / "goal"

    async def act(store: S3Store) -> None:
        with pytest.raises(ObjectNotFound, match="no object private/nothing"):
            await store.download(BUCKET, "nothing", goal)
        with pytest.raises(ObjectNotFound, match="no object private/nothing"):
            await store.stat(BUCKET, "nothing")
        with pytest.raises(ObjectNotFound):
            await store.download(BUCKET, "end/nothing/", goal)
        await store.delete(BUCKET, "nothing")
        missing: list[Callable[[], Awaitable[object]]] = [
            lambda: store.download("no-bucket", "a", goal),
            lambda: store.download("no-bucket", "a/", goal),
            lambda: store.stat("no-bucket", "a"),
            lambda: store.upload("no-bucket", "a", source),
            lambda: store.upload("no-bucket", "a/", source),
            lambda: anext(store.list("no-bucket")),
        ]
        for verb in missing:
            with pytest.raises(BucketNotFound, match="no bucket no-bucket"):
                await verb()

    run(target, act)
    assert list(tmp_path.iterdir()) == [source]


def test_wrong_keys_are_refused_in_the_stores_words_and_never_shown(target: Target, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")

    async def act(store: S3Store) -> None:
        verbs: list[Callable[[], Awaitable[object]]] = [
            lambda: store.upload(BUCKET, "a", source),
            lambda: store.upload(BUCKET, "a/", source),
            lambda: store.download(BUCKET, "a", tmp_path / "goal"),
            lambda: store.download(BUCKET, "a/", tmp_path / "goal"),
            lambda: store.stat(BUCKET, "a"),
            lambda: store.delete(BUCKET, "a"),
            lambda: anext(store.list(BUCKET)),
        ]
        for verb in verbs:
            with pytest.raises(
                Forbidden, match=r"answered 403 .*(SignatureDoesNotMatch|Forbidden)"
            ) as caught:
                await verb()
            assert "the-wrong-secret" not in repr(caught.value)
        assert "the-wrong-secret" not in repr(store)

    run(target, act, secret_key="the-wrong-secret")


def test_buckets_are_made_once(target: Target, tmp_path: Path) -> None:
    async def act(store: S3Store) -> None:
        await store.ensure_bucket(BUCKET)
        if target.builtin:
            with pytest.raises(Forbidden, match="made-here"):
                await store.ensure_bucket("made-here")
            return
        await store.ensure_bucket("made-here")
        await store.ensure_bucket("made-here")
        assert [found async for found in store.list("made-here")] == []

    run(target, act)


def test_presigned_urls(target: Target, tmp_path: Path) -> None:
    async def act(store: S3Store) -> None:
        async with httpx2.AsyncClient() as http:
            for key in ("presigned", "pre signed+%ñ", "folder/"):
                kind = {"Content-Type": "text/plain"}
                put = await store.presign(BUCKET, key, method="PUT", expires=60, headers=kind)
                assert (await http.put(put, content=b"hello", headers=kind)).status_code == 200
                assert (await http.put(put, content=b"x", headers={"Content-Type": "a/b"})).status_code == 403
                get = await store.presign(BUCKET, key, method="GET", expires=60)
                assert (await http.get(get)).content == b"hello"
                assert (await http.put(get, content=b"x")).status_code == 403
                assert (await http.get(get.replace("presign", "another"))).status_code in {200, 403}
        for seconds in (0, 7 * 86400 + 1):
            with pytest.raises(InvalidField) as caught:
                await store.presign(BUCKET, "a", method="GET", expires=seconds)
            assert caught.value.field == "expires"

    run(target, act)


def test_the_servers_own_environment_changes_nothing(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_SESSION_TOKEN": "somebody-elses",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REGION": "mars-1",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_ACCESS_KEY_ID": "other",
    }.items():
        monkeypatch.setenv(name, value)
    source = tmp_path / "source"
    source.write_bytes(b"x")

    async def act(store: S3Store) -> None:
        await store.upload(BUCKET, "environment", source)
        await store.download(BUCKET, "environment", tmp_path / "copy")

    run(target, act)


def test_a_file_that_is_not_there_or_a_folder(target: Target, tmp_path: Path) -> None:
    async def act(store: S3Store) -> None:
        for key in ("a", "a/"):
            with pytest.raises(StorageError, match="missing: No such file"):
                await store.upload(BUCKET, key, tmp_path / "missing")
        source = tmp_path / "source"
        source.write_bytes(b"x")
        await store.upload(BUCKET, "present", source)
        (tmp_path / "link").symlink_to(source)
        for key in ("a", "a/"):
            with pytest.raises(StorageError, match=f"{tmp_path.name} is not a file"):
                await store.upload(BUCKET, key, tmp_path)
            # Whoever wants what a link points at gives that path.
            with pytest.raises(StorageError, match="link: Too many levels of symbolic links"):
                await store.upload(BUCKET, key, tmp_path / "link")
        with pytest.raises(StorageError, match="goal: No such file"):
            await store.download(BUCKET, "present", tmp_path / "no-folder" / "goal")

    run(target, act)


MEMORY = """
import asyncio, resource, sys
from pathlib import Path
from oscar.objects.s3 import S3Store

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

async def main(endpoint, access_key, secret_key, source, copy):
    store = S3Store(endpoint, access_key, secret_key)
    await store.stat("private", "small")
    before = peak()
    await store.upload("private", "large", Path(source))
    await store.download("private", "large", Path(copy))
    print(peak() - before)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


def test_memory_stays_flat(target: Target, tmp_path: Path) -> None:
    source, copy, small = tmp_path / "source", tmp_path / "copy", tmp_path / "small"
    small.write_bytes(b"x")
    run(target, lambda store: _ignore(store.upload(BUCKET, "small", small)))
    with source.open("wb") as file:
        for _ in range(300):
            file.write(os.urandom(1 << 20))
    arguments = (target.endpoint, target.access_key, target.secret_key, str(source), str(copy))
    child = subprocess.run(
        [sys.executable, "-c", MEMORY, *arguments], check=True, capture_output=True, text=True
    )
    # Measured: about 65 MiB for 300 MiB, and the same for 2 GiB.
    assert int(child.stdout) < 150
    assert subprocess.run(["cmp", source, copy], check=False).returncode == 0


async def _ignore(wanted: Awaitable[object]) -> None:
    await wanted


@asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[str]:
    """Something that gives each request the same bytes and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"


HEAD = b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: "e"\r\nLast-Modified: Mon, 23 Nov 2026 20:00:00 GMT\r\n\r\n'


@pytest.mark.parametrize("key", ["a", "a/"])
def test_a_broken_transfer_leaves_nothing(tmp_path: Path, key: str) -> None:
    async def main() -> None:
        async with listening(HEAD + b"only so much") as endpoint:
            store = S3Store(endpoint, "a", "b")
            with pytest.raises(StorageError):
                await store.download("bucket", key, tmp_path / "goal")
            await store.close()

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["a", "a/"])
def test_a_cancelled_transfer_leaves_nothing(tmp_path: Path, key: str) -> None:
    async def main() -> None:
        arrived = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HEAD + b"only so much")
            arrived.set()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            store = S3Store(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "a", "b")
            transfer = asyncio.create_task(store.download("bucket", key, tmp_path / "goal"))
            await arrived.wait()
            transfer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await transfer
            await store.close()

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://127.0.0.1:1", "Connection refused|connection attempts failed"),
        ("http://no-such-host.invalid", "Name or service not known|resolution"),
    ],
)
def test_a_server_that_can_t_be_reached(tmp_path: Path, endpoint: str, reason: str) -> None:
    async def main() -> None:
        store = S3Store(endpoint, "a", "b")
        host = endpoint.removeprefix("http://")
        for verb in (store.download("bucket", "a", tmp_path / "a"), store.stat("bucket", "a")):
            with pytest.raises(StorageError, match=f"no answer from {host}: .*({reason})"):
                await verb
        await store.close()

    asyncio.run(main())


def test_something_else_than_a_store_answers() -> None:
    async def main() -> None:
        async with listening(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>") as endpoint:
            store = S3Store(endpoint, "a", "b")
            with pytest.raises(StorageError, match="something else than ListBucketResult"):
                await anext(store.list("bucket"))
            await store.close()

    asyncio.run(main())


def test_trouble_that_passes_is_not_seen(tmp_path: Path) -> None:
    async def main() -> None:
        answers = iter([b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"] * 2)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(next(answers, HEAD + b"x" * 1000))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            store = S3Store(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "a", "b")
            assert (await store.download("bucket", "a/", tmp_path / "goal")).size == 1000
            await store.close()

    asyncio.run(main())
    assert (tmp_path / "goal").read_bytes() == b"x" * 1000


@pytest.mark.parametrize("endpoint", ["minio:9000", "//x", "ftp://x", "https://", "x"])
def test_addresses_without_a_scheme(endpoint: str) -> None:
    with pytest.raises(InvalidField, match="no address of a store"):
        S3Store(endpoint, "a", "b")


def certificate(folder: Path) -> None:
    """A certificate for 127.0.0.1 that nobody has signed but itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "public.crt").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    (folder / "private.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.mark.real
def test_certificates_are_checked_unless_told_otherwise(tmp_path: Path) -> None:
    certificates, data = tmp_path / "certificates", tmp_path / "data"
    for folder in (certificates, data):
        folder.mkdir()
    certificate(certificates)
    source = tmp_path / "source"
    source.write_bytes(b"x")

    async def main(endpoint: str) -> None:
        trusting = S3Store(endpoint, real_minio.ACCESS_KEY, real_minio.SECRET_KEY, verify=False)
        await trusting.ensure_bucket(BUCKET)
        await trusting.upload(BUCKET, "a", source)
        await trusting.download(BUCKET, "a", tmp_path / "copy")
        careful = S3Store(endpoint, real_minio.ACCESS_KEY, real_minio.SECRET_KEY)
        with pytest.raises(StorageError, match=r"(?i)certificate"):
            await careful.stat(BUCKET, "a")
        with pytest.raises(StorageError, match=r"(?i)certificate"):
            await careful.download(BUCKET, "a", tmp_path / "other")
        await trusting.close()
        await careful.close()

    try:
        with real_minio.running(data, certificates=certificates) as minio:
            asyncio.run(main(minio.endpoint))
    except real_minio.MinioMissing as missing:
        pytest.skip(str(missing))
    assert (tmp_path / "copy").read_bytes() == b"x"


def test_buckets_as_host_names(tmp_path: Path) -> None:
    """The signature is made for the bucket's own host, which a test can't have in its DNS."""

    async def main(server: s3_server.Server) -> None:
        endpoint = f"http://s3.test:{server.port}"
        alice = s3_server.ALICE
        store = S3Store(endpoint, alice.access_key, alice.secret_key, virtual_host=True)
        url = await store.presign(BUCKET, "a b", method="PUT", expires=60)
        host = f"{BUCKET}.s3.test:{server.port}"
        assert url.startswith(f"http://{host}/a%20b?")
        async with httpx2.AsyncClient() as http:
            reached = url.replace(host, f"127.0.0.1:{server.port}")
            answer = await http.put(reached, content=b"x", headers={"Host": host})
            assert answer.status_code == 200, answer.text
        await store.close()

    with s3_server.running(tmp_path, domain="s3.test") as server:
        asyncio.run(main(server))
