"""The sidecar of a warm worker in a pod: takes requests over HTTP and hands them to the loop in the user's container.

Run as `python -m oscar.supervisor serve` beside that container, with which it shares one folder. The server
(`compute.kubernetes.sync`) sends it calls by `POST /call`, one at a time; `wire` says how they look. It fetches inputs,
has the script run by the FIFOs of `warm`, stores outputs and answers: `call` has these steps, as for workers of one
machine. The user's container gets none of the keys that come with a call.

A worker whose script outlived its request is `spent`: `/alive` says so to the kubelet, which then restarts the user's
container, in case the server is not there to replace the pod.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hmac
import json
import signal
import socket
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import uvloop

from oscar import telemetry
from oscar.errors import (
    BadRequest,
    EngineError,
    InvocationTimeout,
    NotFound,
    OscarError,
    StorageError,
    Unauthorized,
)
from oscar.model.service import Service
from oscar.objects.reach import reach_of
from oscar.objects.s3 import S3Store
from oscar.supervisor import wire
from oscar.supervisor.call import Call
from oscar.supervisor.plan import service_environment
from oscar.supervisor.providers import Clients, Providers
from oscar.supervisor.rclone import dirty
from oscar.supervisor.trees import empty_tree
from oscar.supervisor.warm import Conversation
from oscar.supervisor.workfolder import CallFolder

INSIDE = "/oscar/work"
"""Where the user's container sees the shared folder."""
_HEAD = 64 * 1024
_STORED_LOOK_S = 0.05
_STORED_STUCK_S = 120.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

log = telemetry.get("sidecar")


class State(Enum):
    """What the worker is doing."""

    STARTING = "not ready"
    IDLE = "idle"
    BUSY = "busy"
    SPENT = "spent"
    """Something of a request may still run: nothing more is taken."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def length(self) -> int:
        """Bytes of its body."""
        return int(self.headers.get("content-length", "0"))


@dataclass(frozen=True, slots=True)
class Said:
    """An answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self, *, close: bool) -> bytes:
        """As it goes over the wire."""
        headers = {
            **self.headers,
            "Content-Length": str(len(self.body)),
            "Connection": "close" if close else "keep-alive",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} -\r\n{lines}\r\n".encode() + self.body


class Sidecar:
    """One worker; `serve` until it is drained."""

    def __init__(
        self,
        folder: Path,
        service: Service,
        key: bytes,
        *,
        log_limit: int,
        cache: Path | None = None,
        hosts: Sequence[str] = (),
    ) -> None:
        """Make it inside the event loop.

        Args:
            folder: which the user's container sees as `INSIDE`.
            service: its definition, without keys of stores.
            key: 32 bytes that the server has too.
            log_limit: bytes of a script's output that are kept.
            cache: of the service's mount; what is written there is stored before a call is answered.
            hosts: which may have private addresses, as stores of users' services.
        """
        self._folder = folder
        self._cache = cache
        self._service = service
        self._key = key
        self._bearer = f"Bearer {wire.token(key)}"
        self._log_limit = log_limit
        self._host = socket.gethostname()
        self._clients = Clients(reach_of(hosts))
        self._state = State.STARTING
        self._draining = False
        self._lost = False
        """The user's container has ended and is not back yet."""
        self._drained = asyncio.Event()
        self._changed = asyncio.Condition()
        self._work = CallFolder(folder, INSIDE)
        self._talk = Conversation(folder, log_limit=log_limit, ended=self._loop_ended)
        self._tasks: set[asyncio.Task[None]] = set()

    # Its life.

    async def serve(self, listener: socket.socket) -> None:
        """Take requests on that socket until `drain`; the loop in the user's container has ended when this returns."""
        self._begin()
        server = await asyncio.start_server(self._connected, sock=listener, limit=_HEAD)
        try:
            await self._drained.wait()
        finally:
            server.close()
            self._talk.close()
            self._work.close()
            await self._clients.close()

    async def drain(self) -> None:
        """Take nothing more, let the request under way end, then have `serve` return."""
        self._draining = True
        async with self._changed:
            await self._changed.wait_for(lambda: self._state is not State.BUSY)
        self._drained.set()

    def _begin(self) -> None:
        self._lost = False
        empty_tree(self._folder)
        self._work.open(service_environment(self._service))
        ready = self._talk.open()
        self._spawn(self._listen(ready))

    async def _listen(self, ready: asyncio.Future[tuple[int, bool]]) -> None:
        await ready
        if self._state is State.STARTING:
            await self._become(State.IDLE)

    def _loop_ended(self) -> None:
        # The user's container has ended: it is restarted, and begins anew with us.
        self._lost = True
        self._talk.fail(EngineError("the worker died while the script ran"))
        self._spawn(self._again())

    async def _again(self) -> None:
        if self._draining:
            return
        log.warning("the loop in the user's container has ended")
        async with self._changed:
            # Whoever reads the folder for an answer goes first.
            await self._changed.wait_for(lambda: self._state is not State.BUSY)
        self._talk.close()
        self._work.close()
        await self._become(State.STARTING)
        self._work = CallFolder(self._folder, INSIDE)
        self._talk = Conversation(self._folder, log_limit=self._log_limit, ended=self._loop_ended)
        self._begin()

    async def _become(self, state: State) -> None:
        async with self._changed:
            self._state = state
            self._changed.notify_all()

    def _spawn(self, act: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(act)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Its requests.

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the caller has gone, or we are at our end
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection goes on."""
        try:
            head = _parse(await reader.readuntil(b"\r\n\r\n"))
        except (asyncio.LimitOverrunError, ValueError):
            writer.write(_error(BadRequest("the request has no head that can be read")).encoded(close=True))
            return False
        if head.path == "/call" and head.method == "POST":
            return await self._call(head, reader, writer)
        said = await self._look(head)
        writer.write(said.encoded(close=bool(head.length)))
        await writer.drain()
        return not head.length

    async def _look(self, head: Head) -> Said:
        path, _, query = head.path.partition("?")
        if head.method == "GET" and path == "/ready":
            if query == "wait":
                async with self._changed:
                    await self._changed.wait_for(lambda: self._state is not State.STARTING)
            good = self._state in {State.IDLE, State.BUSY} and not self._draining
            return Said(200 if good else 503, self._state.value.encode())
        if head.method == "GET" and path == "/alive":
            return Said(503 if self._state is State.SPENT else 200, self._state.value.encode())
        return _error(NotFound(f"there is no {head.method} {path} here"))

    async def _call(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take a call and answer it; whether the connection goes on."""
        if not hmac.compare_digest(head.headers.get("authorization", ""), self._bearer):
            writer.write(_error(Unauthorized("this is not the token of this worker")).encoded(close=True))
            return False
        if self._draining or self._state is not State.IDLE:
            refusal = "draining" if self._draining else self._state.value
            writer.write(Said(503, headers={wire.REFUSED: refusal, wire.POD: self._host}).encoded(close=True))
            return False
        # No pause between the look and this: of two requests one is refused.
        self._state = State.BUSY
        after = State.IDLE
        try:
            if head.headers.get("expect", "").lower() == "100-continue":
                writer.write(_CONTINUE)
            sealed = await reader.readexactly(int(head.headers.get(wire.ORDER_LENGTH, "0")))
            payload = await reader.readexactly(head.length - len(sealed))
            try:
                order = wire.unseal(sealed, self._key)
            except Unauthorized as error:
                said = _error(error)
            else:
                after = State.SPENT
                said, after = await self._unless_gone(self._run(order, payload), reader)
            writer.write(said.encoded(close=self._draining))
            await writer.drain()
        finally:
            # Before the next request of this connection is read, and before a draining worker goes.
            await asyncio.shield(self._spawn(self._rest(after)))
        return not self._draining

    async def _unless_gone(
        self, run: Coroutine[Any, Any, tuple[Said, State]], reader: asyncio.StreamReader
    ) -> tuple[Said, State]:
        """What comes of it, as long as the caller is there.

        Raises:
            ConnectionError: he has gone; the script may still run.
        """
        calling = asyncio.ensure_future(run)
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({calling, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not calling.done():
                raise ConnectionResetError("the caller has gone")
            return calling.result()
        finally:
            for each in (calling, leaving):
                each.cancel()
            await asyncio.wait({calling, leaving})
            for each in (calling, leaving):
                # Looked at, so that it is not reported as an error of nobody's.
                _ = each.cancelled() or each.exception()

    async def _run(self, order: wire.Order, payload: bytes) -> tuple[Said, State]:
        """Run the script; the answer, and what the worker is then."""
        call = Call(
            self._work,
            self._service,
            payload,
            order.job,
            order.hops,
            order.trace,
            order.environment,
            self._host,
            functools.partial(self._stores, order),
        )
        after = State.IDLE
        try:
            variables = await call.begin()
            self._work.write_env(variables)
            after = State.SPENT
            reply = await self._talk.ask(timeout=order.timeout)
            after = State.SPENT if reply.left else State.IDLE
            await self._stored()
            body = await call.end(reply)
        except OscarError as error:
            if not isinstance(error, InvocationTimeout) and after is State.SPENT:
                log.warning("a call failed", error=error.message)
            said = _error(error, spent=after is State.SPENT)
            said = replace(said, headers={**said.headers, wire.POD: self._host})
            return (replace(said, headers={**said.headers, wire.LOST: "1"}) if self._lost else said), after
        finally:
            for line in call.said:
                log.debug("sync call", line=line)
        headers = {wire.EXIT: str(reply.code), wire.POD: self._host}
        if after is State.SPENT:
            headers[wire.SPENT] = "1"
        if body != reply.log:
            headers[wire.LOG_LENGTH] = str(len(reply.log))
            body = reply.log + body
        return Said(200, body, headers), after

    async def _stored(self) -> None:
        """Wait until all that the script wrote into its mount is stored.

        Raises:
            StorageError: it can't be; names the files.
        """
        if self._cache is None:
            return
        left: set[str] = set()
        stuck = 0.0
        while waiting := await asyncio.to_thread(dirty, self._cache):
            stuck = stuck + _STORED_LOOK_S if waiting == left else 0.0
            left = waiting
            if stuck > _STORED_STUCK_S:
                names = ", ".join(sorted(left)[:5])
                raise StorageError(f"these files of the mount can't be stored: {names}")
            await asyncio.sleep(_STORED_LOOK_S)  # rclone tells nobody what it has stored

    def _stores(self, order: wire.Order) -> Providers:
        if order.stores is None:
            raise EngineError("the call needs stores and came without")
        own = order.stores.own
        service = self._service.model_copy(update={"storage_providers": order.stores.providers})
        store = self._clients.kept(
            own,
            lambda: S3Store(own.endpoint, own.access_key, own.secret_key, own.region, verify=own.verify),
        )
        return Providers(service, store, self._clients)

    async def _rest(self, after: State) -> None:
        """Clean up after a request."""
        if after is State.IDLE:
            clean = self._work.tidy()
            if clean is None:
                try:
                    clean = await self._work.tidy_all()
                except OSError as error:
                    log.warning("the folder can't be cleaned", error=str(error))
                    clean = False
            after = State.IDLE if clean else State.SPENT
        await self._become(after)


def _parse(raw: bytes) -> Head:
    first, *lines = raw.decode("latin-1").split("\r\n")
    method, path, _version = first.split(" ")
    pairs = (line.partition(":") for line in lines if line)
    return Head(method, path, {name.strip().lower(): value.strip() for name, _, value in pairs})


def _error(error: OscarError, *, spent: bool = False) -> Said:
    return Said(error.status, wire.of_error(error), {wire.SPENT: "1"} if spent else {})


async def run(
    folder: Path, config: Path, port: int, log_limit: int, cache: Path | None, hosts: Sequence[str]
) -> None:
    """Serve until SIGTERM.

    Args:
        folder: shared with the user's container.
        config: holds `service.json` and `key`.
        port: to listen on, at all addresses of the pod.
        log_limit: bytes of a script's output that are kept.
        cache: of the service's mount, if it has one.
        hosts: which may have private addresses, as stores of users' services.
    """
    service = Service.model_validate(json.loads((config / "service.json").read_bytes()))
    key = (config / "key").read_bytes()
    sidecar = Sidecar(folder, service, key, log_limit=log_limit, cache=cache, hosts=hosts)
    listener = socket.create_server(("", port))
    draining: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: draining.append(asyncio.create_task(sidecar.drain())))
    await sidecar.serve(listener)


def main(words: list[str]) -> int:
    """Serve with the arguments of the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m oscar.supervisor serve")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log-limit", type=int, required=True)
    parser.add_argument("--mount-cache", type=Path)
    parser.add_argument("--private-host", action="append", default=[])
    given = parser.parse_args(words)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            run(
                given.folder,
                given.config,
                given.port,
                given.log_limit,
                given.mount_cache,
                given.private_host,
            )
        )
    return 0
