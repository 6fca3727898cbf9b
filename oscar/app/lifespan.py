"""From settings to a running platform, and back: Store, objects, engine, dispatcher.

Called by `api.build` as the application's lifespan. The Store is opened before the API listens, the engine is started
behind it; `start.Start` says how far this has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from oscar import telemetry
from oscar.api.exposed_ports import NodePorts
from oscar.app import engines
from oscar.app.engines import Engine, Ground
from oscar.app.figures import open_figures
from oscar.app.s3 import MIB, open_store
from oscar.app.start import Start
from oscar.app.stores import OwnStore, events_tokens, open_own_store
from oscar.compute.base import Compute
from oscar.core import metrics, peers, sweep, volumes
from oscar.core import services as service_rules
from oscar.core.countries import Countries
from oscar.core.delegation import Delegator
from oscar.core.dispatcher import Dispatcher
from oscar.core.executions import Executions
from oscar.core.leading import Leader
from oscar.core.members import Members
from oscar.core.platform import Figures, Platform, Signals
from oscar.core.propagation import Propagator
from oscar.core.rates import Rate
from oscar.core.requests import Recorder
from oscar.core.rescheduler import Rescheduler
from oscar.core.tokens import Tokens
from oscar.errors import EngineMissing, OscarError, Unavailable
from oscar.settings import Settings, kept_secret
from oscar.state.config import Configuration
from oscar.state.copies import Copies
from oscar.state.delegations import Delegations
from oscar.state.events import Events
from oscar.state.exposures import Exposures
from oscar.state.jobs import Jobs
from oscar.state.leases import Leases
from oscar.state.migrate import migrate
from oscar.state.payloads import Payloads, SharedPayloads
from oscar.state.presence import Presence
from oscar.state.quotas import Quotas
from oscar.state.refresh_tokens import RefreshTokens
from oscar.state.requests import Requests
from oscar.state.servers import Servers
from oscar.state.services import Services
from oscar.state.store import Store
from oscar.state.users import Users
from oscar.state.volumes import Volumes

if TYPE_CHECKING:
    from oscar.auth.oidc import Oidc

log = telemetry.get("app")

_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Opened:
    """What is there before the engine."""

    settings: Settings
    signals: Signals
    store: Store
    installation: str
    own: OwnStore
    id: str
    """Of this server among those on the Store."""
    place: str
    """This machine with this data folder."""
    presence: Presence


@contextlib.asynccontextmanager
async def lifespan(
    app: FastAPI, settings: Settings, signals: Signals, start: Start, compute: Compute | None
) -> AsyncIterator[None]:
    """The platform for as long as the application lives.

    Args:
        app: gets `app.state.platform` as soon as that is there.
        settings: with the public addresses filled in.
        signals: of the platform.
        start: is told how far the start has come, failures included: nothing is raised.
        compute: an engine other than this machine's (tests of the core).
    """
    async with contextlib.AsyncExitStack() as stack:
        with _told(start):
            opened = await _open(settings, signals, stack)
            start.stored.set()
            living = asyncio.create_task(_live(app, opened, start, compute), name="platform")
            stack.push_async_callback(_ended, living)
        yield


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _open(settings: Settings, signals: Signals, stack: contextlib.AsyncExitStack) -> Opened:
    store = open_store(settings)
    stack.push_async_callback(asyncio.to_thread, store.close)
    installation = await asyncio.to_thread(migrate, store)
    place = kept_secret(settings.data / "place", 8)
    await Servers(store).check(place if settings.store == "embedded" else None)
    loop = asyncio.get_running_loop()

    def told(news: str) -> None:
        # From its thread; a loop that is closed needs no news.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(signals.heard, news)

    presence = await asyncio.to_thread(Presence, store, told)
    stack.push_async_callback(asyncio.to_thread, presence.close)
    own = await open_own_store(settings, store, signals.work.set, stack)
    return Opened(
        settings, signals, store, installation, own, f"{installation}-{uuid.uuid4().hex[:8]}", place, presence
    )


@contextlib.contextmanager
def _told(start: Start) -> Iterator[None]:
    """Whatever goes wrong is told, not raised: who waits for the start ends the server."""
    try:
        yield
    except OscarError as error:
        start.failed(error)
    except Exception:
        log.exception("the server can't go on")
        start.failed(OscarError("The server can't go on; the reason is in the log above"))


async def _live(app: FastAPI, opened: Opened, start: Start, given: Compute | None) -> None:
    """Start the engine, then dispatch until cancelled."""
    with _told(start):
        async with contextlib.AsyncExitStack() as stack:
            engine = await _engine_in_time(opened, given, start, stack)
            oidc = _oidc(opened.settings)
            if oidc is not None:
                stack.push_async_callback(oidc.close)
            countries = Countries(opened.settings.country_database)
            figures = open_figures(opened.settings, opened.store, countries.of, engine.measures, stack)
            platform = _platform(opened, engine, oidc, countries, figures)

            def keep(work: Coroutine[Any, Any, None], name: str) -> None:
                stack.push_async_callback(_ended, asyncio.create_task(work, name=name))

            keep(platform.recorder.run(), "request records")
            keep(metrics.run(platform), "metrics")
            keep(platform.leader.run(), "leading")
            if platform.upkeep is not None:
                keep(sweep.keep(platform, platform.upkeep), "upkeep")
            if opened.presence.alone:
                # Before the first request: what is half-made now, nobody is making.
                await volumes.reconcile(platform)
            if not platform.single:
                keep(peers.run(platform), "peers")
            keep(NodePorts(platform).run(), "node ports")
            app.state.platform = platform
            start.done()
            stack.push_async_callback(platform.members.close)
            stack.push_async_callback(platform.tokens.close)
            keep(Propagator(platform).run(), "federation")
            await _dispatch(platform, alone=opened.presence.alone)


def _oidc(settings: Settings) -> Oidc | None:
    if not settings.oidc_enable:
        return None
    # Its libraries are megabytes, for those who ask for them.
    from oscar.auth.oidc import Oidc

    return Oidc.of(settings)


async def _engine_in_time(
    opened: Opened, given: Compute | None, start: Start, stack: contextlib.AsyncExitStack
) -> Engine:
    """The engine, as soon as what it needs answers: a MinIO and its server may be started at the same moment."""
    while True:
        async with contextlib.AsyncExitStack() as tried:
            try:
                engine = await _engine(opened, given, tried)
            except EngineMissing:
                raise
            except Unavailable as error:
                if start.awaits(error):
                    log.warning("waiting for what the engine needs", error=error.message)
            else:
                stack.push_async_exit(tried.pop_all())
                return engine
        await asyncio.sleep(_AGAIN_S)


async def _engine(opened: Opened, given: Compute | None, stack: contextlib.AsyncExitStack) -> Engine:
    if given is not None:
        await engines.begin(given, stack)
        return Engine(given)
    quotas = Quotas(opened.store, opened.settings.quota_defaults)
    ground = Ground(
        opened.settings,
        opened.installation,
        opened.own.objects,
        opened.own.provider_for,
        quotas.limits,
        opened.own.inside,
    )
    return await engines.start(ground, stack)


def _platform(
    opened: Opened,
    engine: Engine,
    oidc: Oidc | None,
    countries: Countries,
    figures: Figures,
) -> Platform:
    settings, store = opened.settings, opened.store
    refresh_tokens = RefreshTokens(store)
    return Platform(
        settings=settings,
        installation=opened.installation,
        services=Services(store),
        jobs=Jobs(store, settings.quota_defaults),
        users=Users(store),
        payloads=_payloads(opened),
        objects=opened.own.objects,
        buckets=opened.own.buckets,
        upkeep=opened.own.upkeep,
        events=Events(
            store,
            # What a store of its own reports; the lines of ours are written by its own process.
            on_jobs=Executions(as_json=settings.log_json, keep=settings.server_log / "uploads.log").uploads,
        ),
        events_tokens=events_tokens(settings, store.sealer),
        servers=Servers(store),
        place=opened.place if engine.bound else "",
        single=store.is_sqlite,
        leader=Leader(None if store.is_sqlite else Leases(store), opened.id),
        compute=engine.compute,
        invokes=engine.invokes,
        volumes=Volumes(store),
        holds=engine.holds,
        exposures=Exposures(store),
        exposes=engine.exposes,
        paces=engine.paces,
        withdraws=engine.withdraws,
        nodes=engine.nodes,
        keeps_quotas=engine.quotas,
        reconciles=engine.reconciles,
        quotas=Quotas(store, settings.quota_defaults),
        config=Configuration(store),
        store=opened.own.provider,
        url=settings.url,
        password=settings.admin_password(),
        recorder=Recorder(Requests(store), countries, keep=settings.requests_ttl),
        figures=figures,
        rate=Rate(settings.user_rate, settings.user_burst),
        failures=Rate(settings.login_failures / 60, settings.login_failures),
        copies=Copies(store),
        delegations=Delegations(store),
        refresh_tokens=refresh_tokens,
        tokens=Tokens(settings, refresh_tokens),
        members=Members(settings),
        oidc=oidc,
        signals=opened.signals,
    )


def _payloads(opened: Opened) -> Payloads:
    folder, reserve = opened.settings.data / "payloads", opened.settings.disk_reserve * MIB
    if opened.store.is_sqlite:
        return Payloads(folder, reserve=reserve)
    return SharedPayloads(opened.store, folder, reserve=reserve)


async def _dispatch(platform: Platform, *, alone: bool) -> None:
    settings = platform.settings
    while True:
        try:
            await asyncio.to_thread(platform.payloads.sweep, await platform.jobs.payload_refs())
            await service_rules.apply_all(platform)
            delegator = Delegator(platform, alone=alone)
            async with asyncio.TaskGroup() as group:
                dispatcher = Dispatcher(platform, alone=alone, delegator=delegator)
                group.create_task(dispatcher.run())
                group.create_task(delegator.run())
                if settings.rescheduler_enable:
                    looks = (delegator.reschedule, dispatcher.withdraw)
                    rescheduler = Rescheduler(*looks, interval=settings.rescheduler_interval)
                    group.create_task(rescheduler.run())
        except Exception:
            # A bug in one job's way must not stop all others: said loudly, begun again.
            log.exception("dispatcher ended")
            await asyncio.sleep(1.0)
            # Others may have come since the start.
            alone = platform.single
