"""Client of init.py: starts and stops programs inside a cluster's namespaces. Called by core.py, addons and tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.cluster.place import Place

PATIENCE = 120.0


class ProgramEnded(Exception):
    """a program of the cluster ended"""


class Inside:
    """The programs inside a cluster."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def _ask(self, **request: Any) -> dict[str, dict[str, int | None]]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(self.place.control))
            with client.makefile("rwb") as stream:
                stream.write(json.dumps(request).encode() + b"\n")
                stream.flush()
                answer = json.loads(stream.readline() or b'{"error": "no answer"}')
        if "error" in answer:
            raise ProgramEnded(answer["error"])
        programs: dict[str, dict[str, int | None]] = answer["programs"]
        return programs

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start a program that is not running; its words go to its log."""
        own = {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "HOME": str(self.place.folder),
            "LC_ALL": "C.UTF-8",
        }
        self._ask(
            do="start",
            name=name,
            command=list(command),
            environment=own | dict(environment or {}),
            log=str(self.place.log(name)),
        )

    def send(self, name: str, number: int) -> None:
        """Send a signal to a program, if it still runs."""
        self._ask(do="signal", name=name, signal=number)

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """End a program and wait until it is gone."""
        self.send(name, number)
        deadline = time.monotonic() + PATIENCE
        while self.running(name):
            if time.monotonic() > deadline:
                self.send(name, signal.SIGKILL)
            time.sleep(0.05)

    def status(self) -> dict[str, dict[str, int | None]]:
        """Pid (inside) and exit status of each program."""
        return self._ask(do="status")

    def running(self, name: str) -> bool:
        """Whether a program runs."""
        program = self.status().get(name)
        return program is not None and program["ended"] is None

    def check(self, name: str) -> None:
        """Raise, with its last words, when a program has ended.

        Raises:
            ProgramEnded: it has.
        """
        if not self.running(name):
            log = self.place.log(name)
            words = log.read_text(errors="replace")[-3000:] if log.exists() else ""
            raise ProgramEnded(f"{name} ended:\n{words}")
