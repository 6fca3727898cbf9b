"""Several servers: what one has made, changed or removed is so for the others; and what only one of them can tell.

Started by `app.lifespan`; `api.jobs` asks where a log is. With engines of single machines all is done on each, and a
job has the place where it runs. With an engine that all reach (Kubernetes) only what each has of its own follows.
"""

from __future__ import annotations

import asyncio
import contextlib

from oscar import telemetry
from oscar.compute.base import Follows
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
            if p.place:
                await p.servers.seen(p.place, p.settings.url_inside)
            await following.look()
        except OscarError as error:
            log.warning("peers", trouble=error.message)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SEEN_S):
                await p.signals.services.wait()
        p.signals.services.clear()


class Following:
    """Services as this server's engine has them: what another server made, changed or removed."""

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
        before, self._done = self._done, dict(now)
        if before is None:
            return
        for name in before.keys() - now.keys():
            owner, service, *_ = before[name]
            try:
                # Asked anew: one of that name may have been made meanwhile.
                if not await self._p.services.get(service, owner):
                    await self._leave(owner, service)
            except OscarError as error:
                log.warning("a removed service is still here", service=service, trouble=error.message)
                self._done[name] = before[name]
        for name, state in now.items():
            if before.get(name) == state:
                continue
            try:
                await self._follow(name, state[3])
            except OscarError as error:
                log.warning("a changed service is not followed yet", service=state[1], trouble=error.message)
                # To be tried at the next look.
                self._done.pop(name)

    async def _follow(self, service_id: str, row: ExposureRow) -> None:
        p = self._p
        known = await services.by_id(p, service_id)
        if known is None:
            return
        if isinstance(p.compute, Follows):
            await p.compute.follow(known.service)
        else:
            await p.compute.apply(known.service)
        await deployments.follow(p, known, row)

    async def _leave(self, owner: str, service: str) -> None:
        p = self._p
        if isinstance(p.compute, Follows):
            await p.compute.leave(owner, service)
        else:
            await p.compute.remove(owner, service)
        await deployments.leave(p, owner, service)
