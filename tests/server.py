"""The real program as a process, for acceptance tests: `oscar serve` on free ports with a data folder of its own.

Called by the fixture `server` of conftest.py and by tests that kill and restart. A server that is started again on
its folder keeps its password and keys, and gets new ports.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests import stores

START_WITHIN = 60.0
STOP_WITHIN = 40.0


def sandbox_works() -> bool:
    """Whether bubblewrap works here, found out by running it."""
    if not shutil.which("bwrap"):
        return False
    command = ["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@dataclass(slots=True)
class Server:
    """A server that runs, or ran, on a data folder; addresses and account are those of its client file."""

    data: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    """Environment variables beside those of every test server."""
    endpoint: str = ""
    s3: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it said, over all its starts."""
        return self.data.with_name(f"{self.data.name}.log")

    def environment(self) -> dict[str, str]:
        """Its environment: nothing of the settings around it."""
        others = ("OSCAR_", "MINIO_", "PYTHONDONTWRITEBYTECODE")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
        return kept | {
            "OSCAR_DATA": str(self.data),
            "OSCAR_SERVICE_PORT": "0",
            "OSCAR_S3_PORT": "0",
            "OSCAR_ENGINE": "process",
            "OSCAR_UNSAFE_PROCESS": str(not sandbox_works()).lower(),
            **self.settings,
        }

    @property
    def facts(self) -> Path:
        """The file in which it says where it listens, and whose account it has."""
        return self.data / "client.json"

    def prepare(self) -> None:
        """Give a new data folder a database with the present schema: its migrations are shown by other tests."""
        if not self.data.exists() and "OSCAR_DATABASE_URL" not in self.settings:
            stores.sqlite(self.data / "oscar.db")

    def launch(self, *words: str) -> subprocess.Popen[bytes]:
        """Start it, with those options of `oscar serve`, and don't wait for it."""
        self.facts.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "oscar", "serve", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
            )
        return self.process

    def start(self, *words: str, until: str = "/system/info") -> None:
        """Start it, and wait until it answers.

        Args:
            words: options of `oscar serve`.
            until: the path that must answer: this one does when the engine works, `/health` before that.
        """
        process = self.launch(*words)
        deadline = time.monotonic() + START_WITHIN
        while not (self.facts.exists() and self._answers(until)):
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the server did not start:\n{self.log.read_text(errors='replace')}")
            time.sleep(0.02)  # nobody tells when a process of ours listens

    def _answers(self, path: str) -> bool:
        said = json.loads(self.facts.read_text())
        account = (said["user"], said["password"])
        try:
            # Whose certificate it is, tests of TLS ask themselves.
            answer = httpx2.get(f"{said['endpoint']}{path}", auth=account, timeout=START_WITHIN, verify=False)
        except httpx2.TransportError:
            return False
        if answer.status_code != httpx2.codes.OK:
            return False
        self.endpoint, self.s3 = said["endpoint"], said["s3"]
        self.user, self.password = account
        return True

    def kill(self) -> None:
        """End it with -9, as a crash would; its jobs go on, its S3 process ends by itself."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        return self._end(signal.SIGTERM)

    def end(self) -> None:
        """Stop it if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def _end(self, sign: signal.Signals) -> int:
        if self.process is None:
            raise ValueError("the server was never started")
        self.process.send_signal(sign)
        try:
            return self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextmanager
def running(data: Path, **settings: str) -> Iterator[Server]:
    """A server for as long as the block lasts.

    Args:
        data: its data folder; its log is beside it.
        settings: environment variables for it.
    """
    server = Server(data, settings)
    server.prepare()
    server.start()
    try:
        yield server
    finally:
        server.end()
