"""A `mount` by rclone and FUSE: the command line, the credentials beside it, and the life of its process.

Called by `mounts`, one process for each sandbox that needs one, outside of the sandbox. Credentials go in the
environment of rclone alone: neither its arguments nor a file hold them. The process outlives this server, as the
sandbox does; the next one finds it by its id and start time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from oscar.compute.local.pids import end_of
from oscar.errors import EngineError, StorageError
from oscar.supervisor.rclone import VARIABLES, command, dirty

_READY_WITHIN = 30.0
_END_WITHIN = 15.0
_FLUSH_STUCK = 120.0
"""Seconds without progress after which files that are not stored yet are given up."""
_PAUSE = 0.05


async def obscured(program: str, secret: str) -> str:
    """A password in the form that rclone takes; by its standard input, never as an argument."""
    process = await asyncio.create_subprocess_exec(
        program, "obscure", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_surroundings({})
    )
    said, _ = await process.communicate(secret.encode())
    if process.returncode != 0:
        raise EngineError("rclone can't take the password")
    return said.decode().strip()


class RcloneMount:
    """One mount below a folder of its own: `fs` is the mount, `cache` its files, `log` its words, `pid` its process."""

    def __init__(self, place: Path) -> None:
        """Nothing happens before `start` or `adopt`."""
        self.target = place / "fs"
        self._place = place
        self._cache = place / "cache"
        self._pidfd = -1
        self._child: subprocess.Popen[bytes] | None = None

    async def start(self, program: str, path: str, env: Mapping[str, str], flags: Sequence[str]) -> None:
        """Mount, and look into it.

        Raises:
            StorageError: it can't be mounted or read, with rclone's words.
        """
        await self.stop()
        for folder in (self.target, self._cache):
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        words = command(program, path, self.target, self._cache, flags)
        await asyncio.to_thread(self._spawn, words, env)
        try:
            async with asyncio.timeout(_READY_WITHIN):
                while not await asyncio.to_thread(os.path.ismount, self.target):
                    if self._child is not None and self._child.poll() is not None:
                        raise StorageError(f"the mount failed: {await self.words()}")
                    await asyncio.sleep(_PAUSE)  # the kernel tells nobody of a mount that is there
                await asyncio.to_thread(os.listdir, self.target)
        except TimeoutError:
            await self.stop()
            raise StorageError(f"the mount was not there in time: {await self.words()}") from None
        except OSError as error:
            await self.stop()
            raise StorageError(f"the mount can't be read: {await self.words() or error.strerror}") from error

    def adopt(self) -> bool:
        """Take over a mount of an earlier server; False when its process is gone."""
        try:
            data = json.loads((self._place / "pid").read_bytes())
            pidfd = os.pidfd_open(int(data["pid"]))
        except (OSError, ValueError, KeyError):
            return False
        if _start_time(int(data["pid"])) != data["start"]:
            os.close(pidfd)
            return False
        self._pidfd = pidfd
        return True

    async def ended(self) -> None:
        """Wait until its process has ended."""
        await end_of(self._pidfd)
        if self._child is not None:
            await asyncio.to_thread(self._child.wait)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        if self._child is not None:
            return self._child.poll() is None
        if self._pidfd < 0:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, 0)
            return True
        return False

    async def flush(self) -> None:
        """Wait until all files that were written and closed are stored.

        Raises:
            StorageError: the mount has died, or they can't be stored; names them.
        """
        loop = asyncio.get_running_loop()
        left: set[str] = set()
        since = loop.time()
        while waiting := await asyncio.to_thread(dirty, self._cache):
            if waiting != left:
                left, since = waiting, loop.time()
            names = ", ".join(sorted(waiting)[:5])
            if not self.alive:
                raise StorageError(f"the mount died before these files were stored: {names}")
            if loop.time() - since > _FLUSH_STUCK:
                raise StorageError(f"these files of the mount can't be stored: {names}: {await self.words()}")
            await asyncio.sleep(_PAUSE)  # rclone tells nobody what it has stored

    async def stop(self) -> None:
        """Unmount, and end the process. Silent if there is none."""
        if await asyncio.to_thread(_is_mounted, self.target):
            for words in (("umount", str(self.target)), ("umount", "--lazy", str(self.target))):
                if await _unmounted(words):
                    break
        if self._pidfd < 0 and not self.adopt():
            return
        try:
            async with asyncio.timeout(_END_WITHIN):
                await self.ended()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await self.ended()
        self.let_go()

    def let_go(self) -> None:
        """Watch it no more; it goes on."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    async def words(self) -> str:
        """The last that it said."""
        return await asyncio.to_thread(self._words)

    def _words(self) -> str:
        try:
            rows = (self._place / "log").read_text("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return ""
        return rows[-1].split(": ", 1)[-1][:500] if rows else ""

    def _spawn(self, words: Sequence[str], env: Mapping[str, str]) -> None:
        with (self._place / "log").open("wb") as log:
            # Not asyncio's: that would end the process with its event loop, and the sandbox goes on.
            self._child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_surroundings(env),
                cwd="/",
                start_new_session=True,
            )
        self._pidfd = os.pidfd_open(self._child.pid)
        record = {"pid": self._child.pid, "start": _start_time(self._child.pid)}
        (self._place / "pid").write_text(json.dumps(record))


async def probe(folder: Path) -> str:
    """Try a mount of a folder of this machine; what is in the way, empty when it works.

    Args:
        folder: for the trial alone.
    """
    program = shutil.which("rclone")
    if program is None:
        return "rclone is not installed"
    source = folder / "source"
    await asyncio.to_thread(source.mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread((source / "probe").write_bytes, b"probe")
    mount = RcloneMount(folder)
    try:
        await mount.start(program, str(source), {f"{VARIABLES}TYPE": "local"}, ())
        if await asyncio.to_thread((mount.target / "probe").read_bytes) != b"probe":
            return "a mount does not show what it should"
    except (StorageError, OSError) as error:
        return str(error)
    finally:
        await mount.stop()
    return ""


def _surroundings(env: Mapping[str, str]) -> dict[str, str]:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": "/nonexistent", **env}


def _start_time(pid: int) -> str:
    """When the process started, in ticks since the boot; see proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _is_mounted(path: Path) -> bool:
    """By the kernel's list: a look at a mount whose process died is an error."""
    wanted = str(path.parent.resolve() / path.name)
    for row in Path("/proc/self/mountinfo").read_text().splitlines():
        if row.split()[4].encode().decode("unicode_escape") == wanted:
            return True
    return False


async def _unmounted(words: Sequence[str]) -> bool:
    tool, *rest = words
    if os.geteuid() != 0:
        # What a user may do: by the program that mounted for him.
        tool = shutil.which("fusermount3") or shutil.which("fusermount") or "fusermount"
        rest = ["-uz" if "--lazy" in rest else "-u", rest[-1]]
    process = await asyncio.create_subprocess_exec(
        tool, *rest, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return await process.wait() == 0
