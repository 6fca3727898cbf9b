"""The runs that a server knows: what the watches said last of each, and what was told of it.

Called by `backend` and `collect`. No input or output: a cache from which every question about runs is answered without
asking the API server.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from oscar.compute.base import Phase, RunState
from oscar.compute.kubernetes import observed
from oscar.compute.kubernetes.manifests import USER
from oscar.compute.kubernetes.names import OWNER
from oscar.compute.kubernetes.nodes import cpu, memory

Body = dict[str, Any]

_ORDER = [Phase.SUBMITTED, Phase.RUNNING, Phase.SETTLING, Phase.DONE]
_STUCK_S = 10.0
"""Seconds without a pod after which a quota of the cluster is taken to hold a run back."""


@dataclass(slots=True, eq=False)
class Tracked:
    """A run: its Job and pod as they were last."""

    job: Body
    pod: Body | None = None
    job_gone: bool = False
    pod_gone: bool = False
    told: RunState | None = None
    log: asyncio.Task[None] | None = None
    """Collects and closes the log, when this server was given the run; done when all is kept."""
    timer: asyncio.TimerHandle | None = None
    ending: bool = False
    """It is being ended by us."""
    forgotten: bool = False
    since: float = field(default_factory=time.monotonic)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """The run's name."""
        return observed.run_of(self.job)

    @property
    def place(self) -> tuple[str, str]:
        """Namespace and name of its Job."""
        return self.job["metadata"]["namespace"], self.job["metadata"]["name"]

    @property
    def owner(self) -> str:
        """The label of its owner."""
        return str((self.job["metadata"].get("labels") or {}).get(OWNER, ""))

    @property
    def state(self) -> RunState:
        """How it does."""
        gone = self.job_gone and (self.pod is None or self.pod_gone)
        gone = gone or (self.pod_gone and observed.suspended(self.job))
        return observed.state(self.job, self.pod, gone=gone)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.pod_gone or self.state.phase is Phase.DONE

    @property
    def is_done(self) -> bool:
        """Whether its end was told."""
        return self.told is not None and self.told.phase is Phase.DONE

    def news(self) -> None:
        """Wake who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, true: Callable[[Tracked], bool]) -> None:
        """Wait until something holds, looked at after each change."""
        while True:
            changed = self._changed
            if true(self):
                return
            await changed.wait()

    async def changed_within(self, seconds: float) -> None:
        """Wait for a change, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()


def steps(told: RunState | None, new: RunState) -> list[RunState]:
    """What is told of a change: no phase that was passed is left out, as watches show only what was last.

    A run that nobody has been told of is told as it is.
    """
    if told is None:
        return [new]
    if told == new or _ORDER.index(new.phase) < _ORDER.index(told.phase):
        return []
    found = []
    began = new.started is not None
    if began and told.phase is Phase.SUBMITTED and new.phase in {Phase.SETTLING, Phase.DONE}:
        found.append(RunState(new.name, Phase.RUNNING, started=new.started))
    if (
        new.phase is Phase.DONE
        and new.exit_code is not None
        and told.phase in {Phase.SUBMITTED, Phase.RUNNING}
    ):
        found.append(RunState(new.name, Phase.SETTLING, started=new.started))
    return [*found, new]


class Runs:
    """All of them, by the name of the run and by the place of the Job."""

    def __init__(self) -> None:
        self._by_name: dict[str, Tracked] = {}
        self._by_place: dict[tuple[str, str], Tracked] = {}
        self._early: dict[tuple[str, str], Body] = {}
        """Pods whose Jobs the watch has not shown yet."""

    def __iter__(self) -> Iterator[Tracked]:
        """All that are known now."""
        return iter(list(self._by_name.values()))

    def get(self, name: str) -> Tracked | None:
        """The run of that name."""
        return self._by_name.get(name)

    def at(self, place: tuple[str, str]) -> Tracked | None:
        """The run of that Job."""
        return self._by_place.get(place)

    def put(self, job: Body) -> Tracked:
        """Note a Job as it is."""
        place = (job["metadata"]["namespace"], job["metadata"]["name"])
        known = self._by_place.get(place)
        if known is None or (known.job["metadata"]["uid"] != job["metadata"]["uid"]):
            known = Tracked(job, pod=self._early.pop(place, None))
            self._by_place[place] = known
            self._by_name[known.name] = known
        elif _version(job) >= _version(known.job):
            known.job = job
        return known

    def put_pod(self, pod: Body) -> Tracked | None:
        """Note a pod as it is; the run whose it is, when that is known."""
        place = place_of(pod)
        known = self._by_place.get(place)
        if known is None:
            self._early[place] = pod
            return None
        if known.pod is not None and known.pod["metadata"]["uid"] != pod["metadata"]["uid"]:
            return None  # a second pod never runs the script: the first one's end is what counts
        known.pod = pod
        return known

    def drop_pod(self, pod: Body) -> None:
        """Forget a pod that came before its Job."""
        self._early.pop(place_of(pod), None)

    def remove(self, tracked: Tracked) -> None:
        """Forget a run."""
        if self._by_place.get(tracked.place) is tracked:
            del self._by_place[tracked.place]
        if self._by_name.get(tracked.name) is tracked:
            del self._by_name[tracked.name]

    @property
    def active(self) -> list[Tracked]:
        """Those that have not ended."""
        return [run for run in self if not run.is_done]

    def waiting(self) -> tuple[int, dict[str, int]]:
        """How many runs wait for a place, and of each owner's those that a quota holds back."""
        places = 0
        held: dict[str, int] = {}
        for run in self.active:
            if not observed.waits(run.job, run.pod):
                continue
            stuck = run.pod is None and time.monotonic() - run.since > _STUCK_S
            if run.state.held or stuck:
                held[run.owner] = held.get(run.owner, 0) + 1
            else:
                places += 1
        return places, held


def place_of(pod: Body) -> tuple[str, str]:
    """Namespace and name of the Job of a pod."""
    labels = pod["metadata"].get("labels") or {}
    return pod["metadata"]["namespace"], str(labels.get("batch.kubernetes.io/job-name", ""))


def needs(job: Body) -> tuple[int, int]:
    """CPU (millicores) and memory (bytes) that the script of a run may take."""
    for container in job["spec"]["template"]["spec"]["initContainers"]:
        if container["name"] == USER:
            limits = container.get("resources", {}).get("limits", {})
            return cpu(limits.get("cpu", "0")), memory(limits.get("memory", "0"))
    return 0, 0


def finished(state: RunState, at: int) -> RunState:
    """The state with the time of its end, when the cluster does not tell it."""
    return state if state.finished is not None else replace(state, finished=at)


def _version(item: Body) -> int:
    return int(item["metadata"]["resourceVersion"])
