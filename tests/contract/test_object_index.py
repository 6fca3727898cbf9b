"""`ObjectIndex` as `state.objects` implements it, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oscar.errors import BucketNotEmpty, BucketNotFound, ObjectNotFound, PreconditionFailed, UploadNotFound
from oscar.model.job import NewJob
from oscar.model.object import Bucket, Credential, Listener, Object, Part, Upload, Visibility
from oscar.model.producer import Producer
from oscar.objects.base import ObjectIndex
from oscar.state import tables
from oscar.state.migrate import migrate
from oscar.state.object_rows import successor
from oscar.state.objects import Objects
from oscar.state.secrets import Sealer
from oscar.state.services import Services
from oscar.state.store import Store, StoreError

BUCKET = "photos"


class World:
    """A Store, its objects, and what their commits said about jobs."""

    def __init__(self, url: str) -> None:
        self.store = Store(url, Sealer(["k"]))
        migrate(self.store)
        self.asked: list[tuple[Object, str, Producer | None, str, Sequence[Listener]]] = []
        self.jobs: list[NewJob] = []
        self.index = Objects(self.store, self.jobs_for)
        self.port: ObjectIndex = self.index  # that this type-checks says that it is one

    def jobs_for(
        self,
        obj: Object,
        event: str,
        producer: Producer | None,
        source_ip: str,
        listeners: Sequence[Listener],
    ) -> Sequence[NewJob]:
        self.asked.append((obj, event, producer, source_ip, listeners))
        return self.jobs

    def close(self) -> None:
        self.store.close()

    def run(self, act: Callable[[Objects], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            return await act(self.index)

        return asyncio.run(main())

    def scalar(self, statement: sa.Select[Any]) -> Any:
        return self.store.write_sync(lambda connection: connection.execute(statement).scalar())

    def commit(self, stored: Object, **more: Any) -> str | None:
        freed: str | None = self.run(lambda index: index.commit(stored, **more))
        return freed

    def add_service(self, name: str, bucket: str, prefix: str) -> str:
        return asyncio.run(
            Services(self.store).insert(
                name=name,
                owner="o",
                definition="{}",
                token=name * 8,
                secrets={},
                inputs=[(bucket, prefix)],
                buckets=[],
                concurrency=0,
            )
        )


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url)
    made.run(lambda index: index.create_bucket(Bucket(BUCKET, "owner")))
    yield made
    made.close()


def obj(key: str, generation: str = "", **changes: Any) -> Object:
    fields: dict[str, Any] = {"size": 5, "etag": "e", "modified": 1000, **changes}
    return Object(BUCKET, key, generation or uuid.uuid4().hex, **fields)


FULL = Object(
    BUCKET, "a/é ☃\x01", "g1", 2**40, "etag-3", 1_700_000_000_123, "text/x", {"expires": "never"},
    {"name": "Zoë"}, {"tag": "1"}, {"crc32": "AAAAAA==-3"}, 3, "alice",
)  # fmt: skip


def test_an_object_comes_back_as_it_was(world: World) -> None:
    assert world.run(lambda index: index.commit(FULL)) is None
    assert world.run(lambda index: index.get(BUCKET, FULL.key)) == FULL
    assert world.run(lambda index: index.get(BUCKET, "other")) is None
    assert world.run(lambda index: index.get("other", FULL.key)) is None


def test_replacing_frees_the_earlier_body(world: World) -> None:
    world.run(lambda index: index.commit(obj("k", "g1", tags={"old": "1"})))
    assert world.run(lambda index: index.commit(obj("k", "g2"))) == "g1"
    found = world.run(lambda index: index.get(BUCKET, "k"))
    assert (found.generation, found.tags) == ("g2", {})


def test_no_object_without_a_bucket(world: World) -> None:
    lost = replace(obj("k"), bucket="nowhere")
    with pytest.raises(BucketNotFound):
        world.run(lambda index: index.commit(lost))
    assert world.run(lambda index: index.get("nowhere", "k")) is None
    assert world.asked == []


def test_conditions(world: World) -> None:
    world.run(lambda index: index.commit(obj("k", "g1", etag="one"), if_none_match=True))
    for conditions in ({"if_none_match": True}, {"if_match": "two"}):
        with pytest.raises(PreconditionFailed):
            world.commit(obj("k", etag="new"), **conditions)
    for conditions in ({"if_match": "one"}, {"if_match": "*"}):
        with pytest.raises(PreconditionFailed):
            world.commit(obj("absent"), **conditions)
    assert world.run(lambda index: index.get(BUCKET, "k")).generation == "g1"
    assert world.run(lambda index: index.commit(obj("k", etag="two"), if_match="one")) == "g1"
    assert world.run(lambda index: index.commit(obj("k"), if_match="*")) is not None


def test_of_many_writers_of_a_new_key_one_wins(world: World) -> None:
    async def one(index: Objects) -> bool:
        try:
            await index.commit(obj("k"), if_none_match=True)
        except PreconditionFailed:
            return False
        return True

    async def all_at_once(index: Objects) -> list[bool]:
        return await asyncio.gather(*(one(index) for _ in range(20)))

    assert sum(world.run(all_at_once)) == 1


def test_every_replaced_body_is_freed_once(world: World) -> None:
    names = [uuid.uuid4().hex for _ in range(30)]

    async def all_at_once(index: Objects) -> list[str | None]:
        return await asyncio.gather(*(index.commit(obj("k", name)) for name in names))

    freed = [name for name in world.run(all_at_once) if name]
    last = world.run(lambda index: index.get(BUCKET, "k")).generation
    assert sorted([*freed, last]) == sorted(names)


def job(service_id: str, event_key: str | None = None) -> NewJob:
    return NewJob(uuid.uuid4().hex, service_id, "svc", "o", "alice", "event", b"{}", event_key=event_key)


def count_jobs(world: World) -> int:
    return int(world.scalar(sa.select(sa.func.count()).select_from(tables.jobs)))


def test_the_jobs_of_an_object_are_in_its_transaction(world: World) -> None:
    mine = world.add_service("svc", BUCKET, "in")
    world.add_service("other", "another", "in")
    world.jobs = [job(mine)]
    stored = obj("in/x", owner="alice")
    producer = Producer("j1", 2)
    world.run(
        lambda index: index.commit(stored, event="s3:ObjectCreated:Copy", producer=producer, source_ip="::1")
    )
    assert world.asked == [
        (stored, "s3:ObjectCreated:Copy", producer, "::1", [Listener(mine, "svc", "o", BUCKET, "in")])
    ]
    assert count_jobs(world) == 1


def test_when_the_jobs_can_t_be_made_neither_is_the_object(world: World) -> None:
    mine = world.add_service("svc", BUCKET, "in")
    world.jobs = [job(mine), replace(job(mine), owner=None)]  # type: ignore[arg-type]  # that is the point
    with pytest.raises(StoreError, match="owner"):
        world.run(lambda index: index.commit(obj("in/x")))
    assert world.run(lambda index: index.get(BUCKET, "in/x")) is None
    assert count_jobs(world) == 0


def test_a_refused_write_makes_no_jobs(world: World) -> None:
    mine = world.add_service("svc", BUCKET, "in")
    world.jobs = [job(mine)]
    with pytest.raises(PreconditionFailed):
        world.run(lambda index: index.commit(obj("in/x"), if_match="none"))
    assert count_jobs(world) == 0


def test_a_job_delivers_a_key_once(world: World) -> None:
    mine = world.add_service("svc", BUCKET, "out")
    producer = Producer("job-1", 1)
    world.jobs = [job(mine)]
    assert world.run(lambda index: index.commit(obj("out/x", "g1"), producer=producer)) is None
    assert world.run(lambda index: index.delivered(producer, BUCKET, "out/x"))
    world.jobs = [job(mine)]
    # Repeated after a crash: its new body is free at once, nothing is replaced, nothing triggered.
    assert world.run(lambda index: index.commit(obj("out/x", "g2"), producer=producer)) == "g2"
    assert world.run(lambda index: index.get(BUCKET, "out/x")).generation == "g1"
    assert count_jobs(world) == 1
    assert not world.run(lambda index: index.delivered(producer, BUCKET, "out/y"))
    assert world.run(lambda index: index.commit(obj("out/x", "g3"), producer=Producer("job-2"))) == "g1"
    assert count_jobs(world) == 2


def test_a_delivery_that_failed_may_be_repeated(world: World) -> None:
    producer = Producer("job-1")
    with pytest.raises(PreconditionFailed):
        world.run(lambda index: index.commit(obj("x"), producer=producer, if_match="none"))
    assert world.run(lambda index: index.commit(obj("x"), producer=producer)) is None
    assert world.run(lambda index: index.get(BUCKET, "x")) is not None


def test_deleting(world: World) -> None:
    for key in ("a", "b", "c"):
        world.commit(obj(key, f"g-{key}"))
    assert world.run(lambda index: index.delete(BUCKET, ["a", "x", "c"])) == {"a": "g-a", "c": "g-c"}
    assert world.run(lambda index: index.delete(BUCKET, ["a"])) == {}
    assert [found.key for found in world.run(lambda index: index.list(BUCKET)).objects] == ["b"]


def test_retagging(world: World) -> None:
    world.run(lambda index: index.commit(obj("k", tags={"a": "1"})))
    world.run(lambda index: index.retag(BUCKET, "k", {"b": "2"}))
    assert world.run(lambda index: index.get(BUCKET, "k")).tags == {"b": "2"}
    with pytest.raises(ObjectNotFound):
        world.run(lambda index: index.retag(BUCKET, "other", {}))


def test_buckets(world: World) -> None:
    full = Bucket(
        "a-b",
        "alice",
        Visibility.RESTRICTED,
        ("bob", "carol"),
        1_700_000_000_000,
        "svc",
        {"t": "1"},
        "<xml/>",
        "{}",
    )
    assert world.run(lambda index: index.create_bucket(full))
    assert not world.run(lambda index: index.create_bucket(replace(full, owner="mallory")))
    assert world.run(lambda index: index.bucket("a-b")) == full
    assert world.run(lambda index: index.create_bucket(Bucket("ab", "bob")))
    # By bytes, whatever the locale of the database says about hyphens.
    assert [bucket.name for bucket in world.run(lambda index: index.buckets())] == ["a-b", "ab", BUCKET]
    assert world.run(lambda index: index.bucket("ab")).created > 1_700_000_000_000
    changed = replace(full, visibility=Visibility.PUBLIC, allowed_users=(), tags={}, cors=None, policy=None)
    world.run(lambda index: index.replace_bucket(changed))
    assert world.run(lambda index: index.bucket("a-b")) == changed
    with pytest.raises(BucketNotFound):
        world.run(lambda index: index.replace_bucket(Bucket("nowhere", "x")))


def upload(upload_id: str, key: str, bucket: str = BUCKET) -> Upload:
    return Upload(
        upload_id,
        bucket,
        key,
        5,
        "alice",
        "text/x",
        {"expires": "1"},
        {"m": "1"},
        {"t": "1"},
        "crc32",
        "COMPOSITE",
    )


def create_upload(world: World, begun: Upload) -> None:
    world.run(lambda index: index.create_upload(begun))


def put_part(world: World, part: Part) -> None:
    world.run(lambda index: index.put_part(part))


def test_removing_buckets(world: World) -> None:
    world.run(lambda index: index.commit(obj("k", "g1")))
    world.run(lambda index: index.create_upload(upload("u1", "big")))
    world.run(lambda index: index.put_part(Part("u1", 1, "g2", 5, "e", 0)))
    world.run(lambda index: index.put_part(Part("u1", 2, "u1.2", 5, "e", 0)))
    with pytest.raises(BucketNotEmpty):
        world.run(lambda index: index.delete_bucket(BUCKET))
    assert world.run(lambda index: index.bucket(BUCKET)) is not None
    assert sorted(world.run(lambda index: index.delete_bucket(BUCKET, force=True))) == ["g1", "g2", "u1"]
    assert world.run(lambda index: index.bucket(BUCKET)) is None
    assert world.run(lambda index: index.upload("u1")) is None
    with pytest.raises(BucketNotFound):
        world.run(lambda index: index.delete_bucket(BUCKET))


def test_usage(world: World) -> None:
    for i in range(3):
        world.commit(obj(str(i), size=2**40))
    usage = world.run(lambda index: index.usage(BUCKET))
    assert (usage.objects, usage.size) == (3, 3 * 2**40)
    assert world.run(lambda index: index.usage("nowhere")).size == 0


def test_uploads(world: World) -> None:
    for upload_id, key in (("u2", "b"), ("u1", "b"), ("u3", "a/x")):
        create_upload(world, upload(upload_id, key))
    assert world.run(lambda index: index.upload("u1")) == upload("u1", "b")
    assert [found.id for found in world.run(lambda index: index.uploads(BUCKET))] == ["u3", "u1", "u2"]
    assert [found.id for found in world.run(lambda index: index.uploads(BUCKET, prefix="a/"))] == ["u3"]
    with pytest.raises(BucketNotFound):
        world.run(lambda index: index.create_upload(upload("u4", "x", "nowhere")))


def test_parts(world: World) -> None:
    world.run(lambda index: index.create_upload(upload("u", "k")))
    part = Part("u", 2, "g2", 2**40, "e2", 7, {"crc32": "x"})
    assert world.run(lambda index: index.put_part(part)) is None
    assert world.run(lambda index: index.put_part(Part("u", 1, "u.1", 5, "e1", 0))) is None
    assert world.run(lambda index: index.parts("u")) == [Part("u", 1, "u.1", 5, "e1", 0), part]
    assert world.run(lambda index: index.put_part(replace(part, generation="g3"))) == "g2"
    # What lies in place in the upload's own file frees no file.
    assert world.run(lambda index: index.put_part(Part("u", 1, "g4", 5, "e1", 0))) is None
    with pytest.raises(UploadNotFound):
        world.run(lambda index: index.put_part(Part("other", 1, "g5", 5, "e", 0)))


def test_completing_an_upload(world: World) -> None:
    mine = world.add_service("svc", BUCKET, "in")
    world.run(lambda index: index.commit(obj("in/k", "g0", etag="old")))
    world.asked.clear()
    world.jobs = [job(mine)]
    world.run(lambda index: index.create_upload(upload("u", "in/k")))
    for part in (Part("u", 1, "u.1", 5, "e", 0), Part("u", 2, "g2", 5, "e", 0)):
        put_part(world, part)
    whole = obj("in/k", "u")
    with pytest.raises(PreconditionFailed):
        world.run(lambda index: index.complete_upload("u", whole, if_match="x"))
    assert len(world.run(lambda index: index.parts("u"))) == 2
    assert sorted(world.run(lambda index: index.complete_upload("u", whole, source_ip="::1"))) == ["g0", "g2"]
    assert world.run(lambda index: index.get(BUCKET, "in/k")).generation == "u"
    assert world.run(lambda index: index.upload("u")) is None
    assert [(asked[1], asked[3]) for asked in world.asked] == [
        ("s3:ObjectCreated:CompleteMultipartUpload", "::1")
    ]
    assert count_jobs(world) == 1
    with pytest.raises(UploadNotFound):
        world.run(lambda index: index.complete_upload("u", whole))


def test_completing_by_copy_frees_the_uploads_own_file(world: World) -> None:
    world.run(lambda index: index.create_upload(upload("u", "k")))
    world.run(lambda index: index.put_part(Part("u", 1, "g1", 5, "e", 0)))
    assert sorted(world.run(lambda index: index.complete_upload("u", obj("k", "g9")))) == ["g1", "u"]


def test_aborting_an_upload(world: World) -> None:
    world.run(lambda index: index.create_upload(upload("u", "k")))
    world.run(lambda index: index.put_part(Part("u", 1, "g1", 5, "e", 0)))
    world.run(lambda index: index.put_part(Part("u", 2, "u.2", 5, "e", 0)))
    assert sorted(world.run(lambda index: index.abort_upload("u"))) == ["g1", "u"]
    with pytest.raises(UploadNotFound):
        world.run(lambda index: index.abort_upload("u"))


def test_what_is_referenced(world: World) -> None:
    world.run(lambda index: index.commit(obj("k", "g1")))
    world.run(lambda index: index.create_upload(upload("u", "k")))
    world.run(lambda index: index.put_part(Part("u", 1, "g2", 5, "e", 0)))
    assert world.run(lambda index: index.referenced(["g1", "g2", "u", "g3"])) == {"g1", "g2", "u"}
    assert world.run(lambda index: index.referenced([])) == set()


def test_key_pairs(world: World) -> None:
    first = world.run(lambda index: index.credential_of("alice@example.org"))
    assert first.access_key == first.user == "alice@example.org"
    assert len(first.secret_key) >= 20
    assert not first.admin
    assert world.run(lambda index: index.credential_of("alice@example.org")) == first
    assert world.run(lambda index: index.credential("alice@example.org")) == first
    assert world.run(lambda index: index.credential("nobody")) is None
    odd = world.run(lambda index: index.credential_of("ä name, with/everything"))
    assert odd.access_key.isalnum()
    assert odd.user == "ä name, with/everything"
    admin = Credential("minio", "secret", "cluster_admin", admin=True)
    world.run(lambda index: index.put_credential(admin))
    world.run(lambda index: index.put_credential(replace(admin, secret_key="changed")))
    assert world.run(lambda index: index.credential("minio")) == replace(admin, secret_key="changed")
    assert world.run(lambda index: index.credential_of("cluster_admin")).access_key == "minio"


def test_nobody_gets_the_keys_of_another_by_being_called_like_them(world: World) -> None:
    admin = Credential("oscar-admin", "secret", "cluster_admin", admin=True)
    world.run(lambda index: index.put_credential(admin))
    odd = world.run(lambda index: index.credential_of("oscar-admin"))
    assert (odd.user, odd.admin) == ("oscar-admin", False)
    assert odd.access_key != "oscar-admin"
    assert odd.secret_key != "secret"
    assert world.run(lambda index: index.credential_of("oscar-admin")) == odd
    assert world.run(lambda index: index.credential("oscar-admin")) == admin


def test_key_pairs_made_at_once_are_one(world: World) -> None:
    async def all_at_once(index: Objects) -> list[Credential]:
        return await asyncio.gather(*(index.credential_of("bob") for _ in range(10)))

    assert len({pair.secret_key for pair in world.run(all_at_once)}) == 1


def test_secrets_are_sealed(world: World, tmp_path: Path) -> None:
    pair = world.run(lambda index: index.credential_of("alice"))
    rows = world.store.write_sync(lambda connection: connection.execute(sa.select(tables.credentials)).all())
    assert pair.secret_key.encode() not in b"".join(bytes(row.secret_sealed) for row in rows)
    for file in tmp_path.glob("o.db*"):
        assert pair.secret_key.encode() not in file.read_bytes()


def test_lookup_finds_what_there_is(world: World) -> None:
    world.run(lambda index: index.commit(FULL))
    pair = world.run(lambda index: index.credential_of("alice"))
    known = world.run(lambda index: index.lookup(access_key="alice", bucket=BUCKET, key=FULL.key))
    assert (known.credential, known.bucket.name, known.object) == (pair, BUCKET, FULL)
    nothing = world.run(lambda index: index.lookup(access_key="x", bucket="x", key=FULL.key))
    assert (nothing.credential, nothing.bucket, nothing.object) == (None, None, None)
    unasked = world.run(lambda index: index.lookup(access_key=None, bucket=BUCKET, key=None))
    assert (unasked.credential, unasked.bucket.name, unasked.object) == (None, BUCKET, None)


def page_of(
    keys: Sequence[str], prefix: str, delimiter: str, after: str, limit: int
) -> tuple[list[str], list[str], str | None]:
    """What a listing must give, said plainly: keys and prefixes of a page, and where the next one starts."""
    entries: list[tuple[str, bool]] = []
    for key in sorted(keys, key=str.encode):
        if not key.startswith(prefix):
            continue
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        folder = key[: cut + len(delimiter)] if cut >= 0 else ""
        if (folder and folder == after) or key.encode() <= after.encode():
            continue
        entry = (folder, True) if folder else (key, False)
        if entry not in entries:
            entries.append(entry)
    page = entries[:limit]
    following = page[-1][0] if len(entries) > limit else None
    return [name for name, is_folder in page if not is_folder], [name for name, f in page if f], following


# Few characters, so that prefixes and delimiters meet; with neighbours of "/", and the last before surrogates.
KEYS = st.text(alphabet="ab/.0é\ud7ff\ue000\U0010ffff", min_size=1, max_size=6)
TEXTS = st.text(alphabet="ab/0é\ud7ff\U0010ffff", max_size=3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(KEYS, unique=True, max_size=25),
    prefix=TEXTS,
    delimiter=st.sampled_from(["", "/", "a", "/a"]),
    after=TEXTS,
    limit=st.integers(1, 5),
)
def test_listing_agrees_with_a_model(
    world: World, keys: list[str], prefix: str, delimiter: str, after: str, limit: int
) -> None:
    bucket = f"b{uuid.uuid4().hex}"

    async def act(index: Objects) -> None:
        await index.create_bucket(Bucket(bucket, "x"))
        await asyncio.gather(*(index.commit(replace(obj(key), bucket=bucket)) for key in keys))
        start: str | None = after
        while start is not None:
            page = await index.list(bucket, prefix=prefix, delimiter=delimiter, after=start, limit=limit)
            found = ([entry.key for entry in page.objects], list(page.prefixes), page.next_key)
            assert found == page_of(keys, prefix, delimiter, start, limit)
            assert page.truncated == (page.next_key is not None)
            start = page.next_key

    world.run(act)


def test_a_folder_of_many_keys_is_passed_by_a_seek(world: World) -> None:
    def fill(connection: sa.Connection) -> None:
        rows = [
            {
                "bucket": BUCKET, "key": f"{folder}/{i:05}", "generation": f"{folder}{i}", "size": 1, "etag": "e",
                "modified": 0, "content_type": "x", "headers": {}, "metadata": {}, "tags": {}, "checksums": {},
            }
            for folder in "abc"
            for i in range(5000)
        ]  # fmt: skip
        connection.execute(sa.insert(tables.objects), rows)

    world.store.write_sync(fill)
    read: list[int] = []

    @sa.event.listens_for(sa.engine.Engine, "after_cursor_execute")
    def count(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "FROM objects" in statement:
            read.append(max(value for value in dict_values(parameters) if isinstance(value, int)))

    try:
        page = world.run(lambda index: index.list(BUCKET, delimiter="/"))
    finally:
        sa.event.remove(sa.engine.Engine, "after_cursor_execute", count)
    assert page.prefixes == ("a/", "b/", "c/")
    assert not page.truncated
    # The limits of the statements bound the rows read: a chunk for each folder, not 15,000 rows.
    assert len(read) <= 4
    assert sum(read) <= 4 * 128


def dict_values(parameters: Any) -> list[Any]:
    return list(parameters.values()) if isinstance(parameters, dict) else list(parameters)


@given(st.text(min_size=1, max_size=4), st.text(max_size=3))
def test_successors(prefix: str, rest: str) -> None:
    end = successor(prefix)
    key = prefix + rest
    if end is None:
        assert set(prefix) == {"\U0010ffff"}
    else:
        assert key.encode("utf-8", "surrogatepass") < end.encode("utf-8", "surrogatepass")
        assert not end.startswith(prefix)
