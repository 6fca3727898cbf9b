"""Quotas, configuration, log and buckets as users of an identity provider see them: theirs, and nothing of others."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests import oidc
from tests.api.test_routes import check_error
from tests.town import ALLY, OTHER, OWNER, Town, town_on

USERS = "/system/quotas/user"


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town") / "data"
    limits = {"quota_cpu": "1", "minio_quota_enabled": True, "quota_buckets": 3}
    with (
        oidc.running() as issuer,
        oidc.running() as stranger,
        town_on(folder, issuer, stranger, **limits) as town,
    ):
        yield town


def test_a_user_sees_his_own_quotas_and_only_administrators_those_of_others(town: Town) -> None:
    own = town.call("owner", "GET", USERS).json()
    assert own["user_id"] == OWNER
    assert own["resources"]["cpu"] == {"max": 1000, "used": 0}
    assert own["minio"]["buckets"]["max"] == 3
    for path in (f"{USERS}/{OWNER}", f"{USERS}/{OTHER}"):
        for method, body in (("GET", None), ("PUT", {"cpu": "none"})):
            answer = town.call("owner", method, path, json=body)
            assert answer.status_code == 403
            check_error(answer, "forbidden")
    for who in ("administrator", "oidc administrator"):
        assert town.call(who, "GET", f"{USERS}/{OWNER}").json() == own
        assert town.call(who, "PUT", f"{USERS}/{OTHER}", json={"cpu": "2000"}).status_code == 200
    assert town.call("other user", "GET", USERS).json()["resources"]["cpu"]["max"] == 2000
    # Administrators have no quotas unless one was set for them.
    assert "max" not in town.call("oidc administrator", "GET", USERS).json()["resources"]["cpu"]


def test_539_only_administrators_change_the_configuration(town: Town) -> None:
    body = {"allowed_image_repositories": ["evil.io"]}
    for who in ("owner", "allowed user", "other user"):
        answer = town.call(who, "PUT", "/system/config", json=body)
        assert answer.status_code == 403
        assert town.call(who, "GET", "/system/config").json()["allowed_image_repositories"] == []
    for who in ("administrator", "oidc administrator"):
        assert (
            town.call(who, "PUT", "/system/config", json={"allowed_image_repositories": []}).status_code
            == 200
        )


def test_the_servers_log_is_for_administrators(town: Town) -> None:
    for path in ("/system/logs", "/system/logs/"):
        assert town.call("owner", "GET", path).status_code == 403
        assert town.call("oidc administrator", "GET", path).status_code == 200


def test_546_552_who_shares_a_bucket_does_not_own_it(town: Town) -> None:
    name = town.bucket("public")
    for who in ("allowed user", "other user"):
        assert town.call(who, "GET", f"/system/buckets/{name}").status_code == 200
        assert town.call(who, "DELETE", f"/system/buckets/{name}").status_code == 403
        body = {"bucket_name": name, "visibility": "private"}
        assert town.call(who, "PUT", "/system/buckets", json=body).status_code == 403
    assert town.call("owner", "DELETE", f"/system/buckets/{name}").status_code == 204
    hidden = town.bucket("private")
    assert town.call("other user", "DELETE", f"/system/buckets/{hidden}").status_code == 404
    shown = town.call("owner", "GET", f"/system/buckets/{hidden}").json()
    assert (shown["owner"], shown["metadata"]) == (OWNER, {"from_service": "false"})
    assert town.call("owner", "DELETE", f"/system/buckets/{hidden}").status_code == 204


def test_a_user_may_own_so_many_buckets(town: Town) -> None:
    names = [f"b-{uuid.uuid4().hex[:8]}" for _ in range(4)]
    answers = [
        town.call("allowed user", "POST", "/system/buckets", json={"bucket_name": name}) for name in names
    ]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 403]
    check_error(answers[3], "quota_exceeded", "bucket_name")
    assert town.call("administrator", "GET", f"{USERS}/{ALLY}").json()["minio"]["buckets"] == {
        "max": 3,
        "used": 3,
    }
    assert town.call("allowed user", "DELETE", f"/system/buckets/{names[0]}").status_code == 204
    again = town.call("allowed user", "POST", "/system/buckets", json={"bucket_name": names[3]})
    assert again.status_code == 201


def test_status_counts_for_a_user_what_is_his(town: Town) -> None:
    service = town.service("public", who="owner")
    town.run(service, "owner")
    mine = town.call("owner", "GET", "/system/status").json()
    other = town.call("other user", "GET", "/system/status").json()
    everybody = town.call("administrator", "GET", "/system/status").json()
    assert mine["oscar"]["jobs_count"] >= 1
    assert other["oscar"]["jobs_count"] == 0
    assert other["minio"] == {"buckets_count": 0, "total_objects": 0}
    assert everybody["oscar"]["jobs_count"] >= mine["oscar"]["jobs_count"]
    assert other["cluster"]["nodes_count"] == everybody["cluster"]["nodes_count"] == 1


def test_workers_that_are_always_there_must_fit(town: Town) -> None:
    body = {
        "name": "always",
        "image": "none",
        "script": "true",
        "cpu": "0.4",
        "synchronous": {"min_scale": 3},
    }
    answer = town.call("owner", "POST", "/system/services", json=body)
    assert answer.status_code == 400
    check_error(answer, "invalid_field", "cpu")
