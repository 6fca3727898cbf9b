"""Lines of logs with their places, made of what the API sends and of what chunks hold. Pure.

Called by `collect`, which reads them from pods, and by `logs`, which keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

_LONGEST_LINE = 64 * 1024


class Position(NamedTuple):
    """Where a line is in its log."""

    container: int
    time: str
    number: int


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its place."""

    at: Position
    text: str

    def encoded(self) -> bytes:
        """As a chunk holds it."""
        head = f"{self.at.container} {self.at.time} {self.at.number} "
        return (head + self.text).encode("utf-8", "surrogateescape") + b"\n"


START = Position(-1, "", 0)


def decoded(chunk: bytes) -> list[Line]:
    """The lines of a chunk."""
    found = []
    for row in chunk.split(b"\n"):
        container, _, rest = row.decode("utf-8", "surrogateescape").partition(" ")
        at, _, rest = rest.partition(" ")
        number, _, text = rest.partition(" ")
        if number:
            found.append(Line(Position(int(container), at, int(number)), text))
    return found


def utc(text: str) -> str:
    """A time of the API as RFC 3339 in UTC with nine digits, so that texts compare as times do.

    Raises:
        ValueError: it is none.
    """
    whole, _, rest = text.partition(".")
    if not rest:
        moment = datetime.fromisoformat(whole).astimezone(UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.000000000Z")
    end = next((index for index, letter in enumerate(rest) if not letter.isdigit()), len(rest))
    moment = datetime.fromisoformat(whole + (rest[end:] or "Z")).astimezone(UTC)
    return f"{moment.strftime('%Y-%m-%dT%H:%M:%S')}.{rest[:end]:0<9.9}Z"


class Placer:
    """Gives lines of one container their positions, and drops those that were seen before.

    Args:
        container: its number in the order in which a pod's containers run.
        last: the last position that is kept; `START` for none.
    """

    def __init__(self, container: int, last: Position = START) -> None:
        self._container = container
        self._last = last
        self._time = ""
        self._same = 0

    @property
    def since(self) -> str:
        """From which second on lines are missing; empty for all."""
        return self._last.time[:19] + "Z" if self._last.container == self._container else ""

    def restart(self) -> None:
        """The log is read again, from `since` on: lines of one time are counted anew."""
        self._time = ""
        self._same = 0

    def place(self, at: str, text: str) -> Line | None:
        """The line with its position; None when it is kept already."""
        at = max(at, self._time)  # the node's clock may have been set back
        self._same = self._same + 1 if at == self._time else 0
        self._time = at
        position = Position(self._container, at, self._same)
        if position <= self._last:
            return None
        self._last = position
        return Line(position, text)


class Splitter:
    """Makes lines with times of the pieces that the API sends."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[tuple[str, str]]:
        """The lines that are complete now."""
        *rows, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            # Without its end it would grow in memory; what follows is a line of its own with the same time.
            at, _, _ = self._rest.partition(b" ")
            rows.append(self._rest)
            self._rest = at + b" "
        return [found for row in rows if (found := _timed(row))]

    def end(self) -> list[tuple[str, str]]:
        """What is left without a line's end."""
        rest, self._rest = self._rest, b""
        found = _timed(rest) if rest else None
        return [found] if found else []


def _timed(row: bytes) -> tuple[str, str] | None:
    at, _, text = row.decode("utf-8", "surrogateescape").partition(" ")
    try:
        return utc(at), text
    except ValueError:
        # The kubelet's own words, such as that the log was rotated away.
        return None


def merged(lines: Sequence[Line]) -> list[Line]:
    """The lines in order, each once: positions only grow, what does not is a repetition."""
    found: list[Line] = []
    for line in lines:
        if not found or line.at > found[-1].at:
            found.append(line)
    return found
