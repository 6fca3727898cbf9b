"""Where metrics come from: from settings to the sources.

Called by `lifespan`. Requests come from Loki where `LOKI_URL` is set, else from our own records, else, where none are
kept, from the server's own log. CPU and GPU hours come from Prometheus where `PROMETHEUS_URL` is set or the engine is
Kubernetes, else from the accounting of our engines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from oscar.compute.base import Measures
from oscar.core.platform import Figures
from oscar.settings import Settings
from oscar.sources.base import RequestSource, UsageSource
from oscar.sources.templates import regex
from oscar.state.metrics import RecordedRequests
from oscar.state.store import Store
from oscar.state.usage_hours import UsedHours

_USAGE_S = 34_560_000
"""Seconds that hours of CPU are kept where no requests are."""


def open_figures(
    settings: Settings,
    store: Store,
    country_of: Callable[[str], str],
    measures: Sequence[Measures],
    stack: contextlib.AsyncExitStack,
) -> Figures:
    """The sources that the settings name.

    Args:
        settings: all.
        store: our own records.
        country_of: the country of an address.
        measures: what tells of warm workers and replicas.
        stack: closes what is opened.
    """
    recorded = RecordedRequests(store, keep=settings.requests_ttl)
    used = UsedHours(store, keep=settings.requests_ttl or _USAGE_S)
    requests: RequestSource = recorded
    if settings.loki_url:
        requests = _loki(settings, country_of, stack)
    elif not settings.requests_ttl:
        requests = _own_log(settings, country_of, alone=store.is_sqlite)
    usage = _prometheus(settings, stack) if settings.prometheus else used
    return Figures(requests, usage, recorded, used, measures)


def _own_log(settings: Settings, country_of: Callable[[str], str], *, alone: bool) -> RequestSource:
    from oscar.sources import own_log
    from oscar.sources.lines import LogRequests

    def lines(name: str) -> own_log.OwnLog:
        return own_log.OwnLog(settings.server_log, name=name, alone=alone)

    return LogRequests(lambda: lines(own_log.CALLS), lambda: lines(own_log.EXPOSED), country_of)


def _loki(
    settings: Settings, country_of: Callable[[str], str], stack: contextlib.AsyncExitStack
) -> RequestSource:
    # Only who asks for it pays for a client of HTTP.
    import httpx2

    from oscar.sources.lines import LogRequests
    from oscar.sources.loki import LokiLines, Query

    client = httpx2.AsyncClient(base_url=settings.loki_url.rstrip("/"))
    stack.push_async_callback(client.aclose)
    calls = Query(
        "loki",
        settings.loki_query,
        {"namespace": settings.namespace, "app": settings.name},
        path="/(job|run)/%s",
    )
    exposed = Query(
        "exposed-request-logs",
        settings.loki_exposed_query,
        {"namespace": settings.loki_exposed_namespace, "app": settings.loki_exposed_app},
        path="/system/services/%s/exposed",
    )
    return LogRequests(lambda: LokiLines(client, calls), lambda: LokiLines(client, exposed), country_of)


def _prometheus(settings: Settings, stack: contextlib.AsyncExitStack) -> UsageSource:
    import httpx2

    from oscar.sources.prometheus import PrometheusUsage

    client = httpx2.AsyncClient(base_url=settings.prometheus.rstrip("/"))
    stack.push_async_callback(client.aclose)
    return PrometheusUsage(
        client,
        cpu=settings.prometheus_cpu_query,
        gpu=settings.prometheus_gpu_query,
        # Tenants have namespaces of their own, whose names begin with the one of all.
        namespaces=f"{regex(settings.services_namespace)}(-.*)?",
    )
