"""Manifests of runs and tenants, compared whole."""

from __future__ import annotations

from typing import Any

import pytest

from oscar.compute.base import Run
from oscar.compute.kubernetes import manifests, tenants
from oscar.compute.kubernetes.manifests import Files, Place, Staging
from oscar.compute.kubernetes.names import Names, digest
from oscar.model.quota import Limits
from oscar.model.service import Service

OURS = Names("abc123", "oscar-svc")
STAGING = Staging("ghcr.io/oscar/oscar:1")
FILES = Files(b"the order", {"payload": b"the payload", "script": b"the script"})
VARIABLES = {"COLOUR": "red", "JOB_UUID": "cat-uuid", "RESOURCE_ID": "x"}


def run_of(timeout: float | None = None, **fields: Any) -> Run:
    service = Service(
        **{"name": "cat", "image": "busybox", "script": "true", "owner": "ann", "cpu": "0.5", **fields}
    )
    return Run("cat-uuid-1", "cat-uuid", 1, service, b"{}", timeout=timeout)


def place_of(**fields: str) -> Place:
    return Place("oscar-svc-ann", STAGING, **fields)


LABELS = {
    "oscar.grycap/user-service": "true",
    "oscar_service": "cat",
    "applicationId": "cat",
    "queue": "root.oscar-queue.cat",
    "owner_name": "ann",
    "app.kubernetes.io/managed-by": "oscar",
    "oscar.grycap/installation": "abc123",
    "oscar.grycap/part": "run",
    "oscar.grycap/owner": digest("ann"),
    "oscar.grycap/run": digest("cat-uuid-1"),
}
"""Of a run of the service cat."""

PROGRAM = "import sys; from oscar.supervisor.__main__ import main; main(sys.argv[1:])"
STAGING_CONTAINER = {
    "image": "ghcr.io/oscar/oscar:1",
    "env": [{"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
    "securityContext": {
        "runAsUser": 0,
        "runAsGroup": 0,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE", "FOWNER"]},
    },
    "volumeMounts": [
        {"name": "work", "mountPath": "/oscar/work"},
        {"name": "config", "mountPath": "/oscar/config"},
        {"name": "state", "mountPath": "/oscar/state"},
        {"name": "order", "mountPath": "/run/oscar", "readOnly": True},
    ],
}


def test_the_job_of_a_run() -> None:
    order = run_of(60.0, labels={"team": "blue"}, annotations={"note": "mine"}, image_pull_secrets=["hub"])
    labels = {"team": "blue", **LABELS}
    assert manifests.job(OURS, order, place_of(), FILES, VARIABLES) == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "cat-uuid-1",
            "namespace": "oscar-svc-ann",
            "labels": labels,
            "annotations": {
                "note": "mine",
                "oscar.grycap/run": "cat-uuid-1",
                "oscar.grycap/job": "cat-uuid",
                "oscar.grycap/timeout": "60",
            },
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
                ]
            },
            "ttlSecondsAfterFinished": 604800,
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        "note": "mine",
                        "oscar.grycap/run": "cat-uuid-1",
                        "kubectl.kubernetes.io/default-container": "oscar-container",
                    },
                },
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 30,
                    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                    "initContainers": [
                        {
                            "name": "stage-in",
                            "command": ["python3", "-c", PROGRAM, "in"],
                            **STAGING_CONTAINER,
                        },
                        {
                            "name": "oscar-container",
                            "image": "busybox",
                            "command": ["/bin/sh", "-c", manifests._SCRIPT],
                            "env": [
                                {
                                    "name": "COLOUR",
                                    "valueFrom": {
                                        "secretKeyRef": {"name": "cat-uuid-1", "key": "env.COLOUR"}
                                    },
                                },
                                {
                                    "name": "JOB_UUID",
                                    "valueFrom": {
                                        "secretKeyRef": {"name": "cat-uuid-1", "key": "env.JOB_UUID"}
                                    },
                                },
                                {
                                    "name": "RESOURCE_ID",
                                    "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}},
                                },
                            ],
                            "resources": {
                                "limits": {"cpu": "0.5", "memory": "256Mi"},
                                "requests": {"cpu": "0.5", "memory": "256Mi"},
                            },
                            "volumeMounts": [
                                {"name": "work", "mountPath": "/oscar/work"},
                                {"name": "config", "mountPath": "/oscar/config", "readOnly": True},
                                {"name": "state", "mountPath": "/oscar/state"},
                            ],
                        },
                    ],
                    "containers": [
                        {
                            "name": "stage-out",
                            "command": ["python3", "-c", PROGRAM, "out"],
                            **STAGING_CONTAINER,
                        }
                    ],
                    "volumes": [
                        {"name": "work", "emptyDir": {}},
                        {"name": "config", "emptyDir": {}},
                        {"name": "state", "emptyDir": {}},
                        {
                            "name": "order",
                            "secret": {
                                "secretName": "cat-uuid-1",
                                "defaultMode": 0o400,
                                "items": [
                                    {"key": "order", "path": "order"},
                                    {"key": "payload", "path": "payload"},
                                    {"key": "script", "path": "script"},
                                ],
                            },
                        },
                    ],
                    "imagePullSecrets": [{"name": "hub"}],
                },
            },
        },
    }


def test_the_secret_of_a_run_goes_with_its_job() -> None:
    job = {"metadata": {"name": "cat-uuid-1", "uid": "u-1"}}
    found = manifests.secret(OURS, run_of(), "oscar-svc-ann", FILES, {"COLOUR": "réd"}, job)
    assert found == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "cat-uuid-1",
            "namespace": "oscar-svc-ann",
            "labels": OURS.labels("run", "ann"),
            "ownerReferences": [
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "name": "cat-uuid-1",
                    "uid": "u-1",
                    "controller": False,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "immutable": True,
        "type": "Opaque",
        "data": {
            "order": "dGhlIG9yZGVy",
            "payload": "dGhlIHBheWxvYWQ=",
            "script": "dGhlIHNjcmlwdA==",
            "env.COLOUR": "csOpZA==",
        },
    }


def test_bodies_that_are_fetched_are_not_in_the_secret() -> None:
    spec = manifests.pod_spec(run_of(), place_of(), Files(b"order", {}), {})
    assert spec["volumes"][-1]["secret"]["items"] == [{"key": "order", "path": "order"}]


def test_without_a_script_the_images_own_command_runs() -> None:
    container = manifests.user_container(run_of(script="").service, "s", {})
    assert "command" not in container


def test_gpu_sgx_and_ephemeral_storage() -> None:
    service = run_of(enable_gpu=True, enable_sgx=True, ephemeral_storage_request="2Gi").service
    assert manifests.resources(service) == {
        "limits": {"cpu": "0.5", "memory": "256Mi", "nvidia.com/gpu": "1", "sgx.intel.com/enclave": "1"},
        "requests": {"cpu": "0.5", "memory": "256Mi", "ephemeral-storage": "2Gi"},
    }
    assert manifests.security(service) == {"securityContext": {"capabilities": {"add": ["SYS_RAWIO"]}}}


def test_jobs_of_kueue_begin_suspended_and_those_of_yunikorn_are_its_own() -> None:
    queued = manifests.job(OURS, run_of(), place_of(queue="oscar"), FILES, {})
    assert queued["spec"]["suspend"] is True
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "oscar"
    assert "kueue.x-k8s.io/queue-name" not in queued["spec"]["template"]["metadata"]["labels"]
    scheduled = manifests.job(OURS, run_of(), place_of(scheduler="yunikorn"), FILES, {})
    assert scheduled["spec"]["template"]["spec"]["schedulerName"] == "yunikorn"
    labels = scheduled["spec"]["template"]["metadata"]["labels"]
    assert (labels["applicationId"], labels["queue"]) == ("cat", "root.oscar-queue.cat")


def test_a_virtual_node_gets_no_root_and_no_limits() -> None:
    spec = manifests.pod_spec(run_of(interlink_node_name="leonardo"), place_of(), FILES, {})
    assert spec["nodeSelector"] == {"kubernetes.io/hostname": "leonardo"}
    assert spec["tolerations"] == [{"key": "virtual-node.interlink/no-schedule", "operator": "Exists"}]
    assert "securityContext" not in spec
    for container in [*spec["initContainers"], *spec["containers"]]:
        assert not {"securityContext", "resources"} & set(container)


def test_the_daemons_that_fetch_an_image() -> None:
    service = run_of(image_prefetch=True).service
    labels = {
        **{key: LABELS[key] for key in LABELS if key != "oscar.grycap/run"},
        "oscar.grycap/part": "prefetch",
    }
    assert manifests.prefetch(OURS, service, "ns") == {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": "cat-prefetch",
            "namespace": "ns",
            "labels": labels,
            "annotations": {"oscar.grycap/definition": digest("busybox []")},
        },
        "spec": {
            "selector": {"matchLabels": {"oscar.grycap/prefetch": "cat-prefetch"}},
            "template": {
                "metadata": {"labels": labels | {"oscar.grycap/prefetch": "cat-prefetch"}},
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 1,
                    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [
                        {
                            "name": "prefetch",
                            "image": "busybox",
                            "command": ["/bin/sh", "-c", "while :; do sleep 86400; done"],
                            "resources": {
                                "requests": {"cpu": "1m", "memory": "4Mi"},
                                "limits": {"memory": "32Mi"},
                            },
                        }
                    ],
                },
            },
        },
    }


@pytest.mark.parametrize(
    ("limits", "hard"),
    [
        (Limits(), None),
        (Limits(buckets=3), None),
        (
            Limits(cpu=2000, memory=2**31, gpu=0, ephemeral_storage=2**30),
            {
                "requests.cpu": "2000m",
                "requests.memory": "2147483648",
                "requests.nvidia.com/gpu": "0",
                "requests.ephemeral-storage": "1073741824",
            },
        ),
    ],
)
def test_quotas_of_a_tenant(limits: Limits, hard: dict[str, str] | None) -> None:
    found = tenants.resource_quota(OURS, "ns", "ann", limits)
    assert (None if found is None else found["spec"]["hard"]) == hard


TENANT: dict[str, Any] = {
    "name": "oscar-tenant",
    "namespace": "ns",
    "labels": OURS.labels("oscar-tenant", "ann"),
}


def test_the_objects_of_a_tenant() -> None:
    assert tenants.namespace(OURS, "ns", "ann") == {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": "ns",
            "labels": OURS.labels("oscar-tenant", "ann"),
            "annotations": {"oscar.grycap/owner": "ann"},
        },
    }
    assert tenants.service_account("ns") == {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": "ns"},
        "automountServiceAccountToken": False,
    }
    assert tenants.limit_range(OURS, "ns", "ann") == {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": TENANT,
        "spec": {
            "limits": [
                {
                    "type": "Container",
                    "defaultRequest": {"cpu": "10m", "memory": "32Mi"},
                    "default": {"memory": "256Mi"},
                }
            ]
        },
    }
    assert tenants.network_policy(OURS, "ns", "ann", "oscar") == {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": TENANT,
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [
                        {"podSelector": {}},
                        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "oscar"}}},
                        {"namespaceSelector": {"matchLabels": {"oscar.grycap/reaches": "services"}}},
                    ]
                }
            ],
            "egress": [
                {
                    "to": [
                        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
                        {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10"]}},
                    ]
                },
                {
                    "to": [{"namespaceSelector": {}}],
                    "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
                },
            ],
        },
    }


def test_queues_of_kueue() -> None:
    assert tenants.local_queue(OURS, "ns", "ann") == {
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "LocalQueue",
        "metadata": TENANT | {"name": "oscar"},
        "spec": {"clusterQueue": "ns"},
    }
    assert tenants.cluster_queue(OURS, "ns", "ann", Limits(cpu=2000, gpu=0)) == {
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "ClusterQueue",
        "metadata": {"name": "ns", "labels": OURS.labels("oscar-tenant", "ann")},
        "spec": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ns"}},
            "queueingStrategy": "BestEffortFIFO",
            "resourceGroups": [
                {
                    "coveredResources": [
                        "cpu",
                        "memory",
                        "ephemeral-storage",
                        "nvidia.com/gpu",
                        "sgx.intel.com/enclave",
                    ],
                    "flavors": [
                        {
                            "name": "oscar-abc123",
                            "resources": [
                                {"name": "cpu", "nominalQuota": "2000m"},
                                {"name": "memory", "nominalQuota": "1000Ti"},
                                {"name": "ephemeral-storage", "nominalQuota": "1000Ti"},
                                {"name": "nvidia.com/gpu", "nominalQuota": "0"},
                                {"name": "sgx.intel.com/enclave", "nominalQuota": "1000000"},
                            ],
                        }
                    ],
                }
            ],
        },
    }


def test_a_volume_and_a_mount_are_in_the_users_container_only() -> None:
    order = run_of(
        volume={"name": "data", "mount_path": "/data", "size": "1Gi"},
        mount={"storage_provider": "minio.default", "path": "bucket/folder"},
    )
    files = Files(b"order", {}, {"mount.RCLONE_X": b"key"})
    spec = manifests.pod_spec(order, place_of(), files, {})
    assert [each["name"] for each in spec["initContainers"]] == ["mount", "stage-in", "oscar-container"]
    places = {
        each["name"]: {its["mountPath"] for its in each["volumeMounts"]}
        for each in [*spec["initContainers"], *spec["containers"]]
    }
    assert {"/data", "/mnt"} <= places["oscar-container"]
    assert (
        places["stage-in"]
        == places["stage-out"]
        == {"/oscar/work", "/oscar/config", "/oscar/state", "/run/oscar"}
    )
    job = {"metadata": {"name": "cat-uuid-1", "uid": "u-1"}}
    secret = manifests.secret(OURS, order, "ns", files, {}, job)
    assert secret["data"]["mount.RCLONE_X"] == "a2V5"
