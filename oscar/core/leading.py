"""Which of several servers on one Store does what one is enough for: sweeps, callbacks, upkeep.

Made by `app.lifespan`. Being the one saves work and doubled calls; nothing depends on it, because all that it does may
be done twice. On SQLite there is one server and nothing to ask.
"""

from __future__ import annotations

import asyncio
import contextlib

from oscar import telemetry
from oscar.errors import OscarError
from oscar.state.leases import Leases

log = telemetry.get("leading")

_NAME = "leader"
_LEASE_S = 30.0
_RENEW_S = 10.0


class Leader:
    """Whether this server is the one."""

    def __init__(self, leases: Leases | None = None, holder: str = "") -> None:
        """Be it always without `leases`; else as long as `run` holds the lease in the name of `holder`."""
        self._leases = leases
        self._holder = holder
        self._until = 0.0
        self.changed = asyncio.Event()
        """This server has become the one."""
        if leases is None:
            self.changed.set()

    @property
    def mine(self) -> bool:
        """Whether it is so now."""
        return self._leases is None or asyncio.get_running_loop().time() < self._until

    async def run(self) -> None:
        """Hold the lease, or wait for it, until cancelled; then give it back."""
        if self._leases is None:
            return
        loop = asyncio.get_running_loop()
        try:
            while True:
                before = loop.time()
                try:
                    if await self._leases.take(_NAME, self._holder, _LEASE_S):
                        if not self.mine:
                            log.info("this server leads", holder=self._holder)
                        # By the time before it was asked: never longer than the lease itself.
                        self._until = before + _LEASE_S
                        self.changed.set()
                except OscarError as error:
                    log.warning("leading is not decided", error=error.message)
                await asyncio.sleep(_RENEW_S)
        finally:
            if self.mine:
                self._until = 0.0
                with contextlib.suppress(OscarError):
                    await asyncio.shield(self._leases.give_back(_NAME, self._holder))
