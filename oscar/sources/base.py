"""Ports to sources of figures: who called which service, and what it used.

Called by `core.metrics`. Requests come from our own records (`state.metrics`), from Loki (`sources.loki`) or from the
logs of pods; usage from the engines' own accounting (`state.usage_hours`) or Prometheus (`sources.prometheus`). A
source that can't be asked says so in its `SourceStatus` and raises nothing: an answer without one figure is worth more
than none.
"""

from __future__ import annotations

from typing import Protocol

from oscar.model.metrics import Range, Requests, Usage


class RequestSource(Protocol):
    """Knows the requests of services."""

    async def requests(self, range_: Range, service: str | None = None) -> Requests:
        """Those in a range, of all services or of all those of one name; what clients got wrong (4xx) left out."""


class UsageSource(Protocol):
    """Knows what services used."""

    async def usage(self, range_: Range, services: frozenset[tuple[str, str]] | None = None) -> Usage:
        """What services used in a range, added up.

        Args:
            range_: the range.
            services: owner and name of each; None for all, those that were deleted since included.
        """
