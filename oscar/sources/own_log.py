"""Lines of the server's own log, for an installation that keeps no records of requests (`OSCAR_REQUESTS_TTL=0`).

Made by `app.figures`; `sources.lines` counts what it gives. It is what OSCAR 4 reads from the logs of its pods, kept in
files that are bounded: a range that begins before the oldest line is told as a part.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from oscar.errors import Unavailable
from oscar.model.metrics import Range
from oscar.serverlog import Entry, entries
from oscar.sources.lines import LATE_MS, Line

CALLS, EXPOSED = "server-log", "exposed-request-logs"
"""Names of the sources."""
PARTS = ("requests.log", "uploads.log", "results.log")
"""The parts of the log in which requests are: of the API, of the S3 server, and uploads of results."""


class OwnLog:
    """The lines of one question; a `sources.lines.Lines`."""

    def __init__(self, folder: Path, *, name: str, alone: bool) -> None:
        """Read the log in that folder.

        Args:
            folder: of the log.
            name: of the source.
            alone: no other server takes requests of this installation.
        """
        self.name = name
        self.notes: list[str] = [] if alone else ["the log of this server only"]
        self._folder = folder

    async def lines(self, range_: Range, service: str | None) -> AsyncIterator[Line]:  # noqa: ARG002
        """See `Lines.lines`."""
        try:
            found = await asyncio.to_thread(self._read)
        except OSError as error:
            raise Unavailable(f"The server's log can't be read: {error.strerror}") from error
        # Until the first file is full, there is nothing that it has forgotten.
        if any((self._folder / f"{part}.1").exists() for part in PARTS) and (
            not found or found[0].time > range_.start
        ):
            oldest = datetime.fromtimestamp(found[0].time / 1000, UTC) if found else datetime.now(UTC)
            self.notes.append(f"the log goes back to {oldest:%Y-%m-%dT%H:%M:%SZ}")
        for entry in found:
            if range_.start <= entry.time <= range_.end + LATE_MS:
                yield Line(entry.text)

    def _read(self) -> list[Entry]:
        return entries(self._folder, parts=PARTS)
