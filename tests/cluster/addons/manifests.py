"""Manifests of add-ons as documents: read, with images made here, and changed in place. Called by the add-ons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.cluster import Cluster, until
from tests.cluster.images import Image, layer

Object = dict[str, Any]


def read(*files: Path) -> list[Object]:
    """All documents of files."""
    return [found for file in files for found in yaml.safe_load_all(file.read_text()) if found]


def kustomized(cluster: Cluster, folder: Path) -> list[Object]:
    """What `kubectl kustomize` makes of a folder."""
    return [found for found in yaml.safe_load_all(cluster.kubectl("kustomize", str(folder))) if found]


def _containers(value: Any) -> Iterator[Object]:
    if isinstance(value, dict):
        if isinstance(value.get("image"), str) and isinstance(value.get("name"), str):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for inside in value:
            yield from _containers(inside)


def use_images(objects: Iterable[Object], images: Mapping[str, str]) -> None:
    """Give containers images by their names; each must have one."""
    for found in objects:
        for container in _containers(found):
            container["image"] = images[container["name"]]
            container["imagePullPolicy"] = "IfNotPresent"


def one(objects: Iterable[Object], kind: str, name: str) -> Object:
    """The object of a kind and name."""
    return next(it for it in objects if it["kind"] == kind and it["metadata"]["name"] == name)


def container(owner: Object, name: str) -> Object:
    """A container of a Deployment or the like."""
    spec = owner["spec"]["template"]["spec"]
    found: Object = next(
        it for it in [*spec["containers"], *spec.get("initContainers", [])] if it["name"] == name
    )
    return found


def program_image(folder: Path, program: str, user: int = 65532) -> Image:
    """An image of one static program in /bin; the folder of the part names the version."""
    part, _, version = folder.name.rpartition("-")
    made = layer({f"bin/{program}": ((folder / program).read_bytes(), 0o755), "tmp/": (b"", 0o1777)})
    config = {"Entrypoint": [program], "User": str(user)}
    return Image(f"localhost/oscar-test/{part}-{program}:{version}", [made], config)


def define(cluster: Cluster, definitions: Iterable[Object]) -> None:
    """Apply definitions of resources and wait until the API server serves them."""
    made = list(definitions)
    cluster.apply(made)
    names = {it["metadata"]["name"] for it in made}

    def served() -> bool:
        found = {
            it["metadata"]["name"]
            for it in cluster.get("crd")["items"]
            for condition in it.get("status", {}).get("conditions") or []
            if condition["type"] == "Established" and condition["status"] == "True"
        }
        return names <= found

    until(served, "the resources are served")


def rolled_out(cluster: Cluster, namespace: str, *names: str) -> None:
    """Wait until Deployments or DaemonSets (`deployment/x`) are as they should be."""
    for name in names:
        cluster.kubectl("rollout", "status", name, f"--namespace={namespace}", "--timeout=240s")
