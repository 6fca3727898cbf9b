"""Take the secrets out of a service's definition and put them back.

`core.services` stores and shows definitions without secrets and keeps the secrets sealed in the Store;
engines get both together. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from oscar.model.federation import REFRESH_TOKEN
from oscar.model.provider import DEFAULT_PROVIDER
from oscar.model.service import Service

HIDDEN = "hidden"
"""What definitions show for the keys of the platform's own store, as OSCAR does."""

_PROVIDER_SECRETS = frozenset({"access_key", "secret_key", "password", "token", "refresh_token"})


def without_secrets(service: Service, *, keep_token: bool = False) -> Service:
    """The service with the values of all secrets blanked; `minio.default` shows "hidden" for its keys.

    Secrets are: the token (kept with `keep_token`, for the owner's eyes), `environment.secrets`, keys,
    passwords and tokens of storage providers, passwords of clusters, header values of replicas.
    """

    def blank(path: tuple[str, ...], value: str) -> str:
        if keep_token and path == ("token",):
            return value
        return HIDDEN if _is_own_key(path) else ""

    return _map_secrets(service, blank)


def secrets_of(service: Service) -> dict[str, str]:
    """The secrets by JSON Pointer (RFC 6901), as `/environment/secrets/NAME`; blank ones are left out."""
    found: dict[str, str] = {}

    def keep(path: tuple[str, ...], value: str) -> str:
        if value or _is_own_key(path):
            found[_pointer(path)] = value
        return value

    _map_secrets(service, keep)
    return found


def with_secrets(service: Service, secrets: Mapping[str, str]) -> Service:
    """The service with blank (or hidden) secrets filled from `secrets`; those without a place are ignored.

    So it undoes `without_secrets`, and keeps the secrets that an update of the definition left blank.
    """

    def fill(path: tuple[str, ...], value: str) -> str:
        blank = not value or (value == HIDDEN and _is_own_key(path))
        return secrets.get(_pointer(path), value) if blank else value

    return _map_secrets(service, fill)


def _is_own_key(path: tuple[str, ...]) -> bool:
    return path[:3] == ("storage_providers", "minio", DEFAULT_PROVIDER)


def _pointer(path: tuple[str, ...]) -> str:
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def _map_secrets(service: Service, change: Callable[[tuple[str, ...], str], str]) -> Service:
    """The service with `change(path, value)` in the place of every secret."""
    update: dict[str, Any] = {"token": change(("token",), service.token)}
    if secrets := service.environment.secrets:
        changed = {name: change(("environment", "secrets", name), value) for name, value in secrets.items()}
        update["environment"] = service.environment.model_copy(update={"secrets": changed})
    update["storage_providers"] = _map_providers(service, change)
    if service.clusters:
        update["clusters"] = {
            name: cluster.model_copy(
                update={"auth_password": change(("clusters", name, "auth_password"), cluster.auth_password)}
            )
            for name, cluster in service.clusters.items()
        }
    if service.federation and service.federation.members:
        members = [
            member.model_copy(
                update={
                    "headers": {
                        name: change(("federation", "members", str(index), "headers", name), value)
                        for name, value in member.headers.items()
                    }
                }
            )
            for index, member in enumerate(service.federation.members)
        ]
        update["federation"] = service.federation.model_copy(update={"members": members})
    if service.replicas:
        update["replicas"] = [
            replica.model_copy(
                update={
                    "headers": {
                        name: change(("replicas", str(index), "headers", name), value)
                        for name, value in replica.headers.items()
                    }
                }
            )
            for index, replica in enumerate(service.replicas)
        ]
    return service.model_copy(update=update)


def without_refresh_token(service: Service) -> Service:
    """The service as engines get it: the token that speaks for its owner elsewhere is not theirs to pass on."""
    secrets = service.environment.secrets
    if REFRESH_TOKEN not in secrets:
        return service
    kept = {name: value for name, value in secrets.items() if name != REFRESH_TOKEN}
    return service.model_copy(
        update={"environment": service.environment.model_copy(update={"secrets": kept})}
    )


def without_federation(service: Service) -> Service:
    """The service as staging gets it where it runs apart from the server: other clusters are not its business.

    So it has no accounts of theirs, and a definition without its refresh token is one.
    """
    return service.model_copy(update={"federation": None, "replicas": [], "clusters": {}})


def _map_providers(service: Service, change: Callable[[tuple[str, ...], str], str]) -> Any:
    update: dict[str, Any] = {}
    for kind in type(service.storage_providers).model_fields:
        defined = getattr(service.storage_providers, kind)
        update[kind] = {
            name: provider.model_copy(
                update={
                    field: change(("storage_providers", kind, name, field), getattr(provider, field))
                    for field in type(provider).model_fields
                    if field in _PROVIDER_SECRETS
                }
            )
            for name, provider in defined.items()
        }
    return service.storage_providers.model_copy(update=update)
