"""Several servers, each with an engine of its own machine: which there are, and what only one of them can tell.

Started by `app.lifespan` when the engine is a machine; `api.jobs` asks where a log is. With an engine that all servers
reach (Kubernetes) no job has a place, and there is nothing to ask.
"""

from __future__ import annotations

import asyncio
import contextlib

from oscar import telemetry
from oscar.core import deployments, services
from oscar.core.platform import Platform
from oscar.errors import OscarError, Unavailable
from oscar.model.job import Job
from oscar.state.exposures import ExposureRow

log = telemetry.get("peers")

FORWARDED = "x-oscar-forwarded"
"""Header of a request that one of our servers passes on: it is passed on once."""
_SEEN_S = 10.0


async def elsewhere(p: Platform, job: Job) -> str | None:
    """The address of the server that has the job's log; None when it is here, or nowhere.

    Raises:
        Unavailable: that server is away, and the log with it.
    """
    if p.is_place_of(job):
        return None
    url = await p.servers.url_of(job.place)
    if url is None or job.place not in await p.servers.others(p.place):
        raise Unavailable(
            "The job ran on another server, which is away; its log is there",
            fix="try again when that server is back",
            headers={"Retry-After": "30"},
        )
    return url


async def run(p: Platform) -> None:
    """Say that this server lives, and do here what other servers have changed; until cancelled."""
    following = Following(p)
    while True:
        try:
            await p.servers.seen(p.place, p.settings.url_inside)
            await following.look()
        except OscarError as error:
            log.warning("peers", trouble=error.message)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SEEN_S):
                await p.signals.services.wait()
        p.signals.services.clear()


class Following:
    """Services as this machine's engine has them: what another server made, changed or removed is done here too."""

    def __init__(self, p: Platform) -> None:
        """Begin with what the start has applied."""
        self._p = p
        self._done: dict[str, tuple[str, str, int, ExposureRow]] | None = None

    async def look(self) -> None:
        """Compare and do what differs."""
        rows = {row.id: row for row in await self._p.services.rows()}
        exposures = await self._p.exposures.all()
        now = {
            name: (row.owner, row.name, row.generation, exposures.get(name, ExposureRow()))
            for name, row in rows.items()
        }
        before, self._done = self._done, now
        if before is None:
            return
        for name in before.keys() - now.keys():
            owner, service, *_ = before[name]
            if any((row.owner, row.name) == (owner, service) for row in rows.values()):
                continue
            await self._p.compute.remove(owner, service)
            await deployments.remove(self._p, owner, service)
        for name, state in now.items():
            if before.get(name) == state:
                continue
            known = await services.by_id(self._p, name)
            if known is None:
                continue
            await self._p.compute.apply(known.service)
            await deployments.apply(self._p, known, state[3])
