"""The short way of `POST /run` and `POST /job`: requests without parameters take it, and its answers are the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from starlette.testclient import TestClient

from oscar.app.front import Front, short
from oscar.app.render import CLIENT_GONE, install
from oscar.errors import NotFound
from tests.api.conftest import BODY_LIMIT, Scene

LONG_WAY = {"no-such-parameter": "1"}
"""FastAPI ignores it, but then the request is not without parameters."""


def same(scene: Scene, path: str, **more: Any) -> httpx2.Response:
    """The answers of both ways, compared."""
    answers = [scene.stranger("POST", path, **more), scene.stranger("POST", path, params=LONG_WAY, **more)]
    shown = []
    for answer in answers:
        headers = dict(answer.headers)
        body: Any = answer.text
        if headers["content-type"] == "application/json":
            body = json.loads(body)
            for name in ("request_id", "job_id"):
                body.pop(name, None)
        for name in ("x-request-id", "location", "content-length"):
            headers.pop(name, None)
        shown.append((answer.status_code, headers, body))
    assert shown[0] == shown[1]
    return answers[0]


@pytest.mark.parametrize("kind", ["run", "job"])
def test_both_ways_answer_alike(scene: Scene, kind: str) -> None:
    service = scene.service("echo said")
    own = {"Authorization": f"Bearer {scene.token(service)}"}
    good = {"run": 200, "job": 201}[kind]
    assert same(scene, f"/{kind}/{service}", headers=own, content=b"{}").status_code == good
    assert same(scene, f"/{kind}/{service}", headers=own, content=b"\xff no base64").status_code == 400
    assert same(scene, f"/{kind}/{service}", content=b"{}").status_code == 401
    assert same(scene, f"/{kind}/no-such-service", headers=own, content=b"{}").status_code == 404
    assert same(scene, f"/{kind}/%00", headers=own, content=b"{}").status_code == 404
    assert same(scene, f"/{kind}/{service}", headers=own, content=b"x" * (BODY_LIMIT + 1)).status_code == 413
    assert scene.http.get(f"/{kind}/{service}").status_code == 405
    assert scene.http.post(f"/{kind}/{service}/more").status_code == 404
    assert scene.http.post(f"/{kind}/{service}", params={"owner": "nobody"}).status_code == 404


def test_a_failing_script_answers_alike(scene: Scene) -> None:
    service = scene.service("echo no; exit 3")
    answer = same(scene, f"/run/{service}", headers={"Authorization": f"Bearer {scene.token(service)}"})
    assert (answer.status_code, answer.headers["x-oscar-exit-code"]) == (500, "3")


def test_parameters_of_headers_keep_their_rules(scene: Scene) -> None:
    service = scene.service()
    answer = scene.http.post(f"/job/{service}", headers={"Idempotency-Key": "x" * 257})
    assert answer.status_code == 400
    keyed = [scene.http.post(f"/job/{service}", headers={"idempotency-key": "one"}).json() for _ in "ab"]
    assert keyed[0]["job_id"] == keyed[1]["job_id"]


# With routes of their own: those that FastAPI does not know are reached by the short way only.

router = APIRouter()


@router.post("/thing/{name}")
async def thing(
    request: Request, name: str, owner: str | None = None, x_extra: Annotated[str | None, Header()] = None
) -> Response:
    match name:
        case "absent":
            raise NotFound("There is no such thing")
        case "broken":
            raise ZeroDivisionError
    return Response(f"{name} {owner} {x_extra} {len(await request.body())}")


def front() -> Front:
    app = FastAPI()
    install(app)
    return Front(app, short(router, thing))


def test_only_requests_without_parameters_take_the_short_way() -> None:
    client = TestClient(front())
    assert client.post("/thing/one", content=b"four").text == "one None None 4"
    long_ways = (
        client.post("/thing/one?owner=me"),
        client.post("/thing/one", headers={"X-Extra": "1"}),
        client.get("/thing/one"),
        client.post("/thing/one/"),
        client.post("/thing"),
    )
    assert [answer.status_code for answer in long_ways] == [404] * len(long_ways)


def test_errors_are_rendered_as_everywhere() -> None:
    client = TestClient(front())
    absent, broken = client.post("/thing/absent"), client.post("/thing/broken")
    assert (absent.status_code, absent.json()["message"]) == (404, "There is no such thing")
    assert (broken.status_code, broken.json()["code"]) == (500, "internal_error")


def test_a_client_that_hangs_up_in_its_body_is_no_fault_of_ours() -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/thing/one",
        "query_string": b"",
        "headers": [],
    }
    said: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append(message)

    asyncio.run(front()(scope, receive, send))
    assert said[0]["status"] == CLIENT_GONE


def test_a_route_that_needs_more_has_no_short_way() -> None:
    other = APIRouter()

    @other.post("/other")
    async def needy(request: Request, who: Annotated[str, Depends(lambda: "me")]) -> Response:
        return Response(who + request.method)

    with pytest.raises(ValueError, match="/other"):
        short(other, needy)
