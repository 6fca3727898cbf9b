"""What a staging container is told, and what it tells back: between an engine and `supervisor.pod`.

An engine writes an `Order` and the bodies beside it into a folder that only staging containers see; a container answers
by a `Report` in its termination message, which the cluster keeps with the pod (4096 bytes, as Kubernetes defines it).
Both are plain JSON without models: two containers of each run start with reading this, and have no time to load more.
Pure, but for reading that folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from oscar.model.trouble import Trouble
from oscar.supervisor.moves import Download, Moves, Output

ORDER = "order"
PAYLOAD = "payload"
SCRIPT = "script"
CONFIG = "config"
"""Files of the folder; the bodies, all but the first, are absent when they are fetched by URL."""

STARTED_TWICE = "oscar: started twice"
"""What the user's container says when its script was started before."""
TWICE_CODE = 119
"""Its exit code then."""

LONGEST_REPORT = 4096
_LONGEST_MESSAGE = 1500
_NO_URLS: Mapping[str, str] = {}


WITHDRAWN = "withdrawn"
"""What a marker holds when nobody is to do the run."""


class Marker(NamedTuple):
    """An object that says which pod does this run: written once, by URLs that allow just that."""

    put: str
    get: str


class Keys(NamedTuple):
    """An S3 store, and a key pair of it."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str = ""
    verify: bool = True

    def __repr__(self) -> str:
        return f"Keys({self.access_key} at {self.endpoint})"


class Order(NamedTuple):
    """One run, for its staging containers."""

    job_id: str
    own: Keys
    """The platform's own store with the keys of the run's user."""
    moves: Moves
    """Without the contents of files: those are in the payload."""
    inline: bool = True
    """Whether the payload may hold a file itself."""
    hops: int = 0
    trace: str = ""
    fault: str = ""
    """Why nothing can be moved; what is wrong with the payload."""
    definition: Mapping[str, Any] | None = None
    """The service with the keys of its providers, when something moves from or to another store than the own one."""
    hosts: tuple[str, ...] = ()
    """Which may have private addresses, as stores of users' services; see `objects.reach`."""
    marker: Marker | None = None
    urls: Mapping[str, str] = _NO_URLS
    """Where the bodies are, by name, that are too large to lie beside the order."""

    def __repr__(self) -> str:
        return f"Order({self.job_id})"

    def as_file(self) -> bytes:
        """What is written into the folder."""
        moves = self.moves._asdict() | {
            "downloads": [each._asdict() for each in self.moves.downloads],
            "outputs": [each._asdict() for each in self.moves.outputs],
        }
        told = self._asdict() | {
            "own": self.own._asdict(),
            "moves": moves,
            "marker": self.marker and self.marker._asdict(),
        }
        return json.dumps(told).encode()


class Report(NamedTuple):
    """How staging ended; without `trouble` well."""

    trouble: Trouble | None = None
    message: str = ""
    lines: Sequence[tuple[str, str]] | None = None
    """Time and text of what it said; None when that is too much, and has to be read from its log."""

    def as_message(self) -> str:
        """As a termination message: the lines are left out when they do not fit."""
        for lines in (self.lines, None):
            said = Report(self.trouble, self.message[:_LONGEST_MESSAGE], lines)
            text = json.dumps(said._asdict(), separators=(",", ":"), ensure_ascii=True)
            if len(text) <= LONGEST_REPORT:
                return text
        return json.dumps(Report(self.trouble, self.message[:100])._asdict())


def report_of(message: str) -> Report | None:
    """The report in a termination message; None when it holds none (the container was killed)."""
    try:
        said = json.loads(message)
        trouble, lines = said["trouble"], said["lines"]
        return Report(
            None if trouble is None else Trouble(trouble),
            str(said["message"]),
            None if lines is None else [(str(at), str(text)) for at, text in lines],
        )
    except (ValueError, KeyError, TypeError):
        return None


def read_order(folder: Path) -> Order:
    """The order in a folder."""
    told = json.loads((folder / ORDER).read_bytes())
    moves, marker = told["moves"], told["marker"]
    outputs = (
        Output(**{**each, "prefixes": tuple(each["prefixes"]), "suffixes": tuple(each["suffixes"])})
        for each in moves["outputs"]
    )
    return Order(
        **{
            **{name: told[name] for name in Order._fields if name in told},
            "own": Keys(**told["own"]),
            "moves": Moves(
                downloads=tuple(Download(**each) for each in moves["downloads"]),
                files=(),
                outputs=tuple(outputs),
                work=moves["work"],
                log_level=moves["log_level"],
            ),
            "hosts": tuple(told["hosts"]),
            "marker": None if marker is None else Marker(**marker),
        }
    )


def size_of(parts: Sequence[bytes]) -> int:
    """Bytes that so many files take in a Secret, which holds them in base64 and at most 1 MiB."""
    return sum((len(part) + 2) // 3 * 4 for part in parts)
