"""Routes of services: `/system/services`. Calls `core.services`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from oscar.api.answers import Warned, shaped
from oscar.api.deps import C, Owner, P, problems, read_json, warned
from oscar.core import services
from oscar.model.service import Service

router = APIRouter(tags=["services"])

Include = Annotated[str | None, Query(description="Optional expansions (for example: deployment)")]

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Service"}}},
    }
}


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")


@router.get(
    "/system/services",
    summary="List services",
    responses={**shaped(list[Service]), **problems(401, 403)},
)
async def list_services(p: P, caller: C, include: Include = None) -> Response:
    return _json(await services.list_all(p, caller, include=include))


@router.post(
    "/system/services",
    summary="Create service",
    status_code=201,
    responses={**shaped(Warned, 201, "Created"), **problems(400, 401, 403, 409, 413, 502, 507)},
    openapi_extra=_BODY,
)
async def create_service(p: P, caller: C, request: Request) -> Response:
    return warned(await services.create(p, caller, await read_json(request)), 201)


@router.put(
    "/system/services",
    summary="Update service",
    status_code=204,
    responses=problems(400, 401, 403, 404, 413),
    openapi_extra=_BODY,
)
async def update_service(p: P, caller: C, request: Request) -> Response:
    warnings = await services.update(p, caller, await read_json(request))
    # 204 has no body, so warnings travel in a header there.
    return Response(status_code=204, headers={"X-Oscar-Warnings": _header(warnings)} if warnings else None)


def _header(warnings: list[str]) -> str:
    return "; ".join(warnings).encode("ascii", "replace").decode().replace("\n", " ")[:4000]


@router.get(
    "/system/services/{serviceName}",
    summary="Read service",
    responses={**shaped(Service), **problems(400, 401, 403, 404)},
)
async def read_service(
    p: P,
    caller: C,
    serviceName: str,  # noqa: N803
    owner: Owner = None,
    include: Include = None,
) -> Response:
    return _json(await services.read(p, caller, serviceName, owner=owner, include=include))


@router.delete(
    "/system/services/{serviceName}",
    summary="Delete service",
    status_code=204,
    responses=problems(400, 401, 403, 404),
)
async def delete_service(
    p: P,
    caller: C,
    serviceName: str,  # noqa: N803
    owner: Owner = None,
    data: Annotated[
        bool, Query(description="Also delete the buckets that it created with their data")
    ] = False,
) -> Response:
    await services.delete(p, caller, serviceName, owner=owner, data=data)
    return Response(status_code=204)
