"""The cluster of a run of the tests: started by the first test that asks, shared by all of pytest-xdist's workers.

Called by conftest.py. It belongs to the process that the run is (xdist's controller), so that it goes with it whatever
happens. With OSCAR_TEST_KUBECONFIG set it is that cluster, and OSCAR_TEST_HOST and OSCAR_TEST_NODE say this machine's
address as pods see it and a node's; OSCAR_TEST_CLUSTER names one that `python -m tests.cluster up` has started.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from tests.cluster import cluster, keeper
from tests.cluster.place import root


def owner() -> int:
    """The process that the run of the tests is."""
    return os.getppid() if os.environ.get("PYTEST_XDIST_WORKER") else os.getpid()


def get() -> cluster.Cluster:
    """The cluster of this run.

    Raises:
        PartMissing: something it is made of is not here.
    """
    if named := os.environ.get("OSCAR_TEST_CLUSTER"):
        return cluster.need(named)
    given = os.environ.get("OSCAR_TEST_KUBECONFIG")
    if given:
        host, node = (os.environ.get(name, "") for name in ("OSCAR_TEST_HOST", "OSCAR_TEST_NODE"))
        return cluster.Cluster(Path(given), host, node)
    name = f"tests-{owner()}"
    root().mkdir(parents=True, exist_ok=True)
    with (root() / f"{name}.starting").open("w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        return cluster.find(name) or cluster.up(name, owner=owner())


def end() -> None:
    """End it, if a test asked for it; the process that the run is calls this."""
    name = f"tests-{os.getpid()}"
    if keeper.name_lock(name).exists():
        cluster.down(name)
    (root() / f"{name}.starting").unlink(missing_ok=True)
