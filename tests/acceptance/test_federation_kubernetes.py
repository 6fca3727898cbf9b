"""A federation of an embedded server and one whose engine is a real Kubernetes, each the other's member.

Both listen where pods reach them, with TLS by a certificate that the servers, the pods and this process trust.
"""

from __future__ import annotations

import base64
import json
import ssl
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import pytest

from tests import computing, oidc, on_cluster, otlp
from tests.acceptance.calls import at, create, ended, jobs, objects, put, submit
from tests.acceptance.test_tls import certificate
from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.federation import NO_ROOM, account, body_of, busy, delegation, eventually, replica
from tests.on_cluster import free_port
from tests.otlp import Receiver, Told
from tests.server import Server, running

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

IMAGE = "localhost/oscar-test/server:trusting"
AUTHORITY = "/etc/oscar-test-authority.pem"
SCRIPT = """echo "begun $JOB_UUID in $0"
env
tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/$JOB_UUID"
"""


@dataclass(slots=True)
class World:
    """`a` is embedded, `k` on Kubernetes."""

    issuer: oidc.Issuer
    servers: dict[str, Server]
    cluster: Cluster
    trusted: ssl.SSLContext
    prefix: str
    """Of the namespaces of k's services."""
    told: Receiver
    """Of both servers' traces."""

    def http(self, name: str) -> httpx2.Client:
        """The administrator's client."""
        server = self.servers[name]
        return httpx2.Client(
            base_url=server.endpoint, auth=(server.user, server.password), timeout=90, verify=self.trusted
        )

    def make(self, at_: str, member: str, **more: Any) -> tuple[str, str]:
        """A star of one server with another; the service's name and its refresh token."""
        name, token = f"f-{uuid.uuid4().hex[:8]}", self.issuer.refresh_token("ann")
        body = {
            "name": name,
            "cluster_id": at_,
            "image": computing.BUSYBOX,
            "script": SCRIPT,
            "log_level": "CRITICAL",
            "memory": "64Mi",
            "input": at(f"{name}/in"),
            "output": at(f"{name}/out"),
            "environment": {"secrets": {"refresh_token": token, "OTHER": "seen"}},
            "federation": {"topology": "star", "members": [replica(member)]},
            "clusters": {member: account(self.servers[member])},
        }
        answer = self.http(at_).post("/system/services", json=body | more)
        assert answer.status_code == 201, answer.text
        return name, token


@pytest.fixture(scope="module")
def world(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("federation")
    cert, key = certificate(folder / "tls", kubernetes.host)
    base = images.server()
    trusting = images.layer({AUTHORITY.removeprefix("/"): (cert.read_bytes(), 0o644)})
    environment = [*base.config["Env"], f"SSL_CERT_FILE={AUTHORITY}"]
    config = {**base.config, "Env": environment}
    kubernetes.load(replace(base, name=IMAGE, layers=[*base.layers, trusting], config=config))
    prefix = on_cluster.new_prefix()
    with pytest.MonkeyPatch.context() as patch, oidc.running() as issuer, otlp.receiver() as told:
        patch.setenv("SSL_CERT_FILE", str(cert))
        common = {
            "OSCAR_TLS_CERT": str(cert),
            "OSCAR_TLS_KEY": str(key),
            "OSCAR_FEDERATION_ALLOWED_HOSTS": kubernetes.host,
            "OIDC_ISSUERS": issuer.url,
            "OIDC_CLIENT_ID": oidc.CLIENT,
            "RESOURCE_MANAGER_ENABLE": "true",
            "OSCAR_LOGIN_FAILURES": "0",
            **told.settings(),
        }
        ports = (free_port(kubernetes.host) for _ in range(2))
        a = {
            "OSCAR_HOST": kubernetes.host,
            "OSCAR_SERVICE_PORT": str(next(ports)),
            "OSCAR_S3_PORT": str(next(ports)),
            "OSCAR_MAX_RUNNING_JOBS": "1",
        }
        k = on_cluster.settings(kubernetes, prefix, OSCAR_IMAGE=IMAGE, MINIO_TLS_VERIFY="false")
        with running(folder / "a", **common, **a) as embedded, running(folder / "k", **common, **k) as other:
            trusted = ssl.create_default_context(cafile=str(cert))
            yield World(issuer, {"a": embedded, "k": other}, kubernetes, trusted, prefix, told)
    for name in kubernetes.kubectl("get", "namespaces", "-o", "name").split():
        if name.startswith(f"namespace/{prefix}"):
            kubernetes.kubectl("delete", name, "--wait=false")


def everything(world: World) -> str:
    """All objects of k's tenants, their Secrets decoded."""
    found = world.cluster.get("pods,jobs,secrets,configmaps,deployments", "-A")["items"]
    ours = [each for each in found if each["metadata"]["namespace"].startswith(world.prefix)]
    decoded = [
        base64.b64decode(value).decode(errors="replace")
        for each in ours
        if each["kind"] == "Secret"
        for value in (each.get("data") or {}).values()
    ]
    return json.dumps(ours) + "\n".join(decoded)


def above(span: Told, spans: list[Told]) -> list[str]:
    """The names of a span and of those above it."""
    by_id = {each.span: each for each in spans}
    names = [span.name]
    while span.parent in by_id:
        span = by_id[span.parent]
        names.append(span.name)
    return names


def test_an_upload_to_the_embedded_server_runs_in_a_pod_and_its_result_comes_home(world: World) -> None:
    name, token = world.make("a", "k", cpu="0.05")
    a, k = world.http("a"), world.http("k")
    following = create(a, "true", image=computing.BUSYBOX, input=at(f"{name}/out"))
    assert k.get(f"/system/services/{name}").json()["annotations"]["oscar.grycap/origin-cluster"] == "a"
    seen = ""
    with busy(a):
        put(a, name, "in/x", b"some words")
        [job] = eventually(lambda: jobs(a, name), lambda found: len(found) == 1)
        eventually(lambda: delegation(a, name, job).get("cluster_id"), "k")
        while "finish_time" not in a.get(f"/system/jobs/{name}/{job}", params={"wait": "1s"}).json():
            seen += everything(world)
        found = ended(a, name, job)
    assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "k"), found
    assert body_of(a, name, f"out/{job}") == b"SOME WORDS"
    assert objects(k, name) == []
    log = a.get(f"/system/logs/{name}/{job}").text
    assert log.count(f"begun {job}") == 1
    assert "OTHER=seen" in log
    # It ran there, once, and nothing that k gave to the cluster had the refresh token.
    assert k.get(f"/system/jobs/{name}/{job}").json()["status"] == "Succeeded"
    assert job in seen
    for text in (seen, log, k.get(f"/system/services/{name}").text):
        assert token not in text
    # What the result starts at home is below the job in the cluster.
    [next_] = eventually(lambda: jobs(a, following), lambda found: len(found) == 1)
    assert ended(a, following, next_)["status"] == "Succeeded"
    whole = world.told.job(next_)
    way = ["job", "upload", "job", "POST /job/{serviceName}", "delegation", "job", "upload"]
    world.told.until(whole.trace, lambda spans: above(whole, spans) == way)


def test_a_job_without_room_in_the_cluster_runs_at_the_embedded_server(world: World) -> None:
    name, token = world.make("k", "a", cpu=NO_ROOM)
    k, a = world.http("k"), world.http("a")
    put(k, name, "in/y", b"more words")
    [job] = eventually(lambda: jobs(k, name), lambda found: len(found) == 1)
    found = ended(k, name, job)
    assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "a"), found
    assert body_of(k, name, f"out/{job}") == b"MORE WORDS"
    assert objects(a, name) == []
    assert k.get(f"/system/logs/{name}/{job}").text.count(f"begun {job}") == 1
    assert token not in everything(world)
    for server in world.servers.values():
        assert token not in server.log.read_text(errors="replace")
        for path in server.data.rglob("*"):
            if path.is_file():
                assert token.encode() not in path.read_bytes(), path


@pytest.mark.long
def test_a_member_that_is_a_cluster_goes_down_in_the_middle_and_comes_back(world: World) -> None:
    script = SCRIPT.replace("env\n", "sleep 15\n")
    name, _ = world.make("a", "k", cpu="0.05", script=script)
    a = world.http("a")
    with busy(a):
        job = submit(a, name)
        eventually(lambda: a.get(f"/system/jobs/{name}/{job}").json()["status"], "Running", within=180)
        world.servers["k"].kill()
        world.servers["k"].start()
        found = ended(a, name, job)
    assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "k"), found
    assert body_of(a, name, f"out/{job}") == b"{}"
    assert a.get(f"/system/logs/{name}/{job}").text.count("begun") == 1


@pytest.mark.long
def test_policies_read_the_clusters_figures(world: World) -> None:
    a = world.http("a")
    with busy(a):
        for policy in ("load-based", "topsis"):
            members = {"topology": "star", "delegation": policy, "members": [replica("k")]}
            name, _ = world.make("a", "k", cpu="0.05", federation=members)
            found = ended(a, name, submit(a, name))
            assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "k"), found
            assert found["delegation"]["policy"] == policy


def test_a_job_whose_pod_finds_no_place_is_taken_back_and_moved(world: World) -> None:
    """The rescheduler alone: the cluster has the pod already, and has not begun it."""
    k = world.servers["k"]
    before = dict(k.settings)
    more = {
        "RESOURCE_MANAGER_ENABLE": "false",
        "RESCHEDULER_ENABLE": "true",
        "RESCHEDULER_INTERVAL": "1",
        "RESCHEDULER_THRESHOLD": "3600",
    }
    k.stop()
    k.settings = before | more
    k.start()
    try:
        http = world.http("k")
        members = {"topology": "star", "rescheduler_threshold": 5, "members": [replica("a")]}
        name, _ = world.make("k", "a", cpu="900", federation=members)
        waits, _ = world.make("k", "a", cpu="900")
        job, stays = submit(http, name), submit(http, waits)
        eventually(
            lambda: http.get(f"/system/jobs/{name}/{job}").json()["state"], lambda state: state != "queued"
        )
        found = ended(http, name, job)
        assert (found["status"], found["delegation"]["cluster_id"], found["attempt"]) == (
            "Succeeded",
            "a",
            1,
        ), found
        assert body_of(http, name, f"out/{job}") == b"{}"
        # Its Job is removed from the cluster; that of a service that lets its jobs wait longer is there still.
        eventually(lambda: world.cluster.get("jobs", "-A", "-l", f"oscar_service={name}")["items"], [])
        assert len(world.cluster.get("jobs", "-A", "-l", f"oscar_service={waits}")["items"]) == 1
        assert http.get(f"/system/jobs/{waits}/{stays}").json()["state"] == "submitted"
        http.delete(f"/system/logs/{waits}", params={"all": "true"})
    finally:
        k.stop()
        k.settings = before
        k.start()
