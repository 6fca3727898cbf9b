"""Records of synchronous and exposed calls, written behind: at most `BEHIND` seconds after the answer.

`app.edge` makes an `Incoming` for every request and finishes it; the cores of calls say by `Incoming.of` which service
it reached. A crash may lose the records of that window; those of jobs are written with the jobs themselves.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from dataclasses import dataclass, field

from oscar import telemetry
from oscar.core.countries import Countries
from oscar.errors import OscarError
from oscar.model.request import Origin, RequestKind, RequestRecord
from oscar.model.user import Caller
from oscar.state.requests import Requests
from oscar.state.services import ServiceRow

log = telemetry.get("requests")

BEHIND = 0.2
"""Seconds that records may wait for company."""
_MOST = 50_000
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds."""
_PRUNE_S = 3600.0
_PAUSE_S = 1.0


@dataclass(slots=True)
class Incoming:
    """A request that is being served."""

    address: str = ""
    kind: RequestKind | None = None
    service: ServiceRow | None = None
    caller: Caller | None = None
    """None as long as nobody has logged in."""
    started: float = field(default_factory=time.time)
    repeated: bool = False
    """The answer of an earlier request was given again, or there was nothing to do: no request of its own."""

    def of(self, kind: RequestKind, service: ServiceRow) -> None:
        """Say which service it has reached."""
        self.kind, self.service = kind, service


class Timings:
    """Calls of services by kind and class of status, and how long they took."""

    def __init__(self) -> None:
        """Start with none."""
        self.counts = {kind: [0] * (len(BOUNDS) + 1) for kind in RequestKind}
        self.seconds = dict.fromkeys(RequestKind, 0.0)
        self.statuses = {kind: [0] * 6 for kind in RequestKind}

    def add(self, kind: RequestKind, status: int, seconds: float) -> None:
        """Note a call."""
        self.counts[kind][bisect_left(BOUNDS, seconds)] += 1
        self.seconds[kind] += seconds
        self.statuses[kind][min(status // 100, 5)] += 1


class Recorder:
    """Takes records and writes them in batches. `run` works until it is cancelled."""

    def __init__(self, requests: Requests, countries: Countries, *, keep: float) -> None:
        """Write to that table.

        Args:
            requests: the table.
            countries: from address to country.
            keep: seconds that records are kept.
        """
        self.timings = Timings()
        """Of all calls, for Prometheus."""
        self._requests = requests
        self._countries = countries
        self._keep = keep
        self._waiting: list[RequestRecord] = []
        self._news = asyncio.Event()

    def origin(self, incoming: Incoming) -> Origin:
        """Where a request came from."""
        entrance = incoming.caller.entrance.value if incoming.caller else ""
        return Origin(entrance, incoming.address, self._countries.of(incoming.address))

    def country_of(self, address: str) -> str:
        """Of an address; "" when that is not known."""
        return self._countries.of(address)

    def add(self, incoming: Incoming, *, status: int, seconds: float) -> None:
        """Take the record of an answered request; those that reached no service leave none."""
        service = incoming.service
        if service is None or incoming.kind is None or not self._keep:
            return
        if len(self._waiting) >= _MOST:
            # Only when the database has failed for minutes; memory is worth more than the records then.
            log.error("request records lost: the database does not take them", count=len(self._waiting))
            self._waiting.clear()
        self._waiting.append(
            RequestRecord(
                # As the line in the log has it.
                time=int(incoming.started * 1e6) // 1000,
                kind=incoming.kind,
                service_id=service.id,
                service=service.name,
                owner=service.owner,
                user=incoming.caller.id if incoming.caller else "",
                status=status,
                duration=int(seconds * 1e6),
                origin=self.origin(incoming),
            )
        )
        self._news.set()

    async def run(self) -> None:
        """Write and prune until cancelled; what waits then is written first."""
        pruned = float("-inf")
        try:
            while True:
                await self._news.wait()
                await asyncio.sleep(BEHIND)
                if not await self.flush():
                    await asyncio.sleep(_PAUSE_S)
                if time.monotonic() - pruned > _PRUNE_S:
                    pruned = time.monotonic()
                    await self._prune()
        finally:
            await asyncio.shield(self.flush())

    async def flush(self) -> bool:
        """Write what waits; False when the database does not take it now."""
        self._news.clear()
        batch, self._waiting = self._waiting, []
        if not batch:
            return True
        try:
            # SQLite takes 32,766 values a statement.
            for start in range(0, len(batch), 1000):
                await self._requests.add(batch[start : start + 1000])
        except OscarError as error:
            log.warning("request records wait", error=error.message, count=len(batch))
            self._waiting = [*batch, *self._waiting]
            self._news.set()
            return False
        return True

    async def _prune(self) -> None:
        try:
            removed = 1
            while removed:
                removed = await self._requests.prune(self._keep)
        except OscarError as error:
            log.warning("old request records stay", error=error.message)
