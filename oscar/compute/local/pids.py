"""Waiting for processes that are not our children: by pidfd, so that the kernel tells their end.

Called by `processes` for its shims and by `containers` for podman, which has no daemon to ask.
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
