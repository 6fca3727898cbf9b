"""Which variables a program can be given at all, whatever starts it.

Called by engines before a sandbox starts and by `workfolder` for each request of a warm worker. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from oscar.errors import InvalidField

LONGEST = 128 * 1024 - 1
"""Bytes of `NAME=value`: MAX_ARG_STRLEN of Linux, without the closing NUL."""
LARGEST = 1536 * 1024
"""Bytes of all variables together; with the arguments they get a quarter of the stack limit (8 MiB)."""

_NAME = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]*")
_SHELLS_OWN = frozenset({"SHELLOPTS", "BASHOPTS", "PS4"})


def check(env: Mapping[str, str]) -> None:
    """Refuse what can't be handed to a program.

    Raises:
        InvalidField: a name that engines would read as a pattern, or a value longer than the kernel takes.
    """
    total = 0
    for name, value in env.items():
        if not _NAME.fullmatch(name) or name in _SHELLS_OWN:
            raise InvalidField(
                f"{name!r} can't be set for a program",
                field="environment.variables",
                fix='Use another name, of letters, digits, "_", "-" and ".".',
            )
        if "\x00" in value:
            raise InvalidField("the value contains a NUL character", field=f"environment.{name}")
        size = len(name) + len(value.encode("utf-8", "surrogateescape")) + 1
        if size > LONGEST:
            raise InvalidField(
                f"the variable {name} has {size} bytes, the kernel takes {LONGEST}",
                field=f"environment.{name}",
                fix="Hand it over as a file.",
            )
        total += size + 9  # a pointer and the NUL
    if total > LARGEST:
        raise InvalidField(
            f"all variables together have {total} bytes, programs take {LARGEST}",
            field="environment",
            fix="Hand large values over as files.",
        )
