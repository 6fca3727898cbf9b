"""Lines of logs about requests: how ours are written, and what is read from ours and from those of ingresses. Pure.

Written by `core.executions` for calls and uploads; read by `sources.lines` for metrics. Forms: that of OSCAR
(`[GIN-EXECUTIONS-LOGGER] <RFC3339Nano UTC> | <status> | <latency> | <ip> | <METHOD> <path> | <user>`), our JSON with
the same and more, nginx's combined form (with the fields of ingress-nginx behind it), and Traefik's CLF and JSON
(https://doc.traefik.io/traefik/observability/access-logs/).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from oscar.model.request import RequestKind

LOGGER = "GIN-EXECUTIONS-LOGGER"
REPEATED = "repeated"
"""A seventh field: the answer to an earlier request was given again."""
_FIELDS = 6
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Access:
    """A request as a line tells it. Fields that a form does not have are empty."""

    started: int
    """When it came, Unix microseconds."""
    seconds: float
    status: int
    address: str
    method: str
    path: str
    user: str = ""
    owner: str = ""
    """Owner of the service."""
    entrance: str = ""
    country: str = ""
    request_id: str = ""
    repeated: bool = False
    names_users: bool = True
    """Whether lines of this form tell who called."""

    @property
    def target(self) -> tuple[RequestKind, str] | None:
        """The kind of the request and the name of the service, by its path; None when it is of none."""
        return target(self.path)


def target(path: str) -> tuple[RequestKind, str] | None:
    """What the path of a request calls; None when no service."""
    plain = path.partition("?")[0]
    for prefix, kind in _CALLS:
        if plain.startswith(prefix):
            name = plain.removeprefix(prefix).rstrip("/")
            return (kind, name) if name and "/" not in name else None
    found = _EXPOSED.match(plain)
    return (RequestKind.EXPOSED, found[1]) if found else None


_CALLS = (("/job/", RequestKind.ASYNC), ("/run/", RequestKind.SYNC))
_EXPOSED = re.compile(r"/system/services/([^/]+)/exposed(?:/|$)")


def text_line(access: Access) -> str:
    """The line in OSCAR's form, without the newline."""
    line = (
        f"[{LOGGER}] {_nanos(_ended(access))} | {access.status} | {access.seconds * 1000:.3f}ms | "
        f"{access.address or '-'} | {access.method} {_escaped(access.path)} | {_escaped(access.user) or '-'}"
    )
    return f"{line} | {REPEATED}" if access.repeated else line


def json_line(access: Access) -> str:
    """The line as JSON, without the newline."""
    fields: dict[str, Any] = {
        "logger": LOGGER,
        "time": _nanos(_ended(access)),
        "status": access.status,
        "latency_ms": round(access.seconds * 1000, 3),
        "address": access.address,
        "method": access.method,
        "path": access.path,
        "user": access.user,
        "request_id": access.request_id,
        "owner": access.owner,
        "entrance": access.entrance,
        "country": access.country,
    }
    return json.dumps(fields | ({REPEATED: True} if access.repeated else {}))


def _ended(access: Access) -> int:
    return access.started + round(access.seconds * 1e6)


def _nanos(microseconds: int) -> str:
    moment = _EPOCH + timedelta(microseconds=microseconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode().replace("|", "\\x7c")


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError:
        return text


def parse(line: str) -> Access | None:
    """What a line of any of the forms tells; None when it is of none of them."""
    try:
        start = line.find("{")
        if start >= 0 and line.rstrip().endswith("}"):
            with contextlib.suppress(ValueError, KeyError):
                found = _of_json(line[start:])
                if found is not None:
                    return found
        return _of_gin(line) or _of_ingress(line)
    except (ValueError, OverflowError, TypeError):
        return None


def _of_gin(line: str) -> Access | None:
    _, marker, rest = line.partition(f"[{LOGGER}]")
    if not marker:
        _, marker, rest = line.partition("[GIN]")
    fields = [field.strip() for field in rest.split("|")]
    if not marker or len(fields) < _FIELDS:
        return None
    seconds = duration(fields[2])
    method, _, path = fields[4].partition(" ")
    return Access(
        started=_moment(fields[0]) - round(seconds * 1e6),
        seconds=seconds,
        status=int(fields[1]),
        address=_plain(fields[3]),
        method=method,
        path=_unescaped(path.strip().strip('"')),
        user=_unescaped(_plain(fields[5])),
        repeated=REPEATED in fields[_FIELDS:],
    )


def _of_json(text: str) -> Access | None:
    fields = json.loads(text)
    if not isinstance(fields, dict):
        return None
    if fields.get("logger") == LOGGER:
        seconds = float(fields["latency_ms"]) / 1000
        return Access(
            started=_moment(fields["time"]) - round(seconds * 1e6),
            seconds=seconds,
            status=int(fields["status"]),
            address=_word(fields, "address"),
            method=_word(fields, "method"),
            path=_word(fields, "path"),
            user=_word(fields, "user"),
            request_id=_word(fields, "request_id"),
            owner=_word(fields, "owner"),
            entrance=_word(fields, "entrance"),
            country=_word(fields, "country"),
            repeated=bool(fields.get(REPEATED)),
        )
    if "RequestPath" in fields and "DownstreamStatus" in fields:
        return _of_traefik(fields)
    # Collectors put lines of programs into JSON of their own.
    inner = fields.get("log") or fields.get("message") or fields.get("msg")
    return parse(inner) if isinstance(inner, str) and inner != text else None


def _word(fields: Mapping[str, Any], name: str) -> str:
    return str(fields.get(name) or "")


def _of_traefik(fields: Mapping[str, Any]) -> Access:
    return Access(
        started=_moment(str(fields.get("StartUTC") or fields["time"])),
        seconds=int(fields.get("Duration") or 0) / 1e9,
        status=int(fields["DownstreamStatus"]),
        address=str(fields.get("ClientHost") or ""),
        method=str(fields.get("RequestMethod") or ""),
        path=str(fields["RequestPath"]),
        names_users=False,
    )


_COMBINED = re.compile(
    r'(?P<address>\S+) \S+ \S+ \[(?P<time>[^\]]+)\] "(?P<method>[A-Z]+) (?P<path>\S+)[^"]*" (?P<status>\d{3})'
    r'(?: \S+(?: "(?:[^"\\]|\\.)*" "(?:[^"\\]|\\.)*"(?P<more>.*))?)?'
)
_INGRESS = re.compile(r" \d+ (\d+\.\d+)(?: |$)")
"""ingress-nginx goes on with the length of the request and its time in seconds."""
_TRAEFIK = re.compile(r' \d+ "[^"]*" "[^"]*" (\d+)ms\s*$')
"""Traefik goes on with a number, the router, the server and the time; its moment is when the request came."""


def _of_ingress(line: str) -> Access | None:
    found = _COMBINED.search(line)
    if not found:
        return None
    more = found["more"] or ""
    traefik, ingress = _TRAEFIK.match(more), _INGRESS.match(more)
    moment = datetime.strptime(found["time"], "%d/%b/%Y:%H:%M:%S %z")
    time = (moment - _EPOCH) // timedelta(microseconds=1)
    seconds = int(traefik[1]) / 1000 if traefik else float(ingress[1]) if ingress else 0.0
    return Access(
        started=time if traefik else time - round(seconds * 1e6),
        seconds=seconds,
        status=int(found["status"]),
        address=found["address"],
        method=found["method"],
        path=found["path"],
        names_users=False,
    )


def _plain(text: str) -> str:
    return "" if text == "-" else text


_TIME = re.compile(r"(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?(Z|[+-]\d{2}:\d{2})", re.ASCII)


def _moment(text: str) -> int:
    """Unix microseconds of a time of RFC 3339. Raises ValueError."""
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(text)
    whole = datetime.fromisoformat(found[1] + found[3])
    return (whole - _EPOCH) // timedelta(microseconds=1) + int((found[2] or "").ljust(9, "0")[:6])


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|μs|ms|h|m|s)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Seconds of a duration as Go writes it: `4.2ms`, `1m2.5s`.

    Raises:
        ValueError: it is none.
    """
    parts = _DURATION.findall(text)
    if "".join(f"{number}{unit}" for number, unit in parts) != text or not parts:
        raise ValueError(text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
