"""Routes about the installation: health, info, configuration, status, its log. Calls `core.{system,config,logs}`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from oscar.api.answers import ConfigForUser, Info, LogPage, Status, shaped
from oscar.api.deps import C, P, problems, read_json
from oscar.core import config, logs, system
from oscar.core.jobs import rfc3339

router = APIRouter()

_CONFIG: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["allowed_image_repositories"],
                    "properties": {
                        "allowed_image_repositories": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "Registries, folders or images that services may use; empty for all",
                        }
                    },
                }
            }
        },
    }
}
_LOG_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": LogPage,
        "description": "The log, as JSON, or as text where that is asked for",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
    **problems(400, 401, 403),
}


@router.get(
    "/health",
    summary="Health check",
    tags=["health"],
    responses={200: {"description": "Ok", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def health(request: Request) -> Response:
    # The platform is put into the application when its engine has started.
    ready = hasattr(request.app.state, "platform")
    return Response(
        "Ok", media_type="text/plain", headers={"X-Oscar-Engine": "ready" if ready else "starting"}
    )


@router.get(
    "/ready",
    summary="Readiness check",
    tags=["health"],
    responses={
        200: {
            "description": "The whole platform is there",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **problems(503),
    },
)
async def ready(_platform: P) -> Response:
    # Until there is a platform, the gate before all routes answers, with what is in the way.
    return Response("Ok", media_type="text/plain")


@router.get(
    "/system/info", summary="Get system info", tags=["info"], responses={**shaped(Info), **problems(401)}
)
async def info(p: P, _caller: C) -> dict[str, Any]:
    return await system.info(p)


@router.get("/system/config/", include_in_schema=False)
@router.get(
    "/system/config",
    summary="Get configuration",
    tags=["config"],
    responses={**shaped(ConfigForUser), **problems(401, 403, 503)},
)
async def read_config(p: P, caller: C, response: Response) -> dict[str, Any]:
    response.headers["Cache-Control"] = "no-store"  # it has the caller's keys
    return await config.read(p, caller)


@router.put(
    "/system/config",
    summary="Put configuration",
    tags=["config"],
    responses={**shaped(ConfigForUser), **problems(400, 401, 403, 413)},
    openapi_extra=_CONFIG,
)
async def change_config(p: P, caller: C, request: Request) -> dict[str, Any]:
    return await config.change(p, caller, await read_json(request))


@router.get(
    "/system/status",
    summary="Get cluster status",
    tags=["status"],
    responses={**shaped(Status), **problems(401)},
)
async def status(p: P, caller: C) -> dict[str, Any]:
    return await system.status(p, caller)


@router.get("/system/logs/", summary="Read the server's log", tags=["logs"], responses=_LOG_ANSWERS)
@router.get("/system/logs", summary="Read the server's log", tags=["logs"], responses=_LOG_ANSWERS)
async def system_logs(
    p: P,
    caller: C,
    request: Request,
    tail: Annotated[int, Query(description="Entries on the page", ge=1, le=10_000)] = 1000,
    page: Annotated[str | None, Query(description="`next_page` of the page before")] = None,
    everything: Annotated[
        bool, Query(alias="all", description="Also what isn't a call of a service; always so as text")
    ] = False,
    timestamps: Annotated[bool, Query(description="As text: the time before each entry")] = False,
    previous: Annotated[
        bool, Query(description="Only what was written before the last change of files")
    ] = False,
) -> Response:
    as_text = request.headers.get("accept", "").startswith("text/plain")
    found, following = await logs.page(
        p, caller, tail=tail, after=page, everything=everything or as_text, before=previous
    )
    headers = {"X-Next-Page": following} if following else {}
    if as_text:
        lines = (f"{rfc3339(each.time)} {each.text}\n" if timestamps else f"{each.text}\n" for each in found)
        return PlainTextResponse("".join(lines), headers=headers)
    answer: dict[str, Any] = {"logs": [logs.described(entry) for entry in found]}
    return JSONResponse(answer | ({"next_page": following} if following else {}), headers=headers)
