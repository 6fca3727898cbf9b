"""The objects of a tenant: namespace, account, network policy, limits, queues. Pure; called by `tenancy`."""

from __future__ import annotations

from typing import Any

from oscar.compute.kubernetes.kinds import (
    CLUSTER_QUEUE,
    LIMIT_RANGE,
    LOCAL_QUEUE,
    NAMESPACE,
    NETWORK_POLICY,
    RESOURCE_FLAVOR,
    RESOURCE_QUOTA,
    SERVICE_ACCOUNT,
)
from oscar.compute.kubernetes.names import OWNER, Names
from oscar.model.quota import Limits

Body = dict[str, Any]

TENANT = "oscar-tenant"
"""The name of a tenant's objects in his namespace; one of each kind."""
QUEUE = "oscar"
"""The name of Kueue's LocalQueue there."""

_NAME = "kubernetes.io/metadata.name"
_ANY_CPU = "1000000"
_ANY_BYTES = "1000Ti"
_ANY_COUNT = "1000000"
_METADATA_SERVICE = "169.254.0.0/16"


def namespace(names: Names, name: str, owner: str) -> Body:
    """The namespace; who its owner is stands in an annotation, as labels can't hold every id."""
    return {
        **NAMESPACE.head,
        "metadata": {
            "name": name,
            "labels": names.labels(TENANT, owner),
            "annotations": {OWNER: owner},
        },
    }


def service_account(namespace_: str) -> Body:
    """The account that pods have when they ask for none: it gives them no token."""
    return {
        **SERVICE_ACCOUNT.head,
        "metadata": {"name": "default", "namespace": namespace_},
        "automountServiceAccountToken": False,
    }


def limit_range(names: Names, namespace_: str, owner: str) -> Body:
    """What containers ask for that say nothing, such as those that others inject."""
    return {
        **LIMIT_RANGE.head,
        "metadata": _metadata(names, namespace_, owner),
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


def network_policy(names: Names, namespace_: str, owner: str, server_namespace: str) -> Body:
    """Pods are reached by those of their own tenant, by the server and by what publishes it, not by other tenants.

    They reach everything but the link-local addresses, where clouds give away the node's credentials. A namespace
    that wants to reach exposed services (an ingress controller's) carries the label `oscar.grycap/reaches=services`.
    """
    return {
        **NETWORK_POLICY.head,
        "metadata": _metadata(names, namespace_, owner),
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [
                        {"podSelector": {}},
                        {"namespaceSelector": {"matchLabels": {_NAME: server_namespace}}},
                        {"namespaceSelector": {"matchLabels": {"oscar.grycap/reaches": "services"}}},
                    ]
                }
            ],
            "egress": [
                {
                    "to": [
                        {"ipBlock": {"cidr": "0.0.0.0/0", "except": [_METADATA_SERVICE]}},
                        {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10"]}},
                    ]
                },
                {
                    "to": [{"namespaceSelector": {}}],
                    "ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")],
                },
            ],
        },
    }


def resource_quota(names: Names, namespace_: str, owner: str, limits: Limits) -> Body | None:
    """What the owner's pods may ask for together; None without limits.

    Behind the platform's own count, which lets no job start over the quota: this one holds for all his pods.
    """
    hard = {
        "requests.cpu": None if limits.cpu is None else f"{limits.cpu}m",
        "requests.memory": _text(limits.memory),
        "requests.nvidia.com/gpu": _text(limits.gpu),
        "requests.ephemeral-storage": _text(limits.ephemeral_storage),
    }
    found = {name: value for name, value in hard.items() if value is not None}
    if not found:
        return None
    return {
        **RESOURCE_QUOTA.head,
        "metadata": _metadata(names, namespace_, owner),
        "spec": {"hard": found},
    }


def flavor(names: Names) -> Body:
    """Kueue's kind of resources: all nodes alike."""
    return {
        **RESOURCE_FLAVOR.head,
        "metadata": {"name": _flavor(names), "labels": names.labels(TENANT)},
    }


def cluster_queue(names: Names, namespace_: str, owner: str, limits: Limits) -> Body:
    """Kueue's quota of an owner, named as his namespace.

    A resource that a pod asks for and the queue does not cover would never be admitted, so all are there.
    """
    quotas = {
        "cpu": _ANY_CPU if limits.cpu is None else f"{limits.cpu}m",
        "memory": _text(limits.memory) or _ANY_BYTES,
        "ephemeral-storage": _text(limits.ephemeral_storage) or _ANY_BYTES,
        "nvidia.com/gpu": _text(limits.gpu) or _ANY_COUNT,
        "sgx.intel.com/enclave": _ANY_COUNT,
    }
    return {
        **CLUSTER_QUEUE.head,
        "metadata": {"name": namespace_, "labels": names.labels(TENANT, owner)},
        "spec": {
            "namespaceSelector": {"matchLabels": {_NAME: namespace_}},
            "queueingStrategy": "BestEffortFIFO",
            "resourceGroups": [
                {
                    "coveredResources": list(quotas),
                    "flavors": [
                        {
                            "name": _flavor(names),
                            "resources": [
                                {"name": name, "nominalQuota": quota} for name, quota in quotas.items()
                            ],
                        }
                    ],
                }
            ],
        },
    }


def local_queue(names: Names, namespace_: str, owner: str) -> Body:
    """Kueue's queue in the namespace."""
    return {
        **LOCAL_QUEUE.head,
        "metadata": _metadata(names, namespace_, owner) | {"name": QUEUE},
        "spec": {"clusterQueue": namespace_},
    }


def _metadata(names: Names, namespace_: str, owner: str) -> Body:
    return {"name": TENANT, "namespace": namespace_, "labels": names.labels(TENANT, owner)}


def _flavor(names: Names) -> str:
    return f"oscar-{names.installation}"


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)
