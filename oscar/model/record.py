"""One object of a storage event: reading records of S3, MinIO, Onedata, Rucio and dCache, writing our own.

`model.event` takes payloads apart into records; `core.jobs` keys, filters and routes them; the built-in store
makes its own events with `minio_event`. Formats: what a MinIO server sends to its webhooks, and
https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html. Pure.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import quote_plus, unquote_plus

from oscar.errors import BadRequest
from oscar.model.object import Object
from oscar.model.producer import HOPS_METADATA, PRODUCER_METADATA

TRACE_METADATA = "oscar-trace"
"""User metadata of a result from another cluster: the span of the job that wrote it (`model.trace.Place.text`)."""

_HOPS_HEADER = f"x-amz-meta-{HOPS_METADATA}"
_PRODUCER_HEADER = f"x-amz-meta-{PRODUCER_METADATA}"
_TRACE_HEADER = f"x-amz-meta-{TRACE_METADATA}"
_REPLICATION_HEADER = "x-amz-replication-status"
_KEY_BYTES = 1024
_HOPS = re.compile(r"[0-9]{1,9}")


class Source(StrEnum):
    """Who reports an object; the values are those of `eventSource` where the format has one."""

    S3 = "aws:s3"
    MINIO = "minio:s3"
    ONEDATA = "OneTrigger"
    RUCIO = "rucio"
    DCACHE = "dcache"


@dataclass(frozen=True, slots=True)
class Record:
    """One object that an event reports.

    `bucket` is the space for Onedata, the scope for Rucio, and empty for dCache (the input has the folder).
    """

    source: Source
    bucket: str
    key: str
    """Decoded; for Onedata the path from the space downwards."""
    name: str = ""
    """The event's name, such as `s3:ObjectCreated:Put`; empty when the source has none."""
    time: str = ""
    """When it happened, as the source wrote it."""
    size: int | None = None
    version: str = ""
    sequencer: str = ""
    principal: str = ""
    """The user who wrote the object."""
    source_ip: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """User metadata with lower-case names."""


def read_record(source: Source, raw: Any, where: str, event: Mapping[str, Any]) -> Record:
    """A record of `Records[]`, checked.

    Args:
        source: what its `eventSource` says.
        raw: the record.
        where: its JSON path, for errors.
        event: the event around it.

    Raises:
        BadRequest: a part is missing or of the wrong type, or the key can't be one.
    """
    record = _mapping(raw, where)
    match source:
        case Source.S3 | Source.MINIO:
            return _s3_record(source, record, where)
        case Source.ONEDATA:
            return _onedata_record(record, event)
        case Source.RUCIO | Source.DCACHE:
            return rucio_record(record, where)


def _s3_record(source: Source, record: Mapping[str, Any], where: str) -> Record:
    s3 = _mapping(record.get("s3"), f"{where}.s3")
    bucket = _mapping(s3.get("bucket"), f"{where}.s3.bucket")
    obj = _mapping(s3.get("object"), f"{where}.s3.object")
    name = _required(bucket.get("name"), f"{where}.s3.bucket.name")
    if "/" in name:
        raise BadRequest(f'"{name}" is not a bucket', field=f"{where}.s3.bucket.name")
    key_field = f"{where}.s3.object.key"
    key = _decoded(_required(obj.get("key"), key_field), key_field)
    size = obj.get("size")
    return Record(
        source=source,
        bucket=name,
        key=key,
        name=_text(record.get("eventName")),
        time=_text(record.get("eventTime")),
        size=size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None,
        version=_text(obj.get("versionId")),
        sequencer=_text(obj.get("sequencer")),
        principal=_text(_inner(record, "userIdentity").get("principalId")),
        source_ip=_text(_inner(record, "requestParameters").get("sourceIPAddress")),
        metadata={
            str(name).lower(): value
            for name, value in _inner(obj, "userMetadata").items()
            if isinstance(value, str)
        },
    )


def _onedata_record(record: Mapping[str, Any], event: Mapping[str, Any]) -> Record:
    path = _required(event.get("Key"), "Key")
    space, _, key = path.strip("/").partition("/")
    if not key:
        raise BadRequest("the path names no file in a space", field="Key", fix='Send "/<space>/<path>".')
    return Record(
        source=Source.ONEDATA,
        bucket=space,
        key=key,
        time=_text(record.get("eventTime")),
    )


def rucio_record(payload: Any, where: str) -> Record:
    """A file of Rucio: `scope` and `name`.

    Raises:
        BadRequest: one of them is missing.
    """
    record = _mapping(payload, where)
    return Record(
        source=Source.RUCIO,
        bucket=_required(record.get("scope"), f"{where}.scope"),
        key=_required(record.get("name"), f"{where}.name"),
        time=_text(record.get("created_at")),
    )


def dcache_record(payload: Any, where: str) -> Record:
    """A file of dCache: its `name` in the folder of the service's WebDAV input.

    Raises:
        BadRequest: the name is missing.
    """
    record = _mapping(payload, where)
    return Record(source=Source.DCACHE, bucket="", key=_required(record.get("name"), f"{where}.name"))


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{where} of the event is not an object", field=where)
    return value


def _inner(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """Text that is only shown or compared: anything else counts as absent."""
    return value if isinstance(value, str) and can_be_stored(value) else ""


def _required(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{where} of the event is missing or not text", field=where)
    if not can_be_stored(value):
        raise BadRequest(f"{where} of the event contains a NUL or half a character", field=where)
    return value


def can_be_stored(text: str) -> bool:
    """Whether databases, file names and environments can hold it: no NUL and no lone surrogates."""
    try:
        return b"\x00" not in text.encode()
    except UnicodeEncodeError:
        return False


def _decoded(key: str, where: str) -> str:
    try:
        decoded = unquote_plus(key, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest(
            f"{where} of the event is not UTF-8 after decoding", field=where, fix="Send the key URL-encoded."
        ) from None
    if not can_be_stored(decoded):
        raise BadRequest(f"{where} of the event contains a NUL or half a character", field=where)
    if len(decoded.encode()) > _KEY_BYTES:
        raise BadRequest(f"{where} of the event is longer than {_KEY_BYTES} bytes", field=where)
    return decoded


def event_key(service_id: str, record: Record) -> str | None:
    """What makes two deliveries of one event equal: service, bucket, key and version.

    Only for sources that can repeat themselves. None when the record carries neither version nor sequencer,
    so that nothing is taken for a repetition by mistake.

    Args:
        service_id: the service that the job would be of.
        record: the object.

    Returns:
        64 hexadecimal digits, or None.
    """
    version = record.version if record.version != "null" else ""
    version = version or record.sequencer
    if not version:
        return None
    return _hashed(service_id, record.bucket, record.key, version)


_NANOSECONDS = re.compile(r"1[0-9A-F]{15}")


def written_at(record: Record) -> int | None:
    """When the object of a MinIO's event was written, in Unix milliseconds, as a listing shows it.

    MinIO's sequencer is the time of the object's last change in nanoseconds and hexadecimal digits, whatever reports it
    and however often. None when it is something else.
    """
    if record.source is not Source.MINIO or not _NANOSECONDS.fullmatch(record.sequencer):
        return None
    return int(record.sequencer, 16) // 1_000_000


def as_written(modified: int) -> str:
    """The sequencer of an object that was found by listing: such as `written_at` reads."""
    return f"{modified * 1_000_000:X}"


def written_key(service_id: str, bucket: str, key: str, modified: int) -> str:
    """What makes the report of an object and its place in a listing equal: service, bucket, key and millisecond.

    What was written in between within that millisecond nobody can fetch any more, so it needs no job of its own.
    """
    return _hashed(service_id, bucket, key, f"at {modified}")


def producer_key(service_id: str, bucket: str, key: str, job_id: str) -> str:
    """What makes two outputs of one job equal: a stage-out that is repeated after a crash triggers nothing twice."""
    return _hashed(service_id, bucket, key, f"by {job_id}")


def producer(record: Record) -> str:
    """The job that wrote the object; "" when that is not known."""
    return record.metadata.get(_PRODUCER_HEADER) or record.metadata.get(PRODUCER_METADATA) or ""


def trace(record: Record) -> str:
    """The span of the job at another cluster that wrote the object; "" when there is none."""
    return record.metadata.get(_TRACE_HEADER) or record.metadata.get(TRACE_METADATA) or ""


def _hashed(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def is_replication(record: Record) -> bool:
    """Whether the record announces a replication still to come (`X-Amz-Replication-Status: PENDING`).

    Another event of the same version follows, so this one starts nothing. A finished replication counts: to
    buckets that watch only replications it is all they hear, and elsewhere `event_key` finds it a repetition.
    """
    return record.metadata.get(_REPLICATION_HEADER, "").upper() == "PENDING"


_WRITTEN = ("ObjectCreated:", "Replication:OperationCompleted", "Replication:OperationReplicated")

_SETTINGS = frozenset(
    f"ObjectCreated:{verb}" for verb in ("PutTagging", "DeleteTagging", "PutRetention", "PutLegalHold")
)
"""What MinIO counts as created although nothing of the body is new."""

_PARTIAL = re.compile(r"\.oscar-[0-9a-f]{32}\.part")


def partial_name(seed: str) -> str:
    """The name that a file has beside its place while we write it, until it is renamed.

    Args:
        seed: what tells the transfer from others; the same one gives the same name.
    """
    return f".oscar-{hashlib.sha256(seed.encode()).hexdigest()[:32]}.part"


def is_partial(name: str) -> bool:
    """Whether the last part of a path is such a name."""
    return bool(_PARTIAL.fullmatch(name))


def is_premature(record: Record) -> bool:
    """Whether the record is of something still to come, of which another record will tell.

    That is a replication under way, or a file on its way to its name: dCache reports those that we write there.
    """
    return is_replication(record) or is_partial(record.key.rpartition("/")[2])


def triggers(record: Record) -> bool:
    """Whether a job should follow: the record is of a file that was written, not removed or read."""
    if is_premature(record) or record.key.endswith("/"):
        return False
    name = record.name.removeprefix("s3:")
    return not name or (name.startswith(_WRITTEN) and name not in _SETTINGS)


def is_written(record: Record) -> bool:
    """Whether a store reports that a file was written, a replica that is still to come elsewhere included.

    For reports that are told apart by `written_key`: all of one object count as one, so the first may start a job.
    """
    if is_partial(record.key.rpartition("/")[2]) or record.key.endswith("/"):
        return False
    name = record.name.removeprefix("s3:")
    return name.startswith(_WRITTEN) and name not in _SETTINGS


def matches(folder: str, key: str) -> bool:
    """Whether a key is a file in a service's input folder; marks of folders (keys that end in "/") are not.

    Args:
        folder: the input's path below the bucket, without slashes at its ends; empty for the whole bucket.
        key: the object's key.
    """
    return key.startswith(f"{folder}/" if folder else "") and not key.endswith("/")


def hops(record: Record) -> int:
    """How many functions in a row led to the object; 0 when a person put it there."""
    text = record.metadata.get(_HOPS_HEADER) or record.metadata.get(HOPS_METADATA) or "0"
    return int(text) if _HOPS.fullmatch(text) else 0


def minio_event(
    obj: Object,
    *,
    event_name: str = "s3:ObjectCreated:Put",
    region: str = "",
    source_ip: str = "",
    principal: str | None = None,
) -> dict[str, Any]:
    """The event of a written object in the shape that MinIO sends, so that scripts find what they know.

    Args:
        obj: the object as committed; its generation becomes the `sequencer`.
        event_name: such as `s3:ObjectCreated:CompleteMultipartUpload`.
        region: of the store.
        source_ip: of the client that wrote it.
        principal: who wrote it; the object's owner when absent.
    """
    principal = obj.owner if principal is None else principal
    seconds, milliseconds = divmod(obj.modified, 1000)
    when = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{milliseconds:03d}Z"
    metadata = {
        "-".join(part.capitalize() for part in f"x-amz-meta-{name}".split("-")): value
        for name, value in obj.metadata.items()
    }
    record = {
        "eventVersion": "2.0",
        "eventSource": Source.MINIO.value,
        "awsRegion": region,
        "eventTime": when,
        "eventName": event_name,
        "userIdentity": {"principalId": principal},
        "requestParameters": {"principalId": principal, "region": region, "sourceIPAddress": source_ip},
        "responseElements": {"x-amz-request-id": obj.generation},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "Config",
            "bucket": {
                "name": obj.bucket,
                "ownerIdentity": {"principalId": principal},
                "arn": f"arn:aws:s3:::{obj.bucket}",
            },
            "object": {
                "key": quote_plus(obj.key),
                "size": obj.size,
                "eTag": obj.etag,
                "contentType": obj.content_type,
                "userMetadata": {"content-type": obj.content_type, **metadata},
                "sequencer": obj.generation,
            },
        },
        "source": {"host": source_ip, "port": "", "userAgent": ""},
    }
    return {"EventName": event_name, "Key": f"{obj.bucket}/{obj.key}", "Records": [record]}
