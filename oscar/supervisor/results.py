"""What a script left in its output folder, read without trusting it.

Called by `stage` and `answer`. The server often runs as root and the script's author is anybody: a link to
/etc/shadow in the output folder must not come back as a result. So every path is opened part by part below the
work folder, and no open follows a link; links are resolved here, and only as far as the job's own files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from oscar.errors import StorageError, Unsupported

MOST_FILES = 100_000
DEEPEST = 64
"""Folders in one another that are looked into."""
MOST_LINKS = 16
"""Links on the way to one file."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READABLE = frozenset({"in", "out"})

Parts = tuple[str, ...]


class Result(NamedTuple):
    """A file: `name` is its path below the output folder, `parts` where it really is below the work folder."""

    name: str
    parts: Parts
    size: int


def find(work: Path, inside: str, warn: Callable[[str], None]) -> list[Result]:
    """All files of the output folder in the order of their names. Blocking.

    Args:
        work: the work folder, which holds `in` and `out`.
        inside: where the script saw that folder; absolute links are read so.
        warn: told what was left out and why.

    Raises:
        Unsupported: there are too many.
        StorageError: a folder can't be read.
    """
    try:
        root = os.open(work, _FOLDER)
    except OSError as error:
        raise StorageError(f"the work folder can't be read: {error.strerror}") from error
    try:
        found: list[Result] = []
        for result in _walk(root, inside, warn):
            found.append(result)
            if len(found) > MOST_FILES:
                raise Unsupported(
                    f"the script left more than {MOST_FILES} files",
                    fix="Put them into an archive.",
                )
    finally:
        os.close(root)
    return sorted(found, key=lambda result: result.name)


def open_folder(work: Path, result: Result) -> int:
    """A file descriptor of the folder that the file is in, to be closed by the caller. Blocking.

    `/dev/fd/<descriptor>/<last part>` is a path to the file that no exchanged folder can lead elsewhere.

    Raises:
        StorageError: the folder is no longer there.
    """
    try:
        root = os.open(work, _FOLDER)
        try:
            return _open_folder(root, result.parts[:-1])
        finally:
            os.close(root)
    except OSError as error:
        raise StorageError(f"the output file {result.name} can't be read: {error.strerror}") from error


def open_result(work: Path, result: Result) -> int:
    """A file descriptor of the file, to be closed by the caller. Blocking.

    Raises:
        StorageError: it can't be read, or is no longer what it was.
    """
    try:
        root = os.open(work, _FOLDER)
        try:
            opened = _open_file(root, result.parts)
        finally:
            os.close(root)
    except OSError as error:
        raise StorageError(f"the output file {result.name} can't be read: {error.strerror}") from error
    if opened is None:
        raise StorageError(f"the output file {result.name} is no longer a file")
    return opened


def _walk(root: int, inside: str, warn: Callable[[str], None]) -> Iterator[Result]:
    pending: list[Parts] = [("out",)]
    while pending:
        folder = pending.pop()
        try:
            opened = _open_folder(root, folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            if len(folder) == 1:
                warn(f"the output folder can't be read: {error.strerror}")
                continue
            raise StorageError(f"{_name(folder)} can't be read: {error.strerror}") from error
        try:
            with os.scandir(opened) as entries:
                for entry in entries:
                    parts = (*folder, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        if len(parts) > DEEPEST:
                            warn(f"left out {_name(parts)}: more than {DEEPEST} folders deep")
                        else:
                            pending.append(parts)
                    elif result := _result(root, parts, entry, inside, warn):
                        yield result
        finally:
            os.close(opened)


def _result(
    root: int, parts: Parts, entry: os.DirEntry[str], inside: str, warn: Callable[[str], None]
) -> Result | None:
    name = _name(parts)
    if entry.is_symlink():
        return _linked(root, parts, inside, warn)
    status = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        warn(f"left out {name}: not a file")
        return None
    return Result(name, parts, status.st_size)


def _linked(root: int, parts: Parts, inside: str, warn: Callable[[str], None]) -> Result | None:
    name = _name(parts)
    try:
        target = _resolve(root, parts, inside)
        if target is None:
            warn(f"left out {name}: a link that leads out of the job's files")
            return None
        opened = _open_file(root, target)
    except OSError as error:
        warn(f"left out {name}: a link to nothing ({error.strerror})")
        return None
    if opened is None:
        warn(f"left out {name}: a link to something that is not a file")
        return None
    try:
        return Result(name, target, os.fstat(opened).st_size)
    finally:
        os.close(opened)


def _name(parts: Parts) -> str:
    """The path below the output folder as text; bytes that are no UTF-8 are written in hexadecimal."""
    return "/".join(parts[1:]).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _open_folder(root: int, parts: Parts) -> int:
    """Open a folder below `root` without following a link."""
    current = os.dup(root)
    try:
        for part in parts:
            inner = os.open(part, _FOLDER, dir_fd=current)
            os.close(current)
            current = inner
    except BaseException:
        os.close(current)
        raise
    return current


def _open_file(root: int, parts: Parts) -> int | None:
    """Open a file below `root` without following a link; None when it is not a regular file."""
    folder = _open_folder(root, parts[:-1])
    try:
        # Looked at before: opening a device may already do something.
        if not stat.S_ISREG(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
            return None
        opened = os.open(parts[-1], _FILE, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        return None
    return opened


def _resolve(root: int, parts: Parts, inside: str) -> Parts | None:
    """Where a link ends below the work folder; None when it leads elsewhere or in circles."""
    reached: list[str] = []
    ahead = list(reversed(parts))
    links = 0
    while ahead:
        part = ahead.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            if not reached:
                return None
            reached.pop()
            continue
        target = _link(root, (*reached, part))
        if target is None:
            reached.append(part)
            continue
        links += 1
        if links > MOST_LINKS:
            return None
        if target.startswith("/"):
            if not target.startswith(f"{inside}/"):
                return None
            target = target.removeprefix(f"{inside}/")
            reached = []
        ahead += reversed(target.split("/"))
    return tuple(reached) if len(reached) > 1 and reached[0] in _READABLE else None


def _link(root: int, parts: Parts) -> str | None:
    """The target of a link; None when it is something else.

    Raises:
        FileNotFoundError: there is nothing.
    """
    folder = _open_folder(root, parts[:-1])
    try:
        if not stat.S_ISLNK(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
            return None
        return os.readlink(parts[-1], dir_fd=folder)
    finally:
        os.close(folder)
