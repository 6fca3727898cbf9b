"""What services have in a real cluster beside their jobs: volumes, mounts, direct routes, and more replicas under load.

Claims are bound by a real provisioner, mounts are made by rclone in real pods, Contour's Envoy takes requests at the
node's address, and the cluster's own autoscaler scales by what metrics-server measures.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests import computing, on_cluster
from tests.cluster.addons import contour
from tests.cluster.cluster import Cluster
from tests.on_cluster import accepted, ended, http, objects, service, until
from tests.server import Server

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(900)]

HOST = "services.oscar.test"
WEB = """mkdir -p /tmp/www/system/services/$OSCAR_SERVICE_NAME/exposed
echo "stripped $OSCAR_SERVICE_NAME" > /tmp/www/index.html
echo "whole $OSCAR_SERVICE_NAME" > /tmp/www/system/services/$OSCAR_SERVICE_NAME/exposed/index.html
exec httpd -f -p "$OSCAR_BIND_ADDRESS:$PORT" -h /tmp/www
"""


@pytest.fixture(scope="module")
def running(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    kubernetes.add("storage", "contour", "metrics")
    with on_cluster.running(
        kubernetes,
        tmp_path_factory.mktemp("services"),
        OSCAR_VOLUME_ACCESS_MODE="ReadWriteOnce",
        EXPOSED_SERVICES_ROUTE_KIND="httproute",
        HTTPROUTE_GATEWAY_NAME="contour",
        HTTPROUTE_GATEWAY_NAMESPACE=contour.NAMESPACE,
        INGRESS_HOST=HOST,
    ) as started:
        yield started


@pytest.fixture
def client(running: Server) -> Iterator[httpx2.Client]:
    with http(running) as client:
        yield client


def entrance(kubernetes: Cluster, scheme: str = "https") -> httpx2.Client:
    """At the node's address, by the host's name."""

    def named(request: httpx2.Request) -> None:
        request.extensions = {**request.extensions, "sni_hostname": HOST}

    return httpx2.Client(
        base_url=f"{scheme}://{kubernetes.node}",
        headers={"Host": HOST},
        event_hooks={"request": [named]},
        verify=ssl.create_default_context(cafile=str(kubernetes.authority)),
        timeout=30,
    )


def log_of(client: httpx2.Client, name: str) -> list[str]:
    """The log of a new job, which must succeed."""
    job_id = accepted(client, name)
    found = ended(client, name, job_id)
    text = client.get(f"/system/logs/{name}/{job_id}").text
    assert found["status"] == "Succeeded", f"{found}\n{text}"
    return text.splitlines()


def test_a_volume_is_shared_by_jobs_and_workers_and_outlives_the_service(
    client: httpx2.Client, kubernetes: Cluster
) -> None:
    volume = f"v{uuid.uuid4().hex[:8]}"
    script = 'echo line >> "$OSCAR_VOLUME_PATH/lines"; wc -l < /data/lines'
    block = {"name": volume, "mount_path": "/data"}
    first = service(
        client,
        script,
        volume=block | {"size": "200Mi", "lifecycle_policy": "retain"},
        image=computing.USER_1001,
    )
    assert log_of(client, first) == ["1"]
    assert log_of(client, first) == ["2"]
    answer = client.post(f"/run/{first}", content="{}")
    assert (answer.status_code, answer.text.strip()) == (200, "3")
    (claim,) = [each for each in kubernetes.get("pvc", "-A")["items"] if volume in each["metadata"]["name"]]
    assert claim["status"]["phase"] == "Bound"
    second = service(client, script, volume=block)
    assert log_of(client, second) == ["4"]
    for name in (first, second):
        assert client.delete(f"/system/services/{name}").status_code == 204
    assert client.delete(f"/system/volumes/{volume}").status_code == 204
    until(lambda: volume not in kubernetes.kubectl("get", "pvc", "-A", "-o", "name"))


def test_a_bucket_is_mounted_for_jobs_and_workers(
    running: Server, client: httpx2.Client, tmp_path: Path
) -> None:
    bucket = f"b{uuid.uuid4().hex[:8]}"
    mount = {"storage_provider": "minio.default", "path": f"{bucket}/shared"}
    script = """cat "$OSCAR_MOUNT_PATH/note"
echo "made by $JOB_UUID" > "$OSCAR_MOUNT_PATH/made-$(basename "$EVENT_FILE" 2>/dev/null || echo x)"
id -u"""
    name = service(client, script, mount=mount, image=computing.USER_1001)
    store = objects(running, client)
    (tmp_path / "note").write_text("some words\n")
    store.fput_object(bucket, "shared/note", str(tmp_path / "note"))
    assert log_of(client, name)[-2:] == ["some words", "1001"]
    made = [each.object_name for each in store.list_objects(bucket, "shared/made")]
    assert len(made) == 1
    assert store.get_object(bucket, made[0]).read().startswith(b"made by ")
    store.remove_object(bucket, made[0])
    answer = client.post(f"/run/{name}", content="{}")
    assert answer.status_code == 200, answer.text
    assert "some words" in answer.text
    # It is stored before the call is answered.
    assert [each.object_name for each in store.list_objects(bucket, "shared/made")]


def path(name: str) -> str:
    return f"/system/services/{name}/exposed/"


def shows(outside: httpx2.Client, at: str, text: str) -> None:
    """Wait until an address answers with that."""
    until(lambda: asked(outside, at) == (200, text))


def asked(outside: httpx2.Client, at: str) -> tuple[int, str]:
    """What the entrance answers: Envoy doesn't even listen while nothing is published, which is as good as 404."""
    try:
        answer = outside.get(at)
    except httpx2.ConnectError:
        return 404, ""
    return answer.status_code, answer.text


def exposed(client: httpx2.Client, **expose: Any) -> str:
    return service(client, WEB, expose={"api_port": 8080, "max_scale": 1, **expose})


def test_a_service_is_reached_past_the_platform_by_an_http_route(
    client: httpx2.Client, kubernetes: Cluster
) -> None:
    stripped, whole = exposed(client), exposed(client, rewrite_target=True)
    for scheme in ("http", "https"):
        with entrance(kubernetes, scheme) as outside:
            shows(outside, path(stripped), f"stripped {stripped}\n")
            shows(outside, path(whole), f"whole {whole}\n")
    # The platform's own way is there as well.
    assert client.get(path(stripped)).text == f"stripped {stripped}\n"
    with entrance(kubernetes) as outside:
        assert client.post(f"/system/services/{stripped}/stop").is_success
        until(lambda: asked(outside, path(stripped))[0] == 503)
        assert client.post(f"/system/services/{stripped}/start").is_success
        shows(outside, path(stripped), f"stripped {stripped}\n")
        for name in (stripped, whole):
            assert client.delete(f"/system/services/{name}").status_code == 204
        until(lambda: asked(outside, path(stripped))[0] == 404)


def test_what_asks_for_a_log_in_has_no_way_past_the_platform(
    client: httpx2.Client, kubernetes: Cluster
) -> None:
    name = exposed(client, set_auth=True)
    shape = client.get(f"/system/services/{name}").json()
    until(lambda: client.get(path(name), auth=(name, shape["token"])).text == f"stripped {name}\n")
    assert client.get(path(name), auth=("x", "wrong")).status_code == 401
    with entrance(kubernetes) as outside:
        assert asked(outside, path(name))[0] == 404
    assert not kubernetes.get("httproutes", "-A", "-l", f"oscar_service={name}")["items"]


def test_a_service_is_reached_by_an_ingress(
    kubernetes: Cluster, running: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (
        on_cluster.running(
            kubernetes,
            tmp_path_factory.mktemp("ingress"),
            EXPOSED_SERVICES_ROUTE_KIND="ingress",
            OSCAR_INGRESS_CLASS=contour.CLASS,
            INGRESS_HOST=HOST,
        ) as server,
        http(server) as client,
        entrance(kubernetes, "http") as outside,
    ):
        whole = exposed(client, rewrite_target=True)
        shows(outside, path(whole), f"whole {whole}\n")
        # Only the class nginx can take the prefix from a path: nobody gets a page of another address.
        stripped = exposed(client)
        until(lambda: client.get(path(stripped)).text == f"stripped {stripped}\n")
        assert asked(outside, path(stripped))[0] == 404


def test_replicas_are_added_by_what_is_measured(client: httpx2.Client, kubernetes: Cluster) -> None:
    busy = "(while :; do :; done) &\n" + WEB
    name = service(
        client,
        busy,
        cpu="50m",
        expose={"api_port": 8080, "min_scale": 1, "max_scale": 2, "cpu_threshold": 50},
    )

    def autoscaler() -> dict[str, Any]:
        found = kubernetes.get("hpa", "-A", "-l", f"oscar_service={name}")["items"]
        return dict(found[0]) if found else {}

    assert autoscaler()["spec"]["maxReplicas"] == 2
    until(lambda: autoscaler()["status"].get("desiredReplicas") == 2, 600)
    until(lambda: client.get(f"/system/services/{name}/deployment").json()["active_instances"] == 2)
    assert client.post(f"/system/services/{name}/stop").is_success
    until(lambda: not autoscaler())
    until(lambda: client.get(f"/system/services/{name}/deployment").json()["active_instances"] == 0)


def test_the_use_of_nodes_is_what_metrics_server_says(client: httpx2.Client, kubernetes: Cluster) -> None:
    until(lambda: kubernetes.try_kubectl("top", "nodes", "--no-headers").returncode == 0)
    (node,) = client.get("/system/status").json()["cluster"]["nodes"]
    measured = kubernetes.kubectl("top", "nodes", "--no-headers").split()
    assert node["name"] == measured[0]
    # Measured anew every 15 seconds, and memory moves little.
    seen = float(measured[3].removesuffix("Mi")) * 2**20
    assert abs(node["memory"]["usage_bytes"] - seen) < 0.3 * seen, (node, measured)


def doctor(running: Server, **more: str) -> tuple[int, dict[str, dict[str, str]]]:
    """What `oscar doctor` says with a server's settings: its code and its findings by topic."""
    done = subprocess.run(
        [sys.executable, "-m", "oscar", "doctor", "--json"],
        check=False,
        capture_output=True,
        text=True,
        env=running.environment() | more,
    )
    return done.returncode, {each["topic"]: each for each in json.loads(done.stdout)}


def test_the_doctor_says_what_the_cluster_can(running: Server, kubernetes: Cluster) -> None:
    code, found = doctor(running)
    levels = {topic: each["level"] for topic, each in found.items()}
    assert code == 0, found
    expected = (
        "engine kubernetes",
        "rights",
        "image",
        "own store",
        "nodes",
        "metrics-server",
        "routes",
        "volumes",
    )
    assert {topic: levels.get(topic) for topic in expected} == dict.fromkeys(expected, "ok"), found
    assert "1 of 1" in found["nodes"]["words"]
    wrong = {
        "HTTPROUTE_GATEWAY_NAME": "nothing",
        "OSCAR_VOLUME_STORAGE_CLASS": "nothing",
        "OSCAR_IMAGE": "",
        "OSCAR_S3_INTERNAL_ENDPOINT": "http://localhost:9000",
        "SERVERLESS_BACKEND": "knative",
    }
    code, found = doctor(running, **wrong)
    assert code == 1
    missing = {topic for topic, each in found.items() if each["level"] == "missing"}
    has_knative = kubernetes.try_kubectl("get", "ksvc", "-A").returncode == 0
    assert missing == {"image", "own store", "routes"} | (set() if has_knative else {"knative"}), found
    assert found["volumes"]["level"] == "warning"


def test_the_doctor_names_the_rights_that_an_account_lacks(
    running: Server, kubernetes: Cluster, tmp_path: Path
) -> None:
    name = f"few-{uuid.uuid4().hex[:8]}"
    kubernetes.kubectl("create", "serviceaccount", name)
    kubernetes.kubectl(
        "create", "clusterrolebinding", name, "--clusterrole=view", f"--serviceaccount=default:{name}"
    )
    config = yaml.safe_load(kubernetes.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": kubernetes.kubectl("create", "token", name).strip()}
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    code, found = doctor(running, KUBECONFIG=str(tmp_path / "config"))
    kubernetes.kubectl("delete", "clusterrolebinding", name)
    kubernetes.kubectl("delete", "serviceaccount", name)
    assert code == 1
    assert found["rights"]["level"] == "missing"
    for words in ("create jobs.batch", "list secrets", "create namespaces", "list nodes"):
        assert words in found["rights"]["words"], found["rights"]
    assert "list pods," not in found["rights"]["words"]
    # What it may not look at is said to be so.
    assert found["nodes"]["level"] == "warning"
