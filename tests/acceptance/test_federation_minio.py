"""A federation whose origin has a real MinIO as its store, and a member that has its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests import minio_world, oidc, otlp
from tests.acceptance.calls import at, client, create, ended, jobs, objects, put
from tests.acceptance.test_federation import stored_twice
from tests.federation import NO_ROOM, account, body_of, eventually, free_ports, replica, settings
from tests.otlp import Receiver
from tests.server import Server, running

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

SCRIPT = """echo "begun $JOB_UUID"
tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/$JOB_UUID"
"""


@dataclass(slots=True)
class World:
    """`a` has a MinIO, `b` the built-in store; both tell traces."""

    issuer: oidc.Issuer
    a: minio_world.World
    b: Server
    told: Receiver


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    minio_world.here()
    folder = tmp_path_factory.mktemp("federation")
    (folder / "a").mkdir()
    with oidc.running() as issuer, otlp.receiver() as told:
        common = {"OIDC_ISSUERS": issuer.url, "OIDC_CLIENT_ID": oidc.CLIENT, **told.settings()}
        api, s3 = free_ports(2)
        given = settings(api, s3, **common)
        ours = {name: value for name, value in given.items() if not name.endswith("_PORT")}
        with minio_world.running(folder / "a", start=True, **ours) as a, running(folder / "b", **given) as b:
            yield World(issuer, a, b, told)


@pytest.fixture
def a(world: World) -> Iterator[httpx2.Client]:
    with client(world.a.server) as http:
        yield http


def test_a_result_from_a_member_lands_in_the_origins_minio_and_starts_the_next_job(
    world: World, a: httpx2.Client, tmp_path: Path
) -> None:
    token = world.issuer.refresh_token("ann")
    create(
        a,
        SCRIPT,
        name="home",
        cluster_id="a",
        cpu=NO_ROOM,
        input=at("home/in"),
        output=at("home/out"),
        environment={"secrets": {"refresh_token": token}},
        federation={"topology": "star", "members": [replica("b")]},
        clusters={"b": account(world.b)},
    )
    following = create(a, "true", input=at("home/out"))
    put(a, "home", "in/x", b"some words")
    [job] = eventually(lambda: jobs(a, "home"), lambda found: len(found) == 1)
    found = ended(a, "home", job)
    assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", "b"), found
    assert body_of(a, "home", f"out/{job}") == b"SOME WORDS"
    [next_] = eventually(lambda: jobs(a, following), lambda found: len(found) == 1)
    assert ended(a, following, next_)["status"] == "Succeeded"
    with client(world.b) as b:
        assert objects(b, "home") == []
    # What a member stores again, having been killed behind the upload, starts nothing again.
    stored_twice(world.b, a, "home", create(a, "true", input=at("home/out")), tmp_path)
    # All of it is one trace; what came home is below the job that made it.
    whole = world.told.job(next_)
    spans = world.told.until(whole.trace, lambda spans: whole.parent in {span.span for span in spans})
    [above] = [span for span in spans if span.span == whole.parent]
    assert (above.name, above.attributes["oscar.job"]) == ("job", job)
    assert world.told.job(job, "delegation").trace == whole.trace
