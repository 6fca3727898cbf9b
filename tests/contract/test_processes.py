"""The engine of processes: what its shim and the server do when they meet at a bad moment."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oscar.compute.local.engine import Mount, Sandbox
from oscar.compute.local.processes import Processes
from oscar.errors import EngineError
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


def sandbox(engine: Processes, folder: Path, script: str, name: str = "one") -> Sandbox:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    place = "/oscar/work" if engine.maps_paths else str(folder)
    argv = ("/bin/sh", "-c", f"cd '{place}'; {script}")
    mounts = (Mount(folder, "/oscar/work"),) if engine.maps_paths else ()
    workdir = "/" if engine.maps_paths else str(folder)
    return Sandbox(name, "", argv, {}, mounts, workdir=workdir, log=folder.with_name(f"{name}.log"))


def test_a_process_that_is_killed_before_its_shim_knows_it_never_begins(
    engine: Processes, tmp_path: Path
) -> None:
    wanted = sandbox(engine, tmp_path / "work", "touch begun; exec sleep 600")
    folder = engine.folder / "one"

    async def scenario() -> None:
        # As in `start`, up to the moment before the shim is there.
        lock = engine._claim(folder)
        assert lock is not None
        task = engine._task(wanted, folder)
        await engine.kill("one")
        await engine._keepers.start(task, lock, folder / "pid")
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


def test_processes_outlive_the_one_that_forks_keepers_and_a_new_one_takes_its_place(
    engine: Processes, tmp_path: Path
) -> None:
    wanted = sandbox(engine, tmp_path / "work", "while [ ! -e go ]; do sleep 0.02; done; exit 7")

    async def scenario() -> None:
        await engine.start(wanted)
        forking = engine._keepers._process
        assert forking is not None
        os.kill(forking.pid, signal.SIGKILL)
        forking.wait()
        assert await engine.running("one")
        other = sandbox(engine, tmp_path / "work", "exit 8", "two")
        await engine.start(other)
        assert engine._keepers._process is not forking
        second = await engine.exit("two")
        # As after the end of a server: the same folder, and an engine that has started nothing.
        await engine.close()
        later = Processes(engine.folder, installation=engine._installation)
        assert await later.running("one")
        (tmp_path / "work" / "go").touch()
        async with asyncio.timeout(30):
            first = await later.exit("one")
        assert first is not None
        assert second is not None
        assert (first.code, second.code) == (7, 8)
        for name in ("one", "two"):
            await engine.remove(name)

    asyncio.run(scenario())


def test_each_start_is_one_process_whenever_the_one_that_forks_keepers_dies(
    engine: Processes, tmp_path: Path
) -> None:
    names = [f"many{number}" for number in range(24)]

    async def kill() -> None:
        while True:
            if forking := engine._keepers._process:
                forking.kill()
            await asyncio.sleep(0.15)

    async def scenario() -> None:
        killing = asyncio.create_task(kill())
        started: list[str] = []
        for name in names:
            wanted = sandbox(engine, tmp_path / "work", f"echo {name} >> begun", name)
            try:
                await engine.start(wanted)
            except EngineError:  # it died thrice in a row: then it has not begun
                continue
            started.append(name)
        killing.cancel()
        for name in names:
            await engine.exit(name)
            await engine.remove(name)
        begun = (tmp_path / "work" / "begun").read_text().split()
        assert sorted(begun) == sorted(started)
        assert begun

    asyncio.run(scenario())


def test_no_signal_is_ignored_or_blocked_inside(engine: Processes, tmp_path: Path) -> None:
    """However the server was started: `nohup`, and shells for what they put into the background, ignore some."""
    ignored = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1)
    wanted = sandbox(engine, tmp_path / "work", "grep -E 'Sig(Ign|Blk)' /proc/self/status > signals")

    async def scenario() -> None:
        await engine.start(wanted)
        await engine.exit("one")
        await engine.remove("one")

    engine._keepers.close()  # the next one starts with what is ignored now
    before = [signal.signal(number, signal.SIG_IGN) for number in ignored]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))
    try:
        asyncio.run(scenario())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in zip(ignored, before, strict=True):
            signal.signal(number, handler)
    masks = (tmp_path / "work" / "signals").read_text().split()
    assert masks[::2] == ["SigBlk:", "SigIgn:"]
    assert [int(mask, 16) for mask in masks[1::2]] == [0, 0]


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


def test_a_program_is_asked_to_end_before_it_is_killed(engine: Processes, tmp_path: Path) -> None:
    script = "trap 'touch asked; exit 3' TERM; touch begun; while :; do sleep 0.05; done"
    wanted = sandbox(engine, tmp_path / "work", script)

    async def scenario() -> None:
        await engine.terminate("one")  # nobody
        await engine.start(wanted)
        await until((tmp_path / "work" / "begun").exists)
        await engine.terminate("one")
        async with asyncio.timeout(60):
            end = await engine.exit("one")
        await engine.terminate("one")  # it has ended
        await engine.remove("one")
        assert end is not None
        assert end.code == 3
        assert (tmp_path / "work" / "asked").exists()

    asyncio.run(scenario())


def test_control_groups_are_made_while_other_servers_of_the_installation_end(
    engine: Processes, tmp_path: Path
) -> None:
    """Whoever ends removes the installation's folders when nothing is in them: also just before they are used."""
    other = Processes(tmp_path / "other", installation=engine._installation, unsafe=True)
    ended = threading.Event()

    def end_again_and_again() -> None:
        while not ended.wait(0.001):
            other._cgroups.leave()

    asyncio.run(other.probe())
    ender = threading.Thread(target=end_again_and_again)
    ender.start()
    try:
        for number in range(500):
            name = f"group{number}"
            engine._groups(sandbox(engine, tmp_path / "work", "", name))
            engine._cgroups.remove(name)
    finally:
        ended.set()
        ender.join()
