"""The API's process: settings -> platform -> FastAPI application.

Called by `serve` and by tests. The lifespan starts engine and dispatcher and stops them again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline

import oscar
from oscar import telemetry
from oscar.api import jobs, runs, services, storage, system
from oscar.app.edge import App, Edge
from oscar.app.render import ERROR_SCHEMA, install
from oscar.app.s3 import open_blobs, open_objects, open_store
from oscar.compute.base import Compute
from oscar.compute.local.backend import LocalCompute
from oscar.compute.local.crew import Limits
from oscar.compute.local.detect import Place, choose, recheck
from oscar.core import services as service_rules
from oscar.core.dispatcher import Dispatcher
from oscar.core.platform import Platform, Signals
from oscar.model.object import Credential
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.model.user import ADMIN
from oscar.objects.embedded.store import EmbeddedStore
from oscar.settings import Settings, kept_secret
from oscar.state.jobs import Jobs
from oscar.state.migrate import migrate
from oscar.state.payloads import Payloads
from oscar.state.services import Services
from oscar.state.users import Users

log = telemetry.get("app")


def build(settings: Settings, *, compute: Compute | None = None) -> tuple[App, asyncio.Event]:
    """Put the application together, inside the event loop that will run it.

    Args:
        settings: with the public addresses filled in.
        compute: an engine other than this machine's (tests of the core).

    Returns:
        The application, and the event that wakes its dispatcher.
    """
    signals = Signals()
    app = FastAPIOffline(
        title="OSCAR API",
        version=oscar.__version__,
        lifespan=lambda application: _lifespan(application, settings, signals, compute),
        redirect_slashes=False,
        static_url="/docs-assets",
    )
    for router in (services.router, runs.router, jobs.router, storage.router, system.router):
        app.include_router(router)
    install(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return Edge(app), signals.work


@contextlib.asynccontextmanager
async def _lifespan(
    app: FastAPI, settings: Settings, signals: Signals, compute: Compute | None
) -> AsyncIterator[None]:
    store = open_store(settings)
    installation = await asyncio.to_thread(migrate, store)
    index = open_objects(settings, store)
    await index.put_credential(_admin_keys(settings))
    blobs = open_blobs(settings)
    objects = EmbeddedStore(
        index,
        blobs,
        endpoint=settings.minio_endpoint,
        region=settings.minio_region,
        on_commit=signals.work.set,
    )
    local: LocalCompute | None = None
    if compute is None:
        place = Place(settings.data, installation, unsafe=settings.unsafe_process)
        engine = await choose(settings.engine, place)
        local = LocalCompute(
            engine,
            settings.data,
            objects,
            chosen=settings.engine == "process",
            recheck=lambda: recheck(engine, place),
            limits=Limits(
                queue=settings.worker_queue,
                wait=settings.worker_wait,
                idle=settings.worker_idle,
                drain=settings.drain,
                workers=settings.worker_limit,
            ),
        )
        compute = local
    platform = Platform(
        settings=settings,
        installation=installation,
        services=Services(store),
        jobs=Jobs(store),
        users=Users(store),
        payloads=Payloads(settings.data / "payloads"),
        objects=objects,
        buckets=objects,
        compute=compute,
        invokes=local,
        store=MinIOProvider(
            endpoint=settings.minio_endpoint, region=settings.minio_region, verify=settings.minio_tls_verify
        ),
        url=settings.url,
        password=settings.admin_password(),
        signals=signals,
    )
    app.state.platform = platform
    await compute.start()
    log.info("engine", engine=compute.describe())
    work = asyncio.create_task(_work(platform, alone=store.is_sqlite), name="dispatcher")
    try:
        yield
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        await compute.stop()
        blobs.close()
        await asyncio.to_thread(store.close)


async def _work(platform: Platform, *, alone: bool) -> None:
    await asyncio.to_thread(platform.payloads.sweep, await platform.jobs.payload_refs())
    await service_rules.apply_all(platform)
    while True:
        try:
            await Dispatcher(platform, alone=alone).run()
        except Exception:
            # A bug in one job's way must not stop all others: said loudly, begun again.
            log.exception("dispatcher ended")
            await asyncio.sleep(1.0)


def _admin_keys(settings: Settings) -> Credential:
    return Credential(
        settings.minio_access_key or "oscar-admin",
        settings.minio_secret_key or kept_secret(settings.data / "s3-secret", 20),
        ADMIN,
        admin=True,
    )


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
        components["schemas"].setdefault(
            "Service", Service.model_json_schema(ref_template="#/components/schemas/{model}")
        )
        components["securitySchemes"] = {
            "BasicAuth": {"type": "http", "scheme": "basic"},
            "BearerAuth": {"type": "http", "scheme": "bearer", "description": "A service's token"},
        }
        for path, item in document["paths"].items():
            for operation in item.values():
                # Malformed input is 400 here, with an error of our form.
                operation["responses"].pop("422", None)
                if path != "/health":
                    operation["security"] = [{"BasicAuth": []}, {"BearerAuth": []}]
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
