"""Many users: who they are, what they get at first sight, and what they have apart from one another."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from oscar.app.lifespan import lifespan
from oscar.app.start import Start
from oscar.core.platform import Signals
from oscar.errors import EngineMissing
from oscar.settings import Settings
from tests import oidc
from tests.oidc import KEYS, USER_INFO
from tests.server import sandbox_works
from tests.town import ALLY, CHIEF, GROUP, OTHER, OWNER, REFUSED, Town, town_on


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    with (
        oidc.running() as issuer,
        oidc.running() as stranger,
        town_on(tmp_path / "data", issuer, stranger) as town,
    ):
        yield town


@pytest.fixture
def two_issuers(tmp_path: Path) -> Iterator[Town]:
    with (
        oidc.running() as one,
        oidc.running() as two,
        town_on(tmp_path / "data", one, two, oidc_issuers=(one.url, two.url)) as town,
    ):
        yield town


def names(answer: Any) -> list[str]:
    return [service["name"] for service in answer.json()]


def private_bucket(bucket: str, user: str) -> str:
    return f"{bucket}-{hashlib.sha256(user.encode()).hexdigest()[:10]}"


# --- first sight -----------------------------------------------------------------------------------------


def test_defect_18_the_configuration_shows_each_caller_his_own_keys_only(town: Town) -> None:
    keys = {}
    for who in ("owner", "allowed user", "oidc administrator", "administrator"):
        answer = town.call(who, "GET", "/system/config")
        assert answer.headers["cache-control"] == "no-store"
        said = answer.json()["minio_provider"]
        keys[said["access_key"]] = said["secret_key"]
    assert set(keys) == {OWNER, ALLY, CHIEF, "oscar-admin"}
    assert len(set(keys.values())) == 4
    again = town.call("owner", "GET", "/system/config")
    assert keys[OWNER] == again.json()["minio_provider"]["secret_key"]
    others = [secret for key, secret in keys.items() if key != OWNER]
    assert not any(secret in again.text for secret in others)
    # Who calls for a service needs none, and nobody gets none.
    town.tokens["service"] = town.own_token(town.service("public"))
    refused = [town.call("service", "GET", "/system/config"), town.call("nobody", "GET", "/system/config")]
    assert [answer.status_code for answer in refused] == [403, 401]
    shown = town.call("owner", "GET", "/system/services").text + "".join(each.text for each in refused)
    assert not any(secret in shown for secret in keys.values())


def test_many_first_requests_at_once(town: Town) -> None:
    town.headers("newcomer")
    barrier = threading.Barrier(8)

    def first(_: int) -> str:
        barrier.wait(30)
        answer = town.call("newcomer", "GET", "/system/config")
        assert answer.status_code == 200, answer.text
        return str(answer.json()["minio_provider"]["secret_key"])

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(first, range(8)))) == 1


def test_defect_10_a_warm_request_asks_the_issuer_nothing(town: Town) -> None:
    town.issuer.people[OTHER] = {"groups": [GROUP]}
    town.tokens["bare"] = town.issuer.token(OTHER, name=None)
    assert town.call("bare", "GET", "/system/services").status_code == 200
    before = town.issuer.asked.copy()
    assert before[USER_INFO] == before[KEYS] == 1
    for path in ("/system/services", "/system/config", "/system/info", "/system/buckets"):
        assert town.call("bare", "GET", path).status_code == 200
    assert town.issuer.asked == before


def test_defect_11_a_refused_token_goes_no_further(town: Town) -> None:
    before = names(town.call("administrator", "GET", "/system/services"))
    body = {"name": "made-by-nobody", "image": "none", "script": "true"}
    for who in ("foreign issuer", "not a token", "expired", "forged", "outsider"):
        assert town.call(who, "POST", "/system/services", json=body).status_code == 401
        assert town.call(who, "GET", "/system/config").status_code == 401
    assert names(town.call("administrator", "GET", "/system/services")) == before


def test_a_poller_with_an_old_token_locks_nobody_out(tmp_path: Path) -> None:
    with (
        oidc.running() as issuer,
        oidc.running() as stranger,
        town_on(tmp_path / "data", issuer, stranger, login_failures=5) as town,
    ):
        for _ in range(20):
            for who in ("expired", "outsider", "nobody"):
                assert town.call(who, "GET", "/system/info").status_code == 401
                assert town.call(who, "GET", "/system/services/none/auth").status_code == 401
        assert town.call("owner", "GET", "/system/info").status_code == 200


@pytest.mark.parametrize(
    "who", ["wrong password", "forged", "not a token", "foreign issuer", "unknown token"]
)
@pytest.mark.parametrize("path", ["/system/info", "/system/services/none/auth"])
def test_who_guesses_is_locked_out(tmp_path: Path, who: str, path: str) -> None:
    with (
        oidc.running() as issuer,
        oidc.running() as stranger,
        town_on(tmp_path / "data", issuer, stranger, login_failures=5) as town,
    ):
        town.tokens["unknown token"] = "0" * 64
        said = [town.call(who, "GET", path).status_code for _ in range(7)]
        assert said == [401] * 5 + [429] * 2
        assert town.call("expired", "GET", path).status_code == 429, "the address is locked, whoever asks"


def test_strangers_are_not_told_which_services_there_are(town: Town) -> None:
    present, absent = town.service("private"), "s-00000000"
    town.tokens["token"] = town.own_token(town.service("private", who="other user"), "other user")
    town.tokens["unknown token"] = "0" * 64
    for who in sorted({*REFUSED, "other user", "token", "unknown token"}):
        said = []
        for name in (present, absent):
            answer = town.call(who, "GET", f"/system/services/{name}/auth", headers={"X-Request-Id": "same"})
            headers = {key: text.replace(name, "") for key, text in answer.headers.items()}
            del headers["content-length"]
            said.append((answer.status_code, answer.text.replace(name, ""), headers))
        assert said[0][0] == (401 if who in {*REFUSED, "unknown token"} else 404), who
        assert said[0] == said[1], who
    assert town.call("owner", "GET", f"/system/services/{present}/auth").status_code == 200


def test_an_outage_of_the_issuer_is_told_as_such(tmp_path: Path) -> None:
    with oidc.running() as issuer, town_on(tmp_path / "data", issuer, issuer) as town:
        issuer.broken.add(KEYS)
        answer = town.call("owner", "GET", "/system/services")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert town.call("administrator", "GET", "/system/services").status_code == 200


def test_a_subject_of_two_issuers_is_one_person_only(two_issuers: Town) -> None:
    town = two_issuers
    name = town.service()
    town.tokens["other ann"] = town.stranger.token(OWNER, groups=[GROUP])
    for _ in range(2):
        answer = town.call("other ann", "GET", f"/system/services/{name}")
        assert answer.status_code == 401
        assert "Another issuer" in answer.json()["message"]
    assert town.call("owner", "GET", f"/system/services/{name}").status_code == 200
    town.tokens["zoe"] = town.stranger.token("zoe", groups=[GROUP])
    assert town.call("zoe", "GET", "/system/services").json() == []


@pytest.mark.parametrize("subject", ["cluster_admin", "anonymous", "oscar-admin"])
def test_nobody_is_called_like_the_installation(town: Town, subject: str) -> None:
    town.tokens["impostor"] = town.issuer.token(subject, groups=[GROUP])
    assert town.call("impostor", "GET", "/system/config").status_code == 401


# --- administrators --------------------------------------------------------------------------------------


def test_merged_538_the_rights_of_one_request_are_never_those_of_another(town: Town) -> None:
    hidden = town.service("private")
    seen: dict[str, set[bool]] = {"oidc administrator": set(), "other user": set()}

    def ask(number: int) -> None:
        who = ("oidc administrator", "other user")[number % 2]
        seen[who].add(hidden in names(town.call(who, "GET", "/system/services")))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(200)))
    assert seen == {"oidc administrator": {True}, "other user": {False}}


def test_an_oidc_administrator_owns_what_he_makes(town: Town) -> None:
    name = town.service(who="oidc administrator")
    assert town.call("oidc administrator", "GET", f"/system/services/{name}").json()["owner"] == CHIEF
    in_her_name = town.service(who="oidc administrator", owner=OWNER)
    assert town.call("owner", "GET", f"/system/services/{in_her_name}").json()["owner"] == OWNER


def test_a_user_owns_what_he_makes_whatever_he_says(town: Town) -> None:
    name = town.service(who="other user", owner=OWNER)
    assert town.call("other user", "GET", f"/system/services/{name}").json()["owner"] == OTHER


# --- services --------------------------------------------------------------------------------------------


def test_one_name_under_several_owners(town: Town) -> None:
    body = {"name": "twin", "image": "none", "script": "true", "visibility": "public"}
    for who in ("owner", "allowed user"):
        assert town.call(who, "POST", "/system/services", json=body).status_code == 201
        assert town.call(who, "POST", "/system/services", json=body).status_code == 400
    assert town.call("owner", "GET", "/system/services/twin").json()["owner"] == OWNER
    answer = town.call("other user", "POST", "/job/twin", content=b"{}")
    assert (answer.status_code, answer.json()["field"]) == (400, "owner")
    assert f"owner={ALLY}" in answer.json()["fix"]
    chosen = town.call("other user", "GET", "/system/services/twin", params={"owner": ALLY})
    assert chosen.json()["owner"] == ALLY
    assert (
        town.call("other user", "DELETE", "/system/services/twin", params={"owner": ALLY}).status_code == 403
    )
    assert town.call("owner", "DELETE", "/system/services/twin").status_code == 204
    assert town.call("other user", "GET", "/system/services/twin").json()["owner"] == ALLY


def test_tokens_are_for_who_may_change_the_service(town: Town) -> None:
    name = town.service("public")
    shown = {
        who: town.call(who, "GET", f"/system/services/{name}").json()["token"]
        for who in ("owner", "administrator", "oidc administrator", "allowed user", "other user")
    }
    assert len(shown["owner"]) == 64
    assert shown["administrator"] == shown["oidc administrator"] == shown["owner"]
    assert shown["allowed user"] == shown["other user"] == ""
    [listed] = [
        each for each in town.call("other user", "GET", "/system/services").json() if each["name"] == name
    ]
    assert listed["token"] == ""


def test_a_list_follows_a_change_of_visibility(town: Town) -> None:
    name = town.service("public")
    assert name in names(town.call("other user", "GET", "/system/services"))
    body = {"name": name, "image": "none", "script": "true", "visibility": "private"}
    assert town.call("owner", "PUT", "/system/services", json=body).status_code == 204
    assert name not in names(town.call("other user", "GET", "/system/services"))


def test_the_vo_of_a_service(tmp_path: Path) -> None:
    with (
        oidc.running() as issuer,
        town_on(tmp_path / "data", issuer, issuer, oidc_groups=("vo.x", GROUP), oidc_subject="zoe") as town,
    ):
        name = town.service()
        assert town.call("owner", "GET", f"/system/services/{name}").json()["vo"] == GROUP
        body = {"name": "s", "image": "none", "script": "true"}
        answer = town.call("owner", "POST", "/system/services", json=body | {"vo": "vo.x"})
        assert (answer.status_code, answer.json()["field"]) == (400, "vo")
        town.tokens["zoe"] = issuer.token("zoe")
        issuer.people["zoe"] = {}
        answer = town.call("zoe", "POST", "/system/services", json=body)
        assert (answer.status_code, answer.json()["field"]) == (400, "vo")
        assert (
            town.call("administrator", "POST", "/system/services", json=body | {"vo": "vo.x"}).status_code
            == 201
        )


# --- runs ------------------------------------------------------------------------------------------------


def test_lists_show_a_user_his_own_runs(town: Town) -> None:
    name = town.service("public")
    runs = {who: town.run(name, who) for who in ("owner", "allowed user", "other user")}
    for who, run in runs.items():
        assert list(town.call(who, "GET", f"/system/logs/{name}").json()["jobs"]) == [run]
    for who in ("administrator", "oidc administrator"):
        assert set(town.call(who, "GET", f"/system/logs/{name}").json()["jobs"]) == set(runs.values())
    assert town.call("owner", "DELETE", f"/system/logs/{name}", params={"all": "true"}).status_code == 204
    left = town.call("administrator", "GET", f"/system/logs/{name}").json()["jobs"]
    assert set(left) == {runs["allowed user"], runs["other user"]}


# --- isolation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["USER", "user", "User"])
def test_defect_17b_private_buckets_in_any_case_of_the_word(town: Town, word: str) -> None:
    name = town.service(
        "restricted", isolation_level=word, input=[{"storage_provider": "minio", "path": "data/in"}]
    )
    shown = town.call("owner", "GET", f"/system/services/{name}").json()
    assert shown["isolation_level"] == "USER"
    assert set(shown["allowed_users"]) == {OWNER, ALLY}
    assert set(shown["bucket_list"]) == {private_bucket("data", OWNER), private_bucket("data", ALLY)}
    his = private_bucket("data", ALLY)
    assert town.call("allowed user", "GET", f"/system/buckets/{his}").json()["owner"] == ALLY
    assert town.call("owner", "GET", f"/system/buckets/{his}").status_code == 404
    assert town.call("other user", "GET", f"/system/buckets/{his}").status_code == 404


def test_defect_17_short_and_alike_ids_have_buckets_of_their_own(town: Town) -> None:
    users = ["x", "0123456789-a", "0123456789-b"]
    name = town.service(
        "restricted",
        isolation_level="USER",
        allowed_users=users,
        input=[{"storage_provider": "minio", "path": "many/in"}],
    )
    listed = town.call("owner", "GET", f"/system/services/{name}").json()["bucket_list"]
    assert len(set(listed)) == len([*users, OWNER])


def test_an_event_can_not_name_the_private_bucket_of_another(town: Town) -> None:
    name = town.service(
        "restricted", isolation_level="USER", input=[{"storage_provider": "minio", "path": "box/in"}]
    )
    records = [
        {
            "eventSource": "minio:s3",
            "eventName": "s3:ObjectCreated:Put",
            "s3": {"bucket": {"name": private_bucket("box", OWNER)}, "object": {"key": "in/secret"}},
        }
    ]
    answer = town.call("allowed user", "POST", f"/job/{name}", json={"Records": records})
    assert answer.status_code == 403, answer.text
    assert town.call("owner", "POST", f"/job/{name}", json={"Records": records}).status_code == 201
    assert town.call("administrator", "POST", f"/job/{name}", json={"Records": records}).status_code == 201


def test_a_private_bucket_whose_name_was_taken(town: Town) -> None:
    taken = private_bucket("trap", ALLY)
    assert town.call("other user", "POST", "/system/buckets", json={"bucket_name": taken}).status_code == 201
    body = {
        "name": "trapped",
        "image": "none",
        "script": "true",
        "visibility": "restricted",
        "allowed_users": [ALLY],
        "isolation_level": "USER",
        "input": [{"storage_provider": "minio", "path": "trap/in"}],
    }
    assert town.call("owner", "POST", "/system/services", json=body).status_code == 403
    assert town.call("owner", "GET", "/system/services/trapped").status_code == 404
    assert town.call("owner", "GET", "/system/buckets/trap").status_code == 404, "nothing is left behind"


def test_a_bucket_of_somebody_else_is_no_input(town: Town) -> None:
    bucket = town.bucket("public")
    body = {"name": "thief", "image": "none", "script": "true"}
    for place in ("input", "output"):
        paths = [{"storage_provider": "minio", "path": f"{bucket}/x"}]
        answer = town.call("other user", "POST", "/system/services", json=body | {place: paths})
        assert answer.status_code == 403, answer.text


# --- the start -------------------------------------------------------------------------------------------


def test_decision_14_no_processes_with_oidc(tmp_path: Path) -> None:
    from fastapi import FastAPI

    settings = Settings(
        data=tmp_path / "data",
        engine="process",
        unsafe_process=not sandbox_works(),
        url="http://oscar.test",
        minio_endpoint="http://s3.test",
        oidc_enable=True,
        oidc_issuers=("https://aai.example.org",),
    )

    async def start() -> object:
        begun = Start()
        async with lifespan(FastAPI(), settings, Signals(), begun, None):
            return await begun.wait(60)

    error = asyncio.run(start())
    assert isinstance(error, EngineMissing)
    assert error.field == "OIDC_ENABLE"
