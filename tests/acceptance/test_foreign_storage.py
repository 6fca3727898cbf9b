"""The real program between foreign stores: an event comes in, the file is fetched, results go to several stores.

The WebDAV server is a real one (wsgidav); Onedata and Rucio are those of `tests.foreign_servers`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import webdav_servers
from tests.foreign_servers import Catalogue, Dav, Oneprovider, Rucio, World, serving
from tests.server import Server
from tests.webdav_servers import PASSWORD, USER

TOKEN = "header.claims.an-access-token-of-ada"
SCRIPT = """
tr a-z A-Z <"$INPUT_FILE_PATH" >"$TMP_OUTPUT_DIR/big.txt"
mkdir "$TMP_OUTPUT_DIR/notes"
echo "$STORAGE_OBJECT_KEY" >"$TMP_OUTPUT_DIR/notes/key.log"
"""


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.endpoint, auth=(server.user, server.password), timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def dav(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdav_servers.Server]:
    with webdav_servers.wsgidav(tmp_path_factory.mktemp("wsgidav")) as running:
        yield running


def create(http: httpx2.Client, **definition: Any) -> str:
    name = f"far-{uuid.uuid4().hex[:8]}"
    body = {"name": name, "image": "busybox", "script": SCRIPT, **definition}
    answer = http.post("/system/services", json=body)
    assert answer.status_code == 201, answer.text
    return name


def run_job(http: httpx2.Client, name: str, event: dict[str, Any]) -> dict[str, Any]:
    posted = http.post(f"/job/{name}", json=event)
    assert posted.status_code == 201, posted.text
    for _ in range(12):
        answer = http.get(posted.headers["Location"], params={"wait": "10s"})
        found: dict[str, Any] = answer.json()
        if found.get("finish_time"):
            return found
    raise AssertionError(f"it did not end: {found}")


def log(http: httpx2.Client, name: str, job: dict[str, Any]) -> str:
    return http.get(f"/system/logs/{name}/{job['job_id']}").text


def test_dcache_event_to_webdav_and_the_own_store(
    http: httpx2.Client, server: Server, dav: webdav_servers.Server
) -> None:
    (dav.folder / "in").mkdir()
    (dav.folder / "in" / "my photo.txt").write_text("a picture " * 20_000)
    name = create(
        http,
        storage_providers={"webdav": {"dcache": {"hostname": dav.url, "login": USER, "password": PASSWORD}}},
        input=[{"storage_provider": "webdav.dcache", "path": "/in/"}],
        output=[
            {"storage_provider": "webdav.dcache", "path": "out/new", "suffix": ["txt"]},
            {"storage_provider": "minio.default", "path": "far-results/all"},
        ],
    )
    job = run_job(http, name, {"event": {"name": "my photo.txt", "mask": ["IN_CREATE"]}, "subscription": "s"})
    assert job["status"] == "Succeeded", log(http, name, job)
    assert (dav.folder / "out/new/big.txt").read_text() == "A PICTURE " * 20_000
    found = {str(path.relative_to(dav.folder)) for path in dav.folder.rglob("*") if path.is_file()}
    assert found == {"in/my photo.txt", "out/new/big.txt"}
    listed = http.get("/system/buckets/far-results").json()
    assert sorted(item["object_name"] for item in listed["objects"]) == ["all/big.txt", "all/notes/key.log"]
    said = log(http, name, job)
    assert "fetched webdav.dcache /in/my photo.txt (200000 bytes)" in said
    assert "stored big.txt (200000 bytes) as webdav.dcache /out/new/big.txt" in said
    shown = http.get(f"/system/services/{name}").text + http.get("/system/services").text + said
    assert PASSWORD not in shown
    assert PASSWORD not in server.log.read_text()


def test_events_of_our_own_half_written_files_start_nothing(
    http: httpx2.Client, dav: webdav_servers.Server
) -> None:
    name = create(
        http,
        storage_providers={"webdav": {"dcache": {"hostname": dav.url}}},
        input=[{"storage_provider": "webdav.dcache", "path": "in"}],
    )
    event = {"event": {"name": f".oscar-{'0' * 32}.part", "mask": ["IN_CREATE"]}, "subscription": "s"}
    http.post(f"/job/{name}", json=event)
    assert http.get(f"/system/logs/{name}").json()["jobs"] == {}


def test_a_file_that_is_not_there_fails_with_the_store_s_words(
    http: httpx2.Client, dav: webdav_servers.Server
) -> None:
    name = create(
        http,
        storage_providers={
            "webdav": {"dcache": {"hostname": dav.url, "login": USER, "password": "wrong one"}}
        },
        input=[{"storage_provider": "webdav.dcache", "path": "in"}],
        retry={"attempts": 0},
    )
    posted = http.post(f"/job/{name}", json={"event": {"name": "x"}, "subscription": "s"})
    assert posted.status_code == 201
    where = posted.headers["Location"]
    for _ in range(12):
        found = http.get(where, params={"wait": "10s"}).json()
        if "answered 401" in str(found):
            break
    assert "webdav.dcache /in/x" in str(found)
    assert "answered 401 to GET" in str(found)
    assert "wrong one" not in str(found)
    http.post(f"{where}/cancel")


def test_rucio_event_to_onedata_rucio_and_webdav(http: httpx2.Client, dav: webdav_servers.Server) -> None:
    catalogue, spaces = Catalogue(), World(folders={"/", "/lab"})
    with (
        serving(Dav, authorization=f"Bearer {TOKEN}") as (element_url, element),
        serving(Rucio, catalogue=catalogue, token=TOKEN) as (rucio_url, _),
        serving(Oneprovider, world=spaces, token="one-token") as (one_url, _),
    ):
        catalogue.elements = [element_url]
        catalogue.add("user.bob", "rucio__input__raw.txt", b"raw data", ("RSE0",))
        path = catalogue.pfn(0, "user.bob", "rucio__input__raw.txt").partition("://")[2].partition("/")[2]
        element.files[f"/{path}"] = b"raw data"
        name = create(
            http,
            storage_providers={
                "rucio": {"r": {"host": rucio_url, "account": "ada", "rse": "RSE0", "refresh_token": TOKEN}},
                "onedata": {"o": {"oneprovider_host": one_url, "token": "one-token", "space": "lab"}},
                "webdav": {"w": {"hostname": dav.url, "login": USER, "password": PASSWORD}},
            },
            input=[{"storage_provider": "rucio.r", "path": "rucio/input"}],
            output=[
                {"storage_provider": "rucio.r", "path": "done"},
                {"storage_provider": "onedata.o", "path": "results/day 1"},
                {"storage_provider": "webdav.w", "path": "logs", "suffix": [".log"]},
            ],
        )
        event = {
            "event_type": "transfer-done",
            "payload": {"scope": "user.bob", "name": "rucio__input__raw.txt"},
        }
        job = run_job(http, name, event)
        assert job["status"] == "Succeeded", log(http, name, job)
    assert spaces.files == {
        "/lab/results/day 1/big.txt": b"RAW DATA",
        "/lab/results/day 1/notes/key.log": b"rucio__input__raw.txt\n",
    }
    assert {known for scope, known in catalogue.replicas if scope == "ada"} == {
        "done__big.txt",
        "done__notes__key.log",
    }
    assert (Path(dav.folder) / "logs/notes/key.log").read_text() == "rucio__input__raw.txt\n"
    assert TOKEN not in log(http, name, job)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"input": [{"storage_provider": "webdav.x", "path": "in"}]},
            'the StorageProvider "webdav.x" is not defined',
        ),
        (
            {"output": [{"storage_provider": "rucio.y", "path": "o"}]},
            'the StorageProvider "rucio.y" is not defined',
        ),
        (
            {
                "input": [{"storage_provider": "onedata.o", "path": "in"}],
                "storage_providers": {
                    "onedata": {"o": {"oneprovider_host": "h", "token": "t", "space": "s"}}
                },
            },
            "unrecognized input (valid inputs are MinIO and dCache)",
        ),
    ],
)
def test_definitions_that_are_refused(http: httpx2.Client, change: dict[str, Any], message: str) -> None:
    answer = http.post("/system/services", json={"name": "far-no", "image": "i", "script": "s", **change})
    assert answer.status_code == 400
    assert message in answer.json()["message"]
