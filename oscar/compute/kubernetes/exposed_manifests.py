"""The objects of an exposed service: Deployment, Secret, Service, autoscaler, and a route past our own proxy.

Called by `exposed`. Names are those of OSCAR 4.1.2. Pure: plain values in, dicts as the API takes them out.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from oscar.compute.kubernetes.attachments import attached
from oscar.compute.kubernetes.kinds import AUTOSCALER, DEPLOYMENT, SECRET, SERVICE
from oscar.compute.kubernetes.manifests import (
    node_variable,
    pull_secrets,
    resources,
    secret_data,
    secret_variables,
    security,
)
from oscar.compute.kubernetes.names import DEFINITION, Names, service_object
from oscar.model.service import Service
from oscar.supervisor.plan import function_config, service_environment

Body = dict[str, Any]

EXPOSED = "exposed"
"""Word of the label that says what an object is for."""
USER = "oscar-container"
CONFIG = "/oscar/config"
OWNER_ID = "oscar.grycap/owner"
"""Annotation: the owner, of whom the label is a digest."""
RESTARTS = "oscar.grycap/restarts"
_FILES = ("script.sh", "function_config.yaml")
_KILL_S = 30
"""Seconds that a server gets to end after it has been drained."""


@dataclass(frozen=True, slots=True)
class Named:
    """The names of a service's objects."""

    deployment: str
    service: str
    autoscaler: str
    ingress: str
    auth: str

    @classmethod
    def of(cls, name: str) -> Named:
        """Of the service of that name."""
        return cls(*(service_object(name, end) for end in ("dlp", "svc", "hpa", "ing", "auth-expose")))


@dataclass(frozen=True, slots=True)
class Extras:
    """What a mount needs; see `attachments`."""

    image: str
    """Of the server."""
    mounted: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    verify: bool = True


def variables(service: Service) -> dict[str, str]:
    """The environment of its server."""
    ports = service.expose.api_port
    told = {f"OSCAR_PORT_{port}": str(port) for port in ports}
    own = {"PORT": str(ports[0]), **service_environment(service)}
    return {**own, **told, "OSCAR_BIND_ADDRESS": "0.0.0.0"}  # noqa: S104 - of the pod alone


def secret(names: Names, service: Service, namespace: str, mounted: Mapping[str, bytes]) -> Body:
    """The Secret with its variables, script and definition, and what its mount needs."""
    files = {
        "script.sh": service.script.encode("utf-8", "surrogateescape"),
        "function_config.yaml": function_config(service).encode(),
    }
    data = {**secret_data(variables(service)), **files, **mounted}
    return {
        **SECRET.head,
        "metadata": _metadata(names, service, namespace, Named.of(service.name).deployment),
        "type": "Opaque",
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def deployment(
    names: Names, service: Service, namespace: str, extras: Extras, *, restarts: int, drain: int
) -> Body:
    """The Deployment, without its number of replicas, which is the autoscaler's.

    Args:
        names: of the installation.
        service: with its secrets.
        namespace: of its owner.
        extras: what its mount needs.
        restarts: another number has all pods replaced.
        drain: seconds that requests may go on at a pod that is to end.
    """
    name = Named.of(service.name).deployment
    labels = names.service_labels(EXPOSED, service) | {"app": f"oscar-svc-exp-{service.name}"}
    stamp = hashlib.sha256(
        json.dumps(
            [
                sorted(variables(service).items()),
                service.script,
                function_config(service),
                sorted((name, hashlib.sha256(value).hexdigest()) for name, value in extras.mounted.items()),
            ]
        ).encode()
    ).hexdigest()
    return {
        **DEPLOYMENT.head,
        "metadata": _metadata(names, service, namespace, name),
        "spec": {
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": 600,
            # A new pod takes requests before an old one goes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": selector(names, service)},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        **service.annotations,
                        "kubectl.kubernetes.io/default-container": USER,
                        DEFINITION: stamp[:32],
                        RESTARTS: str(restarts),
                    },
                },
                "spec": attached(
                    _pod_spec(service, name, drain),
                    service,
                    user=USER,
                    secret=name,
                    data=extras.mounted,
                    image=extras.image,
                    verify=extras.verify,
                ),
            },
        },
    }


def selector(names: Names, service: Service) -> dict[str, str]:
    """The labels by which its pods are known."""
    labels = names.service_labels(EXPOSED, service)
    return {key: labels[key] for key in labels if key == "oscar_service" or key.startswith("oscar.grycap/")}


def _pod_spec(service: Service, secret_name: str, drain: int) -> Body:
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": drain + _KILL_S,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [_container(service, secret_name, drain)],
        "volumes": [
            {
                "name": "config",
                "secret": {
                    "secretName": secret_name,
                    "defaultMode": 0o555,
                    "items": [{"key": name, "path": name} for name in _FILES],
                },
            }
        ],
        **pull_secrets(service),
    }


def _container(service: Service, secret_name: str, drain: int) -> Body:
    check = {"httpGet": {"path": health_path(service), "port": service.expose.api_port[0]}}
    return {
        "name": USER,
        "image": service.image,
        **_command(service),
        "env": [*secret_variables(secret_name, variables(service)), node_variable()],
        "ports": [{"containerPort": port} for port in service.expose.api_port],
        # A server may take ten minutes to load its model; from then on it is asked as upstream asks.
        "startupProbe": {**check, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 600},
        "readinessProbe": {**check, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**check, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        # Requests under way may end; nobody sends new ones to a pod that is to end.
        **({"lifecycle": {"preStop": {"sleep": {"seconds": drain}}}} if drain else {}),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": resources(service),
        **security(service),
        "volumeMounts": [{"name": "config", "mountPath": CONFIG, "readOnly": True}],
    }


def _command(service: Service) -> Body:
    if service.expose.default_command or not service.script:
        return {}
    script = f"{CONFIG}/script.sh"
    # As OSCAR starts it: a script with a first line of its own (#!/usr/bin/env python3) runs by that.
    return {"command": ["/bin/sh", "-c", script] if service.script.startswith("#!") else ["/bin/sh", script]}


def base_path(service: Service) -> str:
    """Where the platform has the service."""
    return f"/system/services/{service.name}/exposed"


def health_path(service: Service) -> str:
    """What a probe asks for: as the server sees it when it is asked through the platform, or `direct`."""
    expose = service.expose
    prefix = base_path(service) if expose.rewrite_target and expose.probe_mode != "direct" else ""
    return quote(prefix + expose.health_path, safe="/%?&=:;,+@~!$'()*")


def cluster_service(names: Names, service: Service, namespace: str) -> Body:
    """The Service: port 80 leads to the first port; ports of the node where they are asked for."""
    node_ports = service.expose.nodePort
    ports: list[Body] = []
    for index, port in enumerate(service.expose.api_port):
        found: Body = {"name": f"port-{port}", "port": port if index else 80, "targetPort": port}
        if index < len(node_ports):
            found["nodePort"] = node_ports[index]
        ports.append(found)
    return {
        **SERVICE.head,
        "metadata": _metadata(names, service, namespace, Named.of(service.name).service),
        "spec": {
            "type": "NodePort" if node_ports else "ClusterIP",
            "selector": selector(names, service),
            "ports": ports,
        },
    }


def autoscaler(names: Names, service: Service, namespace: str) -> Body:
    """The HorizontalPodAutoscaler: by CPU, as a part of the limit."""
    expose = service.expose
    named = Named.of(service.name)
    return {
        **AUTOSCALER.head,
        "metadata": _metadata(names, service, namespace, named.autoscaler),
        "spec": {
            "scaleTargetRef": {
                "apiVersion": DEPLOYMENT.api,
                "kind": DEPLOYMENT.kind,
                "name": named.deployment,
            },
            "minReplicas": expose.min_scale,
            "maxReplicas": expose.max_scale,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": expose.cpu_threshold},
                    },
                }
            ],
        },
    }


def _metadata(names: Names, service: Service, namespace: str, name: str) -> Body:
    return {
        "name": name,
        "namespace": namespace,
        "labels": names.service_labels(EXPOSED, service),
        "annotations": {OWNER_ID: service.owner},
    }
