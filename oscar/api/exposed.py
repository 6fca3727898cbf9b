"""Routes about exposed services: stop, start, restart, state, logs, and the question who may reach one.

Calls `core.exposed`. The requests to the services themselves go through `exposed_proxy`.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from oscar.api.answers import DeploymentLogs, DeploymentStatus, shaped
from oscar.api.deps import C, Owner, P, problems
from oscar.api.exposed_proxy import session_cookie, shown_by
from oscar.core import exposed
from oscar.model.user import Entrance

router = APIRouter()


@router.post(
    "/system/services/{serviceName}/stop",
    summary="Stop exposed service",
    tags=["services"],
    responses={**shaped(DeploymentStatus), **problems(400, 401, 403, 404, 503)},
)
async def stop(p: P, caller: C, serviceName: str, owner: Owner = None) -> dict[str, Any]:  # noqa: N803
    return await exposed.stop(p, caller, serviceName, owner=owner)


@router.post(
    "/system/services/{serviceName}/start",
    summary="Start exposed service",
    tags=["services"],
    responses={**shaped(DeploymentStatus), **problems(400, 401, 403, 404, 503)},
)
async def start(p: P, caller: C, serviceName: str, owner: Owner = None) -> dict[str, Any]:  # noqa: N803
    return await exposed.start(p, caller, serviceName, owner=owner)


@router.post(
    "/system/services/{serviceName}/restart",
    summary="Restart exposed service",
    tags=["services"],
    responses={**shaped(DeploymentStatus), **problems(400, 401, 403, 404, 503)},
)
async def restart(p: P, caller: C, serviceName: str, owner: Owner = None) -> dict[str, Any]:  # noqa: N803
    return await exposed.restart(p, caller, serviceName, owner=owner)


@router.get(
    "/system/services/{serviceName}/deployment",
    summary="Get service deployment summary",
    tags=["deployment"],
    responses={**shaped(DeploymentStatus), **problems(400, 401, 403, 404)},
)
async def deployment(p: P, caller: C, serviceName: str, owner: Owner = None) -> dict[str, Any]:  # noqa: N803
    return await exposed.status(p, caller, serviceName, owner=owner)


@router.get(
    "/system/services/{serviceName}/deployment/logs",
    summary="Get service deployment logs",
    tags=["deployment"],
    responses={**shaped(DeploymentLogs), **problems(400, 401, 403, 404)},
)
async def deployment_logs(
    p: P,
    caller: C,
    serviceName: str,  # noqa: N803
    owner: Owner = None,
    timestamps: Annotated[bool, Query(description="Include timestamps")] = False,
    tailLines: Annotated[  # noqa: N803 - its name in the API
        int | None, Query(description="Maximum number of recent log entries to return")
    ] = None,
) -> dict[str, Any]:
    return await exposed.logs(p, caller, serviceName, owner=owner, timestamps=timestamps, tail=tailLines)


@router.get(
    "/system/services/{serviceName}/auth",
    summary="Authenticate service",
    tags=["services"],
    responses=problems(400, 401, 403, 404),
)
async def auth(p: P, request: Request, serviceName: str, owner: Owner = None) -> Response:  # noqa: N803
    shown = shown_by(request.scope, serviceName)
    admission = await exposed.check_access(p, serviceName, shown, owner=owner)
    answer = Response(status_code=200)
    caller = admission.caller
    shows_token = (shown.authorization or shown.token) is not None
    if caller is not None and caller.entrance is not Entrance.BASIC and shows_token:
        value, lifetime = exposed.open_session(admission, shown)
        answer.raw_headers.append(
            (b"set-cookie", session_cookie(request.scope, serviceName, value, lifetime))
        )
    return answer
