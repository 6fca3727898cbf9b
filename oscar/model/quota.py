"""What a user may have at once: the limits of his running jobs and of his buckets, and whether something fits.

Called by `state.quotas` (rows), `state.jobs` (what may start), `state.objects` (what may be stored) and `core.quotas`
(rules and the API's form). Pure. CPU is in millicores, sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace

from oscar.model.user import ADMIN

UNLIMITED = -1
"""A limit that was lifted on purpose: the installation's default does not come in its place."""
RESOURCES = ("cpu", "memory", "gpu", "ephemeral_storage")


@dataclass(frozen=True, slots=True)
class Resources:
    """What runs need while they run."""

    cpu: int = 0
    memory: int = 0
    gpu: int = 0
    ephemeral_storage: int = 0

    def plus(self, other: Resources) -> Resources:
        """Both together."""
        return Resources(*(getattr(self, name) + getattr(other, name) for name in RESOURCES))

    def times(self, count: int) -> Resources:
        """So many of them."""
        return Resources(*(getattr(self, name) * count for name in RESOURCES))


NOTHING = Resources()


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a user; None where none is set."""

    cpu: int | None = None
    memory: int | None = None
    gpu: int | None = None
    ephemeral_storage: int | None = None
    buckets: int | None = None
    """How many he may own."""
    storage_per_bucket: int | None = None
    """Bytes that each of them may hold."""

    @property
    def of_jobs(self) -> bool:
        """Whether running jobs are limited at all."""
        return any(getattr(self, name) is not None for name in RESOURCES)

    def exceeded_by(self, need: Resources, used: Resources = NOTHING) -> str | None:
        """The first resource of which there is not enough left; None when all fits."""
        for name in RESOURCES:
            limit = getattr(self, name)
            if (
                limit is not None
                and getattr(need, name)
                and getattr(used, name) + getattr(need, name) > limit
            ):
                return name
        return None

    def or_else(self, defaults: Limits) -> Limits:
        """These limits, where none is set those; what was lifted on purpose stays without."""
        values = {}
        for field in fields(self):
            own = getattr(self, field.name)
            values[field.name] = getattr(defaults, field.name) if own is None else own
        return Limits(**{name: None if value == UNLIMITED else value for name, value in values.items()})


@dataclass(frozen=True, slots=True)
class Defaults:
    """The limits of users for whom nothing else was said."""

    limits: Limits = Limits()
    administrators: Collection[str] = ()
    """Users to whom the defaults don't apply."""

    def effective(self, user: str, own: Limits | None) -> Limits:
        """What holds for a user with limits of his own, or none. Basic auth's administrator has no limits."""
        if user == ADMIN:
            return Limits()
        defaults = Limits() if user in self.administrators else self.limits
        return (own or Limits()).or_else(defaults)


@dataclass(frozen=True, slots=True)
class Room:
    """What is left for an owner whose running jobs are limited."""

    limits: Limits
    used: Resources

    def fits(self, need: Resources) -> bool:
        """Whether a run may start now."""
        return self.limits.exceeded_by(need, self.used) is None

    def less(self, need: Resources) -> Room:
        """What is left when it has started."""
        return replace(self, used=self.used.plus(need))
