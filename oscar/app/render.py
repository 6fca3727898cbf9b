"""From our errors to HTTP answers: the one place that does it (the S3 protocol has its own XML form).

Called by FastAPI for every exception of a route.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from oscar import telemetry
from oscar.errors import BadRequest, OscarError

log = telemetry.get("api")

CLIENT_GONE = 499
"""Status in the request log, as nginx writes it, when the client hung up before its answer."""

ERROR_SCHEMA: dict[str, Any] = {
    "title": "Error",
    "type": "object",
    "required": ["code", "message"],
    "properties": {
        "code": {"type": "string", "description": "Stable name of the error"},
        "message": {"type": "string", "description": "What is wrong"},
        "field": {"type": "string", "description": "The field, parameter or setting at fault"},
        "fix": {"type": "string", "description": "What can be done about it"},
        "request_id": {"type": "string"},
    },
}


def install(app: FastAPI) -> None:
    """Have the application render all errors here."""
    app.add_exception_handler(OscarError, _own)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _routing)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _bug)


def answer(request: Request, error: Exception) -> Response:
    """What the handlers make of an error that a route's function raised."""
    if isinstance(error, OscarError):
        return _own(request, error)
    return _gone(request, error) if isinstance(error, ClientDisconnect) else _bug(request, error)


def render(error: OscarError, request: Request) -> JSONResponse:
    """An error of ours as JSON."""
    body = error.as_dict()
    if request_id := request.scope.get("oscar.request_id"):
        body["request_id"] = request_id
    return JSONResponse(body, status_code=error.status, headers=error.headers or None)


def _own(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OscarError)  # noqa: S101 - as registered
    if error.status >= 500:  # noqa: PLR2004
        log.warning("request failed", path=request.url.path, code=error.code, error=error.message)
    return render(error, request)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as registered
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in {"body", "query", "path", "header"}]
    return render(BadRequest(str(first["msg"]), field=".".join(place) or "body"), request)


def _routing(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - as registered
    wrapped = OscarError(str(error.detail), headers=dict(error.headers or {}))
    wrapped.status = error.status_code
    wrapped.code = {404: "no_such_route", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return render(wrapped, request)


def _gone(_request: Request, _error: Exception) -> Response:
    # Nobody reads it; the request log does not call it a fault of ours.
    return Response(status_code=CLIENT_GONE)


def _bug(request: Request, error: Exception) -> JSONResponse:
    log.error("bug", path=request.url.path, exc_info=error)
    return render(OscarError(), request)
