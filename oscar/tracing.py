"""Traces: what becomes of uploads, calls and jobs, as spans of OpenTelemetry that are sent by OTLP over HTTP.

`configure` is called once by each process (`app`). Without an endpoint there are no traces, and what makes them is not
imported. A span is told when it has ended, with the times that were written down by then; the ids of jobs' spans follow
from those of the jobs, so that other processes and servers can point at them, also after a restart. Where one is in a
trace travels as W3C trace context (`model.trace`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import oscar
from oscar import telemetry
from oscar.model.trace import Place, identity
from oscar.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = telemetry.get("tracing")

_NS = 1_000_000
_PATH = "/v1/traces"
_FAULT = 500


class Kind(StrEnum):
    """What a span is to others."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Span:
    """What has ended. Times are Unix milliseconds."""

    name: str
    place: Place
    parent: Place | None
    start: float
    end: float
    kind: Kind = Kind.INTERNAL
    attributes: Mapping[str, str | int] = field(default_factory=dict)
    problem: str | None = None
    """Why it failed, for people."""


@dataclass(slots=True)
class Here:
    """A request that is being served, as what it causes sees it."""

    place: Place
    parent: Place | None
    used: bool = False
    """Something was caused by it."""


class _Teller:
    """Has spans made with the ids that they are to have, and sent."""

    def __init__(self, provider: TracerProvider, ids: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("oscar", oscar.__version__)
        self._ids = ids

    def samples(self, trace: int) -> bool:
        """Whether a trace that begins here is told: OpenTelemetry's sampler says so."""
        from opentelemetry.sdk.trace.sampling import Decision

        result = self._provider.sampler.should_sample(None, trace, "")
        return bool(result.decision is Decision.RECORD_AND_SAMPLE)

    def tell(self, span: Span) -> None:
        from opentelemetry import trace

        context = None
        if span.parent is not None:
            flags = trace.TraceFlags(int(span.parent.sampled))
            state = trace.TraceState.from_header([span.parent.state]) if span.parent.state else None
            at = (span.parent.trace, span.parent.span)
            parent = trace.SpanContext(*at, is_remote=True, trace_flags=flags, trace_state=state)
            context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        self._ids.place = span.place
        told = self._tracer.start_span(
            span.name,
            context,
            kind=trace.SpanKind[span.kind.name],
            attributes=dict(span.attributes),
            start_time=int(span.start * _NS),
        )
        if span.problem is not None:
            told.set_status(trace.Status(trace.StatusCode.ERROR, span.problem))
        told.end(int(max(span.start, span.end) * _NS))

    def close(self) -> None:
        self._provider.shutdown()


_teller: _Teller | None = None
_here: ContextVar[Here | None] = ContextVar("here", default=None)


def configure(settings: Settings, *, process: str) -> None:
    """Tell traces from now on, where the settings name an endpoint.

    Args:
        settings: the endpoints and the name; the SDK reads the other variables of OpenTelemetry itself.
        process: which one of the server this is.
    """
    global _teller  # noqa: PLW0603 - one for the process, as its log is
    endpoint = settings.otlp_traces_endpoint
    if not endpoint and settings.otlp_endpoint:
        endpoint = settings.otlp_endpoint.rstrip("/") + _PATH
    if not endpoint:
        return
    try:
        _teller = _open(settings, endpoint, process)
    except ImportError as error:
        log.warning(
            "an endpoint for traces is set, and what sends them is not installed",
            missing=error.name,
            fix="pip install 'oscar-platform[telemetry]', or unset OTEL_EXPORTER_OTLP_ENDPOINT",
        )
    else:
        log.info("traces are sent", process=process)


def _open(settings: Settings, endpoint: str, process: str) -> _Teller:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Ids(IdGenerator):
        """Gives the ids of the span that is told next."""

        place = Place(1, 1)

        def generate_span_id(self) -> int:
            return self.place.span

        def generate_trace_id(self) -> int:
            return self.place.trace

    known = {
        "service.name": settings.otel_service_name or settings.name,
        "service.version": oscar.__version__,
        "oscar.process": process,
    }
    if settings.cluster_id:
        known["oscar.cluster"] = settings.cluster_id
    ids = Ids()
    provider = TracerProvider(resource=Resource.create(known), id_generator=ids, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return _Teller(provider, ids)


def close() -> None:
    """Send what waits, and tell nothing any more."""
    global _teller
    teller, _teller = _teller, None
    if teller is not None:
        teller.close()


def enabled() -> bool:
    """Whether traces are told."""
    return _teller is not None


def tell(*spans: Span) -> None:
    """Have spans sent; does not wait for that."""
    if _teller is not None:
        for span in spans:
            _teller.tell(span)


def root(*words: object) -> Place:
    """A trace that begins here: always the same for the same words, a new one without."""
    trace = identity(16, *words)
    return Place(trace, identity(8, *words, "root"), _teller is not None and _teller.samples(trace))


def begin(parent: Place | None) -> Here | None:
    """A request, in its caller's trace if it is in one; None when no traces are told."""
    if _teller is None:
        return None
    return Here(parent.child() if parent else root(), parent)


def served(
    request: Here,
    name: str,
    *,
    method: str,
    path: str,
    started: float,
    seconds: float,
    status: int,
) -> None:
    """Tell of a request that has been answered.

    Args:
        request: where it is in its trace.
        name: of the span: few, so without names of services.
        method: HTTP's.
        path: without query.
        started: Unix seconds.
        seconds: it took.
        status: of the answer.
    """
    facts: dict[str, str | int] = {
        "http.request.method": method,
        "url.path": path,
        "http.response.status_code": status,
    }
    problem = f"answered {status}" if status >= _FAULT else None
    start = started * 1000
    place, parent = request.place, request.parent
    tell(Span(name, place, parent, start, start + seconds * 1000, Kind.SERVER, facts, problem))


@contextmanager
def within(here: Here | None) -> Iterator[None]:
    """Serve it: what is caused inside the block can point at it."""
    token = _here.set(here)
    try:
        yield
    finally:
        _here.reset(token)


def here() -> Here | None:
    """The request that is being served."""
    return _here.get()


def cause() -> str | None:
    """What a job that is accepted now is caused by, as its row keeps it (`Place.text`)."""
    return cause_of(_here.get())


def cause_of(request: Here | None) -> str | None:
    """The same for a request that is known."""
    if request is None:
        return None
    request.used = True
    return request.place.text()


def job_place(job_id: str, trace: str | None) -> tuple[Place, Place | None]:
    """The span of a job and the one above it, from its id and from what its row keeps of its cause."""
    parent = Place.kept(trace)
    return (parent.child("job", job_id) if parent else root("job", job_id)), parent
