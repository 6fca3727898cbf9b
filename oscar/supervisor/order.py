"""What a staging container is told, and what it tells back: between an engine and `python -m oscar.supervisor`.

An engine writes an `Order` and the bodies beside it into a folder that only staging containers see; a container answers
by a `Report` in its termination message, which the cluster keeps with the pod (4096 bytes, as Kubernetes defines it).
Both are plain JSON without models: two containers of each run start with reading this, and have no time to load more.
Pure, but for reading that folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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


WITHDRAWN = "withdrawn"
"""What a marker holds when nobody is to do the run."""


@dataclass(frozen=True, slots=True)
class Marker:
    """An object that says which pod does this run: written once, by URLs that allow just that."""

    put: str
    get: str


@dataclass(frozen=True, slots=True)
class Keys:
    """An S3 store, and a key pair of it."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = ""
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Order:
    """One run, for its staging containers."""

    job_id: str
    own: Keys
    """The platform's own store with the keys of the run's user."""
    moves: Moves
    """Without the contents of files: those are in the payload."""
    hops: int = 0
    trace: str = ""
    fault: str = ""
    """Why nothing can be moved; what is wrong with the payload."""
    definition: Mapping[str, Any] | None = field(default=None, repr=False)
    """The service with the keys of its providers, when something moves from or to another store than the own one."""
    hosts: tuple[str, ...] = ()
    """Which may have private addresses, as stores of users' services; see `objects.reach`."""
    marker: Marker | None = None
    urls: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Where the bodies are, by name, that are too large to lie beside the order."""

    def as_file(self) -> bytes:
        """What is written into the folder."""
        return json.dumps(asdict(self)).encode()


@dataclass(slots=True)
class Report:
    """How staging ended; without `trouble` well."""

    trouble: Trouble | None = None
    message: str = ""
    lines: list[tuple[str, str]] | None = None
    """Time and text of what it said; None when that is too much, and has to be read from its log."""

    def as_message(self) -> str:
        """As a termination message: the lines are left out when they do not fit."""
        for lines in (self.lines, None):
            said = Report(self.trouble, self.message[:_LONGEST_MESSAGE], lines)
            text = json.dumps(asdict(said), separators=(",", ":"), ensure_ascii=True)
            if len(text) <= LONGEST_REPORT:
                return text
        return json.dumps(asdict(Report(self.trouble, self.message[:100])))


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
            **told,
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
