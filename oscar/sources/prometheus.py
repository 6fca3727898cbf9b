"""CPU and GPU hours from Prometheus, by its HTTP API: https://prometheus.io/docs/prometheus/latest/querying/api/.

Made by `app.figures` where `PROMETHEUS_URL` is set, and on Kubernetes; a `sources.base.UsageSource`. A Prometheus that
does not answer in two seconds makes its figures missing, never the whole answer late.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import httpx2

from oscar.errors import Misuse, OscarError, Unavailable
from oscar.model.metrics import Hours, Range, SourceState, SourceStatus, Usage
from oscar.sources.templates import ANY, fill, regex

NAME = "prometheus"
TIMEOUT = 2.0
_ROOM, _SHORT = 24, 16
_LONGEST = 20_000
"""Characters of the names of services in one query; more are asked in several."""


class PrometheusUsage:
    """Asks Prometheus."""

    def __init__(self, client: httpx2.AsyncClient, *, cpu: str, gpu: str, namespaces: str) -> None:
        """Ask by that client, whose base is Prometheus' address.

        Args:
            client: with the address.
            cpu: query of CPU hours, with the placeholders `{{service}}`, `{{range}}` and `{{services_namespace}}`.
            gpu: of GPU hours.
            namespaces: a regular expression of the namespaces of all services.
        """
        self._client = client
        self._queries = {"CPU": cpu, "GPU": gpu}
        self._namespaces = namespaces

    async def usage(self, range_: Range, services: frozenset[tuple[str, str]] | None = None) -> Usage:
        """See `UsageSource`. Prometheus knows services by name only, whoever owns them."""
        if services is not None and not services:
            return Usage(Hours(0.0, 0.0), SourceStatus(NAME))
        names = _alternatives(services)
        results: list[tuple[float, str] | BaseException] = await asyncio.gather(
            *(self._hours(query, range_, names) for query in self._queries.values()), return_exceptions=True
        )
        source = SourceStatus(NAME)
        hours: list[float | None] = []
        for what, result in zip(self._queries, results, strict=True):
            if isinstance(result, OscarError):
                source = source.with_note(f"{what}: {result.message}")
                hours.append(None)
            elif isinstance(result, BaseException):
                raise result
            else:
                hours.append(result[0])
                if result[1]:
                    notes = f"{source.notes}; {what}: {result[1]}" if source.notes else f"{what}: {result[1]}"
                    source = replace(source, notes=notes)
        if hours == [None, None]:
            source = SourceStatus(NAME, SourceState.MISSING, source.notes)
        return Usage(Hours(hours[0], hours[1]), source)

    async def _hours(self, query: str, range_: Range, names: list[str]) -> tuple[float, str]:
        """The sum over all services, and what is to be said of it. Raises OscarError."""
        try:
            async with asyncio.timeout(TIMEOUT):
                values = await asyncio.gather(*(self._value(query, range_, each) for each in names))
        except TimeoutError:
            raise Unavailable(f"Prometheus did not answer in {TIMEOUT:g} s") from None
        known = [value for value in values if value is not None]
        # It may have used nothing, or nobody may have measured it.
        return math.fsum(known), "" if known else "no series fits the query"

    async def _value(self, template: str, range_: Range, name: str) -> float | None:
        seconds = max(1, round((range_.end - range_.start) / 1000))
        try:
            query = fill(
                template, {"service": name, "range": f"{seconds}s", "services_namespace": self._namespaces}
            )
        except Misuse as error:
            raise Unavailable(error.message) from error
        data = {"query": query, "time": f"{range_.end / 1000:.3f}"}
        try:
            answer = await self._client.post("/api/v1/query", data=data, timeout=TIMEOUT)
        except httpx2.HTTPError as error:
            raise Unavailable(f"Prometheus does not answer: {type(error).__name__}") from error
        if answer.status_code != httpx2.codes.OK:
            raise Unavailable(f"Prometheus answers {answer.status_code}: {answer.text.strip()[:200]}")
        return _sum(answer)


def _alternatives(services: frozenset[tuple[str, str]] | None) -> list[str]:
    """Regular expressions of the names of services, each short enough for a query."""
    if services is None:
        return [ANY]
    names = sorted({_pattern(name) for _, name in services})
    if len(names) == 1:
        return names
    found: list[list[str]] = [[]]
    size = 0
    for name in names:
        if size + len(name) > _LONGEST:
            found.append([])
            size = 0
        found[-1].append(name)
        size += len(name) + 1
    return [f"({'|'.join(each)})" for each in found]


def _pattern(name: str) -> str:
    """How names of a service's pods begin: jobs of long names have them cut (`core.events.new_id`)."""
    cut = name[:_SHORT]
    return f"({regex(name)}|{regex(cut)})" if len(name) > _ROOM else regex(name)


def _sum(answer: httpx2.Response) -> float | None:
    """The sum of what was found; None when nothing was."""
    try:
        data: Any = answer.json()["data"]
        match data["resultType"]:
            case "scalar":
                values = [float(data["result"][1])]
            case "vector":
                values = [float(each["value"][1]) for each in data["result"]]
            case _:
                raise Unavailable("The query must give a vector or a number at one moment")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Unavailable("What Prometheus answers is not of its API") from error
    found = [value for value in values if math.isfinite(value)]
    return math.fsum(found) if found else None
