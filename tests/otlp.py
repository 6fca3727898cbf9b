"""A receiver of traces: OTLP over HTTP as protobuf, in this process, for tests of what the server tells.

https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.federation import eventually
from tests.listening import listening

PATH = "/v1/traces"


@dataclass(frozen=True, slots=True)
class Told:
    """A span as it came; times in nanoseconds."""

    name: str
    trace: str
    span: str
    parent: str
    start: int
    end: int
    kind: int
    attributes: dict[str, Any]
    failed: bool
    message: str
    state: str
    """`tracestate`."""
    resource: dict[str, Any]

    @property
    def header(self) -> str:
        """As `traceparent`."""
        return f"00-{self.trace}-{self.span}-01"


@dataclass(slots=True)
class Receiver:
    """What was told."""

    url: str = ""
    spans: list[Told] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    """Bodies as they came."""

    def settings(self) -> dict[str, str]:
        """Of a server that tells its traces here, at once."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def of(self, trace: str) -> list[Told]:
        """Spans of a trace, in the order of their beginnings."""
        return sorted((span for span in list(self.spans) if span.trace == trace), key=lambda span: span.start)

    def job(self, job_id: str, name: str = "job", *, cluster: str | None = None) -> Told:
        """A span of a job, as soon as it is told."""

        def found() -> list[Told]:
            return [
                span
                for span in list(self.spans)
                if span.name == name
                and span.attributes.get("oscar.job") == job_id
                and cluster in {None, span.resource.get("oscar.cluster")}
            ]

        spans: Sequence[Told] = eventually(found, lambda spans: len(spans) == 1)
        return spans[0]

    def until(self, trace: str, enough: Callable[[list[Told]], bool]) -> list[Told]:
        """The spans of a trace as soon as there are enough."""
        found: list[Told] = eventually(lambda: self.of(trace), enough)
        return found

    def take(self, body: bytes) -> None:
        """Read a message."""
        self.raw.append(body)
        message = ExportTraceServiceRequest.FromString(body)
        for of_resource in message.resource_spans:
            resource = _plain(of_resource.resource.attributes)
            self.spans += [
                Told(
                    name=span.name,
                    trace=span.trace_id.hex(),
                    span=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    kind=span.kind,
                    attributes=_plain(span.attributes),
                    failed=span.status.code == Status.STATUS_CODE_ERROR,
                    message=span.status.message,
                    state=span.trace_state,
                    resource=resource,
                )
                for of_scope in of_resource.scope_spans
                for span in of_scope.spans
            ]


def _plain(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


@contextmanager
def receiver() -> Iterator[Receiver]:
    """One for as long as the block lasts."""
    it = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            good = self.path == PATH and self.headers["Content-Type"] == "application/x-protobuf"
            if good:
                it.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            said = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if good else 404)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the standard library
            pass

    with listening(Handler) as it.url:
        yield it
