"""The real program with a real Keycloak: two realms are two issuers, one of them tells groups by UserInfo only.

Functions run in containers, as OIDC demands. Tests stand in an order: the last ones rotate keys and stop Keycloak.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import httpx2
import pytest
from botocore.exceptions import ClientError
from oscar_python.client import Client

from tests import real_keycloak
from tests import server as servers
from tests.oidc import tampered
from tests.real_keycloak import GROUP, Keycloak
from tests.server import Server

pytestmark = [pytest.mark.real, pytest.mark.containers, pytest.mark.timeout(600)]


@dataclass(slots=True)
class World:
    """Both programs, and an image for functions."""

    keycloak: Keycloak
    server: Server
    image: str

    def call(self, token: str, method: str, path: str, **more: Any) -> httpx2.Response:
        """A call with that token."""
        headers = {"Authorization": f"Bearer {token}"}
        return httpx2.request(method, self.server.endpoint + path, headers=headers, timeout=120, **more)

    def subject(self, token: str) -> str:
        """Who holds it, as Keycloak says."""
        from tests.oidc import unpacked

        return str(unpacked(token.split(".")[1])["sub"])

    def s3(self, token: str) -> Any:
        """The S3 client of a user, with his own keys."""
        said = self.call(token, "GET", "/system/config").json()["minio_provider"]
        return boto3.client(
            "s3",
            endpoint_url=said["endpoint"],
            region_name=said["region"],
            aws_access_key_id=said["access_key"],
            aws_secret_access_key=said["secret_key"],
        )


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, container_engine: str, busybox_image: str
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("keycloak")
    try:
        real_keycloak.folder()
    except real_keycloak.KeycloakMissing as missing:
        pytest.skip(str(missing))
    with real_keycloak.running(folder / "keycloak") as keycloak:
        from tests.oidc import unpacked

        chief = unpacked(keycloak.token("lab", "chief").split(".")[1])["sub"]
        settings = {
            "OSCAR_ENGINE": container_engine,
            "OIDC_ENABLE": "true",
            "OIDC_ISSUERS": f"{keycloak.issuer('lab')},{keycloak.issuer('egi')}",
            "OIDC_GROUPS": GROUP,
            "OSCAR_OIDC_AUDIENCE": "oscar",
            "OSCAR_OIDC_CLOCK_SKEW_SECONDS": "1",
            "OSCAR_LOGIN_FAILURES": "0",
            "USERS_ADMIN": chief,
        }
        with servers.running(folder / "data", **settings) as server:
            yield World(keycloak, server, busybox_image)


@pytest.fixture(scope="module")
def ann(world: World) -> str:
    return world.keycloak.token("lab", "ann")


@pytest.fixture(scope="module")
def bob(world: World) -> str:
    return world.keycloak.token("lab", "bob")


@pytest.fixture(scope="module")
def dan(world: World) -> str:
    return world.keycloak.token("egi", "dan")


def define(world: World, token: str, name: str, **more: Any) -> None:
    body = {"name": name, "image": world.image, "script": "cat $INPUT_FILE_PATH", "log_level": "CRITICAL"}
    answer = world.call(token, "POST", "/system/services", json=body | more)
    assert answer.status_code == 201, answer.text


def ended(world: World, token: str, service: str, job: str) -> dict[str, Any]:
    answer = world.call(token, "GET", f"/system/jobs/{service}/{job}", params={"wait": "60s"})
    found: dict[str, Any] = answer.json()
    assert found["status"] == "Succeeded", found
    return found


def test_members_of_both_realms_enter(world: World, ann: str, dan: str) -> None:
    for token in (ann, dan):
        assert world.call(token, "GET", "/system/services").status_code == 200


def test_outsiders_of_both_realms_do_not(world: World) -> None:
    for realm, user in (("lab", "eve"), ("egi", "mia")):
        answer = world.call(world.keycloak.token(realm, user), "GET", "/system/services")
        assert answer.status_code == 401
        assert "no group" in answer.json()["message"]


def test_a_function_of_ones_own(world: World, ann: str, bob: str, dan: str) -> None:
    define(world, ann, "private", input=[{"storage_provider": "minio", "path": "ann-private/in"}])
    answer = world.call(ann, "POST", "/run/private", content=b'{"a": 1}')
    assert (answer.status_code, answer.text.strip()) == (200, '{"a": 1}')
    answer = world.call(ann, "POST", "/job/private", content=b'{"b": 2}')
    job = answer.json()["job_id"]
    assert ended(world, ann, "private", job)["user"] == world.subject(ann)
    assert '{"b": 2}' in world.call(ann, "GET", f"/system/logs/private/{job}").text

    for stranger in (bob, dan):
        assert world.call(stranger, "GET", "/system/services").json() == []
        for method, path in (
            ("GET", "/system/services/private"),
            ("DELETE", "/system/services/private"),
            ("POST", "/run/private"),
            ("POST", "/job/private"),
            ("GET", "/system/logs/private"),
            ("GET", f"/system/logs/private/{job}"),
            ("GET", "/system/buckets/ann-private"),
            ("DELETE", "/system/buckets/ann-private"),
        ):
            assert world.call(stranger, method, path).status_code == 404, (method, path)
        with pytest.raises(ClientError, match="AccessDenied"):
            world.s3(stranger).list_objects_v2(Bucket="ann-private")


def test_an_upload_with_ones_own_keys_starts_ones_own_run(world: World, ann: str, bob: str) -> None:
    more = {"visibility": "restricted", "allowed_users": [world.subject(bob)]}
    define(world, ann, "shared", input=[{"storage_provider": "minio", "path": "ann-shared/in"}], **more)
    world.s3(bob).put_object(Bucket="ann-shared", Key="in/text", Body=b"from bob")
    deadline = time.monotonic() + 60
    while not (jobs := world.call(bob, "GET", "/system/logs/shared").json()["jobs"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)  # the S3 process tells the dispatcher, not us
    [job] = jobs
    assert ended(world, bob, "shared", job)["user"] == world.subject(bob)
    assert "from bob" in world.call(bob, "GET", f"/system/logs/shared/{job}").text
    # It is his run and nobody else's, though the service is hers.
    assert world.call(ann, "GET", "/system/logs/shared").json()["jobs"] == {}
    assert world.call(ann, "GET", f"/system/logs/shared/{job}").status_code == 404
    said = world.call(bob, "GET", "/system/services/shared").json()
    assert said["token"] == ""
    for method in ("PUT", "DELETE"):
        path = "/system/services" if method == "PUT" else "/system/services/shared"
        body = {"name": "shared", "image": world.image, "script": "true"} if method == "PUT" else None
        assert world.call(bob, method, path, json=body).status_code == 403
    chief = world.keycloak.token("lab", "chief")
    assert job in world.call(chief, "GET", "/system/logs/shared").json()["jobs"]


def test_one_name_of_two_owners(world: World, ann: str, bob: str, dan: str) -> None:
    for token, word in ((ann, "ann"), (bob, "bob")):
        define(world, token, "twin", script=f"echo {word}", visibility="public")
    assert world.call(ann, "POST", "/run/twin").text.strip() == "ann"
    assert world.call(bob, "POST", "/run/twin").text.strip() == "bob"
    assert world.call(dan, "POST", "/run/twin").status_code == 400
    answer = world.call(dan, "POST", "/run/twin", params={"owner": world.subject(bob)})
    assert answer.text.strip() == "bob"


def test_the_vo_of_a_service_is_the_authors(world: World, ann: str, dan: str) -> None:
    for token, name in ((ann, "vo-ann"), (dan, "vo-dan")):
        define(world, token, name)
        assert world.call(token, "GET", f"/system/services/{name}").json()["vo"] == GROUP


def test_forged_and_foreign_tokens(world: World, ann: str, bob: str) -> None:
    elsewhere = world.keycloak.token("elsewhere", "ann")
    refresh = world.keycloak.login("lab", "ann")["refresh_token"]
    identity = world.keycloak.login("lab", "ann").get("id_token", "x.y.z")
    for token in (
        tampered(bob, sub=world.subject(ann)),
        tampered(ann, exp=10**10),
        elsewhere,
        refresh,
        identity,
    ):
        answer = world.call(token, "GET", "/system/services")
        assert answer.status_code == 401, answer.text


def test_a_token_ends(world: World) -> None:
    token = world.keycloak.token("lab", "ann", "short")
    deadline = time.monotonic() + 60
    while (answer := world.call(token, "GET", "/system/info")).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)  # time is what is waited for
    assert answer.status_code == 401
    assert "expired" in answer.json()["message"]


def test_the_public_python_client_gets_new_tokens_by_itself(world: World) -> None:
    session = world.keycloak.login("lab", "ann")
    old = tampered(session["access_token"], exp=int(time.time()) - 600)
    client = Client(
        {
            "cluster_id": "c",
            "endpoint": world.server.endpoint,
            "oidc_token": old,
            "refresh_token": session["refresh_token"],
            "token_endpoint": f"{world.keycloak.issuer('lab')}/protocol/openid-connect/token",
            "client_id": "cli",
            "scopes": ["openid"],
            "ssl": False,
        }
    )
    body = {"name": "by-client", "image": world.image, "script": "echo hello", "log_level": "CRITICAL"}
    assert client.create_service(body).status_code == 201
    assert "by-client" in [service["name"] for service in client.list_services().json()]
    assert client.run_service("by-client", input="x").text.strip() == "hello"
    new = client.get_access_token()
    assert new != old
    world.keycloak.seen.append(new)
    assert client.get_own_quota().json()["user_id"] == world.subject(new)
    assert client.remove_service("by-client").status_code == 204


def test_a_withdrawn_token_of_the_realm_that_must_be_asked(world: World) -> None:
    session = world.keycloak.login("egi", "dan")
    world.keycloak.logout("egi", session["refresh_token"])
    answer = world.call(session["access_token"], "GET", "/system/info")
    assert answer.status_code == 401
    assert "any more" in answer.json()["message"]


def test_keys_are_rotated_while_running(world: World, ann: str) -> None:
    world.keycloak.rotate("lab")
    token = world.keycloak.token("lab", "ann")
    assert token.split(".")[0] != ann.split(".", maxsplit=1)[0], "another key has signed it"
    deadline = time.monotonic() + 30
    while world.call(token, "GET", "/system/info").status_code != 200:
        # Keys that were fetched within the last seconds aren't fetched again at once.
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert world.call(ann, "GET", "/system/info").status_code == 200


def test_an_issuer_that_is_down(world: World, ann: str, dan: str) -> None:
    known_key, to_be_asked = world.keycloak.token("lab", "bob"), world.keycloak.token("egi", "dan")
    world.keycloak.stop()
    assert world.call(ann, "GET", "/system/services").status_code == 200
    assert world.call(dan, "GET", "/system/services").status_code == 200
    assert world.call(known_key, "GET", "/system/services").status_code == 200
    answer = world.call(to_be_asked, "GET", "/system/services")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


def test_no_token_is_in_the_log(world: World) -> None:
    log = world.server.log.read_text(errors="replace")
    assert "bearer refused" in log
    assert len(world.keycloak.seen) > 10
    for token in world.keycloak.seen:
        assert token not in log
        assert token.split(".")[2] not in log
