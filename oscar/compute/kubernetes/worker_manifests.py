"""The objects of warm workers: a Deployment of pods with the user's container and our sidecar, and their Secret.

Called by `sync`. Pure: plain values in, dicts as the API takes them out. The same pod as a Service of Knative is in
`knative`. Nothing of a call, and no key of a store, is in any of these: they come with each call.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources as package
from typing import Any

from oscar.compute.kubernetes.attachments import CACHE, CACHE_AT, attached
from oscar.compute.kubernetes.kinds import DEPLOYMENT, SECRET
from oscar.compute.kubernetes.manifests import of_ours, pull_secrets, resources, security
from oscar.compute.kubernetes.names import DEFINITION, Names, service_object
from oscar.model.secrets import without_federation, without_secrets
from oscar.model.service import Service
from oscar.supervisor.plan import function_config, service_environment
from oscar.supervisor.workfolder import exports

Body = dict[str, Any]

WORKER = "worker"
"""Word of the label that says what an object is for."""
SET = "oscar.grycap/workers"
"""Label: the Deployment whose pod it is."""
SLOT = "oscar.grycap/server"
"""Label: which server's it is."""
SEEN = "oscar.grycap/seen"
"""Annotation: when that server gave its last sign of life, in Unix seconds."""
USER = "oscar-container"
SIDECAR = "sidecar"
PORT = 8090
SHARED = "/oscar/work"
CONFIG = "/oscar/config"
_OURS = "/run/oscar"
_SERVE = f"""\
trap 'kill -TERM $child' TERM
python3 -m oscar.supervisor serve --folder={SHARED} --config={_OURS} --port={PORT} --log-limit={{log_limit}}{{more}} &
child=$!
wait $child
wait $child"""
"""SIGTERM is lost on a first process without a handler, as Python is in its first moments: so a shell is the first."""
_FOR_USER = ("script.sh", "function_config.yaml", "worker.sh", "environment")
_FOR_SIDECAR = ("service.json", "key")


@dataclass(frozen=True, slots=True)
class Kit:
    """What a worker is made of; equal kits make workers that can stand in for one another."""

    service: Service = field(repr=False, compare=False)
    """With its secrets."""
    namespace: str
    image: str
    digest: str
    """Of all that the pod is made from."""
    mounted: Mapping[str, bytes] = field(default_factory=dict, repr=False, compare=False)
    """Variables of the service's mount, with its keys; see `attachments`."""

    @property
    def name(self) -> str:
        """Of the Deployment and its Secret, but for whose server it is."""
        return service_object(self.service.name, f"worker-{self.digest[:10]}")


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Our container in each pod."""

    image: str
    cpu: str = "50m"
    memory: str = "96Mi"
    memory_limit: str = "512Mi"
    log_limit: int = 64 * 1024 * 1024
    grace: int = 330
    """Seconds that a request under way gets when its pod is to end."""
    verify: bool = True
    """Whether the certificate of the platform's own store is checked."""
    hosts: tuple[str, ...] = ()
    """Which stores of users' services may have private addresses."""


def kit_of(
    service: Service, namespace: str, sidecar: Sidecar, mounted: Mapping[str, bytes] | None = None
) -> Kit:
    """The kit of a definition with its secrets.

    Args:
        service: the definition.
        namespace: of its owner.
        sidecar: the other container.
        mounted: variables of the service's mount.
    """
    keys = [(name, hashlib.sha256(value).hexdigest()) for name, value in sorted((mounted or {}).items())]
    variables = sorted(service_environment(service).items())
    parts = [function_config(service), variables, sidecar.image, keys, sidecar.hosts]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Kit(service, namespace, service.image, digest, mounted or {})


def files(kit: Kit, key: bytes) -> dict[str, bytes]:
    """What the two containers find as files."""
    service = kit.service
    shown = without_federation(without_secrets(service))
    # The sidecar has the variables of the service to tell them from those of a call.
    variables = service_environment(service)
    secrets = {name: value for name, value in service.environment.secrets.items() if name in variables}
    environment = service.environment.model_copy(update={"secrets": secrets})
    known = shown.model_copy(update={"environment": environment, "token": service.token, "script": ""})
    return {
        "script.sh": service.script.encode("utf-8", "surrogateescape"),
        "function_config.yaml": function_config(service).encode(),
        "worker.sh": package.files("oscar.supervisor").joinpath("worker.sh").read_bytes(),
        "environment": exports(variables),
        "service.json": known.model_dump_json().encode(),
        "key": key,
    }


def secret(names: Names, kit: Kit, name: str, key: bytes, *, slot: str) -> Body:
    """The Secret with a worker's files."""
    return {
        **SECRET.head,
        "metadata": {
            "name": name,
            "namespace": kit.namespace,
            "labels": names.labels(WORKER, kit.service.owner) | {SET: name, SLOT: slot},
        },
        "type": "Opaque",
        "data": {
            path: base64.b64encode(content).decode()
            for path, content in {**files(kit, key), **kit.mounted}.items()
        },
    }


def deployment(names: Names, kit: Kit, name: str, sidecar: Sidecar, *, replicas: int, slot: str) -> Body:
    """The Deployment of one definition's workers; only its number of replicas ever changes."""
    labels = names.service_labels(WORKER, kit.service) | {SET: name, SLOT: slot}
    return {
        **DEPLOYMENT.head,
        "metadata": {
            "name": name,
            "namespace": kit.namespace,
            "labels": labels,
            "annotations": {DEFINITION: kit.digest},
        },
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": {SET: name}},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        **kit.service.annotations,
                        "kubectl.kubernetes.io/default-container": USER,
                    },
                },
                "spec": pod_spec(kit, name, sidecar),
            },
        },
    }


def pod_spec(kit: Kit, secret: str, sidecar: Sidecar) -> Body:
    """The pod of a worker."""
    service = kit.service
    spec: Body = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": sidecar.grace,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [sidecar_container(sidecar, mounts=service.mount is not None), user_container(service)],
        "volumes": [
            {"name": "work", "emptyDir": {}},
            _files_volume("config", secret, _FOR_USER, 0o444),
            _files_volume("worker", secret, _FOR_SIDECAR, 0o400),
        ],
        **pull_secrets(service),
    }
    return attached(
        spec, service, user=USER, secret=secret, data=kit.mounted, image=sidecar.image, verify=sidecar.verify
    )


def _files_volume(name: str, secret: str, paths: tuple[str, ...], mode: int) -> Body:
    return {
        "name": name,
        "secret": {
            "secretName": secret,
            "defaultMode": mode,
            "items": [{"key": path, "path": path} for path in paths],
        },
    }


def sidecar_container(sidecar: Sidecar, *, mounts: bool) -> Body:
    """Our container.

    Args:
        sidecar: what it is.
        mounts: whether the service has a mount, whose files it waits for.
    """
    cache = [{"name": CACHE, "mountPath": CACHE_AT, "readOnly": True}] if mounts else []
    more = [f"--private-host={host}" for host in sidecar.hosts]
    if mounts:
        more.append(f"--mount-cache={CACHE_AT}")
    serve = _SERVE.format(log_limit=sidecar.log_limit, more="".join(f" {shlex.quote(word)}" for word in more))
    return {
        "name": SIDECAR,
        "image": sidecar.image,
        "command": ["/bin/sh", "-c", serve],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": PORT},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
        },
        **of_ours(sidecar.cpu, sidecar.memory, sidecar.memory_limit),
        "volumeMounts": [
            {"name": "work", "mountPath": SHARED},
            {"name": "worker", "mountPath": _OURS, "readOnly": True},
            *cache,
        ],
    }


def user_container(service: Service) -> Body:
    """The user's image with the loop that runs his script for each request."""
    return {
        "name": USER,
        "image": service.image,
        "command": ["/bin/sh", f"{CONFIG}/worker.sh", SHARED, CONFIG],
        # The sidecar says when a script outlived its request: then only a new container helps. A request under way
        # is never ended by this.
        "livenessProbe": {
            "httpGet": {"path": "/alive", "port": PORT},
            "periodSeconds": 10,
            "timeoutSeconds": 10,
            "failureThreshold": 3,
            "terminationGracePeriodSeconds": 1,
        },
        "resources": resources(service),
        **security(service),
        "volumeMounts": [
            {"name": "work", "mountPath": SHARED},
            {"name": "config", "mountPath": CONFIG, "readOnly": True},
        ],
    }
