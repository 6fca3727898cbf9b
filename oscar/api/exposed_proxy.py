"""The way through to exposed services: `/system/services/<name>/exposed/…`, as a plain ASGI application.

Put by `app.api` before the FastAPI application, which gets all other requests. Who may pass and which replica takes a
request is decided by `core.exposed`; here bytes move: bodies stream both ways, a side that goes away closes the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from oscar.api import exposed_headers as rules
from oscar.api.exposed_splice import FROM, Channel, Wire
from oscar.api.exposed_upstream import PAUSES, BadUpstream, Connection, NotListening, Pool, can_repeat
from oscar.compute.base import Replica
from oscar.core import exposed
from oscar.core.platform import Platform
from oscar.core.requests import Incoming
from oscar.errors import BadRequest, InvocationTimeout, NotFound, OscarError
from oscar.model.request import RequestKind

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Render = Callable[[OscarError, Request], Response]

_TIDY_S = 2.0
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}) | {
    # RFC 4918 and 3253, for WebDAV servers
    "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT",
}  # fmt: skip


class ExposedProxy:
    """Middleware: serves the requests to exposed services, hands on all others."""

    def __init__(self, then: App, app: FastAPI, render: Render) -> None:
        """Stand before an application.

        Args:
            then: serves all other requests.
            app: has the platform in its state.
            render: makes the answer of an error.
        """
        self._then = then
        self._app = app
        self._render = render
        self._pool = Pool()
        self._tidying: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        where = None
        if scope["type"] in {"http", "websocket"}:
            where = rules.target(scope.get("raw_path") or b"", scope["query_string"])
        if where is None:
            if scope["type"] == "lifespan":
                await self._lifespan(scope, receive, send)
                return
            await self._then(scope, receive, send)
            return
        scope["app"] = self._app
        if scope["type"] == "websocket":
            from oscar.api.exposed_websocket import serve

            await serve(getattr(self._app.state, "platform", None), scope, receive, send, where)
            return
        if self._tidying is None:
            self._tidying = asyncio.create_task(self._tidy(), name="tidy proxy connections")
        try:
            await self._serve(self._app.state.platform, scope, receive, send, where)
        except OscarError as error:
            request = Request(scope)
            response = self._render(error, request)
            cors = cors_of(self._app.state.platform)
            response.raw_headers = cors.replace(response.raw_headers, cors.allowed(scope["headers"]))
            await response(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._then(scope, receive, send)
        finally:
            if self._tidying is not None:
                self._tidying.cancel()
            self._pool.close()

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_S)
            self._pool.tidy()

    async def _serve(
        self, p: Platform, scope: Scope, receive: Receive, send: Send, where: rules.Target
    ) -> None:
        headers = scope["headers"]
        cors = cors_of(p)
        if cors.is_preflight(scope["method"], headers):
            found = cors.answer(cors.allowed(headers), preflight=True)
            await send({"type": "http.response.start", "status": 204, "headers": found})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["method"] not in _METHODS:
            raise BadRequest(f"The method {scope['method']!r} is not passed on", field="method")
        admission = await admitted(p, scope, where)
        port = port_of(admission, where)
        for pause in (*PAUSES, None):
            replica = await exposed.replica(p, admission.known)
            replica.enter()
            try:
                exchange = Exchange(self._pool, p, scope, where, admission, replica, port)
                await exchange.run(receive, send)
            except NotListening:
                if pause is None:
                    raise
            else:
                return
            finally:
                replica.leave()
            await asyncio.sleep(pause)


def cors_of(p: Platform) -> rules.Cors:
    """The CORS rules of the installation."""
    return rules.Cors(p.settings.cors_origins, p.settings.cors_methods, p.settings.cors_headers)


def shown_by(scope: Scope, name: str) -> exposed.Shown:
    """The credentials of a request."""
    headers = scope["headers"]
    return exposed.Shown(
        rules.first(headers, b"authorization"),
        rules.token(scope["query_string"]),
        rules.cookie(headers, exposed.cookie_name(name)),
        scope["client"][0] if scope.get("client") else "",
    )


async def admitted(p: Platform, scope: Scope, where: rules.Target) -> exposed.Admission:
    """Who may pass; noted in the record of the request."""
    admission = await exposed.admit(
        p, where.name, shown_by(scope, where.name), owner=rules.owner(scope["query_string"])
    )
    incoming = scope.get("oscar.incoming")
    if isinstance(incoming, Incoming):
        incoming.of(RequestKind.EXPOSED, admission.known.row)
        incoming.caller = admission.caller
    return admission


def port_of(admission: exposed.Admission, where: rules.Target) -> int:
    """The service's port that an address asks for."""
    ports = admission.known.service.expose.api_port
    port = ports[0] if where.port is None else where.port
    if port not in ports:
        raise NotFound(f'The service "{where.name}" has no port {port}')
    return port


def session_cookie(scope: Scope, name: str, value: str, lifetime: int) -> bytes:
    """A `Set-Cookie` that stands for the token that was shown."""
    secure = "; Secure" if scope.get("scheme") in {"https", "wss"} else ""
    return (
        f"{exposed.cookie_name(name)}={value}; Max-Age={lifetime}; Path=/system/services/{name}; "
        f"HttpOnly; SameSite=Lax{secure}"
    ).encode("latin-1")


class Exchange:
    """One request and its answer."""

    def __init__(
        self,
        pool: Pool,
        p: Platform,
        scope: Scope,
        where: rules.Target,
        admission: exposed.Admission,
        replica: Replica,
        port: int,
    ) -> None:
        self._pool = pool
        self._scope = scope
        self._where = where
        self._admission = admission
        self._address = replica.host, replica.ports[port]
        self._keep_prefix = admission.known.service.expose.rewrite_target
        self._method = scope["method"].encode()
        self._read_timeout = float(p.settings.read_timeout)
        self._cors = cors_of(p)
        self._sent = False
        """Whether the request was sent whole."""
        self._gone = False
        """Whether the client has gone."""
        self._limit: asyncio.Timeout | None = None
        self._wire: Wire | None = scope.pop("oscar.wire", None)
        self._splicing: asyncio.Task[None] | None = None

    async def run(self, receive: Receive, send: Send) -> None:
        """Pass the request on, and the answer back.

        Raises:
            BadUpstream (502), InvocationTimeout (504): before anything was answered.
        """
        length = rules.first(self._scope["headers"], b"content-length")
        chunked = rules.first(self._scope["headers"], b"transfer-encoding") is not None
        has_body = chunked or (length is not None and length != "0")
        connection = await self._ask(length, chunked=chunked, has_body=has_body)
        upload = asyncio.ensure_future(
            self._send_body(connection, receive, chunked=chunked, has_body=has_body)
        )
        try:
            status, headers = await self._head(connection)
            await self._answer(connection, status, headers, send)
        except BadUpstream:
            if not self._gone:  # else nobody is left to be told
                raise
        finally:
            upload.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await upload
            if self._sent:
                self._pool.give(self._address, connection)
            else:
                connection.abort()

    async def _ask(self, length: str | None, *, chunked: bool, has_body: bool) -> Connection:
        """Send the request's head."""
        scope = self._scope
        headers = rules.request_headers(
            scope["headers"],
            self._where,
            client=scope["client"][0] if scope.get("client") else "",
            scheme=scope["scheme"],
            request_id=scope.get("oscar.request_id", ""),
            strip_authorization=self._admission.strip_authorization,
        )
        if chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        elif length is not None:
            headers.append((b"content-length", length.encode("latin-1")))
        target = rules.upstream_target(
            self._where,
            scope["query_string"],
            keep_prefix=self._keep_prefix,
            strip_token=self._admission.strip_token,
        )
        connection, used = await self._pool.take(self._address, method=self._method)
        connection.begin(self._method, target, headers)
        if used and not has_body and can_repeat(self._method):
            # The replica may have closed a connection that waited: that is no answer to this request.
            try:
                await self._head(connection)
            except BadUpstream:
                if connection.answered:
                    raise
                try:
                    connection, _ = await self._pool.take(self._address, method=self._method, fresh=True)
                except NotListening as error:
                    # It ended with this very request, perhaps because of it: another replica is spared.
                    raise BadUpstream("The exposed service ended before it answered") from error
                connection.begin(self._method, target, headers)
        return connection

    async def _head(self, connection: Connection) -> tuple[int, rules.Headers]:
        """The answer's head; the time runs from when the request was sent whole."""
        try:
            async with asyncio.timeout(self._read_timeout if self._sent else None) as self._limit:
                return await connection.head()
        except TimeoutError:
            connection.abort()
            raise InvocationTimeout("The exposed service did not answer in time") from None
        finally:
            self._limit = None

    async def _send_body(
        self, connection: Connection, receive: Receive, *, chunked: bool, has_body: bool
    ) -> None:
        """Pass the body on; then wait for the client to go away, which closes the connection to the replica."""
        if not has_body:
            self._done_sending()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._gone = True
                if self._splicing is not None:
                    self._splicing.cancel()
                connection.abort()
                return
            if self._sent:
                continue
            if body := message.get("body", b""):
                connection.write(b"%x\r\n%b\r\n" % (len(body), body) if chunked else body)
                try:
                    await connection.drain()
                except BadUpstream:
                    return  # the answer may have come before it closed, and says so if not
            if not message.get("more_body", False):
                if chunked:
                    connection.write(b"0\r\n\r\n")
                self._done_sending()

    def _done_sending(self) -> None:
        self._sent = True
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._read_timeout)

    async def _answer(self, connection: Connection, status: int, headers: rules.Headers, send: Send) -> None:
        answer = rules.response_headers(headers, self._where, keep_prefix=self._keep_prefix)
        if status in {204, 304}:
            # They have no body, whatever length they tell: that of the answer that a GET would have got.
            answer = [pair for pair in answer if pair[0] != b"content-length"]
        answer = self._cors.replace(answer, self._cors.allowed(self._scope["headers"]))
        if self._admission.session is not None:
            value, lifetime = self._admission.session, self._admission.lifetime
            answer.append((b"set-cookie", session_cookie(self._scope, self._where.name, value, lifetime)))
        await send({"type": "http.response.start", "status": status, "headers": answer})
        try:
            while data := await connection.body():
                await send({"type": "http.response.body", "body": data, "more_body": True})
                if connection.left >= FROM and self._wire is not None and self._wire.open:
                    await self._splice(connection, self._wire, send)
                    break
        except (BadUpstream, EOFError, OSError):
            # Too late for an error of ours: an answer that is never completed shows as broken off, not as whole.
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _splice(self, connection: Connection, wire: Wire, send: Send) -> None:
        """Have the kernel move the rest of the body.

        Raises:
            EOFError, OSError: one of the two sides broke off.
        """
        with contextlib.ExitStack() as stack:
            channel = Channel()
            stack.callback(channel.close)
            data, source = connection.handed_over()
            stack.callback(os.close, source)
            count = connection.left
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            target = await wire.taken()
            stack.callback(os.close, target)
            self._splicing = asyncio.ensure_future(channel.move(source, target, count))
            try:
                await self._splicing
            except asyncio.CancelledError:
                if self._gone:
                    raise ConnectionAbortedError from None
                raise
            wire.wrote(count)
