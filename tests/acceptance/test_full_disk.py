"""A disk that is nearly full: intake is refused with 507 and leaves nothing, what is there stays readable."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests import server as servers
from tests.acceptance.calls import at, client, create, jobs, objects, put

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a service and an object, made while there was room."""
    place = tmp_path_factory.mktemp("full") / "data"
    with servers.running(place) as roomy, client(roomy) as http:
        create(http, "echo ran", name="full", input=at("full/in"))
        put(http, "full", "kept", b"kept")
    return place


@pytest.fixture
def http(data: Path) -> Iterator[httpx2.Client]:
    # As if the disk were full: more is to stay free than there is.
    reserve = shutil.disk_usage(data).total // MIB + 1
    with (
        servers.running(data, OSCAR_DISK_RESERVE_MB=str(reserve)) as full,
        client(full) as made,
    ):
        yield made


def test_intake_is_refused(http: httpx2.Client) -> None:
    for body in (b"{}", b'{"a": "' + b"x" * MIB + b'"}'):
        answer = http.post("/job/full", content=body)
        assert answer.status_code == 507, answer.text
        assert answer.json()["code"] == "storage_full"
        assert answer.json()["message"]
    link = http.post(
        "/system/buckets/full/presign", json={"object_key": "in/new", "operation": "upload"}
    ).json()
    refused = httpx2.put(link["url"], content=b"new", headers=link["headers"])
    assert refused.status_code == 507, refused.text
    assert "<Code>" in refused.text
    assert jobs(http, "full") == {}
    assert objects(http, "full") == ["kept"]
    # What is there can be read and removed, and that is the way out.
    link = http.post(
        "/system/buckets/full/presign", json={"object_key": "kept", "operation": "download"}
    ).json()
    assert httpx2.get(link["url"]).content == b"kept"
    assert http.get("/system/services/full").status_code == 200
    assert http.get("/health").text == "Ok"
    assert http.delete("/system/buckets/full", params={"force": "true"}).status_code == 409
    assert http.delete("/system/services/full", params={"data": "true"}).status_code == 204
    assert http.get("/system/buckets/full").status_code == 404
