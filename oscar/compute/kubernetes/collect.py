"""Collecting the log of one run: from the containers of its pod, one after the other, into what is kept.

Called by `backend` for each run that this server holds. A follower's connection is taken up again where it was cut; a
pod that is gone leaves what was read by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime

from oscar import telemetry
from oscar.compute.kubernetes import observed
from oscar.compute.kubernetes.cluster import Cluster, ClusterError
from oscar.compute.kubernetes.lines import Line, Placer, Position, Splitter, utc
from oscar.compute.kubernetes.logs import Growing, Logs
from oscar.compute.kubernetes.manifests import STAGE_IN, STAGE_OUT, USER
from oscar.compute.kubernetes.runs import Tracked
from oscar.errors import OscarError

log = telemetry.get("kubernetes")

_CONTAINERS = (STAGE_IN, USER, STAGE_OUT)
_OURS = len(_CONTAINERS)
"""The number of our own lines, which come last."""
_PAUSE_S = 0.5
_LONGEST_S = 15.0
"""Pause between tries in the end: a node that is away may have hundreds of pods."""
_LAST_TRIES = 4
"""Tries to read the log of a container that has ended; its node may be gone."""
_SETTLE_S = 2.0
"""Seconds in which the cluster says that a container has ended whose log has."""
_LARGE = 256 * 1024
_TOO_LARGE = 4 * 1024 * 1024
_STORE_PAUSE_S = 2.0
_NOT_FOUND = 404


class Collector:
    """Reads the log of a run to its end; `run` returns then."""

    def __init__(self, cluster: Cluster, logs: Logs, tracked: Tracked) -> None:
        self._cluster = cluster
        self._logs = logs
        self._run = tracked
        self._name = tracked.name
        self._full = asyncio.Event()

    async def run(self) -> Growing:
        """Collect until the pod has ended; the log is still open then."""
        growing = await self._open()
        writing = asyncio.create_task(self._write(growing), name=f"log {self._name}")
        try:
            for number, container in enumerate(_CONTAINERS):
                await self._run.until(
                    lambda run, name=container: observed.has_run(run.pod, name) or run.ended  # type: ignore[misc]
                )
                if observed.has_run(self._run.pod, container):
                    await self._collect(growing, number, container)
        finally:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing
        return growing

    async def finish(self, growing: Growing, words: str | None) -> None:
        """Add the platform's own last words, and close the log."""
        if words:
            growing.add([last_words(words, self._run.state.finished, growing.last)])
        while True:
            try:
                await self._logs.close(self._name, growing)
            except OscarError as error:
                # What is told to have ended has its log: the store is waited for.
                log.warning("a log can't be stored yet", run=self._name, reason=error.message)
                await asyncio.sleep(_STORE_PAUSE_S)
            else:
                return

    async def _collect(self, growing: Growing, number: int, container: str) -> None:
        placer = Placer(number, growing.last)
        if container != USER:
            await self._run.until(lambda run: observed.has_ended(run.pod, container) or run.ended)
            lines = observed.reported_lines(self._run.pod, container)
            if lines is not None:
                growing.add(placed for at, text in lines if (placed := placer.place(at, text)))
                return
        failures = last_tries = 0
        while True:
            ended = observed.has_ended(self._run.pod, container) or self._run.ended
            try:
                await self._read(growing, placer, container, follow=not ended)
            except ClusterError as error:
                if error.http == _NOT_FOUND and ended:
                    return
                last_tries += ended
                if last_tries >= _LAST_TRIES:
                    self._cut(growing, number, error)
                    return
                await self._run.changed_within(min(_PAUSE_S * 2**failures, _LONGEST_S))
                failures += 1
                continue
            failures = 0
            if ended:
                return
            # The kubelet ends the stream when the container has ended, but also when itself is told to.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SETTLE_S):
                    await self._run.until(lambda run: observed.has_ended(run.pod, container) or run.ended)
                    return

    async def _read(self, growing: Growing, placer: Placer, container: str, *, follow: bool) -> None:
        pod = self._run.pod
        if pod is None:
            return
        splitter = Splitter()
        placer.restart()
        pieces = self._cluster.log(
            pod["metadata"]["name"],
            pod["metadata"]["namespace"],
            container,
            follow=follow,
            since=placer.since,
        )
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                await self._add(growing, placer, splitter.feed(piece))
        await self._add(growing, placer, splitter.end())

    async def _add(self, growing: Growing, placer: Placer, lines: list[tuple[str, str]]) -> None:
        found = [placed for at, text in lines if (placed := placer.place(at, text))]
        if found:
            growing.add(found)
        if growing.size > _LARGE:
            self._full.set()
        while growing.size > _TOO_LARGE:
            # The store is slow, or away: memory must not grow.
            await self._flush(growing)

    def _cut(self, growing: Growing, number: int, error: ClusterError) -> None:
        last = growing.last
        at = (
            last._replace(number=last.number + 1)
            if last.container == number
            else Position(number, last.time, 0)
        )
        growing.add([Line(at, f"[...] the rest of the log can't be had: {error.message}")])

    async def _write(self, growing: Growing) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(growing.flush_every):
                    await self._full.wait()
            self._full.clear()
            await self._flush(growing)

    async def _flush(self, growing: Growing) -> None:
        try:
            await self._logs.flush(self._name, growing)
        except OscarError as error:
            log.warning("a log can't be stored yet", run=self._name, reason=error.message)
            await asyncio.sleep(_STORE_PAUSE_S)

    async def _open(self) -> Growing:
        while True:
            try:
                return await self._logs.open(self._name)
            except OscarError as error:
                log.warning("a log can't be opened yet", run=self._name, reason=error.message)
                await asyncio.sleep(_STORE_PAUSE_S)


def last_words(words: str, ended: int | None, last: Position) -> Line:
    """The platform's own line at the end of a log.

    Its place is that of the run's end by the cluster's clock: what another server says too is a repetition.

    Args:
        words: what it says.
        ended: when the run ended, in Unix milliseconds; None when nobody knows.
        last: where the log ends.
    """
    at = datetime.fromtimestamp(ended / 1000 if ended else time.time(), UTC)
    return Line(Position(_OURS, max(utc(at.isoformat()), last.time), 0), words)
