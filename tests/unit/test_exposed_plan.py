"""What is done about the replicas of an exposed service, and how it is told; without any replica."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from oscar.compute.base import DeploymentState
from oscar.compute.local.exposed_plan import (
    BACKOFF_LAST,
    DOWN_AFTER,
    LONG_ENOUGH,
    START_LIMIT,
    Bounds,
    Drain,
    Fleet,
    Member,
    Stage,
    Start,
)


class Trial:
    """A fleet whose actions are done at once, with a clock of its own."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.now = 1000.0
        self.fleet = Fleet(bounds or Bounds(), "a")
        self.names = itertools.count()

    def settle(self) -> list[Member]:
        """Do what is to be done; the replicas that were started."""
        started = []
        for action in self.fleet.settle(self.now):
            if isinstance(action, Start):
                started.append(self.fleet.joined(f"r{next(self.names)}", self.now))
            elif action.member.in_flight == 0:
                self.fleet.removed(action.member)
        return started

    def ready(self) -> list[Member]:
        """Start what is wanted and have all answer."""
        started = self.settle()
        for member in started:
            self.fleet.healthy(member, self.now)
        self.settle()
        return started

    def serving(self, revision: str | None = None) -> list[Member]:
        return [
            member
            for member in self.fleet.members
            if member.stage is Stage.READY and revision in {None, member.revision}
        ]

    def state(self) -> DeploymentState:
        return self.fleet.state()[0]


def test_the_least_is_started_and_kept() -> None:
    trial = Trial(Bounds(least=2, most=5))
    assert trial.state() is DeploymentState.PENDING
    first, _ = trial.ready()
    assert trial.state() is DeploymentState.READY
    assert trial.settle() == []
    trial.fleet.lost(first, trial.now, "it ended")
    assert trial.state() is DeploymentState.DEGRADED
    assert len(trial.settle()) == 1, "the first time, at once"


def test_failures_hold_back_longer_and_longer_and_are_forgotten() -> None:
    trial = Trial(Bounds(least=3))
    waits: list[float] = []
    for _ in range(12):
        started = trial.settle()
        assert len(started) == (3 if not waits else 1), "one at a time while it is not known to work"
        for member in started:
            trial.fleet.lost(member, trial.now, "no such model")
        assert trial.state() is DeploymentState.FAILED
        assert "no such model" in trial.fleet.state()[1]
        waits.append(trial.fleet.retry_at - trial.now)
        assert trial.settle() == [] or not waits[-1]
        trial.now = max(trial.fleet.retry_at, trial.now)
    assert waits == sorted(waits)
    assert waits[-1] == BACKOFF_LAST
    trial.fleet.renew(Bounds(), "b", stopped=False)
    member = trial.settle()[0]
    trial.fleet.healthy(member, trial.now)
    trial.now += LONG_ENOUGH
    trial.fleet.healthy(member, trial.now)
    assert trial.fleet.failures == 0


def test_a_new_definition_replaces_without_a_gap() -> None:
    trial = Trial(Bounds(least=2))
    old = trial.ready()
    old[0].in_flight = 1
    trial.fleet.renew(Bounds(least=2), "b", stopped=False)
    new = trial.settle()
    assert len(new) == 2
    assert trial.serving() == old, "nothing goes before something new answers"
    assert trial.state() is DeploymentState.READY
    trial.fleet.healthy(new[0], trial.now)
    trial.settle()
    assert len(trial.serving()) == 2
    trial.fleet.healthy(new[1], trial.now)
    trial.settle()
    assert trial.serving() == new
    assert old[0].stage is Stage.DRAINING, "its request may end"


def test_a_bad_new_definition_leaves_the_old_one_serving() -> None:
    trial = Trial()
    old = trial.ready()
    trial.fleet.renew(Bounds(), "b", stopped=False)
    for _ in range(5):
        for member in trial.settle():
            trial.fleet.lost(member, trial.now, "broken")
        trial.now = max(trial.now, trial.fleet.retry_at)
    assert trial.serving() == old
    assert trial.state() is DeploymentState.DEGRADED
    assert not trial.fleet.hopeless


def test_stop_drains_all_and_start_begins_afresh() -> None:
    trial = Trial(Bounds(least=2))
    busy = trial.ready()[0]
    busy.in_flight = 1
    trial.fleet.renew(Bounds(least=2), "a", stopped=True)
    trial.settle()
    assert trial.fleet.members == [busy]
    assert trial.state() is DeploymentState.STOPPED
    assert trial.fleet.hopeless
    trial.fleet.wake()
    assert trial.settle() == []
    trial.fleet.renew(Bounds(least=2), "a", stopped=False)
    assert len(trial.settle()) == 2


def test_from_zero_and_back() -> None:
    trial = Trial(Bounds(least=0, most=2))
    assert trial.settle() == []
    assert trial.state() is DeploymentState.READY
    trial.fleet.wake()
    [member] = trial.ready()
    member.in_flight = 1
    for _ in range(100):
        trial.now += 5
        trial.fleet.load(trial.now, 0.01)
    assert trial.serving() == [member], "one that has a request stays"
    member.in_flight = 0
    for _ in range(int(DOWN_AFTER)):
        trial.now += 5
        trial.fleet.load(trial.now, 0.0)
    trial.settle()
    assert trial.fleet.members == []


def test_cpu_above_the_threshold_brings_more_and_less_load_fewer_later() -> None:
    trial = Trial(Bounds(least=1, most=4, cpu_threshold=50))
    trial.ready()
    trial.fleet.load(trial.now, 0.54)
    assert trial.fleet.wanted == 1, "within the tolerance"
    trial.fleet.load(trial.now, 1.0)
    assert trial.fleet.wanted == 2
    trial.ready()
    trial.fleet.load(trial.now, 5.0)
    assert trial.fleet.wanted == 4, "never over the most"
    trial.ready()
    for _ in range(5):
        trial.now += 5
        trial.fleet.load(trial.now, 0.0)
    assert trial.fleet.wanted == 4, "not at once"
    for _ in range(20):
        trial.now += 5
        trial.fleet.load(trial.now, 0.0)
    assert trial.fleet.wanted == 1


def test_requests_under_way_decide_where_cpu_is_unknown() -> None:
    trial = Trial(Bounds(least=1, most=10))
    [member] = trial.ready()
    member.in_flight = 17
    trial.fleet.load(trial.now, None)
    assert trial.fleet.wanted == 2


def test_one_that_never_answers_is_given_up() -> None:
    trial = Trial()
    [member] = trial.settle()
    assert trial.fleet.next_wake(trial.now) == member.born + START_LIMIT
    trial.now += START_LIMIT + 1
    [action, *_] = trial.fleet.settle(trial.now)
    assert action == Drain(member)
    assert trial.state() is DeploymentState.FAILED


def test_a_sick_one_gets_no_requests_and_may_recover() -> None:
    trial = Trial()
    [member] = trial.ready()
    trial.fleet.unhealthy(member, trial.now)
    assert trial.serving() == []
    trial.fleet.healthy(member, trial.now)
    assert trial.serving() == [member]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["settle", "healthy", "unhealthy", "lost", "load", "renew", "stop", "start", "wake"]),
        st.integers(0, 9),
        st.floats(0, 100),
    ),
    max_size=60,
)


@given(EVENTS)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_the_bounds_hold_and_it_comes_to_rest(events: list[tuple[str, int, float]]) -> None:
    bounds = Bounds(least=1, most=4)
    trial = Trial(bounds)
    revision = "a"
    for kind, number, seconds in events:
        trial.now += seconds
        members = trial.fleet.members
        member = members[number % len(members)] if members else None
        match kind:
            case "settle":
                trial.settle()
            case "healthy" if member:
                trial.fleet.healthy(member, trial.now)
            case "unhealthy" if member:
                trial.fleet.unhealthy(member, trial.now)
            case "lost" if member:
                trial.fleet.lost(member, trial.now, "it ended")
            case "load":
                trial.fleet.load(trial.now, number / 3)
            case "renew":
                revision = "abc"[number % 3]
                trial.fleet.renew(bounds, revision, stopped=trial.fleet.stopped)
            case "stop" | "start":
                trial.fleet.renew(bounds, revision, stopped=kind == "stop")
            case "wake":
                trial.fleet.wake()
        assert bounds.least <= trial.fleet.wanted <= bounds.most
        fresh = [
            each
            for each in trial.fleet.members
            if each.revision == revision and each.stage is not Stage.DRAINING
        ]
        if kind == "settle":
            assert len(fresh) <= trial.fleet.wanted
    trial.fleet.renew(bounds, revision, stopped=False)
    for _ in range(5):
        trial.now += 100
        for each in trial.settle():
            trial.fleet.healthy(each, trial.now)
        for each in trial.fleet.members:
            trial.fleet.healthy(each, trial.now)
    assert len(trial.serving(revision)) == trial.fleet.wanted == len(trial.fleet.members)
    assert trial.state() is DeploymentState.READY
