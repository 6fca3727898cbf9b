"""Routes of federations: `/system/federation` and the older `/system/replicas`. Calls `core.federation`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from oscar.api.answers import Members, Replicas, shaped
from oscar.api.deps import C, Owner, P, problems
from oscar.core import federation

router = APIRouter(tags=["federation"])

_READING = problems(400, 401, 403, 404)
_CHANGING = problems(400, 401, 403, 404, 501)
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object", "description": "types.FederationRequest"}}
        },
    }
}


@router.get(
    "/system/federation/{serviceName}",
    summary="Get federation members for a service",
    responses={**shaped(Members), **_READING},
)
async def read_members(p: P, caller: C, serviceName: str, owner: Owner = None) -> dict[str, Any]:  # noqa: N803
    return await federation.members(p, caller, serviceName, owner=owner)


@router.get(
    "/system/replicas/{serviceName}",
    summary="Get replicas for a service",
    responses={**shaped(Replicas), **_READING},
)
async def read_replicas(p: P, caller: C, serviceName: str, owner: Owner = None) -> dict[str, Any]:  # noqa: N803
    return await federation.replicas(p, caller, serviceName, owner=owner)


@router.post(
    "/system/federation/{serviceName}",
    summary="Add federation members to a service",
    responses=_CHANGING,
    openapi_extra=_BODY,
)
@router.post(
    "/system/replicas/{serviceName}",
    summary="Add replicas to a service",
    responses=_CHANGING,
    openapi_extra=_BODY,
)
async def add_members(p: P, caller: C, serviceName: str, owner: Owner = None) -> None:  # noqa: N803
    await federation.change(p, caller, serviceName, owner=owner)


@router.put(
    "/system/federation/{serviceName}",
    summary="Update federation members in a service",
    responses=_CHANGING,
    openapi_extra=_BODY,
)
@router.put(
    "/system/replicas/{serviceName}",
    summary="Update replicas of a service",
    responses=_CHANGING,
    openapi_extra=_BODY,
)
async def update_members(p: P, caller: C, serviceName: str, owner: Owner = None) -> None:  # noqa: N803
    await federation.change(p, caller, serviceName, owner=owner)


@router.delete(
    "/system/federation/{serviceName}",
    summary="Delete federation members from a service",
    responses=_CHANGING,
    openapi_extra=_BODY,
)
@router.delete(
    "/system/replicas/{serviceName}",
    summary="Delete replicas from a service",
    responses=_CHANGING,
    openapi_extra=_BODY,
)
async def delete_members(p: P, caller: C, serviceName: str, owner: Owner = None) -> None:  # noqa: N803
    await federation.change(p, caller, serviceName, owner=owner)
