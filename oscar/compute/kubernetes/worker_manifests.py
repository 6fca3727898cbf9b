"""The objects of warm workers: a Deployment of pods with the user's container and our sidecar, and their Secret.

Called by `sync`. Pure: plain values in, dicts as the API takes them out. The same pod as a Service of Knative is in
`knative`. Nothing of a call, and no key of a store, is in any of these: they come with each call.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources as package
from typing import Any

from oscar.compute.kubernetes.kinds import DEPLOYMENT, SECRET
from oscar.compute.kubernetes.names import DEFINITION, Names, service_object
from oscar.model.secrets import without_secrets
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
USER = "oscar-container"
SIDECAR = "sidecar"
PORT = 8090
SHARED = "/oscar/work"
CONFIG = "/oscar/config"
_OURS = "/run/oscar"
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


def kit_of(service: Service, namespace: str, sidecar: Sidecar, extra: Mapping[str, Any] | None = None) -> Kit:
    """The kit of a definition with its secrets.

    Args:
        service: the definition.
        namespace: of its owner.
        sidecar: the other container.
        extra: volumes of the service, see `volumes`.
    """
    parts = [function_config(service), sorted(service_environment(service).items()), sidecar.image, extra]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Kit(service, namespace, service.image, digest)


def files(kit: Kit, key: bytes) -> dict[str, bytes]:
    """What the two containers find as files."""
    service = kit.service
    shown = without_secrets(service)
    # The sidecar has the variables of the service to tell them from those of a call.
    known = shown.model_copy(
        update={"environment": service.environment, "token": service.token, "script": ""}
    )
    return {
        "script.sh": service.script.encode("utf-8", "surrogateescape"),
        "function_config.yaml": function_config(service).encode(),
        "worker.sh": package.files("oscar.supervisor").joinpath("worker.sh").read_bytes(),
        "environment": exports(service_environment(service)),
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
        "data": {path: base64.b64encode(content).decode() for path, content in files(kit, key).items()},
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
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": sidecar.grace,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [sidecar_container(sidecar), user_container(service)],
        "volumes": [
            {"name": "work", "emptyDir": {}},
            _files_volume("config", secret, _FOR_USER, 0o444),
            _files_volume("worker", secret, _FOR_SIDECAR, 0o400),
        ],
        **pull_secrets(service),
    }


def _files_volume(name: str, secret: str, paths: tuple[str, ...], mode: int) -> Body:
    return {
        "name": name,
        "secret": {
            "secretName": secret,
            "defaultMode": mode,
            "items": [{"key": path, "path": path} for path in paths],
        },
    }


def sidecar_container(sidecar: Sidecar) -> Body:
    """Our container. It is root, without root's other powers, to read what the user of any image wrote."""
    return {
        "name": SIDECAR,
        "image": sidecar.image,
        "command": [
            "python3",
            "-m",
            "oscar.supervisor",
            "serve",
            f"--folder={SHARED}",
            f"--config={_OURS}",
            f"--port={PORT}",
            f"--log-limit={sidecar.log_limit}",
        ],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": PORT}, "periodSeconds": 5},
        "resources": {
            "requests": {"cpu": sidecar.cpu, "memory": sidecar.memory},
            "limits": {"memory": sidecar.memory_limit},
        },
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE", "FOWNER"]},
        },
        "volumeMounts": [
            {"name": "work", "mountPath": SHARED},
            {"name": "worker", "mountPath": _OURS, "readOnly": True},
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


def resources(service: Service) -> Body:
    """What the user's container needs: limits, which are its requests too."""
    limits: Body = {"cpu": service.cpu, "memory": service.memory}
    if service.enable_gpu:
        limits["nvidia.com/gpu"] = "1"
    if service.enable_sgx:
        limits["sgx.intel.com/enclave"] = "1"
    requests = {"cpu": service.cpu, "memory": service.memory}
    if service.ephemeral_storage_request:
        requests["ephemeral-storage"] = service.ephemeral_storage_request
    return {"limits": limits, "requests": requests}


def security(service: Service) -> Body:
    """What beyond the default the user's container may."""
    if service.enable_sgx:
        return {"securityContext": {"capabilities": {"add": ["SYS_RAWIO"]}}}
    return {}


def pull_secrets(service: Service) -> Body:
    """The Secrets with which the image is pulled."""
    if not service.image_pull_secrets:
        return {}
    return {"imagePullSecrets": [{"name": name} for name in service.image_pull_secrets]}
