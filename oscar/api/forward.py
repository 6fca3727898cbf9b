"""Asking another of our servers for what only it has; it asks itself who calls. Called by `api.jobs` for logs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx2
from fastapi import Request

from oscar.compute.base import LogLine
from oscar.core import peers
from oscar.core.platform import Platform
from oscar.errors import RunNotFound, Unavailable
from oscar.model.job import Job

_CONNECT_S = 5.0


async def asking(
    request: Request, p: Platform, job: Job, *, follow: bool
) -> Callable[[Job], AsyncIterator[LogLine]] | None:
    """What asks the server that has a job for the lines that this request is for; None: one of ours asks already.

    Args:
        request: the request.
        p: the platform.
        job: the job as it is now; later it may be somewhere else.
        follow: whose server is away is told so now, because a first line may be long in coming.

    Raises:
        Unavailable: that server is away.
    """
    if peers.FORWARDED in request.headers:
        return None
    first = await peers.elsewhere(p, job) if follow else None

    async def ask(asked: Job) -> AsyncIterator[LogLine]:
        url = first if follow and asked is job else await peers.elsewhere(p, asked)
        if url is not None:
            async for line in _lines(request, url):
                yield line

    return ask


async def _lines(request: Request, peer: str) -> AsyncIterator[LogLine]:
    """The peer's lines of the same log, as they come.

    Raises:
        RunNotFound: the job is there no more.
        Unavailable: it does not answer, or stopped in the middle.
    """
    headers = {peers.FORWARDED: "1"}
    if "authorization" in request.headers:
        headers["authorization"] = request.headers["authorization"]
    url = f"{peer.rstrip('/')}{request.url.path}"
    params = dict(request.query_params) | {"timestamps": "true"}
    # No limit for reading: a log that is followed may be silent for hours.
    timeout = httpx2.Timeout(None, connect=_CONNECT_S)
    # Reading the trusted certificates takes 10 ms, which a plain connection can spare.
    verify = peer.startswith("https:")
    try:
        async with (
            httpx2.AsyncClient(verify=verify, timeout=timeout) as client,
            client.stream("GET", url, params=params, headers=headers) as answer,
        ):
            if answer.status_code == httpx2.codes.NOT_FOUND:
                raise RunNotFound("The job is not at the server that had it")
            if not answer.is_success:
                raise Unavailable(f"The server that has the log answered {answer.status_code}")
            # Not `aiter_lines`, for which a carriage return ends a line.
            rest = b""
            async for piece in answer.aiter_bytes():
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    yield LogLine.read(line.decode(errors="replace"))
    except httpx2.HTTPError as error:
        raise Unavailable(
            f"The server that has the log does not answer: {error}", headers={"Retry-After": "30"}
        ) from error
