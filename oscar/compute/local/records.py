"""The folder of one run, `<data>/runs/<name>`: what is known of it, durable in the order in which it happens.

    run.json   accepted: what is asked, without secrets and payload     -> Phase.SUBMITTED
    started    the script may have begun; written before the engine     -> Phase.RUNNING
    kill       why we end it: a timeout, or somebody cancelled it
    exit.json  how the script ended                                     -> Phase.SETTLING
    done.json  how the run ended                                        -> Phase.DONE
    work/, config/  what the sandbox sees

A server killed at any moment leaves one of these states, and the next one goes on from there. Called by
`attempt` and `backend`. Nothing but file work.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oscar.compute.base import Phase, Run, RunState
from oscar.compute.local.engine import Exit
from oscar.model.trouble import Trouble
from oscar.supervisor.trees import remove_tree

GONE = ".gone-"
"""Folders of forgotten runs that are being removed begin so."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is kept of a run's order: enough to watch over it without its secrets."""

    name: str
    job_id: str
    attempt: int
    service: str
    hops: int
    timeout: float | None
    cpu: int
    memory: int
    gpu: int = 0

    @classmethod
    def of(cls, run: Run) -> Asked:
        """The part of an order that may be written down."""
        service = run.service
        return cls(
            name=run.name,
            job_id=run.job_id,
            attempt=run.attempt,
            service=service.name,
            hops=run.hops,
            timeout=run.timeout,
            cpu=service.cpu_millicores,
            memory=service.memory_bytes,
            gpu=1 if service.enable_gpu else 0,
        )


@dataclass(frozen=True, slots=True)
class Started:
    """When the script was about to begin, and in which boot of the machine."""

    at: int
    """Unix milliseconds."""
    boot: str


class RunFolder:
    """The records of one run. All methods block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.work = path / "work"
        self.config = path / "config"
        self.gone = path.with_name(f"{GONE}{path.name}")
        """Where the folder waits for its removal."""

    def create(self, asked: Asked) -> None:
        """Make the run known, durably."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(self.path / "run.json", asdict(asked), durable=True)
        _sync_folder(self.path.parent)

    def asked(self) -> Asked | None:
        """What was asked; None for a folder that a crash left before the run was known."""
        data = _read(self.path / "run.json")
        return Asked(**data) if data else None

    def furnish(self, files: dict[str, bytes]) -> None:
        """Make empty `work` and a `config` with these files; what an interrupted try left goes."""
        for folder in (self.work, self.config):
            remove_tree(folder)
            folder.mkdir()
        for name, content in files.items():
            (self.config / name).write_bytes(content)
            (self.config / name).chmod(0o755 if name.endswith(".sh") else 0o644)
        # The users of images are anybody, and the run's folder above is closed to other users of this machine.
        self.config.chmod(0o755)
        self.work.chmod(0o777)

    def mark_started(self, started: Started) -> None:
        """The script may begin from here on; once only.

        Raises:
            FileExistsError: somebody has been here.
        """
        _write(self.path / "started", asdict(started), durable=True, exclusive=True)

    def started(self) -> Started | None:
        """Whether the script may have begun."""
        data = _read(self.path / "started")
        return Started(**data) if data else None

    def unmark_started(self) -> None:
        """The engine is certain that the script has not begun."""
        (self.path / "started").unlink(missing_ok=True)

    def mark_kill(self, trouble: Trouble) -> None:
        """It is being ended for this reason; the first reason stays."""
        if self.killed() is None:
            _write(self.path / "kill", {"trouble": trouble.value})

    def killed(self) -> Trouble | None:
        """Why it was or is being ended."""
        data = _read(self.path / "kill")
        return Trouble(data["trouble"]) if data else None

    def mark_exit(self, end: Exit) -> None:
        """The script has ended."""
        _write(self.path / "exit.json", asdict(end))

    def exit(self) -> Exit | None:
        """How the script ended."""
        data = _read(self.path / "exit.json")
        return Exit(**data) if data else None

    def mark_done(self, state: RunState) -> None:
        """The run has ended, durably."""
        _write(self.path / "done.json", {**asdict(state), "phase": state.phase.value}, durable=True)

    def done(self) -> RunState | None:
        """How the run ended."""
        data = _read(self.path / "done.json")
        if not data:
            return None
        trouble = Trouble(data["trouble"]) if data["trouble"] else None
        return RunState(**{**data, "phase": Phase(data["phase"]), "trouble": trouble})

    def state(self) -> RunState:
        """What the records say."""
        done = self.done()
        if done:
            return done
        started, end = self.started(), self.exit()
        phase = Phase.SETTLING if end else Phase.RUNNING if started else Phase.SUBMITTED
        return RunState(self.name, phase, started=started.at if started else None)

    def leave(self) -> Path:
        """Take the folder out of the way at once; the path under which it waits for its removal."""
        remove_tree(self.gone)
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(self.gone)
        return self.gone


def boot_id() -> str:
    """Tells one boot of the machine from another; see proc_sys_kernel(5)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _write(path: Path, data: dict[str, Any], *, durable: bool = False, exclusive: bool = False) -> None:
    """Write a record at once, so that nobody reads half of it."""
    text = json.dumps(data).encode()
    draft = path.with_name(f"{path.name}.new")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, text)
        if durable:
            os.fsync(file)
    finally:
        os.close(file)
    if exclusive:
        os.link(draft, path)
        draft.unlink()
    else:
        draft.rename(path)
    if durable:
        _sync_folder(path.parent)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return data


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
