"""A service's `mount` on each engine: by rclone where FUSE works, else mirrored; both against a real S3 server."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import tempfile
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from oscar.compute.local.backend import LocalCompute
from oscar.compute.local.mount_rclone import probe
from oscar.errors import ObjectNotFound
from oscar.model.trouble import Trouble
from oscar.objects.reach import reach_of
from tests import s3_server, webdav_servers
from tests.computing import BUCKET, Machine, Server
from tests.contract.conftest import CONTAINERS

Scenario = Callable[[Server, LocalCompute], Awaitable[None]]
WAYS = pytest.mark.parametrize("way", ["rclone", "mirror"])

pytestmark = pytest.mark.parametrize("machine", ["process", *CONTAINERS], indirect=True)


@functools.cache
def fuse() -> str:
    """What is in the way of mounts by rclone here; empty when they work."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(probe(Path(folder)))


class Share:
    """A folder of the bucket, and how a service mounts it."""

    def __init__(self, machine: Machine, s3: s3_server.Server, way: str) -> None:
        if way == "rclone" and fuse():
            pytest.skip(f"FUSE does not work here: {fuse()}")
        if way == "rclone" and machine.engine == "docker":
            pytest.skip("docker is given mirrors: its daemon may not see mounts of ours")
        self.machine = machine
        self.name = uuid.uuid4().hex
        self.path = f"{BUCKET}/{self.name}"
        self.inside = f"/mnt/{self.path}"
        keys = s3_server.ALICE
        self.how: dict[str, Any] = {"mount": {"storage_provider": "minio", "path": self.path}}
        if way != "mirror":
            far = {"endpoint": s3.endpoint, "access_key": keys.access_key, "secret_key": keys.secret_key}
            self.how["storage_providers"] = {"minio": {"far": far}}
            self.how["mount"]["storage_provider"] = "minio.far"

    async def put(self, name: str, content: bytes) -> None:
        file = self.machine.folder / uuid.uuid4().hex
        file.write_bytes(content)
        await self.machine.store.upload(BUCKET, f"{self.name}/{name}", file)

    async def get(self, name: str) -> bytes:
        file = self.machine.folder / uuid.uuid4().hex
        await self.machine.store.download(BUCKET, f"{self.name}/{name}", file)
        return file.read_bytes()


@pytest.fixture
def share(machine: Machine, s3: s3_server.Server, way: str) -> Share:
    return Share(machine, s3, way)


def live(machine: Machine, *scenarios: Scenario) -> None:
    """Run each scenario on a server of its own; all but the last are killed."""

    async def run() -> None:
        for scenario in scenarios:
            async with machine.serve(drop=scenario is not scenarios[-1]) as server:
                assert isinstance(server.compute, LocalCompute)
                await scenario(server, server.compute)

    asyncio.run(run())


def left(machine: Machine) -> list[str]:
    """What is left of mounts on the machine."""
    mounted = [row for row in Path("/proc/mounts").read_text().splitlines() if str(machine.folder) in row]
    return mounted + [path.name for path in (machine.folder / "mounts").iterdir()]


@WAYS
def test_a_job_reads_and_changes_the_bucket(machine: Machine, share: Share) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        await share.put("kept", b"kept\n")
        await share.put("sub/changed", b"before\n")
        await share.put("removed", b"")
        script = f"""
            cat {share.inside}/kept
            echo after > {share.inside}/sub/changed
            mkdir {share.inside}/new && echo made > "$OSCAR_MOUNT_PATH/new/file"
            rm {share.inside}/removed
        """
        order = server.order(script, **share.how)
        await compute.submit(order)
        end = await server.done(order.name)
        assert (end.trouble, end.message) == (None, None)
        assert "kept" in await server.text(order.name)
        assert await share.get("sub/changed") == b"after\n"
        assert await share.get("new/file") == b"made\n"
        assert await share.get("kept") == b"kept\n"
        with pytest.raises(ObjectNotFound):
            await share.get("removed")
        assert left(machine) == []

    live(machine, scenario)


@WAYS
def test_a_failing_script_has_stored_what_it_wrote(machine: Machine, share: Share) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        end = await server.run(f"echo partly > {share.inside}/note; exit 3", **share.how)
        assert (end.trouble, end.exit_code) == (Trouble.SCRIPT, 3)
        assert await share.get("note") == b"partly\n"
        assert left(machine) == []

    live(machine, scenario)


@WAYS
def test_a_read_only_mount_leaves_the_bucket_alone(machine: Machine, share: Share) -> None:
    share.how["mount"]["options"] = "--read-only"

    async def scenario(server: Server, compute: LocalCompute) -> None:
        await share.put("kept", b"kept\n")
        order = server.order(f"cat {share.inside}/kept; echo x > {share.inside}/new || echo no", **share.how)
        await compute.submit(order)
        await server.done(order.name)
        assert [line for line in await server.text(order.name) if line in {"kept", "no"}] == ["kept", "no"]
        with pytest.raises(ObjectNotFound):
            await share.get("new")

    live(machine, scenario)


@WAYS
def test_any_user_of_an_image_can_write(machine: Machine, share: Share) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        await share.put("sub/old", b"old\n")
        server.image = machine.user_image or machine.image
        script = f"umask 077; id -u; cd {share.inside}/sub; cat old; echo new > new"
        assert (await server.run(script, **share.how)).trouble is None
        assert await share.get("sub/new") == b"new\n"

    live(machine, scenario)


@WAYS
def test_keys_are_neither_inside_nor_in_arguments_nor_in_files(machine: Machine, share: Share) -> None:
    secret = s3_server.ALICE.secret_key

    async def scenario(server: Server, compute: LocalCompute) -> None:
        order = server.order(
            f"env; cat /proc/*/cmdline; echo > {share.inside}/up; echo; echo all said; sleep 60", **share.how
        )
        await compute.submit(order)
        async for line in compute.logs(order.name, follow=True):
            if line.text == "all said":
                break
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert secret.encode() not in command.read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
        mounts = machine.folder / "mounts"
        for file in (path for path in mounts.glob("*/*") if path.is_file()):
            assert secret.encode() not in file.read_bytes()
        assert secret not in "".join(await server.text(order.name))
        await compute.cancel(order.name)
        await server.done(order.name)

    live(machine, scenario)
    assert left(machine) == []


@WAYS
def test_a_mount_outlives_its_server(machine: Machine, share: Share) -> None:
    gate = "go"
    names = []

    async def first(server: Server, compute: LocalCompute) -> None:
        script = f"while [ ! -e /oscar/work/{gate} ]; do sleep 0.1; done; echo done > {share.inside}/late"
        order = server.order(script, **share.how)
        names.append(order)
        await compute.submit(order)
        await server.running(order.name)

    async def second(server: Server, compute: LocalCompute) -> None:
        (order,) = names
        (machine.folder / "runs" / order.name / "work" / gate).touch()
        await compute.submit(order, adopt=True)
        end = await server.done(order.name)
        assert (end.trouble, end.message) == (None, None)
        assert await share.get("late") == b"done\n"
        assert left(machine) == []

    live(machine, first, second)


def rclone_of(machine: Machine) -> int:
    """The process of the one mount on the machine."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[1:2] == ["mount"] and any(str(machine.folder) in word for word in words):
            return int(command.parent.name)
    raise AssertionError("there is no mount")


@pytest.mark.parametrize("way", ["rclone"])
def test_the_job_of_a_dead_mount_is_ended_with_words(machine: Machine, share: Share) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        order = server.order("sleep 100", **share.how)
        await compute.submit(order)
        await server.running(order.name)
        os.kill(rclone_of(machine), signal.SIGKILL)
        end = await server.done(order.name)
        assert end.trouble is Trouble.LOST
        assert "the mount died" in (end.message or "")
        assert left(machine) == []

    live(machine, scenario)


@pytest.mark.parametrize("way", ["rclone"])
def test_left_over_mounts_of_a_killed_server_are_removed(machine: Machine, share: Share) -> None:
    async def first(server: Server, compute: LocalCompute) -> None:
        service = server.order("true", **share.how).service
        await compute.attachments.attach("w-of-a-killed-server", service)
        await compute.attachments.attach("job.that-nobody-knows", service)
        assert len(left(machine)) == 4

    async def second(server: Server, compute: LocalCompute) -> None:
        assert left(machine) == []

    live(machine, first, second)


@WAYS
def test_a_webdav_server(machine: Machine, share: Share, way: str, tmp_path: Path) -> None:
    async def scenario(server: Server, compute: LocalCompute) -> None:
        if way == "mirror":
            compute._mounts._way = asyncio.create_task(asyncio.sleep(0, "not here"))
        how: dict[str, Any] = {
            "mount": {"storage_provider": "webdav.far", "path": "folder/deep"},
            "storage_providers": {"webdav": {"far": far}},
        }
        script = "cd /mnt/folder/deep; cat note; echo after > note; echo new > made"
        order = server.order(script, **how)
        await compute.submit(order)
        end = await server.done(order.name)
        assert (end.trouble, end.message) == (None, None)
        assert "before" in await server.text(order.name)

    with webdav_servers.wsgidav(tmp_path) as files:
        far = {"hostname": files.url, "login": webdav_servers.USER, "password": webdav_servers.PASSWORD}
        deep = files.folder / "folder" / "deep"
        deep.mkdir(parents=True)
        (deep / "note").write_text("before\n")
        live(machine, scenario)
        assert (deep / "note").read_text() == "after\n"
        assert (deep / "made").read_text() == "new\n"


@pytest.mark.parametrize("way", ["far"])
def test_a_bucket_of_a_user_elsewhere_is_mirrored_from_where_it_may_be(
    machine: Machine, share: Share
) -> None:
    share.how["owner"] = "somebody"

    async def allowed(server: Server, compute: LocalCompute) -> None:
        await share.put("kept", b"kept\n")
        script = (
            f"cat {share.inside}/kept; echo made > {share.inside}/new; until [ -e go ]; do sleep 0.1; done"
        )
        order = server.order(f"cd /oscar/work; {script}", **share.how)
        await compute.submit(order)
        await server.running(order.name)
        [kind] = (machine.folder / "mounts").glob("*/mount.json")
        assert kind.read_text() == '{"rclone": false}'
        (machine.folder / "runs" / order.name / "work" / "go").touch()
        end = await server.done(order.name)
        assert (end.trouble, end.message) == (None, None)
        assert "kept" in await server.text(order.name)
        assert await share.get("new") == b"made\n"

    async def refused(server: Server, compute: LocalCompute) -> None:
        order = server.order(f"echo ran; echo again > {share.inside}/again", **share.how)
        await compute.submit(order)
        end = await server.done(order.name)
        assert end.trouble is Trouble.OUR
        assert "the host 127.0.0.1 has a private address" in (end.message or "")
        assert "ran" not in await server.text(order.name)
        with pytest.raises(ObjectNotFound):
            await share.get("again")
        assert left(machine) == []

    machine.reach = reach_of(["127.0.0.1"])
    live(machine, allowed)
    machine.reach = reach_of([])
    live(machine, refused)


@WAYS
def test_a_mount_that_can_not_be_had_fails_the_job_with_words(machine: Machine, share: Share) -> None:
    if "storage_providers" in share.how:
        share.how["storage_providers"]["minio"]["far"]["secret_key"] = "wrong"
    else:
        share.how["mount"]["path"] = "a-bucket-of-bob/x"

    async def scenario(server: Server, compute: LocalCompute) -> None:
        end = await server.run("true", **share.how)
        assert end.trouble in {Trouble.OUR, Trouble.REFUSED}
        assert end.message
        assert left(machine) == []

    live(machine, scenario)
