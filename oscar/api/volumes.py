"""Routes of managed volumes: `/system/volumes`. Calls `core.volumes`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from oscar.api.answers import Volume, shaped
from oscar.api.deps import C, Owner, P, body_of, problems, read_model
from oscar.core import volumes

router = APIRouter(tags=["volumes"])


class VolumeRequest(BaseModel):
    """A volume as clients define it: `types.ManagedVolumeCreateRequest`."""

    name: str = Field(description="A DNS label, unique among the owner's volumes")
    size: str = Field(description="A quantity such as 1Gi")


@router.get(
    "/system/volumes", summary="List volumes", responses={**shaped(list[Volume]), **problems(401, 403)}
)
async def list_volumes(p: P, caller: C) -> list[dict[str, Any]]:
    return await volumes.list_all(p, caller)


@router.post(
    "/system/volumes",
    summary="Create volume",
    status_code=201,
    responses={**shaped(Volume, 201, "Created"), **problems(400, 401, 403, 409, 413, 502, 507)},
    openapi_extra=body_of(VolumeRequest),
)
async def create_volume(p: P, caller: C, request: Request) -> dict[str, Any]:
    volume = await read_model(request, VolumeRequest)
    return await volumes.create(p, caller, name=volume.name, size=volume.size)


@router.get(
    "/system/volumes/{volumeName}",
    summary="Read volume",
    responses={**shaped(Volume), **problems(400, 401, 403, 404)},
)
async def read_volume(p: P, caller: C, volumeName: str, owner: Owner = None) -> dict[str, Any]:  # noqa: N803
    return await volumes.read(p, caller, volumeName, owner=owner)


@router.delete(
    "/system/volumes/{volumeName}",
    summary="Delete volume",
    status_code=204,
    responses=problems(400, 401, 403, 404, 502),
)
async def delete_volume(p: P, caller: C, volumeName: str, owner: Owner = None) -> Response:  # noqa: N803
    await volumes.delete(p, caller, volumeName, owner=owner)
    return Response(status_code=204)
