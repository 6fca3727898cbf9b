"""Payloads of every kind are told apart, and no input at all raises anything but BadRequest."""

from __future__ import annotations

import base64
import json
import random
import re
import resource
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oscar.errors import BadRequest
from oscar.model import event as events
from oscar.model.event import EventKind, Source, decode
from oscar.model.object import Object
from oscar.model.record import Record, can_be_stored, partial_name

# As a MinIO server (2025-09) sent it for the key `in/my file+ñ.txt`, shortened.
MINIO: dict[str, Any] = {
    "EventName": "s3:ObjectCreated:Put",
    "Key": "photos/in/my file+ñ.txt",
    "Records": [
        {
            "eventVersion": "2.0",
            "eventSource": "minio:s3",
            "awsRegion": "",
            "eventTime": "2026-11-23T21:02:18.230Z",
            "eventName": "s3:ObjectCreated:Put",
            "userIdentity": {"principalId": "ada"},
            "requestParameters": {"principalId": "ada", "region": "", "sourceIPAddress": "10.1.2.3"},
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": "Config",
                "bucket": {"name": "photos", "arn": "arn:aws:s3:::photos"},
                "object": {
                    "key": "in%2Fmy+file%2B%C3%B1.txt",
                    "size": 3,
                    "eTag": "764efa883dda1e11db47671c4a3bbd9e",
                    "userMetadata": {"X-Amz-Meta-Oscar-Hops": "3", "content-type": "text/plain"},
                    "versionId": "795d5b3a",
                    "sequencer": "18EAC86526C99BBB",
                },
            },
        }
    ],
}


def minio(key: str = "in/a.txt", bucket: str = "photos", **obj: Any) -> dict[str, Any]:
    record = {"eventSource": "minio:s3", "s3": {"bucket": {"name": bucket}, "object": {"key": key, **obj}}}
    return {"Key": f"{bucket}/{key}", "Records": [record]}


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_minio_event() -> None:
    event = decode(dump(MINIO))
    (record,) = event.records
    assert event.kind is EventKind.MINIO
    assert event.content is None
    assert (record.bucket, record.key, record.name) == ("photos", "in/my file+ñ.txt", "s3:ObjectCreated:Put")
    assert (record.size, record.version, record.sequencer) == (3, "795d5b3a", "18EAC86526C99BBB")
    assert (record.principal, record.source_ip) == ("ada", "10.1.2.3")
    assert record.time == "2026-11-23T21:02:18.230Z"
    assert events.hops(record) == 3
    assert events.triggers(record)
    assert json.loads(event.text or "") == MINIO


@pytest.mark.parametrize(
    ("payload", "kind", "bucket", "key"),
    [
        (
            {"Records": [{**minio("x/y+z")["Records"][0], "eventSource": "aws:s3"}]},
            EventKind.S3, "photos", "x/y z",
        ),
        ({"Key": "/space/dir/f.txt", "Records": [{"objectKey": "f.txt", "eventSource": "OneTrigger"}]},
         EventKind.ONEDATA, "space", "dir/f.txt"),
        ({"event": {"name": "i.jpg", "mask": ["IN_CREATE"]}, "subscription": "https://dcache/x"},
         EventKind.DCACHE, "", "i.jpg"),
        ({"event_type": "transfer-done", "payload": {"scope": "user.ada", "name": "f"}},
         EventKind.RUCIO, "user.ada", "f"),
        ({"Records": [{"eventSource": "rucio", "scope": "user.ada", "name": "f"}]},
         EventKind.RUCIO, "user.ada", "f"),
    ],
)  # fmt: skip
def test_other_sources(payload: Any, kind: EventKind, bucket: str, key: str) -> None:
    event = decode(dump(payload))
    assert event.kind is kind
    assert [(record.bucket, record.key) for record in event.records] == [(bucket, key)]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, 2.50, "ñ"],  "a": NaN}',
        "[]",
        "12345678",
        '"text"',
        "null",
        " \n{}\t",
        '{"Records": [{"eventSource": "narnia"}]}',
        '{"Records": []}',
        '{"Records": {"0": 1}}',
        '{"event": "click"}',
        '{"event_type": "x", "payload": "text"}',
        '{"n": ' + "9" * 5000 + "}",
        '"\\ud800"',
        "\ufeff{}",
    ],
)
def test_unknown_json_is_kept_as_it_came(text: str) -> None:
    event = decode(text.encode())
    assert event.kind is EventKind.UNKNOWN
    assert event.content == text.encode()
    assert event.records == ()


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"hello", bytes(range(256)) * 50])
def test_anything_else_is_base64(content: bytes) -> None:
    assert decode(base64.b64encode(content)).content == content
    assert decode(base64.encodebytes(content)).content == content
    assert decode(base64.b64encode(content)).text is None


@pytest.mark.parametrize("payload", [b"hello", b"\xff\xd8\xff", b"YWJ", "YWJjñ".encode(), b"<xml/>", b"YW-_"])
def test_neither_json_nor_base64(payload: bytes) -> None:
    with pytest.raises(BadRequest, match="neither JSON nor base64") as caught:
        events.check_payload(payload)
    assert caught.value.field == "body"
    assert caught.value.fix


@pytest.mark.parametrize("payload", ['{"a": 1,}', "[1, 2", '{"a"', "  {", '{"a": 1} x', '{"a": "\x01"}'])
def test_broken_json_says_where(payload: str) -> None:
    with pytest.raises(BadRequest, match=r"JSON of the body is broken: .*line 1 column"):
        events.check_payload(payload.encode())


@pytest.mark.parametrize("depth", [2_000, 100_000])
def test_json_nested_too_deeply(depth: int) -> None:
    with pytest.raises(BadRequest, match="nested too deeply"):
        events.check_payload(b"[" * depth + b"]" * depth)


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({"Records": [{"eventSource": "minio:s3"}]}, "Records[0].s3"),
        ({"Records": [{"eventSource": "minio:s3", "s3": []}]}, "Records[0].s3"),
        ({"Records": [{"eventSource": "minio:s3", "s3": {"bucket": {"name": 7}}}]}, "Records[0].s3.object"),
        (minio(bucket=""), "Records[0].s3.bucket.name"),
        (minio(bucket="a/b"), "Records[0].s3.bucket.name"),
        (minio(key=""), "Records[0].s3.object.key"),
        (minio(key="%ff"), "Records[0].s3.object.key"),
        (minio(key="a%00b"), "Records[0].s3.object.key"),
        (minio(key="\ud800"), "Records[0].s3.object.key"),
        (minio(key="k" * 1025), "Records[0].s3.object.key"),
        ({"Records": [minio()["Records"][0], {"eventSource": "narnia"}]}, "Records[1].eventSource"),
        ({"Records": [minio()["Records"][0], 7]}, "Records[1].eventSource"),
        ({"Records": [{"eventSource": "OneTrigger"}]}, "Key"),
        ({"Key": "/space", "Records": [{"eventSource": "OneTrigger"}]}, "Key"),
        ({"event": "x", "subscription": "y"}, "event"),
        ({"event": {}, "subscription": "y"}, "event.name"),
        ({"event_type": "x", "payload": {"scope": "s"}}, "payload.name"),
        ({"storage_provider": "minio.x", "event": 7}, "event"),
        ({"storage_provider": "minio.\ud800", "event": "e30="}, "storage_provider"),
        ({"httpMethod": "POST", "body": 7}, "body"),
        ({"httpMethod": "POST", "body": "%%%"}, "body"),
    ],
)  # fmt: skip
def test_events_without_what_they_must_have(event: Any, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(dump(event))
    assert caught.value.field == field


def test_defect_5_all_records_of_an_event() -> None:
    both = {
        "Key": "photos/a",
        "Records": [minio("in/a")["Records"][0], minio("in/b+c", sequencer="2")["Records"][0]],
    }
    event = decode(dump(both))
    assert [record.key for record in events.records(event)] == ["in/a", "in/b c"]
    parts = events.split(event)
    assert [[record.key for record in part.records] for part in parts] == [["in/a"], ["in/b c"]]
    assert [decode(part.payload) for part in parts] == parts
    assert json.loads(parts[1].payload)["Key"] == "photos/in/b c"


def test_splitting_leaves_an_event_of_one_object_as_it_is() -> None:
    for payload in (dump(MINIO), b'{"a":  1}', b"aGk="):
        event = decode(payload)
        assert events.split(event) == [event]


def test_splitting_keeps_what_is_around_the_event() -> None:
    both = {"Records": [minio("in/a")["Records"][0], minio("in/b")["Records"][0]]}
    inner = {"httpMethod": "POST", "body": json.dumps(both), "queryStringParameters": {"q": "1"}}
    payload = events.delegate(dump(inner), "minio.origin")
    parts = [decode(part.payload) for part in events.split(decode(payload))]
    assert [(part.kind, part.provider, part.parameters, part.records[0].key) for part in parts] == [
        (EventKind.MINIO, "minio.origin", {"q": "1"}, key) for key in ("in/a", "in/b")
    ]


def test_delegated_events_as_text_or_json() -> None:
    for inner in (json.dumps(MINIO), MINIO):
        event = decode(dump({"storage_provider": " minio.origin ", "event": inner}))
        assert (event.kind, event.provider, event.records[0].bucket) == (
            EventKind.MINIO,
            "minio.origin",
            "photos",
        )
        assert json.loads(event.text or "") == MINIO


def test_delegated_bodies() -> None:
    assert decode(events.delegate(b"aGk=", "c")).content == b"hi"
    assert decode(events.delegate(b'{"a":  1}', "c")).content == b'{"a":  1}'
    assert decode(dump({"storage_provider": "c", "event": {"a": 1}})).content == b'{"a": 1}'


def test_the_innermost_delegation_says_where_the_objects_are() -> None:
    payload = dump(MINIO)
    for cluster in ("near", "middle", "far"):
        payload = events.delegate(payload, cluster)
    assert decode(payload).provider == "near"


def test_delegations_are_not_unwrapped_for_ever() -> None:
    payload = b"{}"
    for _ in range(events.MAX_ENVELOPES):
        payload = events.delegate(payload, "c")
    assert decode(payload).content == b"{}"
    with pytest.raises(BadRequest, match="wrapped more than 8 times"):
        decode(events.delegate(payload, "c"))


@pytest.mark.parametrize(
    ("event", "content"),
    [
        ({"body": "aXQgd29ya3Mh", "headers": {"Content-Type": "application/octet-stream"}}, b"it works!"),
        ({"body": "aXQgd29ya3Mh", "isBase64Encoded": True}, b"it works!"),
        ({"body": '{"a":  1}'}, b'{"a":  1}'),
        ({"body": {"a": 1}}, b'{"a": 1}'),
        ({"body": "text", "headers": {"content-type": "text/plain; charset=utf-8"}}, b"text"),
        ({"body": base64.b64encode(dump(MINIO)).decode(), "isBase64Encoded": True}, dump(MINIO)),
        ({"body": None}, b""),
        ({}, b""),
    ],
)
def test_api_gateway_bodies(event: dict[str, Any], content: bytes) -> None:
    found = decode(
        dump({"httpMethod": "POST", "queryStringParameters": {"q": "v", "n": 1, "z": "\x00"}, **event})
    )
    assert (found.kind, found.content, found.parameters) == (EventKind.API, content, {"q": "v"})


def test_storage_event_through_an_api_gateway() -> None:
    for body in (MINIO, json.dumps(MINIO)):
        event = decode(dump({"httpMethod": "POST", "body": body}))
        assert (event.kind, event.records[0].key) == (EventKind.MINIO, "in/my file+ñ.txt")


def test_http_method_comes_before_all_other_kinds() -> None:
    assert decode(dump({**MINIO, "httpMethod": "POST"})).kind is EventKind.API
    dcache = {"event": {"name": "f"}, "subscription": "s", "storage_provider": "x", **MINIO}
    assert decode(dump(dcache)).kind is EventKind.DCACHE


def record_of(event: dict[str, Any]) -> events.Record:
    return decode(dump(event)).records[0]


def test_event_keys_tell_versions_apart_and_repetitions_not() -> None:
    key = events.event_key
    first = record_of(minio(versionId="v1", sequencer="s1"))
    assert key("svc", first) == key("svc", record_of(minio(versionId="v1", sequencer="s2")))
    assert key("svc", first) != key("svc", record_of(minio(versionId="v2", sequencer="s1")))
    assert key("svc", first) != key("other", first)
    assert key("svc", first) != key("svc", record_of(minio("in/b", versionId="v1")))
    by_sequencer = record_of(minio(sequencer="s1"))
    assert key("svc", by_sequencer) == key("svc", record_of(minio(sequencer="s1", versionId="null")))
    assert key("svc", by_sequencer) != key("svc", record_of(minio(sequencer="s2")))
    assert key("svc", record_of(minio())) is None


def test_event_keys_don_t_run_into_one_another() -> None:
    one = record_of(minio("c", bucket="a-b", sequencer="1"))
    two = record_of(minio("b-c", bucket="a", sequencer="1"))
    assert events.event_key("s", one) != events.event_key("s", two)


def test_files_on_their_way_start_nothing() -> None:
    name = partial_name("job-1 out/a")
    assert name == partial_name("job-1 out/a") != partial_name("job-2 out/a")
    for key, early in [(name, True), (f"sub/{name}", True), (f"{name}/a", False), (".oscar-1.part", False)]:
        record = Record(Source.DCACHE, "", key)
        assert events.is_premature(record) is early
        assert events.triggers(record) is not early


def test_defect_6_replication_starts_nothing_twice() -> None:
    def status(text: str) -> events.Record:
        return record_of(minio(versionId="v", userMetadata={"X-Amz-Replication-Status": text}))

    assert events.is_replication(status("PENDING"))
    assert not events.triggers(status("PENDING"))
    # What a replica's arrival says must still start the job of the second cluster, and only once.
    arrived = status("REPLICA")
    assert events.triggers(arrived)
    assert events.event_key("s", arrived) == events.event_key("s", record_of(minio(versionId="v")))


@pytest.mark.parametrize(
    ("name", "started"),
    [
        ("s3:ObjectCreated:Put", True),
        ("ObjectCreated:CompleteMultipartUpload", True),
        ("", True),
        ("s3:Replication:OperationCompletedReplication", True),
        ("s3:Replication:OperationFailedReplication", False),
        ("s3:ObjectRemoved:Delete", False),
        ("s3:ObjectAccessed:Get", False),
    ],
)
def test_only_written_files_start_jobs(name: str, started: bool) -> None:
    event = minio()
    event["Records"][0]["eventName"] = name
    assert events.triggers(record_of(event)) is started
    assert not events.triggers(record_of(minio("in/folder/")))


def test_matches_the_input_folder() -> None:
    assert events.matches("in", "in/a")
    assert events.matches("in/deep", "in/deep/er/a")
    assert events.matches("", "a")
    assert not events.matches("in", "inside/a")
    assert not events.matches("in", "in/")
    assert not events.matches("in", "in/sub/")
    assert not events.matches("in", "in")
    assert not events.matches("in", "other/in/a")


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("16", 16), ("-1", 0), ("x", 0), ("", 0), ("9" * 50, 0), ("²", 0), ("1_0", 0)],
)
def test_hops(text: str, count: int) -> None:
    assert events.hops(record_of(minio(userMetadata={"x-amz-meta-OSCAR-hops": text}))) == count
    assert events.hops(record_of(minio(userMetadata={"oscar-hops": text}))) == count
    assert events.hops(record_of(minio())) == 0


def test_own_events_look_like_those_of_minio() -> None:
    obj = Object(
        bucket="photos",
        key="in/my file+ñ.txt",
        generation="0193-7",
        size=3,
        etag="764efa883dda1e11db47671c4a3bbd9e",
        modified=1795467738230,
        content_type="text/plain",
        metadata={"oscar-hops": "3"},
        owner="ada",
    )
    event = events.minio_event(obj, region="us-east-1", source_ip="10.1.2.3")
    ours, theirs = event["Records"][0], MINIO["Records"][0]
    assert event["Key"] == MINIO["Key"]
    assert event["EventName"] == MINIO["EventName"]
    assert theirs.keys() <= ours.keys()
    for name in ("eventVersion", "eventSource", "eventName", "userIdentity"):
        assert ours[name] == theirs[name]
    assert ours["requestParameters"]["sourceIPAddress"] == "10.1.2.3"
    same = ("key", "size", "eTag", "userMetadata")
    assert {name: ours["s3"]["object"][name] for name in same} == {
        name: theirs["s3"]["object"][name] for name in same
    }
    record = decode(dump(event)).records[0]
    assert (record.source, record.key, record.sequencer) == (Source.MINIO, obj.key, obj.generation)
    assert (record.principal, events.hops(record)) == ("ada", 3)
    assert ours["eventTime"] == "2026-11-23T21:02:18.230Z"


@given(st.text(min_size=1, max_size=200).filter(can_be_stored))
def test_any_key_survives_the_way_through_an_event(key: str) -> None:
    obj = Object(bucket="b", key=key, generation="1", size=0, etag="", modified=0)
    assert decode(dump(events.minio_event(obj))).records[0].key == key


NAMES = st.sampled_from(
    re.findall(
        r"\S+",
        """Records Key event subscription storage_provider event_type payload scope name httpMethod body
        headers isBase64Encoded Content-Type queryStringParameters eventSource s3 bucket object key
        userMetadata userIdentity size versionId""",
    )
)
WORDS = st.sampled_from(
    ["aws:s3", "minio:s3", "OneTrigger", "rucio", "dcache", "text/plain", "aGk=", "%ff", "\ud800"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=30,
)


def survive(payload: bytes) -> None:
    try:
        event = decode(payload)
        for part in events.split(event):
            assert decode(part.payload).records == part.records
            for record in part.records:
                events.event_key("s", record)
                events.triggers(record)
                events.hops(record)
                (record.bucket + record.key + record.time + record.principal).encode()
        if event.text is not None:
            event.text.encode()
        assert bool(event.records) != (event.content is not None)
    except BadRequest as error:
        refused = error
    else:
        return
    assert refused.field
    json.dumps(refused.as_dict()).encode()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
@example(b'{"event": {"name": "\\u0000"}, "subscription": 1}')
@example(b"-" * 5000)
@example(b'{"Records": [{"eventSource": ["minio:s3"]}]}')
@example(b'{"httpMethod": null, "headers": {"Content-Type": {}}, "body": "x"}')
def test_no_bytes_raise_anything_else(payload: bytes) -> None:
    survive(payload)


@settings(max_examples=500, deadline=None)
@given(JSON)
def test_no_json_raises_anything_else(value: Any) -> None:
    survive(dump(value))


def test_no_damaged_event_raises_anything_else() -> None:
    """In a process of its own: what other tests' threads take meanwhile is not the decoder's."""
    command = "from tests.unit.test_event import survive_damage; print(survive_damage())"
    done = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 16 * 1024, "memory stays flat"


def survive_damage() -> int:
    """Take 100,000 events that were right once, each with a few places changed; KiB by which memory grew."""
    seeds = [
        dump(MINIO),
        events.delegate(dump(MINIO), "minio.x"),
        dump(
            {"httpMethod": "POST", "body": json.dumps(MINIO), "headers": {"Content-Type": "application/json"}}
        ),
        dump({"event": {"name": "f"}, "subscription": "s"}),
        base64.b64encode(bytes(range(64))),
    ]
    pieces = [
        b"null",
        b"{",
        b"]",
        b'"',
        b"\\ud800",
        b"1e999",
        b"[[[[",
        b"%",
        b"\x00",
        b"\xff",
        b"NaN",
        b"-",
        b",",
        b"{}",
    ]
    pick = random.Random(7)
    early = 0
    for index in range(100_000):
        if index == 10_000:
            early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        payload = bytearray(pick.choice(seeds))
        for _ in range(pick.randint(1, 4)):
            start = pick.randrange(len(payload) + 1)
            payload[start : start + pick.randint(0, 12)] = pick.choice(pieces)
        survive(bytes(payload))
    # KiB: the most that it ever had, so that one large moment shows as well as a leak.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early
