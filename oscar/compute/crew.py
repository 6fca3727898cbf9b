"""The warm workers of one service, and the yard of this server where all services' workers have their room.

`Crew` does what its `Pool` says: starts and ends workers, hands them to requests, wakes when the pool wants to
be asked again. Called by `crews`; calls `pool` (the rules) and the engine's workers by the port `Employer`: sandboxes
of this machine (`compute.local.workers`) or pods (`compute.kubernetes.sync`).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Generic, Protocol, runtime_checkable

from oscar import telemetry
from oscar.compute.hands import Employer, K, Unfit, W
from oscar.compute.pool import Bounds, Expire, Give, Place, Pool, Stage, Start, Stop, Ticket, evict
from oscar.errors import EngineError, ImageError, OscarError, Unavailable

STOP_LIMIT = 60.0
"""Seconds that the engine may take to end a sandbox."""
STOP_TRIES = 4
"""How often the end of a sandbox is tried, in growing pauses, when the engine fails."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the installation allows to synchronous calls. Times in seconds, sizes in bytes."""

    queue: int = 100
    """Requests of one service that may wait."""
    wait: float = 60.0
    """How long a request waits for a worker, its start and the pull of its image included."""
    idle: float = 60.0
    """How long a worker above min_scale is kept without work."""
    start: float = 60.0
    """How long the start of a worker may take, once its image is there."""
    drain: float = 30.0
    """How long requests may go on when the server stops."""
    log: int = 64 * 1024 * 1024
    """Output of a script that is kept: more, and its middle is left out."""
    patience: float = 0.05
    """How long a request waits for a busy worker before another one is started."""
    doubling: bool = False
    """Whether no more workers of a service start at once than it has."""
    workers: int = 0
    """Workers of all services together, 0 for four times the cores of the machine."""


@dataclass(frozen=True, slots=True)
class CrewStats:
    """How the workers of a service do. Times in milliseconds."""

    owner: str
    service: str
    starting: int
    idle: int
    busy: int
    waiting: int
    requests: int
    """Answered since the server's start."""
    cold_starts: int
    cold_start_ms: float | None
    """Mean of the last starts, None before the first."""
    trouble: str | None
    """Why the last worker did not start or died, until one answers."""


class Yard(Generic[K, W]):
    """What the crews of this server share: the engine and the room."""

    def __init__(
        self,
        employer: Employer[K, W],
        limits: Limits,
        *,
        cores: int | None = None,
        starting: int | None = None,
    ) -> None:
        """Make it inside the event loop.

        Args:
            employer: makes the workers.
            limits: what the installation allows.
            cores: how many workers can compute at once; those of this machine when absent.
            starting: how many may be started at once; as many as cores when absent.
        """
        self.employer = employer
        self.limits = limits
        self.crews: dict[tuple[str, str], Crew[K, W]] = {}
        self.epoch = secrets.token_hex(3)
        """In the names of all workers of this server's life."""
        self.cores = cores or len(os.sched_getaffinity(0))
        self._most = limits.workers or 4 * self.cores
        self._most_starting = starting or max(2, self.cores)
        self._tasks: set[asyncio.Task[None]] = set()

    def room(self) -> int:
        """How many workers may be started now."""
        starting = sum(crew.pool.count(Stage.STARTING) for crew in self.crews.values())
        return max(0, min(self._free(), self._most_starting - starting))

    def make_room(self, needy: Crew[K, W]) -> None:
        """On a full machine, end the worker that is missed least so that this crew can start one."""
        # One at a time: its end settles all crews again.
        if self._free() > 0 or any(crew.pool.count(Stage.STOPPING) for crew in self.crews.values()):
            return
        crews = {id(crew.pool): crew for crew in self.crews.values()}
        found = evict([crew.pool for crew in self.crews.values()], needy.pool)
        if found:
            crews[id(found[0])].end(found[1])

    def settle(self) -> None:
        """Let all crews act, those first whose requests wait longest: room has come free."""
        crews = [crew for crew in self.crews.values() if crew.pool.alive]
        for crew in sorted(crews, key=lambda crew: crew.pool.oldest):
            crew.settle()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run it beside; what it raises is a fault of ours and goes to the loop's handler."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settled(self) -> None:
        """Wait for all that runs beside."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _free(self) -> int:
        return self._most - sum(len(crew.pool.places) for crew in self.crews.values())


@runtime_checkable
class HasWorkers(Protocol):
    """The ability to tell how warm workers do."""

    def stats(self) -> list[CrewStats]:
        """How the workers of each service do."""


class Crew(Generic[K, W]):
    """The workers of one service."""

    def __init__(
        self, yard: Yard[K, W], owner: str, service: str, prefix: str, kit: K, bounds: Bounds
    ) -> None:
        self.owner = owner
        self.service = service
        self.pool = Pool(bounds)
        self.kit = kit
        self.requests = 0
        self._yard = yard
        self._prefix = prefix
        self._workers: dict[Place, W] = {}
        self._starts: dict[Place, asyncio.Task[None]] = {}
        self._promises: dict[Ticket, asyncio.Future[Place]] = {}
        self._image: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wake = 0.0
        self._loop = asyncio.get_running_loop()
        self._cold: deque[float] = deque(maxlen=20)
        self._cold_starts = 0
        self._serial = 0
        self._trouble: OscarError | None = None
        self._gone = asyncio.Event()
        self._log = telemetry.get("workers").bind(service=service, owner=owner)

    # For requests.

    async def acquire(self, user: str) -> Place:
        """A worker for one request of that user.

        Raises:
            TooManyRequests: the line is full.
            Unavailable: none came free in time, or none can be started now.
            EngineError, ImageError: none could be started.
        """
        pool = self.pool
        if pool.closed:
            raise Unavailable("the service's workers are being ended", headers={"Retry-After": "5"})
        place = pool.take(user, self._loop.time())
        if place is not None:
            return place
        if pool.hopeless and self._loop.time() < pool.retry_at and self._trouble is not None:
            raise self._backing_off(self._trouble)
        ticket = pool.join(user, self._loop.time())
        promise: asyncio.Future[Place] = self._loop.create_future()
        self._promises[ticket] = promise
        try:
            self.settle()
            return await promise
        except asyncio.CancelledError:
            if promise.done() and not promise.cancelled() and promise.exception() is None:
                self.release(promise.result())
            raise
        finally:
            self._promises.pop(ticket, None)
            pool.leave(ticket)

    def worker(self, place: Place) -> W:
        """The worker of that place."""
        return self._workers[place]

    def answered(self, place: Place) -> None:
        """The request is done and its worker unharmed: clean it up for the next one."""
        self.requests += 1
        self._trouble = None
        worker = self._workers[place]
        clean = False if worker.dead else worker.tidy()
        if clean is None:
            self._yard.spawn(self._tidy_all(place), f"tidy {self._prefix}")
        elif clean:
            self.release(place)
        else:
            self.end(place)

    def release(self, place: Place) -> None:
        """The worker can take another request."""
        pool = self.pool
        pool.release(place, self._loop.time())
        too_late = self._timer is None or self._wake > place.since + pool.bounds.idle
        if pool.waiting or place.version != pool.version or too_late:
            self.settle()

    def end(self, place: Place) -> asyncio.Task[None]:
        """End the worker and start another if that is wanted; done when it is gone."""
        self.pool.doom(place, self._loop.time())
        return self._yard.spawn(self._stop(place), f"stop {self._prefix}")

    async def _tidy_all(self, place: Place) -> None:
        try:
            clean = await self._workers[place].tidy_all()
        except (OSError, OscarError) as error:
            self._log.warning("a worker's folder can't be cleaned", error=str(error))
            clean = False
        if clean:
            self.release(place)
        else:
            self.end(place)

    def _backing_off(self, trouble: OscarError) -> OscarError:
        pause = max(1, round(self.pool.retry_at - self._loop.time()))
        kind = type(trouble) if isinstance(trouble, EngineError) else Unavailable
        return kind(
            f"no worker of this service can be started: {trouble.message}",
            fix=trouble.fix or f"It is tried again in {pause} s.",
            headers={"Retry-After": str(pause)},
        )

    # For the service.

    def renew(self, kit: K, bounds: Bounds) -> None:
        """The service was applied; workers of another kit are replaced, busy ones after their request."""
        changed = kit != self.kit
        self.pool.renew(bounds, changed=changed)
        if changed:
            self.kit = kit
            self._image = None
            self._trouble = None
        self.settle()

    def refuse_waiting(self, error: OscarError) -> None:
        """Give all who wait that error."""
        for ticket, promise in list(self._promises.items()):
            self.pool.leave(ticket)
            if not promise.done():
                promise.set_exception(error)

    async def close(self, error: OscarError) -> None:
        """End all workers; requests under way and waiting get the error. Returns when nothing is left."""
        self.pool.close()
        self.refuse_waiting(error)
        for worker in self._workers.values():
            worker.abort(error)
        for start in self._starts.values():
            start.cancel()
        self.settle()
        while self.pool.places:
            self._gone.clear()
            await self._gone.wait()
        self._disarm()

    def names(self) -> list[str]:
        """Of the workers that are there now."""
        return [worker.name for worker in self._workers.values()]

    def stats(self) -> CrewStats:
        """How the workers do now."""
        return CrewStats(
            owner=self.owner,
            service=self.service,
            starting=self.pool.count(Stage.STARTING),
            idle=self.pool.count(Stage.IDLE),
            busy=self.pool.count(Stage.BUSY),
            waiting=len(self.pool.waiting),
            requests=self.requests,
            cold_starts=self._cold_starts,
            cold_start_ms=1000 * sum(self._cold) / len(self._cold) if self._cold else None,
            trouble=self._trouble.message if self._trouble else None,
        )

    # What the pool says.

    def settle(self) -> None:
        """Do what the pool wants done now."""
        pool, now = self.pool, self._loop.time()
        for action in pool.settle(now, self._yard.room() if pool.wanted(now) else 0):
            match action:
                case Give(ticket, place):
                    self._promises[ticket].set_result(place)
                case Expire(ticket):
                    self._promises[ticket].set_exception(self._too_late())
                case Start(place):
                    self._starts[place] = self._yard.spawn(self._start(place), f"start {self._prefix}")
                case Stop(place):
                    self._yard.spawn(self._stop(place), f"stop {self._prefix}")
        if pool.wanted(now):
            self._yard.make_room(self)
        self._arm(now)

    async def _start(self, place: Place) -> None:
        kit = self.kit
        self._serial += 1
        worker = self._yard.employer.hire(kit, f"{self._prefix}-{self._yard.epoch}-{self._serial}")
        self._workers[place] = worker
        trouble: OscarError | None = None
        try:
            await self._have_image(kit.image)
            began = time.monotonic()
            await worker.start(wait=self._yard.limits.start)
        except asyncio.CancelledError:
            trouble = None  # the crew is being closed
        except Unfit as error:
            self._log.warning(str(error))
            self._yard.employer.unfit()
        except OscarError as error:
            trouble = error
        except OSError as error:
            trouble = EngineError(f"{error.strerror}: {error.filename}")
        else:
            self._cold.append(time.monotonic() - began)
            self._cold_starts += 1
            worker.when_dead(lambda reason: self._died(place, reason))
            del self._starts[place]
            self.pool.ready(place, self._loop.time())
            self._yard.settle()
            return
        del self._starts[place]
        self.pool.doom(place, self._loop.time(), failed=trouble is not None)
        if trouble is not None:
            self._fail(trouble)
        await self._stop(place)

    def _fail(self, trouble: OscarError) -> None:
        self._log.warning("a worker could not be started", error=trouble.message)
        self._trouble = trouble
        if isinstance(trouble, ImageError):
            self._image = None
        if self.pool.hopeless:
            self.refuse_waiting(trouble)

    async def _have_image(self, image: str) -> None:
        if self._image is None:
            self._image = asyncio.ensure_future(self._yard.employer.ensure_image(image))
            # Those who wait for it may be gone when it fails.
            self._image.add_done_callback(lambda pull: pull.cancelled() or pull.exception())
        pull = self._image
        try:
            await asyncio.shield(pull)
        except OscarError:
            if self._image is pull:
                self._image = None
            raise

    async def _stop(self, place: Place) -> None:
        worker = self._workers[place]
        for attempt in range(STOP_TRIES):
            try:
                async with asyncio.timeout(STOP_LIMIT):
                    await worker.stop()
                break
            except (OscarError, OSError) as error:
                # What is left when all tries fail is removed at the next start of the server.
                self._log.error("a worker can't be ended", worker=worker.name, error=repr(error))
                await asyncio.sleep(2.0**attempt)
        del self._workers[place]
        self.pool.gone(place)
        self._gone.set()
        self._yard.settle()

    def _died(self, place: Place, reason: str) -> None:
        # A busy one's request hears of it by itself and ends the worker.
        if place.stage is Stage.IDLE:
            self._log.warning("an idle worker died", reason=reason)
            self._trouble = EngineError(f"a worker died: {reason}")
            self.pool.doom(place, self._loop.time(), failed=True)
            self._yard.spawn(self._stop(place), f"stop {self._prefix}")

    def _too_late(self) -> Unavailable:
        pulling = self._image is not None and not self._image.done()
        what = f"the image {self.kit.image} is still being pulled" if pulling else "no worker came free"
        return Unavailable(
            f"{what} in {self.pool.bounds.wait:g} s",
            fix="Try again later, or raise synchronous.max_scale of the service.",
            headers={"Retry-After": "5"},
        )

    def _arm(self, now: float) -> None:
        wake = self.pool.next_wake(now)
        if wake is None:
            return
        if self._timer is not None:
            # One that rings too early does no harm, and is cheaper than a new one for each request.
            if self._wake <= wake:
                return
            self._timer.cancel()
        # Loops round to milliseconds; a bell before its time would ring again and again until then.
        self._wake = wake
        self._timer = self._loop.call_at(wake + 0.001, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.settle()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
