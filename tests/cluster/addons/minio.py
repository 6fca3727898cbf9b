"""MinIO beside the control plane, on the node's address: pods and this machine reach it there, tests stop and start it.

Its program is `minio` for `Cluster.stop`; `start` here starts it again, with other settings when told.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.cluster import parts
from tests.cluster.cluster import Cluster, until
from tests.real_minio import ACCESS_KEY, SECRET_KEY

PORT = 9000


def endpoint(cluster: Cluster) -> str:
    """Its address."""
    return f"http://{cluster.node}:{PORT}"


def start(cluster: Cluster, environment: Mapping[str, str] | None = None) -> None:
    """Start it and wait until it answers; its data are those of before."""
    folder = cluster.own_place.folder / "minio"
    program = parts.printed("minio", "OSCAR_MINIO")
    own = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY, "MINIO_BROWSER": "off"}
    cluster.inside.start(
        "minio",
        [program, "server", "--quiet", f"--address={cluster.node}:{PORT}", str(folder)],
        own | dict(environment or {}),
    )
    until(lambda: ready(cluster), "MinIO is ready")


def ready(cluster: Cluster) -> bool:
    """Whether it takes requests.

    Raises:
        ProgramEnded: it has ended.
    """
    cluster.inside.check("minio")
    try:
        urllib.request.urlopen(f"{endpoint(cluster)}/minio/health/ready", timeout=2).close()
    except (OSError, urllib.error.URLError):
        return False
    return True


def install(cluster: Cluster) -> None:
    """Start it."""
    Path(cluster.own_place.folder / "minio").mkdir(exist_ok=True)
    start(cluster)
