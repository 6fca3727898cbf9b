"""Programs that die around the jobs of a real cluster: kubelet, node, server, one of two servers.

Nothing is lost, no script runs twice, and what can't be known is said. The cluster is this file's own, and quick to
give a node up; MinIO on it is the store, with its webhook to the server.
"""

from __future__ import annotations

import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import minio_world, on_cluster
from tests.acceptance.calls import at, jobs, objects
from tests.cluster.addons import kwok, minio
from tests.cluster.cluster import Cluster
from tests.cluster.place import NODE
from tests.on_cluster import accepted, ended, http, job, service, until
from tests.real_minio import ACCESS_KEY, SECRET_KEY
from tests.server import Server

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(1800)]

PODS = 100
"""Uploads while a server is killed."""
IMPATIENT = {
    "kube-controller-manager": ("--node-monitor-grace-period=25s", "--node-monitor-period=2s"),
    "kube-apiserver": (
        "--default-not-ready-toleration-seconds=6",
        "--default-unreachable-toleration-seconds=6",
    ),
}
LONG = 900
"""Seconds in which all of many jobs end on a busy machine."""


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    with on_cluster.own_cluster("faults", IMPATIENT, "minio") as made:
        yield made


@dataclass(slots=True)
class Town:
    """A server with the cluster as its engine and the cluster's MinIO as its store."""

    cluster: Cluster
    server: Server

    @property
    def s3(self) -> Any:
        """A client of MinIO with its administrator's keys."""
        return minio_world.s3(minio.endpoint(self.cluster))

    def uploads(self, bucket: str, count: int) -> None:
        """Upload objects, four at a time."""
        s3 = self.s3

        def upload(number: int) -> None:
            s3.put_object(Bucket=bucket, Key=f"in/{number:03}", Body=b"x")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(upload, range(count)))


def settings(own: Cluster, prefix: str, **more: str) -> dict[str, str]:
    chosen = on_cluster.settings(own, prefix)
    return chosen | {
        "OSCAR_STORE": "minio",
        "OSCAR_URL": f"http://{own.host}:{chosen['OSCAR_SERVICE_PORT']}",
        "OSCAR_SECRET_KEY": uuid.uuid4().hex,
        "MINIO_ENDPOINT": minio.endpoint(own),
        "MINIO_ACCESS_KEY": ACCESS_KEY,
        "MINIO_SECRET_KEY": SECRET_KEY,
        **more,
    }


def tell(own: Cluster, server: Server) -> None:
    """Have MinIO tell that server of uploads."""
    queue = own.own_place.folder / f"queue-{uuid.uuid4().hex[:8]}"
    own.stop("minio")
    minio.start(own, minio_world.printed(server, queue))


@pytest.fixture
def town(own: Cluster, tmp_path: Path) -> Iterator[Town]:
    prefix = on_cluster.new_prefix()
    server = Server(tmp_path / "data", settings(own, prefix))
    tell(own, server)
    server.start()
    try:
        yield Town(own, server)
    finally:
        server.end()
        on_cluster.clean(own, prefix)


@pytest.fixture
def client(town: Town) -> Iterator[httpx2.Client]:
    with http(town.server) as opened:
        yield opened


def ready(own: Cluster) -> bool:
    """Whether the real node takes pods."""
    found = own.get("node", NODE)
    conditions = {each["type"]: each["status"] for each in found["status"]["conditions"]}
    return conditions["Ready"] == "True" and not found["spec"].get("taints")


BEGUN = 'echo "begun $JOB_UUID"; sleep {seconds}; echo "ended $JOB_UUID"'


def once(client: httpx2.Client, name: str, job_id: str) -> None:
    """A job succeeded by one attempt, whose script began and ended once."""
    found = ended(client, name, job_id)
    assert (found["status"], found["attempt"]) == ("Succeeded", 1), found
    log = client.get(f"/system/logs/{name}/{job_id}").text
    assert (log.count(f"begun {job_id}"), log.count(f"ended {job_id}")) == (1, 1), log


def begun(client: httpx2.Client, name: str, job_id: str) -> bool:
    return f"begun {job_id}" in client.get(f"/system/logs/{name}/{job_id}").text


def test_a_server_that_starts_before_the_cluster_and_minio_waits_for_both(
    own: Cluster, tmp_path: Path
) -> None:
    prefix = on_cluster.new_prefix()
    server = Server(tmp_path / "data", settings(own, prefix))
    queue = minio_world.printed(server, own.own_place.folder / f"queue-{uuid.uuid4().hex[:8]}")
    own.stop("kube-apiserver")
    own.stop("minio")
    try:
        server.start(until="/health")
        with http(server) as client, ThreadPoolExecutor(1) as pool:
            patient = pool.submit(client.get, "/system/services")
            until(lambda: "Kubernetes cluster can't be used" in unready(client))
            own.start("kube-apiserver")
            own.wait_api()
            until(lambda: "object store can't be used" in unready(client))
            minio.start(own, queue)
            until(lambda: client.get("/ready").status_code == httpx2.codes.OK)
            assert patient.result().status_code in {httpx2.codes.OK, httpx2.codes.SERVICE_UNAVAILABLE}
            name = service(client, "echo done", cpu="10m", memory="32Mi")
            assert ended(client, name, accepted(client, name))["status"] == "Succeeded"
        assert server.stop() == 0
    finally:
        server.end()
        on_cluster.clean(own, prefix)


def unready(client: httpx2.Client) -> str:
    """What is in the way of a server that lives."""
    assert client.get("/health").status_code == httpx2.codes.OK
    answer = client.get("/ready")
    assert answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE
    return str(answer.json()["message"])


def test_a_kubelet_that_is_restarted_loses_no_job(town: Town, client: httpx2.Client) -> None:
    name = service(client, BEGUN.format(seconds=15))
    early = [accepted(client, name) for _ in range(4)]
    until(lambda: all(begun(client, name, each) for each in early))
    town.cluster.stop("kubelet", signal.SIGKILL)
    late = [accepted(client, name) for _ in range(4)]
    # Shorter than what the node is given up after: as for an upgrade of the kubelet.
    time.sleep(4)
    town.cluster.start("kubelet")
    for each in [*early, *late]:
        once(client, name, each)
    until(lambda: ready(town.cluster))


def test_a_node_that_is_not_ready_interrupts_its_job_and_others_wait_for_it(
    town: Town, client: httpx2.Client
) -> None:
    # While no node at all is ready, the cluster takes the fault for its own, and gives nothing up.
    town.cluster.add("kwok")
    others = kwok.nodes(town.cluster, 1)
    plain = service(client, BEGUN.format(seconds=600))
    again = service(client, BEGUN.format(seconds=90), retry={"interrupted": True, "delay": 1})
    gone, retried = accepted(client, plain), accepted(client, again)
    until(lambda: begun(client, plain, gone) and begun(client, again, retried))
    town.cluster.inside.send("kubelet", signal.SIGSTOP)
    try:
        until(lambda: not ready(town.cluster))
        shown = client.get("/system/status").json()["cluster"]["nodes"]
        assert [each["status"] for each in shown if each["name"] == NODE] == ["NotReady"], shown
        # Its pods are told to go, which it does not hear: until it does, nobody says that they have ended.
        until(lambda: doomed(town.cluster) >= 2)
        waiting = accepted(client, plain)
        time.sleep(3)
        assert job(client, plain, gone)["status"] == "Running"
        assert job(client, again, retried)["attempt"] == 1
        assert job(client, plain, waiting)["status"] in {"Pending", "Submitted"}
    finally:
        town.cluster.inside.send("kubelet", signal.SIGCONT)
    found = ended(client, plain, gone)
    assert (found["state"], found["reason"], found["attempt"]) == ("interrupted", "lost", 1), found
    assert "evicted" in found["message"], found
    found = ended(client, again, retried)
    assert (found["status"], found["attempt"]) == ("Succeeded", 2), found
    until(lambda: begun(client, plain, waiting))
    assert client.post(f"/system/jobs/{plain}/{waiting}/cancel").is_success
    assert ended(client, plain, waiting)["state"] == "cancelled"
    town.cluster.kubectl("delete", "node", *others)


def doomed(own: Cluster) -> int:
    """How many pods are to go."""
    return sum("deletionTimestamp" in each["metadata"] for each in own.get("pods", "-A")["items"])


def test_a_node_that_never_comes_back_is_removed_with_its_pods(town: Town, client: httpx2.Client) -> None:
    name = service(client, BEGUN.format(seconds=600))
    lost = accepted(client, name)
    until(lambda: begun(client, name, lost))
    town.cluster.stop("kubelet", signal.SIGKILL)
    try:
        town.cluster.kubectl("delete", "node", NODE, "--wait=false")
        found = ended(client, name, lost)
        assert (found["state"], found["reason"], found["attempt"]) == ("interrupted", "lost", 1), found
        assert client.get("/system/status").json()["cluster"]["nodes"] == []
    finally:
        town.cluster.start("kubelet")
        until(lambda: NODE in town.cluster.kubectl("get", "nodes", "-o", "name"))
        until(lambda: ready(town.cluster))
    after = service(client, BEGUN.format(seconds=1))
    once(client, after, accepted(client, after))


def test_a_server_that_is_killed_during_uploads_runs_each_once(town: Town) -> None:
    bucket = f"b{uuid.uuid4().hex[:8]}"
    with http(town.server) as client:
        name = service(
            client,
            BEGUN.format(seconds=1) + '; echo > "$TMP_OUTPUT_DIR/$(basename "$INPUT_FILE_PATH").$JOB_UUID"',
            input=at(f"{bucket}/in"),
            output=at(f"{bucket}/out"),
            cpu="10m",
            memory="32Mi",
        )
    with ThreadPoolExecutor(1) as pool:
        uploading = pool.submit(town.uploads, bucket, PODS)
        for pause in (1, 6, 15):
            time.sleep(pause)
            town.server.kill()
            town.server.start()
        uploading.result()
    with http(town.server) as client:
        until(lambda: len(succeeded(client, name)) == PODS, LONG)
        made = jobs(client, name)
        assert len(made) == PODS
        for each in made:
            once(client, name, each)
        outputs = [key for key in objects(client, bucket) if key.startswith("out/")]
        assert Counter(key.partition(".")[0] for key in outputs) == {f"out/{n:03}": 1 for n in range(PODS)}
        until(lambda: not town.cluster.get("jobs", "-A", "-l", f"oscar_service={name}")["items"])


def succeeded(client: httpx2.Client, name: str) -> list[str]:
    return [each for each, said in jobs(client, name).items() if said["status"] == "Succeeded"]


def test_one_of_two_servers_is_killed_and_the_other_goes_on(
    own: Cluster, tmp_path: Path, postgres_url: str
) -> None:
    prefix, bucket, count = on_cluster.new_prefix(), f"b{uuid.uuid4().hex[:8]}", 40
    shared = settings(own, prefix, OSCAR_DATABASE_URL=postgres_url, OSCAR_PASSWORD=uuid.uuid4().hex)
    ports = {each: str(on_cluster.free_port(own.host)) for each in ("OSCAR_SERVICE_PORT", "OSCAR_S3_PORT")}
    one = Server(tmp_path / "one", shared)
    two = Server(
        tmp_path / "two", shared | ports | {"OSCAR_URL": f"http://{own.host}:{ports['OSCAR_SERVICE_PORT']}"}
    )
    tell(own, two)
    one.start()
    two.start()
    try:
        with http(one) as client:
            name = service(
                client,
                BEGUN.format(seconds=3)
                + '; echo > "$TMP_OUTPUT_DIR/$(basename "$INPUT_FILE_PATH").$JOB_UUID"',
                input=at(f"{bucket}/in"),
                output=at(f"{bucket}/out"),
                cpu="10m",
                memory="32Mi",
            )
            each_follows_the_other(own, one, two)
            removed = exposed_and_removed(own, one, two)
        with ThreadPoolExecutor(1) as pool, http(two) as client:
            uploading = pool.submit(Town(own, two).uploads, bucket, count)
            until(lambda: succeeded(client, name))
            one.kill()
            uploading.result()
            until(lambda: len(succeeded(client, name)) == count, LONG)
            made = jobs(client, name)
            assert len(made) == count
            for each in made:
                once(client, name, each)
            outputs = [key for key in objects(client, bucket) if key.startswith("out/")]
            assert Counter(key.partition(".")[0] for key in outputs) == {
                f"out/{n:03}": 1 for n in range(count)
            }
            until(lambda: not own.get("jobs", "-A", "-l", f"oscar_service={name}")["items"])
        assert not deployed(own, removed), "the other server put it back"
    finally:
        for server in (one, two):
            server.end()
        on_cluster.clean(own, prefix)


def each_follows_the_other(own: Cluster, one: Server, two: Server) -> None:
    """What one is asked to do with a service holds for the warm workers of both, and for their owner's quota."""
    with http(one) as client, http(two) as other:
        calls = service(client, "echo first", owner="ann", cpu="20m", synchronous={"min_scale": 1})
        # A worker that is warm at each, and both count for both.
        until(lambda: (used(one, "ann"), used(two, "ann")) == (40, 40))
        for each in (client, other):
            assert each.post(f"/run/{calls}", content="{}").text == "first\n"
        shape = client.get(f"/system/services/{calls}").json()
        assert client.put("/system/services", json=shape | {"script": "echo second"}).status_code == 204
        until(lambda: other.post(f"/run/{calls}", content="{}").text == "second\n")
        assert other.delete(f"/system/services/{calls}").status_code == 204
        until(lambda: not own.get("pods", "-A", "-l", f"oscar_service={calls}")["items"])
        until(lambda: (used(one, "ann"), used(two, "ann")) == (0, 0))


def exposed_and_removed(own: Cluster, one: Server, two: Server) -> str:
    """A service that one server exposed and the other removed; its name."""
    with http(one) as client, http(two) as other:
        web = service(
            client,
            "mkdir -p /tmp/www; echo hello >/tmp/www/index.html; "
            'exec httpd -f -p "$OSCAR_BIND_ADDRESS:$PORT" -h /tmp/www',
            expose={"api_port": 8080, "max_scale": 1},
        )
        address = f"/system/services/{web}/exposed/"
        for each in (client, other):
            until(lambda each=each: each.get(address).text == "hello\n")  # type: ignore[misc]
        assert other.delete(f"/system/services/{web}").status_code == 204
        until(lambda: not deployed(own, web))
        until(lambda: client.get(address).status_code == 404)
        return web


def deployed(own: Cluster, name: str) -> list[Any]:
    """The Deployments of a service."""
    found: list[Any] = own.get("deployments", "-A", "-l", f"oscar_service={name}")["items"]
    return found


def used(server: Server, user: str) -> int:
    """Millicores that count for a user."""
    with http(server) as client:
        return int(client.get(f"/system/quotas/user/{user}").json()["resources"]["cpu"]["used"])
