"""Folders that scripts wrote into: removed, emptied and made readable, whatever was put there.

Called by `records`, `workfolder` and the engines. A script may nest folders deeper than paths can be long and than
Python can recurse, so nothing here recurses, holds a descriptor per level or names anything by a path; and no link is
followed. All functions block.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_FOLDER = frozenset({errno.ENOTDIR, errno.ELOOP})
_FILLED = frozenset({errno.ENOTEMPTY, errno.EEXIST})
_TRIES = 100
"""How often a folder is emptied that somebody else fills or empties at the same time."""


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it, or a file. Silent if absent, also when somebody else is removing it.

    Raises:
        PermissionError: something in it belongs to another user.
        OSError: it can't be removed.
    """
    for left in reversed(range(_TRIES)):
        try:
            empty_tree(path)
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno in _NO_FOLDER:
                path.unlink(missing_ok=True)
                return
            if error.errno not in _FILLED or not left:
                raise
        else:
            return


def empty_tree(path: Path) -> None:
    """Remove all that is in a folder.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        PermissionError: something in it belongs to another user.
        OSError: it can't be removed.
    """
    root = _open(path, writable=True)
    try:
        folders = _unlink_files(root)
        while folders:
            name = folders.pop()
            try:
                folders += _lift(root, name)
                os.rmdir(name, dir_fd=root)
            except FileNotFoundError:
                continue  # somebody else was faster
            except OSError as error:
                if error.errno not in _NO_FOLDER:
                    raise
                os.unlink(name, dir_fd=root)
    finally:
        os.close(root)


def _lift(root: int, name: str) -> list[str]:
    """Empty a folder in `root`, moving its folders up into `root`; their new names there."""
    lifted = []
    folder = _open(name, root, writable=True)
    try:
        for inner in _unlink_files(folder):
            new = f".{secrets.token_hex(8)}"
            with suppress(FileNotFoundError):
                # A folder that moves gets another "..", for which it must be writable.
                with suppress(PermissionError):
                    _allow(inner, folder, 0o700)
                os.rename(inner, new, src_dir_fd=folder, dst_dir_fd=root)
                lifted.append(new)
    finally:
        os.close(folder)
    return lifted


def _unlink_files(folder: int) -> list[str]:
    """Remove all that is no folder; the names of the folders."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=folder)
    return folders


def make_readable(path: Path) -> None:
    """Give the owner, which we are, all rights to what lies under the folder.

    Raises:
        PermissionError: something in it belongs to another user, and is closed to us.
    """
    for folder in _folders(path, writable=True):
        with os.scandir(folder) as entries:
            files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        for name in files:
            with suppress(FileNotFoundError):
                _allow(name, folder, 0o600)


def owners(path: Path) -> set[int]:
    """The ids of the users to whom something under the folder belongs.

    Raises:
        PermissionError: a folder is closed to us.
    """
    found = {path.lstat().st_uid}
    for folder in _folders(path):
        with os.scandir(folder) as entries:
            found |= {entry.stat(follow_symlinks=False).st_uid for entry in entries}
    return found


def disk_use(path: Path) -> int:
    """Bytes on the disk of all that lies in the folder; a file with several names counts once.

    Raises:
        PermissionError: a folder is closed to us.
        OSError: it is being changed all the time.
    """
    for left in reversed(range(_TRIES)):
        try:
            return _disk_use(path)
        except OSError as error:
            if (
                error.errno not in {errno.ENOENT, errno.ESTALE, errno.ENOTDIR}
                or not left
                or not path.is_dir()
            ):
                raise
    raise AssertionError("the last try returns or raises")


def _disk_use(path: Path) -> int:
    total = 0
    seen: set[tuple[int, int]] = set()
    for folder in _folders(path):
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if found.st_nlink > 1 and entry.is_file(follow_symlinks=False):
                        if (found.st_dev, found.st_ino) in seen:
                            continue
                        seen.add((found.st_dev, found.st_ino))
                    total += found.st_blocks * 512
    return total


def _folders(path: Path, *, writable: bool = False) -> Iterator[int]:
    """A descriptor of each folder of the tree, each as long as it is looked at."""
    folder = _open(path, writable=writable)
    # Of each folder on the way down: what it is, and the names that are still to be entered.
    way: list[tuple[tuple[int, int], list[str]]] = []
    try:
        while True:
            yield folder
            with os.scandir(folder) as entries:
                inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            way.append((_identity(folder), inner))
            while not way[-1][1]:
                way.pop()
                if not way:
                    return
                folder = _change(folder, os.open("..", _FOLDER, dir_fd=folder))
                if _identity(folder) != way[-1][0]:
                    raise OSError(errno.ESTALE, "a folder was moved while it was looked through", str(path))
            folder = _change(folder, _open(way[-1][1].pop(), folder, writable=writable))
    finally:
        os.close(folder)


def _change(old: int, new: int) -> int:
    os.close(old)
    return new


def _identity(folder: int) -> tuple[int, int]:
    found = os.fstat(folder)
    return found.st_dev, found.st_ino


def _open(name: str | Path, parent: int | None = None, *, writable: bool = False) -> int:
    """Open a folder; where we are to write into it, also one that its owner, which we are, has closed to himself."""
    if not writable:
        return os.open(name, _FOLDER, dir_fd=parent)
    with suppress(PermissionError):  # not ours: its group or all may have the right
        _allow(name, parent, 0o700)
    return os.open(name, _FOLDER, dir_fd=parent)


def _allow(name: str | Path, parent: int | None, mode: int) -> None:
    """Add these rights to a file or folder, not to what a link points to."""
    handle = os.open(name, _HANDLE, dir_fd=parent)
    try:
        found = os.fstat(handle).st_mode
        present = stat.S_IMODE(found)
        if not stat.S_ISLNK(found) and present & mode != mode:
            os.chmod(f"/proc/self/fd/{handle}", present | mode)  # noqa: PTH101 - a handle has no other way
    finally:
        os.close(handle)
