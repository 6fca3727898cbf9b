"""Who writes an object: the job, and what of it travels in the object's metadata.

Called by `objects` and `supervisor`. Apart from `model.object`, because staging containers (`supervisor.pod`) load this
and not that. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

HOPS_METADATA = "oscar-hops"
"""User metadata of an object that a job wrote: how many functions in a row led to it."""

PRODUCER_METADATA = "oscar-job"
"""User metadata of such an object: the job that wrote it."""


class Producer(NamedTuple):
    """The job that writes an object: makes a repeated stage-out after a crash write (and trigger) once."""

    job_id: str
    hops: int = 0
    """How many functions in a row led to this object; over 16 a job is refused as an event loop."""
    trace: str = ""
    """The job's span (`model.trace.Place.text`); "" when no traces are told."""

    @classmethod
    def of(cls, job_id: str, hops: int, trace: str) -> Producer:
        """The producer of a job's results: to the functions that led to the job, its own is added."""
        return cls(job_id, hops + 1, trace)

    def metadata(self) -> dict[str, str]:
        """What is written with the object in any S3 store."""
        return {HOPS_METADATA: str(self.hops), PRODUCER_METADATA: self.job_id}
