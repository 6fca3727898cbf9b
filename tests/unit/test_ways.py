"""How staging waits: the same of both ways, and what a way without an event loop can't do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from oscar.supervisor.ways import PARALLEL, Blocking, Loop, Way, finish

Finish = Callable[[Coroutine[Any, Any, Any]], Any]
BOTH = pytest.mark.parametrize(("way", "run"), [(Loop(), asyncio.run), (Blocking(), finish)])


@BOTH
@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_results_come_in_the_order_of_the_items(way: Way, run: Finish, count: int) -> None:
    async def act(item: int) -> int:
        return await way.aside(pow, item, 2)

    assert run(way.all(act, list(range(count)))) == [number**2 for number in range(count)]


@BOTH
def test_some_go_at_once(way: Way, run: Finish) -> None:
    together = threading.Barrier(PARALLEL, timeout=10)

    async def act(_: int) -> None:
        await way.aside(together.wait)

    run(way.all(act, list(range(2 * PARALLEL))))


@BOTH
def test_the_first_error_is_raised_as_it_is_and_the_rest_is_left(way: Way, run: Finish) -> None:
    begun: list[int] = []

    async def act(item: int) -> None:
        begun.append(item)
        await way.aside(time.sleep, 0.01)
        if item == 2:
            raise OSError("no")

    with pytest.raises(OSError, match=r"^no$"):
        run(way.all(act, list(range(1000))))
    assert len(begun) < 1000


def test_without_a_loop_nothing_can_be_waited_for() -> None:
    async def wait() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waits for an event loop"):
        finish(wait())
