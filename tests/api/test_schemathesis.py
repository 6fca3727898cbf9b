"""Schemathesis over every route of our OpenAPI document, as everybody: administrator, user, service token and nobody.

What it makes of the document is sent; the answer must have a status, a content type and a body that the document has,
with no field besides, and never be a fault of ours. Choices are derandomized, so that a run is like the one before;
`scripts/soak` makes many more. Where a token or nobody must be refused is the walk of test_permissions.py.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import schemathesis
from httpx2 import Response
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests import oidc
from tests.api.conftest import Scene
from tests.routes import routes
from tests.town import town_on

EXAMPLES = {"nobody": 2, "token": 4, "administrator": 10, "user": 8}
"""Calls of a route by each caller. Nobody gets no further than the door."""
CALLERS = {"real": ("nobody", "token", "administrator"), "crowd": ("user",)}
"""By stage. They find the same things, so that who may remove them comes last."""
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SENT = {"method", "url", "params", "headers", "cookies", "json", "data"}
NO_ROUTE = {"no_such_route", "method_not_allowed"}
"""Of a path parameter with a slash or of nothing at all: it is no call of the route."""


@dataclass
class Stage:
    """An application, and what callers find in it."""

    call: Callable[..., Response]
    """By somebody: caller, method, path, the rest."""
    document: dict[str, Any]
    make: Callable[[str], dict[str, str]]
    """Makes things anew for a route; their names by path parameter."""
    clean: Callable[[], None]
    known: dict[str, str] = field(default_factory=dict)


def strict(document: dict[str, Any]) -> dict[str, Any]:
    """The document with no room for fields that it does not name."""
    document = copy.deepcopy(document)
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return document


@pytest.fixture(scope="module")
def real(scene: Scene) -> Stage:
    """With the process engine, for the administrator, a token and nobody."""

    def make(route: str) -> dict[str, str]:
        if "/services/{" in route:
            service = scene.service("exec sleep 600", expose={"api_port": 8080})
            stage.known["token"] = scene.token(service)
            return {"serviceName": service}
        service = scene.service("echo done")
        job = scene.job(service)
        scene.ended(service, job)
        stage.known["token"] = scene.token(service)
        volume = f"v-{service}"
        answer = scene.http.post("/system/volumes", json={"name": volume, "size": "256Mi"})
        assert answer.status_code == 201, answer.text
        bucket = scene.bucket()
        names = {"serviceName": service, "jobName": job, "bucket": bucket, "volumeName": volume}
        return names | {"userId": "somebody"}

    def call(who: str, method: str, path: str, **more: Any) -> Response:
        if who == "administrator":
            return scene.http.request(method, path, **more)
        if who == "token":
            more["headers"]["Authorization"] = f"Bearer {stage.known['token']}"
        return scene.stranger(method, path, **more)

    def clean() -> None:
        scene.http.put("/system/config", json={"allowed_image_repositories": []})
        remove_all(scene.http.request)

    stage = Stage(call, strict(scene.http.get("/openapi.json").json()), make, clean)
    return stage


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """With an issuer, for its users."""
    folder = tmp_path_factory.mktemp("crowd") / "data"
    with oidc.running() as issuer, oidc.running() as stranger, town_on(folder, issuer, stranger) as town:

        def make(_: str) -> dict[str, str]:
            town.tokens.clear()  # they last five minutes, and all routes may take longer
            service = town.service("private")
            names = {"serviceName": service, "jobName": town.run(service, "owner")}
            return names | {"bucket": town.bucket("private"), "userId": "ann@example.org", "volumeName": "v"}

        def call(_: str, method: str, path: str, **more: Any) -> Response:
            return town.call("owner", method, path, **more)

        def clean() -> None:
            remove_all(lambda method, path: town.call("owner", method, path))

        document = strict(town.http.get("/openapi.json").json())
        yield Stage(call, document, make, clean)


def remove_all(call: Callable[[str, str], Response]) -> None:
    """Remove what calls have made: a random service may be a server that starts again and again."""
    for service in call("GET", "/system/services").json():
        call("DELETE", f"/system/services/{service['name']}?data=true&owner={service['owner']}")
    for bucket in call("GET", "/system/buckets").json():
        call("DELETE", f"/system/buckets/{bucket['bucket_name']}?force=true")
    for volume in call("GET", "/system/volumes").json():
        call("DELETE", f"/system/volumes/{volume['name']}?owner={volume['owner_user']}")


@cache
def _schema(key: int) -> Any:
    return schemathesis.openapi.from_dict(DOCUMENTS[key])


DOCUMENTS: dict[int, dict[str, Any]] = {}


def operation(stage: Stage, route: str) -> Any:
    """The route in the words of schemathesis."""
    DOCUMENTS[id(stage)] = stage.document
    method, path = route.split()
    return _schema(id(stage))[path][method]


@contextmanager
def things(stage: Stage, route: str) -> Iterator[None]:
    """What the calls of one route find."""
    stage.known |= stage.make(route)
    try:
        yield
    finally:
        stage.clean()


def cases(stage: Stage, route: str) -> st.SearchStrategy[Case[Any]]:
    """Calls of a route: of things that there are and of others, right and wrong."""
    wanted = operation(stage, route)
    names = {name: text for name, text in stage.known.items() if f"{{{name}}}" in route}
    right = [wanted.as_strategy(path_parameters=names)]
    if names:
        right.append(wanted.as_strategy())
    if (body := body_of(stage, route)) is not None:
        right.append(wanted.as_strategy(path_parameters=names, body=body))
    described = stage.document["paths"][route.split()[1]][route.split(maxsplit=1)[0].lower()]
    places = {parameter["in"] for parameter in described.get("parameters", ())}
    if "requestBody" in described or "query" in places:
        right.append(wanted.as_strategy(GenerationMode.NEGATIVE, path_parameters=names))
    return st.one_of(right)


def body_of(stage: Stage, route: str) -> dict[str, Any] | None:
    """A body that the route takes."""
    new = f"n-{uuid.uuid4().hex[:8]}"
    match route:
        case "POST /system/services":
            return {"name": new, "image": "none", "script": "true"}
        case "PUT /system/services":
            return {"name": stage.known["serviceName"], "image": "none", "script": "true"}
        case "POST /system/buckets":
            return {"bucket_name": new}
        case "PUT /system/buckets":
            return {"bucket_name": stage.known["bucket"], "visibility": "public"}
        case "POST /system/buckets/{bucket}/presign":
            return {"object_key": "a", "operation": "upload", "extra_headers": {"X-Amz-Meta-A": "b"}}
        case "POST /system/volumes":
            return {"name": new, "size": "256Mi"}
        case "PUT /system/quotas/user/{userId}":
            return {"cpu": "2000", "minio": {"buckets": "5"}, "volumes": {"disk": "1Gi"}}
        case "PUT /system/config":
            return {"allowed_image_repositories": ["ghcr.io"]}
    return None


def send(stage: Stage, who: str, case: Case[Any]) -> Response:
    """Make the call."""
    how = {name: value for name, value in case.as_transport_kwargs().items() if name in SENT}
    headers = {name: value for name, value in how.pop("headers").items() if name.lower() != "authorization"}
    content = how.pop("data", None)
    if content is not None:
        how["content"] = content
    # Not for minutes: a duration that is one is waited for.
    how["params"] = {name: value for name, value in (how.get("params") or {}).items() if name != "wait"}
    if cookies := how.pop("cookies", None):
        headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    url = how.pop("url")
    return stage.call(who, how.pop("method"), url, headers=dict(headers), **how)


def judge(case: Case[Any], answer: Response) -> None:
    """What every answer must be."""
    if answer.status_code >= 400 and answer.json()["code"] in NO_ROUTE:
        return
    # 501 says what this release has not.
    checks = CHECKS if answer.status_code == 501 else [*CHECKS, not_a_server_error]
    case.validate_response(answer, checks=checks)


def walk(stage: Stage, callers: Iterable[str], route: str, *, times: int = 1) -> None:
    """Calls of a route by each of them."""
    with things(stage, route):
        for who in callers:
            some(stage, who, route, times * EXAMPLES[who])


def some(stage: Stage, who: str, route: str, examples: int) -> None:
    """So many calls by somebody."""

    @given(data=st.data())
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def each(data: st.DataObject) -> None:
        case = data.draw(cases(stage, route))
        judge(case, send(stage, who, case))

    each()


@pytest.mark.parametrize("where", CALLERS)
@pytest.mark.parametrize("route", routes())
def test_every_answer_is_one_that_the_document_has(
    request: pytest.FixtureRequest, where: str, route: str
) -> None:
    walk(request.getfixturevalue(where), CALLERS[where], route)


@pytest.mark.soak
@pytest.mark.parametrize("where", CALLERS)
@pytest.mark.parametrize("route", routes())
def test_hundreds_of_calls_of_each_route(request: pytest.FixtureRequest, where: str, route: str) -> None:
    walk(request.getfixturevalue(where), CALLERS[where], route, times=25)
