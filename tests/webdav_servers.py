"""Real WebDAV servers on 127.0.0.1 for tests: wsgidav, Apache's mod_dav, rclone; all with one user.

Called by the fixtures of the WebDAV tests. wsgidav is a package of the test environment, the other two are programs
of Debian.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
from cheroot.wsgi import Server as Cheroot
from wsgidav.wsgidav_app import WsgiDAVApp

from tests.s3_server import free_port

USER = "ada"
PASSWORD = "a pass:word ü"
APACHE_MODULES = Path("/usr/lib/apache2/modules")
START_WITHIN = 30.0


class ServerMissing(Exception):
    """The program of a server is not on this machine."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; `folder` is what it serves."""

    url: str
    folder: Path
    cuts_semicolons: bool = False
    """Whether it renames only to what stands before a semicolon."""


@contextlib.contextmanager
def wsgidav(home: Path) -> Iterator[Server]:
    """wsgidav behind cheroot, in a thread of this process."""
    folder = home / "files"
    folder.mkdir()
    port = free_port()
    app = WsgiDAVApp(
        {
            "provider_mapping": {"/": str(folder)},
            "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
            "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
            "verbose": 0,
            "logging": {"enable": False},
        }
    )
    server = Cheroot(("127.0.0.1", port), app, numthreads=4)
    server.prepare()
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{port}", folder, cuts_semicolons=True)
    finally:
        server.stop()
        thread.join()


@contextlib.contextmanager
def apache(_: Path) -> Iterator[Server]:
    """Apache with mod_dav on a folder of its address."""
    program = shutil.which("apache2") or shutil.which("apache2", path="/usr/sbin")
    if program is None or not APACHE_MODULES.is_dir():
        raise ServerMissing("apache2 is not installed")
    # Apache as root changes to another user, for whom pytest's folders are closed.
    with tempfile.TemporaryDirectory(prefix="oscar-apache-") as made:
        home = Path(made)
        home.chmod(0o755)
        yield from _apache(program, home)


def _apache(program: str, home: Path) -> Iterator[Server]:
    folder, locks = home / "files", home / "locks"
    for made in (folder, locks):
        made.mkdir()
        made.chmod(0o777)
    digest = base64.b64encode(hashlib.sha1(PASSWORD.encode(), usedforsecurity=False).digest()).decode()
    (home / "users").write_text(f"{USER}:{{SHA}}{digest}\n")
    port = free_port()
    (home / "apache.conf").write_text(_apache_conf(home, port))
    with _process([program, "-f", str(home / "apache.conf"), "-DFOREGROUND"], port, home):
        yield Server(f"http://127.0.0.1:{port}/dav", folder)


def _apache_conf(home: Path, port: int) -> str:
    modules = [
        "mpm_event",
        "authn_core",
        "authn_file",
        "authz_core",
        "authz_user",
        "auth_basic",
        "dav",
        "dav_fs",
    ]
    as_root = "User nobody\nGroup nogroup\n" if os.geteuid() == 0 else ""
    loaded = "".join(
        f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so\n" for name in (*modules, "alias")
    )
    return f"""{loaded}{as_root}ServerName 127.0.0.1
Listen 127.0.0.1:{port}
PidFile {home}/apache.pid
ErrorLog {home}/apache.log
DavLockDB {home}/locks/lock
DocumentRoot {home}
Alias /dav {home}/files
<Directory {home}/files>
    Dav On
    AllowOverride None
    AuthType Basic
    AuthName files
    AuthUserFile {home}/users
    Require valid-user
</Directory>
"""


@contextlib.contextmanager
def rclone(home: Path) -> Iterator[Server]:
    """`rclone serve webdav`."""
    program = shutil.which("rclone")
    if program is None:
        raise ServerMissing("rclone is not installed")
    folder = home / "files"
    folder.mkdir()
    port = free_port()
    command = [
        program,
        "serve",
        "webdav",
        str(folder),
        "--addr",
        f"127.0.0.1:{port}",
        "--dir-cache-time",
        "0s",
    ]
    environment = {"RCLONE_USER": USER, "RCLONE_PASS": PASSWORD, "HOME": str(home)}
    with _process(command, port, home, environment):
        yield Server(f"http://127.0.0.1:{port}", folder)


SERVERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Server]]] = {
    "wsgidav": wsgidav,
    "apache": apache,
    "rclone": rclone,
}


@contextlib.contextmanager
def _process(
    command: list[str], port: int, home: Path, environment: dict[str, str] | None = None
) -> Iterator[None]:
    log = home / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env={"PATH": os.environ["PATH"], **(environment or {})}, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + START_WITHIN
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.02)  # nobody tells when it listens
        yield
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        httpx2.get(f"http://127.0.0.1:{port}/", timeout=5)
    except httpx2.TransportError:
        return False
    return True
