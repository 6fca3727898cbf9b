"""The crews of all services: found by owner and name, renewed, ended with a service or with the server.

Called by the engines' implementations of `Invokes` (`compute.local.workers`, `compute.kubernetes.sync`); calls `crew`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from typing import Generic

from oscar import telemetry
from oscar.compute.crew import STOP_LIMIT, Crew, CrewStats, Limits, Yard
from oscar.compute.hands import K, W
from oscar.compute.pool import Bounds
from oscar.errors import ServiceNotFound, Unavailable
from oscar.model.service import Service

PREFIX = "w-"
PATIENCE = 10.0
"""Seconds that an answer waits for the end of workers which it tells of; it comes about in any case."""


def bounds_of(service: Service, limits: Limits, cores: int) -> Bounds:
    """What the service's workers are held to."""
    return Bounds(
        least=service.synchronous.min_scale,
        most=service.synchronous.max_scale,
        queue=limits.queue,
        wait=limits.wait,
        idle=limits.idle,
        patience=limits.patience,
        doubling=limits.doubling,
        cores=cores,
        by_user=service.isolation_level == "USER",
    )


class Crews(Generic[K, W]):
    """All crews of one yard."""

    def __init__(self, yard: Yard[K, W]) -> None:
        self.yard = yard
        self._log = telemetry.get("workers")
        self._stopping = False
        self._serving = 0
        self._quiet = asyncio.Event()

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """A request is under way.

        Raises:
            Unavailable: no more are taken.
        """
        if self._stopping:
            raise Unavailable("the server is stopping", headers={"Retry-After": "5"})
        self._serving += 1
        try:
            yield
        finally:
            self._serving -= 1
            if self._serving == 0:
                self._quiet.set()

    def get(self, service: Service) -> Crew[K, W] | None:
        """The service's crew, if there is one."""
        return self.yard.crews.get((service.owner, service.name))

    def renew(self, service: Service, kit: K) -> Crew[K, W]:
        """The service's crew, brought to its definition; made when there is none."""
        key = service.owner, service.name
        bounds = bounds_of(service, self.yard.limits, self.yard.cores)
        crew = self.yard.crews.get(key)
        if crew is None:
            digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:10]
            crew = Crew(self.yard, *key, f"{PREFIX}{digest}", kit, bounds)
            self.yard.crews[key] = crew
        crew.renew(kit, bounds)
        return crew

    async def remove(self, owner: str, name: str) -> None:
        """End the service's workers; requests under way fail. Silent if there are none."""
        # Out of the list first: a service of that name that is made meanwhile has workers of its own.
        crew = self.yard.crews.pop((owner, name), None)
        if crew is None:
            return
        gone = ServiceNotFound("the service was deleted while the request was under way")
        end = self.yard.spawn(crew.close(gone), f"end of the workers of {name}")
        _, late = await asyncio.wait({end}, timeout=PATIENCE)
        if late:
            self._log.warning("the workers of a deleted service are still being ended", service=name)

    def living(self) -> list[tuple[str, Crew[K, W]]]:
        """The name of each worker that is there now, with its crew."""
        return [(name, crew) for crew in self.yard.crews.values() for name in crew.names()]

    def stats(self) -> list[CrewStats]:
        """How the workers of each service do."""
        return [crew.stats() for crew in self.yard.crews.values()]

    async def stop(self) -> None:
        """Take no more requests, let those under way end, then end all workers."""
        self._stopping = True
        closing = Unavailable("the server is stopping", headers={"Retry-After": "5"})
        for crew in self.yard.crews.values():
            crew.refuse_waiting(closing)
        if self._serving:
            self._quiet.clear()
            try:
                async with asyncio.timeout(self.yard.limits.drain):
                    await self._quiet.wait()
            except TimeoutError:
                pass  # their time is up: they get the error
        ends = [asyncio.ensure_future(crew.close(closing)) for crew in self.yard.crews.values()]
        ends.append(asyncio.ensure_future(self.yard.settled()))
        _, stuck = await asyncio.wait(ends, timeout=STOP_LIMIT)
        for end in stuck:
            # The next start of the server removes what is left.
            self._log.error("workers can't be ended", seconds=STOP_LIMIT)
            end.cancel()
        self.yard.crews.clear()
