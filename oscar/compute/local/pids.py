"""Processes that are not our children: waiting for their end by pidfd, and the CPU time that they have used.

Called by `processes` for its keepers and by `containers` for podman, which has no daemon to ask.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path


async def end_of(pidfd: int) -> None:
    """Wait until the process of that descriptor has ended; see pidfd_open(2)."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)


def open_in_group(pid: int, group: str) -> int | None:
    """A descriptor of the process, if it lives and the name of one of its control groups holds that text.

    The second tells it from another process that was given its number meanwhile.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        groups = ""
    if group in groups:
        return pidfd
    os.close(pidfd)
    return None


def group_usage(pid: int, name: str = "", root: Path = Path("/sys/fs/cgroup")) -> Path | None:
    """The file in which the kernel counts the CPU time of the process' control group; None when it is not to be seen.

    Version 2 (`cpu.stat`), or version 1 (`cpuacct.usage`); it goes with the group. The root group is nobody's own: it
    counts the whole machine, and a process that has ended belongs to it. With a name only a group whose path has it.
    """
    try:
        rows = [row.split(":", 2) for row in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    except (FileNotFoundError, ProcessLookupError):
        return None
    for _, controllers, path in (row for row in rows if len(row) > 2):  # noqa: PLR2004 - three fields
        if path == "/" or name not in path:
            continue
        if "cpuacct" in controllers.split(","):
            file = root / "cpuacct" / path.lstrip("/") / "cpuacct.usage"
        elif not controllers:
            file = root / path.lstrip("/") / "cpu.stat"
        else:
            continue
        if file.exists():
            return file
    return None


def group_seconds(file: Path) -> float | None:
    """The CPU time in such a file; None when its group is gone."""
    try:
        text = file.read_text()
    except OSError:
        return None
    if file.name == "cpuacct.usage":
        return int(text) / 1e9
    found = [row.split()[1] for row in text.splitlines() if row.startswith("usage_usec ")]
    return int(found[0]) / 1e6 if found else None


def cpu_seconds(pid: int) -> float | None:
    """CPU time of the process, of all below it and of their ended children; None when it is not to be seen here.

    From /proc/<pid>/stat, fields 14 to 17 of proc(5).
    """
    used: dict[int, int] = {}
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since the folder was read
        number = int(path.parent.name)
        used[number] = sum(int(word) for word in fields[11:15])
        below.setdefault(int(fields[1]), []).append(number)
    if pid not in used:
        return None
    total, waiting = 0, [pid]
    while waiting:
        number = waiting.pop()
        total += used[number]
        waiting += below.get(number, [])
    return total / os.sysconf("SC_CLK_TCK")
