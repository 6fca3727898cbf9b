"""What metrics are: the range asked for, counts of requests, and the answers of the API made of them. Pure.

Used by `core.metrics`, which knows who may see what; the counts come from a source (`sources.base`). Names and forms
are those of OSCAR 4.1.2 (`types.MetricsSummaryResponse` and its neighbours).
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

from oscar.errors import BadRequest, InvalidField
from oscar.model.request import RequestKind

DEFAULT = timedelta(hours=24)
"""The range when nobody asks for another."""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)
_CLIENT_ERRORS = range(400, 500)
_HOUR_US = 3_600_000_000


class MetricKey(StrEnum):
    """The keys of the API (`types.MetricKey`)."""

    SERVICES_COUNT = "services-count"
    CPU_HOURS = "cpu-hours"
    GPU_HOURS = "gpu-hours"
    REQUESTS_SYNC = "requests-sync-per-service"
    REQUESTS_ASYNC = "requests-async-per-service"
    REQUESTS_EXPOSED = "requests-exposed-per-service"
    REQUESTS_PER_USER = "requests-per-user"
    USERS_PER_SERVICE = "users-per-service"
    COUNTRIES_COUNT = "countries-count"
    COUNTRIES_LIST = "countries-list"


PER_SERVICE = (
    MetricKey.CPU_HOURS,
    MetricKey.GPU_HOURS,
    MetricKey.REQUESTS_SYNC,
    MetricKey.REQUESTS_ASYNC,
    MetricKey.REQUESTS_EXPOSED,
    MetricKey.USERS_PER_SERVICE,
    MetricKey.COUNTRIES_COUNT,
)
"""Those that are one number for one service; the others are found in the summary and the breakdown."""
USAGE = frozenset({MetricKey.CPU_HOURS, MetricKey.GPU_HOURS})


class GroupBy(StrEnum):
    """What a breakdown has a row for."""

    SERVICE = "service"
    USER = "user"
    COUNTRY = "country"


class SourceState(StrEnum):
    """How a source did."""

    OK = "ok"
    PARTIAL = "partial"
    """Something is not in the figures; the notes say what."""
    MISSING = "missing"
    """Figures of it are left out."""


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """What the API tells of a source (`types.SourceStatus`)."""

    name: str
    state: SourceState = SourceState.OK
    notes: str = ""
    updated: int | None = None
    """Unix milliseconds up to which it knows; None: up to now."""

    def with_note(self, note: str) -> SourceStatus:
        """With one more thing that is not in the figures."""
        state = SourceState.PARTIAL if self.state is SourceState.OK else self.state
        return replace(self, state=state, notes=f"{self.notes}; {note}" if self.notes else note)

    def described(self) -> dict[str, str]:
        """As the API has it."""
        shown = {"name": self.name, "status": self.state.value}
        if self.updated is not None:
            shown["last_updated"] = _text(self.updated)
        return shown | ({"notes": self.notes} if self.notes else {})


@dataclass(frozen=True, slots=True)
class Range:
    """A range of time, both ends included; Unix milliseconds."""

    start: int
    end: int

    def described(self) -> dict[str, str]:
        """As the API has it."""
        return {"start": _text(self.start), "end": _text(self.end)}


def parse_range(start: str | None, end: str | None, *, now: int) -> Range:
    """The range that two parameters name: RFC 3339 times or dates (UTC), each whole days.

    Without an end it ends now, without a start it begins 24 hours before its end.

    Raises:
        InvalidField: one can't be read; BadRequest: it ends before it begins.
    """
    last = _moment(end, "end", last=True) if end else now
    first = _moment(start, "start", last=False) if start else last - int(DEFAULT.total_seconds() * 1000)
    if first > last:
        raise BadRequest(
            "The range ends before it begins", field="start", fix="give a start that is not after the end"
        )
    return Range(first, last)


def _moment(text: str, field_: str, *, last: bool) -> int:
    """Unix milliseconds; of a time between two, the one inside the range."""
    try:
        if _DATE.fullmatch(text):
            day = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
            return _ms(day + timedelta(days=1)) - 1 if last else _ms(day)
        found = _RFC3339.fullmatch(text)
        if found:
            whole, fraction = f"{found[1]}T{found[2]}{found[4].upper()}", (found[3] or "").ljust(9, "0")
            millis, rest = int(fraction[:3]), int(fraction[3:])
            return _ms(datetime.fromisoformat(whole)) + millis + (1 if rest and not last else 0)
    except (ValueError, OverflowError):
        pass
    raise InvalidField(
        f"{text!r} is no time",
        field=field_,
        fix="give a date such as 2026-11-01, or RFC 3339 such as 2026-11-01T00:00:00Z (a + is written %2B)",
    )


def _ms(moment: datetime) -> int:
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


def _text(millis: int) -> str:
    moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=millis)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def counts(status: int) -> bool:
    """Whether a request with that answer is counted: what a client got wrong (4xx) has used nothing."""
    return status not in _CLIENT_ERRORS


@dataclass(frozen=True, slots=True)
class Count:
    """So many requests of one user, from one country, of one kind, to one service."""

    service: str
    owner: str
    """Owner of the service; empty when the source can't tell."""
    kind: RequestKind
    user: str
    """Empty when nobody had to log in, or the source has no users."""
    entrance: str
    country: str
    number: int


@dataclass(frozen=True, slots=True)
class Requests:
    """What a source knows of the requests in a range."""

    counts: Sequence[Count]
    sources: Sequence[SourceStatus]

    @property
    def missing(self) -> bool:
        """Whether none of the sources could be asked."""
        return all(source.state is SourceState.MISSING for source in self.sources)

    def missing_for(self, kind: RequestKind) -> bool:
        """Whether the source of that kind could not be asked."""
        return self.of(kind).state is SourceState.MISSING

    def of(self, kind: RequestKind) -> SourceStatus:
        """The source that tells of that kind: the last one of exposed services, the first one of all else."""
        return self.sources[-1] if kind is RequestKind.EXPOSED else self.sources[0]


@dataclass(frozen=True, slots=True)
class Hours:
    """Hours of CPU and of GPUs that a service has used; None: not known."""

    cpu: float | None
    gpu: float | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a source knows of CPU and GPU hours."""

    hours: Hours
    source: SourceStatus


def hours_of(microseconds: int) -> float:
    """Microseconds as hours."""
    return microseconds / _HOUR_US


MayName = Callable[[Count], bool]
"""Whether the user of such requests may be named to who asks; he counts in any case."""


@dataclass(slots=True)
class _Group:
    """Sums of one row."""

    kinds: dict[RequestKind, int] = field(default_factory=lambda: dict.fromkeys(RequestKind, 0))
    users: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    countries: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    entrances: set[str] = field(default_factory=set)

    def add(self, count: Count, *, named: bool) -> None:
        self.kinds[count.kind] += count.number
        self.entrances.add(count.entrance)
        if count.user:
            self.users.add(count.user)
            if named:
                self.named.add(count.user)
        if count.country:
            self.countries[count.country] += count.number

    def numbers(self) -> dict[str, int]:
        total = sum(self.kinds.values())
        return {
            "requests_count_total": total,
            "requests_count_sync": self.kinds[RequestKind.SYNC],
            "requests_count_async": self.kinds[RequestKind.ASYNC],
            "requests_count_exposed": self.kinds[RequestKind.EXPOSED],
        }

    def country_list(self) -> list[dict[str, Any]]:
        return [
            {"country": country, "request_count": number}
            for country, number in sorted(self.countries.items())
        ]

    def membership(self) -> str:
        """Who logged in himself is a member, who came by a service's token is external."""
        if self.entrances & {"oidc", "basic", "s3"}:
            return "member"
        return "external" if "token" in self.entrances else "unknown"


def summary(requests: Requests, usage: Usage, *, active: int, may_name: MayName) -> dict[str, Any]:
    """The totals of `types.SummaryTotals`; figures whose source is missing are left out.

    Args:
        requests: of the services that may be seen.
        usage: of the same.
        active: how many services there are now.
        may_name: which users may be named.
    """
    group = _Group()
    seen = set()
    for count in requests.counts:
        group.add(count, named=may_name(count))
        seen.add((count.owner, count.service))
    totals: dict[str, Any] = {"services_count_active": active}
    if not requests.missing:
        totals |= {
            "services_count_total": len(seen),
            **_known(group.numbers(), requests),
            "countries_count": len(group.countries),
            "countries": group.country_list(),
            "users_count": len(group.users),
            "users": sorted(group.named),
        }
    if usage.hours.cpu is not None:
        totals["cpu_hours_total"] = usage.hours.cpu
    if usage.hours.gpu is not None:
        totals["gpu_hours_total"] = usage.hours.gpu
    return totals


def _known(numbers: dict[str, int], requests: Requests) -> dict[str, int]:
    """Without the numbers whose source is missing, and then without their sum."""
    absent = {f"requests_count_{kind.value}" for kind in RequestKind if requests.missing_for(kind)}
    if absent:
        absent |= {"requests_count_total", "executions_count"}
    return {name: number for name, number in numbers.items() if name not in absent}


def service_value(key: MetricKey, requests: Requests, usage: Usage) -> dict[str, Any]:
    """One metric of one service (`types.ServiceMetricValue`); without a value when its source is missing."""
    value, unit, sources = _value(key, requests, usage)
    shown: dict[str, Any] = {"metric": key.value}
    if value is not None:
        shown["value"] = value
    return shown | {"unit": unit, "sources": [source.described() for source in sources]}


def _value(
    key: MetricKey, requests: Requests, usage: Usage
) -> tuple[float | None, str, Sequence[SourceStatus]]:
    if key in USAGE:
        value = usage.hours.cpu if key is MetricKey.CPU_HOURS else usage.hours.gpu
        return value, "hours", [usage.source]
    kind = _KINDS.get(key)
    if kind is not None:
        absent = requests.missing_for(kind)
        number = sum(count.number for count in requests.counts if count.kind is kind)
        return None if absent else number, "requests", [requests.of(kind)]
    if key is MetricKey.USERS_PER_SERVICE:
        found, unit = {count.user for count in requests.counts} - {""}, "users"
    else:
        found, unit = {count.country for count in requests.counts} - {""}, "countries"
    return None if requests.missing else len(found), unit, requests.sources


_KINDS = {
    MetricKey.REQUESTS_SYNC: RequestKind.SYNC,
    MetricKey.REQUESTS_ASYNC: RequestKind.ASYNC,
    MetricKey.REQUESTS_EXPOSED: RequestKind.EXPOSED,
}


def breakdown(
    requests: Requests, by: GroupBy, *, may_name: MayName, with_users: bool = False
) -> list[dict[str, Any]]:
    """The rows of a breakdown (`types.BreakdownItem`), by their keys.

    Users who may not be named are one row without a key together; so are requests without a user. Countries that are
    not known are the row `unknown`.
    """
    groups: dict[tuple[str, str], _Group] = defaultdict(_Group)
    for count in requests.counts:
        named = may_name(count)
        match by:
            case GroupBy.SERVICE:
                key = (count.service, count.owner)
            case GroupBy.USER:
                key = (count.user if named else "", "")
            case GroupBy.COUNTRY:
                key = (count.country or UNKNOWN, "")
        groups[key].add(count, named=named)
    names: dict[str, int] = defaultdict(int)
    for name, _ in groups:
        names[name] += 1
    return [
        _row(f"{owner}/{name}" if names[name] > 1 else name, group, by, requests, with_users=with_users)
        for (name, owner), group in sorted(groups.items(), key=lambda item: item[0])
    ]


UNKNOWN = "unknown"


def _row(key: str, group: _Group, by: GroupBy, requests: Requests, *, with_users: bool) -> dict[str, Any]:
    numbers = group.numbers()
    row: dict[str, Any] = {"key": key}
    if by is GroupBy.USER:
        row["membership"] = group.membership() if key else UNKNOWN
    row |= _known({"executions_count": numbers["requests_count_total"], **numbers}, requests)
    row["unique_users_count"] = len(group.users)
    if with_users:
        row["users"] = sorted(group.named)
    if by is GroupBy.COUNTRY:
        row["countries"] = [{"country": key, "request_count": numbers["requests_count_total"]}]
    else:
        row["countries"] = group.country_list()
    return row


COLUMNS = {
    GroupBy.SERVICE: (
        *("key", "membership", "requests_count_total", "requests_count_sync", "requests_count_async"),
        *("requests_count_exposed", "unique_users_count", "countries"),
    ),
    GroupBy.USER: ("key", "membership", "executions_count", "countries"),
    GroupBy.COUNTRY: ("key", "membership", "executions_count", "unique_users_count", "countries"),
}
"""The columns of the CSV form, as OSCAR has them."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(rows: Iterable[dict[str, Any]], by: GroupBy) -> str:
    """A breakdown as CSV (RFC 4180); countries as `ES:3|FR:1`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS[by])
    for row in rows:
        cells = dict(row)
        cells["countries"] = "|".join(f"{one['country']}:{one['request_count']}" for one in row["countries"])
        writer.writerow([_cell(cells.get(column, "")) for column in COLUMNS[by]])
    return text.getvalue()


def _cell(value: object) -> str:
    """A name that a spreadsheet would take for a formula gets a quote before it."""
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(_FORMULA) else text


def parse_metric(text: str) -> MetricKey:
    """A metric of one service.

    Raises:
        InvalidField: there is none of that name, or it is not one of a service.
    """
    fix = "take one of " + ", ".join(key.value for key in PER_SERVICE) + ", or none for all"
    try:
        key = MetricKey(text)
    except ValueError:
        raise InvalidField(f"There is no metric {text!r}", field="metric", fix=fix) from None
    if key not in PER_SERVICE:
        raise InvalidField(f"{text} is no metric of one service", field="metric", fix=fix)
    return key
