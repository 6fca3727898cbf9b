"""Requests added up by hour and day: any range is exact, on SQLite and PostgreSQL, also while new records come."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oscar.model.metrics import Range, counts
from oscar.model.request import Origin, RequestKind, RequestRecord
from oscar.state.metric_tables import request_counts
from oscar.state.metrics import DAY, HOUR, RecordedRequests, pieces
from oscar.state.migrate import migrate
from oscar.state.requests import Requests
from oscar.state.secrets import Sealer
from oscar.state.store import Store, now_ms
from oscar.state.usage_hours import Reading, Used, UsedHours, add_used, by_span

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Nothing of these tests is about time."""

YEAR = 366 * 86_400.0


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store(database_url, Sealer(["key-one"]))
    migrate(opened)
    yield opened
    opened.close()


def now(store: Store) -> int:
    return int(store.write_sync(lambda connection: connection.execute(sa.select(now_ms())).scalar_one()))


def record(time: int, service: str = "s", **more: object) -> RequestRecord:
    values: dict[str, object] = {
        "kind": RequestKind.SYNC,
        "service_id": "id",
        "owner": "ann",
        "user": "bob",
        "status": 200,
        "duration": 1,
        "origin": Origin("oidc", "192.0.2.1", "ES"),
    }
    return RequestRecord(time=time, service=service, **(values | more))  # type: ignore[arg-type]


def some(rng: random.Random, start: int, end: int) -> RequestRecord:
    # At whole hours and days too, where sums begin and end.
    time = rng.randint(start, end)
    time = rng.choice([time, time // HOUR * HOUR, time // HOUR * HOUR - 1, time // DAY * DAY])
    return record(
        time,
        f"s{rng.randrange(3)}",
        kind=rng.choice(list(RequestKind)),
        user=f"u{rng.randrange(4)}",
        status=rng.choice([200, 201, 101, 302, 400, 404, 429, 499, 500, 504]),
        origin=Origin("oidc", "192.0.2.1", rng.choice(["ES", "FR", ""])),
    )


def expected(records: list[RequestRecord], range_: Range, service: str | None) -> Counter[tuple[str, ...]]:
    return Counter(
        (each.service, each.kind, each.user, each.origin.country)
        for each in records
        if range_.start <= each.time <= range_.end and counts(each.status) and service in {None, each.service}
    )


async def found(source: RecordedRequests, range_: Range, service: str | None) -> Counter[tuple[str, ...]]:
    sums: Counter[tuple[str, ...]] = Counter()
    for each in (await source.requests(range_, service)).counts:
        sums[each.service, each.kind, each.user, each.country] += each.number
    return sums


def test_any_range_is_exact_while_records_are_added_up(store: Store) -> None:
    rng = random.Random(7)
    end = now(store)
    start = end - 5 * DAY
    records = [some(rng, start, end) for _ in range(5000)]
    rows, source = Requests(store), RecordedRequests(store, keep=YEAR)

    async def steps() -> None:
        for begin in range(0, len(records), 1000):
            await rows.add(records[begin : begin + 1000])
            so_far = records[: begin + 1000]
            for _ in range(10):
                first, last = sorted(rng.randint(start, end) for _ in range(2))
                if rng.random() < 0.5:
                    first, last = first // HOUR * HOUR, last // DAY * DAY + rng.choice([0, -1])
                range_ = Range(first, last)
                service = rng.choice([None, "s1"])
                assert await found(source, range_, service) == expected(so_far, range_, service)
                if rng.random() < 0.3:
                    await source.roll_up()
        while await source.roll_up():
            pass
        whole = Range(start - DAY, end + DAY)
        assert await found(source, whole, None) == expected(records, whole, None)

    asyncio.run(steps())


def test_what_is_added_up_is_read_from_sums(store: Store) -> None:
    time = now(store) // DAY * DAY - 3 * DAY + 5
    rows, source = Requests(store), RecordedRequests(store, keep=YEAR)

    async def steps() -> None:
        await rows.add([record(time)] * 10)
        assert await source.roll_up() == 10
        assert await source.roll_up() == 0
        # Nobody does so; it shows that a whole day is not read from its records.
        await store.write(lambda connection: connection.execute(sa.text("DELETE FROM requests")))
        [count] = (await source.requests(Range(time - DAY, time + DAY))).counts
        assert count.number == 10

    asyncio.run(steps())


def test_records_that_are_written_while_others_are_added_up_are_not_missed(store: Store) -> None:
    rows, source = Requests(store), RecordedRequests(store, keep=YEAR)
    time = now(store) - DAY

    async def write() -> None:
        for _ in range(20):
            await rows.add([record(time)] * 25)

    async def roll() -> None:
        for _ in range(40):
            await source.roll_up()

    async def steps() -> None:
        # Two servers may add up at once.
        await asyncio.gather(write(), write(), write(), roll(), roll())
        while await source.roll_up():
            pass
        assert sum(each.number for each in (await source.requests(Range(time, time))).counts) == 1500
        day = time // DAY * DAY
        assert sum(each.number for each in (await source.requests(Range(day, day + DAY))).counts) == 1500

    asyncio.run(steps())


def test_old_sums_go_with_their_records_and_that_is_told(store: Store) -> None:
    moment = now(store)
    rows, source = Requests(store), RecordedRequests(store, keep=10 * 86_400)

    async def steps() -> None:
        await rows.add([record(moment - 20 * DAY), record(moment - DAY)])
        await source.roll_up()
        while await source.prune():
            pass
        await rows.prune(10 * 86_400)
        answer = await source.requests(Range(moment - 30 * DAY, moment))
        assert [each.number for each in answer.counts] == [1]
        [status] = answer.sources
        assert (status.state, "10 days" in status.notes) == ("partial", True)
        [status] = (await source.requests(Range(moment - 5 * DAY, moment))).sources
        assert status.state == "ok"
        left = sa.select(sa.func.count()).select_from(request_counts)
        assert await store.read(lambda connection: connection.execute(left).scalar_one()) == 2

    asyncio.run(steps())


def test_owners_of_services_that_were_called(store: Store) -> None:
    rows, source = Requests(store), RecordedRequests(store, keep=YEAR)
    moment = now(store)

    async def steps() -> None:
        await rows.add([record(moment, "one"), record(moment, "two", owner="cid")])
        await source.roll_up()
        await rows.add([record(moment, "one", owner="dan"), record(moment, "wrong", status=404)])
        assert await source.owners() == {("ann", "one"), ("cid", "two"), ("dan", "one")}
        assert await source.owners("one") == {("ann", "one"), ("dan", "one")}

    asyncio.run(steps())


@PATIENT
@given(st.integers(0, 40 * DAY), st.integers(0, 40 * DAY))
def test_the_pieces_of_a_range_cover_it_once(one: int, other: int) -> None:
    range_ = Range(*sorted((one, other)))
    read, counted = pieces(range_)
    covered = sorted(
        [(each.start, each.end + 1) for each in read] + [(each.start, each.end) for _, each in counted]
    )
    assert (covered[0][0], covered[-1][1]) == (range_.start, range_.end + 1)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(covered))
    assert all(not each.start % span and not each.end % span for span, each in counted)
    assert sum(each.end + 1 - each.start for each in read) <= 2 * HOUR


# --- CPU and GPU time ---


@PATIENT
@given(st.integers(0, 10 * DAY), st.integers(0, 3 * DAY), st.integers(0, 10**12), st.integers(0, 10**12))
def test_time_is_spread_over_hours_and_nothing_is_lost(start: int, length: int, cpu: int, gpu: int) -> None:
    shares = by_span(Used("o", "s", start, start + length, cpu, gpu))
    for span in (HOUR, DAY):
        mine = [share for share in shares if share[0] == span]
        assert (sum(share[2] for share in mine), sum(share[3] for share in mine)) == (cpu, gpu)
        assert all(share[2] >= 0 and share[1] % span == 0 for share in mine)
        assert all(start - span < share[1] <= start + length for share in mine)


def test_hours_of_a_range(store: Store) -> None:
    day = now(store) // DAY * DAY - 3 * DAY
    used = UsedHours(store, keep=YEAR)
    hour = 3_600_000_000
    # Ten hours of two cores and one GPU, over midnight; two hours of another service.
    rows = [
        Used("ann", "one", day + 20 * HOUR, day + 30 * HOUR, 20 * hour, 10 * hour),
        Used("cid", "two", day + 22 * HOUR, day + 24 * HOUR, 2 * hour),
    ]

    async def hours(
        start: int, end: int, services: frozenset[tuple[str, str]] | None = None
    ) -> tuple[float, float]:
        got = (await used.usage(Range(start, end), services)).hours
        assert got.cpu is not None
        assert got.gpu is not None
        return round(got.cpu, 6), round(got.gpu, 6)

    async def steps() -> None:
        await store.write(lambda connection: add_used(connection, rows))
        ann = frozenset({("ann", "one")})
        assert await hours(day, day + 2 * DAY - 1) == (22, 10)
        assert await hours(day, day + 2 * DAY - 1, ann) == (20, 10)
        assert await hours(day, day + DAY - 1, ann) == (8, 4)
        assert await hours(day + DAY, day + 2 * DAY - 1) == (12, 6)
        # Half an hour, and a range that cuts hours at both ends.
        assert await hours(day + 25 * HOUR, day + 25 * HOUR + HOUR // 2 - 1) == (1, 0.5)
        assert await hours(day + 23 * HOUR + HOUR // 2, day + 26 * HOUR + HOUR // 4 - 1, ann) == (5.5, 2.75)
        assert await hours(day, day + DAY - 1, frozenset()) == (0, 0)

    asyncio.run(steps())


def test_a_range_up_to_the_present_has_all_of_this_hour(store: Store) -> None:
    """However long after its end it is asked: two questions in a row have one answer."""
    used = UsedHours(store, keep=YEAR)
    moment = now(store)

    async def steps() -> None:
        rows = [Used("ann", "one", moment, moment, 36_000_000_000)]
        await store.write(lambda connection: add_used(connection, rows))
        for later in (5, 500, 5000):
            end = max(moment // HOUR * HOUR + 1, moment - later)
            hours = (await used.usage(Range(end - DAY, end))).hours
            assert hours.cpu == 10

    asyncio.run(steps())


def test_readings_add_what_is_new(store: Store) -> None:
    moment = now(store) - HOUR
    used = UsedHours(store, keep=YEAR)
    whole = Range(moment - DAY, moment + DAY)

    def reading(cpu: int, at: int, *, ended: bool = False, name: str = "w1") -> Reading:
        return Reading(name, "ann", "one", cpu * 1_000_000, 2, moment, moment + at * 1000, ended)

    async def seconds() -> tuple[float, float]:
        got = (await used.usage(whole)).hours
        return round((got.cpu or 0) * 3600, 3), round((got.gpu or 0) * 3600, 3)

    async def steps() -> None:
        await used.add([reading(5, 10), reading(1, 10, name="w2")])
        assert await seconds() == (6, 40)
        await used.add([reading(5, 10)])  # the same again: nothing new
        assert await seconds() == (6, 40)
        await used.add([reading(9, 30, ended=True)])
        assert await seconds() == (10, 80)

    asyncio.run(steps())
