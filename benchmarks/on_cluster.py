"""The real server (`oscar serve`) on this machine with a cluster as its engine, for parts of the benchmark.

Needs a cluster (`KUBECONFIG`; `tests.cluster` starts one) whose nodes have the server's image, and reach this machine
at `OSCAR_TEST_HOST`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from oscar.compute.kubernetes import kinds
from oscar.compute.kubernetes.cluster import Cluster, config
from tests import server
from tests.pods import SERVER


def there() -> bool:
    """Whether there is a cluster."""
    return bool(os.environ.get("KUBECONFIG") and os.environ.get("OSCAR_TEST_HOST"))


@contextlib.asynccontextmanager
async def platform(**more: str) -> AsyncIterator[tuple[Cluster, server.Server]]:
    """The cluster and a server with it for the length of a block; its namespace is removed after it.

    Args:
        more: settings.
    """
    kubeconfig, host = os.environ["KUBECONFIG"], os.environ["OSCAR_TEST_HOST"]
    cluster = Cluster(config(Path(kubeconfig)))
    namespace = f"oscar-bench-{uuid.uuid4().hex[:6]}"
    settings = {
        "OSCAR_ENGINE": "kubernetes",
        "KUBECONFIG": kubeconfig,
        "OSCAR_HOST": host,
        "OSCAR_IMAGE": SERVER,
        "OSCAR_SERVICES_NAMESPACE": namespace,
        "KUEUE_ENABLE": "false",
        **more,
    }
    try:
        with (
            tempfile.TemporaryDirectory(prefix="oscar-kubernetes-") as place,
            server.running(Path(place) / "data", **settings) as at,
        ):
            yield cluster, at
    finally:
        await cluster.delete(kinds.NAMESPACE, namespace)
        await cluster.close()
