"""What was found out about a machine or a cluster. Made by `core.doctor` and what it calls, shown by the CLI."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    level: str
    """`ok`, `warning` (works, but not all) or `missing`."""
    words: str
    fix: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok     ", "warning": "warning", "missing": "MISSING"}[self.level]
        return f"{mark}  {self.topic}: {self.words}" + (f"\n         {self.fix}" if self.fix else "")

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON."""
        return asdict(self)
