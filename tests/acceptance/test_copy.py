"""`oscar cluster copy`: from one real server to another, by their public interfaces only."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oscar.client import Client
from tests import server as servers
from tests.server import Server

SCRIPT = '#!/bin/sh\nwc -c < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/size"\n'


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.running(tmp_path_factory.mktemp("target") / "data") as running:
        yield running


def client(server: Server) -> Client:
    return Client(server.endpoint, user=server.user, password=server.password)


def oscar(home: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("OSCAR_", "MINIO_"))
    }
    return subprocess.run(
        [sys.executable, "-m", "oscar", *words],
        check=False,
        input=stdin,
        capture_output=True,
        text=True,
        env=environment | {"HOME": str(home)},
        timeout=90,
    )


def known(home: Path, **of: Server) -> None:
    for name, server in of.items():
        words = ("cluster", "add", name, server.endpoint, server.user, "--password-stdin")
        assert oscar(home, *words, stdin=server.password).returncode == 0


async def fill(server: Server) -> None:
    async with client(server) as source:
        for name, more in (("copied", {}), ("secretive", {"environment": {"secrets": {"KEY": "planted"}}})):
            await source.apply(
                {
                    "name": name,
                    "image": "busybox",
                    "script": SCRIPT,
                    "input": [{"storage_provider": "minio", "path": f"{name}/in"}],
                    "output": [{"storage_provider": "minio", "path": f"{name}/out"}],
                    **more,
                }
            )
        storage = await source.storage()
        for key in ("in/a b", "other/ä"):
            await storage.put_bytes(key.encode(), "copied", key)
        async for job in source.jobs("copied"):
            await source.wait("copied", job.name)


async def look(server: Server) -> tuple[dict[str, bytes], list[str], str]:
    async with client(server) as target:
        storage = await target.storage()
        found = {
            item.key: await storage.get_bytes("copied", item.key) async for item in storage.list("copied")
        }
        jobs = [job.name async for job in target.jobs("copied")]
        return found, jobs, (await target.service("copied")).script


def test_services_buckets_and_objects_arrive_and_start_nothing(
    server: Server, target: Server, tmp_path: Path
) -> None:
    asyncio.run(fill(server))
    known(tmp_path, old=server, new=target)

    said = oscar(tmp_path, "cluster", "copy", "old", "new", "--objects", "--dry-run", "--json")
    assert said.returncode == 0, said.stderr
    assert {entry["result"] for entry in json.loads(said.stdout)["services"]} == {"would be copied"}

    said = oscar(tmp_path, "cluster", "copy", "old", "new", "--objects", "-s", "copied", "-s", "secretive")
    assert said.returncode == 0, said.stderr
    assert "environment.secrets.KEY" in said.stderr
    objects, jobs, script = asyncio.run(look(target))
    assert objects == {"in/a b": b"in/a b", "other/\xe4": "other/ä".encode(), "out/size": b"6\n"}
    assert (jobs, script) == ([], SCRIPT)

    again = oscar(tmp_path, "cluster", "copy", "old", "new", "--objects", "-s", "copied", "--json")
    assert json.loads(again.stdout) == {
        "services": [{"service": "copied", "result": "kept"}],
        "buckets": [{"bucket": "copied", "objects": 0, "bytes": 0, "result": "copied"}],
    }


def test_what_can_not_be_is_said(server: Server, target: Server, tmp_path: Path) -> None:
    known(tmp_path, old=server, new=target)
    same = oscar(tmp_path, "cluster", "copy", "old", "old")
    assert (same.returncode, "same server" in same.stderr) == (2, True)
    absent = oscar(tmp_path, "cluster", "copy", "old", "new", "-s", "absent")
    assert (absent.returncode, "no service absent" in absent.stderr) == (2, True)
