"""metrics-server: what nodes and pods use, as `kubectl top` and the HorizontalPodAutoscaler read it."""

from __future__ import annotations

from tests.cluster import parts
from tests.cluster.addons.manifests import container, kustomized, one, program_image, rolled_out, use_images
from tests.cluster.cluster import Cluster, until


def install(cluster: Cluster) -> None:
    """Start it and wait until it knows the node."""
    folder = parts.folder("metrics-server")
    image = program_image(folder, "metrics-server")
    cluster.load(image)
    objects = kustomized(cluster, folder / "config" / "base")
    use_images(objects, {"metrics-server": image.name})
    deployment = one(objects, "Deployment", "metrics-server")
    server = container(deployment, "metrics-server")
    # Kubelet's certificate is of the cluster's own authority, which every namespace has.
    server["args"] += [
        "--kubelet-certificate-authority=/authority/ca.crt",
        "--metric-resolution=10s",
        "--kubelet-request-timeout=8s",
    ]
    server["args"].remove("--metric-resolution=15s")
    server["resources"]["requests"]["cpu"] = "10m"
    server["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 2}
    server["volumeMounts"].append({"name": "authority", "mountPath": "/authority"})
    deployment["spec"]["template"]["spec"]["volumes"].append(
        {"name": "authority", "configMap": {"name": "kube-root-ca.crt"}}
    )
    cluster.apply(objects)
    rolled_out(cluster, "kube-system", "deployment/metrics-server")
    nodes = ("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes")
    until(lambda: '"cpu"' in cluster.try_kubectl(*nodes).stdout, "the node's use is known", pause=0.5)
