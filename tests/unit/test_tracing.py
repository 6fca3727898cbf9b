"""Trace context, and the spans that rows of jobs make."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from oscar import tracing
from oscar.compute.base import Phase, RunState
from oscar.core.traces import spans
from oscar.model.job import Job, JobState
from oscar.model.trace import Place, place_in
from oscar.model.trouble import Trouble

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("flags", ["00", "01", "02", "03", "ff"])
def test_a_traceparent_is_read_and_written(flags: str) -> None:
    place = Place.read(f"00-{TRACE}-{SPAN}-{flags}")
    assert place == Place(int(TRACE, 16), int(SPAN, 16), bool(int(flags, 16) & 1))
    assert place.header() == f"00-{TRACE}-{SPAN}-{int(flags, 16) & 1:02x}"


def test_later_versions_may_say_more() -> None:
    assert Place.read(f"01-{TRACE}-{SPAN}-01-more") == Place.read(f"00-{TRACE}-{SPAN}-01")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
    ],
)
def test_what_is_no_traceparent_is_none(header: str | None) -> None:
    assert Place.read(header) is None


PARENT = (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())


def state(*headers: str) -> str:
    """What is handed on of those headers `tracestate`."""
    place = place_in([(b"host", b"x"), PARENT, *((b"tracestate", header.encode()) for header in headers)])
    assert place is not None
    assert place.header() == PARENT[1].decode()
    return place.state


def test_two_traceparents_say_nothing() -> None:
    assert place_in([(b"host", b"x"), PARENT]) == Place.read(PARENT[1].decode())
    assert place_in([PARENT, PARENT]) is None
    assert place_in([(b"tracestate", b"a=1")]) is None


@pytest.mark.parametrize(
    ("headers", "handed_on"),
    [
        ([], ""),
        (["a=1"], "a=1"),
        (["a=1 , b@c=2x,", "", "\t,d-_*/=3"], "a=1,b@c=2x,d-_*/=3"),
        (["a= x y"], "a= x y"),
        (
            [",".join(f"m{number}=x" for number in range(32))],
            ",".join(f"m{number}=x" for number in range(32)),
        ),
        # None of it when a part is none.
        (["a=1,b"], ""),
        (["a=1,a=2"], ""),
        (["A=1"], ""),
        (["a=ü"], ""),
        ([f"a={'x' * 257}"], ""),
        (["a=b=c"], ""),
        ([",".join(f"m{number}=x" for number in range(33))], ""),
        # What is long goes first, then what stands last.
        ([f"a=1,b={'x' * 256},c={'y' * 256}"], "a=1"),
        (
            [f"a={'x' * 120},b={'x' * 120},c={'y' * 200},d=4,e={'z' * 120}"],
            f"a={'x' * 120},b={'x' * 120},d=4,e={'z' * 120}",
        ),
        (
            [",".join(f"m{number}={'x' * 120}" for number in range(6))],
            ",".join(f"m{number}={'x' * 120}" for number in range(4)),
        ),
    ],
)
def test_a_tracestate_is_handed_on(headers: list[str], handed_on: str) -> None:
    assert state(*headers) == handed_on


def test_a_place_is_kept_in_a_line() -> None:
    for given in ("", "a=1,b= x y"):
        place = Place(int(TRACE, 16), int(SPAN, 16), sampled=False, state=given)
        assert Place.kept(place.text()) == place
        assert place.child("x").state == place.child().state == given
    assert place.headers() == {"traceparent": f"00-{TRACE}-{SPAN}-00", "tracestate": "a=1,b= x y"}
    assert Place.kept(f"00-{TRACE}-{SPAN}-01") == Place.read(f"00-{TRACE}-{SPAN}-01")
    assert Place.kept("") is Place.kept(None) is None


def test_a_jobs_span_follows_from_its_id_and_its_cause() -> None:
    cause = f"00-{TRACE}-{SPAN}-01"
    place, parent = tracing.job_place("x-1", cause)
    assert (place, parent) == tracing.job_place("x-1", cause)
    assert (place.trace, parent) == (int(TRACE, 16), Place.read(cause))
    assert place.span != tracing.job_place("x-2", cause)[0].span
    elsewhere = f"00-{TRACE}-{SPAN[::-1]}-01"
    assert place.span != tracing.job_place("x-1", elsewhere)[0].span
    alone, nobody = tracing.job_place("x-1", None)
    assert nobody is None
    assert alone.trace not in {0, int(TRACE, 16)}


JOB = Job(
    **dict.fromkeys((field.name for field in dataclasses.fields(Job)), None)  # type: ignore[arg-type]
    | {"id": "x-1", "service_name": "x", "kind": "api", "state": JobState.SUBMITTING, "attempt": 1}
    | {"created": 1000, "next_try": 1000, "updated": 1100}
)
"""Claimed at 1100."""
DONE = RunState("x-1-1", Phase.DONE, exit_code=0, started=1500, ended=2500, finished=2600)


def told(state: RunState, job: Job = JOB) -> list[tuple[str, float, float, str | None]]:
    return [(span.name, span.start, span.end, span.problem) for span in spans(job, state)]


def test_an_attempt_that_succeeded() -> None:
    assert told(DONE) == [
        ("stage-in", 1100, 1500, None),
        ("run", 1500, 2500, None),
        ("stage-out", 2500, 2600, None),
    ]


def test_an_attempt_whose_script_failed() -> None:
    failed = dataclasses.replace(DONE, trouble=Trouble.SCRIPT, exit_code=2, message="no luck")
    assert told(failed)[1:] == [("run", 1500, 2500, "no luck")]


def test_an_attempt_whose_results_could_not_be_stored() -> None:
    failed = dataclasses.replace(DONE, trouble=Trouble.OUR, message="no store")
    assert told(failed)[1:] == [("run", 1500, 2500, None), ("stage-out", 2500, 2600, "no store")]


def test_an_attempt_that_came_to_no_script() -> None:
    failed = RunState("x-1-1", Phase.DONE, Trouble.REFUSED, "no input", finished=1300)
    assert told(failed) == [("stage-in", 1100, 1300, "no input")]


def test_parts_whose_times_a_restart_forgot_are_left_out() -> None:
    assert told(DONE, dataclasses.replace(JOB, updated=1600))[0][0] == "run"
    lost = RunState("x-1-1", Phase.DONE, Trouble.LOST, "gone", started=1500)
    assert told(lost) == [("stage-in", 1100, 1500, None)]


def test_without_an_endpoint_nothing_that_makes_traces_is_loaded() -> None:
    code = (
        "import sys; from oscar import tracing; from oscar.settings import Settings; from oscar.app import serve\n"
        "tracing.configure(Settings(otlp_endpoint='', otlp_traces_endpoint=''), process='api')\n"
        "assert not tracing.enabled() and tracing.begin(None) is None\n"
        "assert 'opentelemetry.sdk' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_endpoint_without_the_extra_is_said_and_stops_nothing() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "from oscar import telemetry, tracing; from oscar.settings import Settings\n"
        "telemetry.configure()\n"
        "tracing.configure(Settings(otlp_endpoint='http://127.0.0.1:1'), process='api')\n"
        "assert not tracing.enabled()"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr
    assert "oscar-platform[telemetry]" in said
