"""Routes of metrics: `/system/metrics`, and `/metrics` for Prometheus. Calls `core.{metrics,gauges}`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from oscar.api.deps import C, Owner, P, get_caller, get_incoming, problems
from oscar.core import gauges, metrics

router = APIRouter(tags=["metrics"])

Start = Annotated[
    str | None, Query(description="RFC 3339 time or date, included; 24 hours before the end when absent")
]
End = Annotated[str | None, Query(description="RFC 3339 time or date, included; now when absent")]


def _object(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TEXT: dict[str, Any] = {"type": "string"}
_NUMBER: dict[str, Any] = {"type": "number"}
_WHOLE: dict[str, Any] = {"type": "integer"}
_KINDS = {f"requests_count_{kind}": _WHOLE for kind in ("total", "sync", "async", "exposed")}
_SOURCES = _list(_object(name=_TEXT, status=_TEXT, last_updated=_TEXT, notes=_TEXT))
_COUNTRIES = _list(_object(country=_TEXT, request_count=_WHOLE))
_RANGE = {"start": _TEXT, "end": _TEXT}
_VALUE = {"metric": _TEXT, "value": _NUMBER, "unit": _TEXT, "sources": _SOURCES}
_SUMMARY = _object(
    **_RANGE,
    totals=_object(
        **dict.fromkeys(("services_count_active", "services_count_total", *_KINDS), _WHOLE),
        **dict.fromkeys(("cpu_hours_total", "gpu_hours_total"), _NUMBER),
        countries=_COUNTRIES,
        countries_count=_WHOLE,
        users=_list(_TEXT),
        users_count=_WHOLE,
    ),
    sources=_SOURCES,
)
_SERVICE = _object(service_name=_TEXT, service_id=_TEXT, **_RANGE, **_VALUE, metrics=_list(_object(**_VALUE)))
_BREAKDOWN = _object(
    **_RANGE,
    group_by=_TEXT,
    items=_list(
        _object(
            key=_TEXT,
            membership=_TEXT,
            executions_count=_WHOLE,
            **_KINDS,
            unique_users_count=_WHOLE,
            users=_list(_TEXT),
            countries=_COUNTRIES,
        )
    ),
    sources=_SOURCES,
)


def _answers(schema: dict[str, Any], *statuses: int, **more: Any) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": schema}, **more}
    return {200: {"description": "OK", "content": content}, **problems(400, 401, 403, *statuses)}


@router.get(
    "/metrics",
    summary="How the server does, for Prometheus",
    responses={
        200: {"description": "OK", "content": {"text/plain": {"schema": _TEXT}}},
        **problems(401, 403),
    },
)
async def scrape(p: P, request: Request) -> Response:
    caller = await get_caller(request) if request.headers.get("authorization") else None
    forwarded = any(name in request.headers for name in ("x-forwarded-for", "forwarded"))
    if not gauges.may_scrape(p, caller, get_incoming(request).address, forwarded=forwarded):
        await get_caller(request)  # says how to log in
    return Response(await gauges.scrape(p), media_type=gauges.CONTENT_TYPE)


@router.get("/system/metrics", summary="Get metrics summary", responses=_answers(_SUMMARY))
async def summary(p: P, caller: C, start: Start = None, end: End = None) -> dict[str, Any]:
    return await metrics.totals(p, caller, start=start, end=end)


@router.get(
    "/system/metrics/breakdown",
    summary="Get metrics breakdown",
    responses=_answers(_BREAKDOWN, **{"text/csv": {"schema": _TEXT}}),
)
async def breakdown(
    p: P,
    caller: C,
    start: Start = None,
    end: End = None,
    group_by: Annotated[str | None, Query(description="service, user or country; required")] = None,
    include_users: Annotated[bool, Query(description="The users of each service; JSON only")] = False,
    form: Annotated[str, Query(alias="format", description="json or csv")] = "json",
) -> Response:
    found = await metrics.grouped(
        p, caller, by=group_by, start=start, end=end, include_users=include_users, form=form
    )
    if isinstance(found, str):
        return Response(found, media_type="text/csv")
    return JSONResponse(found)


@router.get(
    "/system/metrics/{serviceName}", summary="Get metrics for a service", responses=_answers(_SERVICE, 404)
)
async def of_service(
    p: P,
    caller: C,
    serviceName: str,  # noqa: N803
    metric: Annotated[
        str | None, Query(description="One of the metrics of a service; all when absent")
    ] = None,
    start: Start = None,
    end: End = None,
    owner: Owner = None,
) -> dict[str, Any]:
    return await metrics.of_service(p, caller, serviceName, metric=metric, start=start, end=end, owner=owner)
