"""What pods that stay between requests take of their owner's quota. Pure; called by `sync`, `knative`, `exposed`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from oscar.compute.kubernetes.names import SERVICE
from oscar.model.quota import Resources
from oscar.model.service import Service

Body = dict[str, Any]


def taken(service: Service) -> Resources:
    """What one pod of the service takes."""
    return Resources(service.cpu_millicores, service.memory_bytes, 1 if service.enable_gpu else 0)


def takes(pod: Body) -> bool:
    """Whether the pod takes anything still: one that is ending does."""
    return pod.get("status", {}).get("phase") not in {"Succeeded", "Failed"}


def counted(pods: Iterable[Body]) -> Counter[tuple[str, str]]:
    """How many of the pods take something, by namespace and service."""
    return Counter(
        (str(pod["metadata"]["namespace"]), str(pod["metadata"]["labels"].get(SERVICE, "")))
        for pod in pods
        if takes(pod)
    )
