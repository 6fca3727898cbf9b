"""Secrets out of a definition and back: nothing lost, nothing left behind."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from oscar.model.secrets import HIDDEN, secrets_of, with_secrets, without_secrets
from oscar.model.service import Service, definition, parse_service

names = st.text("abcXYZ_.-/~09", min_size=1, max_size=6).filter(
    lambda name: not name[0].isdigit() and "/" not in name
)
ids = st.text(min_size=1, max_size=6) | st.just("default")
values = st.just("") | st.integers(0, 99).map(lambda number: f"S3CRET-{number}")


def keyed(*fields: str) -> st.SearchStrategy[dict[str, dict[str, str]]]:
    return st.dictionaries(ids, st.fixed_dictionaries(dict.fromkeys(fields, values)), max_size=2)


services: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "name": st.just("secretive"),
        "image": st.just("busybox"),
        "token": values,
        "environment": st.fixed_dictionaries(
            {"secrets": st.dictionaries(names.filter(lambda name: "~" not in name), values, max_size=3)}
        ),
        "storage_providers": st.fixed_dictionaries(
            {
                "minio": keyed("access_key", "secret_key"),
                "s3": keyed("access_key", "secret_key"),
                "onedata": keyed("token"),
                "webdav": keyed("password"),
                "rucio": keyed("refresh_token"),
            }
        ),
        "clusters": keyed("auth_password"),
        "federation": st.fixed_dictionaries(
            {
                "members": st.lists(
                    st.fixed_dictionaries(
                        {
                            "cluster_id": st.just("c"),
                            "service_name": ids,
                            "headers": st.dictionaries(ids, values),
                        }
                    ),
                    max_size=2,
                )
            }
        ),
    }
)


@given(services)
def test_secrets_come_back(data: dict[str, Any]) -> None:
    service = parse_service(data)
    bare = without_secrets(service)
    assert with_secrets(bare, secrets_of(service)) == service
    assert "S3CRET" not in json.dumps(definition(bare))
    assert all(isinstance(value, str) for value in secrets_of(service).values())


@given(services)
def test_stored_definitions_and_secrets_survive_json(data: dict[str, Any]) -> None:
    service = parse_service(data)
    stored = json.dumps(definition(without_secrets(service)))
    sealed = json.dumps(secrets_of(service))
    assert with_secrets(Service.model_validate(json.loads(stored)), json.loads(sealed)) == service


def example(**fields: Any) -> Service:
    return parse_service({"name": "secretive", "image": "busybox", **fields})


def test_the_own_store_shows_hidden() -> None:
    bare = without_secrets(
        example(
            storage_providers={"minio": {"default": {"access_key": "A", "secret_key": "B", "region": "eu"}}}
        )
    )
    own = bare.storage_providers.minio["default"]
    assert (own.access_key, own.secret_key, own.region) == (HIDDEN, HIDDEN, "eu")


def test_the_token_is_kept_for_the_owner() -> None:
    service = example(token="t", environment={"secrets": {"A": "B"}})
    shown = without_secrets(service, keep_token=True)
    assert (shown.token, shown.environment.secrets) == ("t", {"A": ""})


def test_an_update_keeps_what_it_leaves_blank() -> None:
    before = example(token="t", environment={"secrets": {"KEPT": "1", "CHANGED": "2", "GONE": "3"}})
    update = example(environment={"secrets": {"KEPT": "", "CHANGED": "new", "ADDED": ""}})
    after = with_secrets(update, secrets_of(before))
    assert after.token == "t"
    assert after.environment.secrets == {"KEPT": "1", "CHANGED": "new", "ADDED": ""}


def test_pointers_are_escaped() -> None:
    service = example(clusters={"a/b~c": {"auth_password": "p"}})
    assert secrets_of(service) == {"/clusters/a~1b~0c/auth_password": "p"}
