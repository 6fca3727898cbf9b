"""Jobs that go to other clusters, between real servers that need no identity provider: replicas with accounts."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from oscar.model.event import decode
from tests.acceptance.calls import at, client, create, ended, jobs, put, submit
from tests.acceptance.test_tls import certificate
from tests.federation import (
    account,
    busy,
    delegation,
    eventually,
    foreign,
    grid,
    line,
    near,
    replica,
)
from tests.s3_server import free_port
from tests.server import Server

pytestmark = pytest.mark.timeout(300)

Grid = dict[str, Server]


@pytest.fixture(scope="module")
def grid3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with grid(tmp_path_factory.mktemp("grid"), "a", "b", "c") as running:
        yield running


def known(grid3: Grid, *names: str) -> dict[str, Any]:
    return {name: account(grid3[name]) for name in names or ("b", "c")}


def far(grid3: Grid, name: str, script: str = "", **more: Any) -> str:
    """A service on a member, that says where it ran."""
    return create(client(grid3[name]), script or f'echo "on {name}"; cat "$INPUT_FILE_PATH"', **more)


# --- a job and all that is known of it --------------------------------------------------------------------


def test_a_job_without_room_runs_elsewhere_and_all_of_it_is_known_here(grid3: Grid) -> None:
    a, b = client(grid3["a"]), client(grid3["b"])
    there = far(grid3, "b")
    here = near(a, replica("b", there), clusters=known(grid3, "b"))
    job = submit(a, here, content=b'{"a": 1}')
    found = ended(a, here, job)
    assert (found["status"], found["exit_code"]) == ("Succeeded", 0)
    given = found["delegation"]
    assert (given["cluster_id"], given["service_name"]) == ("b", there)
    assert (given["policy"], given["reason"]) == ("static", "priority 0")
    assert a.get(f"/system/logs/{here}/{job}").text == 'on b\n{"a": 1}\n'
    stamped = a.get(f"/system/logs/{here}/{job}", params={"timestamps": "true", "tail": 1}).text
    assert stamped.endswith('Z {"a": 1}\n')
    # The id is the same everywhere, and the member knows whose job it is not.
    assert list(jobs(b, there)) == [job]
    assert b.get(f"/system/jobs/{there}/{job}").json()["kind"] == "delegated"
    assert jobs(a, here)[job]["status"] == "Succeeded"


def test_the_input_is_read_from_the_origins_store_without_keys(grid3: Grid) -> None:
    a = client(grid3["a"])
    there = far(grid3, "b", 'echo "$STORAGE_OBJECT_KEY"; cat "$INPUT_FILE_PATH"; cat /oscar/config/event')
    here = near(
        a, replica("b", there), clusters=known(grid3, "b"), name="input-of-a", input=at("input-of-a/in")
    )
    put(a, "input-of-a", "in/sub/a file", b"its content\n")
    [job] = eventually(lambda: jobs(a, here), lambda found: len(found) == 1)
    assert ended(a, here, job)["status"] == "Succeeded"
    log = a.get(f"/system/logs/{here}/{job}").text
    assert log.startswith("in/sub/a file\nits content\n")
    config = a.get("/system/config").json()["minio_provider"]
    assert config["secret_key"] not in log


def test_a_failure_there_is_one_here(grid3: Grid) -> None:
    a = client(grid3["a"])
    here = near(a, replica("b", far(grid3, "b", "echo oh; exit 3")), clusters=known(grid3, "b"))
    found = ended(a, here, submit(a, here))
    assert (found["status"], found["state"], found["reason"], found["exit_code"]) == (
        "Failed",
        "failed",
        "script",
        3,
    )
    assert 'cluster "b"' in found["message"]


def test_cancelling_here_ends_it_there(grid3: Grid) -> None:
    a, b = client(grid3["a"]), client(grid3["b"])
    there = far(grid3, "b", "echo started; exec sleep 600")
    here = near(a, replica("b", there), clusters=known(grid3, "b"))
    job = submit(a, here)
    eventually(lambda: a.get(f"/system/jobs/{here}/{job}").json()["status"], "Running")
    assert a.post(f"/system/jobs/{here}/{job}/cancel").status_code == 202
    assert ended(a, here, job)["state"] == "cancelled"
    assert ended(b, there, job)["state"] == "cancelled"


def test_following_the_log_of_a_job_elsewhere(grid3: Grid) -> None:
    a = client(grid3["a"])
    there = far(grid3, "b", "for i in 1 2 3; do echo line $i; sleep 0.2; done")
    here = near(a, replica("b", there), clusters=known(grid3, "b"))
    job = submit(a, here)
    eventually(lambda: a.get(f"/system/jobs/{here}/{job}").json()["state"], lambda state: state != "queued")
    eventually(lambda: delegation(a, here, job).get("cluster_id"), "b")
    with a.stream("GET", f"/system/logs/{here}/{job}", params={"follow": "true"}) as answer:
        assert list(answer.iter_lines())[-3:] == ["line 1", "line 2", "line 3"]


def test_a_job_with_room_stays(grid3: Grid) -> None:
    a = client(grid3["a"])
    here = near(a, replica("b", far(grid3, "b")), clusters=known(grid3, "b"), cpu="0.1")
    job = submit(a, here)
    assert "delegation" not in ended(a, here, job)
    assert a.get(f"/system/logs/{here}/{job}").text == "here\n"


def test_members_under_topology_none_get_nothing(grid3: Grid) -> None:
    """B 12: topology none disables delegation."""
    a = client(grid3["a"])
    members = {"topology": "none", "members": [replica("b", far(grid3, "b"))]}
    here = near(a, clusters=known(grid3, "b"), federation=members)
    assert "delegation" not in ended(a, here, submit(a, here))


# --- choosing ---------------------------------------------------------------------------------------------


def test_static_tries_priorities_in_their_order(grid3: Grid) -> None:
    a = client(grid3["a"])
    members = [replica("b", far(grid3, "b"), priority=5), replica("c", far(grid3, "c"), priority=1)]
    here = near(a, *members, clusters=known(grid3))
    given = ended(a, here, submit(a, here))["delegation"]
    assert (given["cluster_id"], given["reason"]) == ("c", "priority 1")


@pytest.mark.parametrize("policy", ["random", "load-based", "topsis"])
def test_members_without_room_are_left_out(grid3: Grid, policy: str) -> None:
    a = client(grid3["a"])
    clusters = known(grid3) | {"gone": {"endpoint": f"http://127.0.0.1:{free_port()}", "auth_user": "u"}}
    members = [replica("b", far(grid3, "b")), replica("gone", "x"), replica("c", far(grid3, "c"))]
    here = near(a, *members, clusters=clusters, federation={"delegation": policy})
    found = ended(a, here, submit(a, here))
    assert found["delegation"]["problem"] == "no member has room for it"
    assert a.get(f"/system/logs/{here}/{found['job_id']}").text == "here\n"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """Three servers, the first of which has all its places taken, the second half of its CPU."""
    with (
        grid(tmp_path_factory.mktemp("full"), "a", "b", "c", OSCAR_MAX_RUNNING_JOBS="1") as running,
        busy(client(running["a"])),
        busy(client(running["b"]), cpu="1"),
    ):
        yield running


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("random", r"random \d+ of 100"),
        ("load-based", r"load \d+ of 100"),
        ("topsis", r"topsis preference [\d.]+"),
    ],
)
def test_policies_choose_by_what_members_say(full: Grid, policy: str, words: str) -> None:
    a = client(full["a"])
    clusters = known(full) | {"gone": {"endpoint": f"http://127.0.0.1:{free_port()}", "auth_user": "u"}}
    members = [
        replica("b", far(full, "b"), priority=0),
        replica("c", far(full, "c"), priority=9),
        replica("gone", "x"),
    ]
    here = near(a, *members, clusters=clusters, cpu="0.5", federation={"delegation": policy})
    job = submit(a, here)
    given = eventually(lambda: delegation(a, here, job), lambda said: said.get("cluster_id"))
    assert given["policy"] == policy
    assert re.fullmatch(words, given["reason"]), given
    if policy == "random":
        assert given["cluster_id"] in {"b", "c"}
    else:
        assert given["cluster_id"] == "c"
        assert ended(a, here, job)["status"] == "Succeeded"


def test_a_member_with_too_little_room_is_passed_over(full: Grid) -> None:
    a = client(full["a"])
    members = [replica("b", far(full, "b"), priority=0), replica("c", far(full, "c"), priority=9)]
    here = near(a, *members, clusters=known(full), cpu="1.5", federation={"delegation": "random"})
    assert ended(a, here, submit(a, here))["delegation"]["cluster_id"] == "c"


def test_defect_14_an_unreachable_member_is_passed_over(grid3: Grid) -> None:
    """B 14: upstream crashed there, even with static priorities."""
    a = client(grid3["a"])
    gone = {"endpoint": f"http://127.0.0.1:{free_port()}", "auth_user": "u", "auth_password": "p"}
    there = far(grid3, "c")
    members = [replica("gone", "x"), replica("c", there, priority=1)]
    here = near(a, *members, clusters=known(grid3, "c") | {"gone": gone})
    found = ended(a, here, submit(a, here))
    assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "c")


def test_members_that_refuse_are_passed_over_and_at_last_it_runs_here(grid3: Grid) -> None:
    a = client(grid3["a"])
    wrong = account(grid3["c"]) | {"auth_password": "not-the-password"}
    here = near(
        a,
        replica("b", "there-is-none"),
        replica("c", far(grid3, "c")),
        clusters=known(grid3, "b") | {"c": wrong},
    )
    found = ended(a, here, submit(a, here))
    assert a.get(f"/system/logs/{here}/{found['job_id']}").text == "here\n"
    problem = found["delegation"]["problem"]
    assert 'cluster "b"' in problem
    assert 'cluster "c"' in problem
    assert "not-the-password" not in problem


def test_who_is_told_nothing_because_its_host_is_not_in_the_list(grid3: Grid) -> None:
    a = client(grid3["a"])
    for endpoint in ("https://elsewhere.test", "http://elsewhere.test"):
        answer = a.post(
            "/system/services",
            json={
                "name": "told-nobody",
                "image": "none",
                "script": "true",
                "replicas": [replica("x", "y")],
                "clusters": {"x": {"endpoint": endpoint}},
            },
        )
        assert answer.status_code == 400
        assert answer.json()["field"] == "clusters.x.endpoint"


# --- circles ----------------------------------------------------------------------------------------------


def test_a_job_is_given_away_once_so_nothing_goes_in_circles(grid3: Grid) -> None:
    a, b = client(grid3["a"]), client(grid3["b"])
    there = create(b, "echo on b; sleep 1", cpu="999", cluster_id="b", clusters=known(grid3, "a"))
    here = near(a, replica("b", there), clusters=known(grid3, "b"))
    answer = b.post(f"/system/federation/{there}", json={"members": [replica("a", here)]})
    assert answer.json()["members"][0]["cluster_id"] == "a"
    job = submit(a, here)
    assert ended(a, here, job)["status"] == "Succeeded"
    assert a.get(f"/system/logs/{here}/{job}").text == "on b\n"
    assert list(jobs(a, here)) == list(jobs(b, there)) == [job]
    # And the other way round.
    back = submit(b, there)
    assert ended(b, there, back)["delegation"]["cluster_id"] == "a"
    assert b.get(f"/system/logs/{there}/{back}").text == "here\n"


# --- exactly once -----------------------------------------------------------------------------------------


def count(grid3: Grid, name: str, service: str, job: str) -> int:
    """How often the script of a job began there."""
    log = client(grid3[name]).get(f"/system/logs/{service}/{job}").text
    return log.count("begun")


def test_a_lost_answer_is_asked_again_and_never_doubled(grid3: Grid) -> None:
    a = client(grid3["a"])
    there = far(grid3, "b", "echo begun; sleep 1")
    other = far(grid3, "c", "echo begun")
    with line(grid3["b"]) as broken:
        broken.lose = 2
        clusters = {"b": account(grid3["b"]) | {"endpoint": broken.url}} | known(grid3, "c")
        here = near(a, replica("b", there), replica("c", other, priority=1), clusters=clusters)
        job = submit(a, here)
        found = ended(a, here, job)
    assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "b")
    assert broken.lost == 2
    assert broken.posts[job] == 3
    assert list(jobs(client(grid3["b"]), there)) == [job]
    assert count(grid3, "b", there, job) == 1
    assert jobs(client(grid3["c"]), other) == {}


def test_the_same_id_twice_is_one_job(grid3: Grid) -> None:
    b = client(grid3["b"])
    there = far(grid3, "b", "echo begun")
    headers = {"X-Delegated-Job-ID": "from-elsewhere-1", "X-Delegated-From": "x"}
    event = json.dumps({"storage_provider": "x", "event": "{}"}).encode()
    first = b.post(f"/job/{there}", content=event, headers=headers)
    again = b.post(f"/job/{there}", content=event, headers=headers)
    assert first.json()["job_id"] == again.json()["job_id"] == "from-elsewhere-1"
    assert again.headers["idempotency-replayed"] == "true"
    # Of another service it is another job, for which the id is taken.
    other = far(grid3, "b")
    taken = b.post(f"/job/{other}", content=event, headers=headers)
    assert taken.status_code == 409
    for wrong in ("a/b", "x" * 80, "a b", "-a", "ü"):
        refused = b.post(f"/job/{there}", content=event, headers={b"X-Delegated-Job-ID": wrong.encode()})
        assert refused.status_code == 400, wrong


def test_an_address_in_an_event_leads_nowhere_that_is_not_allowed(grid3: Grid) -> None:
    b = client(grid3["b"])
    there = far(grid3, "b")
    for url in (
        "http://169.254.169.254/x",
        "http://10.0.0.1/x",
        "https://inside.test/x",
        "file:///etc/passwd",
    ):
        event = {"storage_provider": "x", "event": "{}", "access": url}
        answer = b.post(f"/job/{there}", json=event)
        assert (answer.status_code, answer.json()["field"]) == (400, "access"), url


def test_a_member_killed_in_the_middle_goes_on_when_it_is_back(tmp_path: Path) -> None:
    with grid(tmp_path, "a", "b") as both:
        a = client(both["a"])
        there = far(both, "b", "echo begun; sleep 3; echo done")
        here = near(a, replica("b", there), clusters=known(both, "b"))
        waiting = [submit(a, here) for _ in range(3)]
        eventually(
            lambda: {delegation(a, here, job).get("remote_state") for job in waiting},
            lambda s: "running" in s,
        )
        both["b"].kill()
        eventually(lambda: [delegation(a, here, job).get("problem") for job in waiting], any)
        late = submit(a, here)
        both["b"].start()
        for job in waiting:
            found = ended(a, here, job)
            assert found["status"] == "Succeeded", found
            assert found["delegation"]["cluster_id"] == "b"
            assert count(both, "b", there, job) == 1
        assert ended(a, here, late)["status"] == "Succeeded"
        there_too = set(jobs(client(both["b"]), there))
        assert set(waiting) <= there_too
        # The one that came while the member was down ran in exactly one place.
        log = a.get(f"/system/logs/{here}/{late}").text
        assert (late in there_too) == ("begun" in log)


def test_an_origin_killed_in_the_middle_finds_its_jobs_again(tmp_path: Path) -> None:
    with grid(tmp_path, "a", "b") as both:
        a = client(both["a"])
        there = far(both, "b", "echo begun; sleep 2")
        here = near(a, replica("b", there), clusters=known(both, "b"))
        given = [submit(a, here) for _ in range(6)]
        eventually(
            lambda: {delegation(a, here, job).get("remote_state") for job in given}, lambda s: "running" in s
        )
        both["a"].kill()
        both["a"].start()
        a = client(both["a"])
        for job in given:
            found = ended(a, here, job)
            assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "b")
            assert count(both, "b", there, job) == 1
        assert set(jobs(client(both["b"]), there)) == set(given)


def test_a_member_that_lost_the_job_leaves_it_interrupted(grid3: Grid) -> None:
    a, b = client(grid3["a"]), client(grid3["b"])
    there = far(grid3, "b", "echo begun; exec sleep 600")
    here = near(a, replica("b", there), clusters=known(grid3, "b"))
    job = submit(a, here)
    eventually(lambda: a.get(f"/system/jobs/{here}/{job}").json()["status"], "Running")
    assert b.delete(f"/system/services/{there}").status_code == 204
    found = ended(a, here, job)
    assert found["state"] == "interrupted"
    assert found["reason"] in {"lost", "service_deleted"}


def test_a_silent_member_is_given_up_after_a_while(tmp_path: Path) -> None:
    with grid(tmp_path, "a", "b", OSCAR_DELEGATION_LOST_SECONDS="3") as both:
        a = client(both["a"])
        there = far(both, "b", "echo begun; exec sleep 600")
        here = near(a, replica("b", there), clusters=known(both, "b"))
        job = submit(a, here)
        eventually(lambda: a.get(f"/system/jobs/{here}/{job}").json()["status"], "Running")
        both["b"].kill()
        found = ended(a, here, job)
        assert (found["state"], found["reason"]) == ("interrupted", "lost")
        both["b"].start()
        client(both["b"]).delete(f"/system/logs/{there}", params={"all": "true"})


# --- the rescheduler --------------------------------------------------------------------------------------


def test_jobs_that_wait_too_long_move_and_those_that_start_stay(tmp_path: Path) -> None:
    more = {
        "RESOURCE_MANAGER_ENABLE": "false",
        "RESCHEDULER_ENABLE": "true",
        "RESCHEDULER_INTERVAL": "0.5",
        "RESCHEDULER_THRESHOLD": "3600",
        "OSCAR_MAX_RUNNING_JOBS": "1",
    }
    with grid(tmp_path, "a", "b", **more) as both:
        a = client(both["a"])
        there = far(both, "b")
        waits = {"clusters": known(both, "b"), "cpu": "0.1"}
        soon = near(a, replica("b", there), **waits, federation={"rescheduler_threshold": 2})
        later = near(a, replica("b", there), **waits)
        alone = create(a, "echo alone")
        with busy(a):
            moved, stays, lonely = submit(a, soon), submit(a, later), submit(a, alone)
            found = ended(a, soon, moved)
            assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "b")
            # The threshold of a service is its own; the server's holds for the others, and who has no replicas waits.
            for service, job in ((later, stays), (alone, lonely)):
                assert a.get(f"/system/jobs/{service}/{job}").json()["state"] == "queued"
        for service, job in ((later, stays), (alone, lonely)):
            done = ended(a, service, job)
            assert (done["status"], "delegation" in done) == ("Succeeded", False)


def test_defect_20_a_suspended_job_is_moved_too(tmp_path: Path) -> None:
    """B 20: upstream looked at pods, which a job that Kueue holds back does not have."""
    more = {"RESCHEDULER_ENABLE": "true", "RESCHEDULER_INTERVAL": "0.5", "RESCHEDULER_THRESHOLD": "2"}
    with grid(tmp_path, "a", "b", RESOURCE_MANAGER_ENABLE="false", **more) as both:
        a = client(both["a"])
        there = far(both, "b")
        here = near(a, replica("b", there), clusters=known(both, "b"), cpu="0.5", owner="ann")
        assert a.put("/system/quotas/user/ann", json={"cpu": "100"}).status_code == 200
        job = submit(a, here)
        assert a.get(f"/system/jobs/{here}/{job}").json()["status"] == "Suspended"
        assert ended(a, here, job)["delegation"]["cluster_id"] == "b"


def test_defect_20_trouble_of_the_database_makes_no_busy_loop() -> None:
    """B 20: upstream went on without a pause when the API answered with an error."""
    import asyncio

    from oscar.core.rescheduler import Rescheduler
    from oscar.errors import Unavailable

    looks: list[float] = []

    class Broken:
        async def reschedule(self) -> int:
            looks.append(time.monotonic())
            raise Unavailable("the database is gone")

    async def run() -> None:
        rescheduler = Rescheduler(Broken().reschedule, interval=0.1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rescheduler.run(), 0.55)

    asyncio.run(run())
    assert 1 <= len(looks) <= 5


# --- endpoints and other programs -------------------------------------------------------------------------


def test_an_endpoint_gets_the_event_with_its_headers(grid3: Grid) -> None:
    a = client(grid3["a"])
    with foreign() as endpoint:
        member = {
            "type": "endpoint",
            "url": f"{endpoint.url}/take",
            "headers": {"X-Key": "secret of the member"},
        }
        here = near(a, member)
        found = ended(a, here, submit(a, here, content=b'{"a": 1}'))
    assert found["status"] == "Succeeded"
    assert found["delegation"]["url"] == f"{endpoint.url}/take"
    [(method, path, headers, body)] = endpoint.asked
    assert (method, path, headers["x-key"]) == ("POST", "/take", "secret of the member")
    assert headers["x-delegated-job-id"] == found["job_id"]
    event = decode(body)
    assert (event.provider, event.text) == ("a", '{"a": 1}')
    assert "secret of the member" not in a.get(f"/system/services/{here}").text


def test_an_endpoint_that_refuses_is_passed_over(grid3: Grid) -> None:
    a = client(grid3["a"])
    with foreign() as endpoint:
        endpoint.status = 403
        here = near(a, {"type": "endpoint", "url": endpoint.url})
        found = ended(a, here, submit(a, here))
    assert len(endpoint.asked) == 1
    assert "answered 403" in found["delegation"]["problem"]
    assert a.get(f"/system/logs/{here}/{found['job_id']}").text == "here\n"


def test_an_endpoint_that_broke_in_the_middle_is_not_asked_again(grid3: Grid) -> None:
    a = client(grid3["a"])
    with foreign() as endpoint:
        endpoint.status = 500
        here = near(a, {"type": "endpoint", "url": endpoint.url})
        found = ended(a, here, submit(a, here))
    assert len(endpoint.asked) == 1
    assert (found["state"], found["reason"]) == ("interrupted", "lost")


def test_defect_13b_after_401_the_whole_event_goes_once_more_with_one_token(grid3: Grid) -> None:
    """B 13b: upstream sent an empty body with two Authorization headers, and never looked at the answer."""
    a = client(grid3["a"])
    with foreign() as four:
        four.waits = 2
        cluster = {"endpoint": four.url, "auth_user": "four", "auth_password": "secret"}
        here = near(a, replica("old", "there"), clusters={"old": cluster})
        job = submit(a, here, content=b'{"a": 1}')
        found = ended(a, here, job)
    assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "old")
    posts = [(headers, body) for method, _, headers, body in four.asked if method == "POST"]
    assert [headers["authorization"].split()[0] for headers, _ in posts] == ["Basic", "Bearer"]
    assert posts[1][0]["authorization"] == f"Bearer {four.token}"
    assert posts[0][1] == posts[1][1]
    assert decode(posts[1][1]).text == '{"a": 1}'
    assert four.jobs == {job: 1}


def test_defect_22_certificates_are_checked_unless_said_otherwise(tmp_path: Path) -> None:
    """B 22: documented as true, the value of a replica that says nothing was false."""
    pair = certificate(tmp_path / "tls")
    more = tmp_path / "more"

    tls = {"OSCAR_TLS_CERT": str(pair[0]), "OSCAR_TLS_KEY": str(pair[1])}
    with grid(tmp_path, "a") as one, grid(more, "b", **tls) as two:
        a = client(one["a"])
        b = httpx2.Client(
            base_url=two["b"].endpoint, auth=(two["b"].user, two["b"].password), verify=False, timeout=60
        )
        there = create(b, "echo on b")
        cases: list[tuple[dict[str, Any], str]] = [({}, "here\n"), ({"ssl_verify": False}, "on b\n")]
        for cluster, runs in cases:
            here = near(a, replica("b", there), clusters={"b": account(two["b"], **cluster)})
            found = ended(a, here, submit(a, here))
            assert a.get(f"/system/logs/{here}/{found['job_id']}").text == runs, found
            if runs == "here\n":
                assert "certificate" in found["delegation"]["problem"].lower()
        said = a.get(f"/system/replicas/{here}").json()["replicas"][0]
        assert said["ssl_verify"] is True
