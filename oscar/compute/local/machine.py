"""How large this machine is, as far as this server may use it: cores, memory, GPUs.

Called by `backend` for its capacity. Looks at the affinity, at control groups and at /proc.
"""

from __future__ import annotations

import os
from pathlib import Path

_UNLIMITED = 1 << 60


def size(*, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Millicores and bytes of memory that this server and its scripts may use."""
    cpu = 1000 * len(os.sched_getaffinity(0))
    memory = _total_memory(proc)
    for group in _own_groups(proc, cgroups):
        cpu = min(cpu, _quota(group))
        memory = min(memory, *(_number(group / name) for name in ("memory.max", "memory.limit_in_bytes")))
    return cpu, memory


def gpus(*, dev: Path = Path("/dev")) -> int:
    """GPUs whose driver is loaded."""
    return sum(1 for path in dev.glob("nvidia[0-9]*"))


def gpu_nodes(*, dev: Path = Path("/dev")) -> tuple[str, ...]:
    """The device files by which programs reach NVIDIA's GPUs; none without a driver."""
    if not (dev / "nvidiactl").exists() or not gpus(dev=dev):
        return ()
    ways = ("nvidia[0-9]*", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
    return tuple(str(path) for way in ways for path in sorted(dev.glob(way)))


def _total_memory(proc: Path) -> int:
    for row in (proc / "meminfo").read_text().splitlines():
        if row.startswith("MemTotal:"):
            return int(row.split()[1]) * 1024
    return 0


def _own_groups(proc: Path, cgroups: Path) -> list[Path]:
    """The control groups that hold this process and those above them, of every tree."""
    groups: list[Path] = []
    for row in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = row.split(":", 2)
        for controller in controllers.split(","):
            root = cgroups / controller
            own = root / path.lstrip("/")
            # In a container the path may be that of the host; then the root of the tree is ours.
            groups += [group for group in (own, *own.parents) if group.is_relative_to(root)] + [root]
    return [group for group in dict.fromkeys(groups) if group.is_dir()]


def _quota(group: Path) -> int:
    """The CPU limit in millicores: `<quota> <period>` in version 2, two files in version 1."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        period = str(_number(group / "cpu.cfs_period_us"))
        quota = str(_number(group / "cpu.cfs_quota_us"))
    return int(quota) * 1000 // int(period) if quota.isdigit() and int(quota) < _UNLIMITED else _UNLIMITED


def _number(file: Path) -> int:
    """The number in a file; without limit when there is none, it says `max` or is negative."""
    try:
        text = file.read_text().strip()
    except OSError:
        return _UNLIMITED
    return int(text) if text.isdigit() else _UNLIMITED
