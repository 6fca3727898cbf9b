"""The port to an engine that runs functions: `Compute`, and the optional abilities beside it.

Called by `core.dispatcher`, `core.jobs`, `core.runs` and `core.deployments`; implemented by `compute.local` (containers
or processes of this machine), `compute.kubernetes`, and `compute.fake` for tests of the core. One contract suite
(`tests/contract/test_compute.py`) runs against each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from oscar.model.node import Node
from oscar.model.quota import Resources
from oscar.model.service import Service
from oscar.model.trouble import Trouble


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of one job, all that an engine needs to do it.

    `service` has its secrets filled in (environment.secrets, provider keys); the engine keeps them out of argv, of
    files that outlive the run, and of logs. `payload` is the raw body of the event, or a file that holds it.
    """

    name: str
    job_id: str
    attempt: int
    service: Service
    payload: bytes | Path
    hops: int = 0
    trace: str = ""
    """Its span (`model.trace.Place.text`), for what its results start; "" when no traces are told."""
    user: str = ""
    timeout: float | None = None
    """Seconds from the script's start after which it is killed; None for no limit."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Reserved variables that the core knows: OSCAR_SERVICE_TOKEN and the like."""
    workers: int | None = None
    """Of a synchronous call: warm workers that the service may have in all, by its owner's quota; None for any."""


class Phase(StrEnum):
    """How far a run has come."""

    SUBMITTED = "submitted"
    """Accepted: waiting for a place, pulling the image or staging in; the script certainly has not started."""
    RUNNING = "running"
    """The script has started."""
    SETTLING = "settling"
    """The script has ended; its outputs are being staged out."""
    DONE = "done"


@dataclass(frozen=True, slots=True)
class RunState:
    """What an engine knows of a run. Times are Unix milliseconds; `exit_code` only if the script ended by itself."""

    name: str
    phase: Phase
    trouble: Trouble | None = None
    """Why it did not succeed; only with phase DONE, None there means success."""
    message: str | None = None
    """For the user: the engine's or the provider's own words."""
    exit_code: int | None = None
    started: int | None = None
    finished: int | None = None
    cpu: int | None = None
    """Microseconds of CPU that the script used; with phase DONE, None when the engine does not know."""
    gpu: int = 0
    """GPUs that it had for itself while it ran."""
    ended: int | None = None
    """When the script ended; staging comes after that."""
    held: bool = False
    """A quota of the engine's own holds it back; only with phase SUBMITTED."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a run's log; `time` is RFC 3339 with nanoseconds in UTC, `text` has no newline."""

    time: str
    text: str

    @classmethod
    def read(cls, shown: str) -> LogLine:
        """A line as the API shows it with `timestamps`."""
        time, _, text = shown.partition(" ")
        return cls(time, text)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine has and what is free: millicores, bytes, devices."""

    cpu: int
    cpu_free: int
    memory: int
    memory_free: int
    gpu: int = 0


class Compute(Protocol):
    """An engine. Every verb is idempotent; errors are of `oscar.errors`."""

    async def start(self) -> None:
        """Find out what the engine can do and take hold of what it still runs.

        Raises:
            EngineMissing: naming what is missing and how to get it.
        """

    async def stop(self) -> None:
        """Let go of the engine; runs go on and are found again by the next `start`."""

    async def apply(self, service: Service) -> None:
        """Make what the service needs before its first call exist as defined (warm workers, prefetched image)."""

    async def remove(self, owner: str, service_name: str) -> None:
        """Remove all that `apply` made; silent if absent."""

    async def submit(self, run: Run, *, adopt: bool = False) -> None:
        """Have the run done: the same name twice is one run, and a run found half-way goes on.

        Returns once the run is durably known under its name (so that a crash of ours can't lose it); its progress
        comes by `observe`. The script of one name is started at most once, ever.

        Args:
            run: what to do.
            adopt: the caller knows that it was submitted before: raise instead of starting it anew.

        Raises:
            RunNotFound: with `adopt`, and the engine certainly knows no such run.
            EngineMissing, EngineError: it was not submitted.
        """

    async def cancel(self, name: str) -> None:
        """Stop the run; it settles as DONE with `Trouble.CANCELLED`. Silent if absent or done."""

    def observe(self) -> AsyncIterator[RunState]:
        """The state of every known run first, then each change; never ends by itself, one observer at a time."""

    async def forget(self, name: str) -> None:
        """Remove what the run left in the engine except its log; called after its end is recorded. Silent if absent."""

    def logs(self, name: str, *, follow: bool = False, tail: int | None = None) -> AsyncIterator[LogLine]:
        """The run's log, also while it runs and after `forget`; whole once its end was told.

        Args:
            name: the run.
            follow: wait for more lines until the run has ended.
            tail: only the last so many lines that exist now.

        Raises:
            RunNotFound: there is no log of that name (never started, or dropped).
        """

    async def drop_logs(self, name: str) -> None:
        """Remove the run's log. Silent if absent."""

    async def capacity(self) -> Capacity:
        """What there is and what is free now."""

    @property
    def gpus_for_runs(self) -> int | None:
        """So many runs with `enable_gpu` may go at once; None: the engine lets them wait itself, or has no GPU."""

    def describe(self) -> str:
        """The engine in a few words for people: `podman 4.3.1 (runc, cgroup v1)`, `processes in bubblewrap`."""

    def check(self, service: Service) -> list[str]:
        """What of the service this engine can't honour, as warnings for its owner.

        Raises:
            Unsupported: it can't run the service at all.
        """


@dataclass(frozen=True, slots=True)
class Metered:
    """What something that goes on working has used since it began: a warm worker, a replica."""

    name: str
    """One for each that ever was."""
    owner: str
    service: str
    cpu: int
    """Microseconds."""
    gpus: int = 0
    """Devices that it has for itself."""


class Measures(Protocol):
    """The ability to tell what warm workers and replicas use."""

    async def metered(self) -> list[Metered]:
        """All that go on working now; one that can't be measured is left out."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a synchronous call gives: the body as upstream sends it (base64 of a file, of a zip, or the log)."""

    body: bytes
    exit_code: int
    log: bytes = b""


class Invokes(Protocol):
    """The ability to answer synchronous calls by warm workers."""

    async def invoke(self, run: Run) -> Answer:
        """Run the service's script once on a free worker and give its answer.

        Cancelling the awaiting task (client gone, timeout) stops the script.

        Raises:
            TooManyRequests: the service's waiting line is full.
            Unavailable: no worker could be had in time.
            InvocationTimeout: the script ran longer than `run.timeout`.
            EngineError, ImageError: a worker could not be started.
        """

    async def prepare(self, service: Service) -> None:
        """Bring the service's workers to what its `synchronous` block says (min_scale)."""


@dataclass(frozen=True, slots=True)
class Staying:
    """Sandboxes of a service that stay between requests: its warm workers, or its replicas."""

    owner: str
    service: str
    count: int
    each: Resources
    """The limits of one."""


@runtime_checkable
class Occupies(Protocol):
    """The ability to tell what stays. An engine without it has its own ways to hold quotas."""

    def occupied(self) -> Sequence[Staying]:
        """All that is starting, running or ending now."""


@runtime_checkable
class Follows(Protocol):
    """The ability of an engine that all servers reach to go on where another of them has applied or removed a service.

    What they share is done by that server; this one's own follows: its warm workers, and what it knows.
    """

    async def follow(self, service: Service) -> None:
        """Another server may have applied this definition."""

    async def leave(self, owner: str, service_name: str) -> None:
        """Another server may have removed the service. Silent if it is not known here."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """What an exposed service should be from now on."""

    service: Service
    """With its secrets filled in."""
    stopped: bool = False
    """No replicas; the definition stays."""
    restarts: int = 0
    """Another number than before has all replicas replaced."""


class Replica:
    """A replica that takes requests, at addresses that this server reaches.

    The proxy says by `enter` and `leave` how many requests it has there; the engine drains and scales by that.
    """

    __slots__ = ("host", "idle", "in_flight", "name", "ports", "turn")

    def __init__(self, name: str, host: str, ports: Mapping[int, int]) -> None:
        """Make it.

        Args:
            name: of the replica, for logs.
            host: where it listens.
            ports: by the service's own port, the one at that host.
        """
        self.name = name
        self.host = host
        self.ports = ports
        self.in_flight = 0
        self.turn = 0.0
        """When it was last chosen, so that those with equal load take turns."""
        self.idle = asyncio.Event()
        self.idle.set()

    def enter(self) -> None:
        """A request (or connection) goes there."""
        self.in_flight += 1
        self.idle.clear()

    def leave(self) -> None:
        """It has ended."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self.idle.set()


class DeploymentState(StrEnum):
    """How the long-running part of a service does."""

    PENDING = "pending"
    """Its first replicas are on their way."""
    READY = "ready"
    """As many replicas as wanted take requests."""
    DEGRADED = "degraded"
    """Some do, fewer than wanted."""
    FAILED = "failed"
    """None does, and the last that was tried failed; it is tried again."""
    UNAVAILABLE = "unavailable"
    """There is nothing to tell: no long-running part, or the engine does not know it."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Deployment:
    """The state with its reason, for people."""

    state: DeploymentState
    reason: str
    changed: int
    """Unix milliseconds of the last change of `state`; 0 when unknown."""
    active: int = 0
    """Replicas that take requests."""
    affected: int = 0
    """Replicas that are wanted and don't."""
    kind: str = ""
    """What it is in the engine: `Deployment`, `podman`, `process`."""


class Exposes(Protocol):
    """The ability to keep servers running. Services are named by owner and name; verbs are idempotent."""

    async def expose(self, exposure: Exposure) -> None:
        """Have it so: returns when the wish is taken, its progress shows in `deployment`.

        Replicas of another definition are replaced: new ones take requests before old ones are drained and removed.
        """

    async def unexpose(self, owner: str, service_name: str) -> None:
        """Remove all replicas and logs. Silent if there are none."""

    async def keep(self, known: Collection[tuple[str, str]]) -> None:
        """Remove what belongs to no service of this list (owner and name); called once all are exposed."""

    def replicas(self, owner: str, service_name: str) -> Sequence[Replica]:
        """The replicas that take requests now; answers at once."""

    async def wait_ready(self, owner: str, service_name: str) -> bool:
        """Wait until a replica takes requests, starting one where none is wanted; after a start also for `keep`.

        Returns:
            False as soon as none is on its way: stopped, failing, or not exposed at all.
        """

    async def deployment(self, owner: str, service_name: str) -> Deployment:
        """How the service does; `UNAVAILABLE` when it is not known."""

    def deployment_logs(
        self, owner: str, service_name: str, *, tail: int | None = None
    ) -> AsyncIterator[LogLine]:
        """What its replicas have said, those that ended lately included, in the order of time.

        Args:
            owner: of the service.
            service_name: its name.
            tail: only the last so many lines.

        Raises:
            RunNotFound: there is no log.
        """


@runtime_checkable
class FollowsExposed(Protocol):
    """The same as `Follows`, of servers that are kept running."""

    async def follow_exposed(self, exposure: Exposure) -> None:
        """Another server may have had it so."""

    async def leave_exposed(self, owner: str, service_name: str) -> None:
        """Another server may have removed all replicas. Silent if they are not known here."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How many more runs an engine would begin now."""

    room: int
    """So many more over all."""
    full: frozenset[str] = frozenset()
    """Owners of whose runs it holds back enough already."""


class Paces(Protocol):
    """The ability to say how much it would begin now: the rest waits in the queue, where it can be changed."""

    def pace(self) -> Pace:
        """How much; answers at once."""


class Withdraws(Protocol):
    """The ability to take back what it was given and has no place for, so that it can run elsewhere."""

    async def withdraw(self, name: str) -> bool:
        """Have a run never begin.

        Returns:
            True only if its script certainly has not begun and never will; the run ends then as `Trouble.OUR`, and
            is to be forgotten. False: it has a place already, has begun, or is not known.

        Raises:
            OscarError: whether it will begin is not known.
        """


class HasNodes(Protocol):
    """The ability to run on several machines."""

    async def nodes(self) -> Sequence[Node]:
        """All machines of the engine, with what they have and what is taken of it."""

    def version(self) -> str:
        """Of the cluster."""


class HasQuotas(Protocol):
    """The ability to keep what an owner's things take together within his quota."""

    async def quota_changed(self, owner: str) -> None:
        """Another quota holds for the owner: the engine asks for it again and keeps to it."""


class Reconciles(Protocol):
    """The ability to have its things deleted or changed behind its back, and to put them right."""

    async def reconcile(self, known: Collection[tuple[str, str]]) -> None:
        """Put back what is missing of the services that were applied, and remove what belongs to none of this list.

        Only what this installation made is removed.

        Args:
            known: owner and name of each service that exists.
        """


@dataclass(frozen=True, slots=True)
class VolumeUsage:
    """What lies in a volume, in bytes."""

    used: int
    size: int
    enforced: bool
    """Whether the file system keeps it below its size; else it is measured, and read-only once it is over."""
    known: bool = True
    """Whether anybody can tell what is used."""


class HasVolumes(Protocol):
    """The ability to keep folders that outlive containers. Volumes are named by `model.volume.key`.

    A service whose definition has a `volume` gets the one of `model.volume.key_of` into all its containers.
    """

    async def create_volume(self, key: str, size: int, *, owner: str) -> None:
        """Have an empty volume of so many bytes, whole or not at all; one that is there stays as it is.

        Args:
            key: of the volume.
            size: in bytes.
            owner: whose it is, whose services alone can have it.

        Raises:
            StorageFull: the disk has no room for it.
            EngineError: it can't be made.
        """

    async def delete_volume(self, key: str) -> None:
        """Remove it with all that it holds, also when programs still have it open. Silent if absent."""

    async def volume_usage(self, key: str) -> VolumeUsage:
        """What lies in it.

        Raises:
            EngineError: there is none, or it can't be looked at.
        """
