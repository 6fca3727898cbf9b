"""From an address to a country, by files as their makers write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from oscar.core.countries import Countries
from oscar.errors import Misuse
from tests import countries


def test_addresses_of_both_kinds_are_found(tmp_path: Path) -> None:
    file = countries.database(
        tmp_path / "c.mmdb",
        {
            "192.0.2.0/24": countries.geolite("ES"),
            "2001:db8::/32": countries.geolite("DE"),
            "198.51.100.0/24": {"country_code": "FR"},
            "203.0.113.0/24": {"country": "IT"},
            "100.64.0.0/10": {"registered_country": {"iso_code": "PT"}},
        },
    )
    found = Countries(file)
    assert found.of("192.0.2.7") == "ES"
    assert found.of("2001:db8::1") == "DE"
    assert found.of("198.51.100.1") == "FR"
    assert found.of("203.0.113.1") == "IT"
    assert found.of("100.64.0.1") == "PT"


@pytest.mark.parametrize("address", ["10.0.0.1", "::1", "", "not an address", "192.0.2.7.9"])
def test_the_rest_is_unknown(tmp_path: Path, address: str) -> None:
    file = countries.database(tmp_path / "c.mmdb", {"192.0.2.0/24": countries.geolite("ES")})
    assert Countries(file).of(address) == ""


def test_without_a_file_all_are_unknown() -> None:
    assert Countries(None).of("192.0.2.7") == ""


@pytest.mark.parametrize("content", [None, b"", b"no database"])
def test_a_wrong_file_is_said(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "c.mmdb"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Misuse) as refused:
        Countries(file)
    assert refused.value.field == "OSCAR_COUNTRY_DATABASE"
