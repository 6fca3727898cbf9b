"""WebSockets to exposed services: the handshake is judged as any request, then messages go both ways.

Called by `exposed_proxy`. The server's side is uvicorn's, the replica's side the library `websockets`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.typing import Origin, Subprotocol

from oscar.api import exposed_headers as rules
from oscar.api.exposed_upstream import PAUSES, BadUpstream, NotListening
from oscar.core import exposed
from oscar.core.platform import Platform
from oscar.errors import OscarError, Unavailable

if TYPE_CHECKING:
    from oscar.api.exposed_proxy import Receive, Scope, Send

LARGEST = 16 * 1024 * 1024
"""Bytes of one message, as on the server's side."""
_OPEN_S = 10.0
_REFUSED = 1008
_BROKEN = 1011
_GONE = 1001
_UNSAYABLE = frozenset({1005, 1006, 1015})
"""Codes that a closing frame may not carry: RFC 6455 7.4.1."""


async def serve(p: Platform | None, scope: Scope, receive: Receive, send: Send, where: rules.Target) -> None:
    """Serve one WebSocket from its handshake to its end."""
    from oscar.api.exposed_proxy import admitted, port_of

    message = await receive()
    if message["type"] != "websocket.connect":
        return
    try:
        if p is None:
            raise Unavailable("The engine is still being started", headers={"Retry-After": "5"})
        admission = await admitted(p, scope, where)
        port = port_of(admission, where)
        for pause in (*PAUSES, None):
            replica = await exposed.replica(p, admission.known)
            replica.enter()
            try:
                upstream = await _open(scope, where, admission, (replica.host, replica.ports[port]))
                try:
                    await _pass(receive, send, upstream)
                finally:
                    await upstream.close()
            except NotListening:
                if pause is None:
                    raise
            else:
                return
            finally:
                replica.leave()
            await asyncio.sleep(pause)
    except OscarError as error:
        await _refuse(scope, send, error)


async def _open(
    scope: Scope, where: rules.Target, admission: exposed.Admission, address: tuple[str, int]
) -> ClientConnection:
    keep_prefix = admission.known.service.expose.rewrite_target
    target = rules.upstream_target(
        where, scope["query_string"], keep_prefix=keep_prefix, strip_token=admission.strip_token
    )
    headers = rules.request_headers(
        scope["headers"],
        where,
        client=scope["client"][0] if scope.get("client") else "",
        scheme="https" if scope["scheme"] == "wss" else "http",
        request_id=scope.get("oscar.request_id", ""),
        strip_authorization=admission.strip_authorization,
    )
    own = {b"host", b"origin", b"user-agent"}
    origin = rules.first(scope["headers"], b"origin")
    host = rules.first(scope["headers"], b"host") or f"{address[0]}:{address[1]}"
    try:
        return await connect(
            f"ws://{_authority(host, address)}{target.decode('latin-1')}",
            host=address[0],
            port=address[1],
            origin=Origin(origin) if origin else None,
            subprotocols=[Subprotocol(name) for name in scope.get("subprotocols", ())] or None,
            additional_headers=[
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in headers
                if name not in own
            ],
            user_agent_header=rules.first(scope["headers"], b"user-agent"),
            compression=None,
            max_size=LARGEST,
            open_timeout=_OPEN_S,
            close_timeout=2,
            ping_interval=None,
            proxy=None,
            process_exception=lambda error: error,
        )
    except InvalidStatus as error:
        status = error.response.status_code
        raise BadUpstream(f"The exposed service refuses WebSockets here: it answers {status}") from None
    except ConnectionRefusedError as error:
        raise NotListening("The exposed service does not listen on its port") from error
    except (OSError, TimeoutError, InvalidHandshake, InvalidMessage, ValueError) as error:
        raise BadUpstream(f"The exposed service can't be reached by WebSocket: {error}") from error


def _authority(host: str, address: tuple[str, int]) -> str:
    """The host that the client asked for, when it can stand in an address."""
    sane = host and all(char.isalnum() or char in ".-:[]" for char in host)
    return host if sane else f"{address[0]}:{address[1]}"


async def _pass(receive: Receive, send: Send, upstream: ClientConnection) -> None:
    await send({"type": "websocket.accept", "subprotocol": upstream.subprotocol, "headers": []})
    down = asyncio.ensure_future(_from_replica(send, upstream))
    up = asyncio.ensure_future(_from_client(receive, upstream))
    try:
        await asyncio.wait({down, up}, return_when=asyncio.FIRST_COMPLETED)
        if down.done():
            code, reason = down.result()
            await send({"type": "websocket.close", "code": code, "reason": reason})
    finally:
        for task in (down, up):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _from_replica(send: Send, upstream: ClientConnection) -> tuple[int, str]:
    """Pass messages on until the replica closes; its code and reason."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            data = await upstream.recv()
            await send(
                {"type": "websocket.send", **({"text": data} if isinstance(data, str) else {"bytes": data})}
            )
    code = upstream.close_code or _BROKEN
    return (_BROKEN if code == 1006 else 1000 if code in _UNSAYABLE else code), upstream.close_reason or ""  # noqa: PLR2004


async def _from_client(receive: Receive, upstream: ClientConnection) -> None:
    """Pass messages on until the client goes, and close with its code."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code") or _GONE
                await upstream.close(
                    _GONE if code in _UNSAYABLE else code, (message.get("reason") or "")[:100]
                )
                return
            text: Any = message.get("text")
            await upstream.send(text if text is not None else message.get("bytes") or b"")


async def _refuse(scope: Scope, send: Send, error: OscarError) -> None:
    """Say no to the handshake: with a status where the server can, as it can with HTTP."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": _REFUSED, "reason": error.code})
        return
    from starlette.responses import JSONResponse

    body = JSONResponse(error.as_dict(), status_code=error.status, headers=error.headers or None)
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": body.raw_headers})
    await send({"type": "websocket.http.response.body", "body": body.body})
