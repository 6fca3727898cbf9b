"""Synchronous calls on this machine: implements `Invokes` by warm workers in sandboxes.

Made by `compute.local.backend`. Finds the service's `Crew`, has a worker run the script once, and makes the
answer; `supervisor.call` says what happens around the script.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from oscar import telemetry
from oscar.compute.base import Answer, Metered, Run, Staying
from oscar.compute.crew import Crew, CrewStats, Limits, Yard
from oscar.compute.crews import PATIENCE, PREFIX, Crews
from oscar.compute.local.attachments import Attachments
from oscar.compute.local.engine import Engine, Mount
from oscar.compute.local.single import Single
from oscar.compute.local.worker import Worker
from oscar.compute.local.workfolder import Kit, remove_folder
from oscar.errors import InvocationTimeout, OscarError
from oscar.model.quota import Resources
from oscar.model.service import Service
from oscar.supervisor.call import Call
from oscar.supervisor.plan import function_config, service_environment
from oscar.supervisor.providers import Providers

Sandboxed = Worker | Single


@dataclass(frozen=True, slots=True)
class _Attaching:
    """Implements `Attaching` for one service."""

    attachments: Attachments
    service: Service = field(repr=False)

    async def attach(self, holder: str) -> tuple[tuple[Mount, ...], dict[str, str]]:
        return await self.attachments.attach(holder, self.service)

    async def detach(self, holder: str) -> None:
        await self.attachments.detach(holder)


def kit_of(service: Service, attachments: Attachments | None = None) -> Kit:
    """What a worker of the service is made of."""
    attaching = (
        _Attaching(attachments, service) if attachments and (service.volume or service.mount) else None
    )
    mounted = service.provider(service.mount.provider) if service.mount else None
    stamp = hashlib.sha256(mounted.model_dump_json().encode()).hexdigest() if mounted else ""
    return Kit(
        image=service.image,
        script=service.script,
        config=function_config(service),
        env=service_environment(service),
        cpu=service.cpu_millicores,
        memory=service.memory_bytes,
        gpu=1 if service.enable_gpu else 0,
        by_user=service.isolation_level == "USER",
        labels={"oscar.service": service.name},
        attaching=attaching,
        stamp=stamp,
    )


class Machine:
    """Implements `Employer` with sandboxes of this machine."""

    def __init__(self, engine: Engine, folder: Path, log_limit: int) -> None:
        self._engine = engine
        self._folder = folder
        self._log_limit = log_limit
        self.shares_fifo = engine.shares_fifo

    async def ensure_image(self, image: str) -> None:
        """See `Employer.ensure_image`."""
        await self._engine.ensure_image(image)

    def hire(self, kit: Kit, name: str) -> Sandboxed:
        """See `Employer.hire`."""
        make = Worker if kit.script and self.shares_fifo else Single
        return make(self._engine, kit, name, self._folder / name, log_limit=self._log_limit)

    def unfit(self) -> None:
        """See `Employer.unfit`."""
        self.shares_fifo = False


class Workers:
    """Answers synchronous calls; see `Invokes`."""

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        providers: Callable[[Run], Providers],
        limits: Limits | None = None,
        attachments: Attachments | None = None,
    ) -> None:
        """Make it inside the event loop; nothing runs before `start`.

        Args:
            engine: probed.
            folder: of the workers alone; the engine must be able to mount folders below it.
            providers: opens the stores of a run, with the rights of its user.
            limits: what the installation allows.
            attachments: volumes and mounts of services.
        """
        self._engine = engine
        self._attachments = attachments
        self._folder = folder
        self._providers = providers
        self._host = socket.gethostname()
        limits = limits or Limits()
        self.machine = Machine(engine, folder, limits.log)
        self._crews: Crews[Kit, Sandboxed] = Crews(Yard(self.machine, limits))
        self._log = telemetry.get("workers")

    async def start(self) -> None:
        """Take up work; what a server that was killed left behind is removed meanwhile."""
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        self._crews.yard.spawn(self._sweep(), "sweep of old workers")

    async def _sweep(self) -> None:
        # Such workers take no requests any more: they end by themselves with the server that they belong to.
        try:
            for name in await self._engine.names(PREFIX):
                if not self._is_ours(name):
                    await self._engine.remove(name)
            for folder in await asyncio.to_thread(lambda: list(self._folder.iterdir())):
                if not self._is_ours(folder.name):
                    await remove_folder(self._engine, folder)
        except (OscarError, OSError) as error:
            self._log.warning("old workers can't be removed", error=str(error))

    def _is_ours(self, name: str) -> bool:
        return name.split("-")[2:3] == [self._crews.yard.epoch]

    async def stop(self) -> None:
        """Take no more requests, let those under way end, then end all workers."""
        await self._crews.stop()

    async def apply(self, service: Service) -> None:
        """Bring the service's workers to its definition: min_scale warm, others of before replaced."""
        self._crews.renew(service, kit_of(service, self._attachments))

    async def prepare(self, service: Service) -> None:
        """See `Invokes.prepare`."""
        await self.apply(service)

    async def remove(self, owner: str, name: str) -> None:
        """End the service's workers; requests under way fail. Silent if there are none."""
        await self._crews.remove(owner, name)

    async def metered(self) -> list[Metered]:
        """See `Measures`."""
        found = []
        for name, crew in self._crews.living():
            used = await self._engine.cpu_time(name)
            if used is not None:
                found.append(Metered(name, crew.owner, crew.service, int(used * 1e6), crew.kit.gpu))
        return found

    def stats(self) -> list[CrewStats]:
        """How the workers of each service do."""
        return self._crews.stats()

    def occupied(self) -> list[Staying]:
        """See `Occupies.occupied`."""
        return [
            Staying(
                owner, name, len(crew.pool.places), Resources(crew.kit.cpu, crew.kit.memory, crew.kit.gpu)
            )
            for (owner, name), crew in self._crews.yard.crews.items()
        ]

    async def invoke(self, run: Run) -> Answer:
        """Run the script on a warm worker; see `Invokes.invoke`."""
        with self._crews.serving():
            crew = self._crews.get(run.service)
            if crew is None:
                crew = self._crews.renew(run.service, kit_of(run.service, self._attachments))
            crew.pool.allowed = run.workers
            return await self._invoke(crew, run)

    async def _invoke(self, crew: Crew[Kit, Sandboxed], run: Run) -> Answer:
        place = await crew.acquire(run.user)
        worker = crew.worker(place)
        call = Call(
            worker.folder,
            run.service,
            run.payload,
            run.job_id,
            run.hops,
            run.trace,
            run.environment,
            self._host,
            lambda: self._providers(run),
            restore=os.geteuid() != 0,
        )
        reusable, ended = True, False
        try:
            variables = await call.begin()
            if run.service.mount and self._attachments:
                await self._attachments.refresh(worker.name)
            reusable = False
            reply = await worker.ask(variables, timeout=run.timeout)
            if run.service.mount and self._attachments:
                await self._attachments.flush(worker.name, run.service, call.said.append)
            if reply.left:
                # Nothing may change the files while they are read.
                await worker.kill()
            else:
                reusable = True
            body = await call.end(reply)
            for line in call.said:
                # The supervisor's lines are no part of an answer.
                self._log.debug("sync call", service=run.service.name, line=line)
            return Answer(body, reply.code, reply.log)
        except InvocationTimeout:
            # Whoever hears of it may rely on that the script is stopped.
            ended = True
            await asyncio.wait({crew.end(place)}, timeout=PATIENCE)
            raise
        except asyncio.CancelledError:
            reusable = False  # a thread may still be writing into the folder
            raise
        finally:
            if reusable:
                # The answer goes on its way first.
                asyncio.get_running_loop().call_soon(crew.answered, place)
            elif not ended:
                crew.end(place)
