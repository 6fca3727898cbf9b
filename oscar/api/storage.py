"""Routes of buckets: `/system/buckets`. Calls `core.storage`."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from oscar.api.answers import Bucket, BucketPage, Presigned, shaped
from oscar.api.deps import C, P, body_of, problems, read_model
from oscar.core import storage
from oscar.core.jobs import rfc3339

router = APIRouter(tags=["buckets"])


class BucketRequest(BaseModel):
    """A bucket as clients define it: `utils.MinIOBucket`."""

    bucket_name: str
    visibility: str = ""
    allowed_users: list[str] | None = None


class PresignRequest(BaseModel):
    """What a link shall allow: `buckets.PresignRequest`. Times in seconds."""

    object_key: str
    operation: str
    expires_in: int = 0
    expires: int = Field(default=0, description="As the Python client of OSCAR calls `expires_in`")
    content_type: str = ""
    extra_headers: dict[str, str] | None = None


@router.get(
    "/system/buckets", summary="List buckets", responses={**shaped(list[Bucket]), **problems(401, 403)}
)
async def list_buckets(p: P, caller: C) -> list[dict[str, Any]]:
    return await storage.list_all(p, caller)


@router.post(
    "/system/buckets",
    summary="Create bucket",
    status_code=201,
    responses=problems(400, 401, 403, 413, 507),
    openapi_extra=body_of(BucketRequest),
)
async def create_bucket(p: P, caller: C, request: Request) -> Response:
    bucket = await read_model(request, BucketRequest)
    await storage.create(
        p,
        caller,
        name=bucket.bucket_name,
        visibility=bucket.visibility,
        allowed_users=bucket.allowed_users or (),
    )
    return Response(status_code=201)


@router.put(
    "/system/buckets",
    summary="Update bucket",
    status_code=204,
    responses=problems(400, 401, 403, 404, 413),
    openapi_extra=body_of(BucketRequest),
)
async def update_bucket(p: P, caller: C, request: Request) -> Response:
    bucket = await read_model(request, BucketRequest)
    await storage.update(
        p,
        caller,
        name=bucket.bucket_name,
        visibility=bucket.visibility,
        allowed_users=bucket.allowed_users or (),
    )
    return Response(status_code=204)


@router.get(
    "/system/buckets/{bucket}",
    summary="Get bucket details",
    responses={**shaped(BucketPage), **problems(400, 401, 403, 404)},
)
async def read_bucket(
    p: P,
    caller: C,
    bucket: str,
    page: Annotated[str | None, Query(description="`next_page` of the page before")] = None,
) -> dict[str, Any]:
    return await storage.read(p, caller, bucket, page=page)


@router.delete(
    "/system/buckets/{bucket}",
    summary="Delete bucket",
    status_code=204,
    responses=problems(400, 401, 403, 404, 409),
)
async def delete_bucket(
    p: P, caller: C, bucket: str, force: Annotated[bool, Query(description="Also what it holds")] = False
) -> Response:
    await storage.delete(p, caller, bucket, force=force)
    return Response(status_code=204)


@router.post(
    "/system/buckets/{bucket}/presign",
    summary="Generate presigned URL",
    responses={**shaped(Presigned), **problems(400, 401, 403, 404, 413)},
    openapi_extra=body_of(PresignRequest),
)
async def presign(p: P, caller: C, bucket: str, request: Request) -> dict[str, Any]:
    wanted = await read_model(request, PresignRequest)
    method, url, seconds, headers = await storage.presign(
        p,
        caller,
        bucket,
        key=wanted.object_key,
        operation=wanted.operation,
        expires=wanted.expires_in or wanted.expires,
        content_type=wanted.content_type,
        extra_headers=wanted.extra_headers,
    )
    return {
        "url": url,
        "method": method,
        "object_key": wanted.object_key,
        "operation": wanted.operation,
        "headers": headers,
        "expires_at": rfc3339(int((time.time() + seconds) * 1000)),
    }
