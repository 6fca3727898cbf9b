"""Quotas, allowed images, status and the server's log through the API, with jobs that really run."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Scene, application
from tests.api.test_routes import check_error

USERS = "/system/quotas/user"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quotas") / "data"


@pytest.fixture(scope="module")
def scene(folder: Path) -> Iterator[Scene]:
    """An application of its own: what is set here must not hold for other tests."""
    with application(folder, max_running=8) as running:
        yield running


@pytest.fixture
def user() -> str:
    """A user of whom nothing is known yet."""
    return f"user-{uuid.uuid4().hex[:8]}@example.org"


def limit(scene: Scene, user: str, **limits: Any) -> dict[str, Any]:
    answer = scene.http.put(f"{USERS}/{user}", json=limits)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def refused(scene: Scene, fields: dict[str, Any], status: int, code: str, at: str = "") -> dict[str, Any]:
    """Try to create a service; the error, after looking at its form."""
    name = f"s-{uuid.uuid4().hex[:8]}"
    definition = {"name": name, "image": "none", "script": "true", **fields}
    answer = scene.http.post("/system/services", json=definition)
    assert answer.status_code == status, answer.text
    check_error(answer, code, at)
    assert scene.http.get(f"/system/services/{name}").status_code == 404
    said: dict[str, Any] = answer.json()
    return said


# --- quotas ----------------------------------------------------------------------------------------------


def test_quotas_have_the_form_of_the_api(scene: Scene, user: str) -> None:
    said = limit(
        scene,
        user,
        cpu="1500",
        memory="2Gi",
        gpu="1",
        ephemeral_storage="1G",
        minio={"buckets": "3", "storage_per_bucket": "5Gi"},
        volumes={"disk": "6Gi", "volumes": "2", "max_disk_per_volume": "3Gi"},
    )
    assert said == {
        "user_id": user,
        "cluster_queue": "",
        "resources": {
            "cpu": {"max": 1500, "used": 0},
            "memory": {"max": 2 * 1024**3, "used": 0},
            "gpu": {"max": 1, "used": 0},
            "ephemeral-storage": {"max": 10**9, "used": 0},
        },
        "minio": {
            "buckets": {"max": 3, "used": 0},
            "storage_per_bucket": {"max": "5Gi"},
            "storage_total": {"used": "0"},
        },
        "volumes": {
            "disk": {"max": "6Gi", "used": "0"},
            "volumes": {"max": "2", "used": "0"},
            "max_disk_per_volume": "3Gi",
            "min_disk_per_volume": "200Mi",
        },
    }
    assert scene.http.get(f"{USERS}/{user}").json() == said
    # What is not given stays; `none` lifts.
    said = limit(scene, user, cpu="none")
    assert said["resources"]["cpu"] == {"used": 0}
    assert said["resources"]["memory"]["max"] == 2 * 1024**3
    own = scene.http.get(USERS).json()
    assert (own["user_id"], own["resources"]["cpu"]) == (
        "cluster_admin",
        {"used": own["resources"]["cpu"]["used"]},
    )


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({}, "quotas"),
        ({"cpu": ""}, "quotas"),
        ({"minio": {}}, "quotas"),
        ({"cpu": "much"}, "cpu"),
        ({"cpu": "-1"}, "cpu"),
        ({"cpu": True}, "cpu"),
        ({"memory": "1Xi"}, "memory"),
        ({"memory": "9" * 40}, "memory"),
        ({"cpu": "9" * 40}, "cpu"),
        ({"gpu": "half"}, "gpu"),
        ({"minio": {"buckets": "-2"}}, "minio.buckets"),
        ({"minio": {"storage_per_bucket": "x"}}, "minio.storage_per_bucket"),
        ({"minio": {"objects": "1"}}, "minio.objects"),
        ({"minio": "5"}, "minio"),
        ({"volumes": {"disk": "x"}}, "volumes.disk"),
        ({"volumes": {"volumes": "x"}}, "volumes.volumes"),
        ({"disk": "5Gi"}, "disk"),
    ],
)
def test_what_can_t_be_taken_is_named(scene: Scene, user: str, body: dict[str, Any], at: str) -> None:
    answer = scene.http.put(f"{USERS}/{user}", json=body)
    assert answer.status_code == 400, answer.text
    check_error(answer, at=at)
    assert scene.http.get(f"{USERS}/{user}").json()["resources"]["cpu"] == {"used": 0}


def test_the_administrator_has_no_quota(scene: Scene) -> None:
    answer = scene.http.put(f"{USERS}/cluster_admin", json={"cpu": "1"})
    assert answer.status_code == 400
    check_error(answer, "invalid_field", "userId")


def test_jobs_over_the_quota_wait_as_suspended_and_start_when_there_is_room(scene: Scene, user: str) -> None:
    limit(scene, user, cpu="300")
    service = scene.service("sleep 600", owner=user, cpu="0.2")
    jobs = [scene.job(service) for _ in range(3)]

    def states() -> list[str]:
        listed = scene.http.get(f"/system/logs/{service}").json()["jobs"]
        return sorted(job["status"] for job in listed.values())

    running = next(job for job in jobs if begun(scene, service, job))
    assert states() == ["Running", "Suspended", "Suspended"]
    waiting = next(job for job in jobs if job != running)
    assert scene.http.get(f"/system/jobs/{service}/{waiting}").json()["status"] == "Suspended"
    assert scene.http.get(f"{USERS}/{user}").json()["resources"]["cpu"] == {"max": 300, "used": 200}
    limit(scene, user, cpu="600")
    assert all(begun(scene, service, job) for job in jobs)
    assert states() == ["Running"] * 3
    assert scene.http.delete(f"/system/logs/{service}", params={"all": "true"}).status_code == 204
    assert scene.http.get(f"{USERS}/{user}").json()["resources"]["cpu"]["used"] == 0


def begun(scene: Scene, service: str, job: str) -> bool:
    """Whether the job runs, after waiting as long as it is on its way."""
    while True:
        said = scene.http.get(f"/system/jobs/{service}/{job}", params={"wait": "50ms"}).json()
        if said["status"] != "Pending":
            return bool(said["status"] == "Running")


@pytest.mark.parametrize(
    ("limits", "fields", "at"),
    [
        ({"cpu": "500"}, {"cpu": "1"}, "cpu"),
        ({"memory": "1Gi"}, {"memory": "2Gi"}, "memory"),
        ({"gpu": "0"}, {"enable_gpu": True}, "enable_gpu"),
        ({"ephemeral_storage": "1Gi"}, {"ephemeral_storage_request": "2Gi"}, "ephemeral_storage_request"),
    ],
)
def test_a_service_that_could_never_run_is_refused(
    scene: Scene, user: str, limits: dict[str, str], fields: dict[str, Any], at: str
) -> None:
    limit(scene, user, **limits)
    refused(scene, {"owner": user, **fields}, 400, "invalid_field", at)
    assert scene.service(**fields)  # the administrator's own


def test_results_over_the_quota_fail_the_job_with_that_reason(scene: Scene, user: str) -> None:
    limit(scene, user, minio={"storage_per_bucket": "1Mi"})
    bucket = f"b-{uuid.uuid4().hex[:8]}"
    service = scene.service(
        'head -c 2000000 /dev/zero > "$TMP_OUTPUT_DIR/large"; echo made',
        owner=user,
        output=[{"storage_provider": "minio", "path": f"{bucket}/out"}],
        log_level="INFO",
    )
    job = scene.job(service)
    said = scene.ended(service, job)
    assert (said["status"], said["reason"], said["attempt"]) == ("Failed", "quota_exceeded", 1)
    assert bucket in said["message"]
    assert "quota" in scene.http.get(f"/system/logs/{service}/{job}").text
    shown = scene.http.get(f"/system/buckets/{bucket}").json()
    assert shown["objects"] == []
    assert shown["storage_quota"] == {"max": "1Mi", "max_bytes": 1024**2, "source": "user"}
    limit(scene, user, minio={"storage_per_bucket": "4Mi"})
    again = scene.http.post(f"/system/jobs/{service}/{job}/rerun").json()["job_id"]
    assert scene.ended(service, again)["status"] == "Succeeded"
    shown = scene.http.get(f"/system/buckets/{bucket}").json()
    assert shown["storage_usage"] == {"used_bytes": 2000000, "used": "2000000", "objects": 1}
    assert shown["metadata"] == {"from_service": service}
    assert shown["owner"] == user
    used = scene.http.get(f"{USERS}/{user}").json()["minio"]
    assert (used["buckets"]["used"], used["storage_total"]["used"]) == (1, "2000000")


def test_a_service_with_too_many_buckets_leaves_none_behind(scene: Scene, user: str) -> None:
    limit(scene, user, minio={"buckets": "1"})
    names = [f"b-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    outputs = [{"storage_provider": "minio", "path": f"{name}/out"} for name in names]
    refused(scene, {"owner": user, "output": outputs}, 403, "quota_exceeded")
    assert not {bucket["bucket_name"] for bucket in scene.http.get("/system/buckets").json()} & set(names)
    assert scene.service(owner=user, output=outputs[:1])


def test_buckets_are_listed_with_all_fields(scene: Scene) -> None:
    name = scene.bucket()
    listed = {bucket["bucket_name"]: bucket for bucket in scene.http.get("/system/buckets").json()}
    assert listed[name] == {
        "bucket_name": name,
        "visibility": "private",
        "allowed_users": [],
        "owner": "cluster_admin",
        "metadata": {"from_service": "false"},
        "attribution": "user",
        "storage_usage": {"used_bytes": 0, "used": "0", "objects": 0},
    }


# --- images ----------------------------------------------------------------------------------------------


@pytest.fixture
def images(scene: Scene, folder: Path) -> Iterator[Path]:
    """The database, and afterwards again no list."""
    yield folder / "oscar.db"
    assert scene.http.put("/system/config", json={"allowed_image_repositories": []}).status_code == 200


def test_defect_16_images_are_allowed_by_their_path_and_not_by_a_part_of_the_text(
    scene: Scene, images: Path
) -> None:
    before = scene.service()
    places = ["ghcr.io/grycap", "ubuntu"]
    answer = scene.http.put("/system/config", json={"allowed_image_repositories": places})
    assert answer.status_code == 200
    assert answer.json()["allowed_image_repositories"] == places
    assert scene.http.get("/system/config").json()["allowed_image_repositories"] == places
    for image in ("evil.io/ghcr.io/grycap/x", "ghcr.io/grycapevil/x", "none", "docker.io/evil/ubuntu"):
        said = refused(scene, {"image": image}, 400, "invalid_field", "image")
        assert "ghcr.io/grycap" in said["fix"]
    allowed = scene.service(image="ghcr.io/grycap/cowsay:1.0")
    definition = {"name": allowed, "image": "quay.io/x/y", "script": "true"}
    answer = scene.http.put("/system/services", json=definition)
    assert answer.status_code == 400
    check_error(answer, "invalid_field", "image")
    # What was there before goes on.
    assert scene.ended(before, scene.job(before))["status"] == "Succeeded"


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({"allowed_image_repositories": "ghcr.io"}, "allowed_image_repositories"),
        ({"allowed_image_repositories": ["ghcr.io", "a b"]}, "allowed_image_repositories[1]"),
        ({"allowed_image_repositories": [""]}, "allowed_image_repositories[0]"),
        ({"allowed_image_repositories": None}, "allowed_image_repositories"),
        ({"allowed_image_repositories": ["a"] * 2000}, "allowed_image_repositories"),
        ({}, "allowed_image_repositories"),
        ({"name": "mine"}, "name"),
    ],
)
def test_a_malformed_list_changes_nothing(scene: Scene, images: Path, body: dict[str, Any], at: str) -> None:
    good = {"allowed_image_repositories": ["quay.io"]}
    assert scene.http.put("/system/config", json=good).status_code == 200
    answer = scene.http.put("/system/config", json=body)
    assert answer.status_code == 400
    check_error(answer, at=at)
    assert scene.http.get("/system/config").json()["allowed_image_repositories"] == ["quay.io"]


@pytest.mark.parametrize("stored", ["not json", '"ghcr.io"', '["a b"]', "[1]", "null"])
def test_a_stored_list_that_can_t_be_read_allows_nothing(scene: Scene, images: Path, stored: str) -> None:
    assert scene.http.put("/system/config", json={"allowed_image_repositories": []}).status_code == 200
    with sqlite3.connect(images) as database:
        database.execute(
            "UPDATE meta SET value = ? WHERE key = 'config.allowed_image_repositories'", (stored,)
        )
    database.close()
    refused(scene, {"image": "ghcr.io/grycap/x"}, 503, "unavailable", "allowed_image_repositories")
    assert scene.http.get("/system/config").status_code == 503


# --- who may ---------------------------------------------------------------------------------------------


def test_a_service_token_opens_none_of_it(scene: Scene, user: str) -> None:
    service = scene.service()
    for method, path, body in (
        ("GET", USERS, None),
        ("GET", f"{USERS}/{user}", None),
        ("PUT", f"{USERS}/{user}", {"cpu": "1"}),
        ("PUT", "/system/config", {"allowed_image_repositories": []}),
        ("GET", "/system/logs", None),
        ("GET", "/system/logs/", None),
        ("GET", f"/system/federation/{service}", None),
        ("POST", f"/system/replicas/{service}", {}),
    ):
        answer = scene.bearer(service, method, path, json=body)
        assert answer.status_code == 403, (path, answer.text)
        check_error(answer, "forbidden")


# --- status and log --------------------------------------------------------------------------------------


def test_status_tells_what_there_is_and_what_runs(scene: Scene) -> None:
    service = scene.service("sleep 600", cpu="0.3", memory="100Mi")
    job = scene.job(service)
    assert begun(scene, service, job)
    said = scene.http.get("/system/status").json()
    [node] = said["cluster"]["nodes"]
    assert node["cpu"]["request_cores"] >= 300
    assert node["memory"]["request_bytes"] >= 100 * 1024**2
    assert node["memory"]["usage_bytes"] > 0
    assert {each["type"] for each in node["conditions"]} == {"Ready", "MemoryPressure", "DiskPressure"}
    cpu = said["cluster"]["metrics"]["cpu"]
    assert cpu["total_schedulable_cores"] == node["cpu"]["capacity_cores"] - node["cpu"]["request_cores"]
    assert said["oscar"]["pods"]["states"]["Running"] >= 1
    assert said["oscar"]["deployment"]["ready_replicas"] == 1
    assert said["oscar"]["jobs_count"] == sum(said["oscar"]["pods"]["states"].values())
    assert said["minio"]["buckets_count"] == len(scene.http.get("/system/buckets").json())
    assert scene.http.delete(f"/system/logs/{service}/{job}").status_code == 204


def test_the_servers_log_shows_calls_page_by_page(scene: Scene) -> None:
    service = scene.service()
    for _ in range(5):
        scene.job(service)
    scene.stranger("POST", f"/run/{service}", headers={"Authorization": "Bearer planted-secret"})
    path = "/system/logs"
    newest = scene.http.get(path, params={"tail": 2}).json()
    assert [entry["status"] for entry in newest["logs"]] == [201, 401]
    entry = newest["logs"][0]
    assert entry.keys() == {"timestamp", "status", "latency", "client_ip", "method", "path", "user", "raw"}
    assert (entry["method"], entry["path"], entry["user"]) == ("POST", f"/job/{service}", "cluster_admin")
    assert entry["raw"].startswith("[GIN-EXECUTIONS-LOGGER] ")
    pages = [newest]
    scene.job(service)  # what comes meanwhile does not move the pages
    while "next_page" in pages[-1]:
        pages.append(scene.http.get(path, params={"tail": 2, "page": pages[-1]["next_page"]}).json())
    seen = [each["raw"] for page in reversed(pages) for each in page["logs"]]
    whole = [each["raw"] for each in scene.http.get(f"{path}/", params={"tail": 10_000}).json()["logs"]]
    assert seen == whole[:-1]
    text = scene.http.get(path, params={"tail": 1, "timestamps": "true"}, headers={"Accept": "text/plain"})
    assert text.headers["content-type"].startswith("text/plain")
    assert text.text.startswith("20")
    assert text.headers["x-next-page"]
    assert "planted-secret" not in scene.http.get(path, params={"all": "true", "tail": 10_000}).text
    assert scene.http.get(path, params={"previous": "true"}).json() == {"logs": []}
    for query, at in (({"page": "x"}, "page"), ({"tail": "0"}, "tail"), ({"tail": "99999"}, "tail")):
        answer = scene.http.get(path, params=query)
        assert answer.status_code == 400
        check_error(answer, at=at)
