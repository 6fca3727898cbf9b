"""The ability `HasVolumes` on each engine, and that all containers of a service have its volume."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from oscar.compute.local.backend import LocalCompute
from oscar.errors import EngineError
from oscar.model.trouble import Trouble
from oscar.model.volume import key
from tests.computing import Machine, Server
from tests.contract.conftest import CONTAINERS

MIB = 1024 * 1024
OWNER = "somebody"
KIND = pytest.mark.parametrize("images", [True, False], ids=["image", "folder"])

pytestmark = pytest.mark.parametrize("machine", ["process", *CONTAINERS], indirect=True)


def loops() -> bool:
    """Whether file systems on loop devices can be mounted here."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists()


def live(
    machine: Machine, images: bool | None, scenario: Callable[[Server, LocalCompute], Awaitable[None]]
) -> None:
    """Run a scenario on a new server whose volumes are of that kind."""
    if images and not loops():
        pytest.skip("no loop devices here")

    async def run() -> None:
        async with machine.serve() as server:
            assert isinstance(server.compute, LocalCompute)
            server.compute.volumes._images = images
            await scenario(server, server.compute)

    asyncio.run(run())


async def said(server: Server, run: str, words: str) -> None:
    """Wait until a script has said that."""
    async for line in server.compute.logs(run, follow=True):
        if line.text == words:
            return


def block(name: str) -> dict[str, str]:
    return {"name": name, "mount_path": "/data"}


@KIND
def test_verbs_are_idempotent(machine: Machine, images: bool) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        name = key(OWNER, "one")
        await compute.create_volume(name, 16 * MIB, owner=OWNER)
        folder = await compute.volumes.folder(name)
        (folder / "kept").write_bytes(b"x" * MIB)
        os.sync()
        await compute.create_volume(name, 16 * MIB, owner=OWNER)
        assert (folder / "kept").stat().st_size == MIB
        usage = await compute.volume_usage(name)
        assert (usage.size, usage.enforced) == (16 * MIB, images)
        assert MIB <= usage.used < 2 * MIB
        await compute.delete_volume(name)
        await compute.delete_volume(name)
        with pytest.raises(EngineError):
            await compute.volume_usage(name)
        await compute.create_volume(name, 16 * MIB, owner=OWNER)
        assert list((await compute.volumes.folder(name)).iterdir()) == []
        await compute.delete_volume(name)
        assert list((machine.folder / "volumes").iterdir()) == []

    live(machine, images, scenario)


@KIND
def test_a_volume_outlives_jobs_and_servers(machine: Machine, images: bool) -> None:
    name = key(OWNER, "lasting")
    how: dict[str, Any] = {"owner": OWNER, "volume": block("lasting")}

    async def first(server: Server, compute: LocalCompute) -> None:
        await compute.create_volume(name, 16 * MIB, owner=OWNER)
        assert (await server.run("umask 077; echo one >> /data/lines", **how)).trouble is None

    async def second(server: Server, compute: LocalCompute) -> None:
        order = server.order('echo two >> "$OSCAR_VOLUME_PATH/lines"; cat /data/lines', **how)
        await compute.submit(order)
        assert (await server.done(order.name)).trouble is None
        assert await server.text(order.name) == ["one", "two"]
        await compute.delete_volume(name)

    live(machine, images, first)
    live(machine, images, second)


@KIND
def test_any_user_of_an_image_can_write(machine: Machine, images: bool) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        await compute.create_volume(key(OWNER, "open"), 16 * MIB, owner=OWNER)
        server.image = machine.user_image or machine.image
        order = server.order(
            "id -u; echo hello > /data/note; cat /data/note", owner=OWNER, volume=block("open")
        )
        await compute.submit(order)
        assert (await server.done(order.name)).trouble is None
        who, said = await server.text(order.name)
        assert said == "hello"
        assert who != "0"
        await compute.delete_volume(key(OWNER, "open"))

    live(machine, images, scenario)


def test_a_file_system_keeps_a_volume_below_its_size(machine: Machine) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        await compute.create_volume(key(OWNER, "small"), 16 * MIB, owner=OWNER)
        script = "dd if=/dev/zero of=/data/large bs=1048576 count=32; test $? -ne 0 && echo refused"
        order = server.order(script, owner=OWNER, volume=block("small"))
        await compute.submit(order)
        await server.done(order.name)
        assert (await server.text(order.name))[-1] == "refused"
        assert (await compute.volume_usage(key(OWNER, "small"))).used <= 16 * MIB
        await compute.delete_volume(key(OWNER, "small"))

    live(machine, True, scenario)


def test_a_measured_volume_that_is_over_its_size_can_only_be_read(machine: Machine) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        await compute.create_volume(key(OWNER, "full"), MIB, owner=OWNER)
        how: dict[str, Any] = {"owner": OWNER, "volume": block("full")}
        script = "dd if=/dev/zero of=/data/large bs=1048576 count=2 conv=fsync"
        assert (await server.run(script, **how)).trouble is None
        order = server.order("ls /data; echo more > /data/more || echo refused", **how)
        await compute.submit(order)
        await server.done(order.name)
        said = await server.text(order.name)
        assert "large" in said
        assert said[-1] == "refused"
        assert any("over its size" in line for line in said)

    live(machine, False, scenario)


@KIND
def test_a_volume_is_deleted_under_a_running_script(machine: Machine, images: bool) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        await compute.create_volume(key(OWNER, "going"), 16 * MIB, owner=OWNER)
        order = server.order("echo x > /data/x; echo begun; sleep 60", owner=OWNER, volume=block("going"))
        await compute.submit(order)
        await said(server, order.name, "begun")
        await compute.delete_volume(key(OWNER, "going"))
        with pytest.raises(EngineError):
            await compute.volume_usage(key(OWNER, "going"))
        await compute.cancel(order.name)
        assert (await server.done(order.name)).trouble is Trouble.CANCELLED

    live(machine, images, scenario)


@KIND
def test_what_a_crash_left_half_made_is_gone_after_a_start(machine: Machine, images: bool) -> None:
    name = key(OWNER, "half")

    async def scenario(server: Server, compute: LocalCompute) -> None:
        await compute.create_volume(name, 16 * MIB, owner=OWNER)
        await compute.volumes.folder(name)

    live(machine, images, scenario)
    volumes = machine.folder / "volumes"
    (volumes / name).rename(volumes / f".gone-{name}")
    (volumes / f".new-{name}" / "fs").mkdir(parents=True)

    async def after(server: Server, compute: LocalCompute) -> None:
        assert list(volumes.iterdir()) == []

    live(machine, images, after)


def test_a_missing_volume_fails_the_job_with_words(machine: Machine) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        end = await server.run("true", owner=OWNER, volume=block(f"no-{uuid.uuid4().hex[:6]}"))
        assert end.trouble is Trouble.OUR
        assert "there is no volume" in (end.message or "")

    live(machine, None, scenario)


def test_nothing_stays_mounted(machine: Machine) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        await compute.create_volume(key(OWNER, "idle"), 16 * MIB, owner=OWNER)
        await compute.volumes.folder(key(OWNER, "idle"))
        assert str(machine.folder) in Path("/proc/mounts").read_text()

    live(machine, True, scenario)
    assert str(machine.folder) not in Path("/proc/mounts").read_text()


def test_a_measured_volume_hides_nothing_in_deep_folders(machine: Machine) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        await compute.create_volume(key(OWNER, "deep"), MIB, owner=OWNER)
        script = """
            cd /data; name=$(printf %0200d 0); i=0
            while [ $i -lt 40 ]; do mkdir $name && cd $name; i=$((i+1)); done
            dd if=/dev/zero of=large bs=1048576 count=2 conv=fsync
        """
        how: dict[str, Any] = {"owner": OWNER, "volume": block("deep")}
        assert (await server.run(script, **how)).trouble is None
        assert (await compute.volume_usage(key(OWNER, "deep"))).used > 2 * MIB
        await compute.delete_volume(key(OWNER, "deep"))

    live(machine, False, scenario)
