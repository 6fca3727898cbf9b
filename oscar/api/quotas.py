"""Routes of quotas: `/system/quotas/user`. Calls `core.quotas`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from oscar.api.answers import Quotas, shaped
from oscar.api.deps import C, P, problems, read_json
from oscar.core import quotas

router = APIRouter(tags=["quotas"])


def _texts(**fields: str) -> dict[str, Any]:
    properties = {name: {"type": "string", "description": meaning} for name, meaning in fields.items()}
    return {"type": "object", "properties": properties}


_UPDATE = _texts(
    cpu="CPU of the user's running jobs together, in millicores or as a quantity",
    memory="Their memory in bytes, or a quantity such as 4Gi",
    gpu="Their GPUs",
    ephemeral_storage="Their ephemeral storage in bytes, or a quantity",
)
_UPDATE["description"] = "types.QuotaUpdateRequest: at least one limit; `none` lifts one"
_UPDATE["properties"]["minio"] = _texts(
    buckets="Buckets that he may own", storage_per_bucket="Bytes that each of them may hold, such as 5Gi"
)
_UPDATE["properties"]["volumes"] = _texts(
    disk="Size of his volumes together",
    volumes="How many volumes",
    max_disk_per_volume="Largest size of one",
    min_disk_per_volume="Least size of one",
)
_BODY: dict[str, Any] = {
    "requestBody": {"required": False, "content": {"application/json": {"schema": _UPDATE}}}
}


@router.get(
    "/system/quotas/user", summary="Get own quotas", responses={**shaped(Quotas), **problems(401, 403)}
)
async def own_quotas(p: P, caller: C) -> dict[str, Any]:
    return await quotas.own(p, caller)


@router.get(
    "/system/quotas/user/{userId}",
    summary="Get user quotas",
    responses={**shaped(Quotas), **problems(400, 401, 403)},
)
async def user_quotas(p: P, caller: C, userId: str) -> dict[str, Any]:  # noqa: N803
    return await quotas.read(p, caller, userId)


@router.put(
    "/system/quotas/user/{userId}",
    summary="Update user quotas",
    responses={**shaped(Quotas), **problems(400, 401, 403, 413)},
    openapi_extra=_BODY,
)
async def update_quotas(p: P, caller: C, userId: str, request: Request) -> dict[str, Any]:  # noqa: N803
    return await quotas.update(p, caller, userId, await read_json(request))
