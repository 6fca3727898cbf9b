"""The engine without containers: processes of this machine, walled in by bubblewrap.

Each runs under a keeper (`shim.py`) that outlives this server and records its output and exit. Without
bubblewrap the engine refuses to work unless it was told `unsafe`; then a process is an ordinary one of this
server's user. Implements `Engine`; made by `detect`; calls bwrap, setpriv and the kernel's control groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from oscar.compute.local import bubblewrap, machine
from oscar.compute.local.bubblewrap import Walls
from oscar.compute.local.cgroups import Cgroups
from oscar.compute.local.cgroups import find as find_cgroups
from oscar.compute.local.engine import Exit, Facts, Mount, Sandbox
from oscar.compute.local.keepers import Keepers
from oscar.compute.local.pids import cpu_seconds, end_of
from oscar.compute.local.worker import whole
from oscar.errors import EngineError, EngineMissing, InvalidField
from oscar.supervisor import variables
from oscar.supervisor.trees import make_readable, remove_tree

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")
_PROBE = ': > /oscar/probe/written && test ! -e "$0" && for device; do test -w "$device" || exit; done'
_GROUP_TRIES = 10
"""How often the folder of control groups may vanish before that is no accident."""
_FIX = "Install bubblewrap, podman or docker, or say --unsafe-process to run scripts without any sandbox."


class Processes:
    """Implements `Engine` with processes; state in `<folder>/<name>/`: lock, pid, exit, tmp."""

    name = "process"
    shares_fifo = True
    shares_network = True

    def __init__(
        self,
        folder: Path,
        *,
        installation: str,
        unsafe: bool = False,
        hidden: Sequence[Path] = (),
        visible: Sequence[Path] = (),
    ) -> None:
        """Make the engine; `probe` must come before anything else.

        Args:
            folder: where to keep what is known of the sandboxes.
            installation: tells the control groups of this installation from another's.
            unsafe: without bubblewrap, run plain processes.
            hidden: folders that no program may see, such as the server's data folder.
            visible: folders besides the system's that programs may read.
        """
        self.folder = folder
        self.maps_paths = True
        self.facts = Facts("")
        self._installation = installation
        self._unsafe = unsafe
        self._hidden = tuple(path.resolve() for path in hidden)
        self._visible = tuple(path.resolve() for path in visible)
        self._walls: Walls | None = None
        self._cgroups = Cgroups()
        self._keepers = Keepers()

    # What works here.

    async def probe(self) -> str:
        """Run a program in each kind of sandbox until one works; see `Engine`."""
        await asyncio.to_thread(self.folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        self._cgroups = await asyncio.to_thread(find_cgroups, self._installation)
        words: list[str] = []
        for walls in self._possible_walls():
            for cgroups in [self._cgroups, Cgroups()] if self._cgroups.bases else [self._cgroups]:
                trouble = await self._try(walls, cgroups)
                if trouble is None:
                    nodes = await asyncio.to_thread(machine.gpu_nodes)
                    found = _facts(walls, self._cgroups, await _bwrap_version(walls))
                    reached = bool(nodes) and await self._try(walls, self._cgroups, nodes) is None
                    self.facts = replace(found, gpu=nodes if reached else ())
                    return f"processes in {self.facts.version}" + _and(self.facts.detail)
                words.append(trouble)
        if not self._unsafe:
            reason = words[-1] if words else "bubblewrap (bwrap) is not installed"
            raise EngineMissing(f"there is no sandbox for processes: {reason}", fix=_FIX)
        self._walls, self.maps_paths = None, False
        self.facts = Facts(
            "unsafe",
            gpu=await asyncio.to_thread(machine.gpu_nodes),
            isolated=False,
            warnings=("scripts run without a sandbox, with all rights of this server's user",),
        )
        return "processes without a sandbox (--unsafe-process)"

    def _possible_walls(self) -> list[Walls]:
        bwrap, root = shutil.which("bwrap"), os.geteuid() == 0
        if bwrap is None:
            return []
        setpriv = shutil.which("setpriv", path=bubblewrap.PATH) if root else None
        ways = dict.fromkeys([setpriv, None])
        return [Walls(bwrap, way, self._hidden, self._visible, root) for way in ways]

    async def _try(self, walls: Walls, cgroups: Cgroups, devices: tuple[str, ...] = ()) -> str | None:
        """What is in the way of sandboxes like that; None when they work."""
        self._walls, self._cgroups, self.maps_paths = walls, cgroups, True
        self.facts = Facts("", gpu=devices)
        name = f"probe-{os.getpid()}"
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".probe") as place:
            folder = Path(place)
            folder.chmod(0o777)
            log = folder / "log"
            sandbox = Sandbox(
                name=name,
                image="",
                argv=("/bin/sh", "-c", _PROBE, str(self.folder), *devices),
                env={},
                mounts=(Mount(folder, "/oscar/probe"),),
                workdir="/",
                log=log,
                cpu=1000,
                memory=64 * 1024 * 1024,
                gpu=len(devices),
            )
            try:
                await self.start(sandbox)
                end = await self.exit(name)
            except EngineError as error:
                return error.message
            finally:
                await self.remove(name)
            if end and end.code == 0:
                return None
            return (end and end.refused) or _last_words(log)

    async def ensure_image(self, image: str, *, always: bool = False) -> None:
        """Nothing to do: programs are those of this machine."""

    # Its sandboxes.

    async def start(self, sandbox: Sandbox) -> None:
        """Start it under a keeper of its own; see `Engine`."""
        if not sandbox.argv:
            raise InvalidField(
                "there is no script, and processes have no image whose command could run", field="script"
            )
        variables.check(sandbox.env)
        folder = self._place(sandbox.name)
        lock = self._claim(folder)
        if lock is None:
            return
        try:
            task = await asyncio.to_thread(self._task, sandbox, folder)
            await whole(self._keepers.start(task, lock, folder / "pid"))
        except OSError as error:
            raise EngineError(f"{error.strerror}: {error.filename}") from error
        finally:
            os.close(lock)

    def _claim(self, folder: Path) -> int | None:
        """The lock of a sandbox that has never been started; None when it has. See `_is_locked`."""
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        if (folder / "pid").exists():
            os.close(lock)
            return None
        (folder / "kill").unlink(missing_ok=True)
        return lock

    def _task(self, sandbox: Sandbox, folder: Path) -> dict[str, Any]:
        """What the shim is to do; see `shim.keep`."""
        env = {"PATH": bubblewrap.PATH, "HOME": "/tmp", **sandbox.env}  # noqa: S108 - of the sandbox
        task: dict[str, Any] = {
            "folder": str(folder),
            "log": str(sandbox.log),
            "cgroups": self._groups(sandbox),
            # Without control groups a limit for each process is better than none for all.
            "data_limit": 0 if "memory" in self._cgroups.bases else sandbox.memory,
        }
        if self._walls is None:
            program = shutil.which(sandbox.argv[0], path=env["PATH"]) or sandbox.argv[0]
            env["HOME"] = sandbox.env.get("HOME", sandbox.workdir)
            argv = [program, *sandbox.argv[1:]]
            return {**task, "argv": argv, "args": None, "env": env, "cwd": sandbox.workdir, "subreaper": True}
        tmp = folder / "tmp"
        tmp.mkdir(exist_ok=True)
        tmp.chmod(0o1777)
        args, command = bubblewrap.arguments(
            self._walls,
            argv=sandbox.argv,
            env=env,
            mounts=sandbox.mounts,
            tmp=tmp,
            workdir=sandbox.workdir,
            devices=self.facts.gpu if sandbox.gpu else (),
        )
        mine = {"PATH": bubblewrap.PATH}
        return {
            **task,
            "argv": [self._walls.bwrap, "--", *command],
            "args": args,
            "env": mine,
            "cwd": "/",
            "subreaper": False,
        }

    def _groups(self, sandbox: Sandbox) -> list[str]:
        """Its control groups. Another server of this installation that ends takes their folders at any moment."""
        for _ in range(_GROUP_TRIES):
            try:
                return self._cgroups.make(sandbox.name, cpu=sandbox.cpu, memory=sandbox.memory)
            except FileNotFoundError:
                self._cgroups = find_cgroups(self._installation)
        return self._cgroups.make(sandbox.name, cpu=sandbox.cpu, memory=sandbox.memory)

    async def exit(self, name: str) -> Exit | None:
        """Wait for its end; see `Engine`."""
        folder = self._place(name)
        while await self.running(name):
            await _gone(folder)
        return await asyncio.to_thread(_read_exit, name, folder)

    async def running(self, name: str) -> bool | None:
        """Whether its keeper lives; see `Engine`."""
        folder = self._place(name)
        if not folder.exists():
            return None
        if _is_locked(folder):
            return True
        return False if (folder / "pid").exists() else None

    async def cpu_time(self, name: str) -> float | None:
        """Of the keeper's child and all below; see `Engine`."""
        with _pidfd(self._place(name)) as (keeper, child):
            return None if keeper is None or not child else await asyncio.to_thread(cpu_seconds, child)

    async def terminate(self, name: str) -> None:
        """Send the program SIGTERM; see `Engine`."""
        folder = self._place(name)
        with _pidfd(folder) as (keeper, child):
            if keeper is None or not child or _parent(child) != _keeper_pid(folder):
                return
            # Below bwrap there is the first process inside, and below that one, where it gave up root, the program.
            program = [child]
            for _ in range(0 if self._walls is None else 2 if self._walls.setpriv else 1):
                program = [each for pid in program for each in _children(pid)]
            for pid in program[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    async def kill(self, name: str) -> None:
        """Kill its first process, and with it all others; see `Engine`."""
        folder = self._place(name)
        if not await self.running(name):
            return
        # A keeper that has no child yet, or has not recorded it, will find this.
        with contextlib.suppress(FileNotFoundError):
            (folder / "kill").touch(mode=0o600)
        with _pidfd(folder) as (keeper, child):
            # The child is not reaped before the keeper has seen its end, so its id is nobody else's as long as
            # its parent is the keeper. Under bwrap the one to kill is the first process inside: with it the
            # kernel ends all others, and bwrap waits for that.
            if keeper is None or not child or _parent(child) != _keeper_pid(folder):
                return
            for pid in (_children(child) if self._walls else []) or [child]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def remove(self, name: str) -> None:
        """Kill it if need be and remove its folder and groups; see `Engine`."""
        folder = self._place(name)
        if await self.running(name):
            await self.kill(name)
            await self.exit(name)
        await asyncio.to_thread(self._remove_traces, name, folder)

    def _remove_traces(self, name: str, folder: Path) -> None:
        self._cgroups.remove(name)
        remove_tree(folder)

    async def names(self, prefix: str = "") -> list[str]:
        """All sandboxes whose name starts so; see `Engine`."""
        found = [path.name for path in self.folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
        return sorted(name for name in found if name.startswith(prefix))

    async def own(self, folder: Path) -> None:
        """Root reads all; otherwise what programs wrote is ours, but may have been made unreadable."""
        if os.geteuid() != 0:
            await asyncio.to_thread(make_readable, folder)

    async def close(self) -> None:
        """Let go of the process that forks keepers; see `Engine`."""
        await asyncio.to_thread(self._keepers.close)
        await asyncio.to_thread(self._cgroups.leave)

    def _place(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise EngineError(f"{name!r} is not a name for a sandbox")
        return self.folder / name


def _facts(walls: Walls, cgroups: Cgroups, version: str) -> Facts:
    memory, cpu = "memory" in cgroups.bases, "cpu" in cgroups.bases
    warnings: list[str] = []
    if not memory:
        warnings.append("memory limits hold for each process of a script, not for all of them together")
    if not cpu:
        warnings.append("CPU limits are not kept")
    if walls.root and not walls.setpriv:
        warnings.append("scripts run as root in a user namespace: setpriv is missing or did not work")
    who = "as nobody" if walls.root and walls.setpriv else "user namespace"
    detail = f"{who}, cgroup v{cgroups.version}" if cgroups.bases else who
    return Facts(version, detail, memory=memory, cpu=cpu, rootless=not walls.root, warnings=tuple(warnings))


async def _bwrap_version(walls: Walls) -> str:
    process = await asyncio.create_subprocess_exec(walls.bwrap, "--version", stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    return said.decode("utf-8", "replace").strip() or "bubblewrap"


def _and(detail: str) -> str:
    return f" ({detail})" if detail else ""


def _last_words(log: Path) -> str:
    rows = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    return rows[-1].split(" ", 3)[-1] if rows else "the sandbox does not hide the server's files"


def _read_exit(name: str, folder: Path) -> Exit | None:
    try:
        data = json.loads((folder / "exit").read_bytes())
    except FileNotFoundError:
        return Exit(name, None) if (folder / "pid").exists() else None
    refused = data["refused"] or None
    return Exit(
        name, None if refused else data["code"], data["oom"], data["finished"], refused, data.get("cpu")
    )


def _is_locked(folder: Path) -> bool:
    """Whether a keeper lives. Asked in one thread only, because asking takes the lock for a moment."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _wait_for_lock(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError), (folder / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)


async def _gone(folder: Path) -> None:
    """Wait until the keeper is gone."""
    with _pidfd(folder) as (keeper, _):
        if keeper is None:
            # Started by a server that is gone now, and so young that it has not written its id yet.
            await asyncio.to_thread(_wait_for_lock, folder)
            return
        await end_of(keeper)


@contextlib.contextmanager
def _pidfd(folder: Path) -> Iterator[tuple[int | None, int]]:
    """A descriptor of the keeper, None when it can't be had, and the id of its child or 0."""
    pid, child = 0, 0
    descriptor: int | None = None
    try:
        words = (folder / "pid").read_text().split()
        pid, child = int(words[0]), int(words[2])
        descriptor = os.pidfd_open(pid)
        if _start_time(pid) != words[1]:  # another process has its id by now
            os.close(descriptor)
            descriptor = None
    except (FileNotFoundError, ProcessLookupError):
        descriptor = None
    try:
        yield descriptor, child
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _keeper_pid(folder: Path) -> int:
    return int((folder / "pid").read_text().split()[0])


def _start_time(pid: int) -> str:
    return _stat(pid, 19)


def _parent(pid: int) -> int:
    return int(_stat(pid, 1) or 0)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _stat(pid: int, field: int) -> str:
    """A field of /proc/<pid>/stat counted from the third, empty when the process is gone; see proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[field]
    except (FileNotFoundError, ProcessLookupError):
        return ""
