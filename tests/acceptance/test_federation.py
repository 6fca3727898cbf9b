"""Stars and meshes of real servers: making, changing and removing members, with an issuer whose tokens are exchanged.

The servers run processes, so none of them takes OIDC tokens: members let the origin in by accounts. With a real
Keycloak, in containers and by tokens: test_federation_keycloak.py.
"""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import requests
from oscar_python.client import Client

from tests import oidc
from tests.acceptance.calls import at, client, create, ended, jobs, objects, put, submit
from tests.federation import (
    NO_ROOM,
    account,
    body_of,
    busy,
    delegation,
    eventually,
    grid,
    line,
    replica,
    store_at,
)
from tests.s3_server import free_port
from tests.server import Server

pytestmark = pytest.mark.timeout(600)

SCRIPT = """echo "begun $JOB_UUID"
env | sort
cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/$JOB_UUID"
"""


@dataclass(slots=True)
class World:
    """Servers and an issuer."""

    issuer: oidc.Issuer
    servers: dict[str, Server]

    def http(self, name: str = "a") -> httpx2.Client:
        """The administrator's client of a server."""
        return client(self.servers[name])

    def clusters(self, *names: str) -> dict[str, Any]:
        """As a service describes them."""
        return {name: account(self.servers[name]) for name in names}

    def definition(
        self, name: str, *members: str | dict[str, Any], topology: str = "star", **more: Any
    ) -> dict[str, Any]:
        """A federated service of the server `a`."""
        listed = [replica(member) if isinstance(member, str) else member for member in members]
        facts = {
            "name": name,
            "cluster_id": "a",
            "image": "none",
            "script": SCRIPT,
            "log_level": "CRITICAL",
            "cpu": NO_ROOM,
            "input": at(f"{name}/in"),
            "output": at(f"{name}/out"),
            "environment": {"secrets": {"refresh_token": self.issuer.refresh_token("ann"), "OTHER": "seen"}},
            "federation": {"topology": topology, "members": listed},
            "clusters": self.clusters(
                *{member["cluster_id"] for member in listed if member["cluster_id"] in "bc"}
            ),
        }
        return facts | more

    def make(self, name: str, *members: str | dict[str, Any], **more: Any) -> dict[str, Any]:
        """Create one; its definition."""
        body = self.definition(name, *members, **more)
        answer = self.http().post("/system/services", json=body)
        assert answer.status_code == 201, answer.text
        return body

    def has(self, server: str, service: str) -> bool:
        """Whether a server has that service."""
        return self.http(server).get(f"/system/services/{service}").status_code == 200


@contextmanager
def world_on(folder: Path, *names: str, **more: str) -> Iterator[World]:
    with oidc.running() as issuer, oidc.running() as other:
        settings = {"OIDC_ISSUERS": f"{issuer.url},{other.url}", "OIDC_CLIENT_ID": oidc.CLIENT}
        with grid(folder, *names, **(settings | more)) as servers:
            yield World(issuer, servers)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_on(tmp_path_factory.mktemp("federation"), "a", "b", "c") as world:
        yield world


# --- topologies -------------------------------------------------------------------------------------------


def test_a_star_has_copies_whose_results_come_home(world: World) -> None:
    world.make("home", "b", replica("c", "home-c", priority=1))
    a, b, c = world.http("a"), world.http("b"), world.http("c")
    assert world.has("b", "home")
    assert world.has("c", "home-c")
    copy = b.get("/system/services/home").json()
    assert copy["token"] == a.get("/system/services/home").json()["token"]
    assert copy["annotations"]["oscar.grycap/origin-cluster"] == "a"
    for http, name in ((b, "home"), (c, "home-c")):
        assert http.get(f"/system/replicas/{name}").json() == {"topology": "tree", "replicas": []}
    put(a, "home", "in/x", b"from a")
    put(b, "home", "in/y", b"from b")
    [at_a] = eventually(lambda: jobs(a, "home"), lambda found: len(found) == 1)
    [at_b] = eventually(lambda: set(jobs(b, "home")) - {at_a}, lambda found: len(found) == 1)
    assert ended(a, "home", at_a)["delegation"]["cluster_id"] == "b"
    assert "delegation" not in ended(b, "home", at_b)
    # One place for results, each server its own for inputs; no keys of a's store are anywhere on b.
    assert body_of(a, "home", f"out/{at_a}") == b"from a"
    assert body_of(a, "home", f"out/{at_b}") == b"from b"
    assert objects(b, "home") == ["in/y"]
    assert "begun" in a.get(f"/system/logs/home/{at_a}").text


def test_the_public_python_client_changes_members(world: World) -> None:
    world.make("by-client", "b")
    server = world.servers["a"]
    options = {"cluster_id": "a", "endpoint": server.endpoint, "ssl": False}
    client = Client(options | {"user": server.user, "password": server.password})

    def listed() -> list[tuple[str, int]]:
        said = client.get_federation("by-client").json()
        assert said["topology"] == "star"
        return [(each["cluster_id"], each["priority"]) for each in said["members"]]

    assert listed() == [("b", 0)]
    c = replica("c", "by-client", priority=2)
    assert client.add_federation_members("by-client", [c], clusters=world.clusters("c")).status_code == 200
    assert listed() == [("b", 0), ("c", 2)]
    assert world.has("c", "by-client")
    changed = client.update_federation_members("by-client", [c], [c | {"priority": 7}])
    assert changed.status_code == 200
    assert listed() == [("b", 0), ("c", 7)]
    assert client.remove_federation_members("by-client", [c], delete=True).status_code == 200
    assert listed() == [("b", 0)]
    assert not world.has("c", "by-client")
    with pytest.raises(requests.HTTPError):
        client.remove_federation_members("none-of-that-name", [c])


def test_in_a_mesh_everybody_has_everybody(world: World) -> None:
    world.make("mesh", "b", replica("c", "mesh-c", priority=1), topology="mesh")
    said = world.http("c").get("/system/replicas/mesh-c").json()
    assert said["topology"] == "mesh"
    assert [(each["cluster_id"], each["service_name"], each["priority"]) for each in said["replicas"]] == [
        ("a", "mesh", 0),
        ("b", "mesh", 0),
    ]
    # What a copy would have no room for goes to the origin: without tokens of its own nobody lets it in here.
    c = world.http("c")
    job = submit(c, "mesh-c")
    found = ended(c, "mesh-c", job)
    assert "bearer token" in found["delegation"]["problem"]
    assert "out/" + job in objects(world.http("a"), "mesh")
    answer = c.post("/system/federation/mesh/token", headers={"X-Federation-Key": "x"})
    assert answer.status_code == 401


def test_a_private_bucket_of_a_user_gets_its_results_back(world: World) -> None:
    world.make("own", "b", isolation_level="USER", allowed_users=["dan"])
    a = world.http("a")
    [bucket] = a.get("/system/services/own").json()["bucket_list"]
    put(a, bucket, "in/secret", b"of dan")
    [job] = eventually(lambda: jobs(a, "own"), lambda found: len(found) == 1)
    assert ended(a, "own", job)["delegation"]["cluster_id"] == "b"
    assert f"out/{job}" in objects(a, bucket)
    assert objects(a, "own") == []


# --- creating ---------------------------------------------------------------------------------------------


def left(world: World, name: str) -> list[str]:
    """Where something of a service is."""
    found = [server for server in world.servers if world.has(server, name)]
    return found + [
        f"bucket of {s}" for s in "abc" if world.http(s).get(f"/system/buckets/{name}").status_code == 200
    ]


def refused(world: World, body: dict[str, Any]) -> dict[str, Any]:
    answer = world.http().post("/system/services", json=body)
    assert answer.status_code >= 400, answer.text
    said: dict[str, Any] = answer.json()
    return {"status": answer.status_code} | said


def test_a_member_with_another_service_of_that_name_undoes_it_all(world: World) -> None:
    create(world.http("c"), "echo mine", name="taken")
    said = refused(world, world.definition("taken", "b", "c"))
    assert (said["status"], said["code"]) == (409, "conflict")
    assert '"c"' in said["message"]
    eventually(lambda: left(world, "taken"), ["c"])
    assert world.http("c").get("/system/services/taken").json()["script"] == "echo mine"


def test_a_member_that_can_t_be_reached_undoes_it_all(world: World) -> None:
    gone = {"endpoint": f"http://127.0.0.1:{free_port()}", "auth_user": "u", "auth_password": "p"}
    body = world.definition("gone", "b", replica("x"))
    said = refused(world, body | {"clusters": body["clusters"] | {"x": gone}})
    assert (said["status"], said["code"], said["field"]) == (502, "member_error", "clusters.x")
    eventually(lambda: left(world, "gone"), [])
    # Nothing stands in the way of another try.
    world.make("gone", "b")
    assert left(world, "gone")[:2] == ["a", "b"]


def test_a_member_that_does_not_take_the_account_undoes_it_all(world: World) -> None:
    body = world.definition("wrong", "b", "c")
    body["clusters"]["c"]["auth_password"] = "not this one"
    said = refused(world, body)
    assert (said["status"], said["field"]) == (401, "clusters.c")
    assert "not this one" not in str(said)
    eventually(lambda: left(world, "wrong"), [])


def test_what_a_definition_lacks_is_named(world: World) -> None:
    body = world.definition("lacks", "b")
    no_token = body | {"environment": {"secrets": {}}}
    assert refused(world, no_token)["field"] == "environment.secrets.refresh_token"
    blank = body | {"environment": {"secrets": {"refresh_token": ""}}}
    assert refused(world, blank)["field"] == "environment.secrets.refresh_token"
    no_cluster = body | {"clusters": {}}
    assert refused(world, no_cluster)["field"] == "clusters.b"
    elsewhere = body | {"clusters": {"b": {"endpoint": "https://elsewhere.test"}}}
    said = refused(world, elsewhere)
    assert (said["field"], "OSCAR_FEDERATION_ALLOWED_HOSTS" in said["fix"]) == ("clusters.b.endpoint", True)
    itself = body | {"federation": {"topology": "star", "members": [replica("a", "lacks")]}}
    assert refused(world, itself | {"clusters": world.clusters("a")})["field"] == "federation.members"
    assert left(world, "lacks") == []


# --- changing ---------------------------------------------------------------------------------------------


def test_members_are_added_changed_and_removed_in_the_whole_topology(world: World) -> None:
    world.make("grow", "b", topology="mesh")
    a = world.http("a")
    answer = a.post(
        "/system/federation/grow", json={"members": [replica("c")], "clusters": world.clusters("c")}
    )
    assert answer.status_code == 200, answer.text
    assert [each["cluster_id"] for each in answer.json()["members"]] == ["b", "c"]
    assert "pending" not in answer.json()
    assert world.has("c", "grow")
    # All members know of it.
    there = world.http("b").get("/system/federation/grow").json()["members"]
    assert [each["cluster_id"] for each in there] == ["a", "c"]
    # Adding what is there changes nothing, in any spelling.
    again = a.post("/system/replicas/grow", json={"replicas": [replica("c", "grow") | {"type": "OSCAR"}]})
    assert [each["cluster_id"] for each in again.json()["replicas"]] == ["b", "c"]
    changed = a.put(
        "/system/replicas/grow",
        json={"replicas": [replica("c", "grow")], "update": [replica("c", "grow", priority=7)]},
    )
    assert [(each["cluster_id"], each["priority"]) for each in changed.json()["replicas"]] == [
        ("b", 0),
        ("c", 7),
    ]
    there = world.http("b").get("/system/federation/grow").json()["members"]
    assert [(each["cluster_id"], each["priority"]) for each in there] == [("a", 0), ("c", 7)]
    gone = a.request("DELETE", "/system/federation/grow", json={"members": [replica("b", "grow")]})
    assert [each["cluster_id"] for each in gone.json()["members"]] == ["c"]
    assert not world.has("b", "grow")
    there = world.http("c").get("/system/federation/grow").json()["members"]
    assert [each["cluster_id"] for each in there] == ["a"]


def test_a_member_is_replaced_by_another(world: World) -> None:
    world.make("swap", "b")
    answer = world.http().put(
        "/system/federation/swap",
        json={
            "members": [replica("b", "swap")],
            "update": [replica("c", "swap-c")],
            "clusters": [{"cluster_id": "c", **account(world.servers["c"])}],
        },
    )
    assert [each["service_name"] for each in answer.json()["members"]] == ["swap-c"], answer.text
    assert (world.has("b", "swap"), world.has("c", "swap-c")) == (False, True)


def test_bad_changes_are_refused(world: World) -> None:
    world.make("still", "b")
    a = world.http()
    before = a.get("/system/federation/still").json()
    for method, body, status, field in (
        ("POST", {}, 400, "members"),
        ("POST", {"members": []}, 400, "members"),
        ("POST", {"members": [{"type": "ftp", "cluster_id": "x"}]}, 400, "members[0].type"),
        ("POST", {"members": "b"}, 400, "members"),
        ("POST", {"members": [replica("unknown")]}, 400, "clusters.unknown"),
        ("PUT", {"members": [replica("b", "still")]}, 400, "update"),
        ("PUT", {"members": [replica("b", "still")], "update": [replica("b")] * 2}, 400, "update"),
        ("PUT", {"members": [replica("x")], "update": [replica("b")]}, 404, "members"),
        ("DELETE", {"members": [replica("x")]}, 404, "members"),
        ("DELETE", {"members": [replica("b", "other")]}, 404, "members"),
    ):
        answer = a.request(method, "/system/federation/still", json=body)
        assert (answer.status_code, answer.json().get("field")) == (status, field), (
            method,
            body,
            answer.text,
        )
    assert a.get("/system/federation/still").json() == before


def test_an_update_of_the_service_reaches_all_members(world: World) -> None:
    body = world.make("fresh", "b", "c")
    body["environment"] = {"secrets": {"refresh_token": "", "OTHER": ""}}
    assert (
        world.http().put("/system/services", json=body | {"script": "echo new", "cpu": "2"}).status_code
        == 204
    )
    for name in "bc":
        found = world.http(name).get("/system/services/fresh").json()
        assert (found["script"], found["cpu"]) == ("echo new", "2")


def test_a_copy_is_changed_at_its_origin_only(world: World) -> None:
    world.make("kept", "b")
    b = world.http("b")
    for method, path, body in (
        ("POST", "/system/replicas/kept", {"replicas": [replica("c")]}),
        ("DELETE", "/system/federation/kept", {"members": [replica("c")]}),
        ("PUT", "/system/services", {"name": "kept", "image": "none", "script": "echo mine"}),
    ):
        answer = b.request(method, path, json=body)
        assert answer.status_code == 409, answer.text
        assert '"kept" of the cluster "a"' in answer.json()["message"]
        assert world.servers["a"].endpoint in answer.json()["message"]
    assert b.get("/system/services/kept").json()["script"] == SCRIPT


def test_two_changes_at_once_lose_nothing(world: World) -> None:
    world.make("both", "b")
    a = world.http()
    endpoints = [{"type": "endpoint", "url": f"http://127.0.0.1:{port}/x"} for port in range(9001, 9007)]

    def post(endpoint: dict[str, Any]) -> int:
        with world.http() as http:
            return http.post("/system/federation/both", json={"members": [endpoint]}).status_code

    with ThreadPoolExecutor(3) as pool:
        statuses = list(pool.map(post, endpoints))
    urls = {each.get("url") for each in a.get("/system/federation/both").json()["members"]} - {None}
    assert urls == {each["url"] for each, status in zip(endpoints, statuses, strict=True) if status == 200}
    assert 200 in statuses


def test_removing_the_service_removes_its_copies(world: World) -> None:
    world.make("ends", "b", "c")
    assert world.http().delete("/system/services/ends").status_code == 204
    assert [name for name in "abc" if world.has(name, "ends")] == []


def test_a_result_that_a_member_stores_again_is_stored_and_starts_others_once(
    world: World, tmp_path: Path
) -> None:
    """As when the member is killed behind the upload, before it has noted that."""
    world.make("again-home", "b")
    a = world.http()
    following = create(a, "true", input=at("again-home/out"))
    stored_twice(world.servers["b"], a, "again-home", following, tmp_path)


def stored_twice(member: Server, a: httpx2.Client, service: str, following: str, folder: Path) -> None:
    first, second = folder / "first", folder / "second"
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    store_at(member, service, "a", ("out/x", first, "j-1"), ("out/x", second, "j-1"))
    eventually(lambda: len(jobs(a, following)), 1)
    assert body_of(a, service, "out/x") == b"first"
    # Another job's result is another one.
    store_at(member, service, "a", ("out/x", second, "j-2"))
    eventually(lambda: len(jobs(a, following)), 2)
    assert body_of(a, service, "out/x") == b"second"


# --- defects ----------------------------------------------------------------------------------------------


def test_defect_12_a_foreign_service_is_never_changed_or_removed(world: World) -> None:
    """B 12: DELETE removed whatever had the name, on the cluster that was asked as well."""
    world.make("twelve", "b")
    a, b = world.http("a"), world.http("b")
    create(a, "echo local", name="twelve-local")
    gone = {"members": [replica("b", "twelve")], "delete": True}
    # Meanwhile somebody has put a service of his own in the copy's place.
    assert b.delete("/system/services/twelve").status_code == 204
    create(b, "echo foreign", name="twelve")
    assert a.request("DELETE", "/system/federation/twelve", json=gone).status_code == 200
    assert b.get("/system/services/twelve").json()["script"] == "echo foreign"
    answer = a.request(
        "DELETE",
        "/system/federation/twelve-local",
        json={"members": [replica("a", "twelve-local")], "delete": True},
    )
    assert answer.status_code == 404
    assert world.has("a", "twelve-local")
    # Nor is it overwritten: the member is pending until the name is free.
    said = a.post("/system/federation/twelve", json=gone | {"members": [replica("b", "twelve")]}).json()
    [pending] = said["pending"]
    assert (pending["cluster_id"], pending["change"]) == ("b", "apply")
    assert "no copy of this one" in pending["problem"]
    assert b.get("/system/services/twelve").json()["script"] == "echo foreign"


def test_defect_12_a_copy_that_is_gone_is_made_again(world: World) -> None:
    """B 12: an update of what is not there yet becomes a create."""
    body = world.make("again", "b")
    assert world.http("b").delete("/system/services/again").status_code == 204
    body["environment"] = {"secrets": {"refresh_token": "", "OTHER": ""}}
    assert world.http().put("/system/services", json=body).status_code == 204
    assert world.has("b", "again")


def test_defect_15_no_script_sees_the_refresh_token(world: World) -> None:
    """B 15: it was in the environment of every job, by the Secret that jobs import."""
    body = world.make("fifteen", "b")
    token = body["environment"]["secrets"]["refresh_token"]
    a = world.http()
    job = submit(a, "fifteen")
    assert ended(a, "fifteen", job)["status"] == "Succeeded"
    log = a.get(f"/system/logs/fifteen/{job}").text
    assert "OTHER=seen" in log
    plain = create(
        a,
        "env; cat /oscar/config/*",
        environment={"secrets": {"refresh_token": "planted-plain", "OTHER": "seen"}},
    )
    here = submit(a, plain)
    assert ended(a, plain, here)["status"] == "Succeeded"
    log += a.get(f"/system/logs/{plain}/{here}").text + a.post(f"/run/{plain}").text
    assert log.count("OTHER=seen") == 3
    assert token not in log
    assert "planted-plain" not in log
    for name, server in world.servers.items():
        assert token not in world.http(name).get("/system/services/fifteen").text
        assert token not in server.log.read_text(errors="replace")
        for path in server.data.rglob("*"):
            if path.is_file():
                assert token.encode() not in path.read_bytes(), path


# --- tokens -----------------------------------------------------------------------------------------------


def test_a_withdrawn_token_leaves_jobs_here_and_says_why(tmp_path: Path) -> None:
    with world_on(tmp_path, "a", "b", OSCAR_MAX_RUNNING_JOBS="1") as world:
        world.issuer.lives = 2
        body = world.make("withdrawn", "b", cpu="0.1")
        world.issuer.refresh.clear()
        a = world.http()
        with busy(a):
            withdrawn(world, body)


def withdrawn(world: World, body: dict[str, Any]) -> None:
    a = world.http()
    time.sleep(2)  # until the token that was exchanged last has ended: time is what is waited for
    job = submit(a, "withdrawn")
    said = eventually(lambda: delegation(a, "withdrawn", job), lambda found: found.get("problem"))
    assert "does not take the refresh token" in said["problem"]
    assert a.get(f"/system/jobs/withdrawn/{job}").json()["state"] in {"queued", "delegating"}
    assert jobs(world.http("b"), "withdrawn") == {}
    # A new token, and it goes on; it would also have, had a place become free here.
    fresh = world.issuer.refresh_token("ann")
    body["environment"] = {"secrets": {"refresh_token": fresh, "OTHER": ""}}
    assert a.put("/system/services", json=body).status_code == 204
    assert ended(a, "withdrawn", job)["delegation"]["cluster_id"] == "b"


def test_a_token_that_is_replaced_at_each_exchange_is_kept(tmp_path: Path) -> None:
    with world_on(tmp_path, "a", "b") as world:
        world.issuer.rotates, world.issuer.lives = True, 1
        body = world.make("rotated", "b")
        first = body["environment"]["secrets"]["refresh_token"]
        a = world.http()
        for _ in range(3):
            job = submit(a, "rotated")
            assert ended(a, "rotated", job)["delegation"]["cluster_id"] == "b"
            time.sleep(1)  # until the token has ended: time is what is waited for
        assert first not in world.issuer.refresh
        assert world.issuer.asked[oidc.TOKEN] >= 3
        world.servers["a"].stop()
        world.servers["a"].start()
        a = world.http()
        assert ended(a, "rotated", submit(a, "rotated"))["delegation"]["cluster_id"] == "b"
        [newest] = world.issuer.refresh
        for path in world.servers["a"].data.rglob("*"):
            if path.is_file():
                assert newest.encode() not in path.read_bytes(), path


# --- members that are down --------------------------------------------------------------------------------


def test_a_member_that_is_down_is_told_when_it_is_back(tmp_path: Path) -> None:
    with world_on(tmp_path, "a", "b", "c") as world:
        body = world.make("late", "b", "c")
        a = world.http()
        world.servers["c"].kill()
        body["environment"] = {"secrets": {"refresh_token": "", "OTHER": ""}}
        answer = a.put("/system/services", json=body | {"script": "echo newer"})
        assert answer.status_code == 204
        assert "c: not told yet" in answer.headers["x-oscar-warnings"]
        # Who could be told has been.
        assert world.http("b").get("/system/services/late").json()["script"] == "echo newer"
        said = a.get("/system/federation/late").json()
        [pending] = said["pending"]
        assert (pending["cluster_id"], pending["change"]) == ("c", "apply")
        assert "can't be reached" in pending["problem"]
        # It is not forgotten when the origin goes down as well.
        world.servers["a"].kill()
        world.servers["a"].start()
        world.servers["c"].start()
        a = world.http()
        eventually(lambda: "pending" in a.get("/system/federation/late").json(), False)
        assert world.http("c").get("/system/services/late").json()["script"] == "echo newer"
        # And removing it.
        world.servers["c"].kill()
        gone = a.request("DELETE", "/system/replicas/late", json={"replicas": [replica("c", "late")]}).json()
        assert [each["cluster_id"] for each in gone["replicas"]] == ["b"]
        assert [(each["cluster_id"], each["change"]) for each in gone["pending"]] == [("c", "remove")]
        world.servers["c"].start()
        eventually(lambda: world.has("c", "late"), False)
        eventually(lambda: "pending" in a.get("/system/federation/late").json(), False)
        # A service that is deleted while a member is down.
        world.servers["b"].kill()
        assert a.delete("/system/services/late").status_code == 204
        world.servers["b"].start()
        eventually(lambda: world.has("b", "late"), False)


def test_defect_12_a_member_that_never_answers_holds_nobody_up_and_is_told_later(world: World) -> None:
    """B 12: upstream had no bound, and answered 200 with a text when a member was not told."""
    body = world.make("mute", "b", "c")
    a = world.http()
    world.servers["c"].stop()
    try:
        # Connections are taken here, and nobody reads them.
        with socket.create_server(("127.0.0.1", int(world.servers["c"].endpoint.rpartition(":")[2]))):
            body["environment"] = {"secrets": {"refresh_token": "", "OTHER": ""}}
            answer = a.put("/system/services", json=body | {"script": "echo newer"})
            assert answer.status_code == 204, answer.text
            assert "c: not told yet" in answer.headers["x-oscar-warnings"]
            assert world.http("b").get("/system/services/mute").json()["script"] == "echo newer"
            [pending] = a.get("/system/federation/mute").json()["pending"]
            assert (pending["cluster_id"], pending["change"]) == ("c", "apply")
    finally:
        world.servers["c"].start()
    eventually(lambda: "pending" in a.get("/system/federation/mute").json(), False)
    assert world.http("c").get("/system/services/mute").json()["script"] == "echo newer"


# --- many -------------------------------------------------------------------------------------------------


def check_once(world: World, service: str, given: list[str], names: str) -> Counter[str]:
    """Each job ran exactly once, in one place, and its output is in the origin's bucket; how many ran where."""
    a = world.http()
    told: dict[str, Any] = {}
    for job in given:
        told[job] = ended(a, service, job)
        assert told[job]["status"] == "Succeeded", told[job]
    outputs = [key for key in objects(a, service) if key.startswith("out/")]
    assert sorted(outputs) == sorted(f"out/{job}" for job in given)
    places: dict[str, list[str]] = {job: [] for job in given}
    for name in names:
        with world.http(name) as http:
            for job in jobs(http, service):
                # The origin shows the log of the member that has the job as its own.
                if name == "a" and "cluster_id" in told[job].get("delegation", {}):
                    continue
                log = http.get(f"/system/logs/{service}/{job}").text
                places[job] += [name] * log.count("begun")
    assert {job: where for job, where in places.items() if len(where) != 1} == {}
    return Counter(where for [where] in places.values())


@pytest.mark.real  # by itself, when nothing runs beside it: three servers and a hundred scripts fill a machine
@pytest.mark.timeout(600)
def test_a_hundred_jobs_run_exactly_once_and_come_home(tmp_path: Path) -> None:
    with world_on(tmp_path, "a", "b", "c", JOB_LISTING_LIMIT="1000") as world:
        world.make(
            "hundred",
            "b",
            "c",
            federation={"topology": "star", "delegation": "random", "members": [replica("b"), replica("c")]},
            cpu="0.1",
            script=SCRIPT.replace("env | sort\n", ""),
        )
        a = world.http()
        # No room at the origin: all its places are taken.
        with busy(a, jobs=8):
            given = [
                submit(a, "hundred", content=json.dumps({"n": number}).encode()) for number in range(100)
            ]
            where = check_once(world, "hundred", given, "abc")
        assert {"b", "c"} <= set(where)


def with_faults(folder: Path, *, count: int, batch: int, say: Callable[[str], None]) -> None:
    """So many jobs over three servers, with faults all the time.

    After each batch one of the servers is killed with -9, and `b` is reached by a line that loses answers behind the
    requests.
    """
    begun, kills, jobs_given = time.monotonic(), Counter[str](), list[str]()
    with (
        world_on(folder, "a", "b", "c", JOB_LISTING_LIMIT="5000") as world,
        line(world.servers["b"]) as lossy,
    ):
        world.make(
            "faults",
            "b",
            "c",
            federation={"topology": "mesh", "delegation": "random", "members": [replica("b"), replica("c")]},
            clusters={"b": account(world.servers["b"], endpoint=lossy.url), **world.clusters("c")},
            cpu="0.1",
            script=SCRIPT.replace("env | sort\n", ""),
        )
        chance = random.Random(1)
        with busy(world.http(), jobs=8):
            while len(jobs_given) < count:
                with world.http() as http:
                    jobs_given += [submit(http, "faults") for _ in range(batch)]
                lossy.lose += 2
                name = chance.choice("abc")
                time.sleep(chance.uniform(0.2, 3))  # somewhere in the middle of what goes on
                world.servers[name].kill()
                world.servers[name].start()
                kills[name] += 1
                say(f"{len(jobs_given)} jobs given, {kills.total()} kills, {time.monotonic() - begun:.0f} s")
            where = check_once(world, "faults", jobs_given, "abc")
    figures = {
        "soak": "federation",
        "jobs": len(jobs_given),
        "kills": dict(sorted(kills.items())),
        "answers lost": lossy.lost,
        "ran at": dict(sorted(where.items())),
        "lost": 0,
        "doubled": 0,
        "seconds": round(time.monotonic() - begun),
    }
    say(json.dumps(figures))


@pytest.mark.real
@pytest.mark.timeout(600)
def test_a_hundred_jobs_with_faults_run_exactly_once_and_come_home(tmp_path: Path) -> None:
    with_faults(tmp_path, count=100, batch=20, say=print)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_thousand_jobs_with_faults_run_exactly_once_and_come_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(words: str) -> None:
        with capsys.disabled():
            print(words, flush=True)

    with_faults(tmp_path, count=1000, batch=50, say=say)
