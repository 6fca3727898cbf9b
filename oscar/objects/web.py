"""HTTP to foreign file servers: bodies from and to files, redirects, repetition, errors in the server's words.

The base of `objects.webdav`, `onedata` and `rucio`. Credentials go to the server that was asked, and along a
redirect only if it stays there or leads to a host that the user trusts; dCache redirects every transfer to a data
server by a URL that holds a token of its own. Calls `web_put` for uploads.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
import stamina

from oscar.errors import Forbidden, ObjectNotFound, OscarError, StorageError
from oscar.objects import web_put
from oscar.objects.addresses import is_public, resolve
from oscar.objects.local_files import CHUNK, Source
from oscar.objects.reach import Reach, client
from oscar.objects.web_put import Answer
from oscar.objects.web_words import host, place, scrub, words

TRIES = 4
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
LONGEST_WISH = 60.0
"""Seconds of a server's `Retry-After` that are taken; a longer wait is for the job's own retries."""
HOPS = 5
"""Redirects of one request."""
SMALL = 64 * 1024
"""Bytes up to which a file is sent without asking first, on a connection that is kept."""
STALL = 300.0
"""Seconds without progress of a transfer. dCache answers only when it has the file back from tape."""
PATIENCE = 60.0
MAX_DOCUMENT = 64 * 1024 * 1024

T = TypeVar("T")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AGAIN = frozenset({408, 423, 425, 429, 500, 502, 503, 504})
_FORBIDDEN = frozenset({401, 403})
_FULL = frozenset({413, 507})
_NOT_FOUND = 404
_OK = frozenset({200, 201, 202, 204, 207})

Credentials = Callable[[], Awaitable[Mapping[str, str]]]
"""Headers that say who we are; asked anew for every request, because tokens age."""


class Transient(StorageError):
    """A storage provider failed in a way that may pass."""

    after: float | None = None
    """Seconds to wait, when the server says so."""


async def nobody() -> Mapping[str, str]:
    """No credentials."""
    return {}


class Web:
    """Requests to file servers in the name of one user.

    Args:
        credentials: headers for the servers asked.
        secrets: texts that no error may show.
        verify: whether certificates of servers are checked.
        trusted: hosts that get the credentials too when a redirect leads there.
        reach: what may be connected to; None for anything.
    """

    def __init__(
        self,
        credentials: Credentials = nobody,
        *,
        secrets: Collection[str] = (),
        verify: bool = True,
        trusted: Collection[str] = (),
        reach: Reach | None = None,
    ) -> None:
        self._reach = reach
        self._credentials = credentials
        self._secrets = secrets
        self._verify = verify
        self._trusted = frozenset(name.lower() for name in trusted)
        self._context: ssl.SSLContext | None = None
        self._client: httpx2.AsyncClient | None = None

    async def close(self) -> None:
        """End the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        ok: Collection[int] = _OK,
        again: bool = True,
    ) -> Answer:
        """Make a request with a small body and read the answer.

        Args:
            method: HTTP method.
            url: complete and encoded.
            headers: beside the credentials.
            body: of the request.
            ok: statuses that are no error.
            again: whether it may be repeated when it fails in passing.

        Raises:
            Forbidden, ObjectNotFound, StorageError: another status, or no answer.
        """

        async def once() -> Answer:
            async with self._ask(method, url, headers, body) as response:
                answer = Answer(
                    response.status_code,
                    _lower(response),
                    (await self._document(response)).decode(errors="replace"),
                )
            if answer.status not in ok:
                raise self.refusal(method, url, answer)
            return answer

        return await self._repeat(once) if again else await once()

    async def fetch(
        self, url: str, path: Path, headers: Mapping[str, str] | None = None
    ) -> Mapping[str, str]:
        """Stream the body of a GET into a file, from the start again when it breaks off.

        Returns:
            The headers of the answer.

        Raises:
            Forbidden, ObjectNotFound, StorageError: there is no such body, or it did not come whole.
            OSError: of the local file.
        """

        async def once() -> Mapping[str, str]:
            # As it is stored: an encoding on the way would change the bytes.
            asked = {"accept-encoding": "identity", **(headers or {})}
            async with self._ask("GET", url, asked, b"", stall=STALL) as response:
                if response.status_code != httpx2.codes.OK:
                    text = (await self._document(response)).decode(errors="replace")
                    raise self.refusal("GET", url, Answer(response.status_code, _lower(response), text))
                try:
                    with path.open("wb") as file:
                        async for piece in response.aiter_raw(CHUNK):
                            await asyncio.to_thread(file.write, piece)
                except httpx2.TransportError as error:
                    raise self._broken(url, error, "the transfer broke off") from error
                return _lower(response)

        return await self._repeat(once)

    async def send(
        self,
        url: str,
        source: Source,
        headers: Mapping[str, str] | None = None,
        *,
        ok: Collection[int] = _OK,
    ) -> Answer:
        """PUT a file, from the start again when it fails in passing.

        Raises:
            Forbidden, ObjectNotFound, StorageError: it was not taken.
        """

        async def once() -> Answer:
            answer = await self._put(url, source, headers or {})
            if answer.status not in ok:
                raise self.refusal("PUT", url, answer)
            return answer

        return await self._repeat(once)

    def refusal(self, method: str, url: str, answer: Answer) -> OscarError:
        """The answer as our error, with the server's own words and without secrets."""
        status, where = answer.status, self.scrub(place(url))
        if status == _NOT_FOUND:
            return ObjectNotFound(f"there is no {where}")
        said = self.scrub(words(status, answer.body))
        text = f"{host(url)} answered {status} to {method} {where}: {said}"
        if status in _FORBIDDEN:
            return Forbidden(text)
        if status in _FULL:
            return StorageError(f"no space at {host(url)}: it {text.partition(' ')[2]}")
        if status in _AGAIN:
            passing = Transient(text)
            passing.after = _wish(answer.headers.get("retry-after"))
            return passing
        return StorageError(text)

    def scrub(self, text: str) -> str:
        """The text without this user's secrets."""
        return scrub(text, self._secrets)

    async def _repeat(self, once: Callable[[], Awaitable[T]]) -> T:
        async for attempt in stamina.retry_context(
            on=_passing,
            attempts=TRIES,
            timeout=None,
            wait_initial=FIRST_PAUSE,
            wait_max=LONGEST_PAUSE,
            wait_jitter=FIRST_PAUSE,
        ):
            with attempt:
                return await once()
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def _ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        body: bytes,
        *,
        stall: float = PATIENCE,
    ) -> AsyncIterator[httpx2.Response]:
        """The answer at the end of all redirects, its body not read yet."""
        target, client = url, self._http()
        for _ in range(HOPS + 1):
            request = client.build_request(
                method,
                target,
                headers={**(headers or {}), **await self._who(url, target)},
                content=body,
                timeout=httpx2.Timeout(stall, connect=web_put.CONNECT),
            )
            try:
                response = await client.send(request, stream=True)
            except httpx2.TransportError as error:
                raise self._broken(target, error) from error
            try:
                onward = await self._onward(target, response.status_code, response.headers)
                if onward is None:
                    yield response
                    return
                target = onward
            finally:
                await response.aclose()
        raise self._circle(url)

    async def _put(self, url: str, source: Source, headers: Mapping[str, str]) -> Answer:
        target = url
        for _ in range(HOPS + 1):
            sent = {**headers, **await self._who(url, target)}
            if source.size <= SMALL or _proxied(target):
                answer = await self._put_at_once(target, source, sent)
            else:
                try:
                    answer = await web_put.put(
                        target, source, sent, tls=self._tls(target), stall=STALL, reach=self._reach
                    )
                except (OSError, EOFError) as error:
                    raise self._broken(target, error) from error
            onward = await self._onward(target, answer.status, answer.headers)
            if onward is None:
                return answer
            target = onward
        raise self._circle(url)

    async def _put_at_once(self, target: str, source: Source, headers: Mapping[str, str]) -> Answer:
        request = self._http().build_request(
            "PUT",
            target,
            headers={**headers, "content-length": str(source.size)},
            content=source.pieces(),
            timeout=httpx2.Timeout(STALL, connect=web_put.CONNECT),
        )
        try:
            response = await self._http().send(request, stream=True)
            try:
                text = (await self._document(response)).decode(errors="replace")
                return Answer(response.status_code, _lower(response), text)
            finally:
                await response.aclose()
        except httpx2.TransportError as error:
            raise self._broken(target, error) from error

    async def _who(self, asked: str, target: str) -> Mapping[str, str]:
        """Credentials for a hop: for the server asked, for trusted hosts, never in clear where it was not."""
        first, here = urlsplit(asked), urlsplit(target)
        if first.scheme == "https" and here.scheme != "https":
            return {}
        if _origin(asked) == _origin(target) or (here.hostname or "").lower() in self._trusted:
            return await self._credentials()
        return {}

    async def _onward(self, target: str, status: int, headers: Mapping[str, str]) -> str | None:
        if status not in _REDIRECTS or not headers.get("location"):
            return None
        onward = urljoin(target, headers["location"])
        if urlsplit(onward).scheme not in {"http", "https"} or not urlsplit(onward).hostname:
            raise StorageError(
                f"{host(target)} sends to an address that is none of HTTP: {self.scrub(onward)}"
            )
        if _origin(onward)[1] != _origin(target)[1] and await _public(target) and not await _public(onward):
            # Out in the world nobody has a reason to send us into our own network.
            raise StorageError(f"{host(target)} sends to a private address: {self.scrub(onward)}")
        return onward

    def _circle(self, url: str) -> StorageError:
        return StorageError(f"{self.scrub(place(url))} is sent on more than {HOPS} times")

    def _broken(self, url: str, error: BaseException, what: str = "no answer") -> Transient:
        said = self.scrub(str(error) or type(error).__name__)
        return Transient(f"{what} from {host(url)}: {said}")

    async def _document(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        try:
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > MAX_DOCUMENT:
                    raise StorageError(
                        f"the answer of {response.url.host} is longer than {MAX_DOCUMENT} bytes"
                    )
        except httpx2.TransportError as error:
            raise self._broken(str(response.url), error, "the answer broke off") from error
        except httpx2.DecodingError as error:
            raise StorageError(f"the answer of {response.url.host} is encoded wrongly") from error
        return bytes(body)

    def _http(self) -> httpx2.AsyncClient:
        # Made late: reading the trusted certificates takes 10 ms, and stores are opened that are never asked.
        if self._client is None:
            self._client = client(self._reach, verify=self._tls_context())
        return self._client

    def _tls(self, url: str) -> ssl.SSLContext | None:
        return self._tls_context() if url.startswith("https:") else None

    def _tls_context(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context()
            if not self._verify:
                self._context.check_hostname = False
                self._context.verify_mode = ssl.CERT_NONE
        return self._context


def _passing(error: Exception) -> bool | float:
    if not isinstance(error, Transient):
        return False
    return True if error.after is None else error.after


def _wish(text: str | None) -> float | None:
    if text and text.strip().isdigit():
        return min(float(text), LONGEST_WISH)
    return None


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return (
        parts.scheme,
        (parts.hostname or "").lower(),
        parts.port or (443 if parts.scheme == "https" else 80),
    )


async def _public(url: str) -> bool:
    _, name, port = _origin(url)
    return all(is_public(address) for address in await resolve(name, port))


def _lower(response: httpx2.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _proxied(url: str) -> bool:
    """Whether the environment names a proxy for the URL, which only the HTTP client knows how to use."""
    parts = urlsplit(url)
    proxies = getproxies()
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not proxy_bypass(parts.netloc)
