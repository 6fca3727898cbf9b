"""The real program with a cluster as its engine: settings, calls and waits that its acceptance tests share.

The server runs on this machine; pods reach its S3 server at the address that they know this machine by.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from minio import Minio

from tests import computing, server
from tests.cluster import cluster, images
from tests.cluster.cluster import Cluster
from tests.cluster.parts import PartMissing
from tests.server import Server

PATIENCE = 300


@contextmanager
def own_cluster(name: str, extra: Mapping[str, Sequence[str]], *addons: str) -> Iterator[Cluster]:
    """A cluster with these options of its programs, and the server's image; skips where parts are missing."""
    name = f"{name}-{os.getpid()}"
    try:
        made = cluster.up(name, owner=os.getpid(), extra=extra)
        made.load(images.server())
        made.add(*addons)
    except PartMissing as missing:
        pytest.skip(str(missing))
    try:
        yield made
    finally:
        cluster.down(name)


def free_port(host: str) -> int:
    """A port of this machine that is free there."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def settings(kubernetes: Cluster, prefix: str, **more: str) -> dict[str, str]:
    """The settings of a server whose ports stay the same over its starts, as pods know them."""
    return {
        "OSCAR_ENGINE": "kubernetes",
        "OSCAR_HOST": kubernetes.host,
        "OSCAR_SERVICE_PORT": str(free_port(kubernetes.host)),
        "OSCAR_S3_PORT": str(free_port(kubernetes.host)),
        "OSCAR_SERVICES_NAMESPACE": prefix,
        "OSCAR_IMAGE": computing.SERVER_IMAGE,
        "KUBECONFIG": str(kubernetes.kubeconfig),
        **more,
    }


def new_prefix() -> str:
    """Of the namespaces of a new installation."""
    return f"oscar-{uuid.uuid4().hex[:8]}"


@contextmanager
def running(kubernetes: Cluster, folder: Path, **more: str) -> Iterator[Server]:
    """A server for the length of a block, and nothing of it in the cluster afterwards.

    Args:
        kubernetes: the cluster.
        folder: for its data.
        more: settings of it.
    """
    prefix = new_prefix()
    try:
        with server.running(folder / "data", **settings(kubernetes, prefix, **more)) as started:
            yield started
    finally:
        clean(kubernetes, prefix)


def clean(kubernetes: Cluster, prefix: str) -> None:
    """Have an installation's namespaces removed; they go while others go on."""
    for name in kubernetes.kubectl("get", "namespaces", "-o", "name").split():
        if name.startswith(f"namespace/{prefix}"):
            kubernetes.kubectl("delete", name, "--wait=false")


def http(running: Server) -> httpx2.Client:
    """The administrator's client."""
    return httpx2.Client(base_url=running.endpoint, auth=(running.user, running.password), timeout=90)


def service(client: httpx2.Client, script: str, **fields: Any) -> str:
    """Create a service of small pods; its name."""
    name = f"s{uuid.uuid4().hex[:8]}"
    definition = {
        "name": name,
        "image": computing.BUSYBOX,
        "script": script,
        "cpu": "50m",
        "memory": "64Mi",
        "log_level": "CRITICAL",
        **fields,
    }
    answer = client.post("/system/services", json=definition)
    assert answer.status_code == 201, answer.text
    return name


def accepted(client: httpx2.Client, name: str, body: bytes = b"{}") -> str:
    """Post a job; its id."""
    answer = client.post(f"/job/{name}", content=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["job_id"])


def job(client: httpx2.Client, name: str, job_id: str) -> dict[str, Any]:
    """A job as it is now."""
    found = client.get(f"/system/jobs/{name}/{job_id}").json()
    assert isinstance(found, dict)
    return found


def until(true: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Ask until the answer is one; the last answer."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.3)
    return found


def ended(client: httpx2.Client, name: str, job_id: str) -> dict[str, Any]:
    """A job when it has ended."""
    found: dict[str, Any] = until(
        lambda: (its := job(client, name, job_id))["status"] in {"Succeeded", "Failed"} and its
    )
    return found


def objects(running: Server, client: httpx2.Client) -> Minio:
    """A client of the own store, with the administrator's keys."""
    provider = client.get("/system/config").json()["minio_provider"]
    return Minio(
        running.s3.removeprefix("http://"), provider["access_key"], provider["secret_key"], secure=False
    )
