"""What a part of the benchmark gives: rows, each a figure beside its floor.

Used by all parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
"""`name`, `value`, `unit`, `floor` (None without one) and `ratio`, the value by the floor."""


def row(name: str, value: float, unit: str, floor: float | None = None) -> Row:
    """A row, rounded for people."""
    return {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "floor": None if floor is None else round(floor, 3),
        "ratio": None if not floor else round(value / floor, 2),
    }


def share(values: Sequence[float], part: float) -> float:
    """The value below which that part of them lies: 0.5 is the median, 0.99 the p99."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return share(values, 0.5)
