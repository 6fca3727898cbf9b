"""Bytes from one socket to another that never come into this program: splice(2), by a pipe between the two.

Called by `exposed_proxy` for the rest of a long body, when both sides are plain TCP. The kernel moves pages instead of
copying them twice into Python and back, and holds as much as the pipe does, however slow the client is.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable
from typing import Any, Protocol

FROM = 1024 * 1024
"""Bytes still to come from which it pays."""
_PIPE = 1024 * 1024
_TURN = 8 * 1024 * 1024
"""Bytes after which other requests get their turn."""
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Wire(Protocol):
    """The client's side of an answer, as the HTTP server offers it in the scope (`oscar.wire`)."""

    @property
    def open(self) -> bool:
        """Whether bytes written to the socket arrive as the body: no TLS, no chunks."""

    async def taken(self) -> int:
        """A new descriptor of the socket, once all that was sent before is with the kernel.

        Raises:
            ConnectionError: the client has gone.
        """

    def wrote(self, count: int) -> None:
        """So many bytes of the body were written there."""


class Channel:
    """A pipe between two sockets. Close it in the end."""

    def __init__(self) -> None:
        """Make the pipe.

        Raises:
            OSError: there are no descriptors left.
        """
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # the user has many: it stays at 64 KiB
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, _PIPE)
        self._size = fcntl.fcntl(self._in, fcntl.F_GETPIPE_SZ)

    async def move(self, source: int, target: int, count: int) -> None:
        """Move that many bytes. Both sockets don't block, and nobody else reads the one or writes the other.

        Raises:
            EOFError: the source ended before.
            OSError: one of them broke.
        """
        held, turn = 0, 0
        while count or held:
            came = 0
            if count and held < self._size:
                came = _spliced(source, self._in, min(count, self._size - held))
                if came == 0:
                    raise EOFError
                if came > 0:
                    count -= came
                    held += came
            went = _spliced(self._out, target, held) if held else 0
            if went > 0:
                held -= went
                turn += went
            loop = asyncio.get_running_loop()
            if held and went < 0:
                await _ready(loop.add_writer, loop.remove_writer, target)
            elif not held and came < 0:
                await _ready(loop.add_reader, loop.remove_reader, source)
            elif turn >= _TURN:
                turn = 0
                await asyncio.sleep(0)

    def close(self) -> None:
        """Close both ends."""
        os.close(self._out)
        os.close(self._in)


def _spliced(source: int, target: int, count: int) -> int:
    """How many bytes were moved; -1 when one side has to be waited for."""
    try:
        return os.splice(source, target, count, flags=_FLAGS)
    except BlockingIOError:
        return -1


async def _ready(add: Callable[..., Any], remove: Callable[[int], Any], descriptor: int) -> None:
    event = asyncio.Event()
    add(descriptor, event.set)
    try:
        await event.wait()
    finally:
        remove(descriptor)
