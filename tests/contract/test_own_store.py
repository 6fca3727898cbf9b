"""The platform's own store as `ObjectStore` and `BucketAdmin`: one suite for the built-in one and a real MinIO.

What only the built-in one promises (bodies, transactions) is in `test_object_store.py`. The second half is about what
is derived in MinIO from our rows: `Upkeep`.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from botocore.exceptions import ClientError

from oscar.errors import BucketNotEmpty, BucketNotFound, Forbidden, NoAnswer, ObjectNotFound, QuotaExceeded
from oscar.model.object import Bucket, Credential, Visibility
from oscar.model.producer import Producer
from oscar.model.quota import Defaults, Limits
from oscar.model.user import ADMIN
from oscar.objects.base import BucketAdmin, ObjectStore, Upkeep
from oscar.objects.minio import MinioStore
from oscar.objects.minio_admin import MinioAccounts
from oscar.objects.minio_rules import environment
from oscar.objects.s3 import S3Store
from oscar.objects.s3_signing import Site
from oscar.state.bucket_changes import OutsideBuckets
from oscar.state.migrate import migrate
from oscar.state.quotas import Quotas
from oscar.state.secrets import Sealer
from oscar.state.store import Store
from tests import minio_world, real_minio, s3_server
from tests.contract.test_object_store import make
from tests.s3_server import free_port

DEFAULTS = Defaults(Limits(buckets=5))


@dataclass(slots=True)
class Own:
    """A store of one of the kinds; MinIO's client is bound to an event loop, so each act has a store of its own."""

    opened: Callable[[], Any]
    endpoint: str
    state: Store

    def run(self, act: Callable[[Any], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            store = self.opened()
            try:
                return await act(store)
            finally:
                if isinstance(store, MinioStore):
                    await store.close()

        return asyncio.run(main())

    def as_user(self, user: str, act: Callable[[S3Store], Awaitable[Any]]) -> Any:
        """Act over the S3 protocol with a user's own keys."""
        keys: Credential = self.run(lambda store: store.credential_of(user))

        async def main() -> Any:
            store = S3Store(self.endpoint, keys.access_key, keys.secret_key)
            try:
                return await act(store)
            finally:
                await store.close()

        return asyncio.run(main())


async def name_of(user: str) -> str:
    return f"Mr. {user}"


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    folder = tmp_path_factory.mktemp("minio")
    (folder / "data").mkdir()
    rules = environment(
        target="OSCAR",
        url=f"http://127.0.0.1:{free_port()}",
        token="t" * 32,
        queue=str(folder / "queue"),
        limit=1000,
    )
    try:
        with real_minio.running(folder / "data", environment=rules) as server:
            state = Store(f"sqlite:///{folder}/oscar.db", Sealer(["k"]))
            migrate(state)
            index = OutsideBuckets(state, lambda *_: (), quotas=DEFAULTS)
            root = Credential(real_minio.ACCESS_KEY, real_minio.SECRET_KEY, ADMIN, admin=True)
            asyncio.run(index.put_credential(root))
            site = Site(server.endpoint, root.access_key, root.secret_key)

            def opened() -> MinioStore:
                accounts = MinioAccounts(site.endpoint, site.access_key, site.secret_key, site.region)
                return MinioStore(
                    index, accounts, site, public=server.endpoint, target="OSCAR", name_of=name_of
                )

            yield Own(opened, server.endpoint, state)
            state.close()
    except real_minio.MinioMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Own]:
    with s3_server.running(tmp_path) as server:
        world = make(tmp_path, server.endpoint)
        yield Own(lambda: world.store, server.endpoint, world.state)
        world.close()


@pytest.fixture(params=["embedded", pytest.param("minio", marks=pytest.mark.real)])
def own(request: pytest.FixtureRequest) -> Own:
    found: Own = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def bucket(own: Own) -> str:
    name = f"b-{uuid.uuid4().hex[:8]}"
    assert own.run(lambda store: store.create_bucket(Bucket(name, ADMIN)))
    return name


def conforms(store: MinioStore) -> tuple[ObjectStore, BucketAdmin, Upkeep]:
    """That this module type-checks says that MinioStore is all three."""
    return store, store, store


@pytest.mark.parametrize("size", [0, 1, 3 * 1024 * 1024 + 1])
def test_there_and_back(own: Own, bucket: str, tmp_path: Path, size: int) -> None:
    source, copy, key = tmp_path / "source.png", tmp_path / "copy", "a/b  c+é.png"
    source.write_bytes(os.urandom(size))
    stored = own.run(lambda store: store.upload(bucket, key, source))
    assert (stored.key, stored.size) == (key, size)
    assert own.run(lambda store: store.download(bucket, key, copy)).etag == stored.etag
    assert copy.read_bytes() == source.read_bytes()
    assert own.run(lambda store: store.stat(bucket, key)).size == size
    own.run(lambda store: store.delete(bucket, key))
    own.run(lambda store: store.delete(bucket, key))
    with pytest.raises(ObjectNotFound):
        own.run(lambda store: store.stat(bucket, key))


def test_a_delivery_is_made_once(own: Own, bucket: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    producer = Producer("job-1", 4)
    stored = own.run(lambda store: store.upload(bucket, "out/x", first, producer=producer))
    again = own.run(lambda store: store.upload(bucket, "out/x", second, producer=producer))
    assert (again.size, again.etag) == (stored.size, stored.etag)
    own.run(lambda store: store.upload(bucket, "out/x", second, producer=Producer("job-2")))
    assert own.run(lambda store: store.stat(bucket, "out/x")).size == 6


def test_what_is_missing(own: Own, bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(ObjectNotFound):
        own.run(lambda store: store.download(bucket, "none", tmp_path / "copy"))
    with pytest.raises(BucketNotFound):
        own.run(lambda store: store.upload("nowhere-at-all", "k", source))
    with pytest.raises(BucketNotFound):
        own.run(lambda store: store.presign("nowhere-at-all", "k", method="GET", expires=60))
    assert own.run(lambda store: store.bucket("nowhere-at-all")) is None
    own.run(lambda store: store.delete_bucket("nowhere-at-all"))


def test_lists_in_order(own: Own, bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")

    async def fill(store: ObjectStore) -> None:
        for key in ("b", "a/c", "é", "a/b", "a-"):
            await store.upload(bucket, key, source)

    async def listed(store: ObjectStore, prefix: str = "", start_after: str = "") -> list[str]:
        return [found.key async for found in store.list(bucket, prefix, start_after=start_after)]

    own.run(fill)
    assert own.run(listed) == ["a-", "a/b", "a/c", "b", "é"]
    assert own.run(lambda store: listed(store, "a/")) == ["a/b", "a/c"]
    assert own.run(lambda store: listed(store, start_after="a/b")) == ["a/c", "b", "é"]


def test_links(own: Own, bucket: str) -> None:
    def link(method: str, **how: Any) -> str:
        return str(own.run(lambda store: store.presign(bucket, "a b+é", method=method, expires=60, **how)))

    assert httpx2.put(link("PUT"), content=b"linked").status_code == 200
    assert httpx2.get(link("GET")).content == b"linked"
    assert httpx2.delete(link("GET")).status_code == 403


def test_buckets(own: Own) -> None:
    name = f"b-{uuid.uuid4().hex[:8]}"
    made = Bucket(name, "bob", tags={"owner": "bob"}, service="svc")
    assert own.run(lambda store: store.create_bucket(made))
    assert not own.run(lambda store: store.create_bucket(replace(made, owner="carol")))
    found = own.run(lambda store: store.bucket(name))
    assert (found.owner, found.tags, found.service) == ("bob", {"owner": "bob"}, "svc")
    assert found.created > 1_700_000_000_000
    own.run(
        lambda store: store.update_bucket(name, visibility=Visibility.RESTRICTED, allowed_users=["carol"])
    )
    found = own.run(lambda store: store.bucket(name))
    assert (found.visibility, found.allowed_users) == (Visibility.RESTRICTED, ("carol",))
    assert name in [each.name for each in own.run(lambda store: store.buckets())]
    with pytest.raises(BucketNotFound):
        own.run(lambda store: store.update_bucket("nowhere", visibility=Visibility.PUBLIC, allowed_users=[]))
    own.run(lambda store: store.ensure_bucket(name))
    assert own.run(lambda store: store.bucket(name)).owner == "bob"


def test_removing_buckets(own: Own, bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"12345")
    own.run(lambda store: store.upload(bucket, "k", source))
    usage = own.run(lambda store: store.usage(bucket))
    assert (usage.objects, usage.size) == (1, 5)
    with pytest.raises(BucketNotEmpty):
        own.run(lambda store: store.delete_bucket(bucket))
    own.run(lambda store: store.delete_bucket(bucket, force=True))
    own.run(lambda store: store.delete_bucket(bucket))
    assert own.run(lambda store: store.bucket(bucket)) is None
    assert own.run(lambda store: store.create_bucket(Bucket(bucket, "bob")))
    assert own.run(lambda store: store.usage(bucket)).objects == 0


def test_who_may_what_with_keys_of_ones_own(own: Own, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    alice, bob, carol = (f"{name}-{uuid.uuid4().hex[:6]}@example.org" for name in ("alice", "bob", "carol"))
    name = f"b-{uuid.uuid4().hex[:8]}"
    assert own.run(lambda store: store.create_bucket(Bucket(name, alice)))

    def may(user: str) -> bool:
        try:
            own.as_user(user, lambda s3: s3.upload(name, "in/x", source))
            own.as_user(user, lambda s3: s3.stat(name, "in/x"))
        except Forbidden:
            return False
        return True

    def share(visibility: Visibility, *friends: str) -> None:
        own.run(lambda store: store.update_bucket(name, visibility=visibility, allowed_users=list(friends)))

    assert [may(user) for user in (alice, bob, carol)] == [True, False, False]
    share(Visibility.RESTRICTED, bob)
    assert [may(user) for user in (alice, bob, carol)] == [True, True, False]
    share(Visibility.RESTRICTED, carol)
    assert [may(user) for user in (alice, bob, carol)] == [True, False, True]
    share(Visibility.PUBLIC)
    assert [may(user) for user in (alice, bob, carol)] == [True, True, True]
    late = f"late-{uuid.uuid4().hex[:6]}"
    assert may(late)
    share(Visibility.PRIVATE)
    assert [may(user) for user in (alice, bob, carol, late)] == [True, False, False, False]


def test_keys_stay(own: Own) -> None:
    dave = own.run(lambda store: store.credential_of("dave"))
    assert own.run(lambda store: store.credential_of("dave")) == dave
    assert dave.secret_key not in repr(dave)


# What is derived in MinIO.

real = pytest.mark.real


def client(own: Own) -> Any:
    return minio_world.s3(own.endpoint)


def tags(own: Own, name: str) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in client(own).get_bucket_tagging(Bucket=name)["TagSet"]}


@real
def test_a_bucket_has_its_tags_and_its_owner_may_not_change_what_is_ours(minio: Own) -> None:
    name, owner = f"b-{uuid.uuid4().hex[:8]}", f"eve-{uuid.uuid4().hex[:6]}"
    minio.run(lambda store: store.create_bucket(Bucket(name, owner, service="svc", tags={"owner": owner})))
    assert tags(minio, name) == {"owner": owner, "from_service": "svc", "owner_name": f"Mr. {owner}"}
    keys = minio.run(lambda store: store.credential_of(owner))
    theirs = minio_world.s3(minio.endpoint, keys.access_key, keys.secret_key)
    theirs.put_bucket_policy(
        Bucket=name,
        Policy='{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:GetObject",'
        f'"Resource":"arn:aws:s3:::{name}/*"}}]}}',
    )
    attempts: list[Callable[[], Any]] = [
        lambda: theirs.delete_bucket(Bucket=name),
        lambda: theirs.create_bucket(Bucket=f"{name}-2"),
        lambda: theirs.put_bucket_notification_configuration(Bucket=name, NotificationConfiguration={}),
        lambda: theirs.put_bucket_tagging(Bucket=name, Tagging={"TagSet": [{"Key": "owner", "Value": "me"}]}),
    ]
    for refused in attempts:
        with pytest.raises(ClientError, match="AccessDenied"):
            refused()


@real
def test_a_bucket_made_elsewhere_is_known_by_its_tag(minio: Own) -> None:
    name = f"b-{uuid.uuid4().hex[:8]}"
    client(minio).create_bucket(Bucket=name)
    client(minio).put_bucket_tagging(Bucket=name, Tagging={"TagSet": [{"Key": "owner", "Value": "frank"}]})
    assert minio.run(lambda store: store.bucket(name)).owner == "frank"
    assert not minio.run(lambda store: store.create_bucket(Bucket(name, "mallory")))
    bare = f"b-{uuid.uuid4().hex[:8]}"
    client(minio).create_bucket(Bucket=bare)
    minio.run(lambda store: store.reconcile(()))
    assert minio.run(lambda store: store.bucket(bare)).owner == ""


@real
def test_what_was_changed_by_hand_is_put_back(minio: Own, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    name, owner = f"b-{uuid.uuid4().hex[:8]}", f"gina-{uuid.uuid4().hex[:6]}"
    minio.run(lambda store: store.create_bucket(Bucket(name, owner, Visibility.PUBLIC)))
    keys = minio.run(lambda store: store.credential_of(owner))

    async def spoil(store: MinioStore) -> None:
        accounts: Any = store._accounts
        client: Any = accounts._client
        await accounts.disallow("all_users_group", f"users_of_{name}")
        client.user_remove(keys.access_key)

    minio.run(spoil)
    client(minio).delete_bucket(Bucket=name)
    minio.run(lambda store: store.reconcile({name}))
    for user in (owner, "somebody"):
        minio.as_user(user, lambda s3: s3.upload(name, "k", source))
    found = client(minio).get_bucket_notification_configuration(Bucket=name)["QueueConfigurations"]
    assert [rule["Id"] for rule in found] == ["oscar"]
    minio.run(lambda store: store.reconcile(()))
    assert "QueueConfigurations" not in client(minio).get_bucket_notification_configuration(Bucket=name)


@real
def test_a_creation_that_breaks_off_leaves_nothing(minio: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"b-{uuid.uuid4().hex[:8]}"

    async def away(*_: object, **__: object) -> None:
        raise NoAnswer("cut")

    monkeypatch.setattr(MinioAccounts, "put_quota", away)
    with pytest.raises(Exception, match="cut"):
        minio.run(lambda store: store.create_bucket(Bucket(name, "henry")))
    monkeypatch.undo()
    with pytest.raises(ClientError):
        client(minio).head_bucket(Bucket=name)
    assert minio.run(lambda store: store.bucket(name)) is None
    assert minio.run(lambda store: store.create_bucket(Bucket(name, "henry")))


@real
def test_quotas(minio: Own, tmp_path: Path) -> None:
    """How many buckets is ours to say; how much is in one MinIO's, by its own count."""
    owner = f"ida-{uuid.uuid4().hex[:6]}"
    for _ in range(5):
        assert minio.run(lambda store: store.create_bucket(Bucket(f"b-{uuid.uuid4().hex[:8]}", owner)))
    refused = f"b-{uuid.uuid4().hex[:8]}"
    with pytest.raises(QuotaExceeded):
        minio.run(lambda store: store.create_bucket(Bucket(refused, owner)))
    with pytest.raises(ClientError):
        client(minio).head_bucket(Bucket=refused)
    big = tmp_path / "big"
    big.write_bytes(b"x" * 2000)
    mine = next(each.name for each in minio.run(lambda store: store.buckets()) if each.owner == owner)
    asyncio.run(Quotas(minio.state, DEFAULTS).change(owner, {"storage_per_bucket": 1000}))
    minio.run(lambda store: store.limit(owner))
    assert minio.run(lambda store: store.usage(mine)).limit == 1000
    with pytest.raises(Exception, match="quota"):
        minio.as_user(owner, lambda s3: s3.upload(mine, "big", big))
