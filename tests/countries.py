"""Country databases for tests, in MaxMind's format: made here, none is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet


def database(file: Path, networks: dict[str, Any]) -> Path:
    """Write a database of networks and what is said of each."""
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="Test-Country")
    for network, record in networks.items():
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(file))
    return file


def geolite(code: str) -> dict[str, Any]:
    """A record as GeoLite2 Country has it."""
    return {"country": {"iso_code": code, "names": {"en": code}}}
