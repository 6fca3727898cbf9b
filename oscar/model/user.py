"""Who calls: the one shape in which every way of entering ends.

Made by `core.users.identify`, judged by `auth.rules`. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

ADMIN = "cluster_admin"
"""The owner of what the administrator makes by basic auth, as in OSCAR."""

ADMIN_KEY = "oscar-admin"
"""The administrator's S3 access key where the settings give none."""

ANONYMOUS = "anonymous"
"""The owner of what somebody without keys stored over S3."""


class Entrance(StrEnum):
    """How a caller proved who he is."""

    BASIC = "basic"
    TOKEN = "token"  # noqa: S105 - a name, not a secret
    """A service's own token: may call that service and nothing else."""
    OIDC = "oidc"


@dataclass(frozen=True, slots=True)
class Caller:
    """An identified caller."""

    id: str
    entrance: Entrance
    admin: bool = False
    service_id: str | None = None
    """The one service that a token opens."""
    name: str = ""
    groups: frozenset[str] = frozenset()
    bearer: str = field(default="", repr=False, compare=False)
    """The OIDC token itself, for calls of other clusters in his name; empty for all other entrances."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What an OIDC issuer says about the holder of a token, the token's signature and times being checked."""

    subject: str
    issuer: str
    expires: float
    """Unix seconds after which the token is not taken any more, clock skew included."""
    name: str = ""
    groups: frozenset[str] = frozenset()
