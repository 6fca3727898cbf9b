"""A service: its image, script, inputs, outputs and all else that its definition says, defaults and rules.

The noun that every layer speaks of. `parse_service` is the way in for definitions that users send; the API,
the Store and the engines take `Service` values. Field names are those of `types.Service` in the API of
OSCAR 4.1.2; ours beside them are `retry`, `timeout` and `concurrency`. Secrets: `model.secrets`; FDL files:
`model.fdl`. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from oscar.errors import InvalidField
from oscar.model import resources
from oscar.model.federation import (
    REFRESH_TOKEN,
    WORKER,
    Cluster,
    Federation,
    Replica,
    Topology,
    from_legacy,
    once_each,
)
from oscar.model.fields import (
    CpuQuantity,
    MemoryQuantity,
    Model,
    Name,
    Seconds,
    Text,
    as_text,
    fold_keys,
    invalid_field,
    refuse,
)
from oscar.model.fields import unknown_fields as unknown_fields_of
from oscar.model.job import RetryPolicy
from oscar.model.mount import flags as mount_flags
from oscar.model.object import Visibility
from oscar.model.provider import DEFAULT_PROVIDER, OWN_STORE, ProviderRef, ProviderType
from oscar.model.serving import Expose, Kserve, ServiceVolume, Synchronous
from oscar.model.storage import MinIOProvider, StorageIOConfig, StorageProviders

NAME_LENGTH = 39
RESERVED_NAMES = frozenset({"breakdown", "user"})
"""Names that would hide a route of the API."""

RESERVED_ENVIRONMENT = frozenset(
    {
        "EVENT",
        "EVENT_FILE",
        "EVENT_TIME",
        "INPUT_FILE_PATH",
        "JOB_UUID",
        "OSCAR_MOUNT_PATH",
        "OSCAR_SERVICE_BASE_PATH",
        "OSCAR_SERVICE_NAME",
        "OSCAR_SERVICE_TOKEN",
        "OSCAR_VOLUME_PATH",
        "RESOURCE_ID",
        "STORAGE_OBJECT_KEY",
        "TMP_INPUT_DIR",
        "TMP_OUTPUT_DIR",
    }
)
"""Variables that the platform sets; its values win over a service's own."""

LOG_LEVELS = ("NOTSET", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

MOUNTS = "/mnt"
"""The folder in which a service's `mount` appears, under its own path."""

_AWKWARD = re.compile(r"[:,\x00-\x1f\x7f]")
"""What engines would read as something else in the name of a mounted folder."""
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_VARIABLE = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]*")


def _service_name(name: str) -> str:
    if not name:
        raise refuse("is required")
    if len(name) > NAME_LENGTH:
        raise refuse(f"has {len(name)} characters", fix=f"Use at most {NAME_LENGTH} characters.")
    if not _LABEL.fullmatch(name):
        raise refuse(
            f'"{name}" is not a name for a service',
            fix='Use lower-case letters, digits and "-" only, with a letter or digit at both ends.',
        )
    if name in RESERVED_NAMES:
        raise refuse(f'the name "{name}" is reserved', fix="Choose another name.")
    return name


def _image(image: str) -> str:
    if not image:
        raise refuse("is required", fix="Name a container image, such as docker.io/library/busybox.")
    if image.startswith("-") or re.search(r"[\s\x00-\x1f]", image):
        raise refuse(
            f"{image!r} is not the name of an image", fix="Write it without spaces and leading dashes."
        )
    return image


def _log_level(value: Any) -> str:
    level = as_text(value).strip().upper()
    return level if level in LOG_LEVELS else "INFO"


def _visibility(value: Any) -> Visibility:
    text = as_text(value).strip().lower() or "private"
    try:
        return Visibility(text)
    except ValueError:
        raise refuse(f'"{text}" is not a visibility', fix="Use private, restricted or public.") from None


def _isolation(value: Any) -> str:
    # Compared exactly upstream in some places and in any case in others, so lower case broke isolation there.
    level = as_text(value).strip().upper() or "SERVICE"
    if level not in {"SERVICE", "USER"}:
        raise refuse(f'"{level}" is not an isolation level', fix="Use SERVICE or USER.")
    return level


def _script(text: str) -> str:
    return text.replace("\r\n", "\n")


class Environment(Model):
    """Variables of the script; the values of `secrets` are kept encrypted and never shown."""

    variables: dict[str, Text] = {}
    secrets: dict[str, Text] = Field(default={}, repr=False)

    @field_validator("variables", "secrets")
    @classmethod
    def _names(cls, values: dict[str, str]) -> dict[str, str]:
        for name, value in values.items():
            if not _VARIABLE.fullmatch(name):
                raise refuse(
                    f"{name!r} is not a name for a variable",
                    fix='Use letters, digits, "_", "-" and ".", not starting with a digit.',
                )
            if "\x00" in value:
                raise refuse("the value contains a NUL character", field=name, fix="Store it base64-encoded.")
        return values


class Retry(Model):
    """How often a failed job is tried again; see `model.job.RetryPolicy`. Times in seconds or as `30s`."""

    attempts: int = Field(default=0, ge=0, le=100)
    delay: Seconds = 10.0
    max_delay: Seconds = 300.0
    interrupted: bool = False


class Watched(NamedTuple):
    """A folder of the platform's own store whose new objects start jobs: keys that start with `<folder>/`."""

    bucket: str
    folder: str


class DeploymentSummary(Model):
    """How the long-running part of a service does (read only): `types.ServiceDeploymentSummary`."""

    state: Text = ""
    reason: Text = ""
    resource_kind: Text = ""
    last_transition_time: Text = ""
    active_instances: int = 0
    affected_instances: int = 0


class VolumeStatus(Model):
    """How the service's volume does (read only): `types.ServiceVolumeStatus`."""

    enabled: bool = False
    name: Text = ""
    phase: Text = ""
    error: Text = ""


class Service(Model):
    """A service's definition, valid and with defaults filled in.

    Raises:
        pydantic.ValidationError: when made from bad values; `parse_service` turns it into our own error.
    """

    name: Annotated[Name, AfterValidator(_service_name)]
    cluster_id: Name = ""
    image: Annotated[Name, AfterValidator(_image)]
    script: Annotated[Text, AfterValidator(_script)] = ""
    """Run by `/bin/sh` for each job; when empty, the image's own command runs."""
    memory: MemoryQuantity = "256Mi"
    cpu: CpuQuantity = "0.2"
    total_memory: MemoryQuantity = ""
    total_cpu: CpuQuantity = ""
    ephemeral_storage_request: MemoryQuantity = ""
    enable_gpu: bool = False
    enable_sgx: bool = False
    image_prefetch: bool = False
    image_pull_secrets: list[Name] = []
    alpine: bool = False
    log_level: Annotated[str, BeforeValidator(_log_level)] = "INFO"
    file_stage_in: bool = False
    """True SKIPS the download of input files (its name in OSCAR's API is misleading)."""
    storage_providers: StorageProviders = StorageProviders()
    clusters: dict[str, Cluster] = {}
    input: list[StorageIOConfig] = []
    output: list[StorageIOConfig] = []
    mount: StorageIOConfig | None = None
    volume: ServiceVolume | None = None
    environment: Environment = Environment()
    annotations: dict[str, Text] = {}
    labels: dict[str, Text] = {}
    synchronous: Synchronous = Synchronous()
    expose: Expose = Expose()
    kserve: Kserve | None = None
    federation: Federation | None = None
    replicas: list[Replica] = []
    """Services elsewhere that take this one's jobs and that nobody makes there; a copy has them from its origin."""
    interlink_node_name: Name = ""
    vo: Name = ""
    visibility: Annotated[Visibility, BeforeValidator(_visibility)] = Visibility.PRIVATE
    allowed_users: list[Name] = []
    isolation_level: Annotated[str, BeforeValidator(_isolation)] = "SERVICE"
    retry: Retry = Retry()
    timeout: Seconds = 0.0
    """Seconds from the script's start after which it is ended; 0 for no limit of its own."""
    concurrency: int = Field(default=0, ge=0)
    """Jobs of the service that may run at once; 0 for no limit of its own."""
    # What the server sets; values that users send are overwritten by the core.
    token: Text = Field(default="", repr=False)
    owner: Text = ""
    namespace: Text = ""
    bucket_list: list[Name] = []
    deployment: DeploymentSummary | None = None
    volume_status: VolumeStatus | None = None

    @model_validator(mode="before")
    @classmethod
    def _legacy(cls, data: Any) -> Any:
        data = fold_keys(cls, from_legacy(data))
        if not isinstance(data, Mapping):
            return data
        # OSCAR's own answers carry empty blocks for what was not given.
        blank = [
            key for key in ("mount", "volume", "kserve", "federation") if key in data and _is_blank(data[key])
        ]
        return {key: value for key, value in data.items() if key not in blank} if blank else data

    @field_validator("memory", "cpu")
    @classmethod
    def _defaults(cls, value: str, info: ValidationInfo) -> str:
        return value or ("256Mi" if info.field_name == "memory" else "0.2")

    @field_validator("input", "output")
    @classmethod
    def _with_bucket(cls, places: list[StorageIOConfig], info: ValidationInfo) -> list[StorageIOConfig]:
        name = info.data.get("name", "")
        return [_in_bucket(place, name) for place in places]

    @field_validator("volume")
    @classmethod
    def _volume_name(cls, volume: ServiceVolume | None, info: ValidationInfo) -> ServiceVolume | None:
        if volume and volume.size and not volume.name:
            return volume.model_copy(update={"name": info.data.get("name", "")})
        return volume

    @field_validator("federation")
    @classmethod
    def _group(cls, federation: Federation | None, info: ValidationInfo) -> Federation | None:
        if federation and not federation.group_id:
            return federation.model_copy(update={"group_id": info.data.get("name", "")})
        return federation

    @field_validator("replicas")
    @classmethod
    def _replicas_once(cls, replicas: list[Replica]) -> list[Replica]:
        return once_each(replicas)

    @model_validator(mode="after")
    def _consistent(self) -> Service:
        _check_places(self)
        _check_federation(self)
        return self

    # What other layers ask of a definition.

    @property
    def cpu_millicores(self) -> int:
        """The CPU limit in thousandths of a core."""
        return resources.parse_cpu(self.cpu)

    @property
    def memory_bytes(self) -> int:
        """The memory limit in bytes."""
        return resources.parse_memory(self.memory)

    @property
    def timeout_seconds(self) -> float | None:
        """Seconds that the script may run, None for no limit."""
        return self.timeout or None

    def retry_policy(self) -> RetryPolicy:
        """The service's own retries as the dispatcher takes them."""
        retry = self.retry
        return RetryPolicy(
            attempts=retry.attempts,
            delay=retry.delay,
            max_delay=retry.max_delay,
            interrupted=retry.interrupted,
        )

    def is_own_store(self, place: StorageIOConfig) -> bool:
        """Whether the place is on the platform's own store: `minio.default` or `minio.<cluster_id>`."""
        ref = place.provider
        return ref == OWN_STORE or bool(self.cluster_id and ref == (ProviderType.MINIO, self.cluster_id))

    @property
    def storage_inputs(self) -> list[Watched]:
        """The folders of the own store whose new objects start jobs, private buckets of users included."""
        watched = [Watched(place.bucket, place.folder) for place in self.input if self.is_own_store(place)]
        if self.isolation_level == "USER":
            folders = {place.folder: None for place in watched}
            watched += [Watched(bucket, folder) for bucket in self.bucket_list for folder in folders]
        return list(dict.fromkeys(watched))

    def buckets(self) -> list[str]:
        """The buckets of the own store that the service uses, each once: inputs, outputs, mount."""
        places = [*self.input, *self.output, *([self.mount] if self.mount else [])]
        return list(dict.fromkeys(place.bucket for place in places if self.is_own_store(place)))

    @property
    def is_copy(self) -> bool:
        """Whether another cluster made it and keeps it: a copy of a federated service there."""
        return self.annotations.get(WORKER, "").lower() == "true"

    @property
    def topology(self) -> Topology:
        """That of its federation; none without one."""
        return self.federation.topology if self.federation else Topology.NONE

    @property
    def copies(self) -> list[Replica]:
        """The members on which copies of the service are made and kept: only the origin of a star or a mesh has any."""
        if self.federation is None or self.topology is Topology.NONE or self.is_copy:
            return []
        return [member for member in self.federation.members if member.type == "oscar"]

    @property
    def delegates_to(self) -> list[Replica]:
        """Where its jobs may go, priority 0 first.

        The members of a star or a mesh, else the replicas: members under topology none are only written down.
        """
        found = list(self.replicas)
        if self.federation and (self.topology is not Topology.NONE or self.is_copy):
            found = [*self.federation.members, *found]
        return sorted(once_each(found), key=lambda replica: replica.priority)

    def provider(self, ref: ProviderRef) -> Any:
        """The definition of the provider, None when there is none."""
        return self.storage_providers.get(ref)


def _is_blank(block: Any) -> bool:
    if isinstance(block, Mapping):
        return all(_is_blank(value) for value in block.values())
    return block in ("", 0, None, False) or block == []


def _in_bucket(place: StorageIOConfig, service: str) -> StorageIOConfig:
    if place.provider.type in {ProviderType.MINIO, ProviderType.S3} and "/" not in place.path:
        return place.model_copy(update={"path": f"{service}/{place.path}"})
    return place


def _check_places(service: Service) -> None:
    for index, place in enumerate(service.input):
        field = f"input[{index}]"
        _check_defined(service, place, field)
        if not service.is_own_store(place) and place.provider.type not in {
            ProviderType.WEBDAV,
            ProviderType.RUCIO,
        }:
            raise refuse(
                "unrecognized input (valid inputs are MinIO and dCache)",
                field=f"{field}.storage_provider",
                fix='Use "minio.default", "webdav.<id>" or "rucio.<id>".',
            )
        _check_bucket(service, place, field)
    for index, place in enumerate(service.output):
        field = f"output[{index}]"
        _check_defined(service, place, field)
        _check_bucket(service, place, field)
        _check_loop(service, place, field)
    if service.mount:
        _check_defined(service, service.mount, "mount")
        if service.mount.provider.type not in {ProviderType.MINIO, ProviderType.S3, ProviderType.WEBDAV}:
            raise refuse(
                f"{service.mount.provider.type} can't be mounted",
                field="mount.storage_provider",
                fix='Use "minio.default", "minio.<id>", "s3.<id>" or "webdav.<id>".',
            )
        _check_bucket(service, service.mount, "mount")
        _check_mount(service.mount)
    _check_targets(service)


def _check_mount(mount: StorageIOConfig) -> None:
    try:
        mount_flags(mount.options, field="options")
    except InvalidField as error:
        raise refuse(error.message, field="mount.options", fix=error.fix) from None
    if _AWKWARD.search(mount.path):
        raise refuse(
            f"{mount.path!r} can't be the name of a folder in a container",
            field="mount.path",
            fix='Use a path without ":", "," and control characters.',
        )


def _check_targets(service: Service) -> None:
    """The volume and the mount must not hide each other."""
    if not (service.volume and service.mount):
        return
    volume, mount = f"{service.volume.mount_path}/", f"{MOUNTS}/{service.mount.path}/"
    if volume.startswith(mount) or mount.startswith(volume):
        raise refuse(
            f"the volume would lie over the mount at {mount[:-1]}",
            field="volume.mount_path",
            fix='Choose another folder, such as "/data".',
        )


def _check_defined(service: Service, place: StorageIOConfig, field: str) -> None:
    if not service.is_own_store(place) and service.provider(place.provider) is None:
        ref = place.provider
        raise refuse(
            f'the StorageProvider "{ref}" is not defined',
            field=f"{field}.storage_provider",
            fix=f"Add storage_providers.{ref.type}.{ref.id}.",
        )


def _check_bucket(service: Service, place: StorageIOConfig, field: str) -> None:
    if service.is_own_store(place) and (not _BUCKET.fullmatch(place.bucket) or ".." in place.bucket):
        raise refuse(
            f'"{place.bucket}" is not a name for a bucket',
            field=f"{field}.path",
            fix='Start the path with 3 to 63 lower-case letters, digits, "-" or ".".',
        )


def _check_loop(service: Service, output: StorageIOConfig, field: str) -> None:
    for index, source in enumerate(service.input):
        same = source.provider == output.provider or (
            service.is_own_store(source) and service.is_own_store(output)
        )
        if same and f"{output.path}/".startswith(f"{source.path}/"):
            raise refuse(
                f"the output {output.path} lies under the service's own input[{index}] {source.path}: "
                "every result would start the service again",
                field=f"{field}.path",
                fix="Write the results to another folder.",
            )


def _check_federation(service: Service) -> None:
    federation = service.federation
    if federation is None or federation.topology is Topology.NONE:
        return
    if service.is_copy:
        return
    if REFRESH_TOKEN not in service.environment.secrets:
        raise refuse(
            "a federated service needs a refresh token",
            field="environment.secrets.refresh_token",
            fix="Add it, or set federation.topology to none.",
        )


def parse_service(data: Mapping[str, Any]) -> Service:
    """A definition as users send it, checked and with defaults.

    Raises:
        InvalidField: naming the field by its JSON path, what is wrong, and the fix where there is one.
    """
    try:
        return Service.model_validate(data)
    except ValidationError as error:
        raise invalid_field(error) from None


def unknown_fields(data: Mapping[str, Any]) -> list[str]:
    """JSON paths in a definition that mean nothing to this server, to warn its author of."""
    return unknown_fields_of(Service, from_legacy(data))


_LEFT_OUT_WHEN_EMPTY = frozenset(
    {
        "clusters",
        "concurrency",
        "deployment",
        "federation",
        "image_pull_secrets",
        "kserve",
        "mount",
        "namespace",
        "replicas",
        "retry",
        "script",
        "storage_providers",
        "timeout",
        "volume",
        "volume_status",
    }
)


def definition(service: Service) -> dict[str, Any]:
    """The service as JSON of the API: every field, optional blocks only where they say something."""
    data: dict[str, Any] = service.model_dump(mode="json", exclude_none=True)
    for name in _LEFT_OUT_WHEN_EMPTY & data.keys():
        if getattr(service, name) == Service.model_fields[name].get_default():
            del data[name]
    for place in (*data["input"], *data["output"], data.get("mount", {})):
        for name in ("suffix", "prefix", "options"):
            if not place.get(name):
                place.pop(name, None)
    providers = data.get("storage_providers", {})
    for kind in [kind for kind, defined in providers.items() if not defined]:
        del providers[kind]
    return data


def with_own_store(service: Service, provider: MinIOProvider) -> Service:
    """The service with `storage_providers.minio.default` set to the platform's own store."""
    minio = {**service.storage_providers.minio, DEFAULT_PROVIDER: provider}
    providers = service.storage_providers.model_copy(update={"minio": minio})
    return service.model_copy(update={"storage_providers": providers})
