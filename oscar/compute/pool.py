"""Which worker takes which request, when workers start and when they stop: the rules of warm workers.

`crew` keeps one `Pool` per service, tells it what happened and does what its actions say.
Pure but for its own records: no clock (times are seconds that the caller passes), no tasks, no processes, so
that the rules are tested with plain values (`tests/unit/test_pool.py`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from oscar.errors import TooManyRequests

BACKOFF_FIRST = 1.0
BACKOFF_LAST = 60.0
LONG_ENOUGH = 30.0
"""Seconds of life after which the death of a worker that never answered is no sign of a crash loop."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a service's workers are held to. Times in seconds."""

    least: int = 0
    """Workers kept warm: `synchronous.min_scale`."""
    most: int = 0
    """Workers at most: `synchronous.max_scale`, 0 for as many as the machine bears."""
    queue: int = 100
    """Requests that may wait for a worker; one more is refused."""
    wait: float = 60.0
    """How long a request waits for a worker."""
    idle: float = 60.0
    """How long a worker above `least` is kept without work."""
    patience: float = 0.05
    """How long the first in line waits for a busy worker before another one is started."""
    cores: int = 1
    """Workers that can compute at once: up to so many are started with little patience."""
    eagerness: float = 0.005
    """The little patience."""
    by_user: bool = False
    """Whether a worker serves the user of its first request only (USER isolation)."""
    doubling: bool = False
    """Whether, beyond `least`, no more workers start at once than there are: where a start is costly."""


class Stage(Enum):
    """Where a worker is in its life; it counts as one until it is gone."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"


@dataclass(eq=False, slots=True)
class Place:
    """A worker as the pool sees it."""

    version: int
    stage: Stage
    since: float
    """When it came to its stage."""
    born: float
    user: str | None = None
    """Whom it serves, with `by_user`; None until its first request."""
    answered: int = 0


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that waits."""

    user: str
    since: float


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker; then tell `ready` or `gone`."""

    place: Place


@dataclass(frozen=True, slots=True)
class Stop:
    """End the worker; then tell `gone`."""

    place: Place


@dataclass(frozen=True, slots=True)
class Give:
    """The request gets this worker, which is busy from now on."""

    ticket: Ticket
    place: Place


@dataclass(frozen=True, slots=True)
class Expire:
    """The request has waited too long."""

    ticket: Ticket


Action = Start | Stop | Give | Expire


@dataclass(slots=True)
class Pool:
    """The workers of one service and the requests that wait for them."""

    bounds: Bounds
    version: int = 0
    failures: int = 0
    """Workers in a row that died or failed before their first answer."""
    retry_at: float = 0.0
    """Time before which no worker is started, after failures."""
    closed: bool = False
    places: dict[Place, None] = field(default_factory=dict)
    """An ordered set."""
    waiting: deque[Ticket] = field(default_factory=deque)
    _idle: list[Place] = field(default_factory=list)
    """The longest idle first; requests take the last, so that the others can be let go."""
    allowed: int | None = None
    """Workers at most by the quota of the service's owner, as of the last request; None for any number."""

    # What requests do.

    def take(self, user: str, now: float) -> Place | None:
        """An idle worker for a request that has just come, busy from now on; None when it has to wait."""
        for index in range(len(self._idle) - 1, -1, -1):
            place = self._idle[index]
            if not self.bounds.by_user or place.user in {None, user}:
                del self._idle[index]
                self._occupy(place, user, now)
                return place
        return None

    def join(self, user: str, now: float) -> Ticket:
        """Wait in line.

        Raises:
            TooManyRequests: the line is full.
        """
        if len(self.waiting) >= self.bounds.queue:
            raise TooManyRequests(
                f"{len(self.waiting)} requests of this service are waiting already",
                fix="Try again later, or raise synchronous.max_scale of the service.",
                headers={"Retry-After": "1"},
            )
        ticket = Ticket(user, now)
        self.waiting.append(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Wait no longer; silent if the ticket is no longer in line."""
        if ticket in self.waiting:
            self.waiting.remove(ticket)

    # What workers do.

    def ready(self, place: Place, now: float) -> None:
        """The worker has started."""
        self._rest(place, now)

    def release(self, place: Place, now: float) -> None:
        """The worker has answered and can take another request."""
        place.answered += 1
        self.failures = 0
        self._rest(place, now)

    def doom(self, place: Place, now: float, *, failed: bool = False) -> None:
        """The worker is being ended; it counts until it is `gone`.

        Args:
            place: the worker.
            now: the time.
            failed: it didn't start, or died without having been asked to: too many of these in a row, and
                the next one has to wait.
        """
        self._shelve(place, Stage.STOPPING, now)
        if failed and not place.answered and now - place.born < LONG_ENOUGH:
            self.failures += 1
            self.retry_at = now + min(BACKOFF_LAST, BACKOFF_FIRST * 2.0 ** (self.failures - 1))

    def gone(self, place: Place) -> None:
        """The worker is no more."""
        self._shelve(place, Stage.STOPPING, place.since)
        self.places.pop(place, None)

    # What the service does.

    def renew(self, bounds: Bounds, *, changed: bool) -> None:
        """The service was applied; with `changed`, its present workers are out of date."""
        self.bounds = bounds
        if changed:
            self.version += 1
            self.failures = 0
            self.retry_at = 0.0

    def close(self) -> list[Ticket]:
        """The service is no more: all workers are out of date, nothing starts. Those who waited."""
        self.closed = True
        self.version += 1
        waiting = list(self.waiting)
        self.waiting.clear()
        return waiting

    # What follows.

    def wanted(self, now: float) -> int:
        """How many workers should be started now if the machine has room for them."""
        if self.closed or now < self.retry_at:
            return 0
        need = max(self.bounds.least - self._kept(), 0)
        if self.waiting:
            head = self.waiting[0]
            if now >= head.since + self._patience() or not self._hope(head.user):
                need = max(need, self._growth(len(self.waiting)) - self._coming())
        if self.bounds.most:
            need = min(need, self.bounds.most - len(self.places))
        if self.allowed is not None:
            need = min(need, self.allowed - len(self.places))
        return max(need, 0)

    def settle(self, now: float, room: int) -> list[Action]:
        """What to do now. The pool's records already hold what the actions say.

        Args:
            now: the time.
            room: how many workers more the machine bears.
        """
        actions: list[Action] = []
        actions += self._expire(now)
        actions += [Stop(self._shelve(place, Stage.STOPPING, now)) for place in self._outdated()]
        actions += self._hand_out(now)
        actions += [Stop(self._shelve(place, Stage.STOPPING, now)) for place in self._surplus(now)]
        for _ in range(min(self.wanted(now), room)):
            place = Place(self.version, Stage.STARTING, now, now)
            self.places[place] = None
            actions.append(Start(place))
        return actions

    def spare(self, *, least_too: bool) -> Place | None:
        """The worker that is missed least when another service needs its room: the longest idle one.

        Args:
            least_too: also one that `least` keeps warm.
        """
        if not self._idle:
            return None
        return self._idle[0] if least_too or self._kept() > self.bounds.least else None

    def next_wake(self, now: float) -> float | None:
        """When `settle` has something to do even if nothing happens until then."""
        times: list[float] = []
        if self.waiting:
            head = self.waiting[0]
            times.append(head.since + self.bounds.wait)
            if now < head.since + self._patience():
                times.append(head.since + self._patience())
        if now < self.retry_at and (self.waiting or self.bounds.least):
            times.append(self.retry_at)
        if self._idle and (self.bounds.by_user or self._kept() > self.bounds.least):
            times.append(self._idle[0].since + self.bounds.idle)
        return min(times, default=None)

    @property
    def alive(self) -> bool:
        """Whether there is anything to settle at all."""
        return bool(self.places or self.waiting or self.bounds.least)

    @property
    def oldest(self) -> float:
        """Since when the first in line waits; infinite when nobody does."""
        return self.waiting[0].since if self.waiting else math.inf

    def count(self, stage: Stage) -> int:
        """How many workers are at the stage."""
        return sum(1 for place in self.places if place.stage is stage)

    @property
    def hopeless(self) -> bool:
        """Whether no worker is there or on its way."""
        return all(place.stage is Stage.STOPPING for place in self.places)

    def _occupy(self, place: Place, user: str, now: float) -> None:
        place.stage, place.since = Stage.BUSY, now
        if self.bounds.by_user:
            place.user = user

    def _rest(self, place: Place, now: float) -> None:
        place.stage, place.since = Stage.IDLE, now
        self._idle.append(place)

    def _shelve(self, place: Place, stage: Stage, now: float) -> Place:
        if place in self._idle:
            self._idle.remove(place)
        place.stage, place.since = stage, now
        return place

    def _expire(self, now: float) -> list[Action]:
        expired: list[Action] = []
        while self.waiting and now >= self.waiting[0].since + self.bounds.wait:
            expired.append(Expire(self.waiting.popleft()))
        return expired

    def _outdated(self) -> list[Place]:
        return [place for place in self._idle if place.version != self.version]

    def _hand_out(self, now: float) -> list[Action]:
        given: list[Action] = []
        if not self._idle:
            return given
        for ticket in list(self.waiting):
            place = self.take(ticket.user, now)
            if place is not None:
                self.waiting.remove(ticket)
                given.append(Give(ticket, place))
            elif not self._idle:
                break
        return given

    def _surplus(self, now: float) -> list[Place]:
        surplus: list[Place] = []
        spare = self._kept() - self.bounds.least
        for place in self._idle:
            if now < place.since + self.bounds.idle:
                break
            if place.user is None:
                if spare <= 0:
                    continue
                spare -= 1
            surplus.append(place)
        most = self.bounds.most
        # The maximum was lowered, or workers kept for other users hold the places that those in line need.
        over = len(self.places) - most if most else 0
        if over == 0 and most and len(self.waiting) > self._coming():
            over = 1
        over -= self.count(Stage.STOPPING) + len(surplus)
        surplus += [place for place in self._idle if place not in surplus][: max(over, 0)]
        return surplus

    def _growth(self, waiting: int) -> int:
        if not self.bounds.doubling:
            return waiting
        running = sum(1 for place in self.places if place.stage in {Stage.IDLE, Stage.BUSY})
        return min(waiting, max(running, 1))

    def _patience(self) -> float:
        few = len(self.places) < self.bounds.cores
        return min(self.bounds.eagerness, self.bounds.patience) if few else self.bounds.patience

    def _coming(self) -> int:
        return sum(
            1 for place in self.places if place.stage is Stage.STARTING and place.version == self.version
        )

    def _kept(self) -> int:
        return sum(1 for place in self.places if self._counts_as_kept(place))

    def _counts_as_kept(self, place: Place) -> bool:
        # A worker that serves one user only is of no use to the next one who comes.
        return place.version == self.version and place.stage is not Stage.STOPPING and place.user is None

    def _hope(self, user: str) -> bool:
        return any(
            place.stage is not Stage.STOPPING
            and place.version == self.version
            and (not self.bounds.by_user or place.user in {None, user})
            for place in self.places
        )


def evict(pools: Iterable[Pool], needy: Pool) -> tuple[Pool, Place] | None:
    """The worker to end so that the needy pool can start one on a full machine; None when there is none.

    Workers that are kept warm are only ended for a service that has none at all.
    """
    found: tuple[Pool, Place] | None = None
    for pool in pools:
        place = None if pool is needy else pool.spare(least_too=needy.hopeless)
        if place is not None and (found is None or place.since < found[1].since):
            found = pool, place
    return found
