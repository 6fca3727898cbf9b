"""Calls about metrics, and what they answer: who used what.

Part of `client.rest.Client`; used by `oscar metrics`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pydantic import BaseModel, ConfigDict

from oscar.client.records import Time, without_nulls
from oscar.client.wire import path


class _Record(BaseModel):
    # A command needs one or two of them.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class SourceStatus(_Record):
    """How a source of figures did."""

    name: str
    status: str
    """`ok`, `partial` or `missing`."""
    notes: str = ""
    last_updated: Time = None


class CountryCount(_Record):
    """Requests from a country."""

    country: str
    request_count: int


class MetricValue(_Record):
    """One figure of a service."""

    metric: str
    value: float | None = None
    """None when its source is missing."""
    unit: str = ""
    sources: tuple[SourceStatus, ...] = ()


class ServiceMetrics(_Record):
    """Figures of a service in a range of time."""

    service_name: str
    start: Time
    end: Time
    metrics: tuple[MetricValue, ...] = ()

    @classmethod
    def read(cls, data: Any) -> ServiceMetrics:
        """From the server's JSON, in which absent lists may be null."""
        return cls.model_validate(without_nulls(data))


class MetricsTotals(_Record):
    """Figures of all services; None for those whose source is missing."""

    services_count_active: int = 0
    services_count_total: int | None = None
    requests_count_total: int | None = None
    requests_count_sync: int | None = None
    requests_count_async: int | None = None
    requests_count_exposed: int | None = None
    cpu_hours_total: float | None = None
    gpu_hours_total: float | None = None
    countries_count: int | None = None
    countries: tuple[CountryCount, ...] = ()
    users_count: int | None = None
    users: tuple[str, ...] = ()


class MetricsSummary(_Record):
    """Figures of all services in a range of time."""

    start: Time
    end: Time
    totals: MetricsTotals
    sources: tuple[SourceStatus, ...] = ()

    @classmethod
    def read(cls, data: Any) -> MetricsSummary:
        """From the server's JSON, in which absent lists may be null."""
        return cls.model_validate(without_nulls(data))


class BreakdownItem(_Record):
    """One row of a breakdown."""

    key: str
    membership: str = ""
    executions_count: int = 0
    requests_count_total: int = 0
    requests_count_sync: int = 0
    requests_count_async: int = 0
    requests_count_exposed: int = 0
    unique_users_count: int = 0
    users: tuple[str, ...] = ()
    countries: tuple[CountryCount, ...] = ()


class Breakdown(_Record):
    """Requests by service, user or country."""

    start: Time
    end: Time
    group_by: str
    items: tuple[BreakdownItem, ...] = ()
    sources: tuple[SourceStatus, ...] = ()

    @classmethod
    def read(cls, data: Any) -> Breakdown:
        """From the server's JSON, in which absent lists may be null."""
        return cls.model_validate(without_nulls(data))


class MetricsCalls(ABC):
    """The calls."""

    @abstractmethod
    async def _object(self, method: str, where: str, **options: Any) -> dict[str, Any]:
        """A JSON object from the server."""

    @abstractmethod
    async def _text(self, method: str, where: str, **options: Any) -> str:
        """A text from the server."""

    async def metrics(self, *, start: str | None = None, end: str | None = None) -> MetricsSummary:
        """Totals of all services that one may see.

        Args:
            start: RFC 3339 time or date, included; 24 hours before `end` when absent.
            end: the same; now when absent.
        """
        params = _given(start=start, end=end)
        return MetricsSummary.read(await self._object("GET", "/system/metrics", params=params))

    async def service_metrics(
        self,
        name: str,
        *,
        metric: str | None = None,
        start: str | None = None,
        end: str | None = None,
        owner: str | None = None,
    ) -> ServiceMetrics:
        """The metrics of one service, all of them or the one named; times as in `metrics`."""
        params = _given(metric=metric, start=start, end=end, owner=owner)
        where = path("system", "metrics", name)
        return ServiceMetrics.read(await self._object("GET", where, params=params))

    async def breakdown(
        self, by: str, *, start: str | None = None, end: str | None = None, include_users: bool = False
    ) -> Breakdown:
        """Requests by `service`, `user` or `country`; times as in `metrics`."""
        params = {"group_by": by, **_given(start=start, end=end)}
        if include_users:
            params["include_users"] = "true"
        return Breakdown.read(await self._object("GET", "/system/metrics/breakdown", params=params))

    async def breakdown_csv(self, by: str, *, start: str | None = None, end: str | None = None) -> str:
        """The same as CSV."""
        params = {"group_by": by, "format": "csv", **_given(start=start, end=end)}
        return await self._text("GET", "/system/metrics/breakdown", params=params)


def _given(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}
