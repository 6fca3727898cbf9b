"""The stores that a service names, opened: from a provider string to an `ObjectStore`.

`stage` asks for them by the strings of a plan. Calls `objects.s3`; the platform's own store is given. A further
kind of storage is one more entry of the table `OPENERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oscar.errors import InvalidField, Unsupported
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider, ProviderType, S3Provider, parse_provider
from oscar.objects.base import ObjectStore
from oscar.objects.s3 import S3Store
from oscar.supervisor.plan import HIDDEN, is_own

KEPT = 64
"""Clients that are kept for the next job; one more drops the oldest."""


class Clients:
    """Clients of stores by address and keys, shared by all jobs so that their connections are used again."""

    def __init__(self) -> None:
        self._stores: dict[tuple[Any, ...], S3Store] = {}

    def s3(self, endpoint: str, access_key: str, secret_key: str, region: str, *, verify: bool) -> S3Store:
        """The client of an S3 server with these keys.

        Raises:
            InvalidField: the address is none.
        """
        name = (endpoint, access_key, secret_key, region, verify)
        store = self._stores.pop(name, None)
        if store is None:
            store = S3Store(endpoint, access_key, secret_key, region, verify=verify)
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


def _open_minio(provider: MinIOProvider, field: str, clients: Clients) -> ObjectStore:
    if not provider.endpoint:
        raise InvalidField(
            f"{field} has no address",
            field=f"{field}.endpoint",
            fix="Write it with its scheme, such as https://minio.example:9000.",
        )
    keys = _keys(provider, field)
    try:
        return clients.s3(provider.endpoint, *keys, provider.region, verify=provider.verify)
    except InvalidField as error:
        raise InvalidField(error.message, field=f"{field}.{error.field}", fix=error.fix) from None


def _open_s3(provider: S3Provider, field: str, clients: Clients) -> ObjectStore:
    return clients.s3("", *_keys(provider, field), provider.region, verify=True)


def _keys(provider: MinIOProvider | S3Provider, field: str) -> tuple[str, str]:
    if {provider.access_key, provider.secret_key} & {"", HIDDEN}:
        raise InvalidField(
            f"{field} has no keys", field=f"{field}.access_key", fix="Give access_key and secret_key."
        )
    return provider.access_key, provider.secret_key


OPENERS: dict[ProviderType, Callable[[Any, str, Clients], ObjectStore]] = {
    ProviderType.MINIO: _open_minio,
    ProviderType.S3: _open_s3,
}
"""How a provider's definition becomes a store: definition, its JSON path for errors, kept clients."""


class Providers:
    """The stores of one service.

    Args:
        service: with the keys of its providers.
        own: the platform's store, with the rights of the user on whose behalf the job runs.
        clients: kept ones; without it this object has its own, to be closed.
    """

    def __init__(self, service: Service, own: ObjectStore, clients: Clients | None = None) -> None:
        self._service = service
        self._own = own
        self._clients = clients or Clients()
        self._mine = clients is None

    def open(self, provider: str) -> ObjectStore:
        """The store that a provider string names.

        Raises:
            Unsupported: it is of a kind that this version can't read or write.
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
        opener = OPENERS.get(ref.type)
        if opener is None:
            kinds = ", ".join(OPENERS)
            raise Unsupported(
                f"{ref}: files of {ref.type} can't be transferred yet, this comes with a later version",
                field=field,
                fix=f"Use one of these for now: {kinds}.",
            )
        return opener(definition, field, self._clients)

    async def close(self) -> None:
        """End the connections that no other job can use."""
        if self._mine:
            await self._clients.close()
