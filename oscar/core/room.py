"""Whether there is room here for another job: the resource manager's view of the engine's capacity.

Called by `core.delegation` when the dispatcher has claimed a job of a service with replicas. The engine is asked once
in `RESOURCE_MANAGER_INTERVAL` seconds; what was started since then is counted off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from oscar.core.platform import Platform
from oscar.model.service import Service


class Room:
    """What is free here, as of the last look."""

    def __init__(self, platform: Platform, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Look at that platform's engine."""
        self._p = platform
        self._clock = clock
        self._looked: float | None = None
        self._lock = asyncio.Lock()
        self._cpu = 0
        self._memory = 0

    async def take(self, service: Service) -> bool:
        """Count a job of the service off when it fits; False when there is no room for it."""
        async with self._lock:
            now = self._clock()
            if self._looked is None or now - self._looked >= self._p.settings.resource_manager_interval:
                capacity = await self._p.compute.capacity()
                self._cpu, self._memory = capacity.cpu_free, capacity.memory_free
                self._looked = now
            if service.cpu_millicores > self._cpu or service.memory_bytes > self._memory:
                return False
            self._cpu -= service.cpu_millicores
            self._memory -= service.memory_bytes
            return True
