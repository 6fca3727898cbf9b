"""The engine of processes: what its shim and the server do when they meet at a bad moment."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from oscar.compute.local.engine import Mount, Sandbox
from oscar.compute.local.processes import Processes
from tests.invoking import until
from tests.server import sandbox_works


@pytest.fixture(params=[False, True], ids=["walls", "unsafe"])
def engine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Processes]:
    """The engine with and without bubblewrap."""
    unsafe = request.param or not sandbox_works()
    made = Processes(tmp_path / "engine", installation=f"test-{os.getpid()}", unsafe=unsafe)
    if unsafe:
        monkeypatch.setattr(made, "_possible_walls", list)
    asyncio.run(made.probe())
    yield made
    asyncio.run(made.close())
    # What a failing test leaves may be too deep for pytest to remove.
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def sandbox(engine: Processes, folder: Path, script: str) -> Sandbox:
    folder.mkdir()
    folder.chmod(0o777)
    place = "/oscar/work" if engine.maps_paths else str(folder)
    argv = ("/bin/sh", "-c", f"cd '{place}'; {script}")
    mounts = (Mount(folder, "/oscar/work"),) if engine.maps_paths else ()
    workdir = "/" if engine.maps_paths else str(folder)
    return Sandbox("one", "", argv, {}, mounts, workdir=workdir, log=folder.with_name("log"))


def test_a_process_that_is_killed_before_its_shim_knows_it_never_begins(
    engine: Processes, tmp_path: Path
) -> None:
    wanted = sandbox(engine, tmp_path / "work", "touch begun; exec sleep 600")
    folder = engine.folder / "one"

    async def scenario() -> None:
        # As in `start`, up to the moment before the shim is there.
        lock = engine._claim(folder)
        assert lock is not None
        task = engine._task(wanted, folder, lock)
        await engine.kill("one")
        await engine._spawn(task, lock)
        os.close(lock)
        async with asyncio.timeout(30):
            end = await engine.exit("one")
            await engine.remove("one")
        assert end is not None
        assert (end.code, end.refused) == (137, None)
        assert not (tmp_path / "work" / "begun").exists()
        assert not folder.exists()
        # The name is free again, and nobody wants the next one's end.
        await engine.start(wanted)
        await until((tmp_path / "work" / "begun").exists)
        await engine.remove("one")

    asyncio.run(scenario())


def test_a_process_may_be_killed_and_removed_at_any_moment(engine: Processes, tmp_path: Path) -> None:
    wanted = sandbox(engine, tmp_path / "work", "exec sleep 600")

    async def scenario() -> None:
        for milliseconds in range(0, 60, 3):
            starting = asyncio.create_task(engine.start(wanted))
            await asyncio.sleep(milliseconds / 1000)
            starting.cancel()
            await asyncio.wait([starting])
            async with asyncio.timeout(30):
                await engine.remove("one")
            assert await engine.running("one") is None

    asyncio.run(scenario())


def test_a_script_that_nests_folders_without_end_is_removed(engine: Processes, tmp_path: Path) -> None:
    dig = "n=0; while [ $n -lt 1100 ]; do mkdir d && cd d || exit 9; n=$((n+1)); done"
    place = "cd /tmp; " if engine.maps_paths else ""
    wanted = sandbox(engine, tmp_path / "work", place + dig)

    async def scenario() -> None:
        await engine.start(wanted)
        async with asyncio.timeout(60):
            end = await engine.exit("one")
            await engine.remove("one")
        assert end is not None
        assert end.code == 0
        assert not (engine.folder / "one").exists()

    asyncio.run(scenario())
