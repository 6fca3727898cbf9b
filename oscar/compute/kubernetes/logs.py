"""Logs of runs: read from pods while they run, kept as objects of the own store that outlive them.

Called by `backend` and `collect`. A log is a row of chunks, each an object of lines. Every line has a position
(container, time, how many before it had that time; see `lines`), so that reading on after a cut neither loses nor
doubles lines, whoever wrote the chunks: positions only grow, and what does not is a repetition. When a run has ended
its chunks are made into one. Two servers may collect one log, when a lease was taken over from one that is not dead:
nothing is written over, and only that is removed which was read into something newer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from oscar import telemetry
from oscar.compute.base import LogLine
from oscar.compute.kubernetes.lines import START, Line, Position, decoded, merged
from oscar.errors import BucketNotFound, ObjectNotFound, RunNotFound
from oscar.objects.base import ObjectStore

log = telemetry.get("kubernetes")

MIB = 1024 * 1024
MOST = 64 * MIB
"""Bytes that a log may keep: its head and its tail, with a mark between."""
HEAD = 32 * MIB
TAIL = 24 * MIB

_SMALL = 4 * MIB
"""Bytes of a log up to which it is made into one object."""
_WHOLE = "whole"
"""End of the key of what says that the log is complete, and holds all of it when it is small."""
_FLUSH_S = 1.0
_SLOWEST_FLUSH_S = 5.0
_FOLLOW_S = 0.3


@dataclass(slots=True)
class Growing:
    """The log of a run that this server collects: what is not in the store yet."""

    pending: list[Line] = field(default_factory=list)
    size: int = 0
    """Bytes pending."""
    last: Position = START
    next_chunk: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    """Chunks in the store with their sizes."""
    writing: list[Line] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    begun: float = field(default_factory=time.monotonic)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, lines: Iterable[Line]) -> None:
        """Append lines."""
        for line in lines:
            self.pending.append(line)
            self.size += len(line.text) + 40
            self.last = line.at
        self.news.set()

    @property
    def in_memory(self) -> list[Line]:
        """Lines that a reader does not find in the store yet."""
        return [*self.writing, *self.pending]

    @property
    def flush_every(self) -> float:
        """Seconds between writes: rarer the longer it takes, as each is an object."""
        return min(_SLOWEST_FLUSH_S, _FLUSH_S + (time.monotonic() - self.begun) / 60)


class Logs:
    """The logs of an installation, in one bucket of the own store.

    Args:
        store: the own store, with all rights.
        bucket: the platform's own bucket; made when absent.
        folder: for files in passing.
    """

    def __init__(self, store: ObjectStore, bucket: str, folder: Path) -> None:
        self._store = store
        self._bucket = bucket
        self._folder = folder
        self._growing: dict[str, Growing] = {}

    async def start(self) -> None:
        """Make the bucket."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._store.ensure_bucket(self._bucket)

    # Writing.

    async def open(self, name: str) -> Growing:
        """The growing log of a run, taken up where it was left."""
        growing = Growing()
        keys = await self._keys(name)
        growing.kept = {key: size for key, size in keys.items() if not _is_whole(key)}
        growing.next_chunk = max((_number(key) + 1 for key in growing.kept), default=0)
        for key in reversed(_in_order(keys)):
            if lines := decoded(await self._read(key)):
                growing.last = lines[-1].at
                break
        self._growing[name] = growing
        return growing

    async def flush(self, name: str, growing: Growing) -> None:
        """Write what is pending; lines stay in memory when that fails."""
        async with growing.lock:
            if not growing.pending:
                return
            growing.writing, growing.pending, size, growing.size = growing.pending, [], growing.size, 0
            content = b"".join(line.encoded() for line in growing.writing)
            key = f"{_prefix(name)}{growing.next_chunk:08d}-{uuid.uuid4().hex[:8]}"
            written = False
            try:
                await self._write(key, content)
                written = True
            finally:
                if not written:
                    # A failure, or the end of whoever waited: the collector ends its writer when the run has ended.
                    growing.pending, growing.size = [*growing.writing, *growing.pending], size + growing.size
                growing.writing = []
            growing.next_chunk += 1
            growing.kept[key] = len(content)
            await self._trim(growing)

    async def close(self, name: str, growing: Growing) -> None:
        """Write the rest, and make one object of all: the log is complete."""
        await self.flush(name, growing)
        keys = await self._keys(name)
        if len(keys) != 1 or not any(map(_is_whole, keys)):
            small = sum(keys.values()) <= _SMALL
            lines = [line.encoded() async for line in self._kept(name, keys)] if small else []
            await self._write(f"{_prefix(name)}{uuid.uuid4().hex[:8]}-{_WHOLE}", b"".join(lines))
            for key in keys if small else ():
                await self._store.delete(self._bucket, key)
        self._growing.pop(name, None)
        growing.news.set()

    def release(self, name: str) -> None:
        """Forget what is in memory: another server, or the next start, takes it up again from the pod."""
        self._growing.pop(name, None)

    async def is_complete(self, name: str) -> bool:
        """Whether the log of an ended run has been kept."""
        return any(map(_is_whole, await self._keys(name)))

    async def drop(self, name: str) -> None:
        """Remove the log. Silent if absent."""
        self._growing.pop(name, None)
        for key in await self._keys(name):
            await self._store.delete(self._bucket, key)

    async def _trim(self, growing: Growing) -> None:
        """Drop chunks of the middle when there is more than a log may keep."""
        if sum(growing.kept.values()) <= MOST:
            return
        for key in middle(growing.kept):
            await self._store.delete(self._bucket, key)
            del growing.kept[key]

    # Reading.

    async def read(
        self, name: str, *, going: Callable[[], bool] | None, known: bool, tail: int | None
    ) -> AsyncIterator[LogLine]:
        """The log's lines.

        Args:
            name: the run.
            going: follow the log as long as this says so.
            known: the run exists, even when nothing was said yet.
            tail: only the last so many lines that exist now.

        Raises:
            RunNotFound: there is no such log.
        """
        growing = self._growing.get(name)
        more = going is not None and going()
        # In this order: what is written to the store meanwhile is in one of both at least.
        memory = growing.in_memory if growing else []
        keys = await self._keys(name)
        if not keys and not known and growing is None:
            raise RunNotFound(f"there is no log of {name}")
        last = START
        kept = self._kept(name, keys) if tail is None else self._tail(name, keys, memory, tail)
        async for line in kept:
            last = line.at
            yield LogLine(line.at.time, line.text)
        for line in memory if tail is None else ():
            if line.at > last:
                last = line.at
                yield LogLine(line.at.time, line.text)
        if tail is not None:
            last = max(last, memory[-1].at if memory else START)
        while more:
            assert going is not None  # noqa: S101 - narrows the type: `more` is false without it
            more = going()
            if more:
                await self._wait(name)
            async for line in self._after(name, last, keys):
                last = line.at
                yield LogLine(line.at.time, line.text)

    async def _wait(self, name: str) -> None:
        growing = self._growing.get(name)
        if growing is None:
            await asyncio.sleep(_FOLLOW_S)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FOLLOW_S):
                await growing.news.wait()
        growing.news.clear()

    async def _after(self, name: str, last: Position, seen: dict[str, int]) -> AsyncIterator[Line]:
        """The lines after a position; keys that were read are added to `seen`."""
        growing = self._growing.get(name)
        memory = growing.in_memory if growing else []
        if growing is None or (growing.last > last and not (memory and memory[0].at <= last)):
            keys = await self._keys(name)
            async for line in self._kept(name, keys, seen):
                if line.at > last:
                    last = line.at
                    yield line
            seen |= keys
        for line in memory:
            if line.at > last:
                last = line.at
                yield line

    async def _tail(
        self, name: str, keys: dict[str, int], memory: list[Line], tail: int
    ) -> AsyncIterator[Line]:
        """The last lines, read from the end; keys as `_kept` has them."""
        found = memory
        made = any(size for key, size in keys.items() if _is_whole(key))
        for key in sorted(keys, reverse=True) if not made else ():
            if len(found) >= tail:
                break
            try:
                chunk = decoded(await self._read(key))
            except ObjectNotFound:  # made into one meanwhile
                made = True
                break
            found = merged(sorted([*chunk, *found], key=lambda line: line.at))
        if made:
            lines = [line async for line in self._kept(name, keys)]
            found = merged(sorted([*lines, *memory], key=lambda line: line.at))
        for line in found[max(0, len(found) - tail) :]:
            yield line

    async def _kept(self, name: str, keys: dict[str, int], seen: Collection[str] = ()) -> AsyncIterator[Line]:
        """The lines of chunks in order, each once; a gap is marked.

        Args:
            name: the run.
            keys: the chunks; what others were made into meanwhile is read instead, and added.
            seen: chunks that are left out.
        """
        last = START
        before = -1
        whole = False
        async for key, chunk in self._chunks(name, keys, seen):
            if _is_whole(key):
                whole = whole or bool(chunk)
            else:
                number = _number(key)
                # What was made into one left gaps among those that another server wrote.
                if number > before + 1 and last != START and not whole:
                    last = last._replace(number=last.number + 1)
                    yield Line(last, "[...] a part of the log was not kept")
                before = max(before, number)
            for line in chunk:
                if line.at > last:
                    last = line.at
                    yield line

    async def _chunks(
        self, name: str, keys: dict[str, int], seen: Collection[str]
    ) -> AsyncIterator[tuple[str, list[Line]]]:
        """Chunks with their keys, as `_kept` takes them."""
        read = set(seen)
        left = _in_order(keys.keys() - read)
        while left:
            key = left.pop(0)
            read.add(key)
            try:
                chunk = decoded(await self._read(key))
            except ObjectNotFound:
                # Another server made it into one with others, or it was of the middle.
                there = await self._keys(name)
                keys |= there
                left = _in_order(there.keys() - read)
            else:
                yield key, chunk

    # The store.

    async def _keys(self, name: str) -> dict[str, int]:
        try:
            return {found.key: found.size async for found in self._store.list(self._bucket, _prefix(name))}
        except BucketNotFound:
            return {}

    async def _read(self, key: str) -> bytes:
        path = self._folder / uuid.uuid4().hex
        try:
            await self._store.download(self._bucket, key, path)
            return await asyncio.to_thread(path.read_bytes)
        finally:
            path.unlink(missing_ok=True)

    async def _write(self, key: str, content: bytes) -> None:
        path = self._folder / uuid.uuid4().hex
        try:
            await asyncio.to_thread(path.write_bytes, content)
            await self._store.upload(self._bucket, key, path, content_type="text/plain")
        finally:
            path.unlink(missing_ok=True)


def middle(kept: dict[str, int]) -> list[str]:
    """The chunks that are neither of the head nor of the tail."""
    keys = sorted(kept)
    head = 0
    first = len(keys)
    for index, key in enumerate(keys):
        head += kept[key]
        if head > HEAD:
            first = index
            break
    tail = 0
    last = first
    for index in range(len(keys) - 1, -1, -1):
        tail += kept[keys[index]]
        if tail > TAIL:
            last = index + 1
            break
    return keys[first:last]


def _prefix(name: str) -> str:
    return f"logs/{name}/"


def _is_whole(key: str) -> bool:
    return key.endswith(_WHOLE)


def _in_order(keys: Iterable[str]) -> list[str]:
    """As they are read: what was made of others comes before those that were written since."""
    return sorted(keys, key=lambda key: (not _is_whole(key), key))


def _number(key: str) -> int:
    return int(key.rpartition("/")[2].partition("-")[0])
