"""The objects of a run: a Job of one pod that stages in, runs the script, and stages out; and the Secret beside it.

Called by `backend`. Pure: plain values in, dicts as the API takes them out. Nothing secret is in the pod's spec: the
user's variables are references into the Secret, of which only the staging containers see the order and the bodies.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oscar.compute.base import Run
from oscar.compute.kubernetes import interlink
from oscar.compute.kubernetes.attachments import attached
from oscar.compute.kubernetes.kinds import DAEMON_SET, JOB, SECRET
from oscar.compute.kubernetes.names import DEFINITION, RUN, Names, digest, object_name, service_object
from oscar.model.service import Service
from oscar.supervisor.order import ORDER, STARTED_TWICE, TWICE_CODE

Body = dict[str, Any]

RUNS = "run"
PREFETCH = "prefetch"
"""Words of the label that says what an object is for."""

STAGE_IN = "stage-in"
USER = "oscar-container"
STAGE_OUT = "stage-out"

TIMEOUT = "oscar.grycap/timeout"
"""Annotation: seconds that the script may run."""
END = "oscar.grycap/end"
"""Annotation: why we ended it, as JSON; see `observed`."""
JOB_ID = "oscar.grycap/job"

KEPT_S = 7 * 24 * 3600
"""Seconds after which the cluster removes what we did not: only a backstop."""
GRACE_S = 30
"""Seconds that a script gets to end when its node is drained."""

ROOT = "/oscar"
ORDER_FOLDER = "/run/oscar"

_FOLDERS = ("work", "config", "state")
"""Volumes of their own: for a part of a volume (`subPath`) the kubelet starts programs that mount it."""
_STAGING = "import sys; from oscar.supervisor.__main__ import main; main(sys.argv[1:])"
"""As `python -m oscar.supervisor`, without loading what finds a program by its name."""
_ENV = "env."
_SCRIPT = f"""\
set -C
if ! (: >{ROOT}/state/started) 2>/dev/null; then echo '{STARTED_TWICE}' >|/dev/termination-log; exit {TWICE_CODE}; fi
exec 2>&1
exec /bin/sh {ROOT}/config/script.sh"""
"""Starts the script, at most once in this folder: `set -C` makes the redirection fail when the file is there."""


@dataclass(frozen=True, slots=True)
class Staging:
    """The containers around the user's."""

    image: str
    cpu: str = "50m"
    memory: str = "64Mi"
    """What the scheduler counts; the script's own is nearly always more, and only the larger one counts."""
    memory_limit: str = "512Mi"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run goes and how it is queued there."""

    namespace: str
    staging: Staging
    queue: str = ""
    """Kueue's LocalQueue; empty when the run is not queued by Kueue."""
    scheduler: str = ""
    """Another scheduler than the cluster's own."""


@dataclass(frozen=True, slots=True)
class Files:
    """What lies in the Secret for the staging containers."""

    order: bytes
    bodies: Mapping[str, bytes]
    """By their names; those that are fetched by URL are not there."""
    mounted: Mapping[str, bytes] = field(default_factory=dict)
    """Variables of the service's mount, for its container alone; see `attachments`."""

    def as_dict(self) -> dict[str, bytes]:
        """By their names."""
        return {ORDER: self.order, **self.bodies}


def stages(job: Body) -> bool:
    """Whether the run begins in a container of ours, which asks for its marker first."""
    inits = job["spec"]["template"]["spec"].get("initContainers") or ()
    return any(each["name"] == STAGE_IN for each in inits)


def job(names: Names, run: Run, place: Place, files: Files, environment: Mapping[str, str]) -> Body:
    """The Job of a run.

    Args:
        names: of the installation.
        run: what to do.
        place: where.
        files: what is in its Secret.
        environment: the variables of the script; only their names are used.
    """
    service = run.service
    labels = names.service_labels(RUNS, service) | {RUN: digest(run.name)}
    annotations = {**service.annotations, RUN: run.name, JOB_ID: run.job_id}
    if run.timeout is not None:
        annotations[TIMEOUT] = f"{run.timeout:g}"
    queued = {"kueue.x-k8s.io/queue-name": place.queue} if place.queue else {}
    return {
        **JOB.head,
        "metadata": {
            "name": object_name(run.name),
            "namespace": place.namespace,
            "labels": labels | queued,
            "annotations": annotations,
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            # Another pod only when the first has certainly ended; with backoffLimit 0 never.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    }
                ]
            },
            "ttlSecondsAfterFinished": KEPT_S,
            **({"suspend": True} if place.queue else {}),
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        **service.annotations,
                        RUN: run.name,
                        "kubectl.kubernetes.io/default-container": USER,
                    },
                },
                "spec": pod_spec(run, place, files, environment),
            },
        },
    }


def pod_spec(run: Run, place: Place, files: Files, environment: Mapping[str, str]) -> Body:
    """The pod of a run."""
    service = run.service
    secret = object_name(run.name)
    spec: Body = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [
            staging_container(STAGE_IN, "in", place.staging),
            user_container(service, secret, environment),
        ],
        "containers": [staging_container(STAGE_OUT, "out", place.staging)],
        "volumes": [
            *({"name": name, "emptyDir": {}} for name in _FOLDERS),
            {
                "name": "order",
                "secret": {
                    "secretName": secret,
                    "defaultMode": 0o400,
                    "items": [{"key": name, "path": name} for name in files.as_dict()],
                },
            },
        ],
        **pull_secrets(service),
        **({"schedulerName": place.scheduler} if place.scheduler else {}),
    }
    spec = attached(spec, service, user=USER, secret=secret, data=files.mounted, image=place.staging.image)
    return interlink.adapted(spec, service) if service.interlink_node_name else spec


def staging_container(name: str, step: str, staging: Staging) -> Body:
    """The container that does a step of staging."""
    return {
        "name": name,
        "image": staging.image,
        "command": ["python3", "-c", _STAGING, step],
        "env": [{"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
        **of_ours(staging.cpu, staging.memory, staging.memory_limit),
        "volumeMounts": [
            *({"name": name, "mountPath": f"{ROOT}/{name}"} for name in _FOLDERS),
            {"name": "order", "mountPath": ORDER_FOLDER, "readOnly": True},
        ],
    }


def of_ours(cpu: str, memory: str, memory_limit: str) -> Body:
    """What a container of ours takes and may: it is root, without root's other powers, to read what any user wrote."""
    return {
        "resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory_limit}},
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE", "FOWNER"]},
        },
    }


def user_container(service: Service, secret: str, environment: Mapping[str, str]) -> Body:
    """The user's image with his script; without one its own command."""
    return {
        "name": USER,
        "image": service.image,
        **({"command": ["/bin/sh", "-c", _SCRIPT]} if service.script else {}),
        "env": [*secret_variables(secret, environment), node_variable()],
        "resources": resources(service),
        **security(service),
        "volumeMounts": [
            {"name": "work", "mountPath": f"{ROOT}/work"},
            {"name": "config", "mountPath": f"{ROOT}/config", "readOnly": True},
            {"name": "state", "mountPath": f"{ROOT}/state"},
        ],
    }


def secret_variables(secret: str, environment: Mapping[str, str]) -> list[Body]:
    """Variables whose values are in a Secret, under the names that `secret_data` gives them."""
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": f"{_ENV}{name}"}}}
        for name in sorted(environment)
        if name != "RESOURCE_ID"
    ]


def node_variable() -> Body:
    """`RESOURCE_ID`: the node, which nobody knows beforehand."""
    return {"name": "RESOURCE_ID", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}


def secret_data(environment: Mapping[str, str]) -> dict[str, bytes]:
    """The values of variables as a Secret has them."""
    return {f"{_ENV}{name}": value.encode("utf-8", "surrogateescape") for name, value in environment.items()}


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


def secret(
    names: Names, run: Run, namespace: str, files: Files, environment: Mapping[str, str], owner: Body
) -> Body:
    """The Secret of a run; it goes when its Job does.

    Args:
        names: of the installation.
        run: what to do.
        namespace: where.
        files: for the staging containers.
        environment: the variables of the script.
        owner: the Job as the API server made it.
    """
    data = {**files.as_dict(), **secret_data(environment), **files.mounted}
    return {
        **SECRET.head,
        "metadata": {
            "name": object_name(run.name),
            "namespace": namespace,
            "labels": names.labels(RUNS, run.service.owner),
            "ownerReferences": [owner_reference(owner, JOB.api, JOB.kind)],
        },
        "immutable": True,
        "type": "Opaque",
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def owner_reference(owner: Body, api: str, kind: str) -> Body:
    """Says that an object goes with another."""
    return {
        "apiVersion": api,
        "kind": kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": False,
        "blockOwnerDeletion": False,
    }


def prefetch(names: Names, service: Service, namespace: str) -> Body:
    """A DaemonSet that has every node pull the image and keep it: its pods do nothing but be there."""
    name = service_object(service.name, PREFETCH)
    labels = names.service_labels(PREFETCH, service)
    match = {"oscar.grycap/prefetch": name}
    return {
        **DAEMON_SET.head,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {DEFINITION: digest(f"{service.image} {service.image_pull_secrets}")},
        },
        "spec": {
            "selector": {"matchLabels": match},
            "template": {
                "metadata": {"labels": labels | match},
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 1,
                    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [
                        {
                            "name": PREFETCH,
                            "image": service.image,
                            "command": ["/bin/sh", "-c", "while :; do sleep 86400; done"],
                            "resources": {
                                "requests": {"cpu": "1m", "memory": "4Mi"},
                                "limits": {"memory": "32Mi"},
                            },
                        }
                    ],
                    **pull_secrets(service),
                },
            },
        },
    }
