"""Records of requests: who called which service when, from where, and how it went.

Made by `core.requests` (synchronous and exposed calls) and `core.jobs`, `core.events` (jobs); kept by
`state.requests`. The figures of who used what are sums over them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RequestKind(StrEnum):
    """How a service was called."""

    SYNC = "sync"
    ASYNC = "async"
    """A job: `POST /job`, or an object in an input bucket."""
    EXPOSED = "exposed"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from."""

    entrance: str
    """`basic`, `token`, `oidc`, `s3` (an uploaded object), or empty: nobody had to log in."""
    address: str = ""
    """IP address of the client; empty when unknown."""
    country: str = ""
    """ISO 3166-1 code of two letters; empty when unknown."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request. `time` is Unix milliseconds, `duration` microseconds until the answer was complete."""

    time: int
    kind: RequestKind
    service_id: str
    service: str
    owner: str
    """Owner of the service."""
    user: str
    """Who called; empty when nobody had to log in."""
    status: int
    duration: int
    origin: Origin
