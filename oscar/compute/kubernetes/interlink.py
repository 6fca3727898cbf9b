"""Runs on other sites by interLink: what a virtual node takes of a pod. Pure; called by `manifests`.

A virtual node (https://interlink-project.dev) hands a pod to a batch system such as Slurm, whose containers are not
root and have no cgroups of ours: CPU and memory come from annotations of the service (`slurm-job.vk.io/flags` and the
like), which go to the pod as all annotations do. Checked against the manifests that OSCAR 4.1.2 makes, not against a
running interLink.
"""

from __future__ import annotations

from typing import Any

from oscar.model.service import Service

_TAINT = "virtual-node.interlink/no-schedule"


def adapted(spec: dict[str, Any], service: Service) -> dict[str, Any]:
    """The pod for the service's virtual node."""
    return {
        **{key: value for key, value in spec.items() if key != "securityContext"},
        "nodeSelector": {"kubernetes.io/hostname": service.interlink_node_name},
        "tolerations": [{"key": _TAINT, "operator": "Exists"}],
        "initContainers": [_container(each) for each in spec["initContainers"]],
        "containers": [_container(each) for each in spec["containers"]],
    }


def _container(container: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in container.items() if key not in {"resources", "securityContext"}}
