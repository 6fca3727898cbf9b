"""Token buckets: how often somebody may call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oscar.core.rates import Rate
from oscar.errors import TooManyRequests


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def granted(rate: Rate, who: str) -> bool:
    try:
        rate.check(who, "too many")
    except TooManyRequests:
        return False
    rate.take(who)
    return True


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    rate = Rate(2.0, 5, clock)
    assert [granted(rate, "a") for _ in range(7)] == [True] * 5 + [False] * 2
    clock.now += 1.0
    assert [granted(rate, "a") for _ in range(3)] == [True, True, False]


def test_users_do_not_share_a_bucket() -> None:
    rate = Rate(1.0, 1, Clock())
    assert granted(rate, "a")
    assert not granted(rate, "a")
    assert granted(rate, "b")


def test_the_refusal_says_when_to_come_again() -> None:
    rate = Rate(0.1, 1, Clock())
    rate.take("a")
    with pytest.raises(TooManyRequests, match="too many") as refused:
        rate.check("a", "too many")
    assert refused.value.headers == {"Retry-After": "10"}


def test_no_rate_grants_everything() -> None:
    rate = Rate(0, 1, Clock())
    assert all(granted(rate, "a") for _ in range(1000))


def test_a_crowd_takes_no_memory() -> None:
    rate = Rate(1.0, 1, Clock())
    for number in range(25_000):
        rate.take(str(number))
    assert not granted(rate, "24999")
    assert len(rate._buckets) == 10_000


@given(pauses=st.lists(st.floats(0, 5), max_size=60), speed=st.floats(0.1, 20), burst=st.integers(1, 20))
def test_never_more_than_burst_and_rate(pauses: list[float], speed: float, burst: int) -> None:
    clock = Clock()
    rate = Rate(speed, burst, clock)
    count = 0
    for pause in pauses:
        clock.now += pause
        count += granted(rate, "a")
    assert count <= burst + sum(pauses) * speed + 1e-6
