"""The platform: all that the core works with, made once by `app.py` and handed to every function of the core."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from oscar.auth.rules import Thing
from oscar.compute.base import (
    Compute,
    Exposes,
    HasNodes,
    HasQuotas,
    HasVolumes,
    Invokes,
    Measures,
    Paces,
    Reconciles,
    Withdraws,
)
from oscar.core.leading import Leader
from oscar.core.members import Members
from oscar.core.rates import Rate
from oscar.core.requests import Recorder
from oscar.core.tokens import Tokens
from oscar.model.job import Job
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.objects.base import BucketAdmin, ObjectStore, Upkeep
from oscar.settings import Settings
from oscar.sources.base import RequestSource, UsageSource
from oscar.state.config import Configuration
from oscar.state.copies import Copies
from oscar.state.delegations import Delegations
from oscar.state.events import Events
from oscar.state.exposures import Exposures
from oscar.state.jobs import Jobs
from oscar.state.metrics import RecordedRequests
from oscar.state.payloads import Payloads
from oscar.state.presence import LOST
from oscar.state.quotas import Quotas
from oscar.state.refresh_tokens import RefreshTokens
from oscar.state.servers import Servers
from oscar.state.services import ServiceRow, Services
from oscar.state.usage_hours import UsedHours
from oscar.state.users import Users
from oscar.state.volumes import Volumes

if TYPE_CHECKING:
    from oscar.auth.oidc import Oidc


class Signals:
    """News inside this process: work for the dispatcher, jobs that have ended."""

    def __init__(self) -> None:
        """Start with work to look for."""
        self.work = asyncio.Event()
        self.work.set()
        self.exposed = asyncio.Event()
        """An exposed service has come, changed or gone."""
        self.federation = asyncio.Event()
        """A member of a federation is to be told something."""
        self.services = asyncio.Event()
        """Services have changed, perhaps by another server."""
        self._ended: dict[str, set[asyncio.Event]] = {}

    def watch(self, job_id: str) -> asyncio.Event:
        """An event that is set when the job ends; give it back by `unwatch`."""
        event = asyncio.Event()
        self._ended.setdefault(job_id, set()).add(event)
        return event

    def unwatch(self, job_id: str, event: asyncio.Event) -> None:
        """Forget the event."""
        waiting = self._ended.get(job_id, set())
        waiting.discard(event)
        if not waiting:
            self._ended.pop(job_id, None)

    def heard(self, news: str) -> None:
        """Take news of another server, in the words of `state.presence`."""
        if news.startswith("e"):
            self.ended(news[1:])
        if news in {"w", LOST}:
            self.work.set()
        if news in {"s", LOST}:
            self.services.set()

    def ended(self, job_id: str) -> None:
        """Tell who waits for the job."""
        for event in self._ended.get(job_id, ()):
            event.set()


@dataclass(frozen=True, slots=True)
class Known:
    """A stored service with its parsed definition, secrets and token filled in."""

    row: ServiceRow
    service: Service

    @property
    def thing(self) -> Thing:
        """The service as the rules see it."""
        return Thing(self.row.owner, self.service.visibility, self.service.allowed_users, self.row.id)


@dataclass(frozen=True, slots=True)
class Figures:
    """Where metrics come from."""

    requests: RequestSource
    usage: UsageSource
    recorded: RecordedRequests
    """Our own records, whatever the source of answers is."""
    used: UsedHours
    """Our own accounting."""
    measures: Sequence[Measures] = ()
    """What tells it of warm workers and replicas."""


@dataclass(frozen=True)
class Platform:
    """Ports and settings; the composition root is `app.py`."""

    settings: Settings
    installation: str
    services: Services
    jobs: Jobs
    users: Users
    payloads: Payloads
    objects: ObjectStore
    buckets: BucketAdmin
    upkeep: Upkeep | None
    """The own store's ability to be kept as the Store says; None: the built-in one needs no keeping."""
    events: Events
    events_tokens: tuple[str, ...] = field(repr=False)
    """Each proves that a report of objects comes from our MinIO."""
    leader: Leader
    servers: Servers
    place: str
    """Where the engine runs: a machine with its data folder, or "" for what every server reaches."""
    compute: Compute
    invokes: Invokes | None
    volumes: Volumes
    holds: HasVolumes | None
    """The engine's ability to keep volumes."""
    exposures: Exposures
    exposes: Exposes | None
    """The engine's ability to keep servers running."""
    quotas: Quotas
    config: Configuration
    store: MinIOProvider
    """The platform's own store as clients reach it; keys blank."""
    url: str
    """Public URL of the API."""
    password: str = field(repr=False)
    recorder: Recorder
    figures: Figures
    copies: Copies
    delegations: Delegations
    refresh_tokens: RefreshTokens
    tokens: Tokens
    """Bearer tokens for members of federations."""
    members: Members
    """Clients of other clusters."""
    rate: Rate
    """Calls of each user."""
    failures: Rate
    """Log-ins that failed, of each address."""
    single: bool
    """No other server can work on this Store: it is a file."""
    paces: Paces | None = None
    """The engine's ability to say how much it would begin now."""
    withdraws: Withdraws | None = None
    """Its ability to take back what it has no place for."""
    nodes: HasNodes | None = None
    """Its ability to run on several machines."""
    keeps_quotas: HasQuotas | None = None
    """Its ability to keep to the quotas of owners."""
    reconciles: Reconciles | None = None
    """Its ability to put right what was changed behind its back."""
    oidc: Oidc | None = None
    """None: OIDC tokens are not taken."""
    provisioned: dict[str, str] = field(default_factory=dict)
    """OIDC users that this process knows to have a row and S3 keys, each with the issuer that speaks for him."""
    signals: Signals = field(default_factory=Signals)
    """Made inside the event loop."""
    known: dict[str, Known] = field(default_factory=dict)
    """Parsed services by id, each as long as its generation is the stored one."""
    started: int = field(default_factory=lambda: int(time.time() * 1000))
    """When it was made, Unix milliseconds."""
    things: dict[str, tuple[int, Thing]] = field(default_factory=dict)
    """Services by id as the rules see them, each with its generation; for lists."""

    def is_place_of(self, job: Job) -> bool:
        """Whether what there is of the job's latest attempt is not on the machine of another of our servers."""
        return job.place in {"", self.place}
