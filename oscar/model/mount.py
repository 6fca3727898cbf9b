"""The flags of a `mount`: which of rclone's an author of a service may give, and with which values. Pure.

rclone runs beside the user's container with rights of the server, so only flags that change how the mount behaves are
taken, within bounds; all that name files, programs, addresses or credentials are not. Called by `model.service` when a
definition is checked, and by `compute.local.mount_rclone` for the command line.
Source of the flags: https://rclone.org/commands/rclone_mount/ and https://rclone.org/s3/.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from oscar.errors import InvalidField

_ALLOWED = re.compile(r"[A-Za-z0-9\-_.:=,/ ]*")
_UNITS = {"": 1024, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_MIB = 1024**2


def _duration(value: str) -> bool:
    return bool(re.fullmatch(r"(\d{1,9}(\.\d{1,9})?(ns|us|ms|s|m|h|d|w)?){1,6}", value))


def _whole(most: int) -> Callable[[str], bool]:
    return lambda value: value.isascii() and value.isdigit() and len(value) < 10 and int(value) <= most  # noqa: PLR2004


def _size(most: int) -> Callable[[str], bool]:
    def check(value: str) -> bool:
        found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)([bkmgt]?)i?b?", value.lower())
        return value == "off" or bool(found and Decimal(found[1]) * _UNITS[found[2]] <= most)

    return check


def _octal(value: str) -> bool:
    return bool(re.fullmatch(r"0?[0-7]{3}", value))


def _mode(value: str) -> bool:
    return value in {"off", "minimal", "writes", "full"}


def _truth(value: str) -> bool:
    return value in {"true", "false"}


_SWITCHES = frozenset(
    {
        "async-read",
        "fast-list",
        "no-checksum",
        "no-modtime",
        "no-seek",
        "read-only",
        "s3-no-check-bucket",
        "use-server-modtime",
        "vfs-case-insensitive",
        "vfs-fast-fingerprint",
        "vfs-used-is-size",
    }
)
_VALUES: dict[str, Callable[[str], bool]] = {
    "attr-timeout": _duration,
    "buffer-size": _size(64 * _MIB),
    "contimeout": _duration,
    "dir-cache-time": _duration,
    "dir-perms": _octal,
    "file-perms": _octal,
    "gid": _whole(2**31 - 1),
    "low-level-retries": _whole(20),
    "max-read-ahead": _size(16 * _MIB),
    "poll-interval": _duration,
    "s3-chunk-size": _size(64 * _MIB),
    "s3-upload-concurrency": _whole(16),
    "s3-upload-cutoff": _size(5 * 1024 * _MIB),
    "timeout": _duration,
    "tpslimit": _whole(10_000),
    "tpslimit-burst": _whole(10_000),
    "transfers": _whole(32),
    "uid": _whole(2**31 - 1),
    "umask": _octal,
    "vfs-cache-max-age": _duration,
    "vfs-cache-max-size": _size(1024 * 1024 * _MIB),
    "vfs-cache-mode": _mode,
    "vfs-cache-poll-interval": _duration,
    "vfs-disk-space-total-size": _size(2**60),
    "vfs-read-ahead": _size(1024 * _MIB),
    "vfs-read-chunk-size": _size(1024 * _MIB),
    "vfs-read-chunk-size-limit": _size(2**60),
    "vfs-read-wait": _duration,
    "vfs-write-back": _duration,
    "vfs-write-wait": _duration,
}
FLAGS = tuple(sorted({*_SWITCHES, *_VALUES}))
"""All that are taken, without their dashes."""


def flags(options: str, *, field: str = "mount.options") -> tuple[str, ...]:
    """The options as words for rclone, each `--name` or `--name=value`: nothing else can come of them.

    Raises:
        InvalidField: a character, flag or value that is not taken, naming it.
    """
    if not _ALLOWED.fullmatch(options):
        raise InvalidField(
            "the mount options contain a character that is not allowed",
            field=field,
            fix="Use letters, digits, spaces and - _ . : = , / only.",
        )
    words: list[str] = []
    waiting = options.split()
    while waiting:
        word = waiting.pop(0)
        name, given, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in FLAGS:
            raise InvalidField(
                f'the mount option "{word}" is not allowed',
                field=field,
                fix=f"Use one of: {', '.join('--' + flag for flag in FLAGS)}.",
            )
        check: Callable[[str], bool] = _truth
        if name in _SWITCHES:
            value = value if given else "true"
        else:
            # As rclone reads it: a value may stand in the next word.
            value, check = value if given else waiting.pop(0) if waiting else "", _VALUES[name]
        if not check(value):
            raise InvalidField(
                f'"{value}" is not a value for the mount option --{name}',
                field=field,
                fix="Correct it, or leave it out.",
            )
        words.append(f"--{name}={value}")
    return tuple(words)


def is_read_only(options: str) -> bool:
    """Whether the options ask for a mount that can't be written to."""
    return [word for word in flags(options) if word.startswith("--read-only=")][-1:] == ["--read-only=true"]
