"""Why an attempt ended without success.

Called by engines, `supervisor` and `model.job`. Apart from the latter, because staging containers (`supervisor.pod`)
load this and not that. Pure.
"""

from __future__ import annotations

from enum import StrEnum

from oscar.errors import BadRequest, BucketNotFound, ObjectNotFound, OscarError, QuotaExceeded


class Trouble(StrEnum):
    """Why an attempt ended without success."""

    SCRIPT = "script"
    """The script ran and exited with a code other than 0."""
    TIMEOUT = "timeout"
    """The script ran longer than the service's timeout."""
    OUR = "ours"
    """Image pull, staging, engine: the platform's trouble, the script can be tried again."""
    LOST = "lost"
    """The script had started and its outcome is not known (machine rebooted, engine lost it)."""
    REFUSED = "refused"
    """The job can never run (bad input, event loop, service gone): no retry makes sense."""
    QUOTA = "quota_exceeded"
    """Its results are more than a quota allows: no retry makes sense before somebody makes room."""
    CANCELLED = "cancelled"


def trouble_of(error: OscarError) -> Trouble:
    """What an error makes of a run: whether a retry can help.

    A store that says that there is no such object will say so again; one that can't be reached may be, later.
    """
    if isinstance(error, QuotaExceeded):
        return Trouble.QUOTA
    if isinstance(error, BadRequest | ObjectNotFound | BucketNotFound):
        return Trouble.REFUSED
    return Trouble.OUR
