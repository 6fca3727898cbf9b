"""Which addresses are out in the world, and what of a service's providers is asked about them."""

from __future__ import annotations

import asyncio

import pytest

from oscar.core.providers import named
from oscar.model.service import parse_service
from oscar.objects.addresses import is_public, resolve


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "2a00:1450:4003:80e::2004"])
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),  # noqa: S104 - nobody listens there
        *("224.0.0.1", "255.255.255.255", "::1", "fe80::1%eth0", "fd00::1", "ff02::1", "::"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::"),
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


def test_names_are_resolved() -> None:
    assert "127.0.0.1" in asyncio.run(resolve("localhost", 80))
    assert asyncio.run(resolve("no-such-host.invalid", 80)) == []
    assert asyncio.run(resolve("x" * 300, 80)) == []


def test_every_address_of_every_provider_is_named() -> None:
    service = parse_service(
        {
            "name": "s",
            "image": "i",
            "script": "true",
            "storage_providers": {
                "minio": {"far": {"endpoint": "https://m.example", "access_key": "a", "secret_key": "b"}},
                "webdav": {"d": {"hostname": "d.example:2880", "login": "l", "password": "p"}},
                "onedata": {"o": {"oneprovider_host": "o.example", "token": "t", "space": "s"}},
                "rucio": {
                    "r": {
                        "host": "https://r.example",
                        "account": "a",
                        "refresh_token": "t",
                        "token_endpoint": "https://iam.example/token",
                    }
                },
            },
        }
    )
    assert dict(named(service)) == {
        "storage_providers.minio.far.endpoint": "https://m.example",
        "storage_providers.webdav.d.hostname": "d.example:2880",
        "storage_providers.onedata.o.oneprovider_host": "o.example",
        "storage_providers.rucio.r.host": "https://r.example",
        "storage_providers.rucio.r.token_endpoint": "https://iam.example/token",
    }
