"""Managed volumes: folders of a limited size that outlive the containers which they are mounted into.

Called by `core.volumes` (rules), `state.volumes` (rows) and engines, which find a service's volume by `key`. Shapes
of the API: `types.ManagedVolume` and `types.VolumeQuotaResponse` of OSCAR 4.1.2. Pure.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum

from oscar.errors import InvalidField
from oscar.model.resources import format_memory
from oscar.model.service import Service

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Phase(StrEnum):
    """How far a volume has come; the words are those of Kubernetes' claims."""

    PENDING = "Pending"
    """Recorded, its place is being made."""
    BOUND = "Bound"
    TERMINATING = "Terminating"
    """Nobody may attach it any more, its place is being removed."""


class Mode(StrEnum):
    """Who asked for a volume."""

    API = "api"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A service that has the volume in its containers, and where."""

    service: str
    mount_path: str


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of one owner; names of different owners do not collide."""

    owner: str
    name: str
    size: int
    """Bytes."""
    shown_size: str
    """The size as its owner wrote it, such as `1Gi`."""
    mode: Mode
    retain: bool
    """Whether it stays when the service that created it goes."""
    phase: Phase
    service: str = ""
    """The service that created it."""
    attachments: tuple[Attachment, ...] = ()

    @property
    def key(self) -> str:
        """What engines call it."""
        return key(self.owner, self.name)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one user may have. Sizes in bytes."""

    disk: int
    """All volumes together."""
    volumes: int
    largest: int
    smallest: int


@dataclass(frozen=True, slots=True)
class Change:
    """New limits of a user; None leaves a limit as it is."""

    disk: int | None = None
    volumes: int | None = None
    largest: int | None = None
    smallest: int | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """What one user has; the size of volumes counts, not what lies in them."""

    disk: int
    volumes: int


def key(owner: str, name: str) -> str:
    """What engines call the volume: readable, a file name, different for different owners."""
    digest = hashlib.sha256(f"{owner}\0{name}".encode()).hexdigest()[:16]
    return f"{name[:40]}-{digest}"


def key_of(service: Service) -> str | None:
    """What engines call the service's volume; None when it has none."""
    return key(service.owner, service.volume.name) if service.volume else None


def check_name(name: str) -> None:
    """Refuse what is no DNS label (RFC 1123).

    Raises:
        InvalidField: naming the fix.
    """
    if not _NAME.fullmatch(name):
        raise InvalidField(
            f'"{name}" is not a name for a volume',
            field="name",
            fix='Use at most 63 lower-case letters, digits and "-", with a letter or digit at both ends.',
        )


def check_size(size: int, limits: Limits, *, field: str) -> None:
    """Refuse a size that a single volume of the user may not have.

    Raises:
        InvalidField: naming both bounds.
    """
    if not limits.smallest <= size <= limits.largest:
        raise InvalidField(
            f"a volume has {format_memory(limits.smallest)} to {format_memory(limits.largest)} here",
            field=field,
            fix="Choose a size between these, or ask the administrator for other limits.",
        )


def check_room(size: int, use: Use, limits: Limits, *, field: str) -> None:
    """Refuse one volume more than the user may have.

    Raises:
        InvalidField: naming the limit that is reached.
    """
    fix = "Delete a volume that is not needed, or ask the administrator for other limits."
    if use.volumes >= limits.volumes:
        raise InvalidField(
            f"you have {use.volumes} volumes and may have {limits.volumes}", field=field, fix=fix
        )
    if use.disk + size > limits.disk:
        raise InvalidField(
            f"your volumes have {format_memory(use.disk)} and may have {format_memory(limits.disk)} together",
            field=field,
            fix=fix,
        )
