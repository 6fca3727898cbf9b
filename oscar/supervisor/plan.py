"""What a job needs around its script: which objects to fetch, its environment, where its results go.

Engines ask for a `Plan`, give its environment to the sandbox, and have `stage` act on the rest; `answer`
makes the answer of synchronous calls. Calls `model.event` to decode the payload. The variables are the
contract with function authors, docs/scripts.md. Pure, but for this machine's name when the caller gives none.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import yaml

from oscar.errors import BadRequest
from oscar.model.event import Event, EventKind, Record, Source, decode, matches
from oscar.model.federation import ORIGIN_CLUSTER
from oscar.model.provider import DEFAULT_PROVIDER, OWN_STORE, ProviderRef, ProviderType, parse_provider
from oscar.model.record import can_be_stored
from oscar.model.secrets import without_refresh_token, without_secrets
from oscar.model.service import RESERVED_ENVIRONMENT, Service
from oscar.model.storage import OnedataProvider, RucioProvider, StorageIOConfig, WebDavProvider
from oscar.supervisor.moves import Download, InputFile, Moves, Output, event_file

LARGEST_EVENT = 64 * 1024
"""Bytes of an event that still travels in the variable EVENT; the kernel allows 128 KiB for one variable."""

HIDDEN = "hidden"
"""Stands in definitions for keys of the own store."""

_PARAMETER = "CONT_VAR_"
_NAME_BYTES = 255


class Mode(StrEnum):
    """How the script is called."""

    JOB = "job"
    SYNC = "sync"


@dataclass(frozen=True, slots=True)
class Plan:
    """All that happens around one run of a script."""

    moves: Moves
    event: Event
    environment: Mapping[str, str] = field(repr=False)
    mode: Mode

    @property
    def answers(self) -> bool:
        """Whether a synchronous call answers with the output files; with the log if not."""
        return self.event.kind in {EventKind.UNKNOWN, EventKind.API}


def plan(
    service: Service,
    payload: bytes,
    *,
    job_id: str,
    root: str = "/oscar",
    work: str | None = None,
    mode: Mode = Mode.JOB,
    environment: Mapping[str, str] | None = None,
    resource_id: str | None = None,
) -> Plan:
    """Plan a run.

    Args:
        service: with the values of its secrets.
        payload: as the job has it.
        job_id: becomes JOB_UUID; the same id gives the same plan.
        root: where the script sees the run's folder, which holds `work` and `config`.
        work: where the script sees the work folder (`in`, `out`), when that is not `<root>/work`.
        mode: job or synchronous call.
        environment: reserved variables that the caller knows; they win over all others.
        resource_id: becomes RESOURCE_ID; the name of this machine when absent.

    Raises:
        BadRequest: the payload can't be decoded, or its objects are none that the service may read.
    """
    event = decode(payload)
    work = work or f"{root}/work"
    downloads = () if service.file_stage_in else _downloads(service, event)
    files = _files(event, mode, job_id)
    inputs = [f"in/{download.name}" for download in downloads] if event.records else [files[0].path]
    own = {
        "EVENT_FILE": f"{root}/config/event" if mode is Mode.JOB else f"{work}/{files[-1].path}",
        "INPUT_FILE_PATH": f"{work}/{inputs[0] if len(inputs) == 1 else 'in'}" if inputs else "",
        "JOB_UUID": job_id,
        "RESOURCE_ID": socket.gethostname() if resource_id is None else resource_id,
        "TMP_INPUT_DIR": f"{work}/in",
        "TMP_OUTPUT_DIR": f"{work}/out",
        **_event_variables(event, downloads),
    }
    return Plan(
        moves=Moves(downloads, files, _outputs(service, event), work, service.log_level),
        event=event,
        environment={
            **service_environment(service),
            **{name: value for name, value in own.items() if value},
            **(environment or {}),
        },
        mode=mode,
    )


def service_environment(service: Service) -> dict[str, str]:
    """The part of the environment that is the same for every run: the user's variables and the service's own.

    A user's variable can't take the place of a reserved one, even where that is not set.
    """
    users = {**service.environment.variables, **without_refresh_token(service).environment.secrets}
    exposed = f"/system/services/{service.name}/exposed" if service.expose.active else ""
    return {
        **{name: value for name, value in users.items() if name not in RESERVED_ENVIRONMENT},
        "OSCAR_SERVICE_NAME": service.name,
        "OSCAR_SERVICE_BASE_PATH": exposed,
        **({"OSCAR_SERVICE_TOKEN": service.token} if service.token else {}),
    }


def function_config(service: Service) -> str:
    """The text of `function_config.yaml`: the service's definition without its secrets, as OSCAR's scripts know it."""
    shown = without_secrets(service).model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def is_own(service: Service, ref: ProviderRef) -> bool:
    """Whether a provider is this platform's own store.

    `minio.default` is not when the service is a copy of another cluster's that carries that cluster's store.
    """
    if ref == OWN_STORE:
        return not _carries_store(service)
    return bool(service.cluster_id) and ref == (ProviderType.MINIO, service.cluster_id)


def _carries_store(service: Service) -> bool:
    default = service.storage_providers.minio.get(DEFAULT_PROVIDER)
    copied = service.is_copy or bool(service.annotations.get(ORIGIN_CLUSTER))
    return bool(copied and default and default.endpoint and default.access_key not in {"", HIDDEN})


def _files(event: Event, mode: Mode, job_id: str) -> tuple[InputFile, ...]:
    files = []
    if event.content is not None:
        files.append(event_file(job_id, event.content))
    # A job's engine writes the event into `config`; warm workers share that folder between calls.
    if mode is Mode.SYNC and event.content is not event.payload:
        files.append(InputFile("event", event.payload))
    return tuple(files)


def _event_variables(event: Event, downloads: Sequence[Download]) -> dict[str, str]:
    variables = {f"{_PARAMETER}{name}": value for name, value in event.parameters.items() if _is_name(name)}
    if event.text is not None and len(event.text.encode()) <= LARGEST_EVENT:
        variables["EVENT"] = event.text
    if event.records:
        first = event.records[0]
        key = f"/{first.bucket}/{first.key}" if first.source is Source.ONEDATA else first.key
        # dCache tells the name only, the path comes from the service's input.
        variables["STORAGE_OBJECT_KEY"] = downloads[0].key if downloads and not first.bucket else key
        variables["EVENT_TIME"] = first.time
    return variables


def _is_name(name: str) -> bool:
    return name.isascii() and name.isidentifier()


def _downloads(service: Service, event: Event) -> tuple[Download, ...]:
    names = _Names()
    found = []
    # Of several objects the address would be that of one.
    url = event.access if event.access and len(event.records) == 1 else ""
    for index, record in enumerate(event.records):
        ref, bucket, key = _source(service, event, record)
        if is_own(service, ref) and not url:
            _check_readable(service, record, index)
            ref = OWN_STORE
        elif not url:
            _check_declared(service, ref, record, key, index)
        found.append(Download(str(ref), bucket, key, names.take(_base_name(key, index)), url))
    return tuple(found)


def _source(service: Service, event: Event, record: Record) -> tuple[ProviderRef, str, str]:
    """The provider, bucket and key of a record."""
    if event.provider and record.source in {Source.MINIO, Source.S3}:
        # Delegating clusters name either a provider or themselves.
        ref = parse_provider(event.provider) or ProviderRef(ProviderType.MINIO, event.provider)
        return ref, record.bucket, record.key
    match record.source:
        case Source.MINIO:
            return OWN_STORE, record.bucket, record.key
        case Source.S3:
            ids = list(service.storage_providers.s3)
            return _defined(ProviderType.S3, ids), record.bucket, record.key
        case Source.ONEDATA:
            spaces = service.storage_providers.onedata.items()
            ids = [name for name, provider in spaces if provider.space == record.bucket]
            return _defined(ProviderType.ONEDATA, ids), record.bucket, record.key
        case Source.RUCIO:
            place = _input(service, ProviderType.RUCIO, "rucio")
            return place.provider, record.bucket, record.key
        case Source.DCACHE:
            place = _input(service, ProviderType.WEBDAV, "dcache")
            return place.provider, "", f"{place.path}/{record.key}"


def _defined(kind: ProviderType, ids: Sequence[str]) -> ProviderRef:
    """The provider of that type: the default one if there are several."""
    if not ids:
        raise BadRequest(
            f"the event is of {kind}, but the service has no provider for it",
            field=f"storage_providers.{kind}",
            fix=f"Define storage_providers.{kind}.{DEFAULT_PROVIDER}.",
        )
    return ProviderRef(kind, DEFAULT_PROVIDER if DEFAULT_PROVIDER in ids else ids[0])


def _input(service: Service, kind: ProviderType, preferred: str) -> StorageIOConfig:
    """The input of that type: the one with the preferred id if there are several."""
    places = [place for place in service.input if place.provider.type is kind]
    if not places:
        raise BadRequest(
            f"the event is of {kind}, but the service has no such input",
            field="input",
            fix=f'Add an input with the storage provider "{kind}.{preferred}".',
        )
    return next((place for place in places if place.provider.id == preferred), places[0])


def _check_readable(service: Service, record: Record, index: int) -> None:
    """Refuse objects that are no input of the service.

    Events of POST /job are written by callers, but objects are read with the service's rights: without this,
    whoever may call a service could read all that its owner has.
    """
    folders = [(place.bucket, place.folder) for place in service.storage_inputs]
    if service.mount and is_own(service, service.mount.provider):
        folders.append((service.mount.bucket, service.mount.folder))
    if any(record.bucket == bucket and matches(folder, record.key) for bucket, folder in folders):
        return
    raise BadRequest(
        f"{record.bucket}/{record.key} is in no input of the service {service.name}",
        field=f"Records[{index}].s3.object.key",
        fix="Put the file into an input folder of the service, or add its folder as an input.",
    )


def _check_declared(service: Service, ref: ProviderRef, record: Record, key: str, index: int) -> None:
    """Refuse files of a foreign store that are no input of the service, where it has declared one there.

    Services can't declare inputs on S3 and Onedata, nor on the store that a worker's copy carries: what the keys there
    reach, whoever may call the service may name.
    """
    folders = [place.path for place in service.input if place.provider == ref]
    provider = service.provider(ref)
    if not folders or ref.type not in {ProviderType.RUCIO, ProviderType.WEBDAV}:
        return
    if isinstance(provider, RucioProvider):
        # Names in Rucio have no slashes: "__" stands for them.
        below = tuple(text for folder in folders for text in (f"{folder}/", folder.replace("/", "__") + "__"))
        if record.key.startswith(below) or (provider.scope and record.bucket == provider.scope):
            return
    else:
        path = key if record.source is Source.DCACHE else f"{record.bucket}/{record.key}"
        inside = path.startswith(tuple(f"{folder}/" for folder in folders))
        if inside and not {".", ".."} & set(path.split("/")):
            return
    raise BadRequest(
        f"{record.bucket}:{record.key} is in no input of the service {service.name}",
        field=f"Records[{index}]",
        fix=f"Add its folder as an input of {ref}, or name the scope in storage_providers.{ref.type}.{ref.id}.",
    )


class _Names:
    """Hands out paths below the input folder, each once; a name that is taken goes into a numbered folder."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def take(self, name: str) -> str:
        number, path, folder = 1, name, ""
        while path in self._files or path in self._folders or folder in self._files:
            number += 1
            folder = str(number)
            path = f"{folder}/{name}"
        self._files.add(path)
        self._folders.add(folder)
        return path


def _base_name(key: str, index: int) -> str:
    """The last part of a key, as a file can have it."""
    name = key.rpartition("/")[2]
    if name in {"", ".", ".."} or not can_be_stored(name):
        raise BadRequest(f"the key {key!r} names no file", field=f"Records[{index}].s3.object.key")
    raw = name.encode()
    if len(raw) <= _NAME_BYTES:
        return name
    # Its end stays, because the ending says what kind of file it is.
    return raw[-_NAME_BYTES:].decode(errors="ignore")


def _outputs(service: Service, event: Event) -> tuple[Output, ...]:
    private = _private_bucket(service, event)
    found = []
    for place in service.output:
        own = is_own(service, place.provider)
        # The origin of a copy has the same private buckets, by the same names.
        home = service.is_copy and place.provider.id == service.annotations.get(ORIGIN_CLUSTER)
        bucket, folder = _target(service, place)
        found.append(
            Output(
                provider=str(OWN_STORE if own else place.provider),
                bucket=private if private and (own or home) else bucket,
                folder=folder,
                prefixes=tuple(place.prefix),
                suffixes=tuple(place.suffix),
            )
        )
    return tuple(found)


def _target(service: Service, place: StorageIOConfig) -> tuple[str, str]:
    """The bucket and folder of an output: paths of stores without buckets begin below what the provider names."""
    match service.provider(place.provider):
        case OnedataProvider(space=space):
            return space, place.path
        case RucioProvider(scope=scope, account=account):
            return scope or account, place.path
        case WebDavProvider():
            return "", place.path
    return place.bucket, place.folder


def _private_bucket(service: Service, event: Event) -> str | None:
    """With USER isolation, the user's own bucket that the event came from: results must go back there."""
    if service.isolation_level.upper() != "USER":
        return None
    buckets = {record.bucket for record in event.records} & set(service.bucket_list)
    return buckets.pop() if len(buckets) == 1 else None
