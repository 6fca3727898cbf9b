"""From provider strings to stores: which one, with which keys, and what is said when there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oscar.errors import Forbidden, InvalidField, OscarError
from oscar.model.federation import WORKER
from oscar.model.service import Service, parse_service
from oscar.objects.s3 import S3Store
from oscar.supervisor.providers import KEPT, OPENERS, Clients, Providers
from tests import real_minio, s3_server

KEYS = {"access_key": "the-key", "secret_key": "the-secret"}


def service(providers: dict[str, Any], **fields: Any) -> Service:
    return parse_service(
        {"name": "svc", "image": "i", "script": "s", "storage_providers": providers, **fields}
    )


OWN = S3Store("http://own.invalid", "a", "b")


def opened(target: Service, provider: str) -> Any:
    return Providers(target, OWN).open(provider)


@pytest.mark.parametrize("name", ["minio.default", "minio", "MinIO.default", "minio.here"])
def test_the_own_store(name: str) -> None:
    hidden = {
        "minio": {"default": {"endpoint": "https://public", "access_key": "hidden", "secret_key": "hidden"}}
    }
    assert opened(service({}, cluster_id="here"), name) is OWN
    assert opened(service(hidden, cluster_id="here"), name) is OWN
    # Whatever a user writes there, the default is the platform's own store.
    users = {"minio": {"default": {"endpoint": "https://elsewhere", **KEYS}}}
    assert opened(service(users, cluster_id="here"), name) is OWN


def test_a_copy_of_another_clusters_service_uses_that_clusters_store() -> None:
    far = {"minio": {"default": {"endpoint": "https://far:9000", **KEYS}}}
    copy = service(far, annotations={WORKER: "true"})
    assert repr(opened(copy, "minio.default")) == "S3Store(far:9000)"
    hidden = {
        "minio": {"default": {"endpoint": "https://far:9000", "access_key": "hidden", "secret_key": "hidden"}}
    }
    assert opened(service(hidden, annotations={WORKER: "true"}), "minio.default") is OWN


def test_amazon_s3_in_its_region() -> None:
    target = service({"s3": {"default": KEYS, "irish": {**KEYS, "region": "eu-west-1"}}})
    assert repr(opened(target, "s3")) == "S3Store(s3.us-east-1.amazonaws.com)"
    irish = opened(target, "s3.irish")
    url = asyncio.run(irish.presign("bucket", "key", method="GET", expires=60))
    assert url.startswith("https://s3.eu-west-1.amazonaws.com/bucket/key?")
    assert "%2Feu-west-1%2Fs3%2F" in url


@pytest.mark.parametrize(
    ("kind", "definition", "shown"),
    [
        ("webdav", {"hostname": "dcache:2880/data/", "login": "u", "password": "the-secret"},
         "WebDavStore(dcache:2880)"),
        ("webdav", {"hostname": "http://dcache", "token": "the-secret"}, "WebDavStore(dcache)"),
        ("webdav", {"hostname": "open.example.org"}, "WebDavStore(open.example.org)"),
        ("onedata", {"oneprovider_host": "one", "token": "the-secret", "space": "s"}, "OnedataStore(one)"),
        ("rucio", {"host": "https://rucio:443", "account": "a", "refresh_token": "the-secret"},
         "RucioStore(rucio:443)"),
    ],
)  # fmt: skip
def test_foreign_storage(kind: str, definition: dict[str, str], shown: str) -> None:
    found = opened(service({kind: {"x": definition}}), f"{kind}.x")
    assert repr(found) == shown
    assert set(OPENERS) == {"minio", "s3", "webdav", "onedata", "rucio"}


@pytest.mark.parametrize(
    ("providers", "name", "field", "message"),
    [
        ({}, "minio.other", "storage_providers.minio.other", 'the StorageProvider "minio.other" is not defined'),
        ({}, "s3", "storage_providers.s3.default", 'the StorageProvider "s3.default" is not defined'),
        ({}, "ftp.x", None, "unknown type"),
        ({"minio": {"x": KEYS}}, "minio.x", "storage_providers.minio.x.endpoint", "no address"),
        ({"minio": {"x": {"endpoint": "minio:9000", **KEYS}}}, "minio.x", "storage_providers.minio.x.endpoint",
         "no address of a store"),
        ({"minio": {"x": {"endpoint": "http://m"}}}, "minio.x", "storage_providers.minio.x.access_key", "no keys"),
        ({"minio": {"x": {"endpoint": "http://m", "access_key": "a", "secret_key": "hidden"}}}, "minio.x",
         "storage_providers.minio.x.access_key", "no keys"),
        ({"s3": {"x": {"region": "eu-west-1"}}}, "s3.x", "storage_providers.s3.x.access_key", "no keys"),
        ({"webdav": {"x": {"login": "u"}}}, "webdav.x", "storage_providers.webdav.x.hostname", "not given"),
        ({"webdav": {"x": {"hostname": "h", "login": "u"}}}, "webdav.x",
         "storage_providers.webdav.x.password", "not given"),
        ({"webdav": {"x": {"hostname": "ftp://h"}}}, "webdav.x", "storage_providers.webdav.x.hostname", "no address"),
        ({"webdav": {"x": {"hostname": "https://u:p4ss@h"}}}, "webdav.x", "storage_providers.webdav.x.hostname",
         r"^storage_providers.webdav.x.hostname contains a user$"),
        ({"onedata": {"x": {"token": "t"}}}, "onedata.x", "storage_providers.onedata.x.oneprovider_host", "not given"),
        ({"onedata": {"x": {"oneprovider_host": "o"}}}, "onedata.x", "storage_providers.onedata.x.token", "not given"),
        ({"rucio": {"x": {}}}, "rucio.x", "storage_providers.rucio.x.host", "not given"),
        ({"rucio": {"x": {"host": "h", "account": "a"}}}, "rucio.x",
         "storage_providers.rucio.x.refresh_token", "not given"),
    ],
)  # fmt: skip
def test_what_can_t_be_opened(providers: dict[str, Any], name: str, field: str | None, message: str) -> None:
    with pytest.raises(InvalidField, match=message) as caught:
        opened(service(providers), name)
    assert caught.value.field == field


def test_clients_are_shared_by_jobs_with_the_same_keys_only() -> None:
    clients = Clients()

    def store(**changes: Any) -> Any:
        definition = {"endpoint": "http://m", **KEYS, **changes}
        return Providers(service({"minio": {"x": definition}}), OWN, clients).open("minio.x")

    first = store()
    assert store() is first
    others = [store(secret_key="other"), store(access_key="other"), store(region="r"), store(verify=False)]
    assert len({id(found) for found in (first, *others)}) == 5
    for number in range(KEPT):
        store(access_key=f"user-{number}")
    assert store() is not first
    asyncio.run(clients.close())


@pytest.fixture(scope="module", params=["builtin", pytest.param("minio", marks=pytest.mark.real)])
def provider(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("s3")
    if request.param == "builtin":
        alice = s3_server.ALICE
        with s3_server.running(folder) as server:
            yield {
                "endpoint": server.endpoint,
                "access_key": alice.access_key,
                "secret_key": alice.secret_key,
            }
        return
    try:
        with real_minio.running(folder) as minio:
            keys = {"access_key": real_minio.ACCESS_KEY, "secret_key": real_minio.SECRET_KEY}
            yield {"endpoint": minio.endpoint, **keys}
    except real_minio.MinioMissing as missing:
        pytest.skip(str(missing))


def test_a_provider_of_the_service_works_with_its_keys(provider: dict[str, Any], tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"hello")
    wrong = {**provider, "secret_key": "not-the-right-one"}
    target = service({"minio": {"other": provider, "wrong": wrong}})

    async def main() -> None:
        providers = Providers(target, OWN)
        store = providers.open("minio.other")
        await store.ensure_bucket("private")
        await store.upload("private", "in/a", source)
        await store.download("private", "in/a", copy)
        with pytest.raises(Forbidden):
            await providers.open("minio.wrong").stat("private", "in/a")
        assert providers.open("minio.other") is store
        await providers.close()

    asyncio.run(main())
    assert copy.read_bytes() == b"hello"


def test_every_error_is_one_of_ours() -> None:
    for name in ("", ".", "minio.", ".x", "minio.default.x", "s3.\n", "x" * 1000):
        try:
            found = opened(service({}), name)
        except OscarError:
            continue
        assert found is OWN
