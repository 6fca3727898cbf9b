"""What of a shown definition another server gets."""

from __future__ import annotations

from oscar.model.carried import carried
from oscar.model.service import parse_service

SHOWN = {
    "name": "words",
    "cluster_id": "old",
    "image": "busybox",
    "script": "#!/bin/sh\necho",
    "memory": "256Mi",
    "token": "0" * 64,
    "owner": "cluster_admin",
    "namespace": "oscar-svc",
    "allowed_users": None,
    "input": [{"storage_provider": "minio.default", "path": "words/in"}],
    "output": [{"storage_provider": "s3.far", "path": "far/out"}],
    "environment": {"Variables": {"LEVEL": "3"}, "secrets": {"API_KEY": "", "KEPT": "x"}},
    "storage_providers": {
        "minio": {
            "default": {"endpoint": "https://old", "access_key": "hidden", "secret_key": "hidden"},
            "other": {"endpoint": "https://other", "access_key": "a", "secret_key": "hidden"},
        },
        "s3": {"far": {"region": "eu", "access_key": "a", "secret_key": ""}},
        "onedata": None,
    },
    "clusters": {"third": {"endpoint": "https://third", "auth_user": "u", "auth_password": ""}},
    "mount": {"storage_provider": "", "path": ""},
    "deployment": {"state": "ready"},
}


def test_fields_of_the_server_and_its_own_store_stay_behind() -> None:
    definition = carried(SHOWN).definition
    assert (
        not {"token", "owner", "namespace", "cluster_id", "deployment", "allowed_users"} & definition.keys()
    )
    assert set(definition["storage_providers"]) == {"minio", "s3"}
    assert set(definition["storage_providers"]["minio"]) == {"other"}


def test_what_is_blank_is_named() -> None:
    assert carried(SHOWN).blanks == (
        "environment.secrets.API_KEY",
        "storage_providers.minio.other.secret_key",
        "storage_providers.s3.far.secret_key",
        "clusters.third.auth_password",
    )


def test_what_is_carried_is_a_service() -> None:
    service = parse_service(carried(SHOWN).definition)
    assert (service.name, service.environment.variables) == ("words", {"LEVEL": "3"})
    assert service.storage_inputs[0].bucket == "words"
