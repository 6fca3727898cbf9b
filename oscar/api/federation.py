"""Routes of federations: `/system/federation`, the older `/system/replicas`, and what copies ask their origin for.

Calls `core.federation`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel

from oscar.api.answers import CopyToken, Members, Replicas, SignedResult, shaped
from oscar.api.deps import C, Owner, P, body_of, counted, get_platform, problems, read_json, read_model
from oscar.core import federation
from oscar.core.federation import NEW, OLD, Form, Wanted
from oscar.model.federation import Cluster, Replica
from oscar.model.storage import StorageProviders
from oscar.model.trace import place_in

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


Key = Annotated[str, Header(alias="X-Federation-Key", description="The copy's key", max_length=200)]


Change = Callable[..., Awaitable[dict[str, Any]]]


def _family(path: str, form: Form, *, shape: type[BaseModel], body: type[BaseModel], many: str) -> None:
    """The routes of one of the two: they differ in their words."""

    async def read(p: P, caller: C, serviceName: str, owner: Owner = None) -> dict[str, Any]:  # noqa: N803
        return await federation.read(p, caller, serviceName, form, owner=owner)

    def changing(change: Change) -> Change:
        async def route(
            p: P,
            caller: C,
            request: Request,
            serviceName: str,  # noqa: N803
            owner: Owner = None,
        ) -> dict[str, Any]:
            return await change(p, caller, serviceName, partial(read_json, request), form, owner=owner)

        return route

    name = form.members
    router.add_api_route(
        path,
        read,
        methods=["GET"],
        name=f"read_{name}",
        summary=f"Get {many} for a service",
        responses={**shaped(shape), **_READING},
    )
    for method, change, summary in (
        ("POST", federation.add, f"Add {many} to a service"),
        ("PUT", federation.update, f"Update {many} in a service"),
        ("DELETE", federation.remove, f"Delete {many} from a service"),
    ):
        router.add_api_route(
            path,
            changing(change),
            methods=[method],
            name=f"{change.__name__}_{name}",
            summary=summary,
            responses={**shaped(shape), **_CHANGING},
            openapi_extra=body_of(body),
        )


_family(
    "/system/federation/{serviceName}",
    NEW,
    shape=Members,
    body=FederationRequest,
    many="federation members",
)
_family("/system/replicas/{serviceName}", OLD, shape=Replicas, body=ReplicasRequest, many="replicas")


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
        trace = place_in(request.scope["headers"])
        p = get_platform(request)
        return await federation.sign_result(p, x_federation_key, serviceName, wanted, trace=trace)


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
