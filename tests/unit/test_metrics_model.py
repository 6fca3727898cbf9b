"""Ranges, sums and forms of metrics: pure."""

from __future__ import annotations

import csv
import io
from collections import Counter
from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oscar.errors import BadRequest, InvalidField
from oscar.model.metrics import (
    COLUMNS,
    PER_SERVICE,
    Count,
    GroupBy,
    Hours,
    MetricKey,
    Range,
    Requests,
    SourceState,
    SourceStatus,
    Usage,
    as_csv,
    breakdown,
    counts,
    parse_metric,
    parse_range,
    service_value,
    summary,
)
from oscar.model.request import RequestKind

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Nothing of these tests is about time."""

NOW = 1_800_000_000_000
DAY = 86_400_000
OK = SourceStatus("request-records")
GONE = SourceStatus("loki", SourceState.MISSING, "no answer")
USAGE = Usage(Hours(1.5, None), SourceStatus("prometheus", SourceState.PARTIAL, "no GPUs"))


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def anybody(_: Count) -> bool:
    return True


# --- ranges ---


def test_the_last_day_is_the_default() -> None:
    range_ = parse_range(None, None, now=NOW)
    assert (range_.start, range_.end) == (NOW - DAY, NOW)


def test_only_a_start_goes_up_to_now_and_only_an_end_back_a_day() -> None:
    assert parse_range("2026-11-01T00:00:00Z", None, now=NOW).end == NOW
    range_ = parse_range(None, "2026-11-02T12:00:00Z", now=NOW)
    assert (range_.start, range_.end) == (ms("2026-11-01T12:00:00+00:00"), ms("2026-11-02T12:00:00+00:00"))


def test_dates_are_whole_days() -> None:
    range_ = parse_range("2026-11-01", "2026-11-02", now=NOW)
    assert range_.start == ms("2026-11-01T00:00:00+00:00")
    assert range_.end == ms("2026-11-03T00:00:00+00:00") - 1
    same = parse_range("2026-11-01", "2026-11-01", now=NOW)
    assert same.end - same.start == DAY - 1


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-01T10:00:00+02:00", "2026-11-01T08:00:00+00:00"),
        ("2026-11-01t10:00:00z", "2026-11-01T10:00:00+00:00"),
        ("2026-11-01T10:00:00.25Z", "2026-11-01T10:00:00.250+00:00"),
    ],
)
def test_times_of_rfc_3339(text: str, moment: str) -> None:
    assert parse_range(text, text, now=NOW).start == ms(moment)


def test_what_lies_between_two_milliseconds_is_inside() -> None:
    range_ = parse_range("2026-11-01T10:00:00.000000001Z", "2026-11-01T10:00:00.001999999Z", now=NOW)
    assert (range_.start % 1000, range_.end % 1000) == (1, 1)


@pytest.mark.parametrize(
    "text",
    [
        *("yesterday", "2026-13-01", "2026-11-01 10:00:00Z", "2026-11-01T10:00:00", "1800000000"),
        *("2026-11-01T25:00:00Z", "2026-11-01T10:00:00 02:00", "٢٠٢٦-11-01T10:00:00Z"),
    ],
)
@pytest.mark.parametrize("name", ["start", "end"])
def test_times_that_cannot_be_read(name: str, text: str) -> None:
    with pytest.raises(InvalidField) as refused:
        parse_range(**{"start": None, "end": None, "now": NOW} | {name: text})  # type: ignore[arg-type]
    assert refused.value.field == name


def test_a_range_that_ends_before_it_begins() -> None:
    with pytest.raises(BadRequest, match="ends before"):
        parse_range("2026-11-02", "2026-11-01", now=NOW)


@PATIENT
@given(st.integers(0, 7 * 10**12), st.integers(0, 10**11))
def test_times_are_told_as_they_were_given(first: int, length: int) -> None:
    told = Range(first, first + length).described()
    read = parse_range(told["start"], told["end"], now=NOW)
    assert (read.start, read.end) == (first, first + length)


# --- metrics ---


def test_metrics_of_a_service_and_others() -> None:
    assert {parse_metric(key.value) for key in PER_SERVICE} == set(PER_SERVICE)
    for text in {key.value for key in MetricKey} - {key.value for key in PER_SERVICE} | {"", "love"}:
        with pytest.raises(InvalidField) as refused:
            parse_metric(text)
        assert "cpu-hours" in (refused.value.fix or "")


@PATIENT
@given(st.integers(100, 599))
def test_what_a_client_got_wrong_does_not_count(status: int) -> None:
    assert counts(status) is not (400 <= status < 500)


COUNTS = st.lists(
    st.builds(
        Count,
        service=st.sampled_from(["one", "two", "=three"]),
        owner=st.sampled_from(["ann", "bob"]),
        kind=st.sampled_from(RequestKind),
        user=st.sampled_from(["", "ann", "bob", "cid"]),
        entrance=st.sampled_from(["oidc", "token", "basic", "s3", ""]),
        country=st.sampled_from(["", "ES", "FR"]),
        number=st.integers(1, 10**6),
    )
)


@PATIENT
@given(COUNTS, st.sampled_from(GroupBy), st.booleans())
def test_rows_of_a_breakdown_add_up_to_the_summary(found: list[Count], by: GroupBy, named: bool) -> None:
    requests = Requests(found, [OK])
    totals = summary(requests, USAGE, active=3, may_name=lambda _: named)
    rows = breakdown(requests, by, may_name=lambda _: named, with_users=True)
    for name in (
        "requests_count_total",
        "requests_count_sync",
        "requests_count_async",
        "requests_count_exposed",
    ):
        assert sum(row[name] for row in rows) == totals[name]
    assert totals["requests_count_total"] == sum(each.number for each in found)
    assert len({row["key"] for row in rows}) == len(rows)
    named_in_rows = {user for row in rows for user in row["users"]}
    assert set(totals["users"]) == named_in_rows == ({each.user for each in found} - {""} if named else set())
    assert totals["users_count"] == len({each.user for each in found} - {""})
    by_country: Counter[str] = Counter()
    for each in found:
        by_country[each.country] += each.number
    del by_country[""]
    assert {one["country"]: one["request_count"] for one in totals["countries"]} == by_country
    assert totals["cpu_hours_total"] == 1.5
    assert "gpu_hours_total" not in totals


@PATIENT
@given(COUNTS, st.sampled_from(GroupBy))
def test_csv_can_be_read_back(found: list[Count], by: GroupBy) -> None:
    rows = breakdown(Requests(found, [OK]), by, may_name=anybody)
    read = list(csv.DictReader(io.StringIO(as_csv(rows, by))))
    assert [row["key"].removeprefix("'") for row in read] == [row["key"] for row in rows]
    assert all(not row["key"].startswith("=") for row in read)
    for line, row in zip(read, rows, strict=True):
        assert tuple(line) == COLUMNS[by]
        pairs = dict(pair.split(":") for pair in line["countries"].split("|") if pair)
        assert pairs == {one["country"]: str(one["request_count"]) for one in row["countries"]}


def count(kind: RequestKind, number: int, **more: str) -> Count:
    values = {"service": "one", "owner": "ann", "user": "bob", "entrance": "oidc", "country": "ES"} | more
    return Count(kind=kind, number=number, **values)


def test_membership() -> None:
    found = [
        count(RequestKind.SYNC, 1, user="a", entrance="oidc"),
        count(RequestKind.SYNC, 1, user="b", entrance="token"),
        count(RequestKind.SYNC, 1, user="c", entrance="token"),
        count(RequestKind.SYNC, 1, user="c", entrance="s3"),
        count(RequestKind.EXPOSED, 1, user="", entrance=""),
    ]
    rows = breakdown(Requests(found, [OK]), GroupBy.USER, may_name=anybody)
    assert {row["key"]: row["membership"] for row in rows} == {
        "": "unknown",
        "a": "member",
        "b": "external",
        "c": "member",
    }


def test_services_of_one_name_are_told_apart() -> None:
    found = [count(RequestKind.SYNC, 1), count(RequestKind.SYNC, 2, owner="cid")]
    rows = breakdown(Requests(found, [OK]), GroupBy.SERVICE, may_name=anybody)
    assert [(row["key"], row["requests_count_total"]) for row in rows] == [("ann/one", 1), ("cid/one", 2)]


def test_missing_sources_are_flagged_and_never_a_silent_zero() -> None:
    calls = SourceStatus("loki")
    partly = Requests([count(RequestKind.SYNC, 3)], [calls, GONE])
    totals = summary(partly, USAGE, active=1, may_name=anybody)
    assert totals["requests_count_sync"] == 3
    assert not {"requests_count_exposed", "requests_count_total"} & totals.keys()
    [row] = breakdown(partly, GroupBy.SERVICE, may_name=anybody)
    assert row["requests_count_sync"] == 3
    assert not {"requests_count_exposed", "requests_count_total", "executions_count"} & row.keys()
    value = service_value(MetricKey.REQUESTS_EXPOSED, partly, USAGE)
    assert "value" not in value
    assert value["sources"] == [{"name": "loki", "status": "missing", "notes": "no answer"}]
    assert service_value(MetricKey.REQUESTS_SYNC, partly, USAGE)["value"] == 3
    nothing = summary(Requests([], [GONE]), Usage(Hours(None, None), GONE), active=1, may_name=anybody)
    assert nothing == {"services_count_active": 1}
    assert "value" not in service_value(MetricKey.CPU_HOURS, partly, Usage(Hours(None, None), GONE))
