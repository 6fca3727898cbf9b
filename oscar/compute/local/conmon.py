"""How a podman container ended, by the word of conmon, its keeper: earlier than podman itself knows it.

conmon writes the exit code into a file once all output is in the log and on the disk, and only then calls podman to
clean up, which takes the file away. podman's own answer needs a call that waits for that cleaning: 50 to 140 ms. Where
the file is missed, podman is asked. Called by `containers`. Source: conmon 2.1, `src/conmon.c`, option `--exit-dir`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from oscar.compute.local.docker_exits import Ended

_PAUSES = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.005, 0.01, 0.01, 0.02)
"""Seconds between looks: conmon drains and syncs the log between the end of the process and the file."""
_OPTION = "--exit-dir"


def exits_of(pid: int, number: str) -> Path | None:
    """The folder in which the keeper of a container leaves exit codes; None when it is not to be found.

    Args:
        pid: the container's first process, which is the keeper's child.
        number: the container's id, which the keeper has among its arguments.
    """
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        words = Path(f"/proc/{parent}/cmdline").read_bytes().decode("utf-8", "surrogateescape").split("\0")
    except (OSError, ValueError, IndexError):
        return None
    if number not in words or _OPTION not in words[:-1]:
        return None
    return Path(words[words.index(_OPTION) + 1])


async def end_in(folder: Path, number: str) -> Ended | None:
    """How a container whose first process has just ended did so; None when the keeper does not say so in time."""
    for pause in (*_PAUSES, None):
        if ended := _read(folder / number):
            return ended
        if pause is not None:
            await asyncio.sleep(pause)
    return None


def _read(file: Path) -> Ended | None:
    try:
        with file.open("rb") as opened:
            code = int(opened.read(16))
            # podman takes the file's time for the end as well.
            return Ended(code, int(file.stat().st_mtime * 1000))
    except (OSError, ValueError):
        return None
