"""The S3 server's process, forked by `oscar.app.serve`, or `python -m oscar.app.s3 LISTEN_FD PARENT_FD` started by it.

Its own process, so that large transfers never delay a call. The parent's socket brings the settings as a line of JSON
when the Store is ready for use (they hold secrets, which must not be in arguments); a byte back says that jobs may have
been enqueued; the end of that socket says that the parent is gone, and so this process ends too.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any, NoReturn

import uvicorn

from oscar import telemetry, tracing
from oscar.app import web
from oscar.auth.s3 import check_policy, may_create, may_s3
from oscar.core.countries import Countries
from oscar.core.events import jobs_for_object
from oscar.core.executions import Executions
from oscar.model.trace import place_in
from oscar.objects.embedded.blobs import Blobs
from oscar.objects.embedded.requests import Receive, Scope, Send
from oscar.objects.embedded.server import S3App
from oscar.settings import Settings
from oscar.state.objects import Objects
from oscar.state.secrets import Sealer, load_keys
from oscar.state.store import Store

MIB = 1024 * 1024


def open_store(settings: Settings) -> Store:
    """The Store of these settings, for this process."""
    return Store(settings.database, Sealer(load_keys(settings.secret_key, settings.data / "secret-key")))


def open_objects(settings: Settings, store: Store, *, log: str = "results.log") -> Objects:
    """The rows of objects, with the rule that makes jobs of them; a line for each is kept in that file."""
    countries = Countries(settings.country_database)
    return Objects(
        store,
        functools.partial(jobs_for_object, region=settings.minio_region, country_of=countries.of),
        quotas=settings.quota_defaults,
        on_jobs=Executions(as_json=settings.log_json, keep=settings.server_log / log).uploads,
    )


def open_blobs(settings: Settings) -> Blobs:
    """The bodies of objects."""
    return Blobs(settings.data / "blobs", reserve=settings.disk_reserve * MIB)


class Wake:
    """Tells the parent that jobs may wait; never blocks, one byte is enough for any number of news."""

    def __init__(self, parent: socket.socket) -> None:
        """Write to that socket."""
        self._parent = parent

    def __call__(self) -> None:
        """Tell."""
        # A full buffer means that the parent has news to read anyway; a broken pipe ends this process soon.
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self._parent.send(b"j")


class _Traced:
    """Around the server: uploads that start jobs are spans, in their client's trace if it names one."""

    def __init__(self, app: S3App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        here = tracing.begin(place_in(scope["headers"])) if scope["type"] == "http" else None
        if here is None:
            await self._app(scope, receive, send)
            return
        status, started, begun = 0, time.time(), time.perf_counter()

        async def wrapped(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with tracing.within(here):
                await self._app(scope, receive, wrapped)
        finally:
            if here.used:
                tracing.served(
                    here,
                    "upload",
                    method=scope["method"],
                    path=scope["path"],
                    started=started,
                    seconds=time.perf_counter() - begun,
                    status=status,
                )


def read_settings(parent: socket.socket) -> Settings | None:
    """The parent's settings, as it has them from environment and command line; None when it is gone before."""
    line = b""
    while not line.endswith(b"\n"):
        piece = parent.recv(65536)
        if not piece:
            return None
        line += piece
    return Settings(**json.loads(line))


async def _serve(settings: Settings, listen: socket.socket, parent: socket.socket) -> None:
    telemetry.configure(level=settings.log_level, json=settings.log_json, keep=settings.server_log / "s3.log")
    tracing.configure(settings, process="s3")
    store = open_store(settings)
    blobs = open_blobs(settings)
    parent.setblocking(False)
    app = S3App(
        open_objects(settings, store, log="uploads.log"),
        blobs,
        may_s3,
        check_policy=check_policy,
        may_create=may_create,
        region=settings.minio_region,
        on_commit=Wake(parent),
        domain=settings.s3_domain or None,
        cors_origins=settings.s3_cors_origins,
    )
    server = uvicorn.Server(
        web.config(
            _Traced(app) if tracing.enabled() else app,
            settings,
            ws="none",
            # Longer than clients keep idle connections: who closes first spoils the other's next request.
            timeout_keep_alive=120,
            date_header=True,
        )
    )
    loop = asyncio.get_running_loop()

    def parent_says() -> None:
        try:
            alive = bool(parent.recv(16))
        except ConnectionError:
            # It was killed before it had read our news: that end of the socket is a reset.
            alive = False
        if not alive:
            server.should_exit = True
            loop.remove_reader(parent)

    loop.add_reader(parent, parent_says)
    try:
        await server.serve(sockets=[listen])
    finally:
        blobs.close()
        store.close()
        await asyncio.to_thread(tracing.close)


def main() -> None:
    """Serve until the parent is gone or a signal says stop."""
    listen, parent = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    # What is imported stays: the collector need not look at it again and again.
    gc.freeze()
    _run(listen, parent)


def forked(listen: socket.socket, parent: socket.socket, not_its: Iterable[int]) -> NoReturn:
    """The same in a process that was just forked, which ends here and never goes back to what its parent does.

    Args:
        listen: its port.
        parent: its end of the way to its parent.
        not_its: what else its parent has open, which must not outlive that in it.
    """
    code = 1
    try:
        for descriptor in not_its:
            os.close(descriptor)
        os.setsid()
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text("oscar-s3")  # what `ps -e` and `top` show
        gc.enable()
        _run(listen, parent)
        code = 0
    except Exception:  # noqa: BLE001 - the end of the process, as Python would say it
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def _run(listen: socket.socket, parent: socket.socket) -> None:
    import uvloop

    settings = read_settings(parent)
    if settings is not None:
        uvloop.run(_serve(settings, listen, parent))


if __name__ == "__main__":
    main()
