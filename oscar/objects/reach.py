"""What may be connected to on somebody's behalf: names are looked up and checked at the moment of connecting.

A definition is checked when it is taken and before each run (`core.providers`), but a name may lead elsewhere a moment
later. So clients of users' stores get a `Reach`: the connection is made to the very address that was checked, while
`Host` and TLS go on with the name. Called by `web`, `web_put`, `s3_calls`, and `gate` for a client that can't be told
an address. Where the environment names a proxy, that one connects, and has to refuse.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any
from urllib.request import getproxies

import httpx2

from oscar.objects.addresses import is_public, resolve


@dataclass(frozen=True, slots=True)
class Reach:
    """The world, and some hosts that may have any address."""

    hosts: frozenset[str] = frozenset()
    lookup: Callable[[str, int], Awaitable[list[str]]] = resolve
    public: Callable[[str], bool] = is_public

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, all of them checked.

        Raises:
            ConnectionError: one of them is private, or there are none.
        """
        found = await self.lookup(host, port)
        if not found:
            raise ConnectionError(f"the host {host} is not known")
        if host.lower() not in self.hosts and not all(self.public(address) for address in found):
            raise ConnectionRefusedError(f"the host {host} has a private address")
        return list(dict.fromkeys(found))


def reach_of(hosts: Collection[str]) -> Reach:
    """What users' services reach: the world, and these hosts."""
    return Reach(frozenset(host.lower() for host in hosts))


def client(reach: Reach | None, *, verify: ssl.SSLContext | bool, **more: Any) -> httpx2.AsyncClient:
    """An HTTP client that connects to what may be reached; without a reach to anything."""
    if reach is None or getproxies():
        return httpx2.AsyncClient(verify=verify, follow_redirects=False, **more)
    transport = _Pinned(reach, verify)
    return httpx2.AsyncClient(transport=transport, follow_redirects=False, **more)


class _Pinned(httpx2.AsyncBaseTransport):
    """Sends each request to an address that was checked just now."""

    def __init__(self, reach: Reach, verify: ssl.SSLContext | bool) -> None:
        self._reach = reach
        self._verify = verify
        # One for each name: a connection is known by its address, and its certificate was that of one name.
        self._inner: dict[str, httpx2.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            addresses = await self._reach.addresses(url.host, port)
        except ConnectionError as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        inner = self._inner.get(url.host)
        if inner is None:
            inner = self._inner[url.host] = httpx2.AsyncHTTPTransport(verify=self._verify, trust_env=False)
        request.extensions = {"sni_hostname": url.host, **request.extensions}
        try:
            for address in addresses[:-1]:
                request.url = url.copy_with(host=address)
                try:
                    return await inner.handle_async_request(request)
                except (httpx2.ConnectError, httpx2.ConnectTimeout):
                    continue
            request.url = url.copy_with(host=addresses[-1])
            return await inner.handle_async_request(request)
        finally:
            request.url = url

    async def aclose(self) -> None:
        inner, self._inner = self._inner, {}
        for transport in inner.values():
            await transport.aclose()
