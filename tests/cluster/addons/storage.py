"""local-path-provisioner: the default storage class, whose volumes are folders of the cluster's own."""

from __future__ import annotations

import json

from tests.cluster import images, parts
from tests.cluster.addons.manifests import one, program_image, read, rolled_out, use_images
from tests.cluster.cluster import Cluster


def install(cluster: Cluster) -> None:
    """Start it."""
    folder = parts.folder("local-path")
    image = program_image(folder, "local-path-provisioner")
    cluster.load(image)
    objects = read(folder / "config" / "local-path-storage.yaml")
    use_images(objects, {"local-path-provisioner": image.name})
    data = one(objects, "ConfigMap", "local-path-config")["data"]
    paths = [
        {"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [str(cluster.own_place.folder / "volumes")]}
    ]
    data["config.json"] = json.dumps({"nodePathMap": paths})
    data["helperPod.yaml"] = data["helperPod.yaml"].replace("image: busybox", f"image: {images.BUSYBOX}")
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    one(objects, "StorageClass", "local-path")["metadata"]["annotations"] = default
    cluster.apply(objects)
    rolled_out(cluster, "local-path-storage", "deployment/local-path-provisioner")
