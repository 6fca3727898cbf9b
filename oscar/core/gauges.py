"""How the server does, for Prometheus: `GET /metrics` in its text form.

Called by `api.metrics`; `app.edge` tells each call of a service to `requests.Timings`, which costs a
microsecond. All else is
asked when somebody scrapes: jobs by state, leases, how long the queue and events wait, warm workers.
Format: https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING

import oscar
from oscar.auth.rules import may_administer
from oscar.compute.crew import CrewStats, HasWorkers
from oscar.core.platform import Platform
from oscar.core.requests import BOUNDS, Timings
from oscar.errors import Forbidden
from oscar.model.request import RequestKind
from oscar.model.user import Caller

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def may_scrape(p: Platform, caller: Caller | None, address: str, *, forwarded: bool) -> bool:
    """Whether who asks may read, as `OSCAR_METRICS_ACCESS` says.

    Args:
        p: the platform.
        caller: who logged in; None when nobody did.
        address: of the client.
        forwarded: a proxy has passed the request on, so that the address may be the proxy's.

    Raises:
        Forbidden: somebody else than an administrator logged in.
    """
    access = p.settings.metrics_access
    if access == "all" or (access == "loopback" and not forwarded and _is_loopback(address)):
        return True
    if caller is None:
        return False
    if not may_administer(caller):
        raise Forbidden("Only an administrator may read this")
    return True


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


async def scrape(p: Platform) -> bytes:
    """What there is to tell now."""
    # Only who is scraped pays for it.
    from prometheus_client.exposition import generate_latest
    from prometheus_client.registry import CollectorRegistry

    found = [*_calls(p.recorder.timings), *await _queue(p), *_workers(p)]

    class Found:
        def collect(self) -> Iterator[Metric]:
            return iter(found)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Found())
    return generate_latest(registry)


def _calls(timings: Timings) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    total = CounterMetricFamily("oscar_calls", "Calls of services, answered", labels=["kind", "status"])
    took = HistogramMetricFamily("oscar_call_seconds", "How long they took", labels=["kind"])
    for kind in RequestKind:
        for number, count in enumerate(timings.statuses[kind]):
            if number:
                total.add_metric([kind.value, f"{number}xx"], count)
        below, buckets = 0, []
        for bound, count in zip([*map(str, BOUNDS), "+Inf"], timings.counts[kind], strict=True):
            below += count
            buckets.append((bound, below))
        took.add_metric([kind.value], buckets, timings.seconds[kind])
    yield total
    yield took


async def _queue(p: Platform) -> list[Metric]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    about = InfoMetricFamily("oscar_build", "The program")
    about.add_metric([], {"version": oscar.__version__, "engine": p.compute.describe()})
    jobs = GaugeMetricFamily("oscar_jobs", "Jobs that are known, by state", labels=["state"])
    for state, count in (await p.jobs.counts()).items():
        jobs.add_metric([state.value], count)
    waits = await p.jobs.waits()
    lag = GaugeMetricFamily(
        "oscar_queue_oldest_seconds", "How long the oldest job that is due has waited", labels=["kind"]
    )
    for kind in ("api", "event"):
        lag.add_metric([kind], waits.oldest.get(kind, 0) / 1000)
    leases = GaugeMetricFamily("oscar_leases", "Jobs held by a dispatcher", labels=["state"])
    leases.add_metric(["held"], waits.held)
    leases.add_metric(["expired"], waits.expired)
    return [about, jobs, lag, leases]


def _workers(p: Platform) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    stats: list[CrewStats] = p.invokes.stats() if isinstance(p.invokes, HasWorkers) else []
    workers = GaugeMetricFamily("oscar_workers", "Warm workers, by what they do", labels=["state"])
    for state in ("starting", "idle", "busy"):
        workers.add_metric([state], sum(getattr(each, state) for each in stats))
    yield workers
    waiting = GaugeMetricFamily("oscar_calls_waiting", "Synchronous calls that wait for a worker")
    waiting.add_metric([], sum(each.waiting for each in stats))
    yield waiting
    cold = CounterMetricFamily("oscar_cold_starts", "Workers started while a call waited, by service")
    cold.add_metric([], sum(each.cold_starts for each in stats))
    yield cold
    took = GaugeMetricFamily(
        "oscar_cold_start_seconds", "How long the last of them took on average", labels=["service", "owner"]
    )
    for each in stats:
        if each.cold_start_ms is not None:
            took.add_metric([each.service, each.owner], each.cold_start_ms / 1000)
    yield took
