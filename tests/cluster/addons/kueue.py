"""Kueue: queues that admit and suspend Jobs, with its webhooks and the certificates that it makes itself."""

from __future__ import annotations

from tests.cluster import parts
from tests.cluster.addons.manifests import container, kustomized, one, program_image, rolled_out, use_images
from tests.cluster.cluster import Cluster, until

NAMESPACE = "kueue-system"
FLAVOR = """
apiVersion: kueue.x-k8s.io/v1beta1
kind: ResourceFlavor
metadata: {name: oscar-test-probe}
"""


def install(cluster: Cluster) -> None:
    """Start it and wait until its webhooks answer."""
    folder = parts.folder("kueue")
    image = program_image(folder, "kueue")
    cluster.load(image)
    objects = kustomized(cluster, folder / "config" / "default")
    deployment = one(objects, "Deployment", "kueue-controller-manager")
    pod = deployment["spec"]["template"]["spec"]
    # The proxy before its metrics is an image of others.
    pod["containers"] = [it for it in pod["containers"] if it["name"] == "manager"]
    use_images(objects, {"manager": image.name})
    manager = container(deployment, "manager")
    manager["command"] = ["kueue"]
    manager["resources"]["requests"] = {"cpu": "10m", "memory": "100Mi"}
    manager["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}
    pod["securityContext"]["runAsUser"] = 65532
    cluster.apply(objects)
    rolled_out(cluster, NAMESPACE, "deployment/kueue-controller-manager")
    until(
        lambda: cluster.try_kubectl("apply", "-f", "-", text=FLAVOR).returncode == 0,
        "Kueue's webhooks answer",
        pause=0.5,
    )
    cluster.kubectl("delete", "resourceflavor", "oscar-test-probe")
