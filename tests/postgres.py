"""A real PostgreSQL for tests: Debian's server programs, a throw-away cluster, a unix socket and no port.

Called by the fixture `postgres_url` of conftest.py, once a session; calls `initdb` and `postgres`. PostgreSQL
refuses to run as root, so that under root both run as the user `postgres` (of Debian's package) or `nobody`.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql


class PostgresMissing(Exception):
    """PostgreSQL's server programs are not installed"""


def programs() -> Path:
    """The folder that holds `initdb` and `postgres`, the newest version where there are several."""

    def version(folder: Path) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", folder.parent.name))

    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=version, reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise PostgresMissing(PostgresMissing.__doc__)


def unprivileged() -> tuple[str, list[str]]:
    """The user the server runs as and the words before its command; the server dies with this process."""
    words = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name, words
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return name, [*words, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    raise PostgresMissing("neither a user `postgres` nor `nobody` exists to run PostgreSQL")


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server; `socket` is the folder of its unix socket."""

    socket: Path

    def url(self, database: str) -> str:
        """SQLAlchemy's URL of a database."""
        return f"postgresql+psycopg://oscar@/{database}?host={self.socket}"

    def _admin(self, statement: str, *names: str) -> None:
        with psycopg.connect(
            f"host={self.socket} user=oscar dbname=template1", autocommit=True
        ) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def create(self, database: str, *, template: str = "template0") -> str:
        """Make a database: an empty one, or a copy of another.

        Returns:
            its URL.
        """
        self._admin("CREATE DATABASE {} TEMPLATE {}", database, template)
        return self.url(database)

    def drop(self, database: str) -> None:
        """Remove a database, ending its connections."""
        self._admin("DROP DATABASE IF EXISTS {} WITH (FORCE)", database)


@contextmanager
def server() -> Iterator[Postgres]:
    """Run a server of one's own for as long as the block lasts.

    Raises:
        PostgresMissing: there are no server programs, or nobody to run them as.
    """
    binaries = programs()
    user, words = unprivileged()
    # Not pytest's tmp_path: a unix socket's path may have 107 bytes only, and another user must get there.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        if os.geteuid() == 0:
            shutil.chown(home, user)
        data = home / "data"
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        subprocess.run(
            [
                *words,
                str(binaries / "initdb"),
                "-D",
                str(data),
                "-U",
                "oscar",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "-N",
            ],
            check=True,
            capture_output=True,
            env=environment,
            cwd=home,
        )
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(home),
            "unix_socket_permissions": "0777",
            "fsync": "off",  # nothing here outlives the test
            "max_connections": "50",
        }
        arguments = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        process = subprocess.Popen(
            [*words, str(binaries / "postgres"), "-D", str(data), *arguments],
            stderr=subprocess.PIPE,
            env=environment,
            cwd=home,
        )
        home.chmod(0o755)
        try:
            yield _ready(process, home)
        finally:
            process.send_signal(signal.SIGINT)  # "fast": it ends its clients' connections itself
            process.wait()


def _ready(process: subprocess.Popen[bytes], home: Path) -> Postgres:
    """Wait until the server says that it takes connections; read on so that its pipe never fills."""
    if process.stderr is None:
        raise ValueError("the server's words must be piped here")
    words = iter(process.stderr)
    said = b""
    for line in words:
        said += line
        if b"database system is ready to accept connections" in line:
            threading.Thread(target=deque, args=(words, 0), daemon=True).start()
            return Postgres(home)
    raise RuntimeError(f"PostgreSQL did not start:\n{said.decode(errors='replace')}")
