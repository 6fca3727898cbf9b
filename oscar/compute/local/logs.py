"""The logs of runs: one append-only file each, read while it grows and kept after the run is forgotten.

Engines append the program's lines (`cri` has the format), the backend its own about staging. A file keeps at
most 64 MiB, its head and its tail: the middle is punched out, which needs nothing of the writers. Called by
`compute.local.backend` and `attempt`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from oscar.compute.base import LogLine
from oscar.compute.local import cri
from oscar.errors import RunNotFound

MIB = 1024 * 1024
MOST = 64 * MIB
"""Bytes that a log may keep."""
HEAD = 32 * MIB
TAIL = 24 * MIB
"""What a cut leaves at the end; it grows to MOST - HEAD until the next cut."""

_BLOCK = 256 * 1024
_PAGE = 4096
_WAIT = 0.05
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")


class Logs:
    """The logs in one folder, by name of their run."""

    def __init__(self, folder: Path, *, most: int = MOST, head: int = HEAD, tail: int = TAIL) -> None:
        self.folder = folder
        self._most, self._head, self._tail = most, head, tail

    def path(self, name: str) -> Path:
        """Where the log of that run is or will be.

        Raises:
            RunNotFound: no run can have that name.
        """
        if not _NAME.fullmatch(name):
            raise RunNotFound(f"{name!r} is not the name of a run")
        return self.folder / f"{name}.log"

    def say(self, name: str, text: str) -> None:
        """Append the platform's own words as whole lines."""
        with self.path(name).open("ab", buffering=0) as file:
            file.write(cri.line(text))

    def mend(self, name: str) -> None:
        """End a line that the program or a crash left open, so that others can follow. Silent if absent."""
        path = self.path(name)
        if not path.exists():
            return
        with path.open("r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _BLOCK))
            ending = cri.unfinished(file.read())
        if ending:
            with path.open("ab", buffering=0) as file:
                file.write(ending)

    def trim(self, name: str) -> int:
        """Drop the middle when the log keeps more than its share; the bytes that were dropped now.

        Raises:
            OSError: the file system can't do that (ENOTSUP).
        """
        try:
            fd = os.open(self.path(name), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            found = os.fstat(fd)
            before = found.st_blocks * 512
            start, end = _up(self._head), (found.st_size - self._tail) // _PAGE * _PAGE
            if before <= self._most or end <= start:
                return 0
            _punch(fd, start, end - start)
            return before - os.fstat(fd).st_blocks * 512
        finally:
            os.close(fd)

    def drop(self, name: str) -> None:
        """Remove the log. Silent if absent."""
        self.path(name).unlink(missing_ok=True)

    async def read(
        self, name: str, *, going: Callable[[], bool] | None = None, tail: int | None = None
    ) -> AsyncIterator[LogLine]:
        """The log's lines.

        Args:
            name: the run.
            going: follow the log as long as this says so, asked before each look at the file.
            tail: only the last so many lines that exist now.

        Raises:
            RunNotFound: there is no such log.
        """
        path = self.path(name)
        if not path.exists():
            raise RunNotFound(f"there is no log of {name}")
        place = 0 if tail is None else await asyncio.to_thread(_tail_place, path, tail)
        assembler = cri.Assembler()
        more = True
        while more:
            more = going is not None and going()
            while place < _size(path):
                lines, place = await asyncio.to_thread(_next, path, place, assembler)
                for each in lines:
                    yield each
            if more:
                await asyncio.sleep(_WAIT)
        for each in assembler.end():
            yield each


def _size(path: Path) -> int:
    """The file's size, 0 when the log was dropped meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


# Readers open the file for each look at it: a reader that is cancelled leaves a thread behind that may still
# be reading, so there is no descriptor that could be closed in time.


def _next(path: Path, place: int, assembler: cri.Assembler) -> tuple[list[LogLine], int]:
    """The lines of the next block and where it ends."""
    try:
        with path.open("rb", buffering=0) as file:
            return _next_block(file.fileno(), place, assembler)
    except FileNotFoundError:  # dropped since its size was taken
        return [], place


def _next_block(fd: int, place: int, assembler: cri.Assembler) -> tuple[list[LogLine], int]:
    lines: list[LogLine] = []
    size = os.fstat(fd).st_size
    hole = os.lseek(fd, place, os.SEEK_HOLE)
    if hole == place:
        data = _data(fd, place, size)
        lines += assembler.gap(data - place)
        # What follows is the rest of a line that was cut.
        row = os.pread(fd, _BLOCK, data)
        return lines, data + row.find(b"\n") + 1 if b"\n" in row else data + len(row)
    block = os.pread(fd, min(_BLOCK, hole - place), place)
    lines += assembler.feed(block)
    return lines, place + len(block)


def _data(fd: int, place: int, size: int) -> int:
    try:
        return os.lseek(fd, place, os.SEEK_DATA)
    except OSError:  # ENXIO: nothing but the hole is left
        return size


def _tail_place(path: Path, lines: int) -> int:
    """Where the last so many lines begin, read from the end backwards, at most to a dropped middle."""
    with path.open("rb", buffering=0) as file:
        return _tail_place_in(file.fileno(), lines)


def _tail_place_in(fd: int, lines: int) -> int:
    size = os.fstat(fd).st_size
    floor = _last_gap(fd, size)
    if lines <= 0:
        return size
    length = _BLOCK
    while True:
        begin = max(floor, size - length)
        found = cri.start_of_tail(os.pread(fd, size - begin, begin), lines)
        if found is not None:
            return begin + found
        if begin == floor:
            return begin
        length *= 4


def _last_gap(fd: int, size: int) -> int:
    """Where the last stretch of data begins: 0 without a dropped middle."""
    hole = os.lseek(fd, 0, os.SEEK_HOLE) if size else 0
    return _data(fd, hole, size) if hole < size else 0


def keeps_size(folder: Path) -> bool:
    """Whether logs in that folder can be kept at their size: its file system drops parts of files. Blocking."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4 * _PAGE))
        file.flush()
        try:
            _punch(file.fileno(), _PAGE, _PAGE)
        except OSError:
            return False
    return True


def _up(value: int) -> int:
    return (value + _PAGE - 1) // _PAGE * _PAGE


def _punch(fd: int, start: int, length: int) -> None:
    """Give a stretch of a file back to the file system; it reads as zeros, the size stays: fallocate(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    keep_size, punch_hole = 0x01, 0x02
    mode = ctypes.c_int(keep_size | punch_hole)
    if libc.fallocate64(ctypes.c_int(fd), mode, ctypes.c_int64(start), ctypes.c_int64(length)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
