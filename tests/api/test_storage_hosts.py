"""Where storage providers of users may lie: refused when a service is taken, and again before each of its runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import oidc
from tests.oidc import Issuer
from tests.town import Town, town_on

KEYS = {"access_key": "a", "secret_key": "s"}
ONEDATA = {"token": "t", "space": "s"}
RUCIO = {"account": "a", "refresh_token": "r", "rse": "R"}
PRIVATE = {
    "minio.far.endpoint": {"minio": {"far": {"endpoint": "http://10.0.0.1:9000", **KEYS}}},
    "webdav.far.hostname": {
        "webdav": {"far": {"hostname": "169.254.169.254", "login": "a", "password": "b"}}
    },
    "onedata.far.oneprovider_host": {"onedata": {"far": {"oneprovider_host": "[::1]", **ONEDATA}}},
    "rucio.far.host": {"rucio": {"far": {"host": "https://192.168.1.1", **RUCIO}}},
    "rucio.far.token_endpoint": {
        "rucio": {"far": {"host": "https://1.1.1.1", "token_endpoint": "https://localhost/token", **RUCIO}}
    },
}
NEAR: dict[str, Any] = {
    "storage_providers": {"minio": {"far": {"endpoint": "http://127.0.0.1:1", **KEYS}}},
    "output": [{"storage_provider": "minio.far", "path": "bucket/out"}],
}


@pytest.fixture(scope="module")
def issuers() -> Iterator[tuple[Issuer, Issuer]]:
    with oidc.running() as issuer, oidc.running() as stranger:
        yield issuer, stranger


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, issuers: tuple[Issuer, Issuer]) -> Iterator[Town]:
    with town_on(tmp_path_factory.mktemp("town") / "data", *issuers) as town:
        yield town


@pytest.mark.parametrize("field", PRIVATE)
def test_a_private_address_is_refused_by_its_field(town: Town, field: str) -> None:
    body = {"name": "far", "image": "none", "script": "true", "storage_providers": PRIVATE[field]}
    answer = town.call("owner", "POST", "/system/services", json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, f"storage_providers.{field}"), answer.text
    assert "private address" in answer.json()["message"]
    assert "OSCAR_STORAGE_ALLOWED_HOSTS" in answer.json()["fix"]
    assert town.call("owner", "GET", "/system/services/far").status_code == 404
    # Nor by a change of what was taken before.
    name = town.service()
    answer = town.call("owner", "PUT", "/system/services", json=body | {"name": name})
    assert (answer.status_code, answer.json()["field"]) == (400, f"storage_providers.{field}")
    # The administrator's own may be anywhere.
    assert town.service(who="administrator", storage_providers=PRIVATE[field])


def test_a_host_is_asked_for_again_before_each_run(tmp_path: Path, issuers: tuple[Issuer, Issuer]) -> None:
    with town_on(tmp_path / "data", *issuers, storage_hosts=("127.0.0.1",)) as town:
        name = town.service(**NEAR)
    with town_on(tmp_path / "data", *issuers) as town:
        job = town.run(name, "owner")
        deadline = time.monotonic() + 60
        while "finish_time" not in (
            found := town.call("owner", "GET", f"/system/jobs/{name}/{job}?wait=30s").json()
        ):
            assert time.monotonic() < deadline, found
        assert found["status"] == "Failed"
        assert 'The host "127.0.0.1" has a private address' in str(found)
