"""Every route of the API: calls that work and calls that are refused, each with status, body and form.

The table `CALLS` is compared with the OpenAPI document: a route without a good and a bad call fails the run, and so
does an answer whose status the document does not have.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from httpx2 import Response

from tests.api.conftest import BODY_LIMIT, Scene
from tests.permissions_table import KEYED, OPEN

ERROR_FIELDS = {"code", "message", "field", "fix", "request_id"}
FAR = {"type": "oscar", "cluster_id": "far", "service_name": "there"}
FAR_CLUSTERS = {"far": {"endpoint": "https://far.test", "auth_user": "u", "auth_password": "p"}}
SERVICE = {"name": "{new}", "image": "none", "script": "true"}
BIG = b"{" + b" " * BODY_LIMIT + b"}"
HUGE_DEFINITION = b'{"name": "' + b"x" * 5 * 1024 * 1024 + b'"}'


@dataclass(frozen=True)
class Call:
    """One call: placeholders in path and body name things that the test makes first."""

    route: str
    status: int
    names: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    at: str = ""
    """The field that an error names."""
    check: Callable[[Any], object] | None = None
    """Of a good answer: its JSON, else its text."""
    json: Any = None
    content: bytes | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.route, str(self.status), self.at or self.code]).strip()


class Names:
    """What placeholders stand for, made when they are asked for."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.known: dict[str, str] = {}

    def fill(self, text: str) -> str:
        """The text with its placeholders filled in."""
        for name in (
            "new",
            "service",
            "failing",
            "done",
            "running",
            "bucket",
            "used",
            "exposed",
            "volume",
            "federated",
        ):
            if f"{{{name}}}" in text:
                text = text.replace(f"{{{name}}}", self[name])
        return text

    def __getitem__(self, name: str) -> str:
        if name not in self.known:
            self.known[name] = getattr(self, f"_{name}")()
        return self.known[name]

    def _new(self) -> str:
        return f"n-{uuid.uuid4().hex[:8]}"

    def _federated(self) -> str:
        return self.scene.service(replicas=[FAR], clusters=FAR_CLUSTERS)

    def _service(self) -> str:
        return self.scene.service()

    def _failing(self) -> str:
        return self.scene.service("echo words; exit 3")

    def _done(self) -> str:
        job = self.scene.job(self["service"])
        self.scene.ended(self["service"], job)
        return job

    def _running(self) -> str:
        self.known["service"] = self.scene.service("sleep 600")
        return self.scene.job(self["service"])

    def _bucket(self) -> str:
        return self.scene.bucket()

    def _exposed(self) -> str:
        return self.scene.service("exec sleep 600", expose={"api_port": 8080})

    def _volume(self) -> str:
        name = self["new"]
        self.known.pop("new")
        answer = self.scene.http.post("/system/volumes", json={"name": name, "size": "256Mi"})
        assert answer.status_code == 201, answer.text
        return name

    def _used(self) -> str:
        bucket = self.scene.bucket()
        self.scene.service(input=[{"storage_provider": "minio", "path": f"{bucket}/in"}])
        return bucket


ONE = {"serviceName": "{service}"}
NONE = {"serviceName": "there-is-none"}
JOB = {"serviceName": "{service}", "jobName": "{done}"}
BUSY = {"serviceName": "{service}", "jobName": "{running}"}
NO_JOB = {"serviceName": "{service}", "jobName": "none-0"}
FREE = {"bucket": "{bucket}"}
USER = {"userId": "somebody"}
EXPOSED = {"serviceName": "{exposed}"}
VOLUME = {"name": "{new}", "size": "256Mi"}
CHANGES = ("POST", "PUT", "DELETE")
LINK = {"object_key": "in/a", "operation": "upload"}

CALLS = [
    Call("GET /health", 200, check=lambda text: text == "Ok"),
    Call("GET /ready", 200, check=lambda text: text == "Ok"),
    Call("GET /system/info", 200, check=lambda said: said["serverless_backend"]["name"] == "embedded"),
    Call("GET /system/status", 200, check=lambda said: said["cluster"]["nodes_count"] == 1),
    Call("GET /system/config", 200, check=lambda said: said["minio_provider"]["secret_key"]),
    # Services
    Call("GET /system/services", 200, check=lambda said: isinstance(said, list)),
    Call("POST /system/services", 201, json=SERVICE, check=lambda said: said["warnings"]),
    Call("POST /system/services", 400, json=SERVICE | {"name": "n" * 40}, at="name"),
    Call("POST /system/services", 400, json=SERVICE | {"memory": "abc"}, at="memory"),
    Call("POST /system/services", 400, json=SERVICE | {"image": ""}, at="image"),
    Call("POST /system/services", 400, json=SERVICE | {"cpu": "-1"}, at="cpu"),
    Call("POST /system/services", 400, json=SERVICE | {"script": ""}, at="script"),
    Call(
        "POST /system/services", 400, json=SERVICE | {"name": "{service}"}, code="already_exists", at="name"
    ),
    Call(
        "POST /system/services",
        400,
        json=SERVICE | {"input": [{"storage_provider": "minio", "path": " / "}]},
        at="input[0].path",
    ),
    Call(
        "POST /system/services",
        400,
        json=SERVICE | {"output": [{"storage_provider": "s3.none", "path": "b/o"}]},
        at="output[0].storage_provider",
    ),
    Call("POST /system/services", 400, content=b'{"name": ', code="bad_request", at="body"),
    Call("POST /system/services", 400, content=b"[]", code="bad_request", at="body"),
    Call("POST /system/services", 400, content=b"\xff\xfe", code="bad_request", at="body"),
    Call("POST /system/services", 413, content=HUGE_DEFINITION, code="body_too_large", at="body"),
    Call("PUT /system/services", 204, json=SERVICE | {"name": "{service}"}),
    Call("PUT /system/services", 400, json=SERVICE | {"name": "{service}", "memory": "abc"}, at="memory"),
    Call("PUT /system/services", 404, json=SERVICE, code="service_not_found"),
    Call("PUT /system/services", 413, content=HUGE_DEFINITION, code="body_too_large", at="body"),
    Call("GET /system/services/{serviceName}", 200, ONE, check=lambda said: len(said["token"]) == 64),
    Call("GET /system/services/{serviceName}", 404, NONE, code="service_not_found"),
    Call("DELETE /system/services/{serviceName}", 204, ONE),
    Call("DELETE /system/services/{serviceName}", 404, NONE, code="service_not_found"),
    Call("DELETE /system/services/{serviceName}", 400, ONE, params={"data": "perhaps"}, at="data"),
    # Synchronous calls
    Call("POST /run/{serviceName}", 200, ONE, content=b"{}", check=lambda text: text == "done\n"),
    Call("POST /run/{serviceName}", 200, ONE, check=lambda text: text == "done\n"),
    Call("POST /run/{serviceName}", 404, NONE, content=b"{}", code="service_not_found"),
    Call("POST /run/{serviceName}", 400, ONE, content=b"no base64!", code="bad_request", at="body"),
    Call("POST /run/{serviceName}", 413, ONE, content=BIG, code="body_too_large", at="body"),
    # Jobs
    Call("POST /job/{serviceName}", 201, ONE, json={"a": 1}, check=lambda said: said["status"] == "Pending"),
    Call("POST /job/{serviceName}", 201, ONE, content=base64.b64encode(b"a file")),
    Call("POST /job/{serviceName}", 404, NONE, content=b"{}", code="service_not_found"),
    Call("POST /job/{serviceName}", 400, ONE, content=b"no base64!", code="bad_request", at="body"),
    Call("POST /job/{serviceName}", 413, ONE, content=BIG, code="body_too_large", at="body"),
    Call(
        "POST /job/{serviceName}",
        400,
        ONE,
        content=b"{}",
        headers={"X-Callback-URL": "http://127.0.0.1/"},
        at="X-Callback-URL",
    ),
    Call(
        "POST /job/{serviceName}",
        400,
        ONE,
        content=b"{}",
        headers={"Idempotency-Key": "k" * 257},
        at="idempotency-key",
    ),
    Call("GET /system/jobs/{serviceName}/{jobName}", 200, JOB, check=lambda job: job["exit_code"] == 0),
    Call("GET /system/jobs/{serviceName}/{jobName}", 404, NO_JOB, code="job_not_found"),
    Call("GET /system/jobs/{serviceName}/{jobName}", 400, JOB, params={"wait": "soon"}, at="wait"),
    Call("POST /system/jobs/{serviceName}/{jobName}/rerun", 201, JOB, check=lambda said: said["job_id"]),
    Call("POST /system/jobs/{serviceName}/{jobName}/rerun", 404, NO_JOB, code="job_not_found"),
    Call("POST /system/jobs/{serviceName}/{jobName}/rerun", 409, BUSY, code="conflict"),
    Call("POST /system/jobs/{serviceName}/{jobName}/cancel", 202, BUSY, check=lambda job: job["job_id"]),
    Call("POST /system/jobs/{serviceName}/{jobName}/cancel", 404, NO_JOB, code="job_not_found"),
    Call("POST /system/jobs/{serviceName}/{jobName}/cancel", 409, JOB, code="conflict"),
    # Logs
    Call("GET /system/logs/{serviceName}", 200, ONE, check=lambda said: said["remaining_jobs"] == 0),
    Call("GET /system/logs/{serviceName}", 404, NONE, code="service_not_found"),
    Call("GET /system/logs/{serviceName}", 400, ONE, params={"page": "x"}, code="bad_request", at="page"),
    Call("GET /system/logs/{serviceName}/{jobName}", 200, JOB, check=lambda text: text == "done\n"),
    Call(
        "GET /system/logs/{serviceName}/{jobName}",
        200,
        JOB,
        params={"timestamps": "true"},
        check=lambda text: text.startswith("20") and text.endswith("Z done\n"),
    ),
    Call(
        "GET /system/logs/{serviceName}/{jobName}",
        200,
        JOB,
        params={"tail": "0"},
        check=lambda text: not text,
    ),
    Call("GET /system/logs/{serviceName}/{jobName}", 404, NO_JOB, code="job_not_found"),
    Call("GET /system/logs/{serviceName}/{jobName}", 400, JOB, params={"tail": "-1"}, at="tail"),
    Call("DELETE /system/logs/{serviceName}/{jobName}", 204, JOB),
    Call("DELETE /system/logs/{serviceName}/{jobName}", 204, BUSY),
    Call("DELETE /system/logs/{serviceName}/{jobName}", 404, NO_JOB, code="job_not_found"),
    Call("DELETE /system/logs/{serviceName}", 204, ONE),
    Call("DELETE /system/logs/{serviceName}", 204, ONE, params={"all": "true"}),
    Call("DELETE /system/logs/{serviceName}", 404, NONE, code="service_not_found"),
    Call("DELETE /system/logs/{serviceName}", 400, ONE, params={"all": "some"}, at="all"),
    # Buckets
    Call("GET /system/buckets", 200, check=lambda said: isinstance(said, list)),
    Call("POST /system/buckets", 201, json={"bucket_name": "{new}"}),
    Call("POST /system/buckets", 400, json={"bucket_name": "A B"}, at="bucket_name"),
    Call("POST /system/buckets", 400, json={}, at="bucket_name"),
    Call("POST /system/buckets", 400, json={"bucket_name": 7}, at="bucket_name"),
    Call("POST /system/buckets", 400, content=b"{", code="bad_request", at="body"),
    Call("POST /system/buckets", 413, content=HUGE_DEFINITION, code="body_too_large", at="body"),
    Call(
        "POST /system/buckets", 400, json={"bucket_name": "{bucket}"}, code="already_exists", at="bucket_name"
    ),
    Call("POST /system/buckets", 400, json={"bucket_name": "{new}", "visibility": "open"}, at="visibility"),
    Call("PUT /system/buckets", 204, json={"bucket_name": "{bucket}", "visibility": "public"}),
    Call("PUT /system/buckets", 404, json={"bucket_name": "{new}"}, code="bucket_not_found"),
    Call(
        "PUT /system/buckets", 400, json={"bucket_name": "{bucket}", "allowed_users": 5}, at="allowed_users"
    ),
    Call("PUT /system/buckets", 413, content=HUGE_DEFINITION, code="body_too_large", at="body"),
    Call("GET /system/buckets/{bucket}", 200, FREE, check=lambda said: said["objects"] == []),
    Call("GET /system/buckets/{bucket}", 404, {"bucket": "there-is-none"}, code="bucket_not_found"),
    Call("DELETE /system/buckets/{bucket}", 204, FREE),
    Call("DELETE /system/buckets/{bucket}", 404, {"bucket": "there-is-none"}, code="bucket_not_found"),
    Call("DELETE /system/buckets/{bucket}", 409, {"bucket": "{used}"}, code="conflict"),
    Call("DELETE /system/buckets/{bucket}", 400, FREE, params={"force": "7"}, at="force"),
    Call("POST /system/buckets/{bucket}/presign", 200, FREE, json=LINK, check=lambda s: s["method"] == "PUT"),
    Call(
        "POST /system/buckets/{bucket}/presign",
        200,
        FREE,
        json=LINK | {"expires_in": 7 * 24 * 3600},
        check=lambda s: "X-Amz-Expires=604800&" in s["url"],
    ),
    Call("POST /system/buckets/{bucket}/presign", 400, FREE, json=LINK | {"object_key": ""}, at="object_key"),
    Call(
        "POST /system/buckets/{bucket}/presign",
        400,
        FREE,
        content=b'{"object_key": "\\ud800", "operation": "upload"}',
        at="body",
    ),
    Call(
        "POST /system/buckets/{bucket}/presign", 400, FREE, json=LINK | {"operation": "copy"}, at="operation"
    ),
    Call(
        "POST /system/buckets/{bucket}/presign",
        400,
        FREE,
        json=LINK | {"expires_in": 604_801},
        at="expires_in",
    ),
    Call(
        "POST /system/buckets/{bucket}/presign",
        400,
        FREE,
        json=LINK | {"extra_headers": {"a b": "c\nd"}},
        at="extra_headers",
    ),
    Call(
        "POST /system/buckets/{bucket}/presign", 404, {"bucket": "none"}, json=LINK, code="bucket_not_found"
    ),
]
USER = {"userId": "somebody"}
FEDERATED = {"serviceName": "{federated}"}
FEDERATION = [f"/system/{family}/{{serviceName}}" for family in ("federation", "replicas")]
LIST = "allowed_image_repositories"
CALLS += [
    # Quotas
    Call("GET /system/quotas/user", 200, check=lambda said: said["user_id"] == "cluster_admin"),
    Call("GET /system/quotas/user/{userId}", 200, USER, check=lambda said: said["user_id"] == "somebody"),
    Call("PUT /system/quotas/user/{userId}", 200, USER, json={"cpu": "none"}),
    Call("PUT /system/quotas/user/{userId}", 400, USER, json={}, code="bad_request", at="quotas"),
    Call("PUT /system/quotas/user/{userId}", 400, USER, json={"memory": "x"}, at="memory"),
    Call("PUT /system/quotas/user/{userId}", 413, USER, content=HUGE_DEFINITION, code="body_too_large"),
    Call("GET /metrics", 200, check=lambda said: "oscar_workers{" in said),
    # Metrics; what they say is tested in test_metrics.py
    Call("GET /system/metrics", 200, check=lambda said: said["totals"]["services_count_active"] >= 0),
    Call("GET /system/metrics", 400, params={"start": "yesterday"}, at="start"),
    Call(
        "GET /system/metrics/breakdown",
        200,
        params={"group_by": "user"},
        check=lambda said: said["items"] is not None,
    ),
    Call("GET /system/metrics/breakdown", 200, params={"group_by": "user", "format": "csv"}),
    Call("GET /system/metrics/breakdown", 400, at="group_by"),
    Call("GET /system/metrics/{serviceName}", 200, ONE, check=lambda said: len(said["metrics"]) == 7),
    Call("GET /system/metrics/{serviceName}", 400, ONE, params={"metric": "love"}, at="metric"),
    Call("GET /system/metrics/{serviceName}", 404, NONE, code="service_not_found"),
    # Configuration and the server's log
    Call("PUT /system/config", 200, json={LIST: []}, check=lambda said: said[LIST] == []),
    Call("PUT /system/config", 400, json={LIST: ["a b"]}, at=f"{LIST}[0]"),
    Call("PUT /system/config", 413, content=HUGE_DEFINITION, code="body_too_large", at="body"),
    *(
        call
        for path in ("/system/logs", "/system/logs/")
        for call in (
            Call(f"GET {path}", 200, check=lambda said: isinstance(said["logs"], list)),
            Call(f"GET {path}", 200, headers={"Accept": "text/plain"}, params={"timestamps": "true"}),
            Call(f"GET {path}", 400, params={"page": "x"}, code="bad_request", at="page"),
            Call(f"GET {path}", 400, params={"tail": "0"}, at="tail"),
        )
    ),
    # Events of a MinIO; what its webhook takes is in tests/acceptance/test_minio.py
    Call("POST /system/events/minio", 401, json={}, code="unauthorized"),
    Call("GET /system/events/rejected", 200, check=lambda said: said == {"events": []}),
    Call("GET /system/events/rejected", 400, params={"page": "x"}, code="bad_request", at="page"),
    Call("GET /system/events/rejected", 400, params={"limit": "0"}, at="limit"),
    # Federation
    *(Call(f"GET {path}", 200, ONE, check=lambda said: said["topology"] == "none") for path in FEDERATION),
    *(Call(f"GET {path}", 404, NONE, code="service_not_found") for path in FEDERATION),
    *(
        Call(f"{method} {path}", status, names, json={}, code=code)
        for path in FEDERATION
        for method in ("POST", "PUT", "DELETE")
        for status, names, code in ((400, ONE, "bad_request"), (404, NONE, "service_not_found"))
    ),
    *(
        Call(f"{method} {path}", 413, ONE, content=HUGE_DEFINITION, code="body_too_large")
        for path in FEDERATION
        for method in ("POST", "PUT", "DELETE")
    ),
    *(
        Call(f"POST {path}", 200, ONE, json={"members": [FAR], "clusters": FAR_CLUSTERS})
        for path in FEDERATION
    ),
    *(
        Call(f"PUT {path}", 200, FEDERATED, json={"members": [FAR], "update": [FAR | {"priority": 3}]})
        for path in FEDERATION
    ),
    *(
        Call(
            f"DELETE {path}",
            200,
            FEDERATED,
            json={"members": [FAR]},
            check=lambda said: said["topology"] == "none",
        )
        for path in FEDERATION
    ),
    *(
        Call(f"POST /system/federation/{{serviceName}}/{what}", 401, ONE, json={}, code="unauthorized")
        for what in ("presign", "token")
    ),
    # Exposed services; what they do is tested with the services themselves
    Call("GET /system/services/{serviceName}/auth", 200, EXPOSED),
    Call("GET /system/services/{serviceName}/auth", 404, NONE, code="service_not_found"),
    Call("GET /system/services/{serviceName}/deployment", 200, ONE),
    Call("GET /system/services/{serviceName}/deployment", 404, NONE, code="service_not_found"),
    Call("GET /system/services/{serviceName}/deployment/logs", 200, ONE),
    Call("GET /system/services/{serviceName}/deployment/logs", 404, NONE, code="service_not_found"),
    Call("POST /system/services/{serviceName}/stop", 200, EXPOSED, check=lambda s: s["state"] == "stopped"),
    Call("POST /system/services/{serviceName}/stop", 400, ONE),
    Call("POST /system/services/{serviceName}/stop", 404, NONE, code="service_not_found"),
    Call("POST /system/services/{serviceName}/start", 200, EXPOSED),
    Call("POST /system/services/{serviceName}/start", 400, ONE),
    Call("POST /system/services/{serviceName}/start", 404, NONE, code="service_not_found"),
    Call("POST /system/services/{serviceName}/restart", 200, EXPOSED),
    Call("POST /system/services/{serviceName}/restart", 400, ONE),
    Call("POST /system/services/{serviceName}/restart", 404, NONE, code="service_not_found"),
    # Volumes
    Call("GET /system/volumes", 200, check=lambda said: isinstance(said, list)),
    Call("POST /system/volumes", 201, json=VOLUME, check=lambda said: said["name"]),
    Call("POST /system/volumes", 400, json=VOLUME | {"name": "A b"}, at="name"),
    Call("POST /system/volumes", 400, json=VOLUME | {"size": "much"}, at="size"),
    Call("POST /system/volumes", 400, json={"size": "64Mi"}, at="name"),
    Call("POST /system/volumes", 409, json=VOLUME | {"name": "{volume}"}, code="conflict"),
    Call("POST /system/volumes", 413, content=HUGE_DEFINITION, code="body_too_large", at="body"),
    Call("GET /system/volumes/{volumeName}", 200, {"volumeName": "{volume}"}),
    Call("GET /system/volumes/{volumeName}", 404, {"volumeName": "none"}, code="volume_not_found"),
    Call("DELETE /system/volumes/{volumeName}", 204, {"volumeName": "{volume}"}),
    Call("DELETE /system/volumes/{volumeName}", 404, {"volumeName": "none"}, code="volume_not_found"),
]
NOT_ENABLED = {"POST /system/events/minio"}
"""Routed, and refused to everybody with the built-in store."""
WITHOUT_INPUT = {
    *OPEN,
    "GET /metrics",
    "GET /system/info",
    "GET /system/status",
    "GET /system/config",
    "GET /system/services",
    "GET /system/buckets",
    "GET /system/quotas/user",
    "GET /system/quotas/user/{userId}",
    "GET /system/volumes",
}
"""What can only be refused to who calls, which `test_without_credentials` does for all."""
FOR_TOKENS = {
    "GET /system/services/{serviceName}/auth",
    "POST /run/{serviceName}",
    "POST /job/{serviceName}",
    "GET /system/info",
    "GET /system/status",
    "GET /system/jobs/{serviceName}/{jobName}",
    "POST /system/jobs/{serviceName}/{jobName}/rerun",
    "GET /system/logs/{serviceName}",
    "GET /system/logs/{serviceName}/{jobName}",
    "POST /system/jobs/{serviceName}/{jobName}/cancel",
}


def document(scene: Scene) -> dict[str, Any]:
    return {
        f"{method.upper()} {path}": operation
        for path, item in scene.http.get("/openapi.json").json()["paths"].items()
        for method, operation in item.items()
    }


def send(scene: Scene, call: Call) -> Response:
    names = Names(scene)
    method, path = call.route.split()
    # Filled in the order in which they depend on each other: a job's service is known after the job.
    filled = {key: names.fill(value) for key, value in reversed(list(call.names.items()))}
    body = call.content if call.json is None else names.fill(json.dumps(call.json)).encode()
    headers = {"Content-Type": "application/json", **call.headers}
    return scene.http.request(
        method, path.format(**filled), content=body, params=call.params, headers=headers
    )


def check_error(answer: Response, code: str = "", at: str = "") -> None:
    error = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert {"code", "message", "request_id"} <= error.keys() <= ERROR_FIELDS, error
    assert error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]
    assert code in {"", error["code"]}, error
    if at:
        assert error["field"] == at, error


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_call(scene: Scene, call: Call) -> None:
    answer = send(scene, call)
    assert answer.status_code == call.status, answer.text
    assert str(answer.status_code) in document(scene)[call.route]["responses"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    if call.status >= 400:
        check_error(answer, call.code, call.at)
    elif call.status == 204:
        assert answer.content == b""
    elif call.check:
        is_json = answer.headers["content-type"].startswith("application/json")
        assert call.check(answer.json() if is_json else answer.text), answer.text


def test_every_route_has_a_good_and_a_bad_call(scene: Scene) -> None:
    routes = document(scene)
    good = {call.route for call in CALLS if call.status < 400}
    bad = {call.route for call in CALLS if call.status >= 400} | WITHOUT_INPUT
    assert sorted(good | NOT_ENABLED | KEYED.keys()) == sorted(routes)
    assert sorted(bad) == sorted(routes)


def test_without_credentials_nothing_is_answered(scene: Scene) -> None:
    for route in document(scene).keys() - OPEN - KEYED.keys():
        method, path = route.split()
        for headers in (
            {},
            {"Authorization": "Bearer " + "0" * 64},
            {"Authorization": "Bearer x.y.z"},
            {"Authorization": "Basic " + base64.b64encode(b"oscar:wrong").decode()},
            {"Authorization": "Basic %%%"},
            {"Authorization": "Digest x"},
        ):
            body = b"{" if method in {"POST", "PUT"} else None
            typed = {"Content-Type": "application/json", **headers}
            answer = scene.stranger(method, path, headers=typed, content=body)
            assert answer.status_code == 401, (route, answer.text)
            check_error(answer, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Basic ")


def test_a_service_token_opens_only_what_it_is_for(scene: Scene) -> None:
    service, other = scene.service(), scene.service()
    job = scene.job(service)
    scene.ended(service, job)
    bucket = scene.bucket()
    for route in sorted(document(scene).keys() - OPEN - KEYED.keys()):
        method, template = route.split()
        path = (
            template.format(
                serviceName=service, jobName=job, bucket=bucket, userId="somebody", volumeName="v"
            )
            if "{" in template
            else template
        )
        body = json.dumps(
            {"bucket_name": bucket, **LINK, **SERVICE, "size": "64Mi", "name": service}
        ).encode()
        content = body if method in {"POST", "PUT"} else None
        answer = scene.bearer(service, method, path, content=content)
        if route not in FOR_TOKENS:
            assert answer.status_code == 403, (route, answer.text)
            check_error(answer, "forbidden")
        elif not path.endswith("/cancel"):
            assert answer.status_code < 300, (route, answer.text)
        if "{serviceName}" in template:
            path = template.format(serviceName=other, jobName=job)
            assert scene.bearer(service, method, path, content=content).status_code in {403, 404}


def test_no_such_route_and_no_such_method(scene: Scene) -> None:
    answer = scene.http.get("/system/nothing")
    assert answer.status_code == 404
    check_error(answer, "no_such_route")
    answer = scene.http.patch("/system/services")
    assert answer.status_code == 405
    check_error(answer, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) & {"GET", "POST", "PUT"}


def test_a_failing_script_of_a_synchronous_call(scene: Scene) -> None:
    answer = send(scene, Call("POST /run/{serviceName}", 500, {"serviceName": "{failing}"}, content=b"{}"))
    assert answer.status_code == 500
    assert answer.headers["x-oscar-exit-code"] == "3"
    assert answer.text == "words\n"


def test_pages_of_jobs(scene: Scene) -> None:
    service = scene.service("sleep 600", concurrency=1)
    wanted = {scene.job(service) for _ in range(75)}
    first = scene.http.get(f"/system/logs/{service}").json()
    assert (len(first["jobs"]), first["remaining_jobs"]) == (70, 5)
    second = scene.http.get(f"/system/logs/{service}", params={"page": first["next_page"]}).json()
    assert (len(second["jobs"]), second["remaining_jobs"]) == (5, 0)
    assert "next_page" not in second
    assert first["jobs"].keys() | second["jobs"].keys() == wanted
    assert scene.http.delete(f"/system/logs/{service}", params={"all": "true"}).status_code == 204
    assert scene.http.get(f"/system/logs/{service}").json()["jobs"] == {}


def test_a_repeated_key_is_the_same_job(scene: Scene) -> None:
    service = scene.service()
    first, second = (
        scene.http.post(f"/job/{service}", content=b"{}", headers={"Idempotency-Key": "once"}) for _ in "ab"
    )
    assert first.json()["job_id"] == second.json()["job_id"]
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["location"] == f"/system/jobs/{service}/{first.json()['job_id']}"


def test_the_document_is_whole(scene: Scene) -> None:
    said = scene.http.get("/openapi.json").json()
    text = json.dumps(said)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert sorted(named - said["components"]["schemas"].keys()) == []
    for route, operation in document(scene).items():
        assert operation["summary"], route
        # Malformed input is 400 here, with an error of our form.
        assert "422" not in operation["responses"], route
    assert scene.http.get("/docs").status_code == 200
