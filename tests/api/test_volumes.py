"""Routes of managed volumes, and what services do with them, on the real Store with the process engine."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.conftest import Scene


@pytest.fixture
def name(scene: Scene) -> Iterator[str]:
    """A name for a volume, which is removed with the services that have it."""
    chosen = f"v-{uuid.uuid4().hex[:8]}"
    yield chosen
    found = scene.http.get(f"/system/volumes/{chosen}")
    if found.status_code == 200:
        for attachment in found.json()["attachments"]:
            scene.http.delete(f"/system/services/{attachment['service_name']}")
        scene.http.delete(f"/system/volumes/{chosen}")


def make(scene: Scene, name: str, size: str = "200Mi") -> dict[str, Any]:
    answer = scene.http.post("/system/volumes", json={"name": name, "size": size})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_a_volume_is_made_listed_read_and_deleted(scene: Scene, name: str) -> None:
    made = make(scene, name)
    assert {key: made[key] for key in ("name", "size", "creation_mode", "owner_user", "attachments")} == {
        "name": name,
        "size": "200Mi",
        "creation_mode": "api",
        "owner_user": "cluster_admin",
        "attachments": [],
    }
    assert made["status"]["phase"] == "Bound"
    assert made["status"]["attachment_count"] == 0
    assert name in [each["name"] for each in scene.http.get("/system/volumes").json()]
    assert scene.http.get(f"/system/volumes/{name}").json()["pvc_name"] == made["pvc_name"]
    assert scene.http.delete(f"/system/volumes/{name}").status_code == 204
    assert scene.http.get(f"/system/volumes/{name}").status_code == 404
    assert scene.http.delete(f"/system/volumes/{name}").status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "No_Name", "size": "1Gi"}, "name"),
        ({"name": "x" * 64, "size": "1Gi"}, "name"),
        ({"name": "fine", "size": "much"}, "size"),
        ({"name": "fine", "size": "199Mi"}, "size"),
        ({"name": "fine", "size": "6Gi"}, "size"),
    ],
)
def test_a_bad_volume_is_refused(scene: Scene, body: dict[str, str], field: str) -> None:
    answer = scene.http.post("/system/volumes", json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert "fine" not in [each["name"] for each in scene.http.get("/system/volumes").json()]


def test_a_name_is_taken_once(scene: Scene, name: str) -> None:
    make(scene, name)
    answer = scene.http.post("/system/volumes", json={"name": name, "size": "200Mi"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_limits_of_a_user(scene: Scene) -> None:
    made = []
    try:
        while True:
            name = f"v-{uuid.uuid4().hex[:8]}"
            answer = scene.http.post("/system/volumes", json={"name": name, "size": "200Mi"})
            if answer.status_code != 201:
                break
            made.append(name)
        assert answer.status_code == 400
        assert "may have 5" in answer.json()["message"]
        assert len(scene.http.get("/system/volumes").json()) == 5
        scene.http.delete(f"/system/volumes/{made.pop()}")
        answer = scene.http.post("/system/volumes", json={"name": "large", "size": "5Gi"})
        made.append("large")
        assert answer.status_code == 201
        scene.http.delete(f"/system/volumes/{made.pop(0)}")
        answer = scene.http.post("/system/volumes", json={"name": "larger", "size": "2Gi"})
        assert answer.status_code == 400
        assert "7Gi together" in answer.json()["message"]
    finally:
        for name in made:
            assert scene.http.delete(f"/system/volumes/{name}").status_code == 204


def test_service_tokens_and_strangers_have_no_volumes(scene: Scene) -> None:
    service = scene.service()
    assert scene.stranger("GET", "/system/volumes").status_code == 401
    assert scene.bearer(service, "GET", "/system/volumes").status_code == 403


def volume(**fields: str) -> dict[str, str]:
    return {"mount_path": "/data", **fields}


def test_a_service_makes_its_volume_and_takes_it_along(scene: Scene) -> None:
    service = scene.service("ls -d /data", volume=volume(size="200Mi"))
    found = scene.http.get(f"/system/volumes/{service}").json()
    assert found["attachments"] == [{"service_name": service, "mount_path": "/data"}]
    assert (found["created_by_service"], found["lifecycle_policy"]) == (service, "delete")
    assert found["creation_mode"] == "service"
    shown = scene.http.get(f"/system/services/{service}").json()
    assert shown["volume_status"] == {"enabled": True, "name": service, "phase": "Bound", "error": ""}
    listed = {each["name"]: each for each in scene.http.get("/system/services").json()}
    assert listed[service]["volume_status"]["phase"] == "Bound"
    refused = scene.http.delete(f"/system/volumes/{service}")
    assert (refused.status_code, refused.json()["code"]) == (400, "volume_in_use")
    assert scene.http.delete(f"/system/services/{service}").status_code == 204
    assert scene.http.get(f"/system/volumes/{service}").status_code == 404


def test_a_retained_volume_stays_and_can_be_attached(scene: Scene, name: str) -> None:
    first = scene.service(volume=volume(size="200Mi", name=name, lifecycle_policy="retain"))
    assert scene.http.delete(f"/system/services/{first}").status_code == 204
    second = scene.service(volume=volume(name=name))
    found = scene.http.get(f"/system/volumes/{name}").json()
    assert [each["service_name"] for each in found["attachments"]] == [second]
    assert scene.http.delete(f"/system/services/{second}").status_code == 204
    assert scene.http.get(f"/system/volumes/{name}").json()["attachments"] == []


def test_a_volume_that_another_service_attached_stays(scene: Scene, name: str) -> None:
    first = scene.service(volume=volume(size="200Mi", name=name))
    second = scene.service(volume=volume(name=name))
    assert scene.http.delete(f"/system/services/{first}").status_code == 204
    found = scene.http.get(f"/system/volumes/{name}").json()
    assert found["lifecycle_policy"] == "retain"
    assert scene.http.delete(f"/system/services/{second}").status_code == 204
    assert scene.http.get(f"/system/volumes/{name}").status_code == 200


def test_what_can_not_be_attached_is_refused_and_leaves_nothing(scene: Scene, name: str) -> None:
    definition = {"name": f"s-{name}", "image": "none", "script": "true"}
    answer = scene.http.post("/system/services", json={**definition, "volume": volume(name=name)})
    assert (answer.status_code, answer.json()["field"]) == (400, "volume.name")
    assert scene.http.get(f"/system/services/s-{name}").status_code == 404
    make(scene, name)
    answer = scene.http.post(
        "/system/services", json={**definition, "volume": volume(name=name, size="200Mi")}
    )
    assert answer.status_code == 409
    assert scene.http.get(f"/system/services/s-{name}").status_code == 404
    assert scene.http.get(f"/system/volumes/{name}").json()["attachments"] == []


@pytest.mark.parametrize("changed", [None, {"size": "300Mi"}, {"mount_path": "/other"}])
def test_the_volume_of_a_service_is_for_good(scene: Scene, changed: dict[str, str] | None) -> None:
    service = scene.service(volume=volume(size="200Mi"))
    definition = scene.http.get(f"/system/services/{service}").json()
    definition["volume"] = {**definition["volume"], **changed} if changed else None
    answer = scene.http.put("/system/services", json=definition)
    assert (answer.status_code, answer.json()["field"]) == (400, "volume")
    definition = scene.http.get(f"/system/services/{service}").json()
    assert scene.http.put("/system/services", json={**definition, "memory": "128Mi"}).status_code == 204
    scene.http.delete(f"/system/services/{service}")


def test_data_survives_jobs_and_warm_workers(scene: Scene) -> None:
    script = 'echo line >> "$OSCAR_VOLUME_PATH/lines"; wc -l < "$OSCAR_VOLUME_PATH/lines"'
    service = scene.service(script, volume=volume(size="200Mi"))
    for _ in range(2):
        assert scene.ended(service, scene.job(service))["status"] == "Succeeded"
    assert scene.http.post(f"/run/{service}", content=b"{}").text.strip() == "3"
    assert scene.http.post(f"/run/{service}", content=b"{}").text.strip() == "4"
    scene.http.delete(f"/system/services/{service}")
    assert scene.http.get(f"/system/volumes/{service}").status_code == 404


def test_a_volume_is_not_put_over_the_programs_of_this_machine(scene: Scene) -> None:
    definition = {"name": "over", "image": "none", "script": "true", "volume": {"size": "200Mi"}}
    definition["volume"] = {"size": "200Mi", "mount_path": "/usr/bin"}
    answer = scene.http.post("/system/services", json=definition)
    assert (answer.status_code, answer.json()["field"]) == (400, "volume.mount_path")
    assert scene.http.get("/system/volumes/over").status_code == 404
