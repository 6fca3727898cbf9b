"""Lines of a run's log: written in the format of the Container Runtime Interface, read back as whole lines.

A line is `<RFC 3339 time with nanoseconds> stdout|stderr F|P <text>`; P marks a piece that the next line of
the same stream goes on with. conmon (podman) writes it, our shim writes it, and Kubernetes nodes keep it.
Format: https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md.
Called by `logs`. Pure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from oscar.compute.base import LogLine

LONGEST_LINE = 1024 * 1024
"""Bytes after which a line without an end is given out in pieces, so that a reader's memory stays flat."""

_STREAMS = frozenset({b"stdout", b"stderr"})


def stamp(nanoseconds: int | None = None) -> str:
    """A Unix time (now when absent) as RFC 3339 in UTC with nanoseconds."""
    seconds, fraction = divmod(time.time_ns() if nanoseconds is None else nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"


def line(text: str, *, at: str | None = None) -> bytes:
    """Text as whole lines of the log; one with line breaks becomes several."""
    at = at or stamp()
    return "".join(f"{at} stdout F {piece}\n" for piece in text.splitlines() or [""]).encode(
        "utf-8", "replace"
    )


def normal(at: str) -> str:
    """A time as engines write it, with a local offset and any precision, in UTC with nanoseconds."""
    body, zone = (at[:-1], "") if at.endswith("Z") else (at[:-6], at[-6:])
    if zone not in {"", "+00:00"}:
        moment = datetime.fromisoformat(body.partition(".")[0] + zone).astimezone(UTC)
        body = f"{moment:%Y-%m-%dT%H:%M:%S}.{body.partition('.')[2]}"
    seconds, _, fraction = body.partition(".")
    return f"{seconds}.{fraction[:9]:0<9}Z"


@dataclass(slots=True)
class Assembler:
    """Makes whole lines of a log's bytes, which may come cut anywhere."""

    _rest: bytes = b""
    _open: dict[bytes, tuple[str, list[bytes], int]] = field(default_factory=dict)
    _time: str = ""

    def feed(self, data: bytes) -> Iterator[LogLine]:
        """The lines that `data` completes."""
        rows = (self._rest + data).split(b"\n")
        self._rest = rows.pop()
        for row in rows:
            yield from self._row(row)
        if len(self._rest) > LONGEST_LINE:
            self._rest = b""

    def end(self) -> Iterator[LogLine]:
        """What is left at the end of the log, a line cut by a crash included."""
        row, self._rest = self._rest, b""
        yield from self._row(row)
        for at, pieces, _ in self._open.values():
            yield _whole(at, pieces)
        self._open.clear()

    def gap(self, size: int) -> Iterator[LogLine]:
        """The log goes on after `size` bytes that were dropped: what was begun ends here, with a mark."""
        self._rest = b""
        yield from self.end()
        yield LogLine(
            self._time or stamp(0), f"[... {size / 1048576:.0f} MiB of this log were dropped here ...]"
        )

    def _row(self, row: bytes) -> Iterator[LogLine]:
        found = _fields(row.lstrip(b"\0"))
        if found is None:
            return  # the remains of a line that a crash or a dropped middle has cut
        written, stream, tag, text = found
        try:
            at = normal(written.decode("ascii"))
        except ValueError:
            return
        self._time = at
        begun, pieces, size = self._open.pop(stream, (at, [], 0))
        pieces.append(text)
        if tag == b"F" or size + len(text) > LONGEST_LINE:
            yield _whole(begun, pieces)
        else:
            self._open[stream] = (begun, pieces, size + len(text))


def _fields(row: bytes) -> tuple[bytes, bytes, bytes, bytes] | None:
    """Time, stream, tag and text of a row; None when it is not one."""
    written, _, rest = row.partition(b" ")
    stream, _, rest = rest.partition(b" ")
    tag, _, text = rest.partition(b" ")
    return (written, stream, tag, text) if stream in _STREAMS and tag in {b"F", b"P"} else None


def _whole(at: str, pieces: list[bytes]) -> LogLine:
    return LogLine(at, b"".join(pieces).decode("utf-8", "replace").removesuffix("\r"))


def unfinished(data: bytes) -> bytes:
    """What must be appended to a log so that other lines can follow: ends cut lines and open pieces."""
    head = b"" if not data or data.endswith(b"\n") else b"\n"
    last: dict[bytes, bytes] = {}
    for row in data.split(b"\n"):
        if found := _fields(row):
            last[found[1]] = found[2]
    at = stamp().encode()
    return head + b"".join(at + b" " + stream + b" F \n" for stream, tag in last.items() if tag == b"P")


def start_of_tail(data: bytes, lines: int) -> int | None:
    """Where the last so many whole lines begin in the end of a log; None when they begin before it.

    `data` may begin within a line: its first row counts only when more rows precede the wanted ones.
    """
    end = len(data)
    count = 0
    last = True
    while end > 0:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        found = _fields(data[begin:end].removesuffix(b"\n"))
        if last or (found and found[2] == b"F"):
            count += 1
            if count > lines:
                return end
        last = False
        end = begin
    return None
