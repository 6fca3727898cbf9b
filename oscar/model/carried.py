"""A service's definition as one server shows it, made into what another one takes.

Called by `cli.copy`. A server, OSCAR 4 included, shows fields that only it can fill (owner, token, state) and blanks
what is secret: neither may be sent on. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oscar.model.fields import fold_keys
from oscar.model.provider import DEFAULT_PROVIDER
from oscar.model.service import Environment, Service
from oscar.model.storage import StorageProviders

_OF_THE_SERVER = ("token", "owner", "namespace", "bucket_list", "deployment", "volume_status", "cluster_id")
_HIDDEN = {"", "hidden"}
_KEYS = frozenset({"access_key", "secret_key", "password", "token", "auth_password"})


@dataclass(frozen=True, slots=True)
class Carried:
    """What to send, and what the source would not show: secrets that somebody has to give again."""

    definition: Mapping[str, Any]
    blanks: tuple[str, ...]
    """Fields without their value, as `environment.secrets.API_KEY`."""


def carried(shown: Mapping[str, Any]) -> Carried:
    """The definition for another server.

    Args:
        shown: an answer of `GET /system/services/{name}`.
    """
    definition = {
        key: value
        for key, value in fold_keys(Service, {**shown}).items()
        if key not in _OF_THE_SERVER and value not in (None, [], {})
    }
    blanks: list[str] = []
    environment = fold_keys(Environment, definition.get("environment") or {})
    secrets = environment.get("secrets") if isinstance(environment, Mapping) else None
    if isinstance(secrets, Mapping):
        blanks += [f"environment.secrets.{name}" for name, value in secrets.items() if not value]
    providers = fold_keys(StorageProviders, definition.get("storage_providers") or {})
    if isinstance(providers, Mapping):
        definition["storage_providers"] = _without_own(providers)
        blanks += _blank_keys("storage_providers", definition["storage_providers"])
    blanks += _blank_keys("clusters", definition.get("clusters"))
    return Carried(definition, tuple(blanks))


def _without_own(providers: Mapping[str, Any]) -> dict[str, Any]:
    """The providers without the server's own store: the target has its own."""
    kept: dict[str, Any] = {}
    for kind, named in providers.items():
        if not isinstance(named, Mapping):
            continue
        others = {
            name: value
            for name, value in named.items()
            if value and not (kind == "minio" and name == DEFAULT_PROVIDER)
        }
        if others:
            kept[kind] = others
    return kept


def _blank_keys(place: str, value: Any) -> list[str]:
    if not isinstance(value, Mapping):
        return []
    found = []
    for name, inner in value.items():
        if name in _KEYS and inner in _HIDDEN:
            found.append(f"{place}.{name}")
        else:
            found += _blank_keys(f"{place}.{name}", inner)
    return found
