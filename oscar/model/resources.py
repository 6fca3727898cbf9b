"""Kubernetes quantities as numbers: `500m` CPU, `256Mi` memory. Exact, no floats.

Format: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/. Called by
`model.fields` (validation), `model.service` and everything that sets limits or adds up quotas. Pure.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Context, Decimal

from oscar.errors import InvalidField

_FORM = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?\d{1,3}|[numkMGTPE]?)", re.ASCII)
_SUFFIXES = {
    "": Decimal(1),
    **{
        suffix: Decimal(10) ** power
        for suffix, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)
    },
    **{f"{letter}i": Decimal(1024) ** (power + 1) for power, letter in enumerate("KMGTPE")},
}
_EXACT = Context(prec=200)
_LONGEST = 64
LARGEST = 2**63 - 1
"""Quantities above are refused, as Kubernetes caps them."""


def parse_cpu(text: str, *, field: str = "cpu") -> int:
    """CPU in millicores, rounded up: `0.2` is 200, `500m` is 500, `2` is 2000.

    Raises:
        InvalidField: naming the field and the fix.
    """
    return _parse(text, field, Decimal(1000), 'Write cores such as "0.5" or millicores such as "500m".')


def parse_memory(text: str, *, field: str = "memory") -> int:
    """Bytes, rounded up: `256Mi` is 268435456, `1G` is 1000000000.

    Raises:
        InvalidField: naming the field and the fix.
    """
    return _parse(text, field, Decimal(1), 'Write bytes with a unit such as "256Mi", "1Gi" or "500M".')


def _parse(text: str, field: str, scale: Decimal, fix: str) -> int:
    text = text.strip()
    match = _FORM.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise InvalidField(f'"{text[:_LONGEST]}" is not a quantity', field=field, fix=fix)
    sign, digits, suffix = match.groups()
    factor = _SUFFIXES.get(suffix)
    if factor is None:
        factor = Decimal(10) ** int(suffix[1:])
    value = _EXACT.multiply(_EXACT.multiply(Decimal(digits), factor), scale)
    if sign == "-" and value:
        raise InvalidField(f'"{text}" is negative', field=field, fix=fix)
    if value > LARGEST:
        raise InvalidField(f'"{text}" is too large', field=field, fix=fix)
    return int(value.to_integral_value(rounding=ROUND_CEILING, context=_EXACT))


def format_memory(size: int) -> str:
    """Bytes in the largest binary unit that is exact: 268435456 is `256Mi`."""
    for letter, power in (("E", 6), ("P", 5), ("T", 4), ("G", 3), ("M", 2), ("K", 1)):
        unit = 1024**power
        if size and size % unit == 0:
            return f"{size // unit}{letter}i"
    return str(size)


def format_cpu(millicores: int) -> str:
    """Millicores as cores where that is exact: 2000 is `2`, 500 is `500m`."""
    return str(millicores // 1000) if millicores % 1000 == 0 else f"{millicores}m"
