"""The rescheduler: jobs of services with replicas that wait for longer than their threshold go to a member.

Started by `app.lifespan` when `RESCHEDULER_ENABLE` is set; calls `core.delegation` and `core.dispatcher`. A job is
taken by one statement that only a waiting one passes, so a job that starts meanwhile stays here; one that the engine
has already must be given back by it first. Jobs that wait for a quota wait too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from oscar import telemetry
from oscar.errors import OscarError

log = telemetry.get("rescheduler")


class Rescheduler:
    """Looks at the queue every so many seconds, whatever the last look came to. `run` works until it is cancelled."""

    def __init__(self, *looks: Callable[[], Awaitable[object]], interval: float) -> None:
        """Take those looks, in their order: the delegator's at the queue, the dispatcher's at the engine."""
        self._looks = looks
        self._interval = interval

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            # First of all: an error must never make a loop without a pause.
            await asyncio.sleep(self._interval)
            for look in self._looks:
                try:
                    await look()
                except OscarError as error:
                    log.warning("waiting jobs could not be looked at", error=error.message)
