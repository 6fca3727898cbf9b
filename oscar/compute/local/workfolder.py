"""The folder of a warm worker of this machine: `work`, which it shares with its sandbox, and `config`.

Called by `worker` and `single`; calls `supervisor.workfolder` for what happens in `work`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Protocol

from oscar.compute.local.engine import Engine, Mount
from oscar.supervisor.trees import remove_tree
from oscar.supervisor.workfolder import CallFolder

WORK = "/oscar/work"
CONFIG = "/oscar/config"
SHELL = "/bin/sh"


class Attaching(Protocol):
    """What a service has mounted into each of its workers; see `Attachments`."""

    async def attach(self, holder: str) -> tuple[tuple[Mount, ...], dict[str, str]]:
        """Have it ready for a sandbox: what to mount, and variables."""

    async def detach(self, holder: str) -> None:
        """The sandbox is gone."""


@dataclass(frozen=True, slots=True)
class Kit:
    """What a worker is made of; equal kits make workers that can stand in for one another."""

    image: str
    script: str
    """Empty: the image's own command runs, once per request."""
    config: str
    """Text of `function_config.yaml`."""
    env: Mapping[str, str] = field(repr=False)
    """Variables of the service; those of a request come with it."""
    cpu: int = 0
    """Limit in millicores, 0 for none."""
    memory: int = 0
    """Limit in bytes, 0 for none."""
    gpu: int = 0
    by_user: bool = False
    mounts: tuple[Mount, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    attaching: Attaching | None = field(default=None, compare=False)
    """Has volume and mount of the service ready for a sandbox; None when it has neither."""
    stamp: str = ""
    """Changes with the secrets of a mount, which stand nowhere else here."""


class WorkFolder(CallFolder):
    """A worker's folder on this machine, and where its parts are seen inside.

    Attributes:
        work: the host's path of what is mounted at `work_inside`.
        config: the host's path of what is mounted, read-only, at `config_inside`.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        work = path / "work"
        super().__init__(work, WORK if engine.maps_paths else str(work), engine.own)
        self._engine = engine
        self.path = path
        self.config = path / "config"
        self.config_inside = CONFIG if engine.maps_paths else str(self.config)
        # Containers begin where their image says; processes in the one folder that is theirs alone.
        self.workdir = "" if engine.name != "process" else "/tmp" if engine.maps_paths else str(self.work)  # noqa: S108

    async def attached(self, kit: Kit, holder: str) -> Kit:
        """The kit with volume and mount of the service, ready for a sandbox of that name."""
        if kit.attaching is None:
            return kit
        mounts, variables = await kit.attaching.attach(holder)
        return replace(kit, mounts=(*kit.mounts, *mounts), env={**kit.env, **variables})

    def mounts(self, kit: Kit) -> tuple[Mount, ...]:
        """What the sandbox gets to see."""
        return (Mount(self.work, WORK), Mount(self.config, CONFIG, read_only=True), *kit.mounts)

    def furnish(self, kit: Kit) -> None:
        """Make the folder; blocking."""
        # A worker of that name can't be: what lies there was left by a server that was killed.
        remove_tree(self.path)
        self.work.mkdir(parents=True)
        self.config.mkdir()
        for folder in (self.path, self.work, self.config):
            folder.chmod(0o755)
        program = resources.files("oscar.supervisor").joinpath("worker.sh").read_bytes()
        contents = {
            "script.sh": kit.script.encode("utf-8", "surrogateescape"),
            "function_config.yaml": kit.config.encode(),
            "worker.sh": program,
        }
        for name, content in contents.items():
            (self.config / name).write_bytes(content)
            (self.config / name).chmod(0o644)
        self.open(kit.env)

    async def remove(self) -> None:
        """Remove the folder. Silent if absent."""
        self.close()
        await remove_folder(self._engine, self.path)


async def remove_folder(engine: Engine, path: Path) -> None:
    """Remove a folder, also where another user of an image wrote into it. Silent if absent."""
    try:
        await asyncio.to_thread(remove_tree, path)
    except PermissionError:
        await engine.own(path)
        await asyncio.to_thread(remove_tree, path)
