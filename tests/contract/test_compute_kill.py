"""kill -9 of a server at random moments: every script runs exactly once, every result is stored, nothing is left."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from oscar.compute.local import detect
from oscar.compute.local.attempt import PREFIX
from oscar.objects.s3 import S3Store
from tests import s3_server
from tests.computing import BUCKET
from tests.contract.conftest import CONTAINERS, Tools

KILLS = 6
ORDERS = 15
SCRIPT = "echo begun\nsleep 0.%d\necho %d > $TMP_OUTPUT_DIR/%d.txt\necho ended\n"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["process", *CONTAINERS])
def test_no_script_runs_twice_whenever_the_server_is_killed(
    engine: str, tools: Tools, tmp_path: Path, s3: s3_server.Server
) -> None:
    image = "none" if engine == "process" else tools.get(engine).image
    folder = tmp_path / uuid.uuid4().hex
    for name in ("orders", "ends", "claims"):
        (folder / name).mkdir(parents=True)
    for number in range(ORDERS):
        (folder / "orders" / f"job{number}-1").write_text(SCRIPT % (number % 5, number, number))
    command = [sys.executable, "-m", "tests.compute_victim", engine, str(folder), image, s3.endpoint]
    chance = random.Random(engine)
    for _ in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None
            victim.stdout.readline()  # ready
            time.sleep(chance.uniform(0, 0.6))  # the moment is the point
            victim.kill()
    subprocess.run(command, check=True, timeout=120)

    asyncio.run(
        judge(engine, folder, S3Store(s3.endpoint, s3_server.ALICE.access_key, s3_server.ALICE.secret_key))
    )


async def judge(engine: str, folder: Path, store: S3Store) -> None:
    names = {path.name for path in (folder / "orders").iterdir()}
    ends = {path.name: json.loads(path.read_text()) for path in (folder / "ends").iterdir()}
    assert ends == {name: [None, 0, None] for name in names}
    for name in names:
        log = (folder / "logs" / f"{name}.log").read_text()
        assert (log.count(" begun"), log.count(" ended")) == (1, 1), log
    stored = [each.key async for each in store.list(BUCKET, f"{folder.name}/")]
    assert len(stored) == ORDERS
    made = await detect.choose(engine, detect.Place(folder, f"kill-{folder.name}"))
    assert await made.names(PREFIX) == []
    await made.close()
    assert list((folder / "runs").iterdir()) == []
