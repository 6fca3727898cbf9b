"""Whatever is sent to any route of the OpenAPI document: an answer that the document has, and never a fault of ours."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.conftest import Scene
from tests.api.test_routes import check_error, document
from tests.routes import routes

# What the parts of the program give a meaning to, beside any text.
words = st.sampled_from(
    [
        "",
        ".",
        "..",
        "0",
        "-1",
        "1e9",
        "true",
        "null",
        "30s",
        "a/b",
        "a%2fb",
        "\0",
        "é",
        "\ud800",
        "x" * 300,
        "%",
        "%00",
    ]
) | st.text(max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
fields = [
    *(
        "name",
        "image",
        "script",
        "memory",
        "cpu",
        "input",
        "output",
        "environment",
        "retry",
        "storage_providers",
    ),
    *(
        "synchronous",
        "expose",
        "volume",
        "mount",
        "federation",
        "kserve",
        "labels",
        "allowed_users",
        "visibility",
    ),
    *(
        "bucket_name",
        "object_key",
        "operation",
        "expires_in",
        "extra_headers",
        "concurrency",
        "isolation_level",
    ),
]
valid: dict[str, Any] = {
    "name": "fuzzed",
    "image": "none",
    "script": "true",
    "bucket_name": "fuzzed",
    "object_key": "a",
    "operation": "upload",
    "output": [{"storage_provider": "minio", "path": "fuzzed/out"}],
}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A body that is nearly right, or anything."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=50))
    changes = draw(st.dictionaries(st.sampled_from(fields), values, max_size=3))
    return json.dumps(valid | changes).encode()


def text_of(value: str) -> str:
    return quote(value.encode("utf-8", "surrogatepass"), safe="")


@pytest.fixture(
    scope="module", params=["scene", pytest.param("postgres_scene", marks=pytest.mark.postgres)], ids=str
)
def anywhere(request: pytest.FixtureRequest) -> Scene:
    """The application on either database, with the service and the bucket of the calls."""
    scene: Scene = request.getfixturevalue(request.param)
    scene.service(**valid)
    return scene


@pytest.mark.parametrize("route", routes())
@given(data=st.data())
@settings(
    max_examples=12,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_input_is_a_fault_of_ours(anywhere: Scene, route: str, data: st.DataObject) -> None:
    method, template = route.split()
    operation = document(anywhere)[route]
    path, query, headers = template, [], {}
    for parameter in operation.get("parameters", []):
        name, value = parameter["name"], data.draw(words, label=parameter["name"])
        match parameter["in"]:
            case "path":
                # Half of the time something that is there.
                given_ = {"serviceName": "fuzzed", "bucket": "fuzzed"}.get(name, value)
                path = path.replace(
                    f"{{{name}}}", text_of(data.draw(st.sampled_from([value, given_])) or "-")
                )
            case "query":
                query += [f"{name}={text_of(value)}"] if data.draw(st.booleans()) else []
            case "header":
                headers[name] = text_of(value)
    content = data.draw(bodies()) if method in {"POST", "PUT"} else None
    # Not for minutes: a duration that is one is waited for.
    query = [part for part in query if not part.startswith("wait=")]
    answer = anywhere.http.request(method, f"{path}?{'&'.join(query)}", content=content, headers=headers)
    # 501 says what this release has not.
    assert answer.status_code < 500 or answer.status_code == 501, answer.text
    if answer.status_code >= 400:
        check_error(answer)
        if answer.json()["code"] not in {"no_such_route", "method_not_allowed"}:
            assert str(answer.status_code) in operation["responses"], answer.text
