"""FDL files: the YAML in which users keep their services (`oscar apply`).

A file holds `functions.oscar`, a list of maps {cluster id: service}, and at its top `storage_providers` and
`clusters` for all of them; `script` names a file beside it. One service by itself, in YAML or JSON, is
taken too. Called by the CLI, which reads the scripts and knows the clusters; this module does neither.
Format: `docs/fdl.md`. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oscar.errors import BadRequest, InvalidField
from oscar.model.documents import parse_json, parse_yaml
from oscar.model.federation import from_legacy
from oscar.model.fields import fold_keys
from oscar.model.provider import DEFAULT_PROVIDER, ProviderType, parse_provider
from oscar.model.service import Service, parse_service, unknown_fields
from oscar.model.storage import MinIOProvider, StorageProviders


@dataclass(frozen=True, slots=True)
class Declared:
    """A service as a file declares it: not yet checked, its script inlined.

    `cluster_id` is empty when the file doesn't say on which cluster it belongs.
    """

    cluster_id: str
    definition: Mapping[str, Any]
    place: str
    """Where it stands in the file: `functions.oscar[0].my-cluster`; empty for a file of one service."""


def parse_fdl(text: str, *, read_script: Callable[[str], str]) -> list[Declared]:
    """The services that a file declares, in its order.

    Args:
        text: the file's content, YAML or JSON.
        read_script: gives the text of a script by the path in the file; its errors pass through.

    Raises:
        BadRequest: broken YAML or JSON, with line and column.
        InvalidField: the file is neither an FDL nor a service.
    """
    data = parse_json(text) if text.lstrip().startswith("{") else parse_yaml(text)
    if not isinstance(data, Mapping):
        raise BadRequest("The file holds no service", fix="Start it with `functions:` or with `name:`.")
    keys = {str(key).lower(): key for key in data}
    if "functions" not in keys:
        if "name" not in keys:
            raise InvalidField(
                "The file has neither `functions` nor `name`",
                field="functions",
                fix="Write `functions:` with `oscar:` below it, or the fields of one service.",
            )
        return [Declared("", _complete(data, {}, read_script), "")]
    shared = {
        name: data[keys[name]]
        for name in ("storage_providers", "clusters")
        if data.get(keys.get(name)) is not None
    }
    return [
        Declared(cluster_id, _complete(service, {**shared, "cluster_id": cluster_id}, read_script), place)
        for place, cluster_id, service in _entries(data[keys["functions"]])
    ]


def _entries(functions: Any) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Place, cluster id and service of every entry of `functions.oscar`."""
    listed = functions.get("oscar") if isinstance(functions, Mapping) else None
    if not isinstance(listed, list) or not listed:
        raise InvalidField(
            "functions.oscar is not a list of services",
            field="functions.oscar",
            fix="Write `oscar:` with one `- <cluster id>:` below it for each service.",
        )
    entries = []
    for index, item in enumerate(listed):
        place = f"functions.oscar[{index}]"
        if not isinstance(item, Mapping) or not item:
            raise InvalidField(f"{place} names no cluster", field=place, fix="Write `- <cluster id>:`.")
        for cluster_id, service in item.items():
            where = f"{place}.{cluster_id}"
            if not isinstance(service, Mapping):
                raise InvalidField(
                    f"{where} holds no service", field=where, fix="Indent its fields below it."
                )
            entries.append((where, str(cluster_id), service))
    return entries


def _complete(
    service: Mapping[str, Any], shared: Mapping[str, Any], read_script: Callable[[str], str]
) -> dict[str, Any]:
    """The service with what the file says for all of them (its own entries win) and its script's text."""
    complete: dict[str, Any] = fold_keys(Service, {**service})
    for name, value in shared.items():
        if name == "cluster_id":
            complete[name] = value
        else:
            complete[name] = _merged(value, complete.get(name))
    script = complete.get("script")
    if isinstance(script, str) and script and not is_inline(script):
        complete["script"] = read_script(script)
    if isinstance(complete.get("script"), str):
        complete["script"] = complete["script"].replace("\r\n", "\n")
    return complete


def is_inline(script: str) -> bool:
    """Whether `script` is the script itself and not a path: it has several lines or starts with `#!`."""
    return "\n" in script.strip() or script.startswith("#!")


def _merged(low: Any, high: Any) -> Any:
    """Two levels of maps laid over each other (provider types and ids, cluster ids); `high` wins."""
    if isinstance(low, Mapping) and isinstance(high, Mapping):
        return {**low, **{key: _merged(low.get(key), value) for key, value in high.items()}}
    return low if high is None else high


def undefined_clusters(definition: Mapping[str, Any]) -> set[str]:
    """Ids of other clusters whose store the service names (`minio.<id>`) without saying where it is."""
    providers = fold_keys(StorageProviders, definition.get("storage_providers") or {})
    known = providers.get("minio") if isinstance(providers, Mapping) else None
    defined = set(known) if isinstance(known, Mapping) else set()
    named = set()
    for place in _places(definition):
        provider = fold_keys(MinIOProvider, place).get("storage_provider")
        ref = parse_provider(provider) if isinstance(provider, str) else None
        if ref and ref.type is ProviderType.MINIO and ref.id != DEFAULT_PROVIDER:
            named.add(ref.id)
    return named - defined - {str(definition.get("cluster_id", ""))}


def undefined_members(definition: Mapping[str, Any]) -> set[str]:
    """Ids of clusters that hold replicas of the service and that its `clusters` does not describe."""
    whole = from_legacy(definition)
    federation = whole.get("federation")
    members = federation.get("members") if isinstance(federation, Mapping) else None
    clusters = definition.get("clusters")
    listed = [part for part in (members, whole.get("replicas")) if isinstance(part, list)]
    named = {
        str(member["cluster_id"])
        for part in listed
        for member in part
        if isinstance(member, Mapping) and member.get("cluster_id")
    }
    return named - set(clusters if isinstance(clusters, Mapping) else ())


def _places(definition: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = [definition.get("mount")]
    for name in ("input", "output"):
        value = definition.get(name)
        listed += value if isinstance(value, list) else []
    return [place for place in listed if isinstance(place, Mapping)]


def with_provider(definition: Mapping[str, Any], name: str, provider: Mapping[str, Any]) -> dict[str, Any]:
    """The definition with `storage_providers.minio.<name>` set."""
    added = {"minio": {name: dict(provider)}}
    return {**definition, "storage_providers": _merged(definition.get("storage_providers"), added)}


def with_cluster(definition: Mapping[str, Any], name: str, cluster: Mapping[str, Any]) -> dict[str, Any]:
    """The definition with `clusters.<name>` set."""
    return {**definition, "clusters": _merged(definition.get("clusters"), {name: dict(cluster)})}


@dataclass(frozen=True, slots=True)
class Request:
    """What to send to the API for a declared service, and what of the file it leaves out."""

    name: str
    body: Mapping[str, Any]
    warnings: tuple[str, ...]


def to_request(declared: Declared) -> Request:
    """A declared service, checked, as the body of a create or update: the given fields with JSON types.

    Raises:
        InvalidField: naming the field as it stands in the file.
    """
    try:
        service = parse_service(declared.definition)
    except InvalidField as error:
        if not declared.place:
            raise
        field = f"{declared.place}.{error.field}" if error.field else declared.place
        message = f"{declared.place}.{error.message}" if error.field else f"{declared.place}: {error.message}"
        raise InvalidField(message, field=field, fix=error.fix) from None
    body = service.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    warnings = tuple(
        f"{declared.place}.{path} is not a field of a service and is ignored".lstrip(".")
        for path in unknown_fields(declared.definition)
    )
    return Request(service.name, body, warnings)
