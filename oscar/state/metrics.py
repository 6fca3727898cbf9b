"""Requests added up by hour and day, and read so that any range is exact.

Records (`state.requests`) are the truth. `roll_up`, called again and again by `core.metrics`, adds those that are new
to counts by hour and day; how far it has come (an id) is kept in `meta`. A question then reads counts of whole days and
hours, the records of the hours that its range cuts, and those that are not added up yet, in one statement and thus at
one moment. So nothing is written more than before while a request is served, and nothing is counted twice or missed.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.model.metrics import Count, Range, Requests, SourceStatus
from oscar.model.request import RequestKind
from oscar.state.metric_tables import request_counts, request_series
from oscar.state.store import Store, now_ms
from oscar.state.tables import meta, requests

NAME = "request-records"
"""The source, as the API names it."""
HOUR = 3_600_000
DAY = 24 * HOUR
_ROLLED = "requests_rolled"
_LOCK = 0x05CA4
"""Advisory lock of PostgreSQL: one server adds up at a time."""
_CHUNK = 2000
"""Records that are added up in one transaction: other writers wait for it on SQLite."""
_DIMENSIONS = ("service", "owner", "kind", "user", "entrance", "country")


class RecordedRequests:
    """Statements on records and counts of requests; a `RequestSource`."""

    def __init__(self, store: Store, *, keep: float) -> None:
        """Work on that Store, whose records are kept for so many seconds."""
        self._store = store
        self._keep = int(keep * 1000)

    async def requests(self, range_: Range, service: str | None = None) -> Requests:
        """See `sources.base.RequestSource`."""
        statement = _counted(range_, service)
        now = sa.select(now_ms())

        def work(connection: sa.Connection) -> tuple[list[Count], int]:
            rows = connection.execute(statement).all()
            found = [
                Count(row[0], row[1], RequestKind(row[2]), row[3], row[4], row[5], int(row[6]))
                for row in rows
            ]
            return found, int(connection.execute(now).scalar_one())

        found, moment = await self._store.read(work)
        source = SourceStatus(NAME)
        if range_.start < moment - self._keep:
            source = source.with_note(f"records are kept for {self._keep // DAY} days only")
        return Requests(found, [source])

    async def owners(self, service: str | None = None) -> set[tuple[str, str]]:
        """Owner and name of all services that were ever called, or of those of one name."""
        counted = sa.select(request_series.c.owner, request_series.c.service).distinct()
        fresh = (
            sa.select(requests.c.owner, requests.c.service)
            .where(requests.c.id > _rolled(), counting())
            .distinct()
        )
        if service is not None:
            counted = counted.where(request_series.c.service == service)
            fresh = fresh.where(requests.c.service == service)
        statement = sa.union(counted, fresh)
        rows = await self._store.read(lambda connection: connection.execute(statement).all())
        return {(owner, name) for owner, name in rows}

    async def roll_up(self) -> int:
        """Add up a batch of new records; how many there were, 0 when all are added up."""
        last = await self._store.write(self._settled)
        if last is None:
            return 0
        return await self._store.write(lambda connection: self._add(connection, last))

    def _settled(self, connection: sa.Connection) -> int | None:
        """The last id below which no record can come any more; None when there is nothing new."""
        rolled = sa.select(_rolled())
        last = sa.select(sa.func.max(requests.c.id))
        if not self._store.is_sqlite:
            newest = connection.execute(last).scalar()
            if newest is None or newest <= connection.execute(rolled).scalar_one():
                return None
            # An id is taken before its row can be seen. Once nobody writes, all that were taken are seen.
            connection.execute(sa.text("LOCK TABLE requests IN SHARE MODE"))
        newest = connection.execute(last).scalar()
        return None if newest is None or newest <= connection.execute(rolled).scalar_one() else int(newest)

    def _add(self, connection: sa.Connection, last: int) -> int:
        insert: Any = sqlite.insert if self._store.is_sqlite else postgresql.insert
        if not self._store.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        begin = int(connection.execute(sa.select(_rolled())).scalar_one())
        # The ids of a batch: those of records that were pruned meanwhile leave gaps.
        ids = (
            sa.select(requests.c.id)
            .where(requests.c.id > begin, requests.c.id <= last)
            .order_by(requests.c.id)
            .limit(_CHUNK)
            .subquery()
        )
        end, number = connection.execute(sa.select(sa.func.max(ids.c.id), sa.func.count(ids.c.id))).one()
        if end is None:
            return 0
        batch = (requests.c.id > begin) & (requests.c.id <= end) & counting()
        columns = [requests.c[name] for name in _DIMENSIONS]
        connection.execute(
            insert(request_series)
            .from_select(_DIMENSIONS, sa.select(*columns).where(batch).distinct())
            .on_conflict_do_nothing()
        )
        same = sa.and_(*(request_series.c[name] == requests.c[name] for name in _DIMENSIONS))
        for span in (HOUR, DAY):
            start = requests.c.time - requests.c.time % span
            statement = insert(request_counts).from_select(
                ("span", "start", "series", "number"),
                sa.select(sa.literal(span, sa.BigInteger), start, request_series.c.id, sa.func.count())
                .select_from(requests.join(request_series, same))
                .where(batch)
                # By its place: PostgreSQL does not see that two parameters are the same number.
                .group_by(sa.literal_column("2"), sa.literal_column("3")),
            )
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["span", "start", "series"],
                    set_={"number": request_counts.c.number + statement.excluded.number},
                )
            )
        mark = insert(meta).values(key=_ROLLED, value=str(end))
        connection.execute(mark.on_conflict_do_update(index_elements=["key"], set_={"value": str(end)}))
        return int(number)

    async def prune(self, limit: int = 5000) -> int:
        """Remove a batch of counts of days whose records are too old to be kept; how many went."""

        def work(connection: sa.Connection) -> int:
            cut = now_ms() - self._keep
            old = (
                sa.select(request_counts.c.span, request_counts.c.start, request_counts.c.series)
                .where(request_counts.c.start + request_counts.c.span <= cut)
                .limit(limit)
                .subquery()
            )
            key = sa.tuple_(request_counts.c.span, request_counts.c.start, request_counts.c.series)
            return connection.execute(sa.delete(request_counts).where(key.in_(sa.select(old)))).rowcount

        return await self._store.write(work)


def counting() -> sa.ColumnElement[bool]:
    """Which records count: `model.metrics.counts` as SQL."""
    return (requests.c.status < 400) | (requests.c.status >= 500)  # noqa: PLR2004 - statuses of HTTP


def _rolled() -> sa.ColumnElement[int]:
    """The id up to which records are added up, as an SQL expression."""
    mark = sa.select(sa.cast(meta.c.value, sa.BigInteger)).where(meta.c.key == _ROLLED).scalar_subquery()
    return sa.func.coalesce(mark, sa.literal(0, sa.BigInteger))


def pieces(range_: Range) -> tuple[list[Range], list[tuple[int, Range]]]:
    """A range in pieces: those whose records are read, and those whose counts are, with their span. Pure.

    Ranges of counts are of their starts: the end is the first start that is not meant.
    """
    after = range_.end + 1
    hours = Range(-(-range_.start // HOUR) * HOUR, after // HOUR * HOUR)
    if hours.start >= hours.end:
        return [range_], []
    read = [
        piece
        for piece in (Range(range_.start, hours.start - 1), Range(hours.end, range_.end))
        if piece.start <= piece.end
    ]
    days = Range(-(-hours.start // DAY) * DAY, hours.end // DAY * DAY)
    if days.start >= days.end:
        return read, [(HOUR, hours)]
    counted = [(HOUR, Range(hours.start, days.start)), (DAY, days), (HOUR, Range(days.end, hours.end))]
    return read, [(span, piece) for span, piece in counted if piece.start < piece.end]


def _counted(range_: Range, service: str | None) -> sa.CompoundSelect[Any]:
    """Service, owner, kind, user, entrance, country and number of the requests in a range."""
    read, counted = pieces(range_)
    parts: list[Any] = []
    if counted:
        starts = sa.or_(
            *(
                sa.and_(
                    request_counts.c.span == span,
                    request_counts.c.start >= piece.start,
                    request_counts.c.start < piece.end,
                )
                for span, piece in counted
            )
        )
        sums = sa.select(request_counts.c.series, sa.func.sum(request_counts.c.number).label("number"))
        sums = sums.where(starts)
        if service is not None:
            wanted = sa.select(request_series.c.id).where(request_series.c.service == service)
            sums = sums.where(request_counts.c.series.in_(wanted))
        by_series = sums.group_by(request_counts.c.series).subquery()
        parts.append(
            sa.select(*(request_series.c[name] for name in _DIMENSIONS), by_series.c.number).join(
                by_series, by_series.c.series == request_series.c.id
            )
        )
    columns = [requests.c[name] for name in _DIMENSIONS]

    def records(piece: Range, ids: sa.ColumnElement[bool]) -> sa.Select[Any]:
        within = (requests.c.time >= piece.start) & (requests.c.time <= piece.end)
        statement = sa.select(*columns, sa.func.count().label("number")).where(ids, within, counting())
        if service is not None:
            statement = statement.where(requests.c.service == service)
        return statement.group_by(*columns)

    parts += [records(piece, requests.c.id <= _rolled()) for piece in read]
    parts.append(records(range_, requests.c.id > _rolled()))
    # Not grouped once more by six texts, which costs more than all before: who adds up takes what is alike twice too.
    return sa.union_all(*parts)
