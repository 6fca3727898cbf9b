"""How other clusters are reached: which hosts tokens and events may go to, and clients of them.

Called by `core.copies`, `core.propagation`, `core.remote` and `core.federation`; calls `oscar.client`. Nothing is said
to a host that is not in `OSCAR_FEDERATION_ALLOWED_HOSTS`, and nothing without TLS but to this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2

from oscar.auth.addresses import is_loopback
from oscar.errors import InvalidField, OscarError
from oscar.model.federation import Cluster
from oscar.settings import Settings

if TYPE_CHECKING:
    from oscar.client import Client

WITHIN = 20.0
"""Seconds that a member has for one answer."""
_KEPT = 64


@dataclass(frozen=True, slots=True)
class Access:
    """Where a cluster is, and the account used there when no token speaks for the owner."""

    endpoint: str
    user: str = ""
    password: str = field(default="", repr=False)
    verify: bool = True

    @classmethod
    def of(cls, cluster: Cluster) -> Access:
        """That of a service's `clusters`."""
        return cls(cluster.endpoint.rstrip("/"), cluster.auth_user, cluster.auth_password, cluster.ssl_verify)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Access:
        """From `as_dict`."""
        return cls(data["endpoint"], data["user"], data["password"], data["verify"])

    def as_dict(self) -> dict[str, Any]:
        """For the Store, which seals it."""
        return {
            "endpoint": self.endpoint,
            "user": self.user,
            "password": self.password,
            "verify": self.verify,
        }


def check_address(settings: Settings, url: str, *, field: str) -> None:
    """Refuse an address that nothing may be said to.

    Raises:
        InvalidField: it is none, not https, or its host is not in the list; names the field.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidField(f'"{url}" is not an address', field=field) from None
    host = parts.hostname
    if parts.scheme not in {"http", "https"} or not host or parts.username is not None:
        raise InvalidField(
            f'"{url}" is not the address of a server',
            field=field,
            fix="write it with https://, without a user",
        )
    if parts.scheme == "http" and not is_loopback(url):
        raise InvalidField(
            f"{url} is not https, so tokens and events don't go there",
            field=field,
            fix="write it with https://; only a server on this machine may be without",
        )
    if not is_allowed(host, port, settings):
        raise InvalidField(
            f'The host "{host}" is none that this server may send jobs and tokens to',
            field=field,
            fix="have the administrator add it to OSCAR_FEDERATION_ALLOWED_HOSTS",
        )


def is_allowed(host: str, port: int | None, settings: Settings) -> bool:
    """Whether a host is in the list: `host`, `host:port`, or `*.domain` for all below a domain."""
    names = {host.lower(), f"{host.lower()}:{port}"}
    for entry in settings.federation_hosts:
        wanted = entry.lower()
        if wanted in names or (wanted.startswith("*.") and host.lower().endswith(wanted[1:])):
            return True
    return False


class Members:
    """Clients of other clusters, kept so that their connections are used again."""

    def __init__(self, settings: Settings) -> None:
        """Reach only what the settings allow."""
        self._settings = settings
        self._clients: dict[tuple[Access, str | None], Client] = {}
        self._endpoints: dict[bool, httpx2.AsyncClient] = {}

    async def close(self) -> None:
        """Close all connections."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()
        endpoints, self._endpoints = self._endpoints, {}
        for endpoint in endpoints.values():
            await endpoint.aclose()

    def client(self, access: Access, bearer: str | None = None) -> Client:
        """A client with a token, else with the account; with neither it is nobody's.

        Raises:
            InvalidField: the address is none that may be reached.
        """
        check_address(self._settings, access.endpoint, field="clusters")
        key = (access, bearer)
        found = self._clients.pop(key, None)
        if found is None:
            # Its modules are megabytes, for those who have members.
            from oscar.client import Client

            found = Client(
                access.endpoint,
                user=access.user or None,
                password=access.password,
                token=bearer,
                verify=access.verify,
                timeout=WITHIN,
            )
        self._clients[key] = found
        if len(self._clients) > _KEPT:
            # Not closed: a call may still use it; its connections go with it.
            del self._clients[next(iter(self._clients))]
        return found

    async def post(
        self, url: str, body: bytes, *, headers: Mapping[str, str], verify: bool
    ) -> httpx2.Response:
        """POST to an endpoint that is no cluster; redirects are not followed.

        Raises:
            InvalidField: the address is none that may be reached. TransportError of httpx2.
        """
        check_address(self._settings, url, field="url")
        http = self._endpoints.get(verify)
        if http is None:
            http = self._endpoints[verify] = httpx2.AsyncClient(
                timeout=WITHIN, verify=verify, follow_redirects=False
            )
        return await http.post(url, content=body, headers=dict(headers))


def certainly_unsent(error: OscarError) -> bool:
    """Whether a call that failed so has certainly not reached its server."""
    return isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
