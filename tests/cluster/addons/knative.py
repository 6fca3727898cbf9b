"""Knative Serving: its controller, webhook, autoscaler, activator and queue proxy.

No ingress layer of Knative can be had here, so its Routes never become ready: revisions are made, scaled and reached by
their own Services, through the activator when they are at zero.
"""

from __future__ import annotations

from tests.cluster import parts
from tests.cluster.addons.manifests import Object, define, one, program_image, read, rolled_out, use_images
from tests.cluster.cluster import Cluster, until

NAMESPACE = "knative-serving"
PROGRAMS = ("controller", "webhook", "autoscaler", "activator")


def install(cluster: Cluster) -> None:
    """Start it and wait until its webhook answers."""
    folder = parts.folder("knative")
    images = {name: program_image(folder, name) for name in (*PROGRAMS, "queue")}
    cluster.load(*images.values())
    core = folder / "config" / "core"
    others = [folder / "config" / "networking", folder / "config" / "caching"]
    crds = [
        it
        for place in (core / "300-resources", *others)
        for file in sorted(place.glob("*.yaml"))
        for it in read(file)
    ]
    networking = [it for it in crds if it["kind"] != "CustomResourceDefinition"]
    define(cluster, (it for it in crds if it["kind"] == "CustomResourceDefinition"))
    objects = networking + read(core / "100-namespace.yaml", core / "200-serviceaccount.yaml")
    for part in ("200-roles", "configmaps", "webhooks"):
        objects += [it for file in sorted((core / part).glob("*.yaml")) for it in read(file)]
    deployments = [it for name in PROGRAMS for it in read(core / "deployments" / f"{name}.yaml")]
    use_images(deployments, {name: images[name].name for name in PROGRAMS})
    for deployment in (it for it in deployments if it["kind"] == "Deployment"):
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            container["resources"]["requests"]["cpu"] = "10m"
    settings = one(objects, "ConfigMap", "config-deployment")["data"]
    settings["queue-sidecar-image"] = images["queue"].name
    settings["queue-sidecar-cpu-request"] = "10m"
    # No registry could be asked for the images' digests; Knative takes `localhost/…` for a name at Docker's.
    settings["registries-skipping-tag-resolving"] = "index.docker.io,localhost"
    # Quick to zero, for tests.
    one(objects, "ConfigMap", "config-autoscaler").setdefault("data", {}).update(
        {"stable-window": "6s", "scale-to-zero-grace-period": "5s"}
    )
    cluster.apply(order(objects + deployments))
    rolled_out(cluster, NAMESPACE, *(f"deployment/{name}" for name in PROGRAMS))
    until(
        lambda: cluster.try_kubectl("apply", "--dry-run=server", "-f", "-", text=PROBE).returncode == 0,
        "Knative's webhook answers",
        pause=0.5,
    )


PROBE = """
apiVersion: serving.knative.dev/v1
kind: Configuration
metadata: {name: probe, namespace: default}
spec: {template: {spec: {containers: [{image: localhost/oscar-test/busybox:1}]}}}
"""


def order(objects: list[Object]) -> list[Object]:
    """Namespaces first; webhooks' configurations last, so that they refuse nothing before they answer."""
    last = {"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"}
    return sorted(objects, key=lambda it: (it["kind"] in last) - (it["kind"] == "Namespace"))
