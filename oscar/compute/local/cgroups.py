"""Memory, CPU and process limits for sandboxes that no container engine makes: control groups of Linux.

Version 2 in the unified tree, version 1 in one tree a controller; whether they can be written here is found
out by doing it. Called by `processes`. Formats: https://docs.kernel.org/admin-guide/cgroup-v2.html and
https://docs.kernel.org/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

PERIOD = 100_000
"""Microseconds of a CPU period."""
MOST_PROCESSES = 4096
"""Against fork bombs; more than any honest script has."""
_DYING_PAUSES = (0.01, 0.05, 0.2, 1.0)
"""Seconds that a killed process may take to leave its group."""
SHARES = {"memory", "cpu", "pids"}


@dataclass(slots=True)
class Cgroups:
    """A folder of groups of this installation in each tree that takes limits. Paths by controller."""

    bases: dict[str, Path] = field(default_factory=dict)
    version: int = 0

    def make(self, name: str, *, cpu: int, memory: int) -> list[str]:
        """Make the groups of a sandbox, with its limits: millicores and bytes, 0 for none.

        Raises:
            OSError: the kernel refuses.
        """
        groups = dict.fromkeys(base / name for base in self.bases.values())
        for group in groups:
            group.mkdir(exist_ok=True)
        for file, value in self._limits(name, cpu=cpu, memory=memory):
            file.write_text(value)
        return [str(group) for group in groups]

    def remove(self, name: str) -> None:
        """Remove the groups of a sandbox that has ended, with what may still be dying in them. Blocking.

        Raises:
            OSError: they can't be removed.
        """
        for base in set(self.bases.values()):
            group = base / name
            for pause in (*_DYING_PAUSES, None):
                try:
                    group.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    if pause is None:
                        raise
                    _kill_all(group)
                    time.sleep(pause)

    def leave(self) -> None:
        """Remove the folders of this installation unless sandboxes are in them."""
        for base in set(self.bases.values()):
            with contextlib.suppress(OSError):
                base.rmdir()

    def _limits(self, name: str, *, cpu: int, memory: int) -> list[tuple[Path, str]]:
        limits: list[tuple[Path, str]] = []
        quota = max(1000, cpu * PERIOD // 1000)
        of = {controller: base / name for controller, base in self.bases.items()}
        second = self.version == 2  # noqa: PLR2004 - the version of cgroups
        if memory and "memory" in of:
            limits.append((of["memory"] / ("memory.max" if second else "memory.limit_in_bytes"), str(memory)))
            swap = of["memory"] / ("memory.swap.max" if second else "memory.memsw.limit_in_bytes")
            if swap.exists():
                limits.append((swap, "0" if second else str(memory)))
        if cpu and "cpu" in of:
            if second:
                limits.append((of["cpu"] / "cpu.max", f"{quota} {PERIOD}"))
            else:
                limits.append((of["cpu"] / "cpu.cfs_period_us", str(PERIOD)))
                limits.append((of["cpu"] / "cpu.cfs_quota_us", str(quota)))
        if "pids" in of:
            limits.append((of["pids"] / "pids.max", str(MOST_PROCESSES)))
        return limits


def _kill_all(group: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def find(installation: str, *, proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> Cgroups:
    """The groups that can be made here; without bases when none can."""
    own = dict(_own_groups((proc / "self/cgroup").read_text()))
    folder = f"oscar-{installation}"
    if (root / "cgroup.controllers").exists():
        return _unified(root, own.get("", "/"), folder)
    bases: dict[str, Path] = {}
    # The last one limits nothing: it counts CPU time, as the unified tree does by itself.
    for controller in sorted({*SHARES, "cpuacct"}):
        tree = root / controller
        if not tree.is_dir():
            continue
        parent = tree / own.get(controller, "/").lstrip("/")
        base = (parent if parent.is_dir() else tree) / folder
        if _made(base):
            bases[controller] = base
    return Cgroups(bases, 1)


def _unified(root: Path, own: str, folder: str) -> Cgroups:
    """Below the root when we may, else below our own group: both must be able to hand controllers down."""
    for parent in (root, root / own.lstrip("/")):
        base = parent / folder
        if not _made(base):
            continue
        _hand_down(parent)
        _hand_down(base)
        have = set((base / "cgroup.subtree_control").read_text().split()) & SHARES
        if have:
            return Cgroups(dict.fromkeys(sorted(have), base), 2)
        base.rmdir()
    return Cgroups()


def _hand_down(group: Path) -> None:
    for controller in sorted(SHARES):
        try:
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError:  # not there, or the group has processes of its own: what is there is read afterwards
            continue


def _made(base: Path) -> bool:
    try:
        base.mkdir(exist_ok=True)
    except OSError:
        return False
    return os.access(base, os.W_OK)


def _own_groups(text: str) -> list[tuple[str, str]]:
    """Controller and path from lines `<id>:<controllers>:<path>`; the unified tree has no controllers."""
    rows = [line.split(":", 2) for line in text.splitlines() if line.count(":") > 1]
    return [(controller, path) for _, controllers, path in rows for controller in controllers.split(",")]
