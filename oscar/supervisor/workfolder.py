"""The folder that a warm worker shares with its sandbox: `in`, `out`, `env`, FIFOs.

Made by engines that run beside the sandbox (`compute.local.workfolder`) and by the sidecar (`serve`). `in` and `out`
are made once and emptied after each request, because making and removing folders costs more than all else here
(docs/sync.md has the figures). What a script left there is not trusted: links are never followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

from oscar.errors import StorageError, StorageFull
from oscar.supervisor import variables as rules
from oscar.supervisor.trees import empty_tree, remove_tree

LARGE_ENV = 65536
FEW = 100
SHORT = 8192
"""Fewer and shorter variables than these can't be more than a program takes."""


def exports(variables: Mapping[str, str]) -> bytes:
    """Lines of POSIX shell that set and export the variables, whatever their values."""
    lines = [f"export {name}='{_quoted(value)}'\n" for name, value in variables.items()]
    return "".join(lines).encode("utf-8", "surrogateescape")


def _quoted(value: str) -> str:
    return value.replace("'", "'\\''") if "'" in value else value


async def _nobody(_folder: Path) -> None:
    return None


class CallFolder:
    """A worker's folder on this machine, and where it is seen inside.

    Attributes:
        work: the path here of what is seen at `work_inside`.
    """

    def __init__(
        self, work: Path, work_inside: str, own: Callable[[Path], Awaitable[None]] = _nobody
    ) -> None:
        """Make it; nothing is on disk before `open`.

        Args:
            work: the folder.
            work_inside: where the script sees it.
            own: makes files that the sandbox's user wrote readable and removable for us.
        """
        self.work = work
        self.work_inside = work_inside
        self.own = own
        self._made: dict[str, tuple[int, ...]] = {}
        # As text: on the way of every request, and paths cost more than the calls that they are made for.
        self._work = str(work)
        self._paths = {name: f"{self._work}/{name}" for name in ("in", "out")}
        self._names: set[str] = set()
        self._base: Mapping[str, str] = {}
        self._exported: set[str] = set()
        self._loose: list[str] = []
        self._env = -1
        self._env_size = 0

    def open(self, base: Mapping[str, str]) -> None:
        """Make what is in the folder, which exists; blocking.

        Args:
            base: variables that the worker has from its start.
        """
        self._base = base
        for name in ("in", "out"):
            self._make(name)
        self._env = os.open(self.work / "env", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        os.fchmod(self._env, 0o644)

    def close(self) -> None:
        """Let go of it; it stays on disk."""
        if self._env >= 0:
            os.close(self._env)
            self._env = -1

    def write_env(self, variables: Mapping[str, str]) -> None:
        """Write the variables of a request where `worker.sh` reads them, and undo those of the one before.

        Raises:
            InvalidField: a variable that no program can be given.
        """
        if not self._known(variables):
            rules.check(variables)
            self._names.update(variables)
        text = exports(variables)
        if stale := self._exported - variables.keys():
            text = self._undone(stale) + text
        self._exported = set(variables)
        # Overwritten in place and padded with empty lines: a new file, or a truncation, costs ten times more.
        os.pwrite(self._env, text.ljust(self._env_size, b"\n"), 0)
        self._env_size = max(self._env_size, len(text))

    def _undone(self, names: Iterable[str]) -> bytes:
        """Lines that give variables of the request before the service's values, or none."""
        base = self._base
        again = exports({name: base[name] for name in names if name in base})
        return b"".join(b"unset %s\n" % name.encode() for name in names if name not in base) + again

    def _known(self, variables: Mapping[str, str]) -> bool:
        """Whether a look shows that the variables are as good as those of earlier requests."""
        return (
            len(variables) < FEW
            and self._names.issuperset(variables)
            and not any(len(value) > SHORT or "\0" in value for value in variables.values())
        )

    def holds(self, name: str) -> bool:
        """Whether `in` or `out` is still the folder that we made, not something that the script put there."""
        try:
            found = os.lstat(self._paths[name])
        except OSError:
            return False
        # The number alone is not enough: it is given again to what is made next, be that a link.
        return _marks(found) == self._made[name]

    def has_output(self) -> bool:
        """Whether the script left anything in `out`."""
        if not self.holds("out"):
            return False
        with os.scandir(self._paths["out"]) as entries:
            return next(entries, None) is not None

    def only_small_output(self, most: int) -> bytes | None:
        """The content of the only thing in `out`, when that is a file of at most so many bytes; blocking."""
        with os.scandir(self._paths["out"]) as entries:
            first, second = next(entries, None), next(entries, None)
        if first is None or second is not None or not first.is_file(follow_symlinks=False):
            return None
        try:
            fd = os.open(first.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise StorageError(f"the output file {first.name} can't be read: {error.strerror}") from error
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size > most:
                return None
            return os.read(fd, most)
        finally:
            os.close(fd)

    def tidy(self) -> bool | None:
        """Remove what a request left, if that is quickly done; no process of the script may be left.

        Returns:
            True when it is done, False when the folder can't be used again, None when `tidy_all` is needed.
        """
        self._wipe_env()
        while self._loose:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._loose.pop())  # noqa: PTH108
        try:
            return all(self._tidy(name) for name in list(self._made))
        except (_Deep, PermissionError):
            return None

    async def tidy_all(self) -> bool:
        """Remove what a request left, however much it is and whoever's; False: not to be used again."""
        for name in self._made:
            path = self.work / name
            act = empty_tree if self.holds(name) else remove_tree
            if path.is_dir() and not path.is_symlink():
                try:
                    await asyncio.to_thread(act, path)
                except PermissionError:
                    await self.own(self.work)
                    await asyncio.to_thread(act, path)
        return bool(self.tidy())

    def put(self, path: str, content: bytes) -> None:
        """Write a file of a request, such as `in/picture.png`; blocking.

        Raises:
            StorageFull: the disk is full.
            StorageError: it can't be written.
        """
        try:
            self._put(path, content)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StorageFull("the disk of the server is full") from error
            raise StorageError(f"the input can't be written: {error.strerror}") from error

    def _put(self, path: str, content: bytes) -> None:
        file = f"{self._work}/{path}"
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            if not path.startswith(("in/", "out/")):
                self._loose.append(file)
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, 0o666)  # what comes in may be changed by the script, whoever that is
        finally:
            os.close(fd)

    def _tidy(self, name: str) -> bool:
        folder = self._paths[name]
        if not self.holds(name):
            # A script may remove the folder, or change its mode or owner; but where it put something else, nothing
            # of ours goes there.
            if not os.path.lexists(folder):
                self._make(name)
                return True
            if stat.S_ISDIR(os.lstat(folder).st_mode):
                raise _Deep
            return False
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    raise _Deep
                os.unlink(entry.path)  # noqa: PTH108 - a Path per file costs more than its removal
        return True

    def _make(self, name: str) -> None:
        folder = self.work / name
        folder.mkdir()
        folder.chmod(0o777)  # the user of the image may be anybody
        self._made[name] = _marks(folder.lstat())

    def _wipe_env(self) -> None:
        if self._env_size > LARGE_ENV:
            os.ftruncate(self._env, 0)
            self._env_size = 0
        elif self._env_size:
            os.pwrite(self._env, b"\n" * self._env_size, 0)


def _marks(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_mode, found.st_uid


class _Deep(Exception):
    """There are folders in the folder: emptying it is work for a thread."""
