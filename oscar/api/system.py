"""Routes about the installation: health, info, configuration, status. Calls `core.system`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from oscar.api.deps import C, P, problems
from oscar.core import system

router = APIRouter()


@router.get("/health", summary="Health check", tags=["health"])
async def health(request: Request) -> Response:
    # The platform is put into the application when its engine has started.
    ready = hasattr(request.app.state, "platform")
    return Response(
        "Ok", media_type="text/plain", headers={"X-Oscar-Engine": "ready" if ready else "starting"}
    )


@router.get("/system/info", summary="Get system info", tags=["info"], responses=problems(401))
async def info(p: P, _caller: C) -> dict[str, Any]:
    return await system.info(p)


@router.get("/system/config/", include_in_schema=False)
@router.get("/system/config", summary="Get configuration", tags=["config"], responses=problems(401, 403))
async def config(p: P, caller: C) -> dict[str, Any]:
    return await system.config(p, caller)


@router.get("/system/status", summary="Get cluster status", tags=["status"], responses=problems(401))
async def status(p: P, _caller: C) -> dict[str, Any]:
    return await system.status(p)
