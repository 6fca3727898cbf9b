"""From a written object to the jobs that it starts: pure.

Called by `state.objects` in the transaction that makes the object visible (`app` wires it), in both processes; so it
imports nothing heavy.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable

from oscar.model.event import decode, event_key, matches, minio_event, triggers
from oscar.model.job import NewJob
from oscar.model.object import Listener, Object
from oscar.model.producer import HOPS_METADATA, Producer
from oscar.model.request import Origin

_NAME_ROOM = 24
_SHORT_NAME = 16


def new_id(service_name: str) -> str:
    """A job's id, as upstream names jobs: `<service>-<uuid4>`, the service cut to 16 characters if it has 25."""
    name = service_name if len(service_name) <= _NAME_ROOM else service_name[:_SHORT_NAME]
    return f"{name}-{uuid.uuid4()}"


def jobs_for_object(
    obj: Object,
    event: str,
    producer: Producer | None,
    source_ip: str,
    listeners: Iterable[Listener],
    *,
    region: str = "",
    country_of: Callable[[str], str],
) -> list[NewJob]:
    """The jobs that a written object starts: one for each service that listens on its folder."""
    found = [listener for listener in listeners if matches(listener.prefix, obj.key)]
    if not found:
        return []
    payload = json.dumps(
        minio_event(obj, event_name=event, region=region, source_ip=source_ip),
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()
    decoded = decode(payload)
    if not all(triggers(record) for record in decoded.records):
        return []
    count = producer.hops if producer else _number(obj.metadata.get(HOPS_METADATA))
    origin = Origin("s3", source_ip, country_of(source_ip))
    jobs = {
        listener.service_id: NewJob(
            id=new_id(listener.service_name),
            service_id=listener.service_id,
            service_name=listener.service_name,
            owner=listener.owner,
            user=obj.owner or listener.owner,
            kind="event",
            payload=payload,
            event_key=event_key(listener.service_id, decoded.records[0]),
            hops=count,
            origin=origin,
        )
        for listener in found
    }
    return list(jobs.values())


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
