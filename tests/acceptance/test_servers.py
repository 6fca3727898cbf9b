"""Several real servers on one real PostgreSQL, with a real MinIO as their store."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import minio_world
from tests.acceptance.calls import at, client, create, ended, jobs, objects, submit
from tests.acceptance.test_minio import succeeded, until
from tests.minio_world import World
from tests.s3_server import free_port
from tests.server import Server

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@dataclass(slots=True)
class Pair:
    """Two servers on one Store."""

    world: World
    one: Server
    two: Server


@pytest.fixture
def pair(tmp_path: Path, empty_postgres_url: str) -> Iterator[Pair]:
    minio_world.here()
    shared = {"OSCAR_DATABASE_URL": empty_postgres_url, "OSCAR_PASSWORD": uuid.uuid4().hex}
    with minio_world.running(tmp_path, start=False, **shared) as world:
        port = free_port()
        addresses = {"OSCAR_SERVICE_PORT": str(port), "OSCAR_URL": f"http://127.0.0.1:{port}"}
        two = Server(tmp_path / "data-2", {**world.server.settings, **addresses})
        world.start_minio()
        world.server.start()
        two.start()
        try:
            yield Pair(world, world.server, two)
        finally:
            two.end()


def test_a_server_killed_under_load_loses_nothing_and_doubles_nothing(pair: Pair) -> None:
    """Its own runs wait for it, as their machine does; all others are the other server's."""
    with client(pair.one) as http, client(pair.two) as other:
        service = create(
            http,
            'sleep 0.3; echo "$(basename "$INPUT_FILE_PATH")" > "$TMP_OUTPUT_DIR/$(basename "$INPUT_FILE_PATH").$$"',
            input=at("town/in"),
            output=at("town/out"),
        )
        assert other.get(f"/system/services/{service}").status_code == 200
        s3 = pair.world.client()

        def upload(number: int) -> None:
            s3.put_object(Bucket="town", Key=f"in/{number:03}", Body=b"x")

        with ThreadPoolExecutor(4) as pool:
            uploads = [pool.submit(upload, number) for number in range(60)]
            until(lambda: len(jobs(other, service)) > 15)
            pair.one.kill()
            for future in uploads:
                future.result()
        # MinIO's webhook goes to the first server: its queue waits for it; what was taken in goes on at the second.
        until(lambda: succeeded(other, service))
        pair.one.start()
        until(lambda: len(succeeded(other, service)) == 60, 600)
        assert len(jobs(other, service)) == 60
        outputs = [key for key in objects(other, "town") if key.startswith("out/")]
        assert Counter(key.partition(".")[0] for key in outputs) == {
            f"out/{number:03}": 1 for number in range(60)
        }
        states = {
            other.get(f"/system/jobs/{service}/{job}").json()["attempt"] for job in jobs(other, service)
        }
        assert states == {1}, "no attempt was given up"


def test_work_logs_and_waits_reach_over_servers(pair: Pair) -> None:
    with client(pair.one) as one, client(pair.two) as two:
        service = create(one, 'cat "$INPUT_FILE_PATH" | wc -c; echo end')
        big = b'"' + b"x" * 300_000 + b'"'
        posted = [submit(http, service, content=big) for http in (one, two) for _ in range(8)]
        for job in posted:
            assert ended(two, service, job)["status"] == "Succeeded"
        for http in (one, two):
            for job in posted:
                log = http.get(f"/system/logs/{service}/{job}")
                assert (log.status_code, log.text.splitlines()) == (200, ["300002", "end"])
        ran = {pair.one.data: 0, pair.two.data: 0}
        for data in ran:
            ran[data] = sum(1 for job in posted if list((data / "logs").rglob(f"{job}*")))
        assert sum(ran.values()) == 16
        # Asked before it is known which of them will have it, also of the one that won't.
        for http in (one, two) * 3:
            job = submit(one, service, content=b"{}")
            with http.stream(
                "GET",
                f"/system/logs/{service}/{job}",
                params={"follow": "true"},
                headers={"Accept": "text/event-stream"},
            ) as lines:
                told = [line for line in lines.iter_lines() if line]
            assert told[:3] == ["data: 2", "data: end", "event: end"]
            assert json.loads(told[3].removeprefix("data: "))["status"] == "Succeeded"


def test_a_service_changed_by_one_is_changed_for_the_other(pair: Pair) -> None:
    with client(pair.one) as one, client(pair.two) as two:
        service = create(one, "echo first")
        assert two.post(f"/run/{service}", content=b"{}").text == "first\n"
        shape = one.get(f"/system/services/{service}").json()
        assert one.put("/system/services", json=shape | {"script": "echo second"}).status_code == 204
        # Its warm worker is replaced when the news has come.
        until(lambda: two.post(f"/run/{service}", content=b"{}").text == "second\n")
        assert one.delete(f"/system/services/{service}").status_code == 204
        assert two.get(f"/system/services/{service}").status_code == 404


def test_volumes_are_refused_where_several_machines_work(pair: Pair) -> None:
    with client(pair.one) as http:
        until(
            lambda: (
                http.post("/system/volumes", json={"name": uuid.uuid4().hex[:8], "size": "200Mi"}).status_code
                == 400
            )
        )


def test_a_server_with_another_key_is_refused(pair: Pair, tmp_path: Path) -> None:
    wrong = [({"OSCAR_SECRET_KEY": "another"}, "OSCAR_SECRET_KEY")]
    for settings, words in wrong:
        # With an address of its own: at the other's it would seem to answer.
        own = {"OSCAR_SERVICE_PORT": "0", "OSCAR_URL": ""}
        third = Server(tmp_path / "data-3", {**pair.two.settings, **own, **settings})
        with pytest.raises(RuntimeError, match=words):
            third.start()
