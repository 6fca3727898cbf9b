"""Synchronous calls where Knative's own controllers work: revisions are made, scaled to zero and back, and called.

No ingress layer of Knative's can be had for tests, so its routes are never ready there; the platform calls revisions by
their own Services, which is also what it does elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests import on_cluster
from tests.cluster.cluster import Cluster
from tests.on_cluster import http, service, until
from tests.server import Server

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def running(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    kubernetes.add("knative")
    folder = tmp_path_factory.mktemp("knative")
    with on_cluster.running(
        kubernetes, folder, SERVERLESS_BACKEND="knative", OSCAR_WORKER_WAIT_SECONDS="120"
    ) as started:
        yield started


@pytest.fixture
def client(running: Server) -> Iterator[httpx2.Client]:
    with http(running) as client:
        yield client


def revisions(kubernetes: Cluster, name: str) -> list[dict[str, Any]]:
    """Of a service, the oldest first."""
    found = kubernetes.get("revisions.serving.knative.dev", "-A", "-l", f"serving.knative.dev/service={name}")
    return sorted(found["items"], key=lambda each: str(each["metadata"]["name"]))


def pods(kubernetes: Cluster, name: str) -> list[dict[str, Any]]:
    """Of a service, those that don't end."""
    found = kubernetes.get("pods", "-A", "-l", f"serving.knative.dev/service={name}")["items"]
    return [each for each in found if "deletionTimestamp" not in each["metadata"]]


def called(client: httpx2.Client, name: str, body: str = "{}") -> str:
    answer = client.post(f"/run/{name}", content=body)
    assert answer.status_code == 200, answer.text
    return answer.text.strip()


def test_a_call_is_answered_by_a_revision_that_goes_to_zero_and_comes_back(
    client: httpx2.Client, kubernetes: Cluster
) -> None:
    name = service(client, 'echo "$(cat "$INPUT_FILE_PATH") from $(hostname)"')
    words, _, first = called(client, name, '"hello"').partition(" from ")
    assert words == '"hello"'
    (revision,) = revisions(kubernetes, name)
    (pod,) = pods(kubernetes, name)
    assert first == pod["metadata"]["name"]
    assert pod["metadata"]["labels"]["serving.knative.dev/revision"] == revision["metadata"]["name"]
    assert {"queue-proxy", "oscar-container"} <= {each["name"] for each in pod["spec"]["containers"]}
    until(lambda: not pods(kubernetes, name))
    again = called(client, name, '"hello"')
    assert again.startswith('"hello" from ')
    assert again != f'"hello" from {first}'


def test_calls_at_once_get_pods_of_their_own_up_to_the_limit(
    client: httpx2.Client, kubernetes: Cluster
) -> None:
    name = service(client, "sleep 4; hostname", synchronous={"max_scale": 2})
    called(client, name)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: called(client, name), range(6)))
    assert len(found) == 6
    # One call at a time in a pod: two pods at most, and Knative made the second.
    assert len(set(found)) == 2, found


def test_a_changed_definition_is_another_revision(client: httpx2.Client, kubernetes: Cluster) -> None:
    name = service(client, "echo first", synchronous={"min_scale": 1})
    assert called(client, name) == "first"
    assert pods(kubernetes, name)
    shape = client.get(f"/system/services/{name}").json()
    assert client.put("/system/services", json=shape | {"script": "echo second"}).is_success
    until(lambda: called(client, name) == "second")
    assert len(revisions(kubernetes, name)) == 2
    assert client.delete(f"/system/services/{name}").status_code == 204
    until(lambda: not pods(kubernetes, name))
    assert not kubernetes.get("services.serving.knative.dev", "-A", "-l", f"oscar_service={name}")["items"]


def test_a_call_that_takes_too_long_ends_its_pod_and_the_next_is_answered(client: httpx2.Client) -> None:
    name = service(
        client, 'case "$(cat "$INPUT_FILE_PATH")" in *slow*) sleep 600;; esac; echo quick', timeout="5s"
    )
    assert called(client, name) == "quick"
    start = time.monotonic()
    slow = client.post(f"/run/{name}", content='"slow"')
    assert slow.status_code == 504, slow.text
    assert time.monotonic() - start < 60
    assert called(client, name) == "quick"


def test_a_body_that_is_refused_is_told_as_that(client: httpx2.Client) -> None:
    """Knative's proxy passes on no other status than 200 here: what went wrong is read from the answer itself."""
    name = service(client, "echo fine")
    answer = client.post(f"/run/{name}", content="not base64!")
    assert answer.status_code == 400, answer.text
    assert answer.json()["field"] == "body"
    assert called(client, name) == "fine"


def test_a_failing_script_is_told_with_its_log(client: httpx2.Client) -> None:
    name = service(client, "echo oh dear; exit 3")
    answer = client.post(f"/run/{name}", content="{}")
    assert answer.status_code == 500, answer.text
    assert "oh dear" in answer.text
