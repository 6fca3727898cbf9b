"""Where one is in a trace, as W3C trace context says it: `traceparent` and `tracestate`. Pure.

Used by `oscar.tracing`, which tells spans, and wherever a place travels: with requests to other servers, with the rows
of jobs, with runs, with results in a MinIO. https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

PARENT = "traceparent"
STATE = "tracestate"
"""Headers."""

# A later version may have more behind the flags, set off by a dash.
_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEY = r"[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}"
_MEMBER = re.compile(rf"({_KEY})=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e])")
_MEMBERS = 32
_LONG = 128
_LONGEST = 512
"""Characters of a `tracestate` that are handed on; members of over `_LONG` are left out first, as W3C says."""


@dataclass(frozen=True, slots=True)
class Place:
    """A span in a trace."""

    trace: int
    span: int
    sampled: bool = True
    """Whether it is told; so are its children, wherever they are."""
    state: str = ""
    """What systems of others keep with the trace; handed on as it is."""

    def header(self) -> str:
        """As `traceparent` has it."""
        return f"00-{self.trace:032x}-{self.span:016x}-{int(self.sampled):02x}"

    def headers(self) -> dict[str, str]:
        """As a request to another server says it."""
        return {PARENT: self.header()} | ({STATE: self.state} if self.state else {})

    def text(self) -> str:
        """In one line, for `kept`."""
        return " ".join(self.headers().values())

    @classmethod
    def read(cls, parent: str | None, state: str = "") -> Place | None:
        """From a `traceparent` and a `tracestate`; None when the first is none. Of the second only what is one."""
        found = _PARENT.fullmatch((parent or "").strip())
        if found is None or (found[1] == "00" and found[5]):
            return None
        trace, span = int(found[2], 16), int(found[3], 16)
        if not trace or not span:
            return None
        return cls(trace, span, bool(int(found[4], 16) & 1), _state(state))

    @classmethod
    def kept(cls, text: str | None) -> Place | None:
        """From a `text`."""
        parent, _, state = (text or "").partition(" ")
        return cls.read(parent, state)

    def child(self, *words: object) -> Place:
        """A span below: always the same for the same words, any without."""
        # The same job is one at two clusters, each below a span of its own.
        below = identity(8, self.trace, self.span, *words) if words else identity(8)
        return Place(self.trace, below, self.sampled, self.state)


def place_in(headers: Iterable[tuple[bytes, bytes]]) -> Place | None:
    """What the headers of a request, names in small letters, say that its caller's span is."""
    parents, states = [], []
    for name, value in headers:
        if name == PARENT.encode():
            parents.append(value.decode("latin-1"))
        elif name == STATE.encode():
            states.append(value.decode("latin-1"))
    # More than one parent says nothing; states may stand in several headers.
    return Place.read(parents[0], ",".join(states)) if len(parents) == 1 else None


def _state(text: str) -> str:
    """The members of a `tracestate` in their order; none when one of them is none, or is there twice."""
    given = [stripped for member in text.split(",") if (stripped := member.strip(" \t"))]
    found = [_MEMBER.fullmatch(member) for member in given]
    keys = {match[1] for match in found if match}
    if len(keys) != len(given) or len(given) > _MEMBERS:
        return ""
    if len(",".join(given)) > _LONGEST:
        given = [member for member in given if len(member) <= _LONG]
    while len(",".join(given)) > _LONGEST:
        given.pop()
    return ",".join(given)


def identity(size: int, *words: object) -> int:
    """An id of so many bytes, not 0: always the same for the same words, any without."""
    if not words:
        return int.from_bytes(secrets.token_bytes(size)) or 1
    text = "\n".join(map(str, words)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:size]) or 1
