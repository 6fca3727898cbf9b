"""What starts a job, decoded: a payload of `POST /job`, `POST /run`, a webhook or another cluster.

The API checks payloads with `check_payload` when they come in, `core.jobs` splits events into one job per
object, the supervisor's plan asks what to fetch. Kinds and their order are those of OSCAR's FaaS supervisor.
On any input at all the only error is `BadRequest`. Calls `model.record` for the objects of an event and
offers its names as well. Pure.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from oscar.errors import BadRequest
from oscar.model.record import (
    Record,
    Source,
    can_be_stored,
    dcache_record,
    event_key,
    hops,
    is_premature,
    is_replication,
    matches,
    minio_event,
    read_record,
    rucio_record,
    triggers,
)

__all__ = [
    "Event",
    "EventKind",
    "Record",
    "Source",
    "check_payload",
    "decode",
    "delegate",
    "event_key",
    "hops",
    "is_premature",
    "is_replication",
    "matches",
    "minio_event",
    "records",
    "split",
    "triggers",
]

MAX_ENVELOPES = 8
"""How deep events may be wrapped: API gateway bodies and delegations."""

_DIGITS = 4000


class EventKind(StrEnum):
    """What an event is, without the delegation or API gateway around it."""

    API = "api"
    """A body that came through an API gateway."""
    S3 = "s3"
    MINIO = "minio"
    ONEDATA = "onedata"
    DCACHE = "dcache"
    RUCIO = "rucio"
    UNKNOWN = "unknown"
    """Anything else: JSON is taken as it is, other text is base64."""


_KINDS = {
    Source.S3: EventKind.S3,
    Source.MINIO: EventKind.MINIO,
    Source.ONEDATA: EventKind.ONEDATA,
    Source.DCACHE: EventKind.DCACHE,
    Source.RUCIO: EventKind.RUCIO,
}


_SOURCES = {source.value: source for source in Source if source is not Source.DCACHE}


@dataclass(frozen=True, slots=True)
class Event:
    """A decoded payload: either `records` of objects to fetch, or `content` that is there already."""

    kind: EventKind
    payload: bytes = field(repr=False)
    """As it came."""
    text: str | None = field(default=None, repr=False)
    """The event inside all envelopes, as text; None when it is not JSON."""
    records: tuple[Record, ...] = ()
    content: bytes | None = field(default=None, repr=False)
    """The input file of API and unknown events."""
    provider: str | None = None
    """Where a delegated event's objects are: a provider string or the id of a cluster."""
    access: str | None = field(default=None, repr=False)
    """An address at which the delegating cluster lets the event's object be read for some hours."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Query parameters of an API gateway event."""
    value: Any = field(default=None, repr=False)
    """The JSON of `text`."""
    envelopes: tuple[tuple[Mapping[str, Any], str], ...] = field(default=(), repr=False)
    """What is around the event, outermost first: the envelope and its field that holds the rest."""


def decode(payload: bytes) -> Event:
    """Take a payload apart.

    Raises:
        BadRequest: it is neither JSON nor base64, or a storage event without what such an event must have.
    """
    try:
        return _decode(Event(EventKind.UNKNOWN, payload), payload)
    except RecursionError:
        raise _too_deep() from None


def check_payload(payload: bytes) -> EventKind:
    """The kind of a payload, for its sender's sake before it is accepted.

    Raises:
        BadRequest: as `decode`.
    """
    return decode(payload).kind


def records(event: Event) -> tuple[Record, ...]:
    """The objects that an event reports, all of them."""
    return event.records


def split(event: Event) -> list[Event]:
    """The event as one per object, each with a payload of its own; itself when it has one object or none.

    Raises:
        BadRequest: it is nested too deeply to be written again.
    """
    if len(event.records) <= 1:
        return [event]
    try:
        return [_single(event, index) for index in range(len(event.records))]
    except RecursionError:
        raise _too_deep() from None


def delegate(payload: bytes, provider: str, *, access: str | None = None) -> bytes:
    """A payload as another cluster gets it.

    Args:
        payload: the original one.
        provider: where its objects are, in the words of the receiving service.
        access: an address at which its object can be read without keys; OSCAR 4 does not look at it.

    Raises:
        BadRequest: it is not text.
    """
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        raise BadRequest("the body is not text", field="body") from None
    wrapped = {"storage_provider": provider, "event": text}
    return json.dumps(wrapped | ({"access": access} if access else {})).encode()


def _too_deep() -> BadRequest:
    return BadRequest("the JSON of the body is nested too deeply", field="body")


def _single(event: Event, index: int) -> Event:
    record = event.records[index]
    value: Any = {**event.value, "Records": [event.value["Records"][index]]}
    if "Key" in value and record.source in {Source.S3, Source.MINIO}:
        value["Key"] = f"{record.bucket}/{record.key}"
    text = json.dumps(value)
    for envelope, name in reversed(event.envelopes):
        value = {**envelope, name: value}
    return replace(event, payload=json.dumps(value).encode(), text=text, records=(record,), value=value)


def _decode(outer: Event, raw: bytes) -> Event:
    text, value = _json(raw)
    if text is None:
        return replace(outer, kind=EventKind.UNKNOWN, content=_base64(raw))
    return _identify(replace(outer, text=text, value=value), value, raw)


def _identify(event: Event, value: Any, raw: bytes) -> Event:
    """Find the kind of a JSON value; `raw` is its text, which an unknown event keeps as it is."""
    if isinstance(value, dict):
        inner = value.get("event")
        if "httpMethod" in value:
            return _api(event, value)
        if "event" in value and "subscription" in value:
            return replace(event, kind=EventKind.DCACHE, records=(dcache_record(inner, "event"),))
        payload = value.get("payload")
        if "event_type" in value and isinstance(payload, dict) and "scope" in payload:
            return replace(event, kind=EventKind.RUCIO, records=(rucio_record(payload, "payload"),))
        if "event" in value and isinstance(value.get("storage_provider"), str):
            return _delegated(event, value)
        if source := _source(_first(value.get("Records"))):
            found = _records(value)
            return replace(event, kind=_KINDS[source], records=found)
    kind = EventKind.API if event.envelopes and "httpMethod" in event.envelopes[-1][0] else EventKind.UNKNOWN
    return replace(event, kind=kind, content=raw)


def _first(items: Any) -> Any:
    return items[0] if isinstance(items, list) and items else None


def _source(record: Any) -> Source | None:
    """The source of a record, None when it has none that stands in `Records`."""
    name = record.get("eventSource") if isinstance(record, dict) else None
    return _SOURCES.get(name) if isinstance(name, str) else None


def _records(event: Mapping[str, Any]) -> tuple[Record, ...]:
    found = []
    for index, raw in enumerate(event["Records"]):
        where = f"Records[{index}]"
        source = _source(raw)
        if source is None:
            raise BadRequest(
                f"{where} of the event is from no source that is known", field=f"{where}.eventSource"
            )
        found.append(read_record(source, raw, where, event))
    return tuple(found)


def _enter(event: Event, envelope: Mapping[str, Any], name: str) -> Event:
    if len(event.envelopes) == MAX_ENVELOPES:
        raise BadRequest(f"the event is wrapped more than {MAX_ENVELOPES} times", field=name)
    return replace(event, envelopes=(*event.envelopes, (envelope, name)))


def _delegated(event: Event, value: Mapping[str, Any]) -> Event:
    provider = value["storage_provider"].strip()
    if not can_be_stored(provider):
        raise BadRequest("the storage provider contains a NUL or half a character", field="storage_provider")
    inner = value["event"]
    # The innermost envelope wins: it was written by the cluster where the objects are.
    access = value.get("access")
    if access is not None and not (isinstance(access, str) and can_be_stored(access)):
        raise BadRequest("the address of the event's object is not text", field="access")
    event = replace(_enter(event, value, "event"), provider=provider, access=access)
    if isinstance(inner, str):
        return _decode(event, _encoded(inner, "event"))
    if isinstance(inner, dict | list):
        return _inline(event, inner)
    raise BadRequest("the delegated event is neither text nor JSON", field="event")


def _inline(event: Event, inner: Any) -> Event:
    text = json.dumps(inner)
    return _identify(replace(event, text=text, value=inner), inner, text.encode())


def _api(event: Event, value: Mapping[str, Any]) -> Event:
    """The body of an API gateway event: JSON of any kind, or a file in base64."""
    event = replace(_enter(event, value, "body"), parameters=_parameters(value.get("queryStringParameters")))
    body = value.get("body")
    if body is None:
        return replace(event, kind=EventKind.API, content=b"")
    if isinstance(body, dict | list):
        return _inline(event, body)
    if not isinstance(body, str):
        raise BadRequest("the body of the API event is neither text nor JSON", field="body")
    raw = _encoded(body, "body")
    if value.get("isBase64Encoded") is True:
        return replace(event, kind=EventKind.API, content=_base64(raw))
    text, inner = _json(raw)
    if text is not None:
        return _identify(replace(event, text=text, value=inner), inner, raw)
    if _content_type(value).startswith("text/"):
        return replace(event, kind=EventKind.API, content=raw)
    return replace(event, kind=EventKind.API, content=_base64(raw))


def _content_type(value: Mapping[str, Any]) -> str:
    headers = value.get("headers")
    if not isinstance(headers, dict):
        return ""
    found = (
        text for name, text in headers.items() if name.lower() == "content-type" and isinstance(text, str)
    )
    return next(found, "").strip().lower()


def _parameters(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {
        name: text
        for name, text in value.items()
        if isinstance(text, str) and can_be_stored(text) and can_be_stored(name)
    }


def _json(raw: bytes) -> tuple[str | None, Any]:
    """The text and value of JSON in UTF-8; (None, None) for anything that is not JSON.

    Raises:
        BadRequest: it can only be meant as JSON, and is broken.
    """
    try:
        text = raw.decode("utf-8-sig")
        return text, json.loads(text, parse_int=_integer)
    except ValueError as error:
        # Braces and brackets are not in the alphabet of base64, so nothing else can be meant.
        if isinstance(error, json.JSONDecodeError) and text.lstrip()[:1] in {"{", "["}:
            raise BadRequest(f"the JSON of the body is broken: {error}", field="body") from None
        return None, None


def _integer(digits: str) -> int | str:
    """Integers that Python would refuse to read stay text; the body itself is kept as it came."""
    return int(digits) if len(digits) < _DIGITS else digits


def _encoded(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"the {where} contains half a character", field=where) from None


def _base64(raw: bytes) -> bytes:
    """Decode, allowing the line breaks that `base64` writes.

    Raises:
        BadRequest: it is no base64.
    """
    try:
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except binascii.Error:
        raise BadRequest(
            "the body is neither JSON nor base64",
            field="body",
            fix="Send JSON, or a file encoded in base64.",
        ) from None
