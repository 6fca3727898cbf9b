"""Where the storage providers of a service may lie: users don't have the server read what they can't reach themselves.

Called by `core.services` when a definition is taken, and by the dispatcher before each run, as names may lead
elsewhere by then. The administrator's services are free.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from oscar.core.members import is_allowed
from oscar.core.platform import Platform
from oscar.errors import InvalidField
from oscar.model.service import Service
from oscar.model.user import ADMIN
from oscar.objects.addresses import is_public, resolve
from oscar.objects.origin import is_origin


async def check(p: Platform, service: Service) -> None:
    """Refuse providers on private addresses.

    Raises:
        InvalidField: naming the provider's field.
    """
    if service.owner == ADMIN:
        return
    own = urlsplit(p.store.endpoint).hostname
    for field, text in named(service):
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host = parts.hostname or ""
        if not host or host in p.settings.storage_hosts or host == own:
            continue
        if is_origin(text) and is_allowed(host, parts.port, p.settings):
            continue
        addresses = await resolve(host, _port(parts.netloc))
        if not all(is_public(address) for address in addresses):
            raise InvalidField(
                f'The host "{host}" has a private address',
                field=field,
                fix="use a public one, or have the administrator add the host to OSCAR_STORAGE_ALLOWED_HOSTS",
            )


def named(service: Service) -> Iterator[tuple[str, str]]:
    """The addresses in a service's providers, each with its JSON path."""
    providers = service.storage_providers
    for kind, fields in (
        ("minio", ("endpoint",)),
        ("webdav", ("hostname",)),
        ("onedata", ("oneprovider_host",)),
        ("rucio", ("host", "token_endpoint")),
    ):
        for name, provider in (getattr(providers, kind) or {}).items():
            for field in fields:
                if text := str(getattr(provider, field) or ""):
                    yield f"storage_providers.{kind}.{name}.{field}", text


def _port(netloc: str) -> int:
    _, _, port = netloc.rpartition(":")
    return int(port) if port.isdigit() else 443
