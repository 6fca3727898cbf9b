"""Lines of logs from Loki, by its HTTP API: https://grafana.com/docs/loki/latest/reference/loki-http-api/.

Made by `app.figures` where `LOKI_URL` is set; `sources.lines` counts what it gives. A long range is asked in windows,
because Loki refuses long ones, and each window page by page.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from oscar.errors import Unavailable
from oscar.model.metrics import Range
from oscar.sources.lines import LATE_MS, Line
from oscar.sources.templates import ANY, fill, has, quoted, regex

_PAGE = 5000
"""Lines a page: what Loki gives at most, unless it is told otherwise."""
_WINDOW_MS = 7 * 86_400_000
"""Its default limit is 30 days and an hour."""
_TIMEOUT = 10.0
_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class Query:
    """What to ask."""

    name: str
    """Of the source."""
    template: str
    values: Mapping[str, str]
    """Of its placeholders, but for the service."""
    path: str
    """How paths of requests begin, with `%s` for the service: narrows a template that has no `{{service}}`."""

    def of(self, service: str | None) -> str:
        """The query for one service, or for all."""
        name = ANY if service is None else regex(service)
        query = fill(self.template, {**self.values, "service": name})
        if service is not None and not has(self.template, "service"):
            query += f" |~ {quoted(self.path % name)}"
        return query


class LokiLines:
    """The lines of one question; a `sources.lines.Lines`."""

    def __init__(self, client: httpx2.AsyncClient, query: Query, *, page: int = _PAGE) -> None:
        """Ask by that client, whose base is Loki's address."""
        self.name = query.name
        self.notes: list[str] = []
        self._client = client
        self._query = query
        self._page = page

    async def lines(self, range_: Range, service: str | None) -> AsyncIterator[Line]:
        """See `Lines.lines`."""
        query = self._query.of(service)
        # Loki's end is not included.
        start, end = range_.start * _NS, (range_.end + LATE_MS + 1) * _NS
        while start < end:
            until = min(start + _WINDOW_MS * _NS, end)
            async for line in self._window(query, start, until):
                yield line
            start = until

    async def _window(self, query: str, start: int, end: int) -> AsyncIterator[Line]:
        while True:
            found = await self._ask(query, start, end)
            if len(found) < self._page:
                for _, line in found:
                    yield line
                return
            last = found[-1][0]
            if last == start:
                # More lines of one moment than fit on a page: those beyond it can't be had.
                self.notes.append(f"more than {self._page} lines of one moment")
                last += 1
            # The last moment may go on behind the page, so it is asked for again, whole.
            for moment, line in found:
                if moment < last:
                    yield line
            start = last

    async def _ask(self, query: str, start: int, end: int) -> list[tuple[int, Line]]:
        """A page of lines with their moments in nanoseconds, in the order of time."""
        params: dict[str, str | int] = {
            "query": query,
            "start": start,
            "end": end,
            "limit": self._page,
            "direction": "forward",
        }
        try:
            answer = await self._client.get("/loki/api/v1/query_range", params=params, timeout=_TIMEOUT)
        except httpx2.HTTPError as error:
            raise Unavailable(f"Loki does not answer: {type(error).__name__}") from error
        if answer.status_code != httpx2.codes.OK:
            raise Unavailable(f"Loki answers {answer.status_code}: {answer.text.strip()[:200]}")
        return _decoded(answer)


def _decoded(answer: httpx2.Response) -> list[tuple[int, Line]]:
    try:
        data: Any = answer.json()["data"]
        if data["resultType"] != "streams":
            raise Unavailable("LOKI_QUERY must ask for lines, and asks for numbers")
        found = [
            (int(moment), Line(text, stream["stream"]))
            for stream in data["result"]
            for moment, text, *_ in stream["values"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable("What Loki answers is not of its API") from error
    found.sort(key=lambda each: each[0])
    return found
