"""The API's process: settings -> FastAPI application, with the platform behind it.

Called by `serve` and by tests. `lifespan` makes the platform; until it is there, requests wait at the `Gate`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema

import oscar
from oscar.api import (
    events,
    exposed,
    federation,
    jobs,
    metrics,
    quotas,
    runs,
    services,
    storage,
    system,
    volumes,
)
from oscar.api.deps import SCHEMA
from oscar.api.exposed_proxy import ExposedProxy
from oscar.app.edge import App, Edge
from oscar.app.front import Front, short
from oscar.app.lifespan import lifespan
from oscar.app.render import ERROR_SCHEMA, install, render
from oscar.app.start import Gate, Start
from oscar.compute.base import Compute
from oscar.core.executions import Executions
from oscar.core.federation import Wanted
from oscar.core.platform import Signals
from oscar.model.service import Service
from oscar.settings import Settings

BODIES = (
    Service,
    storage.BucketRequest,
    storage.PresignRequest,
    volumes.VolumeRequest,
    federation.FederationRequest,
    federation.ReplicasRequest,
    Wanted,
)
"""What routes read themselves. Their schemas are made when the document is asked for, not at each start."""


def build(
    settings: Settings, *, compute: Compute | None = None, start: Start | None = None
) -> tuple[App, asyncio.Event]:
    """Put the application together, inside the event loop that will run it.

    Args:
        settings: with the public addresses filled in.
        compute: an engine other than this machine's (tests of the core).
        start: is told how far the start has come; its failures are nowhere else.

    Returns:
        The application, and the event that wakes its dispatcher.
    """
    signals = Signals()
    begun = start or Start()
    app = FastAPIOffline(
        title="OSCAR API",
        version=oscar.__version__,
        lifespan=lambda application: lifespan(application, settings, signals, begun, compute),
        redirect_slashes=False,
        static_url="/docs-assets",
    )
    for router in (
        services.router,
        exposed.router,
        runs.router,
        jobs.router,
        storage.router,
        volumes.router,
        quotas.router,
        federation.router,
        metrics.router,
        events.router,
        system.router,
    ):
        # Not by `include_router`, which makes each route a second time, at the first request.
        app.router.routes.extend(router.routes)
    install(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    executions = Executions(as_json=settings.log_json, keep=settings.server_log / "requests.log")
    front = Front(app, short(runs.router, runs.run_service), short(jobs.router, jobs.submit_job))
    return Edge(Gate(ExposedProxy(front, app, render), begun), executions), signals.work


def _said_once(answer: dict[str, Any]) -> None:
    """Leave of an answer what we say of it: FastAPI adds what it makes of a function's type.

    That is an empty schema for a `Response`, and an object of anything for a dictionary.
    """
    content = answer.get("content", {})
    for kind, body in list(content.items()):
        schema = body.get("schema", {})
        if not schema:
            del content[kind]
        elif "$ref" in schema:
            body["schema"] = {"$ref": schema["$ref"]}
        elif "$ref" in schema.get("items", {}):
            body["schema"] = {"type": "array", "items": {"$ref": schema["items"]["$ref"]}}
    if not content:
        answer.pop("content", None)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description="Services, jobs, synchronous calls and buckets. Errors are JSON with code, message and fix.",
            routes=app.routes,
        )
        components = document.setdefault("components", {})
        components.setdefault("schemas", {})["Error"] = ERROR_SCHEMA
        _, bodies = models_json_schema([(body, "validation") for body in BODIES], ref_template=SCHEMA)
        for name, schema in bodies["$defs"].items():
            components["schemas"].setdefault(name, schema)
        components["securitySchemes"] = {
            "BasicAuth": {"type": "http", "scheme": "basic"},
            "BearerAuth": {
                "type": "http",
                "scheme": "bearer",
                "description": "An OIDC access token, or a service's",
            },
        }
        for path, item in document["paths"].items():
            for operation in item.values():
                # Malformed input is 400 here, with an error of our form.
                operation["responses"].pop("422", None)
                for answer in operation["responses"].values():
                    _said_once(answer)
                if path not in {"/health", "/ready"}:
                    operation["security"] = [{"BasicAuth": []}, {"BearerAuth": []}]
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
