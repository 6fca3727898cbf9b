"""What to do about the replicas of an exposed service: from what is wanted and what is there to actions.

Called by `exposed_fleet`, which does them and tells what came of it. Time comes as an argument, so every rule can be
tried without waiting: how many replicas, how a new definition rolls over, how long failures hold back, what state
is shown. Pure.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from oscar.compute.base import DeploymentState

BACKOFF_FIRST = 1.0
BACKOFF_LAST = 60.0
LONG_ENOUGH = 60.0
"""Seconds of good health after which a replica's end is no sign of a bad definition any more."""
START_LIMIT = 600.0
"""Seconds that a replica may take until it answers for the first time."""
DOWN_AFTER = 60.0
"""Seconds that the load must be low before replicas go."""
TOLERANCE = 0.1
"""How far the load may be from its threshold without anything being done, as Kubernetes has it."""
PER_REPLICA = 16
"""Requests under way that one replica is for, where CPU time can't be measured."""


class Stage(StrEnum):
    """How far a replica has come."""

    STARTING = "starting"
    READY = "ready"
    SICK = "sick"
    """It was ready, and does not answer now."""
    DRAINING = "draining"
    """It takes no new requests and is removed when those under way have ended."""


@dataclass(slots=True, eq=False)
class Member:
    """A replica as the plan sees it."""

    name: str
    revision: str
    born: float
    stage: Stage = Stage.STARTING
    since: float = 0.0
    """Since when it is at that stage."""
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """Start one more replica of the present revision."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Give it no more requests, then remove it."""

    member: Member


Action = Start | Drain


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many replicas there may be, and the load that they are for."""

    least: int = 1
    most: int = 10
    cpu_threshold: int = 80
    """Percent of the CPU limit."""


@dataclass(slots=True)
class Fleet:
    """The replicas of one service."""

    bounds: Bounds
    revision: str
    stopped: bool = False
    members: list[Member] = field(default_factory=list)
    wanted: int = 0
    failures: int = 0
    """Replicas in a row that failed before they were long enough in good health."""
    retry_at: float = 0.0
    reason: str = ""
    """Why the last one failed."""
    _lately: deque[tuple[float, int]] = field(default_factory=deque)
    """What the load asked for in the last `DOWN_AFTER` seconds."""

    def __post_init__(self) -> None:
        """Begin with the least."""
        self.wanted = self.bounds.least

    # What is told.

    def renew(self, bounds: Bounds, revision: str, *, stopped: bool) -> None:
        """The service was applied."""
        if revision != self.revision or (self.stopped and not stopped):
            self.failures, self.retry_at, self.reason = 0, 0.0, ""
        self.bounds, self.revision, self.stopped = bounds, revision, stopped
        self.wanted = min(max(self.wanted, bounds.least), bounds.most)

    def healthy(self, member: Member, now: float) -> None:
        """It has answered a probe."""
        if member.stage in {Stage.STARTING, Stage.SICK}:
            member.stage, member.since = Stage.READY, now
        if member.stage is Stage.READY and now - member.since >= LONG_ENOUGH:
            self.failures, self.reason = 0, ""

    def unhealthy(self, member: Member, now: float) -> None:
        """It has missed several probes."""
        if member.stage is Stage.READY:
            member.stage, member.since = Stage.SICK, now

    def lost(self, member: Member, now: float, reason: str) -> None:
        """It has ended, or did not start; silent when it was to end anyway."""
        if member not in self.members:
            return
        self.members.remove(member)
        if member.stage is Stage.DRAINING or member.revision != self.revision:
            return
        if member.stage is Stage.READY and now - member.since >= LONG_ENOUGH:
            self.failures = 0
        self.failures += 1
        self.reason = reason
        # The first time at once: what served well until now is most likely to do so again.
        wait = BACKOFF_FIRST * 2.0 ** (self.failures - 2) if self.failures > 1 else 0.0
        self.retry_at = now + min(BACKOFF_LAST, wait)

    def removed(self, member: Member) -> None:
        """It is no more, as was wanted."""
        if member in self.members:
            self.members.remove(member)

    def wake(self) -> None:
        """A request has come and there is no replica."""
        if not self.stopped:
            self.wanted = max(self.wanted, 1)

    def load(self, now: float, cpu: float | None) -> None:
        """Look at the load.

        Args:
            now: the time.
            cpu: what the ready replicas use of their CPU limits on average, 1.0 for all; None when unknown.
        """
        asked = self._asked(cpu)
        # Not more than doubled at once: a new replica's own start is load too.
        asked = min(asked, max(2 * self.wanted, self.wanted + 4))
        asked = min(max(asked, self.bounds.least), self.bounds.most)
        self._lately.append((now, asked))
        while self._lately[0][0] < now - DOWN_AFTER:
            self._lately.popleft()
        if asked > self.wanted:
            self.wanted = asked
        elif now - self._lately[0][0] >= DOWN_AFTER * 0.9:
            self.wanted = min(self.wanted, max(number for _, number in self._lately))

    def _asked(self, cpu: float | None) -> int:
        ready = [member for member in self.members if member.stage is Stage.READY]
        under_way = sum(member.in_flight for member in ready)
        if not ready:
            return self.wanted
        if cpu is None:
            return math.ceil(under_way / PER_REPLICA)
        ratio = cpu * 100 / self.bounds.cpu_threshold
        if abs(ratio - 1) <= TOLERANCE:
            return self.wanted
        # One that is idle may go when none is wanted at least; one that works may not.
        return max(math.ceil(len(ready) * ratio), 1) if under_way or self.bounds.least else 0

    # What follows.

    def settle(self, now: float) -> list[Action]:
        """What to do now. Members that are to be drained are marked so; `Start` is told by `joined`."""
        if self.stopped:
            return self._drain(now, [m for m in self.members if m.stage is not Stage.DRAINING])
        actions: list[Action] = []
        for member in self._fresh(Stage.STARTING):
            if now - member.born > START_LIMIT:
                self.lost(member, now, f"it did not answer within {START_LIMIT:.0f} seconds")
                member.stage = Stage.DRAINING
                self.members.append(member)
                actions.append(Drain(member))
        fresh = self._fresh()
        actions += self._drain(now, self._surplus(fresh))
        actions += self._drain(now, self._outdated())
        if now >= self.retry_at:
            missing = self.wanted - len(self._fresh())
            # While it is not known whether the definition works at all, one at a time.
            trying = self.failures > 0 and not self._fresh(Stage.READY)
            actions += [Start()] * max(0, min(missing, 1) if trying else missing)
        return actions

    def joined(self, name: str, now: float) -> Member:
        """A replica of the present revision is being started."""
        member = Member(name, self.revision, now, since=now)
        self.members.append(member)
        return member

    def next_wake(self, now: float) -> float | None:
        """When `settle` has something to do even if nothing happens until then."""
        times = [member.born + START_LIMIT for member in self._fresh(Stage.STARTING)]
        if not self.stopped and now < self.retry_at and len(self._fresh()) < self.wanted:
            times.append(self.retry_at)
        return min(times, default=None)

    @property
    def hopeless(self) -> bool:
        """Whether no replica takes requests or is about to."""
        if self.stopped:
            return True
        if any(member.stage in {Stage.READY, Stage.STARTING} for member in self.members):
            return not any(member.stage is Stage.READY for member in self.members) and self.failures > 1
        return self.failures > 1

    def state(self) -> tuple[DeploymentState, str]:
        """How it does, and why."""
        if self.stopped:
            return DeploymentState.STOPPED, "Stopped by a user"
        ready, fresh = self._count(self.members), self._count(self._fresh())
        if ready == 0:
            if self.failures:
                return DeploymentState.FAILED, f"No replica runs: {self.reason}"
            if self.wanted == 0:
                return DeploymentState.READY, "No replica: the next request starts one"
            return DeploymentState.PENDING, f"{self.wanted} wanted, none answers yet"
        if ready < self.wanted or (fresh < self.wanted and self.failures):
            why = f": {self.reason}" if self.failures and self.reason else ""
            return DeploymentState.DEGRADED, f"{fresh} of {self.wanted} replicas take requests{why}"
        if fresh < self.wanted:
            return DeploymentState.READY, "A new definition is being rolled out"
        return DeploymentState.READY, f"{ready} of {self.wanted} replicas take requests"

    @property
    def active(self) -> int:
        """Replicas that take requests."""
        return self._count(self.members)

    def _fresh(self, stage: Stage | None = None) -> list[Member]:
        return [
            member
            for member in self.members
            if member.revision == self.revision
            and member.stage is not Stage.DRAINING
            and (stage is None or member.stage is stage)
        ]

    @staticmethod
    def _count(members: Iterable[Member]) -> int:
        return sum(1 for member in members if member.stage is Stage.READY)

    def _drain(self, now: float, members: list[Member]) -> list[Action]:
        for member in members:
            member.stage, member.since = Stage.DRAINING, now
        return [Drain(member) for member in members]

    def _surplus(self, fresh: list[Member]) -> list[Member]:
        order = {Stage.SICK: 0, Stage.STARTING: 1, Stage.READY: 2}
        ranked = sorted(fresh, key=lambda member: (order[member.stage], member.in_flight, -member.born))
        return ranked[: max(0, len(fresh) - self.wanted)]

    def _outdated(self) -> list[Member]:
        """Old replicas that are not needed until enough new ones take requests."""
        old = [m for m in self.members if m.revision != self.revision and m.stage is not Stage.DRAINING]
        serving = [member for member in old if member.stage is Stage.READY]
        spare = len(serving) + self._count(self._fresh()) - self.wanted
        gone = [member for member in old if member.stage is not Stage.READY]
        return gone + serving[: max(0, min(spare, len(serving)))]
