"""What every route needs of a request: the platform, the caller, the body.

Called by the other modules of `api`; calls `core.users.identify`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from oscar.core import users
from oscar.core.platform import Platform
from oscar.core.requests import Incoming
from oscar.errors import BadRequest, BodyTooLarge, Unauthorized
from oscar.model.documents import parse_json
from oscar.model.fields import invalid_field
from oscar.model.user import Caller

DEFINITION_LIMIT = 4 * 1024 * 1024
"""Bytes of a JSON document that describes something (a service, a bucket)."""


def get_platform(request: Request) -> Platform:
    """The platform that `app.py` put into the application."""
    return cast("Platform", request.app.state.platform)


def get_incoming(request: Request) -> Incoming:
    """What `app.edge` knows of the request, and will record of it."""
    return cast("Incoming", request.scope["oscar.incoming"])


async def get_caller(request: Request) -> Caller:
    """Who calls; refuses with 401 before anything else is looked at, and with 429 who calls too often."""
    p, incoming = get_platform(request), get_incoming(request)
    p.failures.check(incoming.address, "Too many wrong log-ins from this address")
    try:
        caller = incoming.caller = await users.identify(p, request.headers.get("authorization"))
    except Unauthorized as error:
        if error.guess:
            p.failures.take(incoming.address)
        raise
    p.rate.check(caller.id, "Too many requests of this user")
    p.rate.take(caller.id)
    return caller


@contextlib.contextmanager
def counted(request: Request) -> Iterator[None]:
    """Refuse who showed too many wrong keys, and count this one if it is wrong, as `get_caller` does."""
    p, incoming = get_platform(request), get_incoming(request)
    p.failures.check(incoming.address, "Too many wrong log-ins from this address")
    try:
        yield
    except Unauthorized as error:
        if error.guess:
            p.failures.take(incoming.address)
        raise


P = Annotated[Platform, Depends(get_platform)]
C = Annotated[Caller, Depends(get_caller)]
Owner = Annotated[str | None, Query(description="Chooses between services of one name under several owners")]


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes.

    Raises:
        BodyTooLarge: it is larger; as soon as that is known.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is larger than the limit of {limit} bytes",
        field="body",
        fix="upload it to the service's input bucket instead, or have OSCAR_MAX_BODY_MB raised",
    )


async def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        BadRequest: it is none; says where.
    """
    body = await read_body(request, DEFINITION_LIMIT)
    try:
        value = parse_json(body)
    except BadRequest as error:
        fix = error.fix or "send a JSON object"
        raise BadRequest(error.message, field="body", fix=fix) from None
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object", field="body", fix="send a JSON object")
    return value


M = TypeVar("M", bound=BaseModel)


async def read_model(request: Request, model: type[M]) -> M:
    """The body as a model.

    Not by a parameter of the route: the framework reads that before it asks who calls, however large it is.

    Raises:
        BadRequest: it is no JSON object; InvalidField: a field is wrong.
    """
    try:
        return model.model_validate(await read_json(request))
    except ValidationError as error:
        raise invalid_field(error) from None


SCHEMA = "#/components/schemas/{model}"
"""Where the OpenAPI document has the schema of a class."""


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """The body of a route for the OpenAPI document, in which `app.api.BODIES` stand."""
    content = {"application/json": {"schema": {"$ref": SCHEMA.format(model=model.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def warned(warnings: list[str], status: int) -> JSONResponse:
    """An answer with warnings for the author of a definition."""
    return JSONResponse({"warnings": warnings}, status_code=status)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error answers of a route, for the OpenAPI document; those that any route may give are added."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        status: {"description": _WORDS[status], "content": content}
        for status in sorted({*statuses, 429, 500, 503})
    }


_WORDS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    413: "Body Too Large",
    429: "Too Many Requests",
    500: "Internal Server Error",
    501: "Not Enabled",
    502: "The engine, a storage provider or a member of a federation failed",
    503: "Service Unavailable",
    504: "Timeout",
    507: "Disk Full",
}
