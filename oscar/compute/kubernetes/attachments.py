"""What a service has in all its pods besides its own container: its managed volume, and its `mount` by rclone.

`attached` adds both to the spec of any pod: of a job (`manifests`), a warm worker (`worker_manifests`) or an exposed
replica (`exposed_manifests`). The mount is made by a container of ours that starts before the user's and ends after it
(a native sidecar); only it has the keys of the store. Pure, but for the question for keys.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from oscar.compute.kubernetes.names import object_name
from oscar.errors import InvalidField, Unsupported
from oscar.model.mount import flags
from oscar.model.provider import ProviderType
from oscar.model.service import MOUNTS, Service
from oscar.model.storage import MinIOProvider, S3Provider, WebDavProvider
from oscar.model.volume import key_of
from oscar.supervisor.plan import is_own
from oscar.supervisor.rclone import VARIABLES, command, remote, webdav_password

Body = dict[str, Any]

MOUNT = "mount"
"""Name of the container that mounts."""
CACHE = "mount-cache"
"""Name of the volume with what rclone has yet to store."""
CACHE_AT = "/var/cache/oscar-mount"
_KEYS = "mount."
"""How the names of its variables begin in a Secret."""
_PLAIN = "OSCAR_MOUNT_PASSWORD"
_STORED_S = 120
"""Seconds that the last files may take to be stored when a pod ends."""
_FILES = "volume"
_MNT = "mnt"


def mounted(
    service: Service, own: MinIOProvider | None
) -> MinIOProvider | S3Provider | WebDavProvider | None:
    """The store of the service's mount, with its keys; None when it has no mount.

    Args:
        service: with its secrets.
        own: the platform's own store with the keys of the service's owner, at an address that pods reach.

    Raises:
        Unsupported, InvalidField: it can't be mounted.
    """
    mount = service.mount
    if mount is None:
        return None
    if is_own(service, mount.provider):
        if own is None:
            raise Unsupported("the platform's own store can't be reached from pods", field="mount")
        return own
    found = service.provider(mount.provider)
    if not isinstance(found, MinIOProvider | S3Provider | WebDavProvider):
        raise Unsupported(f"{mount.provider} can't be mounted", field="mount.storage_provider")
    if mount.provider.type is ProviderType.MINIO and not getattr(found, "endpoint", ""):
        raise InvalidField(f"{mount.provider} has no address", field="mount.storage_provider")
    return found


async def mount_of(
    service: Service, own_store: Callable[[str], Awaitable[MinIOProvider]]
) -> MinIOProvider | S3Provider | WebDavProvider | None:
    """As `mounted`, with the own store's keys of the service's owner."""
    needs = service.mount is not None and is_own(service, service.mount.provider)
    return mounted(service, await own_store(service.owner) if needs else None)


def secret_data(store: MinIOProvider | S3Provider | WebDavProvider | None) -> dict[str, bytes]:
    """What the pod's Secret must hold for `attached`: the mount's keys, under names of their own."""
    if store is None:
        return {}
    values = remote(store)
    if isinstance(store, WebDavProvider) and (password := webdav_password(store)):
        values[_PLAIN] = password
    return {f"{_KEYS}{name}": value.encode() for name, value in values.items()}


def attached(
    spec: Body,
    service: Service,
    *,
    user: str,
    secret: str,
    data: Mapping[str, bytes],
    image: str,
    verify: bool = True,
) -> Body:
    """The pod's spec with the service's volume and mount in the user's container.

    Args:
        spec: of the pod.
        service: whose pod it is.
        user: name of the user's container.
        secret: name of the Secret that holds `secret_data`.
        data: the same.
        image: of the server, which has rclone.
        verify: whether the certificate of the store is checked.
    """
    key = key_of(service)
    if key is not None and service.volume is not None:
        claim = {"name": _FILES, "persistentVolumeClaim": {"claimName": object_name(key)}}
        place: Body = {"name": _FILES, "mountPath": service.volume.mount_path}
        spec = _with(spec, user, claim, place, "OSCAR_VOLUME_PATH")
    if service.mount is not None:
        target = f"{MOUNTS}/{service.mount.path}"
        place = {"name": _MNT, "mountPath": MOUNTS, "mountPropagation": "HostToContainer"}
        spec = _with(spec, user, {"name": _MNT, "emptyDir": {}}, place, "OSCAR_MOUNT_PATH", target)
        spec = {
            **spec,
            "volumes": [*spec["volumes"], {"name": CACHE, "emptyDir": {}}],
            # Before all others: their folders show what it mounts.
            "initContainers": [
                _mounter(service, secret, data, image, verify=verify),
                *spec.get("initContainers", ()),
            ],
        }
    return spec


def _with(spec: Body, user: str, volume: Body, place: Body, variable: str, value: str = "") -> Body:
    def fill(container: Body) -> Body:
        if container["name"] != user:
            return container
        told = {"name": variable, "value": value or place["mountPath"]}
        return {
            **container,
            "env": [*container.get("env", ()), told],
            "volumeMounts": [*container.get("volumeMounts", ()), place],
        }

    filled: Body = {
        kind: [fill(each) for each in spec[kind]] for kind in ("initContainers", "containers") if kind in spec
    }
    return {**spec, **filled, "volumes": [*spec["volumes"], volume]}


def _mounter(service: Service, secret: str, data: Mapping[str, bytes], image: str, *, verify: bool) -> Body:
    mount = service.mount
    assert mount is not None  # noqa: S101 - asked by `attached`
    target = f"{MOUNTS}/{mount.path}"
    options = [*flags(mount.options), *([] if verify else ["--no-check-certificate"])]
    words = shlex.join(command("rclone", mount.path, Path(target), Path(CACHE_AT), options))
    names = sorted(name.removeprefix(_KEYS) for name in data)
    password = (
        f'export {VARIABLES}PASS="$(printf %s "${_PLAIN}" | rclone obscure -)"\n' if _PLAIN in names else ""
    )
    place = shlex.quote(target)
    return {
        "name": MOUNT,
        "image": image,
        "restartPolicy": "Always",
        "command": ["/bin/sh", "-c", f"{password}mkdir -p {place}\nexec {words}"],
        "env": [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": f"{_KEYS}{name}"}}}
            for name in names
        ],
        "startupProbe": {
            "exec": {"command": ["/bin/sh", "-c", f"mountpoint -q {place} && ls {place} >/dev/null"]},
            "periodSeconds": 1,
            "failureThreshold": 60,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", _STORED]}}},
        "resources": {
            "requests": {"cpu": "20m", "memory": "64Mi"},
            "limits": {"memory": "512Mi"},
        },
        # Mounting for another container is the host's affair.
        "securityContext": {"runAsUser": 0, "runAsGroup": 0, "privileged": True},
        "volumeMounts": [
            {"name": _MNT, "mountPath": MOUNTS, "mountPropagation": "Bidirectional"},
            {"name": CACHE, "mountPath": CACHE_AT},
        ],
    }


_STORED = f"""\
i=0
while [ $i -lt {_STORED_S * 5} ] && grep -rqsE '"Dirty": *true' {CACHE_AT}/vfsMeta; do sleep 0.2; i=$((i+1)); done"""
"""Waits until all that was written is stored: rclone drops what is not when it ends."""
