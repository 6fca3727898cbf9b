"""From settings to an engine with its abilities.

Called by `lifespan` once the Store is open; knows each engine by name and imports only the one that is used. The parts
of an engine that begin and end are begun and ended here, by the stack of the caller.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from oscar import telemetry
from oscar.compute.base import Compute, Exposes, HasVolumes, Invokes
from oscar.errors import EngineMissing
from oscar.model.storage import MinIOProvider
from oscar.objects.base import ObjectStore
from oscar.settings import Settings

log = telemetry.get("app")


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine; abilities that it lacks are None."""

    compute: Compute
    invokes: Invokes | None = None
    holds: HasVolumes | None = None
    exposes: Exposes | None = None


@dataclass(frozen=True, slots=True)
class Ground:
    """What an engine stands on."""

    settings: Settings
    installation: str
    objects: ObjectStore
    """The platform's own store, with all rights."""
    own_store: Callable[[str], Awaitable[MinIOProvider]]
    """By a user's name: the own store for programs beside this server, with his keys."""


async def start(ground: Ground, stack: contextlib.AsyncExitStack) -> Engine:
    """The engine that the settings ask for, started; the stack stops it.

    Args:
        ground: what it stands on.
        stack: of the caller.

    Raises:
        EngineMissing: there is none; naming what is missing.
    """
    return await _local(ground, stack)


async def begin(compute: Compute, stack: contextlib.AsyncExitStack) -> None:
    """Start an engine; the stack stops it."""
    stack.push_async_callback(compute.stop)
    await compute.start()
    log.info("engine", engine=compute.describe())


async def _local(ground: Ground, stack: contextlib.AsyncExitStack) -> Engine:
    """This machine as an engine."""
    from oscar.compute.crew import Limits
    from oscar.compute.local.backend import LocalCompute
    from oscar.compute.local.detect import Place, choose, recheck
    from oscar.compute.local.exposed import LocalExposes

    settings = ground.settings
    place = Place(settings.data, ground.installation, unsafe=settings.unsafe_process)
    engine = await choose(settings.engine, place)
    if settings.oidc_enable and engine.name == "process":
        await engine.close()
        raise EngineMissing(
            "Processes are for one administrator: with OIDC on, functions run in containers",
            field="OIDC_ENABLE",
            fix="install podman or docker (`oscar doctor` says what is missing), or turn OIDC off",
        )
    local = LocalCompute(
        engine,
        settings.data,
        ground.objects,
        chosen=settings.engine == "process",
        recheck=lambda: recheck(engine, place),
        images=settings.volume_images,
        own_store=lambda service: ground.own_store(service.owner),
        limits=Limits(
            queue=settings.worker_queue,
            wait=settings.worker_wait,
            idle=settings.worker_idle,
            drain=settings.drain,
            workers=settings.worker_limit,
        ),
    )
    await begin(local, stack)
    exposes = LocalExposes(
        local.engine, settings.data, drain=settings.exposed_drain, attachments=local.attachments
    )
    stack.push_async_callback(exposes.stop)
    await exposes.start()
    return Engine(compute=local, invokes=local, holds=local, exposes=exposes)
