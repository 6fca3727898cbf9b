"""Rows of delegations: the way of a job to another cluster and back, each verb one short transaction.

Called by `core.delegation` and `core.rescheduler`. A job that is `delegating` or `delegated` is leased as one that runs
here is, by the same columns; `state.jobs` claims, observes and counts only those that an engine here may know.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.model.job import FINAL, Job, JobState
from oscar.state.direct import Direct
from oscar.state.federation_tables import delegations
from oscar.state.job_rows import plain_job, to_job
from oscar.state.store import Store, now_ms
from oscar.state.tables import jobs, services

_PURPOSE = "delegations.member"


@dataclass(frozen=True, slots=True)
class Delegation:
    """Which member a job went to, and why."""

    job_id: str
    policy: str = ""
    cluster_id: str = ""
    member: Mapping[str, Any] = field(default_factory=dict)
    """As users see it."""
    access: Mapping[str, Any] | None = field(default=None, repr=False)
    """The member with what is needed to reach it; None when none is chosen."""
    reason: str = ""
    problem: str | None = None
    sends: int = 0
    """How often the event was sent to this member: after the first it may have the job."""
    remote_state: str = ""
    rounds: int = 0
    """How often all members were tried in vain."""
    heard: int | None = None
    """When the member last answered, Unix milliseconds."""


class Delegations:
    """Statements on delegations and on the jobs that they are about."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store
        self._sealer = store.sealer
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert
        held = jobs.c.lease_owner == sa.bindparam("in_owner")
        self._cancelled = Direct(sa.select(jobs).where(_remote(), held, jobs.c.cancel_requested))

    # From the queue.

    async def begin(self, job: Job, owner: str, *, lease: float, withdrawn: bool = False) -> Job | None:
        """Take a job that was claimed to be run here, and certainly is not; None when it is not ours any more.

        Args:
            job: as it was claimed.
            owner: who takes it.
            lease: seconds until another may take it over.
            withdrawn: the engine was given it, and has given it back.
        """
        states = [JobState.SUBMITTING, *((JobState.SUBMITTED,) if withdrawn else ())]
        mine = (
            (jobs.c.id == job.id)
            & (jobs.c.attempt == job.attempt)
            & (jobs.c.lease_token == job.lease_token)
            & jobs.c.state.in_([state.value for state in states])
        )
        found = await self._store.write(lambda connection: self._take(connection, mine, owner, lease))
        return found[0] if found else None

    async def begin_waiting(
        self, owner: str, *, lease: float, limit: int, threshold: float | None = None
    ) -> list[Job]:
        """Take jobs that wait in the queue; one that starts meanwhile is left alone.

        Args:
            owner: who takes them.
            lease: seconds until another may take them over.
            limit: at most so many.
            threshold: only those that wait for longer than their service says, or than so many seconds where it says
                nothing; None: as soon as they wait.
        """
        query = (
            sa.select(jobs.c.id)
            .join(services, services.c.id == jobs.c.service_id)
            .where(jobs.c.state == sa.literal_column("'queued'"), *_movable(), jobs.c.next_try <= now_ms())
            .order_by(jobs.c.next_try, jobs.c.created, jobs.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True, of=jobs)
        )
        if threshold is not None:
            query = query.where(_waits_longer(threshold))

        def work(connection: sa.Connection) -> list[Job]:
            ids = list(connection.execute(query).scalars())
            if not ids:
                return []
            waiting = jobs.c.id.in_(ids) & (jobs.c.state == JobState.QUEUED.value)
            return self._take(connection, waiting, owner, lease)

        return await self._store.write(work)

    async def stuck(self, owner: str, *, limit: int, threshold: float) -> list[Job]:
        """Jobs of a dispatcher that its engine was given, and whose scripts have not begun for too long.

        Args:
            owner: the dispatcher.
            limit: at most so many.
            threshold: as `begin_waiting`.
        """
        query = (
            sa.select(jobs)
            .join(services, services.c.id == jobs.c.service_id)
            .where(
                jobs.c.state == JobState.SUBMITTED.value,
                jobs.c.lease_owner == owner,
                jobs.c.cancel_requested.is_(False),
                *_movable(),
                _waits_longer(threshold),
            )
            .order_by(jobs.c.next_try, jobs.c.created, jobs.c.id)
            .limit(limit)
        )
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        return [to_job(row) for row in rows]

    def _take(self, connection: sa.Connection, condition: Any, owner: str, lease: float) -> list[Job]:
        rows = connection.execute(
            jobs.update()
            .where(condition)
            .values(
                state=JobState.DELEGATING.value,
                lease_owner=owner,
                lease_token=str(uuid.uuid4()),
                lease_until=now_ms() + int(lease * 1000),
                reason=None,
                message=None,
                exit_code=None,
                started=None,
                updated=now_ms(),
            )
            .returning(*jobs.c)
        ).all()
        taken = [to_job(row) for row in rows]
        for job in taken:
            values = {"job_id": job.id, "service_id": job.service_id, "next_try": 0, "updated": now_ms()}
            connection.execute(
                self._insert(delegations).values(**values).on_conflict_do_nothing(index_elements=["job_id"])
            )
        return taken

    # Leases.

    async def take_over(self, owner: str, *, lease: float, everything: bool) -> list[Job]:
        """Take jobs whose holder is gone: lease expired, or `everything` when we are the only server."""
        condition = _remote() if everything else _remote() & (jobs.c.lease_until < now_ms())

        def work(connection: sa.Connection) -> list[Job]:
            found = list(
                connection.execute(
                    sa.select(jobs.c.id).where(condition).with_for_update(skip_locked=True)
                ).scalars()
            )
            taken = []
            for job_id in found:
                row = connection.execute(
                    jobs.update()
                    .where(jobs.c.id == job_id)
                    .values(
                        lease_owner=owner,
                        lease_token=str(uuid.uuid4()),
                        lease_until=now_ms() + int(lease * 1000),
                    )
                    .returning(*jobs.c)
                ).one()
                taken.append(to_job(row))
            return taken

        return await self._store.write(work)

    async def renew(self, owner: str, *, lease: float) -> None:
        """Keep all leases of that owner."""
        statement = (
            jobs.update()
            .where(_remote(), jobs.c.lease_owner == owner)
            .values(lease_until=now_ms() + int(lease * 1000))
        )
        await self._store.write(lambda connection: connection.execute(statement))

    async def cancellations(self, owner: str) -> list[Job]:
        """Jobs of that holder whose end was asked for."""
        return [plain_job(row) for row in await self._store.look_up(self._cancelled, {"in_owner": owner})]

    # One job. Each is False when the lease is not ours any more.

    async def choose(
        self,
        job: Job,
        *,
        policy: str,
        cluster_id: str,
        member: Mapping[str, Any],
        access: Mapping[str, Any],
        reason: str,
    ) -> bool:
        """Note the member, before it hears anything."""
        sealed = self._sealer.seal(json.dumps(dict(access)).encode(), _PURPOSE)
        values = {
            "policy": policy,
            "cluster_id": cluster_id,
            "member": json.dumps(dict(member)),
            "member_sealed": sealed,
            "reason": reason[:500],
            "sends": 0,
            "remote_state": "",
            "heard": None,
        }
        return await self._both(job, {}, values)

    async def sending(self, job: Job) -> bool:
        """Note that the member is about to get the event: from now on it may have it."""
        return await self._both(job, {}, {"sends": delegations.c.sends + 1})

    async def refused(self, job: Job, problem: str) -> bool:
        """The member certainly does not have the job: it is free for another."""
        return await self._both(job, {}, {"member_sealed": None, "sends": 0, "problem": problem[:500]})

    async def trouble(self, job: Job, problem: str | None) -> bool:
        """Note why it does not go on just now."""
        return await self._both(job, {}, {"problem": problem[:500] if problem else None})

    async def accepted(self, job: Job, remote_state: str) -> bool:
        """The member has the job."""
        values = {"heard": now_ms(), "remote_state": remote_state, "problem": None}
        return await self._both(job, {"state": JobState.DELEGATED.value}, values)

    async def heard(self, job: Job, remote_state: str, *, running: bool) -> bool:
        """The member has told how it goes; `running`: the script has started there, by our clock at the latest now."""
        changes: dict[str, Any] = {}
        if running:
            changes["started"] = sa.func.coalesce(jobs.c.started, now_ms())
        values = {"heard": now_ms(), "remote_state": remote_state, "problem": None}
        return await self._both(job, changes, values)

    async def back(self, job: Job, problem: str, *, pause: float) -> bool:
        """No member takes it: it waits here again, and members are not tried before so many seconds have passed."""
        changes = {
            "state": JobState.QUEUED.value,
            "next_try": now_ms(),
            **dict.fromkeys(("lease_owner", "lease_token", "lease_until"), None),
        }
        values = {
            "member_sealed": None,
            "sends": 0,
            "problem": problem[:500],
            "rounds": delegations.c.rounds + 1,
            "next_try": now_ms() + int(pause * 1000),
        }
        return await self._both(job, changes, values)

    async def settle(
        self,
        job: Job,
        state: JobState,
        *,
        remote_state: str = "",
        reason: str | None = None,
        message: str | None = None,
        exit_code: int | None = None,
        lasted: int | None = None,
    ) -> bool:
        """Record the end.

        Args:
            job: as it was taken.
            state: a final one.
            remote_state: the member's word.
            reason: why it did not succeed.
            message: for people.
            exit_code: of the script.
            lasted: milliseconds from the script's start to its end, by the member's clock: which need not be ours.
        """
        changes: dict[str, Any] = {
            "state": state.value,
            "reason": reason,
            "message": message,
            "exit_code": exit_code,
            "finished": now_ms(),
            "callback_state": sa.case((jobs.c.callback_sealed.is_not(None), "due"), else_=None),
            **dict.fromkeys(("lease_owner", "lease_token", "lease_until"), None),
        }
        if lasted is not None:
            changes["started"] = _latest(jobs.c.created, now_ms() - lasted, sqlite=self._store.is_sqlite)
        assert state in FINAL  # noqa: S101 - said by the caller's own table
        return await self._both(job, changes, {"remote_state": remote_state, "heard": now_ms()})

    async def _both(self, job: Job, changes: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
        mine = (jobs.c.id == job.id) & (jobs.c.lease_token == job.lease_token) & _remote()

        def work(connection: sa.Connection) -> bool:
            held = connection.execute(jobs.update().where(mine).values(updated=now_ms(), **changes)).rowcount
            if not held:
                return False
            connection.execute(
                delegations.update().where(delegations.c.job_id == job.id).values(updated=now_ms(), **values)
            )
            return True

        return await self._store.write(work)

    # Looking.

    async def get(self, job_id: str) -> Delegation | None:
        """The delegation of a job, also of one that came back or has ended."""
        return (await self.of([job_id])).get(job_id)

    async def of(self, job_ids: Sequence[str]) -> dict[str, Delegation]:
        """Those of several jobs, by id."""
        query = sa.select(delegations).where(delegations.c.job_id.in_(job_ids))
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        return {row.job_id: self._delegation(row) for row in rows}

    async def count(self, service_id: str, cluster_id: str) -> int:
        """How many jobs of a service a cluster has, or may have."""
        query = (
            sa.select(sa.func.count())
            .select_from(delegations.join(jobs, jobs.c.id == delegations.c.job_id))
            .where(
                _remote(),
                delegations.c.service_id == service_id,
                delegations.c.cluster_id == cluster_id,
                delegations.c.sends > 0,
            )
        )
        return int(await self._store.read(lambda connection: connection.execute(query).scalar_one()))

    async def due(self, job_id: str) -> bool:
        """Whether members may be tried for the job now: they were not tried in vain a moment ago."""
        query = sa.select(delegations.c.job_id).where(
            delegations.c.job_id == job_id, delegations.c.next_try > now_ms()
        )
        return not await self._store.read(lambda connection: connection.execute(query).all())

    async def since_heard(self, job_id: str) -> float:
        """Seconds since the member last answered, or since the job was given to it."""
        last = sa.func.coalesce(delegations.c.heard, delegations.c.updated)
        query = sa.select(now_ms() - last).where(delegations.c.job_id == job_id)
        found = await self._store.read(lambda connection: connection.execute(query).scalar())
        return (found or 0) / 1000

    def _delegation(self, row: Any) -> Delegation:
        access = None
        if row.member_sealed is not None:
            access = json.loads(self._sealer.open(row.member_sealed, _PURPOSE))
        return Delegation(
            job_id=row.job_id,
            policy=row.policy,
            cluster_id=row.cluster_id,
            member=json.loads(row.member) if row.member else {},
            access=access,
            reason=row.reason,
            problem=row.problem,
            sends=row.sends,
            remote_state=row.remote_state,
            rounds=row.rounds,
            heard=row.heard,
        )


def _remote() -> Any:
    # Written out so that SQLite sees the partial index's own condition.
    return sa.literal_column("jobs.state IN ('delegating','delegated')", sa.Boolean)


def _movable() -> list[Any]:
    """Conditions on a job and its service: members may have it, and were not tried in vain a moment ago."""
    again = sa.select(delegations.c.job_id).where(
        delegations.c.job_id == jobs.c.id, delegations.c.next_try > now_ms()
    )
    return [services.c.delegates.is_not(None), jobs.c.kind != "delegated", ~again.exists()]


def _waits_longer(threshold: float) -> Any:
    """It waits for longer than its service says, or than so many seconds where that says nothing."""
    limit_s = sa.func.coalesce(sa.func.nullif(services.c.delegates, 0), threshold)
    return now_ms() - jobs.c.next_try > limit_s * 1000


def _latest(one: Any, other: Any, *, sqlite: bool) -> Any:
    return sa.func.max(one, other) if sqlite else sa.func.greatest(one, other)
