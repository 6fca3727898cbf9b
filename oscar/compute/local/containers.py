"""The engine that runs containers by podman or docker, through their command line tools.

Containers are detached, named after their sandbox and labelled with the installation, and stay until `remove`, so
that their exit is found after a restart of this server. Implements `Engine`; made by `detect`; calls `cli`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from oscar.compute.local import conmon, environment
from oscar.compute.local.cli import Cli, Said
from oscar.compute.local.container_probe import IMAGE, examine
from oscar.compute.local.docker_exits import LABEL, DockerExits, Ended
from oscar.compute.local.docker_logs import DockerLogs
from oscar.compute.local.engine import Exit, Facts, Sandbox
from oscar.compute.local.kernel_log import oom_killed
from oscar.compute.local.pids import cpu_seconds, end_of, group_seconds, group_usage, open_in_group
from oscar.errors import EngineError, EngineMissing, ImageError, InvalidField
from oscar.supervisor import variables
from oscar.supervisor.trees import make_readable, owners

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")
# https://pkg.go.dev/github.com/distribution/reference: a host with an optional port, path, tag, digest. Anything
# else could be an option, or name a file of this machine (`dir:/etc`, `docker-archive:...`).
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:(?P<host>{_LABEL}(?:\.{_LABEL})+(?::\d+)?|{_LABEL}:\d+|localhost)/)?"
    rf"{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@[A-Za-z0-9]+:[0-9a-fA-F]{{32,}})?"
)
_NO_IMAGE = re.compile(r"no such image|image not known|unable to find image", re.IGNORECASE)
_PULL_LIMIT = 3600.0
_LOOK_PAUSE = 2.0
_REMOVAL_PAUSES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Seconds before a container that another call is removing is looked for again."""
_SETTLE_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5)
_LOG_LABEL = "oscar.log"
_UNSTARTED = frozenset({"created", "configured", "initialized"})
_OVER = frozenset({"exited", "stopped", "dead"})


@dataclass(frozen=True, slots=True)
class _Look:
    """What `inspect` says of a container."""

    status: str
    code: int
    oom: bool
    finished: int
    pid: int
    ours: bool
    log: str
    id: str


class Containers:
    """Implements `Engine`; `<folder>/<name>` is a mark that a container was begun, written by the tool itself."""

    maps_paths = True
    shares_fifo = True
    shares_network = False

    def __init__(self, program: str, folder: Path, *, installation: str, facts: Facts | None = None) -> None:
        """Make the engine.

        Args:
            program: `podman` or `docker`.
            folder: where marks are kept; the engine must be able to mount folders below it.
            installation: tells our containers from others.
            facts: what an earlier `probe` found.
        """
        self.name = program
        self.folder = folder
        self.facts = facts or Facts("")
        self.cli = Cli(program, folder / ".tool")
        self._installation = installation
        self._exits = DockerExits(self.cli, installation)
        self._logs = DockerLogs(self.cli)
        self._ended: dict[str, Exit] = {}
        self._fresh: dict[str, str] = {}
        """Ids of containers that were started just now, so that their state needs no look."""
        self._keepers: Path | None = None
        """Where podman has the keepers of containers leave their exit codes, once one was seen."""
        self._used: dict[str, float] = {}
        """Seconds of CPU of containers that have ended, read before their control groups went."""
        self._images: dict[str, str] = {}
        self._pulls: dict[tuple[str, bool], asyncio.Task[str]] = {}

    async def probe(self) -> str:
        """Run a container that does nothing; see `Engine`."""
        await asyncio.to_thread(self._make_folders)
        self.facts = await examine(self.cli, self.folder)
        return f"{self.facts.version} ({self.facts.detail})"

    def _make_folders(self) -> None:
        for folder in (self.folder, self.cli.folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def resume(self, facts: Facts) -> None:
        """Take over what an earlier `probe` found; only whether the engine answers is tried.

        Raises:
            EngineMissing: it does not.
        """
        await asyncio.to_thread(self._make_folders)
        said = await self.cli.run(
            "version",
            "--format",
            "{{.Client.Version}}{{.Server.Version}}" if self.name == "docker" else "{{.Client.Version}}",
        )
        if said.code != 0:
            raise EngineMissing(f"{self.name} does not answer: {said.words}")
        self.facts = facts

    # Images.

    async def ensure_image(self, image: str, *, always: bool = False) -> None:
        """Have the image here; pulls of the same image share one; see `Engine`."""
        name = image.removeprefix("docker://")
        found = _IMAGE.fullmatch(name)
        if not found:
            raise ImageError(f"{image!r} is not the name of an image", field="image")
        if image in self._images and not always:
            return
        key = (image, always)
        task = self._pulls.get(key)
        if task is None:
            hub = f"docker.io/{name if '/' in name else 'library/' + name}"
            far = name if self.name == "docker" or found["host"] else hub
            task = asyncio.create_task(self._have(name, far, always=always), name=f"image {name}")
            self._pulls[key] = task
            task.add_done_callback(lambda _: self._pulls.pop(key, None))
        self._images[image] = await asyncio.shield(task)

    async def _have(self, name: str, far: str, *, always: bool) -> str:
        """The name under which the engine has the image, pulled under its full name when need be."""
        for known in dict.fromkeys([name, far]):
            if not always and (await self.cli.run("image", "inspect", "--format", "ok", known)).code == 0:
                return known
        said = await self.cli.pull(far, limit=_PULL_LIMIT)
        if said.code != 0:
            raise ImageError(f"{self.name} can't pull {far}: {said.words}", field="image")
        return far

    # Containers.

    async def start(self, sandbox: Sandbox) -> None:
        """Start it detached; see `Engine`."""
        _check_name(sandbox.name)
        variables.check(sandbox.env)
        await self.ensure_image(sandbox.image, always=sandbox.always_pull)
        if self._mark(sandbox.name).exists():
            return
        self._expect(sandbox.name)
        try:
            said = await self._run(sandbox)
            if said.code != 0 and _NO_IMAGE.search(said.err):
                # Removed behind our back since it was last seen.
                self._images.pop(sandbox.image, None)
                await self.ensure_image(sandbox.image)
                said = await self._run(sandbox)
            if said.code != 0:
                await self._failed(sandbox, said)
        except EngineError:
            self._exits.drop(sandbox.name)
            raise
        self._fresh[sandbox.name] = said.out.strip()
        self._exits.started(sandbox.name)
        if self.name == "docker":
            self._logs.collect(sandbox.name, sandbox.log)

    async def _run(self, sandbox: Sandbox) -> Said:
        plain, steering = environment.divide(sandbox.env)
        args = self._arguments(sandbox)
        for name in plain:
            args += ["-e", name]
        args += [self._images[sandbox.image], *sandbox.argv[1:]]
        return await self.cli.run("run", *args, env=plain, env_file=environment.env_file(steering))

    def _arguments(self, sandbox: Sandbox) -> list[str]:
        mark = str(self._mark(sandbox.name))
        args = ["--detach", "--name", sandbox.name, "--pull=never", "--no-healthcheck", *self.facts.options]
        if self.name == "podman":
            args += ["--log-driver=k8s-file", "--log-opt", f"path={sandbox.log}", "--pidfile", mark]
        else:
            args += ["--log-driver=json-file", "--cidfile", mark]
        labels = {**sandbox.labels, LABEL: self._installation, _LOG_LABEL: str(sandbox.log)}
        for name, value in labels.items():
            args += ["--label", f"{name}={value}"]
        for mount in sandbox.mounts:
            options = ":ro" if mount.read_only else ""
            args += ["--volume", f"{mount.source}:{mount.target}{options}"]
        if sandbox.memory and self.facts.memory:
            args += ["--memory", str(sandbox.memory)]
            if self.facts.swap:
                args += ["--memory-swap", str(sandbox.memory)]
        if sandbox.cpu and self.facts.cpu:
            args += ["--cpus", f"{sandbox.cpu / 1000:.3f}"]
        if sandbox.gpu:
            args += self.facts.gpu
        for inside, outside in sandbox.ports.items():
            args += ["--publish", f"127.0.0.1:{outside}:{inside}"]
        if sandbox.workdir:
            args += ["--workdir", sandbox.workdir]
        if sandbox.argv:
            # What the image runs by itself must not stand before it.
            args += ["--entrypoint", sandbox.argv[0]]
        return args

    async def _failed(self, sandbox: Sandbox, said: Said) -> None:
        """A start that failed: silent when the container is there all the same, else it certainly did not start."""
        look = await self._insist_look(sandbox.name)
        if look is not None and not look.ours:
            raise EngineError(f"there is a container {sandbox.name} that is not ours")
        if look is None or look.status in _UNSTARTED:
            if look is not None and not await self._remove_unstarted(sandbox.name):
                return
            self._mark(sandbox.name).unlink(missing_ok=True)  # podman's helper may have come as far
            raise EngineError(f"{self.name} can't start the container: {said.words}")

    async def exit(self, name: str) -> Exit | None:
        """Wait for its end; see `Engine`."""
        if name not in self._ended:
            ended = await self._await_end(name)
            self._exits.drop(name, ended)
            if ended is None:
                return None
            self._ended[name] = await self._judge(name, ended)
        return self._ended[name]

    def _expect(self, name: str) -> None:
        """Before a look or a start, so that an end right after it is not missed."""
        if self.name == "docker":
            self._exits.expect(name)

    async def _await_end(self, name: str) -> Ended | None:
        self._expect(name)
        pauses = iter(_SETTLE_PAUSES)
        while True:
            number, pid = self._fresh.pop(name, ""), 0
            if not number:
                look = await self._look(name)
                if look is None:
                    return Ended(None, 0) if self._mark(name).exists() else None
                if look.status in _UNSTARTED:
                    if await self._remove_unstarted(name):
                        return None
                    continue  # an earlier server's call has started it just now
                if self.name == "docker":
                    self._logs.collect(name, Path(look.log))
                if look.status in _OVER:
                    return Ended(look.code, look.finished)
                number, pid = look.id, look.pid
            if self.name == "docker":
                self._exits.started(name)
                measuring = asyncio.create_task(self._measure(name, pid, number), name=f"CPU of {name}")
                try:
                    return await asyncio.shield(self._exits.expect(name))
                finally:
                    measuring.cancel()
            pid = pid or await self._pid_of(name)
            self._keepers = conmon.exits_of(pid, number) or self._keepers
            seen = await self._process_ended(name, pid, number)
            if self._keepers and (ended := await conmon.end_in(self._keepers, number)):
                return ended
            if not seen:
                # Gone already, and podman is about to notice.
                await asyncio.sleep(next(pauses, _LOOK_PAUSE))

    async def _process_ended(self, name: str, pid: int, number: str) -> bool:
        """Wait for the end of a podman container's first process; False when it is not there.

        podman's own events come a quarter of a second late where they are kept in a file, and a stream of them
        needs a process that waits beside the server: docs/decisions/0007-podman-exits-by-pidfd.md.
        """
        pidfd = open_in_group(pid, number)
        if pidfd is None:
            return False
        group = group_usage(pid, number)
        try:
            await end_of(pidfd)
        finally:
            os.close(pidfd)
        # At once: the group goes as soon as podman's helper has cleaned up, which takes it some hundredths of a second.
        used = group_seconds(group) if group else None
        if used is not None:
            self._used[name] = used
        return True

    async def _measure(self, name: str, pid: int, number: str) -> None:
        """Read what a container of docker has used when its first process ends, before the event of it comes."""
        if not pid:
            with contextlib.suppress(EngineError):
                look = await self._look(name)
                pid = look.pid if look else 0
        if pid:
            await self._process_ended(name, pid, number)

    async def _pid_of(self, name: str) -> int:
        """The first process of a container that was just started; 0 when unknown."""
        try:
            return int(await asyncio.to_thread(self._mark(name).read_text))
        except (OSError, ValueError):
            return 0

    async def _judge(self, name: str, ended: Ended) -> Exit:
        if self.name == "docker":
            await self._logs.finish(name)
        used = self._used.pop(name, None)
        cpu = None if used is None else int(used * 1e6)
        if ended.code == 0 or ended.code is None:
            return Exit(name, ended.code, finished=ended.finished or None, cpu=cpu)
        look = await self._look(name)
        oom = look is not None and (look.oom or await asyncio.to_thread(oom_killed, look.id))
        return Exit(name, ended.code, oom, ended.finished, cpu=cpu)

    async def running(self, name: str) -> bool | None:
        """Whether it runs; see `Engine`."""
        look = await self._look(name)
        return None if look is None else look.status in {"running", "paused", "stopping"}

    async def cpu_time(self, name: str) -> float | None:
        """Of its control group, else of its first process and all below; see `Engine`."""
        pid = await self._pid_of(name)
        if not pid:
            look = await self._look(name)
            pid = look.pid if look else 0
        return await asyncio.to_thread(_seconds, pid) if pid else None

    async def terminate(self, name: str) -> None:
        """Send its first process SIGTERM; see `Engine`."""
        await self._signal(name, "TERM")

    async def kill(self, name: str) -> None:
        """Kill it; see `Engine`."""
        await self._signal(name, "KILL")

    async def _signal(self, name: str, signal: str) -> None:
        said = await self.cli.run("kill", "--signal", signal, _check_name(name), urgent=True)
        if said.code != 0 and not _is_absent(said) and "running" not in said.err:
            raise EngineError(f"{self.name} can't kill {name}: {said.words}")

    async def remove(self, name: str) -> None:
        """Remove it with its anonymous volumes; see `Engine`."""
        at_once = ["--time", "0"] if self.name == "podman" else []
        self._exits.drop(name)
        for pause in (*_REMOVAL_PAUSES, None):
            said = await self.cli.run("rm", "--force", "--volumes", *at_once, _check_name(name))
            if pause is None or "already in progress" not in said.err:
                break
            await asyncio.sleep(pause)
        if said.code != 0 and not _is_absent(said):
            raise EngineError(f"{self.name} can't remove {name}: {said.words}")
        await self._logs.finish(name)
        self._mark(name).unlink(missing_ok=True)
        self._fresh.pop(name, None)
        self._ended.pop(name, None)

    async def names(self, prefix: str = "") -> list[str]:
        """All containers of this installation whose name starts so, and those that left only a mark."""
        out = await self.cli.call(
            "ps", "-a", "--filter", f"label={LABEL}={self._installation}", "--format", "{{.Names}}"
        )
        found = {*out.split(), *(path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name))}
        return sorted(name for name in found if name.startswith(prefix))

    async def own(self, folder: Path) -> None:
        """Take over what users of containers wrote, where this server is not root; see `Engine`."""
        if os.geteuid() == 0:
            return
        if self.name == "podman":
            # In the user namespace of rootless podman, root is the user who runs this server.
            await self.cli.call("unshare", "chown", "--recursive", "--no-dereference", "0:0", str(folder))
        elif not await asyncio.to_thread(_all_ours, folder):
            await self._own_by_container(folder)
        await asyncio.to_thread(make_readable, folder)

    async def _own_by_container(self, folder: Path) -> None:
        """With docker, only a container can give files of other users to us: this server's own chown in one."""
        chown = shutil.which("chown") or "/bin/chown"
        system = [path for path in ("/usr", "/bin", "/lib", "/lib64") if Path(path).exists()]
        mounts = [word for path in system for word in ("--volume", f"{path}:{path}:ro")]
        await self.cli.call(
            "run", "--rm", "--pull=never", "--network=none", "--user=0:0", *mounts,
            "--volume", f"{folder}:/oscar/own", "--entrypoint", chown, IMAGE,
            "--recursive", "--no-dereference", f"{os.geteuid()}:{os.getegid()}", "/oscar/own",
        )  # fmt: skip

    async def close(self) -> None:
        """Let go of the event stream and the log collectors; see `Engine`."""
        for task in list(self._pulls.values()):
            task.cancel()
        await self._exits.close()
        await self._logs.close()
        await self.cli.drain()

    # Looks.

    async def _look(self, name: str) -> _Look | None:
        """What the engine knows of the container, None when there certainly is none.

        Raises:
            EngineError: the engine does not answer.
        """
        fields = (
            "{{.State.Status}}|{{.State.ExitCode}}|{{.State.OOMKilled}}|{{.State.FinishedAt}}|{{.State.Pid}}|{{.Id}}|"
            f'{{{{index .Config.Labels "{LABEL}"}}}}|{{{{index .Config.Labels "{_LOG_LABEL}"}}}}'
        )
        said = await self.cli.run("container", "inspect", "--format", fields, _check_name(name))
        if said.code != 0:
            if _is_absent(said):
                return None
            raise EngineError(f"{self.name} can't inspect {name}: {said.words}")
        status, code, oom, finished, pid, number, installation, log = said.out.strip().split("|", 7)
        ours = installation == self._installation
        return _Look(status, int(code), oom == "true", _milliseconds(finished), int(pid), ours, log, number)

    async def _insist_look(self, name: str) -> _Look | None:
        """A look, however long it takes until the engine answers: not to know is not to have failed."""
        while True:
            try:
                return await self._look(name)
            except EngineError:
                await asyncio.sleep(_LOOK_PAUSE)

    async def _remove_unstarted(self, name: str) -> bool:
        """Remove a container that was made but not started; False when it runs after all.

        If a call of an earlier server is just about to start it, then either that or this fails.
        """
        said = await self.cli.run("rm", name)
        if said.code != 0 and not _is_absent(said):
            return False
        self._mark(name).unlink(missing_ok=True)
        return True

    def _mark(self, name: str) -> Path:
        return self.folder / name


def _seconds(pid: int) -> float | None:
    group = group_usage(pid)
    used = group_seconds(group) if group else None
    return cpu_seconds(pid) if used is None else used


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidField(f"{name!r} is not a name for a container")
    return name


def _is_absent(said: Said) -> bool:
    words = said.err.lower()
    return "no such" in words or "no container with name" in words


def _milliseconds(text: str) -> int:
    """Unix milliseconds of a time as Go prints it: `2026-11-23 20:56:24.24 +0000 UTC` or RFC 3339."""
    with contextlib.suppress(ValueError):
        day, clock = text.replace("T", " ").split(" ")[:2]
        at = datetime.fromisoformat(f"{day}T{clock[:8]}").replace(tzinfo=UTC)
        zone = re.search(r"([+-]\d\d):?(\d\d)", text[19:])
        shift = (int(zone[1]) * 60 + int(zone[1][0] + zone[2])) * 60 if zone else 0
        fraction = re.match(r"\.(\d{1,3})", clock[8:])
        return int((at.timestamp() - shift) * 1000) + (int(fraction[1].ljust(3, "0")) if fraction else 0)
    return 0


def _all_ours(folder: Path) -> bool:
    try:
        return owners(folder) == {os.geteuid()}
    except PermissionError:
        return False
