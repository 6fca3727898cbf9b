"""Manifests of warm workers and exposed services as whole dicts, and what is read off pods."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from oscar.compute.base import DeploymentState
from oscar.compute.kubernetes import (
    attachments,
    exposed_manifests,
    exposed_state,
    knative,
    kserve,
    routes,
    worker_manifests,
)
from oscar.compute.kubernetes.exposed_manifests import Extras
from oscar.compute.kubernetes.names import Names
from oscar.compute.kubernetes.routes import Way
from oscar.compute.kubernetes.volumes import claim
from oscar.compute.kubernetes.worker_manifests import Sidecar
from oscar.errors import Unsupported
from oscar.model.secrets import without_refresh_token
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.model.volume import key
from oscar.supervisor.orders import config_of, order_of
from oscar.supervisor.plan import plan

NAMES = Names("inst", "oscar-svc")
SIDECAR = Sidecar("server:1", log_limit=1000, grace=60)


def service(**fields: Any) -> Service:
    return Service(
        **{
            "name": "hello",
            "owner": "ann",
            "image": "img:1",
            "script": "echo hello",
            "cpu": "500m",
            "memory": "256Mi",
            "token": "t" * 64,
            **fields,
        }
    )


SERVE = (
    "trap 'kill -TERM $child' TERM\npython3 -m oscar.supervisor serve --folder=/oscar/work --config=/run/oscar"
    " --port=8090 --log-limit=1000 &\nchild=$!\nwait $child\nwait $child"
)
LABELS = {
    "oscar.grycap/user-service": "true",
    "oscar_service": "hello",
    "applicationId": "hello",
    "queue": "root.oscar-queue.hello",
    "owner_name": "ann",
    "app.kubernetes.io/managed-by": "oscar",
    "oscar.grycap/installation": "inst",
    "oscar.grycap/owner": NAMES.labels("x", "ann")["oscar.grycap/owner"],
}
POD = {
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
}


def test_a_warm_worker_is_a_deployment_of_two_containers() -> None:
    kit = worker_manifests.kit_of(service(), "ns", SIDECAR)
    labels = {
        **LABELS,
        "oscar.grycap/part": "worker",
        "oscar.grycap/workers": "w1",
        "oscar.grycap/server": "0",
    }
    assert worker_manifests.deployment(NAMES, kit, "w1", SIDECAR, replicas=2, slot="0") == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "w1",
            "namespace": "ns",
            "labels": labels,
            "annotations": {"oscar.grycap/definition": kit.digest},
        },
        "spec": {
            "replicas": 2,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": {"oscar.grycap/workers": "w1"}},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {"kubectl.kubernetes.io/default-container": "oscar-container"},
                },
                "spec": {
                    **POD,
                    "terminationGracePeriodSeconds": 60,
                    "containers": [
                        {
                            "name": "sidecar",
                            "image": "server:1",
                            "command": [
                                "/bin/sh",
                                "-c",
                                SERVE,
                            ],
                            "ports": [{"containerPort": 8090}],
                            "readinessProbe": {
                                "httpGet": {"path": "/ready", "port": 8090},
                                "periodSeconds": 5,
                                "timeoutSeconds": 5,
                            },
                            "resources": {
                                "requests": {"cpu": "50m", "memory": "96Mi"},
                                "limits": {"memory": "512Mi"},
                            },
                            "securityContext": {
                                "runAsUser": 0,
                                "runAsGroup": 0,
                                "allowPrivilegeEscalation": False,
                                "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE", "FOWNER"]},
                            },
                            "volumeMounts": [
                                {"name": "work", "mountPath": "/oscar/work"},
                                {"name": "worker", "mountPath": "/run/oscar", "readOnly": True},
                            ],
                        },
                        {
                            "name": "oscar-container",
                            "image": "img:1",
                            "command": ["/bin/sh", "/oscar/config/worker.sh", "/oscar/work", "/oscar/config"],
                            "livenessProbe": {
                                "httpGet": {"path": "/alive", "port": 8090},
                                "periodSeconds": 10,
                                "timeoutSeconds": 10,
                                "failureThreshold": 3,
                                "terminationGracePeriodSeconds": 1,
                            },
                            "resources": {
                                "limits": {"cpu": "500m", "memory": "256Mi"},
                                "requests": {"cpu": "500m", "memory": "256Mi"},
                            },
                            "volumeMounts": [
                                {"name": "work", "mountPath": "/oscar/work"},
                                {"name": "config", "mountPath": "/oscar/config", "readOnly": True},
                            ],
                        },
                    ],
                    "volumes": [
                        {"name": "work", "emptyDir": {}},
                        {
                            "name": "config",
                            "secret": {
                                "secretName": "w1",
                                "defaultMode": 0o444,
                                "items": [
                                    {"key": name, "path": name}
                                    for name in (
                                        "script.sh",
                                        "function_config.yaml",
                                        "worker.sh",
                                        "environment",
                                    )
                                ],
                            },
                        },
                        {
                            "name": "worker",
                            "secret": {
                                "secretName": "w1",
                                "defaultMode": 0o400,
                                "items": [{"key": name, "path": name} for name in ("service.json", "key")],
                            },
                        },
                    ],
                },
            },
        },
    }


def test_defect_15_no_refresh_token_and_no_key_of_a_store_is_in_a_worker() -> None:
    wanted = service(
        environment={"secrets": {"refresh_token": "REFRESH", "MINE": "mine"}},
        storage_providers={"s3": {"a": {"access_key": "AKEY", "secret_key": "SKEY"}}},
        input=[{"storage_provider": "minio.default", "path": "hello/in"}],
        output=[{"storage_provider": "s3.a", "path": "b/out"}],
    )
    kit = worker_manifests.kit_of(wanted, "ns", SIDECAR)
    body = worker_manifests.secret(NAMES, kit, "w1", b"k" * 32, slot="")
    held = b"\n".join(base64.b64decode(value) for value in body["data"].values())
    for secret in (b"REFRESH", b"AKEY", b"SKEY"):
        assert secret not in held
    assert b"mine" in held, "its own secrets are a script's"
    exposed = wanted.model_copy(update={"expose": service(expose={"api_port": 80}).expose})
    server = exposed_manifests.secret(NAMES, exposed, "ns", {})
    assert b"REFRESH" not in b"".join(base64.b64decode(value) for value in server["data"].values())


def test_staging_of_a_federated_service_knows_nothing_of_the_federation() -> None:
    """As engines get it, without its refresh token, and as pods read it: whole, and without accounts of members."""
    federated = service(
        environment={"secrets": {"refresh_token": "REFRESH", "MINE": "mine"}},
        federation={
            "topology": "star",
            "members": [
                {"type": "oscar", "cluster_id": "far"},
                {"type": "endpoint", "url": "https://x.test", "headers": {"X-Key": "HEADER"}},
            ],
        },
        replicas=[{"type": "oscar", "cluster_id": "far", "service_name": "x"}],
        clusters={"far": {"endpoint": "https://far.test", "auth_user": "u", "auth_password": "ACCOUNT"}},
    )
    given = without_refresh_token(federated)
    planned = plan(given, b"{}", job_id="hello")
    order = order_of("hello", given, planned, MinIOProvider()).as_file() + config_of(given)
    call = worker_manifests.files(worker_manifests.kit_of(given, "ns", SIDECAR), b"k" * 32)["service.json"]
    for text in (order, call):
        for secret in (b"REFRESH", b"HEADER", b"ACCOUNT"):
            assert secret not in text
    assert Service.model_validate(json.loads(call)).environment.secrets == {"MINE": "mine"}


def test_another_definition_makes_another_kit() -> None:
    kits = {
        worker_manifests.kit_of(wanted, "ns", SIDECAR).digest
        for wanted in (
            service(),
            service(script="echo other"),
            service(environment={"variables": {"A": "1"}}),
            service(environment={"secrets": {"A": "2"}}),
            service(cpu="1"),
            service(isolation_level="USER"),
            service(isolation_level="user", script="x"),
        )
    }
    assert len(kits) == 7
    assert worker_manifests.kit_of(service(), "ns", SIDECAR) == worker_manifests.kit_of(
        service(), "ns", SIDECAR
    )


def test_defect_17b_isolation_in_lower_case_is_isolation() -> None:
    from oscar.compute.crew import Limits
    from oscar.compute.crews import bounds_of

    assert bounds_of(service(isolation_level="user"), Limits(), 1).by_user
    assert not bounds_of(service(isolation_level="service"), Limits(), 1).by_user


EXPOSED: dict[str, Any] = {"expose": {"api_port": [8080, 9090], "min_scale": 2, "max_scale": 5}}


def test_an_exposed_service_is_a_deployment() -> None:
    body = exposed_manifests.deployment(
        NAMES, service(**EXPOSED), "ns", Extras("server:1"), restarts=3, drain=20
    )
    template = body["spec"]["template"]
    stamp = template["metadata"]["annotations"].pop("oscar.grycap/definition")
    assert len(stamp) == 32
    probe = {"httpGet": {"path": "/", "port": 8080}, "timeoutSeconds": 5}
    variables = [
        "OSCAR_BIND_ADDRESS",
        "OSCAR_PORT_8080",
        "OSCAR_PORT_9090",
        "OSCAR_SERVICE_BASE_PATH",
        "OSCAR_SERVICE_NAME",
        "OSCAR_SERVICE_TOKEN",
        "PORT",
    ]
    assert body == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "hello-dlp",
            "namespace": "ns",
            "labels": {**LABELS, "oscar.grycap/part": "exposed"},
            "annotations": {"oscar.grycap/owner": "ann"},
        },
        "spec": {
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {
                "matchLabels": {
                    name: value
                    for name, value in {**LABELS, "oscar.grycap/part": "exposed"}.items()
                    if name.startswith("oscar")
                }
            },
            "template": {
                "metadata": {
                    "labels": {**LABELS, "oscar.grycap/part": "exposed", "app": "oscar-svc-exp-hello"},
                    "annotations": {
                        "kubectl.kubernetes.io/default-container": "oscar-container",
                        "oscar.grycap/restarts": "3",
                    },
                },
                "spec": {
                    **POD,
                    "terminationGracePeriodSeconds": 50,
                    "containers": [
                        {
                            "name": "oscar-container",
                            "image": "img:1",
                            "command": ["/bin/sh", "/oscar/config/script.sh"],
                            "env": [
                                *(
                                    {
                                        "name": name,
                                        "valueFrom": {
                                            "secretKeyRef": {"name": "hello-dlp", "key": f"env.{name}"}
                                        },
                                    }
                                    for name in variables
                                ),
                                {
                                    "name": "RESOURCE_ID",
                                    "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}},
                                },
                            ],
                            "ports": [{"containerPort": 8080}, {"containerPort": 9090}],
                            "startupProbe": {**probe, "periodSeconds": 1, "failureThreshold": 600},
                            "readinessProbe": {**probe, "periodSeconds": 5, "failureThreshold": 3},
                            "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 6},
                            "lifecycle": {"preStop": {"sleep": {"seconds": 20}}},
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                            "resources": {
                                "limits": {"cpu": "500m", "memory": "256Mi"},
                                "requests": {"cpu": "500m", "memory": "256Mi"},
                            },
                            "volumeMounts": [
                                {"name": "config", "mountPath": "/oscar/config", "readOnly": True}
                            ],
                        }
                    ],
                    "volumes": [
                        {
                            "name": "config",
                            "secret": {
                                "secretName": "hello-dlp",
                                "defaultMode": 0o555,
                                "items": [
                                    {"key": "script.sh", "path": "script.sh"},
                                    {"key": "function_config.yaml", "path": "function_config.yaml"},
                                ],
                            },
                        }
                    ],
                },
            },
        },
    }


def test_its_service_and_autoscaler() -> None:
    wanted = service(expose={**EXPOSED["expose"], "nodePort": [30001], "cpu_threshold": 70})
    assert exposed_manifests.cluster_service(NAMES, wanted, "ns")["spec"] == {
        "type": "NodePort",
        "selector": exposed_manifests.selector(NAMES, wanted),
        "ports": [
            {"name": "port-8080", "port": 80, "targetPort": 8080, "nodePort": 30001},
            {"name": "port-9090", "port": 9090, "targetPort": 9090},
        ],
    }
    assert exposed_manifests.autoscaler(NAMES, wanted, "ns")["spec"] == {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hello-dlp"},
        "minReplicas": 2,
        "maxReplicas": 5,
        "metrics": [
            {
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
            }
        ],
    }


@pytest.mark.parametrize(
    ("expose", "path"),
    [
        ({"health_path": "/up"}, "/up"),
        ({"health_path": "/up", "rewrite_target": True}, "/system/services/hello/exposed/up"),
        ({"health_path": "/up", "rewrite_target": True, "probe_mode": "direct"}, "/up"),
    ],
)
def test_health_paths(expose: dict[str, Any], path: str) -> None:
    assert exposed_manifests.health_path(service(expose={"api_port": 80, **expose})) == path


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        ({}, {"command": ["/bin/sh", "/oscar/config/script.sh"]}),
        ({"script": "#!/usr/bin/env python3\n"}, {"command": ["/bin/sh", "-c", "/oscar/config/script.sh"]}),
        ({"expose": {"api_port": 80, "default_command": True}}, {}),
        ({"script": ""}, {}),
    ],
)
def test_commands(fields: dict[str, Any], command: dict[str, Any]) -> None:
    wanted = service(**{"expose": {"api_port": 80}, **fields})
    body = exposed_manifests.deployment(NAMES, wanted, "ns", Extras("s"), restarts=0, drain=0)
    container = body["spec"]["template"]["spec"]["containers"][0]
    assert {name: container[name] for name in ("command",) if name in container} == command
    assert "lifecycle" not in container


def test_a_service_of_knative_is_the_same_pod() -> None:
    wanted = service(synchronous={"min_scale": 1, "max_scale": 4})
    kit = worker_manifests.kit_of(wanted, "ns", SIDECAR)
    body = knative.knative_service(NAMES, kit, "s1", SIDECAR, timeout=300)
    labels = {**LABELS, "oscar.grycap/part": "worker"}
    pod_of = worker_manifests.pod_spec(kit, "s1", SIDECAR)
    side, user = pod_of["containers"]
    assert body == {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {
            "name": "hello",
            "namespace": "ns",
            "labels": {**labels, "networking.knative.dev/visibility": "cluster-local"},
        },
        "spec": {
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        "autoscaling.knative.dev/min-scale": "1",
                        "autoscaling.knative.dev/max-scale": "4",
                        "oscar.grycap/definition": kit.digest,
                    },
                },
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "containerConcurrency": 1,
                    "timeoutSeconds": 300,
                    "containers": [
                        {
                            **side,
                            "securityContext": {
                                "runAsUser": 0,
                                "runAsGroup": 0,
                                "allowPrivilegeEscalation": False,
                            },
                            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8090}},
                        },
                        {name: value for name, value in user.items() if name != "livenessProbe"},
                    ],
                    "volumes": pod_of["volumes"],
                },
            }
        },
    }
    assert not knative.fits(service(script=""))
    assert not knative.fits(service(volume={"name": "v", "mount_path": "/v"}))


# Routes.

NGINX = Way("ingress", host="oscar.example", cors_origins="https://a", cors_methods="GET", cors_headers="X")
GATEWAY = Way("httproute", gateway="gw", gateway_namespace="infra", traefik=True, api_url="http://api:8080")


def test_an_ingress() -> None:
    wanted = service(expose={"api_port": 80, "set_auth": True})
    [(_, login), (_, body)] = routes.objects(NAMES, NGINX, wanted, "ns")
    assert base64.b64decode(login["data"]["auth"]).startswith(b"hello:{SHA}")
    prefix = "nginx.ingress.kubernetes.io"
    assert body["metadata"]["annotations"] == {
        f"{prefix}/proxy-body-size": "0",
        f"{prefix}/use-regex": "true",
        f"{prefix}/rewrite-target": "/$1",
        f"{prefix}/auth-type": "basic",
        f"{prefix}/auth-secret": "hello-auth-expose",
        f"{prefix}/auth-realm": "Log in to hello",
        f"{prefix}/enable-cors": "true",
        f"{prefix}/cors-allow-origin": "https://a",
        f"{prefix}/cors-allow-methods": "GET",
        f"{prefix}/cors-allow-headers": "X",
    }
    assert body["spec"] == {
        "ingressClassName": "nginx",
        "rules": [
            {
                "host": "oscar.example",
                "http": {
                    "paths": [
                        {
                            "path": "/system/services/hello/exposed/?(.*)",
                            "pathType": "ImplementationSpecific",
                            "backend": {"service": {"name": "hello-svc", "port": {"number": 80}}},
                        }
                    ]
                },
            }
        ],
    }


def test_an_http_route() -> None:
    wanted = service(expose={"api_port": 80, "set_auth": True, "auth_type": "forward"})
    [(_, login), (_, body)] = routes.objects(NAMES, GATEWAY, wanted, "ns")
    assert login["spec"] == {
        "forwardAuth": {
            "address": "http://api:8080/system/services/hello/auth",
            "authResponseHeaders": ["Set-Cookie"],
            "addAuthCookiesToResponse": ["oscar_service_hello_auth"],
        }
    }
    assert body["spec"] == {
        "parentRefs": [{"name": "gw", "namespace": "infra"}],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/system/services/hello/exposed"}}],
                "backendRefs": [{"name": "hello-svc", "port": 80}],
                "filters": [
                    {
                        "type": "URLRewrite",
                        "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
                    },
                    {
                        "type": "ExtensionRef",
                        "extensionRef": {
                            "group": "traefik.io",
                            "kind": "Middleware",
                            "name": "hello-auth-expose",
                        },
                    },
                ],
            }
        ],
    }
    kept = service(expose={"api_port": 80, "rewrite_target": True})
    [(_, plain)] = routes.objects(NAMES, GATEWAY, kept, "ns")
    assert "filters" not in plain["spec"]["rules"][0]


@pytest.mark.parametrize(
    ("way", "auth", "refused"),
    [
        (NGINX, "basic", False),
        (NGINX, "forward", True),
        (Way("ingress", ingress_class="contour"), "basic", True),
        (GATEWAY, "basic", False),
        (GATEWAY, "forward", False),
        (Way("httproute", gateway="gw"), "basic", True),
        (Way("httproute", gateway="gw", traefik=True), "forward", True),
    ],
)
def test_a_way_that_keeps_nobody_out_is_never_made(way: Way, auth: str, refused: bool) -> None:
    closed = service(expose={"api_port": 80, "set_auth": True, "auth_type": auth})
    assert bool(routes.hindrance(way, closed)) is refused
    open_ = {"api_port": 80, "auth_type": auth, "rewrite_target": True}
    assert not routes.hindrance(way, service(expose=open_))


def test_a_way_that_would_not_rewrite_paths_is_never_made() -> None:
    plain = service(expose={"api_port": 80})
    assert "rewrite_target" in routes.hindrance(Way("ingress", ingress_class="contour"), plain)
    assert not routes.hindrance(NGINX, plain)
    assert not routes.hindrance(GATEWAY, plain)


# Models.


def test_an_inference_service() -> None:
    wanted = service(
        kserve={
            "storage_uri": "gs://models/iris",
            "inference": {"model_format": "sklearn"},
            "api_version": "v2",
            "cpu": "1",
            "memory": "1Gi",
            "env": {"A": "1"},
            "args": ["--x"],
        }
    )
    assert wanted.kserve is not None
    body = kserve.manifest(NAMES, wanted, wanted.kserve, "ns")
    assert body == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "hello",
            "namespace": "ns",
            "labels": {**LABELS, "oscar.grycap/part": "model"},
            "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"},
        },
        "spec": {
            "predictor": {
                "minReplicas": 0,
                "maxReplicas": 1,
                "model": {
                    "modelFormat": {"name": "sklearn"},
                    "protocolVersion": "v2",
                    "storageUri": "gs://models/iris",
                    "args": ["--x"],
                    "env": [{"name": "A", "value": "1"}],
                    "resources": {
                        "limits": {"cpu": "1", "memory": "1Gi"},
                        "requests": {"cpu": "1", "memory": "1Gi"},
                    },
                },
            }
        },
    }


def test_a_language_model() -> None:
    wanted = service(
        kserve={
            "type": "llm_inference",
            "storage_uri": "hf://Qwen/Qwen3-0.6B",
            "llm_inference": {"runtime_image": "vllm:1"},
            "enable_gpu": True,
            "cpu": "2",
            "memory": "8Gi",
        }
    )
    assert wanted.kserve is not None
    body = kserve.manifest(NAMES, wanted, wanted.kserve, "ns")
    assert (body["apiVersion"], body["kind"]) == ("serving.kserve.io/v1alpha1", "LLMInferenceService")
    assert body["spec"] == {
        "model": {"uri": "hf://Qwen/Qwen3-0.6B"},
        "replicas": 1,
        "template": {
            "containers": [
                {
                    "name": "main",
                    "image": "vllm:1",
                    "resources": {
                        "limits": {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"},
                        "requests": {"cpu": "2", "memory": "8Gi"},
                    },
                }
            ]
        },
        "router": {"gateway": {}, "route": {}},
    }


# Volumes and mounts.

OWN = MinIOProvider(endpoint="http://s3:9000", access_key="AK", secret_key="SK", region="r")


def test_a_volume_and_a_mount_in_any_pod() -> None:
    wanted = service(
        volume={"name": "data", "mount_path": "/data"},
        mount={"storage_provider": "minio.default", "path": "bucket/folder", "options": "--read-only"},
    )
    store = attachments.mounted(wanted, OWN)
    data = attachments.secret_data(store)
    assert data["mount.RCLONE_CONFIG_MOUNTED_SECRET_ACCESS_KEY"] == b"SK"
    spec = attachments.attached(
        {
            "containers": [{"name": "side"}, {"name": "user", "env": [{"name": "A", "value": "1"}]}],
            "volumes": [],
        },
        wanted,
        user="user",
        secret="s1",
        data=data,
        image="server:1",
    )
    claim_name = key("ann", "data")
    mounter = spec["initContainers"][0]
    assert "bucket/folder" in mounter.pop("command")[2]
    assert "SK" not in str(spec)
    assert mounter == {
        "name": "mount",
        "image": "server:1",
        "restartPolicy": "Always",
        "env": [
            {"name": name.removeprefix("mount."), "valueFrom": {"secretKeyRef": {"name": "s1", "key": name}}}
            for name in sorted(data)
        ],
        "startupProbe": {
            "exec": {
                "command": [
                    "/bin/sh",
                    "-c",
                    "mountpoint -q /mnt/bucket/folder && ls /mnt/bucket/folder >/dev/null",
                ]
            },
            "periodSeconds": 1,
            "failureThreshold": 60,
        },
        "lifecycle": mounter["lifecycle"],
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {"runAsUser": 0, "runAsGroup": 0, "privileged": True},
        "volumeMounts": [
            {"name": "mnt", "mountPath": "/mnt", "mountPropagation": "Bidirectional"},
            {"name": "mount-cache", "mountPath": "/var/cache/oscar-mount"},
        ],
    }
    assert {key: value for key, value in spec.items() if key != "initContainers"} == {
        "containers": [
            {"name": "side"},
            {
                "name": "user",
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "OSCAR_VOLUME_PATH", "value": "/data"},
                    {"name": "OSCAR_MOUNT_PATH", "value": "/mnt/bucket/folder"},
                ],
                "volumeMounts": [
                    {"name": "volume", "mountPath": "/data"},
                    {"name": "mnt", "mountPath": "/mnt", "mountPropagation": "HostToContainer"},
                ],
            },
        ],
        "volumes": [
            {"name": "volume", "persistentVolumeClaim": {"claimName": claim_name}},
            {"name": "mnt", "emptyDir": {}},
            {"name": "mount-cache", "emptyDir": {}},
        ],
    }


def test_what_can_not_be_mounted_is_refused() -> None:
    with pytest.raises(Unsupported):
        attachments.mounted(service(mount={"storage_provider": "minio.default", "path": "bucket"}), None)
    assert attachments.mounted(service(), OWN) is None


def test_a_claim() -> None:
    body = claim(NAMES, "data-1", 5, owner="ann", namespace="ns", storage_class="fast", mode="ReadWriteOnce")
    assert body["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "5"}},
        "storageClassName": "fast",
    }


# What is read off the cluster.


def pod(name: str = "p", *, ready: bool = False, leaving: bool = False, **state: Any) -> dict[str, Any]:
    container = {"name": "oscar-container", "ready": ready, "restartCount": 0, "state": {}, **state}
    return {
        "metadata": {"name": name, **({"deletionTimestamp": "x"} if leaving else {})},
        "status": {
            "podIP": "10.0.0.1",
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [container],
        },
    }


def deployed(replicas: int, updated: int | None = None) -> dict[str, Any]:
    return {
        "spec": {"replicas": replicas},
        "status": {"updatedReplicas": replicas if updated is None else updated},
    }


ENDED: dict[str, Any] = {"lastState": {"terminated": {"exitCode": 3, "message": "one\nno such model\n"}}}


@pytest.mark.parametrize(
    ("deployment", "pods", "state", "words", "active", "affected"),
    [
        (None, [], "pending", "1 wanted", 0, 1),
        (deployed(1), [pod()], "pending", "none answers", 0, 1),
        (deployed(1), [pod(ready=True)], "ready", "1 of 1", 1, 0),
        (deployed(2), [pod(ready=True)], "degraded", "1 of 2", 1, 1),
        (deployed(1), [pod(**ENDED)], "failed", "ended with code 3: no such model", 0, 1),
        (
            deployed(1),
            [pod(state={"waiting": {"reason": "ErrImagePull", "message": "not found"}})],
            "failed",
            "not found",
            0,
            1,
        ),
        (deployed(1), [pod("a", ready=True), pod("b", ready=True)], "ready", "rolled out", 2, 0),
        (deployed(1), [pod("a", ready=True), pod("b", **ENDED)], "degraded", "does not run", 1, 0),
        (deployed(1), [pod("a", ready=True, leaving=True)], "pending", "", 0, 1),
    ],
)
def test_states(
    deployment: dict[str, Any] | None,
    pods: list[dict[str, Any]],
    state: str,
    words: str,
    active: int,
    affected: int,
) -> None:
    found = exposed_state.state_of(deployment, pods, stopped=False)
    assert (found[0].value, found[2], found[3]) == (state, active, affected)
    assert words in found[1]
    assert exposed_state.state_of(deployment, pods, stopped=True)[0] is DeploymentState.STOPPED
