"""One synchronous call in the folder of a warm worker: what happens before and after the script.

Called by whoever is beside the worker: `compute.local.workers` on this machine, `serve` in a pod. Calls `plan`, `stage`
and `answer`, as jobs do.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from oscar.errors import StorageError
from oscar.model.producer import Producer
from oscar.model.service import Service
from oscar.supervisor.answer import whole_answer
from oscar.supervisor.plan import Mode, Plan, plan, service_environment
from oscar.supervisor.providers import Providers
from oscar.supervisor.stage import stage_in, stage_out
from oscar.supervisor.warm import Reply
from oscar.supervisor.workfolder import CallFolder

SMALL = 256 * 1024
"""Bytes of a body up to which it is decoded and written without a thread: a hop costs more."""


@dataclass(slots=True)
class Call:
    """A call, from its input to its answer; `begin`, then the script, then `end`."""

    folder: CallFolder
    service: Service = field(repr=False)
    payload: bytes | Path = field(repr=False)
    id: str
    hops: int
    trace: str
    environment: Mapping[str, str] = field(repr=False)
    host: str
    """Becomes RESOURCE_ID."""
    stores: Callable[[], Providers]
    """Opens the stores, with the rights of the call's user."""
    restore: bool = False
    """Whether files that the image's user wrote must be made ours before they can be read."""
    said: list[str] = field(default_factory=list)
    """Lines of the supervisor: no part of an answer."""
    _plan: Plan | None = None

    async def begin(self) -> dict[str, str]:
        """Put the input where the script finds it; the variables of this call.

        Raises:
            BadRequest: the payload can't be decoded, or names what the service may not read.
            OscarError: an input can't be had.
        """
        if isinstance(self.payload, bytes) and len(self.payload) <= SMALL:
            planned = self._furnish()
        else:
            planned = await asyncio.to_thread(self._furnish)
        self._plan = planned
        if planned.moves.downloads:
            stores = self.stores()
            try:
                await stage_in(planned.moves._replace(files=()), self.folder.work, stores, self.said.append)
            finally:
                await stores.close()
        # Not those of the service, whatever they are by now: the worker has them as they were when it started.
        known = service_environment(self.service)
        return {name: value for name, value in planned.environment.items() if known.get(name) != value}

    def _furnish(self) -> Plan:
        payload = self.payload if isinstance(self.payload, bytes) else self.payload.read_bytes()
        planned = plan(
            self.service,
            payload,
            job_id=self.id,
            work=self.folder.work_inside,
            mode=Mode.SYNC,
            environment=self.environment,
            resource_id=self.host,
        )
        for file in planned.moves.files:
            self.folder.put(file.path, file.content)
        return planned

    async def end(self, reply: Reply) -> bytes:
        """Make the answer of what the script left, and store it where the service says so."""
        if reply.code != 0 or not self.folder.has_output():
            return reply.log
        assert self._plan is not None  # noqa: S101 - it has begun
        try:
            return await self._collect(self._plan, reply)
        except StorageError:
            if not self.restore:
                raise
            # The user of the image may have written what we must not read.
            await self.folder.own(self.folder.work)
            return await self._collect(self._plan, reply)

    async def _collect(self, planned: Plan, reply: Reply) -> bytes:
        """The answer's body from the output folder, which is also stored where the service says so."""
        small = self.folder.only_small_output(SMALL) if planned.answers else None
        if small is not None:
            body = base64.b64encode(small)
        else:
            body = await whole_answer(planned, self.folder.work, reply.log, warn=self.said.append)
        if planned.moves.outputs:
            stores = self.stores()
            try:
                producer = Producer.of(self.id, self.hops, self.trace)
                await stage_out(planned.moves, self.folder.work, stores, self.said.append, producer)
            finally:
                await stores.close()
        return body
