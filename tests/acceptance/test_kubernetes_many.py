"""Hundreds of uploads at once with a cluster as the engine, and a server that is killed meanwhile.

Its nodes are KWOK's: only objects, whose pods end at once and have no log, so that a small machine bears them. What is
counted is that each upload is one job, begun once. Real pods are in `test_kubernetes_faults.py`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import on_cluster
from tests.acceptance.calls import at, jobs
from tests.acceptance.test_kubernetes_faults import Town, settings, succeeded, tell
from tests.cluster.addons import kwok
from tests.cluster.cluster import Cluster
from tests.cluster.place import NODE
from tests.on_cluster import http, job, service, until
from tests.server import Server

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(1800)]

UPLOADS = 900
PATIENT = {
    "kube-controller-manager": (
        # KWOK tells of its nodes late while it is busy with hundreds of pods.
        "--node-monitor-grace-period=1h",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    )
}
LONG = 1200
"""Seconds in which all of them end on a busy machine."""


@pytest.fixture
def own() -> Iterator[Cluster]:
    with on_cluster.own_cluster("many", PATIENT, "minio", "kwok") as made:
        yield made


def test_a_server_that_is_killed_during_hundreds_of_uploads_begins_each_once(
    own: Cluster, tmp_path: Path
) -> None:
    kwok.without_leases(own)
    own.kubectl("cordon", NODE)
    kwok.nodes(own, 3, tainted=False)
    server = Server(tmp_path / "data", settings(own, on_cluster.new_prefix()))
    tell(own, server)
    server.start()
    bucket = f"b{uuid.uuid4().hex[:8]}"
    try:
        with http(server) as client:
            name = service(client, "true", input=at(f"{bucket}/in"), cpu="10m", memory="32Mi")
        with ThreadPoolExecutor(1) as pool:
            uploading = pool.submit(Town(own, server).uploads, bucket, UPLOADS)
            for pause in (1, 3, 10):
                time.sleep(pause)
                server.kill()
                server.start()
            uploading.result()
        with http(server) as client:
            until(lambda: len(succeeded(client, name)) == UPLOADS, LONG)
            made = jobs(client, name)
            assert len(made) == UPLOADS
            assert {job(client, name, each)["attempt"] for each in made} == {1}
            until(lambda: not own.get("jobs", "-A", "-l", f"oscar_service={name}")["items"])
    finally:
        server.end()
