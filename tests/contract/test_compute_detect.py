"""Which engine is chosen: tools on the PATH that do not work, and a machine without any."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from oscar.compute.base import Phase
from oscar.compute.local import container_probe, detect
from oscar.compute.local.backend import LocalCompute
from oscar.compute.local.detect import Place
from oscar.compute.local.engine import Engine
from oscar.core.doctor import report
from oscar.errors import EngineMissing
from oscar.model.trouble import Trouble
from oscar.settings import Settings
from tests.computing import Machine, Server
from tests.contract.conftest import CONTAINERS, Tool, Tools
from tests.contract.test_compute import live
from tests.invoking import NO_STORE, alive, until

DEAD_DOCKER = """#!/bin/sh
# A client without its daemon, as it is often found.
case "$1" in
info) echo '{"ServerErrors": ["Cannot connect to the Docker daemon at unix:///x. Is it running?"]}' ;;
*) echo "Cannot connect to the Docker daemon at unix:///x. Is it running?" >&2; exit 1 ;;
esac
"""
DEAD_PODMAN = """#!/bin/sh
echo "Error: could not get runtime: no space for dragons" >&2
exit 125
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing in it but the shell's tools, to put others into."""
    folder = tmp_path / "path"
    folder.mkdir()
    for name in ("sh", "ls", "sleep"):
        (folder / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def choose(wanted: str, place: Place) -> Engine:
    async def act() -> Engine:
        engine = await detect.choose(wanted, place)
        await engine.close()
        return engine

    return asyncio.run(act())


def place(tmp_path: Path, *, unsafe: bool = False) -> Place:
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    return Place(data, f"test-{uuid.uuid4().hex[:8]}", unsafe=unsafe)


def test_tools_that_do_not_work_are_passed_over(tmp_path: Path, path: Path) -> None:
    put(path, "docker", DEAD_DOCKER)
    put(path, "podman", DEAD_PODMAN)
    (path / "bwrap").symlink_to(shutil.which("bwrap", path="/usr/bin:/usr/local/bin") or "")
    engine = choose("auto", place(tmp_path))
    assert engine.name == "process"
    assert engine.facts.isolated


def test_without_any_engine_each_says_why(tmp_path: Path, path: Path) -> None:
    put(path, "docker", DEAD_DOCKER)
    put(path, "podman", DEAD_PODMAN)
    with pytest.raises(EngineMissing) as caught:
        choose("auto", place(tmp_path))
    assert "no space for dragons" in caught.value.message
    assert "Cannot connect to the Docker daemon" in caught.value.message
    assert "bubblewrap (bwrap) is not installed" in caught.value.message
    assert "oscar doctor" in (caught.value.fix or "")


@pytest.mark.parametrize("name", ["podman", "docker"])
def test_the_wanted_engine_or_none(tmp_path: Path, path: Path, name: str) -> None:
    with pytest.raises(EngineMissing, match=f"{name} can't be called: No such file"):
        choose(name, place(tmp_path))


def test_a_bubblewrap_that_does_not_work_is_none(tmp_path: Path, path: Path) -> None:
    put(path, "bwrap", '#!/bin/sh\necho "bwrap: No permissions to create new namespace" >&2\nexit 1\n')
    with pytest.raises(EngineMissing, match="No permissions to create new namespace"):
        choose("process", place(tmp_path))


def test_a_data_folder_that_no_engine_can_mount(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match="colon"):
        choose("auto", Place(tmp_path / "a:b", "test"))


def test_unsafe_processes_run_without_a_sandbox_and_leave_nothing_running(tmp_path: Path, path: Path) -> None:
    engine = choose("process", place(tmp_path, unsafe=True))
    assert not engine.facts.isolated
    assert not engine.maps_paths
    assert engine.facts.warnings

    async def make() -> LocalCompute:
        return LocalCompute(engine, tmp_path / "data", NO_STORE, chosen=True)

    machine = Machine(make, "none", NO_STORE, tmp_path / "data", "process")
    number = str(100_000 + uuid.uuid4().int % 100_000)

    async def scenario(server: Server) -> None:
        script = 'echo "$TMP_INPUT_DIR"; cd "$TMP_OUTPUT_DIR" && echo in; ls "$INPUT_FILE_PATH" && exit 3'
        order = server.order(script, b'{"a": 1}')
        await server.compute.submit(order)
        end = await server.done(order.name)
        assert (end.trouble, end.exit_code) == (Trouble.SCRIPT, 3)
        work = tmp_path / "data" / "runs" / order.name / "work"
        text = await server.text(order.name)
        assert text[:2] == [f"{work}/in", "in"]
        # A process of the script in a session of its own, that its shell knows nothing of.
        end = await server.run(f"(sleep {number} &) ; sleep {number} & echo left")
        assert end.trouble is None
        await until(lambda: not alive(number))
        order = server.order(f"(sleep {number} &) ; sleep {number}")
        await server.compute.submit(order)
        await server.reach(order.name, Phase.RUNNING)
        await until(lambda: alive(number))
        await server.compute.cancel(order.name)
        assert (await server.done(order.name)).trouble is Trouble.CANCELLED
        assert not alive(number)

    live(machine, scenario)


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_was_found_out_is_kept_while_nothing_changes(
    name: str, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tools.get(name)
    here = place(tmp_path)
    kept = keep(here, name, tool, detail="as kept")
    assert choose(name, here).facts.detail == "as kept"
    # Another configuration is another engine.
    monkeypatch.setenv("CONTAINERS_CONF", str(tmp_path / "none.conf"))
    (tmp_path / "none.conf").touch()
    assert choose(name, here).facts.detail == tool.facts.detail
    assert json.loads(kept.read_text())["facts"]["detail"] == tool.facts.detail
    # What is no facts is as good as none: the engine is tried.
    kept.write_text("{broken")
    put(tmp_path, name, DEAD_PODMAN)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(EngineMissing, match="no space for dragons"):
        choose(name, here)


def keep(here: Place, name: str, tool: Tool, **facts: str) -> Path:
    """Have facts of that engine written down, some of them changed; where."""
    data = json.loads(tool.kept.read_text())
    data["facts"] |= facts
    here.folder.mkdir(parents=True)
    kept = here.folder / f"{name}.json"
    kept.write_text(json.dumps(data))
    return kept


@pytest.mark.parametrize("name", CONTAINERS)
def test_facts_that_are_kept_are_checked_again_in_the_background(
    name: str, tools: Tools, tmp_path: Path
) -> None:
    here = place(tmp_path)
    kept = keep(here, name, tools.get(name), version="old")

    async def scenario() -> str:
        engine = await detect.choose(name, here)
        compute = LocalCompute(
            engine, here.data, NO_STORE, chosen=True, recheck=lambda: detect.recheck(engine, here)
        )
        await compute.start()
        await compute.idle()
        await compute.stop()
        return engine.facts.version

    assert name in asyncio.run(scenario())
    assert name in json.loads(kept.read_text())["facts"]["version"]


@pytest.mark.parametrize("machine", sorted(container_probe._PROGRAMS))
def test_the_probes_program_is_a_small_static_executable(machine: str) -> None:
    program = container_probe._program(machine)
    assert program[:4] == b"\x7fELF"
    assert len(program) < 200
    assert program.endswith(b"/oscar/probe/seen\0")


# oscar doctor


def findings(settings: Settings) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for finding in asyncio.run(report(settings)):
        found.setdefault(finding.topic, []).append((finding.level, finding.words))
        assert finding.words in str(finding)
    return found


def test_the_doctor_tries_each_engine(tmp_path: Path, path: Path) -> None:
    put(path, "docker", DEAD_DOCKER)
    (path / "bwrap").symlink_to(shutil.which("bwrap", path="/usr/bin:/usr/local/bin") or "")
    found = findings(Settings(data=tmp_path / "data", engine="docker", port=0, s3_port=0))
    assert found["engine docker"][0][0] == "missing"
    assert "Cannot connect" in found["engine docker"][0][1]
    assert found["engine podman"][0][0] == "warning"
    assert found["engine process"][0] == ("ok", found["engine process"][0][1])
    assert found["engine"] == [("missing", "docker does not work here")]
    found = findings(Settings(data=tmp_path / "data", engine="auto", port=0, s3_port=0))
    assert found["engine"] == [("warning", "only processes work: services with images are refused")]


def test_the_doctor_looks_at_disk_and_ports(tmp_path: Path, path: Path) -> None:
    async def with_server(act: Callable[[int], Awaitable[None]]) -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        async with server:
            await act(server.sockets[0].getsockname()[1])

    async def act(port: int) -> None:
        settings = Settings(data=tmp_path / "data", port=port, s3_port=0)
        found = {finding.topic: finding for finding in await report(settings)}
        assert found["port of API"].level == "warning"
        assert "in use" in found["port of API"].words
        assert found["port of S3"].level == "ok"
        assert "free" in found["data folder"].words
        assert found["machine"].level == "ok"
        assert ("none here" in found["GPU"].words) == (not list(Path("/dev").glob("nvidia[0-9]*")))

    asyncio.run(with_server(act))


def test_the_doctor_leaves_nothing_behind(tmp_path: Path, path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    findings(Settings(data=data, port=0, s3_port=0))
    assert list(data.iterdir()) == []
    assert not [group for group in Path("/sys/fs/cgroup").glob("*/oscar-doctor") if os.path.lexists(group)]
