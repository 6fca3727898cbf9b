"""A federation of three real servers, each with its own store, and one real Keycloak: members are entered by tokens.

Functions run in containers, as OIDC demands. No cluster has an account of another.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import real_keycloak
from tests.federation import account, body_of, eventually, grid, replica
from tests.real_keycloak import FEDERATION, FEDERATION_SECRET, GROUP, Keycloak
from tests.server import Server

pytestmark = [pytest.mark.real, pytest.mark.containers, pytest.mark.timeout(900)]

SCRIPT = 'echo "begun $JOB_UUID"; env; cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/$JOB_UUID"'


@dataclass(slots=True)
class World:
    """Keycloak, the servers, and an image for functions."""

    keycloak: Keycloak
    servers: dict[str, Server]
    image: str
    withdrawn: str = ""

    def http(self, name: str = "a", user: str = "ann") -> httpx2.Client:
        """A user's client of a server, by a fresh token."""
        token = self.keycloak.token("lab", user)
        headers = {"Authorization": f"Bearer {token}"}
        return httpx2.Client(base_url=self.servers[name].endpoint, headers=headers, timeout=120)

    def make(self, name: str, *members: str, **more: Any) -> dict[str, Any]:
        """Create a federated service of ann's on `a`; its definition."""
        topology, policy = more.pop("topology", "star"), more.pop("delegation", "static")
        token = self.keycloak.refresh_token("lab", "ann")
        body: dict[str, Any] = {
            "name": name,
            "cluster_id": "a",
            "image": self.image,
            "script": SCRIPT,
            "log_level": "CRITICAL",
            "cpu": "999" if policy == "static" else "0.1",
            "input": [{"storage_provider": "minio", "path": f"{name}/in"}],
            "output": [{"storage_provider": "minio", "path": f"{name}/out"}],
            "environment": {"secrets": {"refresh_token": token}},
            "federation": {
                "topology": topology,
                "delegation": policy,
                "members": [replica(member) for member in members],
            },
            "clusters": {member: {"endpoint": self.servers[member].endpoint} for member in members},
        }
        answer = self.http().post("/system/services", json=body | more)
        assert answer.status_code == 201, answer.text
        return body | more

    def ended(self, name: str, service: str, job: str) -> dict[str, Any]:
        """A job when it has ended."""
        for _ in range(10):
            answer = self.http(name).get(f"/system/jobs/{service}/{job}", params={"wait": "30s"})
            found: dict[str, Any] = answer.json()
            if "finish_time" in found:
                return found
        raise AssertionError(found)

    def submit(self, service: str, name: str = "a") -> str:
        """Post a job of ann's."""
        answer = self.http(name).post(f"/job/{service}", content=b'{"a": 1}')
        assert answer.status_code == 201, answer.text
        return str(answer.json()["job_id"])


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, container_engine: str, busybox_image: str
) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("grid")
    try:
        real_keycloak.folder()
    except real_keycloak.KeycloakMissing as missing:
        pytest.skip(str(missing))
    with real_keycloak.running(folder / "keycloak") as keycloak:
        settings = {
            "OSCAR_ENGINE": container_engine,
            "OIDC_ENABLE": "true",
            "OIDC_ISSUERS": f"{keycloak.issuer('lab')},{keycloak.issuer('egi')}",
            "OIDC_GROUPS": GROUP,
            "OSCAR_OIDC_AUDIENCE": "oscar",
            "OIDC_CLIENT_ID": FEDERATION,
            "OIDC_CLIENT_SECRET": FEDERATION_SECRET,
            "OSCAR_LOGIN_FAILURES": "0",
            "OSCAR_MAX_RUNNING_JOBS": "2",
        }
        with grid(folder, "a", "b", "c", **settings) as servers:
            yield World(keycloak, servers, busybox_image)


@pytest.mark.parametrize("topology", ["star", "mesh"])
def test_members_let_the_origin_in_by_the_owners_token(world: World, topology: str) -> None:
    name = f"by-token-{topology}"
    world.make(name, "b", "c", topology=topology)
    for server in "bc":
        copy = world.http(server).get(f"/system/services/{name}").json()
        assert copy["annotations"]["oscar.grycap/origin-service"] == name
        assert "refresh_token" not in copy["environment"]["secrets"]
    job = world.submit(name)
    found = world.ended("a", name, job)
    assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "b")
    assert body_of(world.http(), name, f"out/{job}") == b'{"a": 1}'
    assert "begun" in world.http().get(f"/system/logs/{name}/{job}").text
    # It is hers there as well, and nobody else's.
    assert world.http("b").get(f"/system/jobs/{name}/{job}").status_code == 200
    assert world.http("b", "bob").get(f"/system/services/{name}").status_code == 404


def test_in_a_mesh_a_copy_gives_jobs_away_with_a_token_of_its_origin(world: World) -> None:
    world.make("round", "b", "c", topology="mesh")
    job = world.submit("round", "b")
    found = world.ended("b", "round", job)
    assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "a")
    assert body_of(world.http(), "round", f"out/{job}") == b'{"a": 1}'


@pytest.mark.parametrize("policy", ["random", "load-based", "topsis"])
def test_policies_ask_members_by_the_owners_token(world: World, policy: str) -> None:
    name = f"asks-{policy}"
    world.make(name, "b", "c", delegation=policy)
    blocker = f"blocks-{policy}"
    body = {"name": blocker, "image": world.image, "script": "exec sleep 600", "cpu": "0.1"}
    assert world.http().post("/system/services", json=body).status_code == 201
    for _ in range(2):
        world.submit(blocker)
    try:
        job = world.submit(name)
        found = world.ended("a", name, job)
        assert found["delegation"]["policy"] == policy
        assert found["delegation"]["cluster_id"] in {"b", "c"}
    finally:
        assert world.http().delete(f"/system/logs/{blocker}", params={"all": "true"}).status_code == 204


def test_a_change_at_a_copy_goes_to_its_origin(world: World) -> None:
    world.make("sent-on", "b")
    body = {"replicas": [replica("c")], "clusters": {"c": {"endpoint": world.servers["c"].endpoint}}}
    answer = world.http("b").post("/system/replicas/sent-on", json=body)
    assert answer.status_code == 200, answer.text
    assert [each["cluster_id"] for each in answer.json()["replicas"]] == ["b", "c"]
    assert world.http("c").get("/system/services/sent-on").status_code == 200
    # Not for whoever sees the copy: the origin knows whose it is.
    assert world.http("b", "bob").post("/system/replicas/sent-on", json=body).status_code == 404


def test_members_come_change_and_go_by_the_owners_token_also_one_that_is_down(world: World) -> None:
    body = world.make("comes", "b")
    a, route = world.http(), "/system/federation/comes"
    c = replica("c", "comes-c", priority=3)
    clusters = {"c": {"endpoint": world.servers["c"].endpoint}}

    def priorities(said: httpx2.Response) -> dict[str, int]:
        assert said.status_code == 200, said.text
        return {each["cluster_id"]: each["priority"] for each in said.json()["members"]}

    assert priorities(a.post(route, json={"members": [c], "clusters": clusters})) == {"b": 0, "c": 3}
    assert world.http("c").get("/system/services/comes-c").status_code == 200
    assert priorities(a.put(route, json={"members": [c], "update": [c | {"priority": 1}]})) == {
        "b": 0,
        "c": 1,
    }
    # One that is down is told when it is back.
    world.servers["c"].kill()
    body["environment"] = {"secrets": {"refresh_token": ""}}
    body["federation"]["members"] = a.get(route).json()["members"]
    body["clusters"] |= clusters
    assert a.put("/system/services", json=body | {"script": "echo newer"}).status_code == 204
    assert [each["cluster_id"] for each in a.get(route).json()["pending"]] == ["c"]
    assert world.http("b").get("/system/services/comes").json()["script"] == "echo newer"
    world.servers["c"].start()
    eventually(lambda: "pending" in world.http().get(route).json(), False)
    assert world.http("c").get("/system/services/comes-c").json()["script"] == "echo newer"
    assert priorities(world.http().request("DELETE", route, json={"members": [c], "delete": True})) == {
        "b": 0
    }
    eventually(lambda: world.http("c").get("/system/services/comes-c").status_code, 404)


def test_without_a_topology_jobs_go_by_the_account_of_the_cluster(world: World) -> None:
    there = {"name": "there-already", "image": world.image, "script": 'echo "begun $JOB_UUID"', "cpu": "0.1"}
    b = world.servers["b"]
    with httpx2.Client(base_url=b.endpoint, auth=(b.user, b.password), timeout=120) as admin:
        assert admin.post("/system/services", json=there).status_code == 201
        body = {
            "name": "bare",
            "cluster_id": "a",
            "image": world.image,
            "script": "echo here",
            "cpu": "999",
            "replicas": [replica("b", "there-already")],
            "clusters": {"b": {"endpoint": b.endpoint}},
        }
        assert world.http().post("/system/services", json=body).status_code == 201
        assert world.http().get("/system/federation/bare").json()["topology"] == "none"
        # The caller's own token is not used: it would end before a long job does.
        job = world.submit("bare")
        found = world.ended("a", "bare", job)
        assert (found["status"], "cluster_id" in found["delegation"]) == ("Succeeded", False), found
        assert "no credentials" in found["delegation"]["problem"]
        body["clusters"] = {"b": account(b)}
        assert world.http().put("/system/services", json=body).status_code == 204
        job = world.submit("bare")
        found = world.ended("a", "bare", job)
        assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "b"), found
        assert admin.get(f"/system/jobs/there-already/{job}").json()["user"] == "cluster_admin"


def test_a_member_killed_in_the_middle_of_a_delegation(world: World) -> None:
    world.make("killed", "b", script=f"sleep 4; {SCRIPT}")
    job = world.submit("killed")
    eventually(lambda: world.http().get(f"/system/jobs/killed/{job}").json()["status"], "Running")
    world.servers["b"].kill()
    world.servers["b"].start()
    found = world.ended("a", "killed", job)
    assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "b")
    assert world.http("b").get(f"/system/logs/killed/{job}").text.count("begun") == 1


def test_a_member_without_the_owners_group_is_told_apart(world: World) -> None:
    token = world.keycloak.refresh_token("lab", "eve")
    body = {
        "name": "outsider",
        "image": world.image,
        "script": "true",
        "environment": {"secrets": {"refresh_token": token}},
        "federation": {"topology": "star", "members": [replica("b")]},
        "clusters": {"b": {"endpoint": world.servers["b"].endpoint}},
        "cluster_id": "a",
    }
    server = world.servers["a"]
    answer = httpx2.post(
        f"{server.endpoint}/system/services", json=body, auth=(server.user, server.password), timeout=120
    )
    assert (answer.status_code, answer.json()["field"]) == (401, "clusters.b")
    assert (
        httpx2.get(
            f"{server.endpoint}/system/services/outsider", auth=(server.user, server.password), timeout=60
        ).status_code
        == 404
    )


def test_a_withdrawn_token_leaves_the_job_here(world: World) -> None:
    body = world.make("withdrawn", "b", delegation="random")
    world.keycloak.withdraw("lab", body["environment"]["secrets"]["refresh_token"])
    blocker = {"name": "holds", "image": world.image, "script": "exec sleep 600", "cpu": "0.1"}
    assert world.http().post("/system/services", json=blocker).status_code == 201
    for _ in range(2):
        world.submit("holds")
    time.sleep(8)  # until the access token that was exchanged last has ended: time is what is waited for
    server = world.servers["a"]
    # By the service's own token: there is no caller whose bearer could be used instead.
    token = world.http().get("/system/services/withdrawn").json()["token"]
    answer = httpx2.post(
        f"{server.endpoint}/job/withdrawn",
        content=json.dumps({}).encode(),
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
    )
    job = answer.json()["job_id"]
    said = eventually(
        lambda: world.http().get(f"/system/jobs/withdrawn/{job}").json(),
        lambda found: found.get("delegation", {}).get("problem"),
    )
    assert "refresh token" in said["delegation"]["problem"] or "no member" in said["delegation"]["problem"]
    assert world.http("b").get("/system/logs/withdrawn").json()["jobs"] == {}
    assert world.http().delete("/system/logs/holds", params={"all": "true"}).status_code == 204
    found = world.ended("a", "withdrawn", job)
    assert found["status"] == "Succeeded"


def test_no_token_is_in_a_log_or_in_a_data_folder(world: World) -> None:
    body = world.make("planted", "b", topology="mesh")
    token = body["environment"]["secrets"]["refresh_token"]
    job = world.submit("planted")
    world.ended("a", "planted", job)
    assert token not in world.http().get(f"/system/logs/planted/{job}").text
    for server in world.servers.values():
        log = server.log.read_text(errors="replace")
        assert token not in log
        assert FEDERATION_SECRET not in log
        for path in server.data.rglob("*"):
            if path.is_file():
                assert token.encode() not in path.read_bytes(), path
