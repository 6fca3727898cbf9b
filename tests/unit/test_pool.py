"""The rules of warm workers: who gets one, when they start and stop, and that no order of events breaks them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from oscar.compute.pool import (
    BACKOFF_FIRST,
    BACKOFF_LAST,
    Action,
    Bounds,
    Expire,
    Give,
    Place,
    Pool,
    Stage,
    Start,
    Stop,
    Ticket,
    evict,
)
from oscar.errors import TooManyRequests


def started(pool: Pool, now: float = 0.0, room: int = 100) -> list[Place]:
    """Settle and report each worker that was to start as ready."""
    places = [action.place for action in pool.settle(now, room) if isinstance(action, Start)]
    for place in places:
        pool.ready(place, now)
    return places


def kinds(actions: list[Action]) -> list[type[Any]]:
    return [type(action) for action in actions]


def take(pool: Pool, now: float = 0.0, user: str = "") -> Place:
    place = pool.take(user, now)
    assert place is not None
    return place


def test_first_request_starts_a_worker_and_gets_it() -> None:
    pool = Pool(Bounds())
    assert pool.settle(0, 5) == []
    assert pool.take("", 0) is None
    ticket = pool.join("", 0)
    (start,) = pool.settle(0, 5)
    assert isinstance(start, Start)
    assert pool.settle(0, 5) == [], "the one that starts is the one it waits for"
    pool.ready(start.place, 1)
    assert pool.settle(1, 5) == [Give(ticket, start.place)]
    assert start.place.stage is Stage.BUSY
    assert not pool.waiting


def test_minimum_is_started_and_kept() -> None:
    pool = Pool(Bounds(least=2, idle=10))
    places = started(pool)
    assert len(places) == 2
    assert pool.settle(1000, 5) == []
    assert pool.next_wake(1000) is None
    pool.doom(places[0], 1000, failed=True)
    pool.gone(places[0])
    assert kinds(pool.settle(1000, 5)) == [Start]


def test_idle_workers_above_the_minimum_stop() -> None:
    pool = Pool(Bounds(least=1, idle=10))
    for _ in range(3):
        pool.join("", 0)
    assert len(started(pool)) == 1 + 2
    for place in [action.place for action in pool.settle(0, 5) if isinstance(action, Give)]:
        pool.release(place, 5)
    assert pool.next_wake(5) == 15
    assert pool.settle(14.9, 5) == []
    stops = pool.settle(15, 5)
    assert kinds(stops) == [Stop, Stop]
    assert pool.count(Stage.IDLE) == 1


def test_scale_to_zero_and_back() -> None:
    pool = Pool(Bounds(idle=10))
    pool.join("", 0)
    (place,) = started(pool)
    pool.settle(0, 5)
    pool.release(place, 1)
    (stop,) = pool.settle(11, 5)
    assert isinstance(stop, Stop)
    pool.gone(place)
    assert not pool.places
    pool.join("", 12)
    assert kinds(pool.settle(12, 5)) == [Start]


def test_a_short_wait_for_a_busy_worker_starts_no_other() -> None:
    pool = Pool(Bounds(least=1, patience=0.05))
    started(pool)
    take(pool)
    pool.join("", 1.0)
    pool.join("", 1.01)
    assert pool.settle(1.0, 5) == []
    assert pool.next_wake(1.02) == 1.05
    assert kinds(pool.settle(1.05, 5)) == [Start, Start]


def test_little_patience_while_cores_are_free() -> None:
    pool = Pool(Bounds(least=1, patience=0.05, cores=2))
    started(pool)
    take(pool)
    pool.join("", 1.0)
    assert pool.settle(1.0, 5) == []
    wake = pool.next_wake(1.0)
    assert wake is not None
    assert wake < 1.05
    assert len(started(pool, wake)) == 1
    pool.settle(wake, 5)
    pool.join("", 2.0)
    assert pool.settle(2.0 + (wake - 1.0), 5) == [], "all cores are busy: another worker would not help soon"


def test_first_come_first_served() -> None:
    pool = Pool(Bounds(least=1))
    (place,) = started(pool)
    take(pool)
    tickets = [pool.join("", float(i) / 1000) for i in range(3)]
    order: list[Ticket] = []
    for now in (0.01, 0.02, 0.03):
        pool.release(place, now)
        (given,) = pool.settle(now, 0)
        assert isinstance(given, Give)
        order.append(given.ticket)
    assert order == tickets


def test_the_maximum_holds_until_a_stopping_worker_is_gone() -> None:
    pool = Pool(Bounds(most=2, patience=0, idle=5))
    for _ in range(5):
        pool.join("", 0)
    places = started(pool)
    assert len(places) == 2
    pool.settle(0, 5)
    pool.doom(places[0], 1)
    assert pool.settle(1, 5) == []
    pool.gone(places[0])
    assert kinds(pool.settle(2, 5)) == [Start]


def test_a_lowered_maximum_stops_idle_workers() -> None:
    pool = Pool(Bounds(least=3))
    started(pool)
    pool.renew(Bounds(least=1, most=1), changed=False)
    assert kinds(pool.settle(1, 5)) == [Stop, Stop]


def test_the_line_has_a_limit() -> None:
    pool = Pool(Bounds(queue=2))
    pool.join("", 0)
    ticket = pool.join("", 0)
    with pytest.raises(TooManyRequests) as refused:
        pool.join("", 0)
    assert refused.value.status == 429
    assert refused.value.headers["Retry-After"]
    pool.leave(ticket)
    pool.leave(ticket)
    pool.join("", 0)


def test_waiting_has_a_limit() -> None:
    pool = Pool(Bounds(wait=10, patience=0))
    early = pool.join("", 0)
    pool.join("", 5)
    pool.settle(5, 0)
    assert pool.next_wake(6) == 10
    assert pool.settle(10, 0) == [Expire(early)]
    assert len(pool.waiting) == 1


def test_an_update_replaces_idle_workers_at_once_and_busy_ones_after_their_request() -> None:
    pool = Pool(Bounds(least=2))
    started(pool)
    busy = take(pool)
    pool.renew(Bounds(least=2), changed=True)
    actions = pool.settle(1, 5)
    assert kinds(actions) == [Stop, Start, Start]
    assert busy not in [action.place for action in actions if isinstance(action, Stop | Start)]
    pool.release(busy, 2)
    assert pool.settle(2, 5) == [Stop(busy)]


def test_a_worker_of_the_old_version_that_becomes_ready_gets_no_request() -> None:
    pool = Pool(Bounds())
    pool.join("", 0)
    (start,) = pool.settle(0, 5)
    assert isinstance(start, Start)
    pool.renew(Bounds(), changed=True)
    (fresh,) = pool.settle(0, 5)
    assert isinstance(fresh, Start), "nobody of the new version was on the way"
    pool.ready(start.place, 1)
    assert pool.settle(1, 5) == [Stop(start.place)]


def test_crash_loop_backs_off_and_an_answer_ends_it() -> None:
    pool = Pool(Bounds(least=1))
    now, pauses = 0.0, []
    for _ in range(10):
        (start,) = pool.settle(now, 5)
        assert isinstance(start, Start)
        pool.doom(start.place, now, failed=True)
        pool.gone(start.place)
        assert pool.settle(now, 5) == []
        wake = pool.next_wake(now)
        assert wake is not None
        pauses.append(wake - now)
        now = wake
    assert pauses[0] == BACKOFF_FIRST
    assert pauses == sorted(pauses)
    assert pauses[-1] == BACKOFF_LAST
    (place,) = started(pool, now)
    take(pool, now)
    pool.release(place, now)
    pool.doom(place, now, failed=True)
    pool.gone(place)
    (start,) = pool.settle(now, 5)
    assert isinstance(start, Start), "one that has answered may die"
    pool.doom(start.place, now, failed=True)
    assert pool.retry_at - now == BACKOFF_FIRST, "it begins anew after an answer"


def test_an_update_ends_the_backoff() -> None:
    pool = Pool(Bounds(least=1))
    (start,) = pool.settle(0, 5)
    assert isinstance(start, Start)
    pool.doom(start.place, 0, failed=True)
    pool.gone(start.place)
    assert pool.settle(0, 5) == []
    pool.renew(Bounds(least=1), changed=True)
    assert kinds(pool.settle(0, 5)) == [Start]


def test_with_user_isolation_a_worker_serves_one_user() -> None:
    pool = Pool(Bounds(by_user=True))
    pool.join("ann", 0)
    (place,) = started(pool)
    pool.settle(0, 5)
    pool.release(place, 1)
    assert pool.take("bob", 1) is None
    pool.join("bob", 1)
    assert kinds(pool.settle(1, 5)) == [Start], "at once: nobody there can ever serve bob"
    assert take(pool, 1, "ann") is place


def test_with_user_isolation_the_minimum_is_ready_for_anybody() -> None:
    pool = Pool(Bounds(least=1, by_user=True))
    (first,) = started(pool)
    take(pool, 0, "ann")
    (start,) = pool.settle(0, 5)
    assert isinstance(start, Start)
    pool.ready(start.place, 0)
    pool.release(first, 1)
    assert take(pool, 1, "bob") is start.place


def test_with_user_isolation_a_full_pool_lets_go_of_a_worker_kept_for_somebody_else() -> None:
    pool = Pool(Bounds(most=1, by_user=True))
    pool.join("ann", 0)
    (place,) = started(pool)
    pool.settle(0, 5)
    pool.release(place, 1)
    pool.join("bob", 2)
    assert pool.settle(2, 5) == [Stop(place)]
    pool.gone(place)
    assert kinds(pool.settle(2, 5)) == [Start]


def test_a_full_machine_takes_from_who_misses_it_least() -> None:
    rich, poor, kept = Pool(Bounds(least=2)), Pool(Bounds(patience=0)), Pool(Bounds(least=1))
    (warm,) = started(kept)
    assert len(started(rich, 1.0)) == 2
    rich.renew(Bounds(least=0), changed=False)
    poor.join("", 5)
    assert poor.settle(5, 0) == []
    assert poor.wanted(5) == 1
    found = evict([rich, poor, kept], poor)
    assert found is not None
    assert found == (kept, warm), "a service with no worker at all may take even a warm one, the longest idle"
    started(poor, 5, room=1)
    poor.settle(5, 0)
    poor.join("", 6)
    found = evict([rich, poor, kept], poor)
    assert found is not None
    assert found[0] is rich, "one that has a worker takes only what is above another's minimum"


def test_a_closed_pool_starts_nothing() -> None:
    pool = Pool(Bounds(least=1))
    started(pool)
    busy = take(pool)
    waiting = pool.join("", 0)
    assert pool.close() == [waiting]
    assert pool.settle(1, 5) == []
    pool.release(busy, 2)
    assert pool.settle(2, 5) == [Stop(busy)]


class AnyLife(RuleBasedStateMachine):
    """Any order of events: the promises of the pool hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pool = Pool(Bounds(least=1, most=3, queue=4, wait=20, idle=8, by_user=True))
        self.serving: dict[Place, str] = {}
        self.users: dict[Place, str] = {}
        self.tickets: dict[Ticket, str] = {}
        self.dying: dict[Place, None] = {}
        self.starting: dict[Place, None] = {}

    def settle(self, room: int = 10) -> None:
        for action in self.pool.settle(self.now, room):
            match action:
                case Start(place):
                    self.starting[place] = None
                case Stop(place):
                    assert place not in self.serving, "a busy worker was stopped"
                    self.dying[place] = None
                case Give(ticket, place):
                    self.serve(place, self.tickets.pop(ticket))
                case Expire(ticket):
                    assert self.now >= ticket.since + 20
                    del self.tickets[ticket]

    def serve(self, place: Place, user: str) -> None:
        assert place not in self.serving, "two requests at once"
        assert place not in self.dying
        assert place not in self.starting
        assert self.users.setdefault(place, user) == user, "a worker served two users"
        self.serving[place] = user

    @rule(user=st.sampled_from("abc"))
    def request(self, user: str) -> None:
        place = self.pool.take(user, self.now)
        if place is not None:
            self.serve(place, user)
        elif len(self.tickets) < 4:
            self.tickets[self.pool.join(user, self.now)] = user
        else:
            with pytest.raises(TooManyRequests):
                self.pool.join(user, self.now)
        self.settle()

    @rule(seconds=st.sampled_from([0.01, 0.06, 1.0, 9.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), fine=st.booleans())
    def starts(self, data: st.DataObject, fine: bool) -> None:
        place = data.draw(st.sampled_from(list(self.starting)))
        del self.starting[place]
        if fine:
            self.pool.ready(place, self.now)
        else:
            self.pool.doom(place, self.now, failed=True)
            self.pool.gone(place)
        self.settle()

    @precondition(lambda self: self.serving)
    @rule(data=st.data(), dies=st.booleans())
    def ends(self, data: st.DataObject, dies: bool) -> None:
        place = data.draw(st.sampled_from(list(self.serving)))
        del self.serving[place]
        if dies:
            self.pool.doom(place, self.now)
            self.dying[place] = None
        else:
            self.pool.release(place, self.now)
        self.settle()

    @precondition(lambda self: self.dying)
    @rule(data=st.data())
    def is_gone(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(list(self.dying)))
        del self.dying[place]
        self.pool.gone(place)
        self.settle()

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def gives_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(list(self.tickets)))
        del self.tickets[ticket]
        self.pool.leave(ticket)
        self.settle()

    @rule()
    def update(self) -> None:
        self.pool.renew(self.pool.bounds, changed=True)
        self.settle()

    @invariant()
    def promises(self) -> None:
        assert len(self.pool.places) <= 3, "more workers than the maximum"
        assert set(self.pool.waiting) == set(self.tickets), "a request was lost"
        assert {place for place in self.pool.places if place.stage is Stage.BUSY} == set(self.serving)

    @invariant()
    def something_will_happen(self) -> None:
        # Whoever waits is either served by an event that is bound to come, or by the clock.
        if self.tickets:
            coming = self.serving or self.starting or self.dying
            assert coming or self.pool.next_wake(self.now) is not None

    def teardown(self) -> None:
        # When all goes well from now on, everybody who waits is served.
        for _ in range(60):
            for place in list(self.dying):
                self.is_gone_now(place)
            for place in list(self.starting):
                del self.starting[place]
                self.pool.ready(place, self.now)
            for place in list(self.serving):
                del self.serving[place]
                self.pool.release(place, self.now)
            self.settle()
            wake = self.pool.next_wake(self.now)
            if self.tickets and not (self.dying or self.starting or self.serving) and wake is not None:
                self.now = max(self.now, wake)
                self.settle()
        assert not self.tickets, "somebody waits for ever"

    def is_gone_now(self, place: Place) -> None:
        del self.dying[place]
        self.pool.gone(place)


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
