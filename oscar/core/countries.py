"""From an IP address to a country, by a database file in MaxMind's MMDB format (GeoLite2 Country, DB-IP Lite …).

Called where requests are recorded. Offline: the file is named by `OSCAR_COUNTRY_DATABASE`; without one, and for
private addresses, the country is unknown. Format: https://maxmind.github.io/MaxMind-DB/
"""

from __future__ import annotations

import functools
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from oscar.errors import Misuse

if TYPE_CHECKING:
    import maxminddb

_KEPT = 4096


class Countries:
    """Looks countries up; the last few thousand addresses are remembered."""

    def __init__(self, file: Path | None) -> None:
        """Open the file, if one is given.

        Raises:
            Misuse: it is absent or not in that format.
        """
        self._reader: maxminddb.Reader | None = None
        if file is not None:
            import maxminddb

            try:
                self._reader = maxminddb.open_database(file, maxminddb.MODE_MMAP)
            except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
                raise Misuse(
                    f"Can't read {file} as a country database: {error}",
                    field="OSCAR_COUNTRY_DATABASE",
                    fix="name a file in MMDB format, or unset it",
                ) from error
        self.of = functools.lru_cache(maxsize=_KEPT)(self._look_up)

    def _look_up(self, address: str) -> str:
        """ISO code of the country, empty when unknown."""
        if self._reader is None or not address:
            return ""
        try:
            found = self._reader.get(ipaddress.ip_address(address))
        except ValueError:
            return ""
        if not isinstance(found, dict):
            return ""
        country = found.get("country") or found.get("registered_country")
        if isinstance(country, dict):
            return str(country.get("iso_code", ""))
        # DB-IP and IPinfo write the code itself.
        return str(country or found.get("country_code") or "")
