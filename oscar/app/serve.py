"""`oscar serve`: the API with its dispatcher in this process, the S3 server in a child.

Called by the CLI (and by it for `oscar demo`). Both listening sockets are opened here, so that a port in use is said at
once; the child inherits its own and one end of a socket pair, over which it gets its settings and wakes the dispatcher.
SIGTERM drains both. The first child is forked before the API is imported: the two share the memory of what both need,
and it is loaded once. One that takes its place later is a new process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from oscar import telemetry, tracing
from oscar.app import web
from oscar.errors import Conflict
from oscar.settings import Settings

if TYPE_CHECKING:
    from oscar.app.start import Start

log = telemetry.get("serve")

_BIND_S = 5.0
_RESTART_S = 1.0
CLIENT_FILE = "client.json"


def serve(settings: Settings) -> None:
    """Serve until a signal says stop.

    Raises:
        Conflict: another server works on the data folder, or a port is taken.
        Misuse: the certificate can't be used.
        EngineMissing: there is no engine.
        OscarError: the server could not start, or not go on.
    """
    import uvloop

    telemetry.configure(
        level=settings.log_level, json=settings.log_json, keep=settings.server_log / "server.log"
    )
    web.check_tls(settings)
    if settings.store == "minio":
        from oscar.app.stores import check_minio

        check_minio(settings)
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(settings.data) as lock:
        api = _listen(settings.host, settings.port, "OSCAR_SERVICE_PORT")
        # With a MinIO there is no S3 server of ours.
        s3 = (
            _listen(settings.host, settings.s3_port, "OSCAR_S3_PORT")
            if settings.store == "embedded"
            else None
        )
        first = _fork_s3(s3, lock, api.fileno()) if s3 is not None else None
        # Its threads come after the fork.
        tracing.configure(settings, process="api")
        try:
            uvloop.run(_serve(_addressed(settings, api, s3), api, s3, first))
        finally:
            tracing.close()


def _addressed(settings: Settings, api: socket.socket, s3: socket.socket | None) -> Settings:
    """The settings with the addresses that clients reach, once the ports are known."""
    host = settings.host
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - asked for by the setting
        host = socket.gethostname()
    scheme = "https" if settings.tls_cert else "http"
    shown = f"{scheme}://[{host}]" if ":" in host else f"{scheme}://{host}"
    update = {"url": settings.url or f"{shown}:{api.getsockname()[1]}"}
    if s3 is not None and not settings.minio_endpoint:
        update["minio_endpoint"] = f"{shown}:{s3.getsockname()[1]}"
    return settings.model_copy(update=update)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    # One server a data folder: that is what lets it take over all leases at start.
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(
            f"Another server works on {folder}", field="OSCAR_DATA", fix="stop it, or set another data folder"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _listen(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # A server that was just killed may leave its child a moment longer on the port.
    deadline = time.monotonic() + _BIND_S
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(2048)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise Conflict(
                f"Can't listen on {host}:{port}: {error.strerror}", field=setting, fix="choose another port"
            ) from None
        return listener


async def _serve(settings: Settings, api: socket.socket, s3: socket.socket | None, first: _S3 | None) -> None:
    from oscar.app.api import build
    from oscar.app.start import Start

    start = Start()
    application, wake = build(settings, start=start)
    server = uvicorn.Server(web.config(application, settings))

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signal again when it has ended: that must not end this process before its child has.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)
    tasks = [asyncio.create_task(_stop_if_failed(start, stop))]
    if s3 is not None and first is not None:
        tasks.append(asyncio.create_task(_keep_s3(settings, s3, first, start, wake)))
    _write_client_file(settings)
    log.info("serving", api=settings.url, s3=settings.minio_endpoint, docs=f"{settings.url}/docs")
    # What is imported stays: the collector need not look at it again and again.
    gc.freeze()
    gc.enable()
    try:
        await server.serve(sockets=[api])
    finally:
        for task in reversed(tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    if start.error:
        raise start.error


async def _stop_if_failed(start: Start, stop: Callable[[], None]) -> None:
    await start.over.wait()
    if start.error:
        stop()


def _write_client_file(settings: Settings) -> None:
    """How the CLI on this machine finds the server; readable by its user only."""
    path = settings.data / CLIENT_FILE
    draft = path.with_name(f"{CLIENT_FILE}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(
            {
                "endpoint": settings.url,
                "user": settings.username,
                "password": settings.admin_password(),
                "s3": settings.minio_endpoint,
            },
            out,
        )
    draft.replace(path)


@dataclass(frozen=True, slots=True)
class _S3:
    """The S3 server's process."""

    ours: socket.socket
    """Our end of the way to it."""
    wait: Callable[[], Awaitable[int]]
    """Its exit status, when it has ended."""
    kill: Callable[[], None]


def _fork_s3(listener: socket.socket, *not_its: int) -> _S3:
    """The first S3 server, while this process has no other thread.

    Args:
        listener: its port.
        not_its: open files that it closes, as their locks and ports would outlive this process in it.
    """
    from oscar.app import s3

    ours, theirs = socket.socketpair()
    # What is imported by now stays, in both: the collector would only write to the pages that they share.
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        s3.forked(listener, theirs, (ours.fileno(), *not_its))
    theirs.close()
    ours.setblocking(False)
    descriptor = os.pidfd_open(pid)

    async def wait() -> int:
        from oscar.compute.local.pids import end_of

        await end_of(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])  # noqa: ASYNC222 - it has ended
        os.close(descriptor)
        return status

    return _S3(ours, wait, lambda: signal.pidfd_send_signal(descriptor, signal.SIGKILL))


async def _start_s3(listener: socket.socket) -> _S3:
    """Another one in its place."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "oscar.app.s3",
            str(listener.fileno()),
            str(theirs.fileno()),
            pass_fds=(listener.fileno(), theirs.fileno()),
            start_new_session=True,
        )
    ours.setblocking(False)
    return _S3(ours, process.wait, process.kill)


async def _keep_s3(
    settings: Settings, listener: socket.socket, process: _S3, start: Start, wake: asyncio.Event
) -> None:
    """Keep the S3 server's process alive; ends it when cancelled."""
    while True:
        with process.ours:
            listening = asyncio.create_task(_talk(process.ours, settings, start, wake))
            try:
                status = await process.wait()
            except asyncio.CancelledError:
                # The end of its socket tells it to drain; it ends by itself.
                listening.cancel()
                process.ours.close()
                await _drained(process, settings.drain)
                raise
            listening.cancel()
        log.error("the S3 server ended; it is started again", status=status)
        await asyncio.sleep(_RESTART_S)
        process = await _start_s3(listener)


async def _drained(process: _S3, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds + 2):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _talk(ours: socket.socket, settings: Settings, start: Start, wake: asyncio.Event) -> None:
    """Tell the S3 server its settings as soon as it may open the Store, then hear its news."""
    loop = asyncio.get_running_loop()
    await start.stored.wait()
    # A child that was killed resets the socket; `_keep_s3` sees its end and starts another.
    with contextlib.suppress(ConnectionError):
        await loop.sock_sendall(ours, settings.model_dump_json().encode() + b"\n")
        while await loop.sock_recv(ours, 4096):
            wake.set()
