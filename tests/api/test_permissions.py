"""Every route as everybody: each answer has the status that the rules say, whatever the thing's visibility.

The application runs in process with a real SQLite and a real OIDC issuer on this machine. Routes come from the OpenAPI
document, so a route without a row in tests/permissions_table.py fails here. An allowed call may still be told that it
makes no sense (400, 409, …): what those answers are is tested in test_routes.py.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from oscar.app.api import build
from oscar.auth.rules import Kind, Thing
from oscar.compute.fake import FakeCompute, World
from oscar.model.object import Visibility
from oscar.model.user import ADMIN, Caller, Entrance
from oscar.settings import Settings
from tests import oidc
from tests.oidc import Issuer
from tests.permissions_table import OPEN, ROUTES, Need, outcome

PASSWORD = "a password of tests"
OWNER, ALLY, OTHER, CHIEF, OUTSIDER = "ann@example.org", "bob@example.org", "cid", "chief", "eve"
GROUP = "vo.example"
REFUSED = {"nobody", "wrong password", "outsider", "expired", "forged", "foreign issuer", "not a token"}
"""Who is nobody here."""
KNOWN = {
    "administrator": Caller(ADMIN, Entrance.BASIC, admin=True),
    "oidc administrator": Caller(CHIEF, Entrance.OIDC, admin=True),
    "owner": Caller(OWNER, Entrance.OIDC),
    "allowed user": Caller(ALLY, Entrance.OIDC),
    "other user": Caller(OTHER, Entrance.OIDC),
    "token": Caller(OWNER, Entrance.TOKEN, service_id="the service"),
    "foreign token": Caller(OTHER, Entrance.TOKEN, service_id="another"),
}

EXCEPTIONS = {
    "GET /system/services/{serviceName}/auth": "made for proxies, which take 401 and 403 only; tested with exposed services",
    "GET /system/volumes/{volumeName}": "the engine of this test has no volumes",
    "DELETE /system/volumes/{volumeName}": "the engine of this test has no volumes",
    "GET /system/quotas/user/{userId}": "a user may name himself; tested with quotas",
}
"""Routes that the walk leaves to other tests, each with a reason."""


@dataclass
class Town:
    """A running application, people with their credentials, and things of the owner's."""

    http: TestClient
    issuer: Issuer
    stranger: Issuer
    tokens: dict[str, str] = field(default_factory=dict)

    def headers(self, who: str) -> dict[str, str]:
        """The credentials of somebody of `KNOWN`, of `REFUSED`, or of a subject."""
        return {"Authorization": self._authorization(who)} if who != "nobody" else {}

    def _authorization(self, who: str) -> str:
        match who:
            case "administrator":
                return basic("oscar", PASSWORD)
            case "wrong password":
                return basic("oscar", "wrong")
            case "not a token":
                return "Bearer x.y.z"
        if who not in self.tokens:
            self.tokens[who] = self._token(who)
        return f"Bearer {self.tokens[who]}"

    def _token(self, who: str) -> str:
        match who:
            case "oidc administrator" | "owner" | "allowed user" | "other user":
                return self.issuer.token(KNOWN[who].id, groups=[GROUP])
            case "outsider":
                return self.issuer.token(OUTSIDER, groups=["elsewhere"])
            case "expired":
                return self.issuer.token(OWNER, groups=[GROUP], exp=int(time.time()) - 600)
            case "forged":
                return oidc.tampered(self.issuer.token(OTHER, groups=[GROUP]), sub=OWNER)
            case "foreign issuer":
                return self.stranger.token(OWNER, groups=[GROUP])
        return self.issuer.token(who, groups=[GROUP])

    def call(self, who: str, method: str, path: str, **more: Any) -> Response:
        """A call of that person."""
        headers = {**self.headers(who), **more.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **more)

    def service(self, visibility: str = "private", *, who: str = "owner", **more: Any) -> str:
        """A new service of somebody; its name."""
        name = f"s-{uuid.uuid4().hex[:8]}"
        body = {
            "name": name,
            "image": "none",
            "script": "true",
            "visibility": visibility,
            "allowed_users": [ALLY],
        }
        answer = self.call(who, "POST", "/system/services", json=body | more)
        assert answer.status_code == 201, answer.text
        return name

    def own_token(self, service: str, who: str = "owner") -> str:
        """The token of a service as its owner sees it."""
        return str(self.call(who, "GET", f"/system/services/{service}").json()["token"])

    def run(self, service: str, who: str) -> str:
        """A run caused by somebody; its id."""
        answer = self.call(who, "POST", f"/job/{service}", content=b"{}")
        assert answer.status_code == 201, answer.text
        return str(answer.json()["job_id"])

    def bucket(self, visibility: str) -> str:
        """A new bucket of the owner's."""
        name = f"b-{uuid.uuid4().hex[:8]}"
        body = {"bucket_name": name, "visibility": visibility, "allowed_users": [ALLY]}
        assert self.call("owner", "POST", "/system/buckets", json=body).status_code == 201
        return name


def basic(user: str, password: str) -> str:
    """The header of basic auth."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@contextmanager
def town_on(data: Path, issuer: Issuer, stranger: Issuer, **more: Any) -> Iterator[Town]:
    settings = Settings(
        data=data,
        url="http://oscar.test",
        minio_endpoint="http://s3.test",
        password=PASSWORD,
        oidc_enable=True,
        login_failures=0,
        **{"oidc_issuers": (issuer.url,), "oidc_groups": (GROUP,), "users_admin": (CHIEF,), **more},
    )
    fake = FakeCompute(World(store=None))  # type: ignore[arg-type]  # no run of this test has files
    made, _ = build(settings, compute=fake)
    with TestClient(made, base_url=settings.url, raise_server_exceptions=False) as http:
        yield Town(http, issuer, stranger)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town") / "data"
    with oidc.running() as issuer, oidc.running() as stranger, town_on(folder, issuer, stranger) as town:
        yield town


def document(town: Town) -> list[str]:
    """The routes of the OpenAPI document."""
    paths = town.http.get("/openapi.json").json()["paths"]
    return sorted(f"{method.upper()} {path}" for path, item in paths.items() for method in item)


def body_of(route: str, *, service: str, bucket: str, visibility: str) -> dict[str, Any] | None:
    """A body with which the call would do what it is for."""
    match route:
        case "POST /system/services" | "PUT /system/services":
            name = service if route.startswith("PUT") else f"n-{uuid.uuid4().hex[:8]}"
            more = {"visibility": visibility, "allowed_users": [ALLY]}
            return {"name": name, "image": "none", "script": "true", **more}
        case "POST /system/buckets" | "PUT /system/buckets":
            name = bucket if route.startswith("PUT") else f"b-{uuid.uuid4().hex[:8]}"
            return {"bucket_name": name, "visibility": visibility, "allowed_users": [ALLY]}
        case "POST /system/buckets/{bucket}/presign":
            return {"object_key": "a", "operation": "download"}
        case "POST /system/volumes":
            return {"name": f"v-{uuid.uuid4().hex[:8]}", "size": "1Gi"}
    return {} if route.startswith(("POST", "PUT")) else None


def test_every_route_has_a_row(town: Town) -> None:
    assert [route for route in document(town) if route not in ROUTES and route not in OPEN] == []
    assert set(EXCEPTIONS) <= set(ROUTES)


@pytest.mark.parametrize("who", sorted(REFUSED))
def test_who_is_nobody_is_refused_everywhere(town: Town, who: str) -> None:
    service, bucket = town.service("public"), town.bucket("public")
    job = town.run(service, "owner")
    for route in document(town):
        if route in OPEN:
            continue
        method, template = route.split()
        path = template.format(serviceName=service, bucket=bucket, jobName=job, volumeName="v", userId=OWNER)
        body = body_of(route, service=service, bucket=bucket, visibility="public")
        answer = town.call(who, method, path, json=body)
        assert answer.status_code == 401, (route, who, answer.text)
        assert answer.json()["code"] == "unauthorized"
        assert answer.headers["www-authenticate"]
        assert "Traceback" not in answer.text


@pytest.mark.parametrize("visibility", list(Visibility))
@pytest.mark.parametrize("who", list(KNOWN))
def test_every_route_does_what_the_rules_say(town: Town, who: str, visibility: Visibility) -> None:
    """The service, the bucket and the runs are the owner's; runs are also caused by all who may."""
    caller = KNOWN[who]
    thing = Thing(OWNER, visibility, (ALLY,), "the service")
    wrong = []
    for route in document(town):
        need = ROUTES.get(route)
        if need is None or route in EXCEPTIONS:
            continue
        for user in causers(need, visibility) if "{jobName}" in route else [""]:
            expected = outcome(
                need,
                caller,
                replace(thing, service_id=None) if need.kind is Kind.BUCKET else thing,
                user=user,
            )
            answer = attempt(town, who, route, visibility, user)
            if not fits(answer, expected):
                wrong.append(
                    f"{route} of {user or '-'}: {answer.status_code}, not {expected}: {answer.text[:200]}"
                )
    assert wrong == []


def causers(need: Need, visibility: Visibility) -> list[str]:
    """Whose runs there can be."""
    assert need.kind is Kind.RUN
    return {
        Visibility.PRIVATE: [OWNER],
        Visibility.RESTRICTED: [OWNER, ALLY],
        Visibility.PUBLIC: [OWNER, ALLY, OTHER],
    }[visibility]


def attempt(town: Town, who: str, route: str, visibility: Visibility, user: str) -> Response:
    """Make fresh things of the owner's, and call the route."""
    method, template = route.split()
    service = town.service(visibility) if "erviceName" in template or route == "PUT /system/services" else ""
    bucket = town.bucket(visibility) if "bucket" in template else ""
    job = town.run(service, user) if user else "none"
    path = template.format(serviceName=service, bucket=bucket, jobName=job, volumeName="v", userId=OTHER)
    body = body_of(route, service=service, bucket=bucket, visibility=visibility)
    headers = {}
    if who == "token":
        headers = {"Authorization": f"Bearer {town.own_token(service or town.service())}"}
    elif who == "foreign token":
        headers = {"Authorization": f"Bearer {town.own_token(town.service(who='other user'), 'other user')}"}
    return town.call("nobody" if headers else who, method, path, json=body, headers=headers)


def fits(answer: Response, expected: int) -> bool:
    """Whether the status is of the class that the rules say."""
    if expected != 200:
        return answer.status_code == expected
    return answer.status_code not in {401, 403, 404} and answer.status_code not in {500, 502, 503, 504}
