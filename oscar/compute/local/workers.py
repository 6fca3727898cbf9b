"""Synchronous calls on this machine: implements `Invokes` by warm workers.

Made by `compute.local.backend`. Finds the service's `Crew`, has a worker run the script once, and makes the
answer; `supervisor.plan`, `stage` and `answer` say what happens around the script, as for jobs.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from oscar import telemetry
from oscar.compute.base import Answer, Run
from oscar.compute.local.attachments import Attachments
from oscar.compute.local.crew import STOP_LIMIT, Crew, CrewStats, Limits, Yard
from oscar.compute.local.engine import Engine, Mount
from oscar.compute.local.pool import Bounds
from oscar.compute.local.single import Single
from oscar.compute.local.worker import Reply, Worker
from oscar.compute.local.workfolder import Kit, WorkFolder, remove_folder
from oscar.errors import InvocationTimeout, OscarError, ServiceNotFound, StorageError, Unavailable
from oscar.model.object import Producer
from oscar.model.service import Service
from oscar.supervisor.answer import whole_answer
from oscar.supervisor.plan import Mode, Plan, function_config, plan, service_environment
from oscar.supervisor.providers import Providers
from oscar.supervisor.stage import stage_in, stage_out

PREFIX = "w-"
PATIENCE = 10.0
"""Seconds that an answer waits for the end of workers which it tells of; it comes about in any case."""
SMALL = 256 * 1024
"""Bytes of a body up to which it is decoded and written without a thread: a hop costs more."""


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


def bounds_of(service: Service, limits: Limits, cores: int) -> Bounds:
    """What the service's workers are held to."""
    return Bounds(
        least=service.synchronous.min_scale,
        most=service.synchronous.max_scale,
        queue=limits.queue,
        wait=limits.wait,
        idle=limits.idle,
        cores=cores,
        by_user=service.isolation_level == "USER",
    )


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
        self._limits = limits or Limits()
        self._providers = providers
        self._host = socket.gethostname()
        self._yard = Yard(engine, folder, self._limits)
        self._log = telemetry.get("workers")
        self._stopping = False
        self._serving = 0
        self._quiet = asyncio.Event()

    async def start(self) -> None:
        """Take up work; what a server that was killed left behind is removed meanwhile."""
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        self._yard.spawn(self._sweep(), "sweep of old workers")

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
        return name.split("-")[2:3] == [self._yard.epoch]

    async def stop(self) -> None:
        """Take no more requests, let those under way end, then end all workers."""
        self._stopping = True
        closing = Unavailable("the server is stopping", headers={"Retry-After": "5"})
        for crew in self._yard.crews.values():
            crew.refuse_waiting(closing)
        if self._serving:
            self._quiet.clear()
            try:
                async with asyncio.timeout(self._limits.drain):
                    await self._quiet.wait()
            except TimeoutError:
                pass  # their time is up: they get the error
        ends = [asyncio.ensure_future(crew.close(closing)) for crew in self._yard.crews.values()]
        ends.append(asyncio.ensure_future(self._yard.settled()))
        _, stuck = await asyncio.wait(ends, timeout=STOP_LIMIT)
        for end in stuck:
            # The next start of the server removes what is left.
            self._log.error("workers can't be ended", seconds=STOP_LIMIT)
            end.cancel()
        self._yard.crews.clear()

    async def apply(self, service: Service) -> None:
        """Bring the service's workers to its definition: min_scale warm, others of before replaced."""
        self._crew(service, renew=True)

    async def prepare(self, service: Service) -> None:
        """See `Invokes.prepare`."""
        await self.apply(service)

    async def remove(self, owner: str, name: str) -> None:
        """End the service's workers; requests under way fail. Silent if there are none."""
        # Out of the list first: a service of that name that is made meanwhile has workers of its own.
        crew = self._yard.crews.pop((owner, name), None)
        if crew is None:
            return
        gone = ServiceNotFound("the service was deleted while the request was under way")
        end = self._yard.spawn(crew.close(gone), f"end of the workers of {name}")
        _, late = await asyncio.wait({end}, timeout=PATIENCE)
        if late:
            self._log.warning("the workers of a deleted service are still being ended", service=name)

    def stats(self) -> list[CrewStats]:
        """How the workers of each service do."""
        return [crew.stats() for crew in self._yard.crews.values()]

    async def invoke(self, run: Run) -> Answer:
        """Run the script on a warm worker; see `Invokes.invoke`."""
        if self._stopping:
            raise Unavailable("the server is stopping", headers={"Retry-After": "5"})
        crew = self._crew(run.service)
        self._serving += 1
        try:
            return await self._invoke(crew, run)
        finally:
            self._serving -= 1
            if self._serving == 0:
                self._quiet.set()

    async def _invoke(self, crew: Crew, run: Run) -> Answer:
        place = await crew.acquire(run.user)
        worker = crew.worker(place)
        reusable, ended = True, False
        said: list[str] = []
        try:
            planned = await self._stage_in(worker, run, said)
            if run.service.mount and self._attachments:
                await self._attachments.refresh(worker.name)
            reusable = False
            reply = await self._ask(worker, run, planned)
            if run.service.mount and self._attachments:
                await self._attachments.flush(worker.name, run.service, said.append)
            if reply.left:
                # Nothing may change the files while they are read.
                await worker.kill()
            else:
                reusable = True
            return await self._stage_out(worker, run, planned, reply, said)
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

    def _crew(self, service: Service, *, renew: bool = False) -> Crew:
        key = service.owner, service.name
        crew = self._yard.crews.get(key)
        if crew is not None and not renew:
            return crew
        kit, bounds = kit_of(service, self._attachments), bounds_of(service, self._limits, self._yard.cores)
        if crew is None:
            digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:10]
            crew = Crew(self._yard, *key, f"{PREFIX}{digest}", kit, bounds)
            self._yard.crews[key] = crew
        crew.renew(kit, bounds)
        return crew

    async def _ask(self, worker: Worker | Single, run: Run, plan: Plan) -> Reply:
        # Not those of the service, whatever they are by now: the worker has them as they were when it started.
        known = service_environment(run.service)
        own = {name: value for name, value in plan.environment.items() if known.get(name) != value}
        return await worker.ask(own, timeout=run.timeout)

    async def _stage_in(self, worker: Worker | Single, run: Run, said: list[str]) -> Plan:
        """Put the input where the script finds it."""
        if isinstance(run.payload, bytes) and len(run.payload) <= SMALL:
            planned = self._furnish(worker, run)
        else:
            planned = await asyncio.to_thread(self._furnish, worker, run)
        if planned.downloads:
            stores = self._providers(run)
            try:
                await stage_in(replace(planned, files=()), worker.folder.work, stores, said.append)
            finally:
                await stores.close()
        return planned

    def _furnish(self, worker: Worker | Single, run: Run) -> Plan:
        payload = run.payload if isinstance(run.payload, bytes) else run.payload.read_bytes()
        planned = plan(
            run.service,
            payload,
            job_id=run.job_id,
            work=worker.folder.work_inside,
            mode=Mode.SYNC,
            environment=run.environment,
            resource_id=self._host,
        )
        for file in planned.files:
            worker.folder.put(file.path, file.content)
        return planned

    async def _stage_out(
        self, worker: Worker | Single, run: Run, planned: Plan, reply: Reply, said: list[str]
    ) -> Answer:
        """Make the answer of what the script left, and store it where the service says so."""
        body = reply.log
        if reply.code == 0 and worker.folder.has_output():
            try:
                body = await self._collect(worker.folder, run, planned, reply, said)
            except StorageError:
                if os.geteuid() == 0:
                    raise
                # The user of the image may have written what we must not read.
                await self._engine.own(worker.folder.work)
                body = await self._collect(worker.folder, run, planned, reply, said)
        for line in said:
            # The supervisor's lines are no part of an answer.
            self._log.debug("sync call", service=run.service.name, line=line)
        return Answer(body, reply.code, reply.log)

    async def _collect(
        self, folder: WorkFolder, run: Run, planned: Plan, reply: Reply, said: list[str]
    ) -> bytes:
        """The answer's body from the output folder, which is also stored where the service says so."""
        small = folder.only_small_output(SMALL) if planned.answers else None
        if small is not None:
            body = base64.b64encode(small)
        else:
            body = await whole_answer(planned, folder.work, reply.log, warn=said.append)
        if planned.outputs:
            stores = self._providers(run)
            try:
                await stage_out(planned, folder.work, stores, said.append, Producer(run.job_id, run.hops))
            finally:
                await stores.close()
        return body
