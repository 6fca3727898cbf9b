"""What a staging container is told, and what it tells back: between an engine and `python -m oscar.supervisor`.

An engine writes an `Order` and the bodies beside it into a folder that only staging containers see; a container answers
by a `Report` in its termination message, which the cluster keeps with the pod (4096 bytes, as Kubernetes defines it).
Pure, but for reading that folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from oscar.model.job import Trouble
from oscar.model.secrets import without_federation
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider

ORDER = "order"
PAYLOAD = "payload"
SCRIPT = "script"
"""Files of the folder; the last two are absent when they are fetched by URL."""

STARTED_TWICE = "oscar: started twice"
"""What the user's container says when its script was started before."""
TWICE_CODE = 119
"""Its exit code then."""

LONGEST_REPORT = 4096
_LONGEST_MESSAGE = 1500


WITHDRAWN = "withdrawn"
"""What a marker holds when nobody is to do the run."""


class Marker(BaseModel):
    """An object that says which pod does this run: written once, by URLs that allow just that."""

    put: str
    get: str


class Order(BaseModel):
    """One run, for its staging containers."""

    name: str
    job_id: str
    hops: int = 0
    trace: str = ""
    service: Service
    """With the keys of its providers, without its script."""
    own: MinIOProvider
    """The platform's own store with the keys of the run's user."""
    hosts: tuple[str, ...] = ()
    """Which may have private addresses, as stores of users' services; see `objects.reach`."""
    marker: Marker | None = None
    payload_url: str = ""
    """Where the payload is when it is too large to lie beside the order."""
    script_url: str = ""

    def as_file(self) -> bytes:
        """What is written into the folder."""
        return self.model_dump_json().encode()


class Report(BaseModel):
    """How staging ended; without `trouble` well."""

    trouble: Trouble | None = None
    message: str = ""
    lines: list[tuple[str, str]] | None = None
    """Time and text of what it said; None when that is too much, and has to be read from its log."""

    def as_message(self) -> str:
        """As a termination message: the lines are left out when they do not fit."""
        message = self.message[:_LONGEST_MESSAGE]
        for lines in (self.lines, None):
            said = Report(trouble=self.trouble, message=message, lines=lines)
            text = json.dumps(said.model_dump(mode="json"), separators=(",", ":"), ensure_ascii=True)
            if len(text) <= LONGEST_REPORT:
                return text
        return Report(trouble=self.trouble, message=self.message[:100], lines=None).model_dump_json()


def report_of(message: str) -> Report | None:
    """The report in a termination message; None when it holds none (the container was killed)."""
    try:
        return Report.model_validate_json(message)
    except ValueError:
        return None


def read_order(folder: Path) -> Order:
    """The order in a folder."""
    return Order.model_validate_json((folder / ORDER).read_bytes())


def without_users_secrets(service: Service) -> Service:
    """The service as staging needs it: its script, the secrets of its environment and other clusters stay away."""
    environment = service.environment.model_copy(update={"secrets": {}})
    return without_federation(service).model_copy(update={"script": "", "environment": environment})


def size_of(parts: Sequence[bytes]) -> int:
    """Bytes that so many files take in a Secret, which holds them in base64 and at most 1 MiB."""
    return sum((len(part) + 2) // 3 * 4 for part in parts)
