"""Metrics: who used what, in a range of time, as far as who asks may see it.

Called by `api.metrics`; asks the sources of the platform (`sources.base`) and puts answers together by `model.metrics`.
A service's figures are seen by who sees the service; those of a deleted one by who owned it. Users are named to
administrators, to the owner of the service that they called, and to themselves.

`run` is the upkeep: it adds new records up by hour and day, and prunes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oscar import telemetry
from oscar.auth.rules import Action, may, may_administer, require_user
from oscar.core import services
from oscar.core.platform import Platform
from oscar.errors import BadRequest, InvalidField, OscarError, ServiceNotFound, Unavailable
from oscar.model.metrics import (
    PER_SERVICE,
    Count,
    GroupBy,
    Range,
    Requests,
    as_csv,
    breakdown,
    parse_metric,
    parse_range,
    service_value,
    summary,
)
from oscar.model.user import Caller
from oscar.state.usage_hours import Reading

log = telemetry.get("metrics")

_MEASURE_S = 20.0
_ROLL_ROUNDS = 3
_PAUSE_S = 0.05
_PRUNE_S = 3600.0

Service = tuple[str, str]
"""Owner and name."""


@dataclass(frozen=True, slots=True)
class _View:
    """What the caller may see."""

    caller: Caller
    present: frozenset[Service]
    """Services that are there and that he may see."""
    hidden: frozenset[Service]
    """Those that are there and that he may not see."""

    def sees(self, service: Service) -> bool:
        """Whether he sees the figures of a service, which may have been deleted."""
        if may_administer(self.caller) or service in self.present:
            return True
        return service not in self.hidden and service[0] == self.caller.id

    def may_name(self, count: Count) -> bool:
        """Whether the user of such requests is named to him."""
        mine = self.caller.id in {count.owner, count.user}
        return may_administer(self.caller) or mine


async def _view(p: Platform, caller: Caller) -> _View:
    things = [((row.owner, row.name), services.thing(p, row)) for row in await p.services.rows()]
    seen = frozenset(key for key, thing in things if may(caller, Action.SEE, thing))
    return _View(caller, seen, frozenset(key for key, _ in things) - seen)


async def totals(p: Platform, caller: Caller, *, start: str | None, end: str | None) -> dict[str, Any]:
    """The summary of all services that the caller may see (`types.MetricsSummaryResponse`).

    Raises:
        InvalidField, BadRequest (400): the range.
    """
    require_user(caller)
    range_ = parse_range(start, end, now=_now())
    view = await _view(p, caller)
    everything = may_administer(caller)
    found = await _requests(p, view, range_)
    mine = None if everything else await _services(p, view)
    usage = await p.figures.usage.usage(range_, mine)
    sums = summary(found, usage, active=len(view.present), may_name=view.may_name)
    sources = [*found.sources, usage.source]
    return {**range_.described(), "totals": sums, "sources": [source.described() for source in sources]}


async def of_service(
    p: Platform,
    caller: Caller,
    name: str,
    *,
    metric: str | None,
    start: str | None,
    end: str | None,
    owner: str | None = None,
) -> dict[str, Any]:
    """The metrics of one service, all of them or one (`types.ServiceMetricsResponse`).

    With one metric the answer is also a `types.MetricValueResponse`.

    Raises:
        InvalidField, BadRequest (400): a parameter; ServiceNotFound (404): there never was one that he may see.
    """
    require_user(caller)
    keys = [parse_metric(metric)] if metric else list(PER_SERVICE)
    range_ = parse_range(start, end, now=_now())
    view = await _view(p, caller)
    service = await _chosen(p, view, name, owner)
    found = await _requests(p, view, range_, service)
    usage = await p.figures.usage.usage(range_, frozenset({service}))
    values = [service_value(key, found, usage) for key in keys]
    answer = {"service_name": name, **range_.described(), "metrics": values}
    return answer | ({"service_id": name, **values[0]} if metric else {})


async def grouped(
    p: Platform,
    caller: Caller,
    *,
    by: str | None,
    start: str | None,
    end: str | None,
    include_users: bool = False,
    form: str = "json",
) -> dict[str, Any] | str:
    """A breakdown (`types.MetricsBreakdownResponse`), or its text as CSV.

    Raises:
        InvalidField, BadRequest (400): a parameter; Unavailable (503): CSV, which can't say that its source is missing.
    """
    require_user(caller)
    group = _group(by)
    if form not in {"json", "csv"}:
        raise InvalidField(f"There is no format {form!r}", field="format", fix="take json or csv")
    if include_users and form == "csv":
        raise BadRequest(
            "A list of users has no place in CSV", field="include_users", fix="ask for format=json"
        )
    if include_users and group is not GroupBy.SERVICE:
        raise BadRequest("Users are listed by service", field="include_users", fix="ask for group_by=service")
    range_ = parse_range(start, end, now=_now())
    view = await _view(p, caller)
    found = await _requests(p, view, range_)
    rows = breakdown(found, group, may_name=view.may_name, with_users=include_users)
    if form == "csv":
        gone = [source for source in found.sources if source.state.value == "missing"]
        if gone:
            raise Unavailable(f"The source {gone[0].name} is missing: {gone[0].notes}", fix="ask for JSON")
        return as_csv(rows, group)
    return {
        **range_.described(),
        "group_by": group.value,
        "items": rows,
        "sources": [source.described() for source in found.sources],
    }


def _group(by: str | None) -> GroupBy:
    try:
        return GroupBy((by or "").lower())
    except ValueError:
        message = f"Nothing can be grouped by {by!r}" if by else "group_by is missing"
        raise InvalidField(message, field="group_by", fix="take service, user or country") from None


async def _requests(p: Platform, view: _View, range_: Range, service: Service | None = None) -> Requests:
    """Requests of the services that may be seen, or of one; services of logs get the owner that they must have."""
    await p.recorder.flush()
    found = await p.figures.requests.requests(range_, service[1] if service else None)
    counts, unclear = found.counts, set[str]()
    if any(not count.owner for count in counts):
        owners = _owners(view, await p.figures.recorded.owners(service[1] if service else None))
        counts, unclear = _owned(counts, owners, service)
    sources = list(found.sources)
    if unclear:
        sources[0] = sources[0].with_note(
            "services of one name under several owners can't be told apart: " + ", ".join(sorted(unclear))
        )
    seen = [
        count
        for count in counts
        if (service is None or (count.owner, count.service) == service)
        and view.sees((count.owner, count.service))
    ]
    return Requests(seen, sources)


def _owners(view: _View, recorded: set[Service]) -> dict[str, set[str]]:
    """Who has, or had, a service of each name."""
    owners: dict[str, set[str]] = {}
    for owner, name in recorded | view.present | view.hidden:
        owners.setdefault(name, set()).add(owner)
    return owners


def _owned(
    counts: Any, owners: Mapping[str, set[str]], service: Service | None
) -> tuple[list[Count], set[str]]:
    """Counts with the owner of their service; those of names that are not clear are left out, and named."""
    known: list[Count] = []
    unclear = set()
    for count in counts:
        if count.owner:
            known.append(count)
            continue
        possible = owners.get(count.service, set())
        if len(possible) > 1:
            unclear.add(count.service)
            continue
        owner = next(iter(possible), service[0] if service else "")
        known.append(
            Count(
                *(count.service, owner, count.kind, count.user, count.entrance, count.country, count.number)
            )
        )
    return known, unclear


async def _services(p: Platform, view: _View) -> frozenset[Service]:
    """All services whose figures may be seen, deleted ones included."""
    return view.present | {service for service in await _ever(p) if view.sees(service)}


async def _ever(p: Platform, name: str | None = None) -> set[Service]:
    """All services that were ever called or used something, or those of one name."""
    return await p.figures.recorded.owners(name) | await p.figures.used.owners(name)


async def _chosen(p: Platform, view: _View, name: str, owner: str | None) -> Service:
    """The one service of that name that the caller may see; one that is there goes before deleted ones."""
    there = {service for service in view.present if service[1] == name}
    gone = {each for each in await _ever(p, name) if view.sees(each)} - there
    possible = [each for each in (*sorted(there), *sorted(gone)) if owner in {None, each[0]}]
    mine = [each for each in possible if each[0] == view.caller.id]
    if len(possible) == 1 or (possible and owner is not None):
        return possible[0]
    if len(mine) == 1:
        return mine[0]
    if possible:
        raise BadRequest(
            f'More than one service named "{name}" is open to you',
            field="owner",
            fix="choose one by ?owner=" + " or ?owner=".join(each[0] for each in possible),
        )
    raise ServiceNotFound(f'There is no service named "{name}", or you may not see it', field="serviceName")


def _now() -> int:
    return int(time.time() * 1000)


async def run(p: Platform) -> None:
    """Upkeep until cancelled; a last reading then, as warm workers end with their server."""
    try:
        await _keep_up(p)
    finally:
        try:
            await measure(p)
        except OscarError as error:
            log.warning("what was used last is not known", error=error.message)


async def _keep_up(p: Platform) -> None:
    pruned = float("-inf")
    rounds = 0
    while True:
        try:
            await measure(p)
            rounds += 1
            if rounds % _ROLL_ROUNDS != 1:
                await asyncio.sleep(_MEASURE_S)
                continue
            if p.leader.mine:
                await _in_batches(p.figures.recorded.roll_up)
            if p.leader.mine and time.monotonic() - pruned > _PRUNE_S:
                pruned = time.monotonic()
                await _prune(p)
        except OscarError as error:
            log.warning("metrics wait", error=error.message)
        await asyncio.sleep(_MEASURE_S)


async def measure(p: Platform) -> None:
    """Add what warm workers and replicas have used since the last time."""
    readings = []
    for source in p.figures.measures:
        now = _now()
        readings += [
            Reading(each.name, each.owner, each.service, each.cpu, each.gpus, began=now, read=now)
            for each in await source.metered()
        ]
    if readings:
        await p.figures.used.add(readings)


async def _in_batches(work: Callable[[], Awaitable[int]]) -> None:
    """Do it until nothing is left to do; others get their turn between."""
    left = await work()
    while left:
        await asyncio.sleep(_PAUSE_S)
        left = await work()


async def _prune(p: Platform) -> None:
    await _in_batches(p.figures.recorded.prune)
    await p.figures.used.prune()
