"""Lines about requests, ours and those of ingresses: what is written is read back."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oscar.model.access_log import Access, duration, json_line, parse, target, text_line
from oscar.model.request import RequestKind

PATH = st.text(st.characters(exclude_characters="?", exclude_categories=["Cs"]), min_size=1).map(
    lambda end: f"/run/a{end}"
)
ACCESSES = st.builds(
    Access,
    started=st.integers(0, 4 * 10**15),
    seconds=st.integers(0, 10**9).map(lambda micros: micros / 1e6),
    status=st.integers(100, 599),
    address=st.sampled_from(["192.0.2.1", "2001:db8::1", ""]),
    method=st.sampled_from(["GET", "POST"]),
    path=PATH.filter(lambda path: path == path.strip().strip('"')),
    user=st.text(st.characters(exclude_categories=["Cs"])).filter(
        lambda user: user == user.strip() and user != "-"
    ),
    owner=st.text(st.characters(exclude_categories=["Cs"])),
    entrance=st.sampled_from(["", "oidc", "token"]),
    country=st.sampled_from(["", "ES"]),
    request_id=st.sampled_from(["", "abc"]),
    repeated=st.booleans(),
)

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Nothing of these tests is about time."""


def micros(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1e6)


@PATIENT
@given(ACCESSES)
def test_json_lines_are_read_back(access: Access) -> None:
    line = json_line(access)
    assert "\n" not in line
    found = parse(line)
    assert found is not None
    assert abs(found.started - access.started) <= 1
    assert found == replace(access, started=found.started, seconds=found.seconds)


@PATIENT
@given(ACCESSES)
def test_text_lines_are_read_back(access: Access) -> None:
    line = text_line(access)
    assert "\n" not in line
    found = parse(line)
    assert found is not None
    assert abs(found.started - access.started) <= 1
    for name in ("status", "address", "method", "path", "user", "repeated"):
        assert getattr(found, name) == getattr(access, name), name
    assert (found.owner, found.entrance, found.country) == ("", "", "")


@PATIENT
@given(st.text())
def test_any_text_is_no_trouble(text: str) -> None:
    parse(text)
    parse(f"[GIN-EXECUTIONS-LOGGER] {text}")
    parse("{" + text + "}")
    parse(f'192.0.2.1 - - [{text}] "GET {text}" 200')


def test_lines_as_oscar_writes_them() -> None:
    found = parse(
        "[GIN-EXECUTIONS-LOGGER] 2026-11-23T10:12:13.123456789Z | 200 |     1.5s |     192.0.2.7 | POST    /run/thumb"
        " | 62bb11b40398f73778b66f344d282242debb8ee3ab76@egi.eu"
    )
    assert found is not None
    assert found.started == micros("2026-11-23T10:12:11.623456+00:00")
    assert (found.status, found.address, found.method, found.path) == (200, "192.0.2.7", "POST", "/run/thumb")
    assert found.user == "62bb11b40398f73778b66f344d282242debb8ee3ab76@egi.eu"
    assert found.target == (RequestKind.SYNC, "thumb")


def test_lines_inside_those_of_a_runtime_and_of_a_collector() -> None:
    line = "[GIN-EXECUTIONS-LOGGER] 2026-11-23T10:12:13Z | 201 | 2ms | 192.0.2.7 | POST /job/thumb | ann"
    assert parse(f"2026-11-23T10:12:13.5Z stdout F {line}") == parse(line)
    assert parse(json.dumps({"log": line, "stream": "stdout"})) == parse(line)


NGINX = (
    '192.0.2.9 - svc [23/Nov/2026:10:12:13 +0000] "GET /system/services/web/exposed/page?x=%22 HTTP/1.1" 200 615 '
    '"https://example.org/\\x22quoted" "Mozilla/5.0 (X11; Linux)"'
)


def test_lines_of_nginx() -> None:
    found = parse(NGINX)
    assert found is not None
    assert found.started == micros("2026-11-23T10:12:13+00:00")
    assert (found.status, found.address, found.names_users) == (200, "192.0.2.9", False)
    assert found.target == (RequestKind.EXPOSED, "web")
    assert found.user == ""


def test_lines_of_ingress_nginx_have_a_duration() -> None:
    line = f"{NGINX} 512 3.250 [oscar-svc-web-80] [] 10.244.0.7:80 615 3.249 200 4b1a"
    found = parse(line)
    assert found is not None
    assert found.seconds == 3.25
    assert found.started == micros("2026-11-23T10:12:09.750+00:00")


def test_lines_of_traefik() -> None:
    found = parse(f'{NGINX} 17 "web@kubernetes" "http://10.244.0.7:80" 2500ms')
    assert found is not None
    assert (found.seconds, found.started) == (2.5, micros("2026-11-23T10:12:13+00:00"))
    as_json = {
        "ClientHost": "192.0.2.9",
        "DownstreamStatus": 302,
        "Duration": 1_500_000_000,
        "RequestMethod": "GET",
        "RequestPath": "/system/services/web/exposed",
        "StartUTC": "2026-11-23T10:12:13.25Z",
        "time": "2026-11-23T10:12:15Z",
    }
    found = parse(json.dumps(as_json))
    assert found is not None
    assert (found.status, found.address, found.seconds) == (302, "192.0.2.9", 1.5)
    assert found.started == micros("2026-11-23T10:12:13.250+00:00")
    assert found.target == (RequestKind.EXPOSED, "web")


def test_times_of_an_ingress_have_an_offset() -> None:
    found = parse(NGINX.replace("+0000", "+0200"))
    assert found is not None
    assert found.started == round(datetime(2026, 11, 23, 8, 12, 13, tzinfo=UTC).timestamp() * 1e6)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/run/thumb", (RequestKind.SYNC, "thumb")),
        ("/run/thumb/?owner=ann", (RequestKind.SYNC, "thumb")),
        ("/job/thumb", (RequestKind.ASYNC, "thumb")),
        ("/system/services/web/exposed", (RequestKind.EXPOSED, "web")),
        ("/system/services/web/exposed/a/b", (RequestKind.EXPOSED, "web")),
        ("/system/services/web/exposedness", None),
        ("/system/services/web", None),
        ("/run/", None),
        ("/run/a/b", None),
        ("/other/run/thumb", None),
        ("", None),
    ],
)
def test_what_a_path_calls(path: str, expected: object) -> None:
    assert target(path) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("4.2ms", 0.0042), ("1m2.5s", 62.5), ("150µs", 0.00015), ("1h0m0s", 3600.0), ("0s", 0.0)],
)
def test_durations_of_go(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "5 ms", "ms", "-1s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError):
        duration(text)
