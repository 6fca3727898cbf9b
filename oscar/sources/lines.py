"""The port to lines of logs, and what metrics make of them: `LogRequests`.

Lines come from Loki (`sources.loki`) or from the logs of pods (`compute.kubernetes`); `model.access_log` reads them.
Called by `core.metrics` as a `RequestSource`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from oscar.errors import OscarError
from oscar.model.access_log import Access, parse
from oscar.model.metrics import Count, Range, Requests, SourceState, SourceStatus, counts
from oscar.model.request import RequestKind

PATIENCE = 60.0
"""Seconds for all lines of a question; what came until then is told as a part."""
LATE_MS = 600_000
"""Lines are written when a request ends, and collected later: so much after the range is read too."""
_LABELS = ("geoip_country_code", "country_code", "country")
_CODE = 2


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log, with the labels that its collector gave it."""

    text: str
    labels: Mapping[str, str] = field(default_factory=dict)


class Lines(Protocol):
    """A place that keeps lines."""

    name: str
    """Of the source, as the API has it."""
    notes: list[str]
    """What could not be read during the last question."""

    def lines(self, range_: Range, service: str | None) -> AsyncIterator[Line]:
        """Lines written in the range that may be about the service, or any service; others among them do no harm.

        Raises:
            OscarError: the place can't be asked.
        """


class LogRequests:
    """Counts requests in lines: calls from one place, requests to exposed services from another."""

    def __init__(
        self, calls: Callable[[], Lines], exposed: Callable[[], Lines], country_of: Callable[[str], str]
    ) -> None:
        """Read from those places, each made anew for a question; `country_of` tells the country of an address."""
        self._calls = calls
        self._exposed = exposed
        self._country_of = country_of

    async def requests(self, range_: Range, service: str | None = None) -> Requests:
        """See `sources.base.RequestSource`."""
        found = await asyncio.gather(
            self._read(self._calls(), range_, service, exposed=False),
            self._read(self._exposed(), range_, service, exposed=True),
        )
        return Requests([each for found_, _ in found for each in found_], [source for _, source in found])

    async def _read(
        self, place: Lines, range_: Range, service: str | None, *, exposed: bool
    ) -> tuple[list[Count], SourceStatus]:
        sums: Counter[tuple[str, str, RequestKind, str, str, str]] = Counter()
        source = SourceStatus(place.name)
        nameless = False
        try:
            async with asyncio.timeout(PATIENCE):
                async for line in place.lines(range_, service):
                    access = parse(line.text)
                    key = access and self._key(access, line, range_, service, exposed=exposed)
                    if access and key:
                        sums[key] += 1
                        nameless |= not access.names_users
        except TimeoutError:
            source = source.with_note(f"not all lines could be read in {PATIENCE:.0f} s")
        except OscarError as error:
            return [], SourceStatus(place.name, SourceState.MISSING, error.message)
        if nameless:
            source = source.with_note("these lines don't tell users")
        for note in place.notes:
            source = source.with_note(note)
        return [
            Count(name, owner, kind, user, entrance, country, number)
            for (name, owner, kind, user, entrance, country), number in sums.items()
        ], source

    def _key(
        self, access: Access, line: Line, range_: Range, service: str | None, *, exposed: bool
    ) -> tuple[str, str, RequestKind, str, str, str] | None:
        """What a request is counted under; None when it is not."""
        target = access.target
        if target is None or access.repeated or not counts(access.status):
            return None
        kind, name = target
        inside = range_.start <= access.started // 1000 <= range_.end
        if (kind is RequestKind.EXPOSED) is not exposed or not inside or service not in {None, name}:
            return None
        # OSCAR only takes calls by POST; others are no calls of a service.
        if not exposed and access.method != "POST":
            return None
        country = access.country or _labelled(line.labels) or self._country_of(access.address)
        return name, access.owner, kind, access.user, access.entrance, country


def _labelled(labels: Mapping[str, str]) -> str:
    """The code of a country in the labels of a line."""
    for name in _LABELS:
        value = labels.get(name, "").strip()
        if len(value) == _CODE and value.isalpha():
            return value.upper()
    return ""
