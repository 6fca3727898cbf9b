"""Passing a request on to another of our servers, which asks itself who calls. Called by `api.jobs` for logs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
from fastapi import Request
from starlette.responses import Response, StreamingResponse

from oscar.core.peers import FORWARDED
from oscar.errors import Unavailable

_CONNECT_S = 5.0
_PASSED = ("content-type", "cache-control", "x-accel-buffering")


async def forward(request: Request, peer: str) -> Response:
    """Its answer to the same GET, as it comes.

    Raises:
        Unavailable: it does not answer.
    """
    headers = {
        name: request.headers[name] for name in ("authorization", "accept") if name in request.headers
    } | {FORWARDED: "1"}
    url = f"{peer.rstrip('/')}{request.url.path}"
    # No limit for reading: a log that is followed may be silent for hours.
    # Reading the trusted certificates takes 10 ms, which a plain connection can spare.
    verify = peer.startswith("https:")
    client = httpx2.AsyncClient(verify=verify, timeout=httpx2.Timeout(None, connect=_CONNECT_S))
    try:
        sent = client.build_request("GET", url, params=str(request.query_params), headers=headers)
        answer = await client.send(sent, stream=True)
    except httpx2.HTTPError as error:
        await client.aclose()
        raise Unavailable(
            f"The server that has the log does not answer: {error}", headers={"Retry-After": "30"}
        ) from error

    async def body() -> AsyncIterator[bytes]:
        try:
            async for piece in answer.aiter_raw():
                yield piece
        finally:
            await answer.aclose()
            await client.aclose()

    passed = {name: answer.headers[name] for name in _PASSED if name in answer.headers}
    return StreamingResponse(body(), status_code=answer.status_code, headers=passed)
