"""How staging waits for what blocks: in an event loop beside other work, or in a container that does nothing else.

Called by `stage` and `pod`. Two ways of one program: a server must go on meanwhile; a staging container has one run and
starts for it, and an event loop takes longer to load than most inputs take to come.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

PARALLEL = 4
"""Transfers of one job at a time."""

T = TypeVar("T")
R = TypeVar("R")


class Way(Protocol):
    """How work is waited for."""

    async def aside(self, act: Callable[..., R], *args: object) -> R:
        """Do what blocks."""

    async def all(self, act: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
        """Act on all items, `PARALLEL` at a time; the first error ends the others and is raised as it is."""


class Loop:
    """In the running event loop. Implements `Way`."""

    async def aside(self, act: Callable[..., R], *args: object) -> R:
        """See `Way`."""
        import asyncio  # whoever comes here has loaded it

        return await asyncio.to_thread(act, *args)

    async def all(self, act: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
        """See `Way`."""
        import asyncio

        done: dict[int, R] = {}
        pending = iter(enumerate(items))

        async def worker() -> None:
            for index, item in pending:
                done[index] = await act(item)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(PARALLEL, len(items))):
                    group.create_task(worker())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [done[index] for index in range(len(items))]


class Blocking:
    """Without an event loop: for coroutines that never wait, see `finish`. Implements `Way`."""

    async def aside(self, act: Callable[..., R], *args: object) -> R:
        """See `Way`."""
        return act(*args)

    async def all(self, act: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
        """See `Way`; threads, when there is more than one item."""
        if len(items) == 1:
            return [await act(items[0])]
        import threading

        done: dict[int, R] = {}
        errors: list[Exception] = []
        lock = threading.Lock()
        pending = iter(enumerate(items))

        async def one(item: T) -> R:
            return await act(item)

        def worker() -> None:
            while not errors:
                with lock:
                    found = next(pending, None)
                if found is None:
                    return
                index, item = found
                try:
                    done[index] = finish(one(item))
                except Exception as error:  # noqa: BLE001 - raised below
                    errors.append(error)

        threads = [threading.Thread(target=worker) for _ in range(min(PARALLEL, len(items)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [done[index] for index in range(len(items))]


def finish(work: Coroutine[Any, Any, R]) -> R:
    """What a coroutine returns that waits for nothing but what has been done when it asks."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return] # the type of the coroutine
    work.close()
    raise RuntimeError("it waits for an event loop")
