"""Removing what an installation has left in a cluster, without an engine: called by `oscar demo` at its end."""

from __future__ import annotations

from pathlib import Path

from oscar.compute.kubernetes.cluster import Cluster, config
from oscar.compute.kubernetes.kinds import NAMESPACE


async def remove_namespace(kubeconfig: Path | None, name: str) -> None:
    """Have a namespace removed with all that is in it. Silent if absent.

    Raises:
        ClusterError: it is not.
    """
    cluster = Cluster(config(kubeconfig))
    try:
        await cluster.delete(NAMESPACE, name)
    finally:
        await cluster.close()
