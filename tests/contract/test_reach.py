"""A name that leads elsewhere after it was checked gets nobody into our network: all clients of foreign stores.

Names are looked up by a function of the test, in which 127.0.0.1 stands for the world and 127.0.0.2 for our network.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from oscar.errors import StorageError
from oscar.objects.gate import Gate
from oscar.objects.reach import Reach, reach_of
from oscar.objects.s3 import S3Store
from oscar.objects.webdav import WebDavStore
from tests.acceptance.test_tls import certificate

BODY = b"from the world"
NAME = "store.example.org"
WORLD, HOME = "127.0.0.1", "127.0.0.2"


@dataclass
class Site:
    """A server of files that remembers what it was asked."""

    port: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Method and host of each request."""
    stored: bytes = b""


FOUND = """<?xml version="1.0"?><d:multistatus xmlns:d="DAV:"><d:response><d:href>{path}</d:href><d:propstat>
<d:prop><d:resourcetype/><d:getcontentlength>{size}</d:getcontentlength><d:getetag>"e"</d:getetag></d:prop>
<d:status>HTTP/1.1 200 OK</d:status></d:propstat></d:response></d:multistatus>"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        self._answer(BODY)

    def do_PUT(self) -> None:
        self.site.stored = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"")

    def do_MKCOL(self) -> None:
        self._answer(b"")

    def do_PROPFIND(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(FOUND.format(path=self.path, size=len(self.site.stored)).encode(), 207)

    def do_MOVE(self) -> None:
        self._answer(b"")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.site.asked.append((self.command, self.headers.get("Host", "")))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Fri, 27 Nov 2026 08:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the standard library
        pass


@contextmanager
def serving(address: str, port: int = 0, tls: tuple[Path, Path] | None = None) -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer((address, port), type("Own", (Handler,), {"site": site}))
    server.daemon_threads = True
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Names:
    """A name server that is in the hands of somebody bad."""

    def __init__(self) -> None:
        self.leads_to = [WORLD]

    async def lookup(self, host: str, _port: int) -> list[str]:
        assert host == NAME
        return self.leads_to

    @property
    def reach(self) -> Reach:
        return Reach(lookup=self.lookup, public=lambda address: address == WORLD)


@pytest.fixture
def sites(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    """The world's server and one of our network, on the same port."""
    tls = certificate(tmp_path / "tls") if getattr(request, "param", None) == "tls" else None
    with serving(WORLD, tls=tls) as world, serving(HOME, world.port, tls=tls) as home:
        yield world, home


async def ending(store: Any, act: Coroutine[Any, Any, None]) -> None:
    try:
        await act
    finally:
        await store.close()


def test_webdav_reads_and_writes_only_where_it_was_checked(tmp_path: Path, sites: tuple[Site, Site]) -> None:
    world, home = sites
    names = Names()
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"s" * 10)
    large.write_bytes(b"l" * 300_000)  # goes by the connection of its own

    async def act() -> None:
        await store.download("", "a", tmp_path / "copy")
        await store.upload("", "b", small)
        await store.upload("", "c", large)
        assert world.stored == large.read_bytes()
        names.leads_to = [HOME]
        for refused in (
            store.download("", "a", tmp_path / "again"),
            store.upload("", "b", small),
            store.upload("", "c", large),
        ):
            with pytest.raises(StorageError, match="private address"):
                await refused

    store = WebDavStore(f"http://{NAME}:{world.port}", reach=names.reach)
    asyncio.run(ending(store, act()))
    assert (tmp_path / "copy").read_bytes() == BODY
    assert {host for _, host in world.asked} == {f"{NAME}:{world.port}"}
    assert home.asked == []


@pytest.mark.parametrize("sites", ["tls"], indirect=True)
@pytest.mark.parametrize("key", ["a", "a//b"])
def test_s3_goes_through_the_gate_and_only_where_it_was_checked(
    tmp_path: Path, sites: tuple[Site, Site], key: str
) -> None:
    world, home = sites
    names = Names()
    gate = Gate(names.reach)
    source = tmp_path / "source"
    source.write_bytes(b"x" * 1000)

    async def act() -> None:
        await store.download("bucket", key, tmp_path / "copy")
        await store.upload("bucket", key, source)
        assert world.stored == source.read_bytes()
        names.leads_to = [WORLD, HOME]
        again = S3Store(f"https://{NAME}:{world.port}", "k", "s", verify=False, gate=gate)
        with pytest.raises(StorageError):
            await again.download("bucket", key, tmp_path / "again")
        await again.close()
        await gate.close()

    store = S3Store(f"https://{NAME}:{world.port}", "k", "s", verify=False, gate=gate)
    asyncio.run(ending(store, act()))
    assert (tmp_path / "copy").read_bytes() == BODY
    assert {host for _, host in world.asked} == {f"{NAME}:{world.port}"}
    assert home.asked == []


def test_the_gate_is_for_who_has_its_secret(sites: tuple[Site, Site]) -> None:
    world, _ = sites
    target = f"{NAME}:{world.port}"

    async def ask(head: Callable[[str], str]) -> bytes:
        url = urlsplit(await gate.url())
        secret = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(head(secret).encode())
        try:
            async with asyncio.timeout(30):
                return await reader.readuntil(b"\r\n\r\n")
        except EOFError:
            return b""
        finally:
            writer.close()

    async def act() -> None:
        login = "\r\nProxy-Authorization: Basic "
        assert b" 200 " in await ask(lambda secret: f"CONNECT {target} HTTP/1.1{login}{secret}\r\n\r\n")
        assert b" 403 " in await ask(lambda _: f"CONNECT {target} HTTP/1.1\r\n\r\n")
        assert b" 403 " in await ask(lambda _: f"CONNECT {target} HTTP/1.1{login}eDp5\r\n\r\n")
        assert b" 403 " in await ask(lambda secret: f"GET http://{target}/ HTTP/1.1{login}{secret}\r\n\r\n")
        assert await ask(lambda _: "nonsense\r\n\r\n") == b""
        names.leads_to = [HOME]
        assert b" 502 " in await ask(lambda secret: f"CONNECT {target} HTTP/1.1{login}{secret}\r\n\r\n")
        await gate.close()

    names = Names()
    gate = Gate(names.reach)
    asyncio.run(act())


def test_what_users_reach() -> None:
    async def act() -> None:
        reach = reach_of(["LocalHost"])
        assert await reach.addresses("localhost", 80)
        for host in ("127.0.0.1", "10.0.0.1", "no-such-host.invalid"):
            with pytest.raises(ConnectionError):
                await reach.addresses(host, 80)
        assert await reach.addresses("1.1.1.1", 80) == ["1.1.1.1"]

    asyncio.run(act())
