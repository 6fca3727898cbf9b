"""What a test cluster may have beside its core, each started only when a test asks for it (`Cluster.add`).

An add-on is the real controller, built here from source, run as pods with the manifests that its own module carries;
what differs from them (image names, folders, replicas) is written in its file here.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import dataclass

from tests.cluster import keeper
from tests.cluster.addons import contour, dns, knative, kserve, kueue, kwok, metrics, minio, storage
from tests.cluster.cluster import Cluster
from tests.cluster.place import root


@dataclass(frozen=True, slots=True)
class Addon:
    """How an add-on is installed, and which others it needs."""

    install: Callable[[Cluster], None]
    needs: tuple[str, ...] = ()


ADDONS = {
    "dns": Addon(dns.install),
    "metrics": Addon(metrics.install),
    "storage": Addon(storage.install),
    "kueue": Addon(kueue.install),
    "knative": Addon(knative.install, ("dns",)),
    "contour": Addon(contour.install, ("dns",)),
    "kwok": Addon(kwok.install),
    "minio": Addon(minio.install),
    "kserve": Addon(kserve.install),
}


def in_order(names: tuple[str, ...]) -> list[str]:
    """The add-ons and what they need, needed ones first.

    Raises:
        ValueError: there is no such add-on.
    """
    found: list[str] = []
    for name in names:
        if name not in ADDONS:
            raise ValueError(f"no add-on {name!r}; there are {', '.join(ADDONS)}")
        found += [it for it in (*in_order(ADDONS[name].needs), name) if it not in found]
    return found


def add(cluster: Cluster, *names: str) -> None:
    """Have add-ons in a cluster, once; processes that ask at the same time wait for each other."""
    place = cluster.own_place
    with (root() / f"{place.name}.adding").open("w") as adding:
        fcntl.flock(adding, fcntl.LOCK_EX)
        there = (keeper.state(place.name) or {})["addons"]
        for name in in_order(names):
            if name not in there:
                ADDONS[name].install(cluster)
                there.append(name)
                keeper.write_state(place.name, addons=there)
