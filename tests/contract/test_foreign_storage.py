"""dCache's redirects, Onedata and Rucio by recorded protocol; and failures in the middle of transfers.

The servers are those of `tests.foreign_servers`, which says where their rules come from.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import stamina
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from oscar.errors import BucketNotFound, Forbidden, ObjectNotFound, OscarError, StorageError
from oscar.model.producer import Producer
from oscar.objects.base import FileStore
from oscar.objects.onedata import OnedataStore
from oscar.objects.rucio import RucioStore, Site
from oscar.objects.rucio_token import Tokens
from oscar.objects.webdav import WebDavStore, basic
from tests.foreign_servers import CUT, Catalogue, Dav, Door, Oneprovider, Pool, Rucio, World, serving

SECRET = "s3cret-pass-word"
TOKEN = "header.claims.signature-of-the-access-token"
REFRESH = "the-refresh-token-itself"
BIG = b"0123456789" * 30_000
SMALL = b"small"

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    with stamina.set_testing(True, attempts=4, cap=True):
        yield


def run(store: Any, act: Callable[[Any], Awaitable[T]]) -> T:
    async def main() -> T:
        try:
            return await act(store)
        finally:
            await store.close()

    return asyncio.run(main())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(BIG)
    return path


def dav(url: str, **more: Any) -> WebDavStore:
    return WebDavStore(url, basic("ada", SECRET), secrets=[SECRET], **more)


# --- dCache ----------------------------------------------------------------------------------------------


@pytest.fixture
def dcache() -> Iterator[tuple[str, World, World]]:
    tickets: set[str] = set()
    world = World()
    with serving(Pool, tickets=tickets, files=world.files) as (pool_url, pool):
        headers = asyncio.run(_headers())
        with serving(Door, world=world, pool=pool_url, tickets=tickets, authorization=headers) as (url, door):
            yield url, door, pool


async def _headers() -> str:
    return (await basic("ada", SECRET)())["authorization"]


@pytest.mark.parametrize("content", [SMALL, BIG])
def test_dcache_there_and_back(
    dcache: tuple[str, World, World], source: Path, tmp_path: Path, content: bytes
) -> None:
    url, door, pool = dcache
    source.write_bytes(content)

    async def act(store: WebDavStore) -> None:
        await store.upload("", "data/out dir/a+b.bin", source)
        await store.download("", "data/out dir/a+b.bin", tmp_path / "copy")

    run(dav(url), act)
    assert (tmp_path / "copy").read_bytes() == content
    assert door.files == {"/data/out dir/a+b.bin": content}
    # The pool got what belongs to it, and nobody's password.
    assert len(pool.asked("GET")) == 1
    assert len(pool.asked("PUT")) == (1 if content == BIG else 0)
    assert {request.authorization for request in pool.seen} == {""}
    assert all(not request.body for request in door.asked("PUT") if request.expected)


def test_dcache_a_trusted_host_gets_the_credentials(
    dcache: tuple[str, World, World], source: Path, tmp_path: Path
) -> None:
    url, _, pool = dcache

    async def act(store: WebDavStore) -> None:
        await store.upload("", "a", source)

    run(dav(url, trusted=["127.0.0.1"]), act)
    assert {request.authorization for request in pool.seen} == {asyncio.run(_headers())}


def test_dcache_a_broken_transfer_starts_at_the_door_again(
    dcache: tuple[str, World, World], source: Path, tmp_path: Path
) -> None:
    url, door, pool = dcache
    pool.fail("PUT", ".part", CUT)
    pool.fail("GET", "a", CUT)

    async def act(store: WebDavStore) -> None:
        await store.upload("", "a", source)
        await store.download("", "a", tmp_path / "copy")

    run(dav(url), act)
    assert (tmp_path / "copy").read_bytes() == BIG
    assert door.files == {"/a": BIG}
    # Tickets are good once: each attempt has its own.
    assert len({request.query for request in pool.seen}) == len(pool.seen) == 4


def test_redirects_in_a_circle_end(source: Path, tmp_path: Path) -> None:
    with serving(Dav) as (url, world):
        world.headers = {"Location": f"{url}/a?authz={SECRET}"}
        world.fail("GET", "/a", 307, times=50)
        with pytest.raises(StorageError, match="sent on more than") as caught:
            run(dav(url), lambda store: store.download("", "a", tmp_path / "copy"))
        assert SECRET not in str(caught.value)
        world.headers = {"Location": f"file:///etc/passwd?authz={SECRET}"}
        with pytest.raises(StorageError, match="none of HTTP") as caught:
            run(dav(url), lambda store: store.download("", "a", tmp_path / "copy"))
        assert SECRET not in str(caught.value)


@pytest.fixture
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's end of TLS with a certificate that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.Encoding.PEM
    file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@pytest.mark.parametrize("content", [SMALL, BIG])
def test_certificates_are_checked(tls: ssl.SSLContext, source: Path, tmp_path: Path, content: bytes) -> None:
    source.write_bytes(content)
    with serving(Dav, tls=tls) as (url, world):
        with pytest.raises(StorageError, match="certificate verify failed"):
            run(dav(url), lambda store: store.upload("", "a", source))
        assert world.seen == []

        async def act(store: WebDavStore) -> None:
            await store.upload("", "a", source)
            await store.download("", "a", tmp_path / "copy")

        run(dav(url, verify=False), act)
        assert world.files == {"/a": content}
    assert (tmp_path / "copy").read_bytes() == content


def test_no_credentials_in_clear(tls: ssl.SSLContext, source: Path) -> None:
    with serving(Dav) as (clear, plain), serving(Dav, tls=tls) as (url, world):
        world.headers = {"Location": f"{clear}/pool"}
        world.fail("PUT", ".part", 307)
        world.files["/a"] = BIG
        with pytest.raises(OscarError):
            run(dav(url, verify=False, trusted=["127.0.0.1"]), lambda store: store.upload("", "b", source))
        assert [request.authorization for request in plain.seen] == [""]


# --- failures in the middle ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [SMALL, BIG])
@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, Forbidden, "answered 401 to PUT"),
        (403, Forbidden, "answered 403 to PUT"),
        (409, StorageError, "answered 409 to PUT"),
        (413, StorageError, "no space"),
        (507, StorageError, "no space"),
        (500, StorageError, "answered 500 to PUT"),
        (CUT, StorageError, "no answer from"),
    ],
)
def test_what_fails_leaves_nothing(
    source: Path, status: int, error: type[OscarError], words: str, content: bytes
) -> None:
    source.write_bytes(content)
    with serving(Dav) as (url, world):
        world.files["/a"] = b"before"
        world.fail("PUT", ".part", status, f"the disk says {SECRET}", times=8)
        with pytest.raises(error, match=words) as caught:
            run(dav(url), lambda store: store.upload("", "a", source))
        assert world.files == {"/a": b"before"}
    assert SECRET not in str(caught.value)
    if status != CUT:
        assert "the disk says ***" in str(caught.value)


@pytest.mark.parametrize("status", [423, 429, 500, 502, 503, 504, CUT])
def test_what_passes_is_repeated(source: Path, tmp_path: Path, status: int) -> None:
    with serving(Dav) as (url, world):
        world.headers = {"Retry-After": "0"}
        for method, end in [("PUT", ".part"), ("MOVE", ".part"), ("MKCOL", "/out"), ("PROPFIND", "/a")]:
            world.fail(method, end, status, times=2)
        world.fail("GET", "/a", status, times=3)

        async def act(store: WebDavStore) -> None:
            await store.upload("", "out/a", source)
            await store.download("", "out/a", tmp_path / "copy")

        run(dav(url), act)
        assert world.files == {"/out/a": BIG}
        assert not world.faults
    assert (tmp_path / "copy").read_bytes() == BIG


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with serving(Dav) as (url, world):
        world.files["/a"] = BIG
        world.fail("GET", "/a", CUT, times=4)
        with pytest.raises(StorageError, match="broke off"):
            run(dav(url), lambda store: store.download("", "a", tmp_path / "copy"))
        assert len(world.asked("GET")) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_rename_whose_answer_is_lost_counts(source: Path) -> None:
    class Forgetful(Dav):
        """Carries out the first MOVE and then ends the connection."""

        def on_move(self) -> None:
            if len(self.world.asked("MOVE")) == 1:
                self.world.files["/a"] = self.world.files.pop(self.where)
                self.close_connection = True
                self.connection.close()
                return None
            return super().on_move()

    with serving(Forgetful) as (url, world):
        run(dav(url), lambda store: store.upload("", "a", source))
        assert world.files == {"/a": BIG}
        assert len(world.asked("MOVE")) == 2


def test_a_server_that_can_t_rename(source: Path) -> None:
    with serving(Dav, renames=False) as (url, world):
        run(dav(url), lambda store: store.upload("", "new/a", source))
        assert world.files == {"/new/a": BIG}
        # What is new and breaks off is removed; what was there is not.
        world.fail("PUT", "/b", CUT, times=4)
        with pytest.raises(StorageError):
            run(dav(url), lambda store: store.upload("", "new/b", source))
        assert world.files == {"/new/a": BIG}


def test_a_door_that_doesn_t_replace_files(source: Path) -> None:
    with serving(Dav, replaces=False) as (url, world):
        world.files["/a"] = b"before"
        run(dav(url), lambda store: store.upload("", "a", source))
        assert world.files == {"/a": BIG}


def test_cancelled_in_the_middle(source: Path) -> None:
    gone = threading.Event()
    started = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    class Slow(Dav):
        """Takes the file and never answers."""

        def on_put(self) -> None:
            self.world.files[self.where] = self.body()[:10]
            loops[0].call_soon_threadsafe(started.set)
            gone.wait(60)

    with serving(Slow) as (url, world):

        async def main() -> None:
            loops.append(asyncio.get_running_loop())
            store = dav(url)
            task = asyncio.create_task(store.upload("", "a", source))
            await started.wait()
            task.cancel()
            gone.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            await store.close()

        asyncio.run(main())
        assert world.files == {}


def test_secrets_stay_out_of_logs(
    source: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    logged: Callable[[], str],
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(Dav) as (url, world):
        world.fail("PUT", ".part", 500, SECRET)
        store = dav(url)
        run(store, lambda store: store.upload("", "a", source))
        assert SECRET not in repr(store)
    said = caplog.text + "".join(capfd.readouterr()) + logged()
    assert "retry_scheduled" in said
    assert SECRET not in said


def test_an_answer_that_is_no_list(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]><d:multistatus xmlns:d="DAV:">&a;</d:multistatus>'
    with serving(Dav) as (url, world):
        for body in ("", "<html/>", "{}", bomb, "<a", "\x00"):
            world.fail("PROPFIND", "/a", 207, body)
            with pytest.raises(StorageError):
                run(dav(url), lambda store: store.stat("", "a"))


# --- Onedata ---------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["moves over", "never over"])
def oneprovider(request: pytest.FixtureRequest) -> Iterator[tuple[str, World]]:
    world = World(folders={"/", "/my space"})
    with serving(Oneprovider, world=world, token=SECRET, moves_over=request.param) as server:
        yield server


@pytest.mark.parametrize("content", [b"", SMALL, BIG])
def test_onedata_there_and_back(
    oneprovider: tuple[str, World], source: Path, tmp_path: Path, content: bytes
) -> None:
    url, world = oneprovider
    source.write_bytes(content)

    async def act(store: OnedataStore) -> list[str]:
        for _ in range(2):
            stored = await store.upload("my space", "out/süb dir/a%b.txt", source, producer=Producer("j"))
            assert (stored.key, stored.size) == ("out/süb dir/a%b.txt", len(content))
        await store.upload("my space", "top", source)
        await store.download("my space", "out/süb dir/a%b.txt", tmp_path / "copy")
        assert (await store.stat("my space", "top")).modified == 1768383745000
        return [found.key async for found in store.list("my space")]

    assert run(OnedataStore(url, SECRET), act) == ["out/süb dir/a%b.txt", "top"]
    assert (tmp_path / "copy").read_bytes() == content
    assert world.files == {"/my space/out/süb dir/a%b.txt": content, "/my space/top": content}


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, Forbidden), (409, StorageError), (507, StorageError), (500, StorageError), (CUT, StorageError)],
)  # fmt: skip
def test_onedata_what_fails_leaves_nothing(
    oneprovider: tuple[str, World], source: Path, status: int, error: type[OscarError]
) -> None:
    url, world = oneprovider
    world.fail("PUT", ".part", status, SECRET, times=8)
    with pytest.raises(error) as caught:
        run(OnedataStore(url, SECRET), lambda store: store.upload("my space", "a", source))
    assert SECRET not in str(caught.value)
    assert world.files == {}


def test_onedata_500_then_ok(oneprovider: tuple[str, World], source: Path, tmp_path: Path) -> None:
    url, world = oneprovider
    for method, end in [("PUT", ".part"), ("PUT", "/a"), ("PUT", "/out"), ("GET", "/a")]:
        world.fail(method, end, 500, times=2)

    async def act(store: OnedataStore) -> None:
        await store.upload("my space", "out/a", source)
        await store.download("my space", "out/a", tmp_path / "copy")

    run(OnedataStore(url, SECRET), act)
    assert (tmp_path / "copy").read_bytes() == BIG
    assert not world.faults


def test_onedata_what_is_missing(oneprovider: tuple[str, World], source: Path, tmp_path: Path) -> None:
    url, _ = oneprovider
    with pytest.raises(ObjectNotFound):
        run(OnedataStore(url, SECRET), lambda store: store.download("my space", "no", tmp_path / "copy"))
    run(OnedataStore(url, SECRET), lambda store: store.delete("my space", "no"))
    with pytest.raises(BucketNotFound):
        run(OnedataStore(url, SECRET), lambda store: store.ensure_bucket("other"))
    with pytest.raises(Forbidden, match="The token is invalid"):
        run(OnedataStore(url, "wrong"), lambda store: store.download("my space", "no", tmp_path / "copy"))
    with pytest.raises(StorageError):
        run(OnedataStore(url, SECRET), lambda store: store.upload("other", "a", source))


# --- Rucio -----------------------------------------------------------------------------------------------


class Lake:
    """A Rucio server with two storage elements."""

    def __init__(self, url: str, server: World, catalogue: Catalogue, elements: list[World]) -> None:
        self.url = url
        self.server = server
        self.catalogue = catalogue
        self.elements = elements

    def store(self, refresh: str = REFRESH, **site: Any) -> RucioStore:
        tokens = Tokens(refresh, f"{self.url}/token", "rucio-testbed")
        return RucioStore(Site(self.url, "ada", **{"rse": "RSE0", **site}), tokens)

    def put(self, number: int, name: str, content: bytes) -> None:
        path = self.catalogue.pfn(number, "ada", name).partition("://")[2].partition("/")[2]
        self.elements[number].files[f"/{path}"] = content


@pytest.fixture
def lake() -> Iterator[Lake]:
    catalogue = Catalogue()
    access = f"Bearer {TOKEN}"
    with (
        serving(Dav, authorization=access) as (first_url, first),
        serving(Dav, authorization=access) as (second_url, second),
        serving(Rucio, catalogue=catalogue, token=TOKEN, refresh=REFRESH) as (url, server),
    ):
        catalogue.elements = [first_url, second_url]
        yield Lake(url, server, catalogue, [first, second])


def test_rucio_there_and_back(lake: Lake, source: Path, tmp_path: Path) -> None:
    async def act(store: RucioStore) -> list[str]:
        for _ in range(2):
            await store.upload("ada", "out/sub/a b.txt", source)
        await store.download("ada", "out/sub/a b.txt", tmp_path / "copy")
        assert (await store.stat("ada", "out/sub/a b.txt")).size == len(BIG)
        return [found.key async for found in store.list("ada", "out/")]

    assert run(lake.store(lifetime=600), act) == ["out__sub__a b.txt"]
    assert (tmp_path / "copy").read_bytes() == BIG
    known = lake.catalogue.replicas["ada", "out__sub__a b.txt"]
    assert (known["bytes"], known["state"], known["at"]) == (len(BIG), "A", ["RSE0"])
    (rule,) = lake.catalogue.rules
    assert (rule["copies"], rule["rse_expression"], rule["lifetime"], rule["account"]) == (
        1,
        "RSE0",
        600,
        "ada",
    )
    assert list(lake.elements[0].files.values()) == [BIG]
    # One token served all requests, and the second upload sent nothing.
    assert len([request for request in lake.server.seen if request.path == "/token"]) == 1
    assert len([request for request in lake.elements[0].asked("PUT") if request.body]) == 1
    run(lake.store(), lambda store: store.delete("ada", "out/sub/a b.txt"))
    assert lake.catalogue.rules == []


def test_rucio_files_never_change(lake: Lake, source: Path) -> None:
    run(lake.store(), lambda store: store.upload("ada", "a", source))
    source.write_bytes(b"other")
    with pytest.raises(StorageError, match="ada:a is in Rucio with another content"):
        run(lake.store(), lambda store: store.upload("ada", "a", source))
    assert list(lake.elements[0].files.values()) == [BIG]


def test_rucio_takes_the_next_replica(lake: Lake, tmp_path: Path) -> None:
    lake.catalogue.add("ada", "in/slash", BIG, ("RSE0", "RSE1"))
    lake.put(0, "in/slash", BIG[:-1] + b"x")  # damaged
    lake.put(1, "in/slash", BIG)
    run(lake.store(), lambda store: store.download("ada", "in/slash", tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == BIG
    lake.elements[1].files.clear()
    with pytest.raises(ObjectNotFound):
        run(lake.store(), lambda store: store.download("ada", "in/slash", tmp_path / "again"))
    lake.catalogue.replicas["ada", "in/slash"]["at"] = ["RSE0"]
    with pytest.raises(StorageError, match="damaged"):
        run(lake.store(), lambda store: store.download("ada", "in/slash", tmp_path / "again"))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("status", [401, 409, 500, 507, CUT])
@pytest.mark.parametrize("where", ["storage", "catalogue"])
def test_rucio_what_fails_leaves_nothing(lake: Lake, source: Path, where: str, status: int) -> None:
    if where == "storage":
        lake.elements[0].fail("PUT", ".part", status, f"{TOKEN} {REFRESH}", times=8)
    else:
        lake.server.fail("POST", "/replicas", status, f"{TOKEN} {REFRESH}", times=8)
    with pytest.raises(OscarError) as caught:
        run(lake.store(), lambda store: store.upload("ada", "a", source))
    assert TOKEN not in str(caught.value)
    assert REFRESH not in str(caught.value)
    assert lake.catalogue.replicas == {}
    assert lake.catalogue.rules == []
    assert lake.elements[0].files == {}


def test_rucio_500_then_ok(lake: Lake, source: Path, tmp_path: Path) -> None:
    for method, end in [("POST", "/replicas"), ("POST", "/rules"), ("POST", "/token"), ("GET", "/lfns2pfns")]:
        lake.server.fail(method, end, 500, times=2)

    async def act(store: RucioStore) -> None:
        await store.upload("ada", "a", source)
        await store.download("ada", "a", tmp_path / "copy")

    run(lake.store(), act)
    assert (tmp_path / "copy").read_bytes() == BIG
    assert not lake.server.faults


def test_rucio_what_is_refused(lake: Lake, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFound, match="no replica of ada:no"):
        run(lake.store(), lambda store: store.download("ada", "no", tmp_path / "copy"))
    with pytest.raises(Forbidden, match="refresh token was not taken") as caught:
        run(lake.store(refresh="a-wrong-refresh-token"), lambda store: store.stat("ada", "no"))
    assert "a-wrong-refresh-token" not in str(caught.value)
    with pytest.raises(BucketNotFound, match="ScopeNotFound"):
        run(lake.store(), lambda store: store.upload("eve", "a", source))
    assert lake.elements[0].files == {}
    run(lake.store(), lambda store: store.ensure_bucket("eve"))
    run(lake.store(), lambda store: store.upload("eve", "a", source))
    assert ("eve", "a") in lake.catalogue.replicas


def test_all_are_file_stores(lake: Lake) -> None:
    def conforms(store: FileStore) -> FileStore:
        return store

    assert conforms(lake.store())
    assert conforms(OnedataStore("http://x", "t"))
    assert conforms(dav("http://x"))
