"""Route of synchronous calls: `POST /run`. Calls `core.runs`; stops the script when the client is gone."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from oscar.api.deps import Owner, get_caller, get_incoming, get_platform, problems, read_body
from oscar.compute.base import Answer
from oscar.core import runs

router = APIRouter(tags=["sync"])

_PAYLOAD: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {"schema": {"type": "string"}},
            "application/octet-stream": {"schema": {"type": "string"}},
        },
    }
}


@router.post(
    "/run/{serviceName}",
    summary="Invoke service synchronously",
    responses={
        200: {
            "description": "One output file or a zip of several as base64, else the log",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **problems(400, 401, 403, 404, 413, 429, 500, 502, 503, 504, 507),
    },
    openapi_extra=_PAYLOAD,
)
async def run_service(request: Request, serviceName: str, owner: Owner = None) -> Response:  # noqa: N803
    p, caller = get_platform(request), await get_caller(request)
    body = await read_body(request, p.settings.body_limit)
    call = asyncio.ensure_future(
        runs.invoke(p, caller, serviceName, body, incoming=get_incoming(request), owner=owner)
    )
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({call, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not call.done():
            raise ClientDisconnect
        return _answer(call.result())
    finally:
        for task in (call, gone):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(answer: Answer) -> Response:
    if answer.exit_code == 0:
        # A log may look like base64 (`done` does), so the form is told.
        form = "log" if answer.body == answer.log else "base64"
        return Response(answer.body, media_type="text/plain", headers={"X-Oscar-Output": form})
    # Upstream answers 200 here; a failed script is the function's own error, told from ours by the header.
    return Response(
        answer.log or answer.body,
        status_code=500,
        media_type="text/plain",
        headers={"X-Oscar-Exit-Code": str(answer.exit_code)},
    )
