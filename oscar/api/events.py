"""Routes of events: what MinIO reports, and what could not be made a job. Calls `core.object_events`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from oscar.api.deps import C, P, problems, read_body
from oscar.core import object_events
from oscar.errors import BodyTooLarge

router = APIRouter()


@router.post(
    "/system/events/minio", summary="Take a report of MinIO", tags=["events"], responses=problems(401, 501)
)
async def minio(p: P, request: Request) -> dict[str, int]:
    object_events.authorize(p, request.headers.get("authorization"))
    try:
        body = await read_body(request, object_events.LIMIT)
    except BodyTooLarge as error:
        # Recorded: refused, it would stand before all others in MinIO's queue for ever.
        return {"jobs": await object_events.reject(p, error.message)}
    return {"jobs": await object_events.accept(p, body)}


@router.get(
    "/system/events/rejected",
    summary="List reports of which no job could be made",
    tags=["events"],
    responses=problems(400, 401, 403),
)
async def rejected(
    p: P,
    caller: C,
    limit: Annotated[int, Query(description="Events on the page", ge=1, le=1000)] = 100,
    page: Annotated[str | None, Query(description="`next_page` of the page before")] = None,
) -> dict[str, Any]:
    return await object_events.rejected(p, caller, limit=limit, page=page)
