"""Routes of jobs: `POST /job`, `/system/jobs`, `/system/logs/{service}`. Calls `core.jobs`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from oscar.api.answers import Accepted, JobDetails, JobsPage, shaped
from oscar.api.deps import C, Owner, P, get_caller, get_incoming, get_platform, problems, read_body
from oscar.api.forward import asking
from oscar.compute.base import LogLine
from oscar.core import jobs
from oscar.core.platform import Platform
from oscar.model.job import Job

router = APIRouter()

_PAYLOAD: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {"schema": {"type": "string"}},
            "application/octet-stream": {"schema": {"type": "string"}},
        },
    }
}


def _location(job: Job) -> str:
    return f"/system/jobs/{job.service_name}/{job.id}"


def _accepted(accepted: list[Job], *, repeated: bool = False) -> Response:
    if not accepted:
        return JSONResponse({"job_id": None, "jobs": [], "status": "Ignored"}, status_code=201)
    first = accepted[0]
    body: dict[str, Any] = {
        "job_id": first.id,
        "service": first.service_name,
        "status": first.api_status.value,
    }
    if len(accepted) > 1:
        body["jobs"] = [job.id for job in accepted]
    headers = {"Location": _location(first)} | ({"Idempotency-Replayed": "true"} if repeated else {})
    return JSONResponse(body, status_code=201, headers=headers)


@router.post(
    "/job/{serviceName}",
    summary="Invoke service asynchronously",
    status_code=201,
    tags=["async"],
    responses={**shaped(Accepted, 201, "Created"), **problems(400, 401, 403, 404, 413, 507)},
    openapi_extra=_PAYLOAD,
)
async def submit_job(
    request: Request,
    serviceName: str,  # noqa: N803
    owner: Owner = None,
    idempotency_key: Annotated[
        str | None, Header(description="The same key gives the same job again", max_length=256)
    ] = None,
    x_callback_url: Annotated[
        str | None, Header(description="Told by POST when the job has ended", max_length=2048)
    ] = None,
    x_delegated_job_id: Annotated[
        str | None, Header(description="Of a cluster that gives its job away: the job's id, which is kept")
    ] = None,
    x_delegated_from: Annotated[str, Header(description="The id of that cluster", max_length=256)] = "",
    x_delegated_hops: Annotated[
        int, Header(description="Functions in a row that led to it", ge=0, le=999)
    ] = 0,
) -> Response:
    p, caller = get_platform(request), await get_caller(request)
    body = await read_body(request, p.settings.body_limit)
    accepted = await jobs.accept(
        p,
        caller,
        serviceName,
        body,
        incoming=get_incoming(request),
        owner=owner,
        idempotency_key=idempotency_key,
        callback=x_callback_url,
        delegated=jobs.Delegated(x_delegated_job_id, x_delegated_from, x_delegated_hops)
        if x_delegated_job_id
        else None,
    )
    return _accepted(accepted.jobs, repeated=accepted.repeated)


@router.get(
    "/system/jobs/{serviceName}/{jobName}",
    summary="Read a job, on request waiting for its end",
    tags=["jobs"],
    responses={**shaped(JobDetails), **problems(400, 401, 403, 404)},
)
async def read_job(
    p: P,
    caller: C,
    serviceName: str,  # noqa: N803
    jobName: str,  # noqa: N803
    owner: Owner = None,
    wait: Annotated[
        str | None, Query(description="Answer when the job has ended, at most after this: 30s")
    ] = None,
) -> dict[str, Any]:
    if wait is None:
        return await jobs.details(p, await jobs.find(p, caller, serviceName, jobName, owner=owner))
    seconds = jobs.seconds_of(wait)
    return await jobs.details(
        p, await jobs.wait(p, caller, serviceName, jobName, seconds=seconds, owner=owner)
    )


@router.post(
    "/system/jobs/{serviceName}/{jobName}/rerun",
    summary="Run a finished job's event again, as a new job",
    status_code=201,
    tags=["jobs"],
    responses={**shaped(Accepted, 201, "Created"), **problems(400, 401, 403, 404, 409)},
)
async def rerun_job(p: P, caller: C, serviceName: str, jobName: str, owner: Owner = None) -> Response:  # noqa: N803
    return _accepted([await jobs.rerun(p, caller, serviceName, jobName, owner=owner)])


@router.post(
    "/system/jobs/{serviceName}/{jobName}/cancel",
    summary="Ask for a job's end",
    status_code=202,
    tags=["jobs"],
    responses={**shaped(JobDetails, 202, "Accepted"), **problems(400, 401, 403, 404, 409)},
)
async def cancel_job(
    p: P,
    caller: C,
    serviceName: str,  # noqa: N803
    jobName: str,  # noqa: N803
    owner: Owner = None,
) -> dict[str, Any]:
    return await jobs.details(p, await jobs.cancel(p, caller, serviceName, jobName, owner=owner))


@router.get(
    "/system/logs/{serviceName}",
    summary="List jobs",
    tags=["logs"],
    responses={**shaped(JobsPage), **problems(400, 401, 403, 404)},
)
async def list_jobs(
    p: P,
    caller: C,
    serviceName: str,  # noqa: N803
    owner: Owner = None,
    page: Annotated[str | None, Query(description="`next_page` of the page before")] = None,
) -> Response:
    return JSONResponse(await jobs.page(p, caller, serviceName, page=page or None, owner=owner))


@router.delete(
    "/system/logs/{serviceName}",
    summary="Delete jobs",
    status_code=204,
    tags=["logs"],
    responses=problems(400, 401, 403, 404),
)
async def delete_jobs(
    p: P,
    caller: C,
    serviceName: str,  # noqa: N803
    owner: Owner = None,
    everything: Annotated[
        bool, Query(alias="all", description="Pending, running and failed jobs as well")
    ] = False,
) -> Response:
    await jobs.delete_all(p, caller, serviceName, everything=everything, owner=owner)
    return Response(status_code=204)


@router.delete(
    "/system/logs/{serviceName}/{jobName}",
    summary="Delete job",
    status_code=204,
    tags=["logs"],
    responses=problems(400, 401, 403, 404),
)
async def delete_job(p: P, caller: C, serviceName: str, jobName: str, owner: Owner = None) -> Response:  # noqa: N803
    await jobs.delete(p, caller, serviceName, jobName, owner=owner)
    return Response(status_code=204)


@router.get(
    "/system/logs/{serviceName}/{jobName}",
    summary="Get job logs",
    tags=["logs"],
    responses={
        200: {
            "description": "Log lines",
            "content": {
                "text/plain": {"schema": {"type": "string"}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
        },
        **problems(400, 401, 403, 404, 502),
    },
)
async def job_logs(
    request: Request,
    p: P,
    caller: C,
    serviceName: str,  # noqa: N803
    jobName: str,  # noqa: N803
    owner: Owner = None,
    timestamps: Annotated[bool, Query(description="Start each line with its time")] = False,
    tail: Annotated[int | None, Query(ge=0, description="Only the last so many lines")] = None,
    follow: Annotated[bool, Query(description="Go on until the job has ended")] = False,
) -> Response:
    job = await jobs.find(p, caller, serviceName, jobName, owner=owner)
    ask = await asking(request, p, job, follow=follow)
    lines = jobs.logs(p, job, follow=follow, tail=tail, ask=ask)
    if not follow:
        lines = await _begun(lines)
    if "text/event-stream" in request.headers.get("accept", ""):
        return StreamingResponse(
            _events(p, job, lines, timestamps=timestamps),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
    return StreamingResponse(_text(lines, timestamps=timestamps), media_type="text/plain")


async def _begun(lines: AsyncIterator[LogLine]) -> AsyncIterator[LogLine]:
    """The same lines, the first of them there: an error on the way to them is still an answer of its own."""
    first = await anext(lines, None)

    async def all_of_them() -> AsyncIterator[LogLine]:
        if first is not None:
            yield first
            async for line in lines:
                yield line

    return all_of_them()


def _line(line: LogLine, *, timestamps: bool) -> str:
    return f"{line.time} {line.text}" if timestamps else line.text


async def _text(lines: AsyncIterator[LogLine], *, timestamps: bool) -> AsyncIterator[str]:
    async for line in lines:
        yield _line(line, timestamps=timestamps) + "\n"


async def _events(
    p: Platform, job: Job, lines: AsyncIterator[LogLine], *, timestamps: bool
) -> AsyncIterator[str]:
    async for line in lines:
        # A carriage return would end a field of the event stream.
        for part in _line(line, timestamps=timestamps).split("\r"):
            yield f"data: {part}\n"
        yield "\n"
    now = await p.jobs.get(job.id) or job
    yield f"event: end\ndata: {json.dumps(await jobs.details(p, now))}\n\n"
