"""The stores that a service names, opened: from a provider string to a `FileStore`.

`stage` asks for them by the strings of a plan. Calls `objects.s3`, `webdav`, `onedata` and `rucio`; the platform's
own store is given. A further kind of storage is one more entry of the table `OPENERS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

from oscar.errors import InvalidField
from oscar.model.provider import ProviderType, parse_provider
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider, OnedataProvider, RucioProvider, S3Provider, WebDavProvider
from oscar.model.user import ADMIN
from oscar.objects.base import FileStore
from oscar.objects.gate import Gate
from oscar.objects.onedata import OnedataStore
from oscar.objects.origin import OriginStore, is_origin
from oscar.objects.reach import Reach
from oscar.objects.rucio import RucioStore, Site
from oscar.objects.rucio_token import Tokens
from oscar.objects.s3 import S3Store
from oscar.objects.web import nobody
from oscar.objects.webdav import WebDavStore, address, basic, bearer
from oscar.supervisor.plan import HIDDEN, is_own

KEPT = 64
"""Clients that are kept for the next job; one more drops the oldest."""


class Client(FileStore, Protocol):
    """A store over the network."""

    async def close(self) -> None:
        """End its connections."""


class Clients:
    """Clients of stores by address and keys, shared by all jobs so that their connections are used again."""

    def __init__(self, reach: Reach | None = None) -> None:
        """Have none yet.

        Args:
            reach: what users' services may connect to; None for anything, as the administrator's.
        """
        self._stores: dict[str, Client] = {}
        self._gate = Gate(reach) if reach else None

    def way(self, owner: str) -> Gate | None:
        """The way to the stores of somebody's services."""
        return None if owner == ADMIN else self._gate

    def kept(self, definition: Any, make: Callable[[], Client], gate: Gate | None = None) -> Client:
        """The client for a provider's definition, keys included, and the way to it; made when there is none.

        Raises:
            InvalidField: the address is none.
        """
        kind = type(definition).__name__
        # By digest, so that the keys lie in memory no more often than they must.
        text = f"{kind} {gate is None} {definition.model_dump_json()}"
        name = hashlib.sha256(text.encode()).hexdigest()
        store = self._stores.pop(name, None) or make()
        self._stores[name] = store
        if len(self._stores) > KEPT:
            # Not closed: a transfer may still use it.
            del self._stores[next(iter(self._stores))]
        return store

    async def close(self) -> None:
        """End all connections."""
        stores, self._stores = self._stores, {}
        for store in stores.values():
            await store.close()
        if self._gate is not None:
            await self._gate.close()


def _open_minio(provider: MinIOProvider, field: str, gate: Gate | None) -> Client:
    if not provider.endpoint:
        raise InvalidField(
            f"{field} has no address",
            field=f"{field}.endpoint",
            fix="Write it with its scheme, such as https://minio.example:9000.",
        )
    if is_origin(provider.endpoint):
        _need(provider.secret_key, f"{field}.secret_key", "Have the service's origin make the copy again.")
        return OriginStore(provider.endpoint, provider.secret_key, verify=provider.verify)
    keys = _keys(provider, field)
    try:
        return S3Store(provider.endpoint, *keys, provider.region, verify=provider.verify, gate=gate)
    except InvalidField as error:
        raise InvalidField(error.message, field=f"{field}.{error.field}", fix=error.fix) from None


def _open_s3(provider: S3Provider, field: str, gate: Gate | None) -> Client:
    return S3Store("", *_keys(provider, field), provider.region, gate=gate)


def _open_webdav(provider: WebDavProvider, field: str, gate: Gate | None) -> Client:
    _need(provider.hostname, f"{field}.hostname", "Write the server's name, such as dcache.example.org:2880.")
    if provider.token:
        credentials = bearer(provider.token)
    elif provider.login:
        _need(provider.password, f"{field}.password", "Give the password of the login, or a token.")
        credentials = basic(provider.login, provider.password)
    else:
        credentials = nobody
    return WebDavStore(
        address(provider.hostname, f"{field}.hostname"),
        credentials,
        secrets=[secret for secret in (provider.password, provider.token) if secret],
        verify=provider.verify,
        trusted=provider.trusted_hosts,
        reach=_reach(gate),
    )


def _open_onedata(provider: OnedataProvider, field: str, gate: Gate | None) -> Client:
    _need(provider.oneprovider_host, f"{field}.oneprovider_host", "Write the name of the Oneprovider.")
    _need(provider.token, f"{field}.token", "Give an access token of Onedata.")
    url = address(provider.oneprovider_host, f"{field}.oneprovider_host")
    return OnedataStore(url, provider.token, verify=provider.verify, reach=_reach(gate))


def _open_rucio(provider: RucioProvider, field: str, gate: Gate | None) -> Client:
    _need(provider.host, f"{field}.host", "Write the address of the Rucio server.")
    _need(provider.account, f"{field}.account", "Name the account in Rucio.")
    _need(provider.refresh_token, f"{field}.refresh_token", "Give a refresh token, or an access token.")
    endpoint = provider.token_endpoint and address(provider.token_endpoint, f"{field}.token_endpoint")
    reach = _reach(gate)
    tokens = Tokens(
        provider.refresh_token, endpoint, provider.oidc_audience, verify=provider.verify, reach=reach
    )
    site = Site(
        url=address(provider.host, f"{field}.host"),
        account=provider.account,
        rse=provider.rse,
        lifetime=int(provider.lifetime),
        verify=provider.verify,
    )
    return RucioStore(site, tokens, reach=reach)


def _reach(gate: Gate | None) -> Reach | None:
    return gate.reach if gate else None


def _need(value: str, field: str, fix: str) -> None:
    if value in {"", HIDDEN}:
        raise InvalidField(f"{field} is not given", field=field, fix=fix)


def _keys(provider: MinIOProvider | S3Provider, field: str) -> tuple[str, str]:
    if {provider.access_key, provider.secret_key} & {"", HIDDEN}:
        raise InvalidField(
            f"{field} has no keys", field=f"{field}.access_key", fix="Give access_key and secret_key."
        )
    return provider.access_key, provider.secret_key


OPENERS: dict[ProviderType, Callable[[Any, str, Gate | None], Client]] = {
    ProviderType.MINIO: _open_minio,
    ProviderType.S3: _open_s3,
    ProviderType.WEBDAV: _open_webdav,
    ProviderType.ONEDATA: _open_onedata,
    ProviderType.RUCIO: _open_rucio,
}
"""How a provider's definition becomes a store: definition, its JSON path for errors, and the way there."""


class Providers:
    """The stores of one service.

    Args:
        service: with the keys of its providers.
        own: the platform's store, with the rights of the user on whose behalf the job runs.
        clients: kept ones; without it this object has its own, to be closed.
    """

    def __init__(self, service: Service, own: FileStore, clients: Clients | None = None) -> None:
        self._service = service
        self._own = own
        self._clients = clients or Clients()
        self._mine = clients is None

    def open(self, provider: str) -> FileStore:
        """The store that a provider string names.

        Raises:
            InvalidField: it is not defined, or without address or keys.
        """
        ref = parse_provider(provider)
        if ref is None:
            raise InvalidField(f'the storage provider "{provider}" is of an unknown type')
        if is_own(self._service, ref):
            return self._own
        field = f"storage_providers.{ref.type}.{ref.id}"
        definition = self._service.provider(ref)
        if definition is None:
            raise InvalidField(
                f'the StorageProvider "{ref}" is not defined', field=field, fix=f"Add {field}."
            )
        gate = self._clients.way(self._service.owner)
        return self._clients.kept(definition, lambda: OPENERS[ref.type](definition, field, gate), gate)

    async def close(self) -> None:
        """End the connections that no other job can use."""
        if self._mine:
            await self._clients.close()
