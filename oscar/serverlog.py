"""The server's own log, kept in bounded files so that administrators can read it by `GET /system/logs`.

Written through `telemetry` and `app.edge`, read by `core.logs`. One file a part, a line of JSON for each entry; when a
file is full it becomes the earlier one, which it replaces. Secrets that may come in addresses and headers are blanked
before anything is written.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

LARGEST = 2 * 1024 * 1024
"""Bytes of a file; a part has two."""
_LONGEST = 16 * 1024
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_SECRETS = re.compile(
    r"(?i)((?:bearer|basic)\s+|(?:[a-z]+_)?token[\"']?\s*[=:]\s*[\"']?|"
    r"x-amz-(?:signature|security-token|credential)=|"
    r"(?:password|secret(?:_key)?|client_secret)[\"']?\s*[=:]\s*[\"']?|[a-z]+://[^\s/:@]*:)"
    r"([^\s&\"'@,;|]+)"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry; `time` in Unix milliseconds."""

    time: int
    text: str


class ServerLog:
    """One part's log. Any thread may write."""

    def __init__(self, file: Path, *, largest: int = LARGEST) -> None:
        """Write to that file; the folder is made when the first entry comes."""
        self._file = file
        self._largest = largest
        self._lock = threading.Lock()
        self._descriptor = -1
        self._size = 0

    def write(self, text: str) -> None:
        """Keep what was said; many lines are one entry, an empty one none."""
        text = without_secrets(_COLORS.sub("", text)).rstrip("\n")[:_LONGEST]
        if not text.strip():
            return
        line = json.dumps([int(time.time() * 1000), text]).encode() + b"\n"
        with self._lock:
            try:
                self._append(line)
            except OSError:
                # The disk is full or gone. The line was said on the server's output as well, and saying here that
                # it could not be kept would come here again.
                self._close()

    def flush(self) -> None:
        """For those who take it for a stream: every entry is written at once."""

    def _append(self, line: bytes) -> None:
        if self._descriptor < 0:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._file, flags, 0o600)
            self._size = os.fstat(self._descriptor).st_size
        os.write(self._descriptor, line)
        self._size += len(line)
        if self._size >= self._largest:
            self._close()
            self._file.replace(earlier(self._file))

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def earlier(file: Path) -> Path:
    """Where a full file goes."""
    return file.with_name(f"{file.name}.1")


def without_secrets(text: str) -> str:
    """The text with what looks like a token, key or password blanked."""
    return _SECRETS.sub(r"\1***", text)


def entries(folder: Path, *, before: bool = False, parts: Collection[str] | None = None) -> list[Entry]:
    """All entries of all parts in the order of time.

    Args:
        folder: where the parts' files are.
        before: only those of the earlier files.
        parts: only those of these parts, by the names of their files.
    """
    found = []
    files = sorted(folder.glob("*.log.1")) + ([] if before else sorted(folder.glob("*.log")))
    if parts is not None:
        files = [file for file in files if file.name.removesuffix(".1") in parts]
    for file in files:
        for line in file.read_bytes().splitlines():
            try:
                moment, text = json.loads(line)
            except ValueError:
                continue  # cut off by a crash
            found.append(Entry(int(moment), str(text)))
    return sorted(found, key=lambda entry: entry.time)
