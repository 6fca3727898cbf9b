"""KWOK: nodes that are only objects, whose pods run and end at once, for tests with many of them."""

from __future__ import annotations

from tests.cluster import parts
from tests.cluster.addons.manifests import define, kustomized, program_image, rolled_out, use_images
from tests.cluster.cluster import Cluster

MARK = "kwok.x-k8s.io/node"


def install(cluster: Cluster) -> None:
    """Start its controller, with the stages of nodes and of pods that end by themselves when a Job owns them."""
    folder = parts.folder("kwok")
    image = program_image(folder, "kwok", user=0)
    cluster.load(image)
    objects = kustomized(cluster, folder / "config" / "kwok")
    use_images(objects, {"kwok-controller": image.name})
    crds = [it for it in objects if it["kind"] == "CustomResourceDefinition"]
    define(cluster, crds)
    cluster.apply(it for it in objects if it not in crds)
    stages = folder / "config" / "stage"
    for stage in ("node/fast", "node/heartbeat-with-lease", "pod/fast"):
        cluster.apply(kustomized(cluster, stages / stage))
    rolled_out(cluster, "kube-system", "deployment/kwok-controller")


def without_leases(cluster: Cluster) -> None:
    """Have it keep its nodes without leases: it gives up those that it renews too late, with all pods on them.

    The cluster must then be one whose `--node-monitor-grace-period` is longer than the test.
    """
    found = cluster.get("configmap", "--namespace=kube-system", "kwok")
    found["data"] = {
        name: text.replace("nodeLeaseDurationSeconds: 40", "nodeLeaseDurationSeconds: 0")
        for name, text in found["data"].items()
    }
    cluster.apply([found])
    cluster.kubectl("rollout", "restart", "--namespace=kube-system", "deployment/kwok-controller")
    rolled_out(cluster, "kube-system", "deployment/kwok-controller")


def nodes(cluster: Cluster, count: int, *, tainted: bool = True) -> list[str]:
    """Make nodes, and wait until they are ready; tainted ones get only pods that tolerate `kwok.x-k8s.io/node`."""
    names = [f"kwok-{number}" for number in range(count)]
    capacity = {"cpu": "32", "memory": "256Gi", "pods": "500", "ephemeral-storage": "1Ti"}
    taint = {"key": MARK, "value": "fake", "effect": "NoSchedule"}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "annotations": {MARK: "fake"},
                "labels": {"type": "kwok", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            },
            "spec": {"taints": [taint] if tainted else []},
            "status": {"capacity": capacity, "allocatable": capacity},
        }
        for name in names
    )
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=120s", *(f"node/{name}" for name in names))
    return names
