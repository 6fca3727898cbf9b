"""`oscar metrics`: who used what.

Calls `oscar.client`.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from oscar.cli import output
from oscar.cli.output import JsonOption
from oscar.cli.session import ClusterOption, ConfigOption, client, run
from oscar.client import Breakdown, MetricsSummary, ServiceMetrics
from oscar.errors import Misuse

_Start = Annotated[str | None, typer.Option(help="RFC 3339 time or date, included; a day before the end.")]
_End = Annotated[str | None, typer.Option(help="RFC 3339 time or date, included; now when absent.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("metrics")(metrics)


def metrics(
    service: Annotated[
        str | None, typer.Argument(metavar="SERVICE", help="One service; the totals of all when absent.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Rows by service, user or country.")] = None,
    users: Annotated[bool, typer.Option("--users", help="With the users of each service.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Rows as CSV.")] = False,
    start: _Start = None,
    end: _End = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who used what."""
    if by is None and (users or csv):
        raise Misuse("--users and --csv are about rows", fix="say by what: --by service")
    if by is not None and service is not None:
        raise Misuse("rows are of all services", fix="leave out --by, or the service")
    server = client(cluster, config)

    async def work() -> MetricsSummary | ServiceMetrics | Breakdown | str:
        async with server:
            if by is not None and csv:
                return await server.breakdown_csv(by, start=start, end=end)
            if by is not None:
                return await server.breakdown(by, start=start, end=end, include_users=users)
            if service is not None:
                return await server.service_metrics(service, start=start, end=end)
            return await server.metrics(start=start, end=end)

    found = run(work())
    if isinstance(found, str):
        output.raw(found.encode())
    elif as_json:
        output.as_json(found.model_dump(mode="json", exclude_unset=True))
    else:
        _show(found, users=users)


def _show(found: MetricsSummary | ServiceMetrics | Breakdown, *, users: bool) -> None:
    match found:
        case Breakdown():
            _rows(found, users=users)
            sources = found.sources
        case ServiceMetrics():
            output.table(
                ("METRIC", "VALUE", "UNIT"),
                [(each.metric, _number(each.value), each.unit) for each in found.metrics],
            )
            sources = tuple({source for each in found.metrics for source in each.sources})
        case MetricsSummary():
            totals: dict[str, Any] = found.totals.model_dump()
            rows = [(name, _number(value)) for name, value in totals.items() if not isinstance(value, tuple)]
            output.table(("TOTAL", "VALUE"), rows)
            sources = found.sources
    for source in sources:
        if source.status != "ok":
            output.warn(f"{source.name} is {source.status}: {source.notes}")


def _rows(found: Breakdown, *, users: bool) -> None:
    headings = [found.group_by.upper(), "SYNC", "ASYNC", "EXPOSED", "TOTAL", "USERS", "COUNTRIES"]
    rows = []
    for item in found.items:
        countries = " ".join(f"{each.country}:{each.request_count}" for each in item.countries)
        kinds = (item.requests_count_sync, item.requests_count_async, item.requests_count_exposed)
        names = " ".join(item.users) if users else item.unique_users_count
        rows.append([item.key or "-", *kinds, item.requests_count_total, names, countries])
    output.table(headings, rows)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")
