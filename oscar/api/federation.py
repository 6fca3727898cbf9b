"""Routes of federations: `/system/federation`, the older `/system/replicas`, and what copies ask their origin for.

Calls `core.federation`.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel

from oscar.api.answers import CopyToken, Members, Replicas, SignedResult, shaped
from oscar.api.deps import C, Owner, P, body_of, counted, get_platform, problems, read_json, read_model
from oscar.core import federation
from oscar.core.federation import NEW, OLD, Wanted
from oscar.model.federation import Cluster, Replica
from oscar.model.storage import StorageProviders

router = APIRouter(tags=["federation"])

_READING = problems(400, 401, 403, 404)
_CHANGING = problems(400, 401, 403, 404, 409, 413, 502, 503)
_ASKING = problems(400, 401, 403, 404, 413, 503)


class FederationRequest(BaseModel):
    """`types.FederationRequest`; a list of `clusters`, each with its `cluster_id`, is taken too."""

    members: list[Replica] = []
    update: list[Replica] = []
    clusters: dict[str, Cluster] = {}
    storage_providers: StorageProviders = StorageProviders()
    delete: bool = True


class ReplicasRequest(BaseModel):
    """The older form of the same."""

    replicas: list[Replica] = []
    update: list[Replica] = []
    clusters: dict[str, Cluster] = {}
    storage_providers: StorageProviders = StorageProviders()


_NEW, _OLD = body_of(FederationRequest), body_of(ReplicasRequest)

Key = Annotated[str, Header(alias="X-Federation-Key", description="The copy's key", max_length=200)]


@router.get(
    "/system/federation/{serviceName}",
    summary="Get federation members for a service",
    responses={**shaped(Members), **_READING},
)
async def read_members(p: P, caller: C, serviceName: str, owner: Owner = None) -> dict[str, Any]:  # noqa: N803
    return await federation.read(p, caller, serviceName, NEW, owner=owner)


@router.get(
    "/system/replicas/{serviceName}",
    summary="Get replicas for a service",
    responses={**shaped(Replicas), **_READING},
)
async def read_replicas(p: P, caller: C, serviceName: str, owner: Owner = None) -> dict[str, Any]:  # noqa: N803
    return await federation.read(p, caller, serviceName, OLD, owner=owner)


@router.post(
    "/system/federation/{serviceName}",
    summary="Add federation members to a service",
    responses={**shaped(Members), **_CHANGING},
    openapi_extra=_NEW,
)
async def add_members(
    p: P,
    caller: C,
    request: Request,
    serviceName: str,  # noqa: N803
    owner: Owner = None,
) -> dict[str, Any]:
    return await federation.add(p, caller, serviceName, partial(read_json, request), NEW, owner=owner)


@router.post(
    "/system/replicas/{serviceName}",
    summary="Add replicas to a service",
    responses={**shaped(Replicas), **_CHANGING},
    openapi_extra=_OLD,
)
async def add_replicas(
    p: P,
    caller: C,
    request: Request,
    serviceName: str,  # noqa: N803
    owner: Owner = None,
) -> dict[str, Any]:
    return await federation.add(p, caller, serviceName, partial(read_json, request), OLD, owner=owner)


@router.put(
    "/system/federation/{serviceName}",
    summary="Update federation members in a service",
    responses={**shaped(Members), **_CHANGING},
    openapi_extra=_NEW,
)
async def update_members(
    p: P,
    caller: C,
    request: Request,
    serviceName: str,  # noqa: N803
    owner: Owner = None,
) -> dict[str, Any]:
    return await federation.update(p, caller, serviceName, partial(read_json, request), NEW, owner=owner)


@router.put(
    "/system/replicas/{serviceName}",
    summary="Update replicas of a service",
    responses={**shaped(Replicas), **_CHANGING},
    openapi_extra=_OLD,
)
async def update_replicas(
    p: P,
    caller: C,
    request: Request,
    serviceName: str,  # noqa: N803
    owner: Owner = None,
) -> dict[str, Any]:
    return await federation.update(p, caller, serviceName, partial(read_json, request), OLD, owner=owner)


@router.delete(
    "/system/federation/{serviceName}",
    summary="Delete federation members from a service",
    responses={**shaped(Members), **_CHANGING},
    openapi_extra=_NEW,
)
async def delete_members(
    p: P,
    caller: C,
    request: Request,
    serviceName: str,  # noqa: N803
    owner: Owner = None,
) -> dict[str, Any]:
    return await federation.remove(p, caller, serviceName, partial(read_json, request), NEW, owner=owner)


@router.delete(
    "/system/replicas/{serviceName}",
    summary="Delete replicas from a service",
    responses={**shaped(Replicas), **_CHANGING},
    openapi_extra=_OLD,
)
async def delete_replicas(
    p: P,
    caller: C,
    request: Request,
    serviceName: str,  # noqa: N803
    owner: Owner = None,
) -> dict[str, Any]:
    return await federation.remove(p, caller, serviceName, partial(read_json, request), OLD, owner=owner)


@router.post(
    "/system/federation/{serviceName}/presign",
    summary="For copies: an address for one result",
    responses={**shaped(SignedResult), **_ASKING},
    openapi_extra=body_of(Wanted),
)
async def sign_result(
    request: Request,
    serviceName: str,  # noqa: N803
    x_federation_key: Key = "",
) -> dict[str, Any]:
    with counted(request):
        wanted = await read_model(request, Wanted) if x_federation_key else Wanted()
        return await federation.sign_result(get_platform(request), x_federation_key, serviceName, wanted)


@router.post(
    "/system/federation/{serviceName}/token",
    summary="For copies in a mesh: an access token of the service's owner",
    responses={**shaped(CopyToken), **_ASKING},
)
async def token(
    request: Request,
    serviceName: str,  # noqa: N803
    x_federation_key: Key = "",
) -> dict[str, Any]:
    with counted(request):
        return await federation.token_for_copy(get_platform(request), x_federation_key, serviceName)
