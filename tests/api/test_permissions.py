"""Every route as everybody: each answer has the status that the rules say, whatever the thing's visibility.

The application runs in process with a real SQLite and a real OIDC issuer on this machine. Routes come from the OpenAPI
document, so a route without a row in tests/permissions_table.py fails here. An allowed call may still be told that it
makes no sense (400, 409, …): what those answers are is tested in test_routes.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from httpx2 import Response

from oscar.auth.rules import Kind, Thing
from oscar.model.object import Visibility
from tests import oidc
from tests.permissions_table import KEYED, OPEN, ROUTES, Need, outcome
from tests.town import ALLY, KNOWN, OTHER, OWNER, REFUSED, Town, town_on

EXCEPTIONS = {
    "GET /system/volumes/{volumeName}": "the engine of this test has no volumes",
    "DELETE /system/volumes/{volumeName}": "the engine of this test has no volumes",
    "GET /system/quotas/user/{userId}": "a user may name himself; tested with quotas",
}
"""Routes that the walk leaves to other tests, each with a reason."""


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
    known = {*ROUTES, *OPEN, *KEYED}
    assert [route for route in document(town) if route not in known] == []
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


@pytest.mark.parametrize("route", sorted(KEYED))
@pytest.mark.parametrize("who", list(KNOWN))
def test_no_user_opens_what_is_for_other_clusters(town: Town, who: str, route: str) -> None:
    method, template = route.split()
    path = template.format(serviceName=town.service(Visibility.PUBLIC))
    for headers in ({}, {"X-Federation-Key": "guessed"}):
        name = "nobody" if "token" in who else who
        answer = town.call(name, method, path, json={"bucket": "b", "key": "k"}, headers=headers)
        assert answer.status_code == 401, answer.text


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
