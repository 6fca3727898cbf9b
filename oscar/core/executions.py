"""The log of requests: a line on the standard output for each call of a service and each upload that started one.

Called by `app.edge` for requests, and after the commit of an object for the jobs that it made (in both processes).
Its lines are those that OSCAR writes, so that existing queries keep working; metrics can be counted from them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from oscar.core.requests import Incoming
from oscar.model.access_log import Access, json_line, text_line
from oscar.model.job import NewJob
from oscar.serverlog import ServerLog

_ACCEPTED = 201


class Executions:
    """Writes the lines."""

    def __init__(self, *, as_json: bool, keep: Path | None = None) -> None:
        """Write in that form, and also to that file, as text, for administrators."""
        self._json = as_json
        self._keep = ServerLog(keep) if keep else None

    def write(self, access: Access) -> None:
        """Write the line of a request."""
        text = text_line(access)
        sys.stdout.write(f"{json_line(access) if self._json else text}\n")
        sys.stdout.flush()
        if self._keep is not None:
            self._keep.write(f"{text}\n")

    def uploads(self, jobs: Sequence[NewJob]) -> None:
        """Write the lines of jobs that an upload has started: what OSCAR logs when it hears of one."""
        for job in jobs:
            if job.origin is not None:
                self.write(
                    Access(
                        started=int(time.time() * 1e6),
                        seconds=0.0,
                        status=_ACCEPTED,
                        address=job.origin.address,
                        method="POST",
                        path=f"/job/{job.service_name}",
                        user=job.user,
                        owner=job.owner,
                        entrance=job.origin.entrance,
                        country=job.origin.country,
                    )
                )


def access_of(
    incoming: Incoming,
    *,
    method: str,
    path: str,
    status: int,
    seconds: float,
    country: str = "",
    request_id: str = "",
) -> Access:
    """A request that was served, as its line tells it."""
    caller, service = incoming.caller, incoming.service
    return Access(
        started=int(incoming.started * 1e6),
        seconds=round(seconds, 6),
        status=status,
        address=incoming.address,
        method=method,
        path=path,
        user=caller.id if caller else "",
        owner=service.owner if service else "",
        entrance=caller.entrance.value if caller else "",
        country=country,
        request_id=request_id,
        repeated=incoming.repeated,
    )
