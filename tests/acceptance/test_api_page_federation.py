"""The chapter "Service replicas (federation)" of OSCAR's API page, one test for each of its sentences, in its order.

Between real servers and an issuer whose tokens are exchanged for real. What the sentences leave open is in
docs/federation.md, and tested in test_federation.py and test_delegation.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import oidc
from tests.acceptance.calls import ended, submit
from tests.acceptance.test_federation import World, refused, world_on
from tests.federation import grid, replica

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_on(tmp_path_factory.mktemp("page"), "a", "b", "c") as world:
        yield world


def test_federated_replicas_are_managed_through_system_replicas_with_get_post_put_delete(
    world: World,
) -> None:
    world.make("managed", "b")
    a = world.http()
    route = "/system/replicas/managed"
    b, c = replica("b", "managed"), replica("c", "managed", priority=2)
    whole = {"ssl_verify": True, "priority": 0}
    assert a.get(route).json() == {"topology": "tree", "replicas": [whole | b]}
    answer = a.post(route, json={"replicas": [c], "clusters": world.clusters("c")})
    assert (answer.status_code, answer.json()) == (
        200,
        {"topology": "tree", "replicas": [whole | b, whole | c]},
    )
    answer = a.put(route, json={"replicas": [c], "update": [c | {"priority": 5}]})
    assert (answer.status_code, answer.json()["replicas"][1]["priority"]) == (200, 5)
    answer = a.request("DELETE", route, json={"replicas": [c]})
    assert (answer.status_code, answer.json()) == (200, {"topology": "tree", "replicas": [whole | b]})


@pytest.mark.parametrize("topology", ["tree", "mesh"])
def test_updates_apply_to_the_whole_federation_topology(world: World, topology: str) -> None:
    name = f"whole-{topology}"
    world.make(name, "b", topology=topology)
    answer = world.http().post(
        f"/system/replicas/{name}", json={"replicas": [replica("c")], "clusters": world.clusters("c")}
    )
    assert answer.json()["topology"] == topology
    assert world.has("c", name)
    there = [
        each["cluster_id"] for each in world.http("b").get(f"/system/replicas/{name}").json()["replicas"]
    ]
    assert there == ([] if topology == "tree" else ["a", "c"])


def test_federated_services_must_provide_environment_secrets_refresh_token(world: World) -> None:
    body = world.definition("must", "b")
    environments: list[dict[str, Any]] = [{}, {"secrets": {}}, {"secrets": {"refresh_token": ""}}]
    for environment in environments:
        said = refused(world, body | {"environment": environment})
        assert (said["status"], said["field"]) == (400, "environment.secrets.refresh_token")
    made_up = refused(world, body | {"environment": {"secrets": {"refresh_token": "made up"}}})
    assert (made_up["status"], made_up["code"]) == (400, "refresh_token_invalid")
    assert "made up" not in str(made_up)
    # Without a topology nobody asks for one.
    assert (
        world.http().post("/system/services", json=body | {"environment": {}, "federation": {}}).status_code
        == 201
    )


def test_oscar_manager_exchanges_it_for_fresh_oidc_bearer_tokens_when_delegating_jobs(world: World) -> None:
    world.make("fresh", "b")
    a = world.http()
    world.servers["a"].stop()
    world.servers["a"].start()
    a = world.http()
    before = world.issuer.asked[oidc.TOKEN]
    for _ in range(3):
        assert ended(a, "fresh", submit(a, "fresh"))["delegation"]["cluster_id"] == "b"
    # One bearer does for several jobs, until shortly before it ends.
    assert world.issuer.asked[oidc.TOKEN] == before + 1


def test_this_requires_oidc_client_id_and_optionally_oidc_client_secret(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("clients")
    body = world.definition("clients", "b")
    issuer = {"OIDC_ISSUERS": world.issuer.url}
    with grid(folder / "none", "a", **issuer) as one:
        said = refused(World(world.issuer, one), body)
        assert (said["status"], said["field"]) == (400, "OIDC_CLIENT_ID")
        assert "OIDC_CLIENT_ID" in said["message"]
    world.issuer.secret = "the client's own: 100 %"
    try:
        with grid(folder / "without", "a", OIDC_CLIENT_ID=oidc.CLIENT, **issuer) as one:
            said = refused(World(world.issuer, one), body)
            assert (said["status"], said["field"]) == (400, "OIDC_CLIENT_ID")
            assert "invalid_client" in said["message"]
    finally:
        world.issuer.secret = ""
    world.issuer.secret = "plain-secret"
    try:
        secret = {"OIDC_CLIENT_ID": oidc.CLIENT, "OIDC_CLIENT_SECRET": "plain-secret"}
        with grid(folder / "with", "a", **issuer, **secret) as one:
            World(world.issuer, one | {"b": world.servers["b"]}).make("with-secret", "b")
            assert "plain-secret" not in one["a"].log.read_text()
    finally:
        world.issuer.secret = ""


def test_the_token_exchange_uses_the_first_issuer_in_the_list_so_ordering_matters(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("order")
    with oidc.running() as other:
        mine, theirs = world.issuer.url, other.url
        for issuers, works in ((f"{mine},{theirs}", True), (f"{theirs},{mine}", False)):
            body = world.definition("ordered" if works else "unordered", "b")
            before = other.asked[oidc.TOKEN]
            settings = {"OIDC_ISSUERS": issuers, "OIDC_CLIENT_ID": oidc.CLIENT}
            with grid(folder / str(works), "a", **settings) as one:
                answer = World(world.issuer, one).http().post("/system/services", json=body)
            assert (answer.status_code == 201) is works, answer.text
            if not works:
                assert answer.json()["code"] == "refresh_token_invalid"
            assert (other.asked[oidc.TOKEN] == before) is works
