"""What `compute.local` needs of something that can run a program in a sandbox: the port `Engine`.

Implemented by `containers` (podman and docker) and `processes` (bubblewrap, or none with `--unsafe-process`).
Called by `compute.local.backend` for jobs, `compute.local.workers` for warm workers and `compute.local.exposed` for
servers. An engine knows neither jobs
nor services: names, mounts, limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Mount:
    """A host folder or file seen at `target` inside."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A program to start. Values of `env` may be secrets: they must not appear in any argument list."""

    name: str
    image: str
    argv: tuple[str, ...]
    """Empty: the image's own command."""
    env: Mapping[str, str] = field(repr=False)
    mounts: tuple[Mount, ...]
    workdir: str
    log: Path
    """Where the output goes: CRI lines (`<RFC3339Nano> stdout|stderr F|P <text>`), appended."""
    cpu: int = 0
    """Limit in millicores, 0 for none."""
    memory: int = 0
    """Limit in bytes, 0 for none."""
    gpu: int = 0
    always_pull: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[int, int] = field(default_factory=dict)
    """TCP ports that it listens on, and the ports of this machine's loopback that lead there; equal where the
    sandbox shares this machine's network."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a sandbox ended; `code` None when that can't be known (removed by somebody, its keeper was killed)."""

    name: str
    code: int | None
    killed_by_oom: bool = False
    """The kernel killed a process of it for going over the memory limit."""
    finished: int | None = None
    """Unix milliseconds."""
    refused: str | None = None
    """The engine's words when the program certainly never began (no such file, mount refused)."""
    cpu: int | None = None
    """Microseconds of CPU that all its processes have used; None when nobody could read it in time."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found out about an engine by running it; kept between starts, shown by `oscar doctor`."""

    version: str
    detail: str = ""
    """For people: runtime, cgroup version, rootless or not."""
    options: tuple[str, ...] = ()
    """Arguments without which a container does not start here, such as `--runtime=runc`."""
    memory: bool = False
    """Memory limits are kept."""
    swap: bool = False
    """Memory limits can cover swap space too."""
    cpu: bool = False
    """CPU limits are kept."""
    gpu: tuple[str, ...] = ()
    """What gives a sandbox the GPUs (a container's arguments, a process's device files); none: there is no way."""
    rootless: bool = False
    isolated: bool = True
    """Programs can't see this machine's files and processes."""
    warnings: tuple[str, ...] = ()
    """What an administrator should know, such as a limit that is not kept."""


class Engine(Protocol):
    """A way to run sandboxes. All verbs idempotent by name; they survive the death of this server."""

    name: str
    """`podman`, `docker` or `process`."""
    maps_paths: bool
    """Whether mount targets exist inside; when not, programs see the host's paths."""
    shares_fifo: bool
    """Whether a FIFO in a mounted folder works between host and sandbox."""
    shares_network: bool
    """Whether sandboxes listen on this machine's own ports."""
    facts: Facts
    """What the last `probe` found; empty before."""

    async def probe(self) -> str:
        """Find out by running it whether and how the engine works here; a description for people.

        Raises:
            EngineMissing: it does not work, with the engine's own words.
        """

    async def ensure_image(self, image: str, *, always: bool = False) -> None:
        """Have the image here, pulling it when absent (or `always`).

        Raises:
            ImageError: with the engine's own words.
        """

    async def start(self, sandbox: Sandbox) -> None:
        """Start it detached; silent when one of that name exists already, running or ended.

        Raises:
            EngineError, ImageError: it certainly did not start.
        """

    async def exit(self, name: str) -> Exit | None:
        """Wait for the sandbox to end. None when its program certainly never began: it may be started now.

        When it began and there is no trace of its end, that is an `Exit` with code None.
        """

    async def running(self, name: str) -> bool | None:
        """Whether it runs; None when there certainly is none of that name."""

    async def terminate(self, name: str) -> None:
        """Ask its program, not what that has started, to end (SIGTERM). Silent if absent or ended."""

    async def kill(self, name: str) -> None:
        """End it with all its processes, now. Silent if absent."""

    async def remove(self, name: str) -> None:
        """Kill it if need be and remove all trace of it except its log. Silent if absent."""

    async def names(self, prefix: str = "") -> list[str]:
        """All sandboxes of this installation whose name starts so, ended ones included."""

    async def cpu_time(self, name: str) -> float | None:
        """Seconds of CPU that its processes have used; None when that can't be told from here."""

    async def own(self, folder: Path) -> None:
        """Make files that a sandbox wrote under `folder` readable and removable for this server (user namespaces)."""

    async def close(self) -> None:
        """Let go of the engine (event streams, watches); sandboxes go on."""
