"""What a member gets of a federated service."""

from __future__ import annotations

from typing import Any

import pytest

from oscar.core.members import check_address
from oscar.errors import InvalidField
from oscar.model.copies import Mark, Origin, copy_of
from oscar.model.service import Service, parse_service
from oscar.model.storage import MinIOProvider
from oscar.settings import Settings

STORE = MinIOProvider(
    endpoint="https://a.test/system/federation/fed/presign", access_key="id", secret_key="key"
)
MARK = Mark("the-copy", 7, "key")


def service(topology: str = "star", **more: Any) -> Service:
    members = [
        {"cluster_id": "b", "service_name": "fed"},
        {"cluster_id": "c", "service_name": "fedc", "priority": 2},
        {"type": "endpoint", "url": "https://e.test"},
    ]
    clusters = {
        name: {"endpoint": f"https://{name}.test", "auth_user": "u", "auth_password": "planted"}
        for name in "bc"
    }
    return parse_service(
        {
            "name": "fed",
            "cluster_id": "a",
            "image": "i",
            "script": "true",
            "input": [{"storage_provider": "minio", "path": "in"}],
            "output": [
                {"storage_provider": "minio.a", "path": "shared/out"},
                {"storage_provider": "s3.x", "path": "bucket/out"},
            ],
            "storage_providers": {"s3": {"x": {"access_key": "k", "secret_key": "s", "region": "r"}}},
            "environment": {"secrets": {"refresh_token": "planted-token", "OTHER": "value"}},
            "federation": {"topology": topology, "members": members},
            "clusters": clusters,
            **more,
        }
    ).model_copy(update={"token": "f" * 64, "owner": "ann"})


def copy(topology: str = "star", member: int = 0, *, refresh: bool = False, **more: Any) -> Service:
    it = service(topology, **more)
    assert it.federation is not None
    body = copy_of(
        it,
        it.federation.members[member],
        origin=Origin("a", "https://a.test"),
        mark=MARK,
        store=STORE,
        refresh_token=refresh,
    )
    assert body["owner"] == "ann"
    return parse_service(body)


def test_a_copy_is_marked_and_named_as_its_member() -> None:
    it = copy(member=1)
    assert (it.name, it.cluster_id, it.token) == ("fedc", "c", "f" * 64)
    assert it.is_copy
    assert it.annotations["oscar.grycap/origin-cluster"] == "a"
    assert it.annotations["oscar.grycap/origin-service"] == "fed"
    assert it.annotations["oscar.grycap/federation-copy"] == "the-copy"
    assert it.copies == []


def test_results_go_to_the_origin_and_inputs_are_its_own() -> None:
    it = copy()
    assert [(place.storage_provider, place.path) for place in it.input] == [("minio.default", "fed/in")]
    assert [(place.storage_provider, place.path) for place in it.output] == [
        ("minio.a", "shared/out"),
        ("s3.x", "bucket/out"),
    ]
    assert it.storage_providers.minio["a"] == STORE
    assert it.buckets() == ["fed"]


def test_in_a_tree_a_copy_has_no_replicas() -> None:
    it = copy("tree")
    assert it.federation is not None
    assert (it.federation.topology, it.federation.members, it.replicas) == ("star", [], [])
    assert set(it.clusters) == {"a"}


def test_in_a_mesh_replicas_are_the_origin_and_all_other_members() -> None:
    it = copy("mesh")
    assert it.federation is not None
    assert it.federation.members == []
    assert [(each.cluster_id or each.url, each.service_name, each.priority) for each in it.delegates_to] == [
        ("a", "fed", 0),
        ("https://e.test", "", 0),
        ("c", "fedc", 2),
    ]
    assert {name: its.endpoint for name, its in it.clusters.items()} == {
        "a": "https://a.test",
        "c": "https://c.test",
    }


@pytest.mark.parametrize("topology", ["star", "mesh"])
def test_no_copy_has_accounts_or_the_refresh_token(topology: str) -> None:
    it = copy(topology)
    assert "planted" not in it.model_dump_json()
    assert it.environment.secrets == {"OTHER": "value"}
    assert "refresh_token" in copy(topology, refresh=True).environment.secrets


def test_headers_of_other_members_go_along_in_a_mesh() -> None:
    members = [{"cluster_id": "b"}, {"type": "endpoint", "url": "https://e.test", "headers": {"X": "secret"}}]
    it = copy("mesh", federation={"topology": "mesh", "members": members})
    assert it.replicas[1].headers == {"X": "secret"}


ALLOWED = Settings(federation_hosts=("b.test", "c.test:8443", "*.grid.test", "127.0.0.1"))


@pytest.mark.parametrize(
    "url",
    [
        "https://b.test",
        "https://B.TEST:444/x",
        "https://c.test:8443",
        "https://one.grid.test",
        "http://127.0.0.1:8080",
    ],
)
def test_addresses_that_tokens_may_go_to(url: str) -> None:
    check_address(ALLOWED, url, field="f")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://d.test", "OSCAR_FEDERATION_ALLOWED_HOSTS"),
        ("https://c.test", "OSCAR_FEDERATION_ALLOWED_HOSTS"),
        ("https://grid.test", "OSCAR_FEDERATION_ALLOWED_HOSTS"),
        ("https://evilgrid.test", "OSCAR_FEDERATION_ALLOWED_HOSTS"),
        ("https://b.test.evil.test", "OSCAR_FEDERATION_ALLOWED_HOSTS"),
        ("http://b.test", "https"),
        ("https://user@b.test", "without a user"),
        ("ftp://b.test", "https://"),
        ("https://", "https://"),
        ("b.test", "https://"),
        ("https://b.test:port", ""),
    ],
)
def test_addresses_that_nothing_is_said_to(url: str, words: str) -> None:
    with pytest.raises(InvalidField) as refused:
        check_address(ALLOWED, url, field="clusters.x.endpoint")
    assert refused.value.field == "clusters.x.endpoint"
    assert words in f"{refused.value.fix}"
