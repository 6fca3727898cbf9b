"""CPU and GPU time of services by hour and day, from the accounting of the engines.

Written by `state.jobs` in the transaction that settles an attempt, so that each counts once, and by `core.metrics` with
the readings of containers that go on working. Read as a `UsageSource`. Of an hour that a range cuts, the part of its
time counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.model.metrics import Hours, Range, SourceStatus, Usage, hours_of
from oscar.state.metric_tables import usage_hours, usage_meters
from oscar.state.metrics import DAY, HOUR
from oscar.state.store import Store, now_ms

NAME = "job-accounting"
"""The source, as the API names it."""
_PRESENT_MS = 60_000
_FORGET_MS = 7 * DAY
"""Readings so old are of containers that are long gone."""


@dataclass(frozen=True, slots=True)
class Used:
    """What a service used in a stretch of time: microseconds of CPU, of GPU devices; Unix milliseconds."""

    owner: str
    service: str
    start: int
    end: int
    cpu: int
    gpu: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What a container that goes on working has used since it began."""

    name: str
    """One for each container that ever was."""
    owner: str
    service: str
    cpu: int
    """Microseconds."""
    gpus: int
    """Devices that it has for itself."""
    began: int
    read: int
    ended: bool = False
    """It is gone: its last reading."""


def by_span(used: Used) -> list[tuple[int, int, int, int]]:
    """Span, start, CPU and GPU of each hour and day that it falls into, by time. Pure; nothing is lost by rounding."""
    shares = []
    for span in (HOUR, DAY):
        length = max(used.end - used.start, 0)
        first = used.start // span * span
        if length == 0:
            shares.append((span, first, used.cpu, used.gpu))
            continue
        done_cpu = done_gpu = 0
        for start in range(first, used.end, span):
            passed = min(start + span, used.end) - used.start
            cpu, gpu = used.cpu * passed // length, used.gpu * passed // length
            shares.append((span, start, cpu - done_cpu, gpu - done_gpu))
            done_cpu, done_gpu = cpu, gpu
    return shares


def add_used(connection: sa.Connection, used: Iterable[Used]) -> None:
    """Add what was used, in the caller's transaction."""
    sums: dict[tuple[int, int, str, str], list[int]] = {}
    for one in used:
        for span, start, cpu, gpu in by_span(one):
            total = sums.setdefault((span, start, one.owner, one.service), [0, 0])
            total[0] += cpu
            total[1] += gpu
    if not sums:
        return
    insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(usage_hours)
    statement = statement.on_conflict_do_update(
        index_elements=["span", "start", "owner", "service"],
        set_={name: usage_hours.c[name] + statement.excluded[name] for name in ("cpu", "gpu")},
    )
    # In one order, so that two writers never wait for each other.
    rows = [
        {"span": span, "start": start, "owner": owner, "service": service, "cpu": cpu, "gpu": gpu}
        for (span, start, owner, service), (cpu, gpu) in sorted(sums.items())
    ]
    connection.execute(statement, rows)


class UsedHours:
    """Statements on what was used; a `UsageSource`."""

    def __init__(self, store: Store, *, keep: float) -> None:
        """Work on that Store; what is older than so many seconds is not kept."""
        self._store = store
        self._keep = int(keep * 1000)

    async def usage(self, range_: Range, services: frozenset[tuple[str, str]] | None = None) -> Usage:
        """See `sources.base.UsageSource`."""
        columns = usage_hours.c
        within = sa.or_(
            *(
                (columns.span == span) & (columns.start >= piece.start) & (columns.start < piece.end)
                for span, piece in _spans(range_)
            )
        )
        statement = sa.select(
            *(columns.owner, columns.service, columns.span, columns.start),
            *(sa.func.sum(columns[name]) for name in ("cpu", "gpu")),
        ).where(within)
        statement = statement.group_by(columns.owner, columns.service, columns.span, columns.start)
        if services is None:
            # One row an hour instead of one for each service of it.
            statement = sa.select(
                sa.literal(""),
                sa.literal(""),
                columns.span,
                columns.start,
                *(sa.func.sum(columns[name]) for name in ("cpu", "gpu")),
            )
            statement = statement.where(within).group_by(columns.span, columns.start)
        elif len(services) == 1:
            [(owner, service)] = services
            statement = statement.where(columns.owner == owner, columns.service == service)
        clock = sa.select(now_ms())

        def work(connection: sa.Connection) -> tuple[Sequence[Any], int]:
            return connection.execute(statement).all(), int(connection.execute(clock).scalar_one())

        rows, now = await self._store.read(work)
        # A range up to the present ended some milliseconds ago; nobody reads use as often as that.
        now = min(now, range_.end + 1) if now - range_.end < _PRESENT_MS else now
        cpu = gpu = 0.0
        for owner, service, span, start, its_cpu, its_gpu in rows:
            if services is None or (owner, service) in services:
                share = _share(range_, start, min(start + span, max(now, start + 1)))
                cpu += int(its_cpu) * share
                gpu += int(its_gpu) * share
        return Usage(Hours(hours_of(round(cpu)), hours_of(round(gpu))), SourceStatus(NAME))

    async def owners(self, service: str | None = None) -> set[tuple[str, str]]:
        """Owner and name of all services that ever used something, or of those of one name."""
        statement = (
            sa.select(usage_hours.c.owner, usage_hours.c.service).where(usage_hours.c.span == DAY).distinct()
        )
        if service is not None:
            statement = statement.where(usage_hours.c.service == service)
        rows = await self._store.read(lambda connection: connection.execute(statement).all())
        return {(owner, name) for owner, name in rows}

    async def add(self, readings: Sequence[Reading]) -> None:
        """Add what readings say beyond those before them, and keep them for the next time."""
        insert: Any = sqlite.insert if self._store.is_sqlite else postgresql.insert

        def work(connection: sa.Connection) -> None:
            names = [reading.name for reading in readings]
            rows = connection.execute(sa.select(usage_meters).where(usage_meters.c.name.in_(names))).all()
            before = {row.name: row for row in rows}
            add_used(connection, [one for one in (_since(each, before) for each in readings) if one])
            lasting = [each for each in readings if not each.ended]
            if lasting:
                statement = insert(usage_meters)
                statement = statement.on_conflict_do_update(
                    index_elements=["name"],
                    set_={name: statement.excluded[name] for name in ("cpu", "read")},
                )
                rows_ = [{"name": each.name, "cpu": each.cpu, "read": each.read} for each in lasting]
                connection.execute(statement, rows_)
            gone = [each.name for each in readings if each.ended]
            connection.execute(sa.delete(usage_meters).where(usage_meters.c.name.in_(gone)))

        await self._store.write(work)

    async def prune(self) -> None:
        """Remove what is too old to be kept."""
        old = sa.delete(usage_hours).where(usage_hours.c.start + usage_hours.c.span <= now_ms() - self._keep)
        lost = sa.delete(usage_meters).where(usage_meters.c.read < now_ms() - _FORGET_MS)

        def work(connection: sa.Connection) -> None:
            connection.execute(old)
            connection.execute(lost)

        await self._store.write(work)


def _share(range_: Range, start: int, end: int) -> float:
    """The part of a stretch of time that lies in a range. Of the present hour, what is over of it is the whole."""
    return max(0.0, min(end, range_.end + 1) - max(start, range_.start)) / (end - start)


def _since(reading: Reading, before: dict[str, Any]) -> Used | None:
    last = before.get(reading.name)
    start, known = (last.read, last.cpu) if last else (reading.began, 0)
    if reading.read < start or (reading.read == start and reading.cpu <= known):
        return None
    gpu = reading.gpus * (reading.read - start) * 1000
    return Used(reading.owner, reading.service, start, reading.read, max(reading.cpu - known, 0), gpu)


def _spans(range_: Range) -> list[tuple[int, Range]]:
    """The spans that cover a range, its cut hours included, without overlap; ranges are of their starts."""
    first, after = range_.start // HOUR * HOUR, -(-(range_.end + 1) // HOUR) * HOUR
    # A day that is cut is taken by its hours.
    days = Range(-(-range_.start // DAY) * DAY, (range_.end + 1) // DAY * DAY)
    if days.start >= days.end:
        return [(HOUR, Range(first, after))]
    return [(HOUR, Range(first, days.start)), (DAY, days), (HOUR, Range(days.end, after))]
