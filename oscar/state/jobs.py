"""Rows of jobs: the durable queue. Accept, claim by lease, advance, settle; each verb one short transaction.

Called by `core.jobs` and `core.dispatcher`. Jobs of objects are enqueued by `state.objects`, in the transaction that
makes the object visible. The states and what may follow which are in `model.job`. Works on SQLite and PostgreSQL alike.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.errors import Conflict, JobNotFound
from oscar.model.job import FINAL, HELD, TRANSITIONS, Job, JobState, NewJob, Verdict
from oscar.model.quota import RESOURCES, Defaults, Resources, Room
from oscar.state.direct import Direct
from oscar.state.event_tables import past_events
from oscar.state.job_rows import CALLBACK_PURPOSE, insert_jobs, plain_job, to_job
from oscar.state.quotas import rooms
from oscar.state.store import Store, now_ms
from oscar.state.tables import deliveries, jobs, services
from oscar.state.usage_hours import Used, add_used


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a service's jobs, newest first; `next` is the place where the following page starts."""

    jobs: list[Job]
    next: tuple[int, str] | None
    remaining: int


@dataclass(frozen=True, slots=True)
class Callback:
    """A callback that is due."""

    job: Job
    url: str
    tries: int


@dataclass(frozen=True, slots=True)
class Waits:
    """How the queue does."""

    oldest: Mapping[str, int]
    """Milliseconds that the oldest job that may start has waited, by the job's kind."""
    held: int
    """Jobs under a lease."""
    expired: int
    """Those of them whose lease is over."""


class Jobs:
    """Statements on jobs."""

    def __init__(self, store: Store, quotas: Defaults | None = None) -> None:
        """Work on that Store; `quotas` limit owners for whom nothing is stored."""
        self._store = store
        self._quotas = quotas or Defaults()
        # Asked at every wake of the dispatcher.
        held = jobs.c.lease_owner == sa.bindparam("in_owner")
        self._cancelled = Direct(sa.select(jobs).where(_active(), held, jobs.c.cancel_requested))

    async def accept(self, new: Sequence[NewJob]) -> list[Job]:
        """Enqueue jobs in one transaction.

        Returns:
            For each the job as stored: for a known event key the one that was accepted first.
        """

        def work(connection: sa.Connection) -> list[Job]:
            inserted = {job.id: job for job in insert_jobs(connection, new, self._store.sealer)}
            known = {
                job.event_key: job
                for job in self._of_keys(connection, [job.event_key for job in new if job.id not in inserted])
            }
            found = [inserted.get(job.id) or known.get(job.event_key) for job in new]
            if any(job is None for job in found):
                raise Conflict("A job of that id exists already")
            return [job for job in found if job is not None]

        return await self._store.write(work)

    @staticmethod
    def _of_keys(connection: sa.Connection, keys: Sequence[str | None]) -> list[Job]:
        wanted = [key for key in keys if key is not None]
        if not wanted:
            return []
        return [
            to_job(row) for row in connection.execute(sa.select(jobs).where(jobs.c.event_key.in_(wanted)))
        ]

    async def get(self, job_id: str) -> Job | None:
        """The job of that id."""
        query = sa.select(jobs).where(jobs.c.id == job_id)
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        return to_job(rows[0]) if rows else None

    async def page(
        self, service_id: str, *, user: str | None, after: tuple[int, str] | None, limit: int
    ) -> Page:
        """A page of the service's jobs, newest first.

        Args:
            service_id: the service.
            user: only jobs that this user caused.
            after: `next` of the page before.
            limit: jobs on the page.
        """
        columns = [column for column in jobs.c if column.name not in {"payload", "callback_sealed"}]
        query = sa.select(*columns).where(jobs.c.service_id == service_id)
        count = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.service_id == service_id)
        if user is not None:
            query, count = query.where(jobs.c.user == user), count.where(jobs.c.user == user)
        if after is not None:
            place = sa.tuple_(jobs.c.created, jobs.c.id) < sa.tuple_(
                sa.literal(after[0]), sa.literal(after[1])
            )
            query, count = query.where(place), count.where(place)
        query = query.order_by(jobs.c.created.desc(), jobs.c.id.desc()).limit(limit)

        def work(connection: sa.Connection) -> Page:
            page = [to_job(row) for row in connection.execute(query)]
            total = int(connection.execute(count).scalar_one())
            more = total > len(page) and bool(page)
            return Page(page, (page[-1].created, page[-1].id) if more else None, total - len(page))

        return await self._store.read(work)

    async def claim(
        self,
        owner: str,
        *,
        total: int,
        lease: float,
        batch: int = 16,
        without: Collection[str] = (),
        held: Mapping[str, Resources] | None = None,
        place: str = "",
        gpus: int | None = None,
    ) -> list[Job]:
        """Take waiting jobs to submit them, fairly: services with the fewest running jobs first.

        Each taken job is `submitting` with a new attempt number and lease token, committed. A service whose owner's
        quota has no room for another of its jobs is passed over.

        Args:
            owner: who takes them.
            total: jobs over all services that the taker may have at once.
            lease: seconds until another may take them over.
            batch: at most so many at once.
            without: owners whose jobs are passed over.
            held: what owners' warm workers and replicas take of their quotas.
            place: the machine that runs of this taker are bound to; "" for none.
            gpus: the taker's jobs may have so many GPUs together; None: that is not counted here.
        """

        def work(connection: sa.Connection) -> list[Job]:
            running: dict[str, int] = _pairs(
                connection.execute(
                    sa.select(jobs.c.service_id, sa.func.count()).where(_active()).group_by(jobs.c.service_id)
                ).all()
            )
            mine = sa.select(sa.func.count()).select_from(jobs).where(_active(), jobs.c.lease_owner == owner)
            free = min(total - int(connection.execute(mine).scalar_one()), batch)
            if free <= 0:
                return []
            waiting = self._waiting_services(connection)
            if not waiting:
                return []
            waiters = self._waiters(connection, waiting)
            if without:
                waiting = [
                    each for each in waiting if not ((its := waiters.get(each)) and its.owner in without)
                ]
            room = rooms(connection, {waiter.owner for waiter in waiters.values()}, self._quotas)
            if held:
                room = {of: its.less(held.get(of, Resources())) for of, its in room.items()}
            devices = gpus
            if gpus is not None and any(waiter.need.gpu for waiter in waiters.values()):
                taken = sa.select(sa.func.coalesce(sa.func.sum(jobs.c.gpu), 0))
                taken = taken.where(_active(), jobs.c.lease_owner == owner)
                devices = gpus - int(connection.execute(taken).scalar_one())
            shares = _shares(waiting, running, waiters, free, room, devices)
            chosen = [
                (job_id, waiters.get(service_id))
                for service_id, share in shares.items()
                if share
                for job_id in connection.execute(
                    sa.select(jobs.c.id)
                    .where(_queued(), jobs.c.service_id == service_id, jobs.c.next_try <= now_ms())
                    .order_by(jobs.c.next_try, jobs.c.created, jobs.c.id)
                    .limit(share)
                    .with_for_update(skip_locked=True)
                ).scalars()
            ]
            if not chosen:
                return []
            return [
                self._take(connection, job_id, owner, lease, (waiter.need if waiter else Resources(), place))
                for job_id, waiter in chosen
            ]

        return await self._store.write(work)

    @staticmethod
    def _waiting_services(connection: sa.Connection) -> list[str]:
        # A seek per service instead of a scan of all that waits: a burst of one service may be very long.
        found: list[str] = []
        last = ""
        while True:
            following = connection.execute(
                sa.select(sa.func.min(jobs.c.service_id)).where(_queued(), jobs.c.service_id > last)
            ).scalar()
            if following is None:
                return found
            found.append(following)
            last = following

    @staticmethod
    def _waiters(connection: sa.Connection, service_ids: Sequence[str]) -> dict[str, _Waiter]:
        columns = (services.c.id, services.c.owner, services.c.concurrency)
        needs = (services.c[name] for name in RESOURCES)
        query = sa.select(*columns, *needs).where(services.c.id.in_(service_ids))
        return {
            row[0]: _Waiter(row[1], row[2], Resources(*map(int, row[3:])))
            for row in connection.execute(query)
        }

    def _take(
        self,
        connection: sa.Connection,
        job_id: str,
        owner: str,
        lease: float,
        attempt: tuple[Resources, str] | None = None,
    ) -> Job:
        """Lease a job; with `attempt` as a new one, which needs that and runs there."""
        values: dict[str, Any] = {
            "lease_owner": owner,
            "lease_token": str(uuid.uuid4()),
            "lease_until": now_ms() + int(lease * 1000),
            "updated": now_ms(),
        }
        if attempt is not None:
            values |= {
                **asdict(attempt[0]),
                "place": attempt[1],
                "state": JobState.SUBMITTING.value,
                "attempt": jobs.c.attempt + 1,
                "reason": None,
                "message": None,
                "exit_code": None,
                "started": None,
            }
        row = connection.execute(
            jobs.update().where(jobs.c.id == job_id).values(**values).returning(*jobs.c)
        ).one()
        return to_job(row)

    async def take_over(
        self, owner: str, *, lease: float, everything: bool, place: str | None = None
    ) -> list[Job]:
        """Take active jobs whose holder is gone: lease expired, or `everything` when we are the only server.

        With `place` only those that run there, or that any server finds.
        """

        def work(connection: sa.Connection) -> list[Job]:
            condition = _active() if everything else _active() & (jobs.c.lease_until < now_ms())
            if place is not None:
                condition &= jobs.c.place.in_(["", place])
            found = connection.execute(
                sa.select(jobs.c.id).where(condition).with_for_update(skip_locked=True)
            ).scalars()
            return [self._take(connection, job_id, owner, lease) for job_id in list(found)]

        return await self._store.write(work)

    async def take_lost(self, owner: str, *, lease: float, place: str, age: float) -> list[Job]:
        """Take active jobs of other places whose servers have not been here for so many seconds, to give them up."""

        def work(connection: sa.Connection) -> list[Job]:
            gone = jobs.c.lease_until < now_ms() - int(age * 1000)
            found = connection.execute(
                sa.select(jobs.c.id)
                .where(_active(), gone, jobs.c.place.not_in(["", place]))
                .with_for_update(skip_locked=True)
            ).scalars()
            return [self._take(connection, job_id, owner, lease) for job_id in list(found)]

        return await self._store.write(work)

    async def renew(self, owner: str, *, lease: float) -> int:
        """Keep all leases of that owner; returns how many."""
        statement = (
            jobs.update()
            .where(_active(), jobs.c.lease_owner == owner)
            .values(lease_until=now_ms() + int(lease * 1000))
        )
        return await self._store.write(lambda connection: connection.execute(statement).rowcount)

    async def advance(self, job: Job, state: JobState, *, started: int | None = None) -> bool:
        """Move an active job on within its attempt; False when the lease is not ours any more."""
        return await self._changed(_advance(state), job, {"new_started": started})

    async def hold(self, job: Job, *, held: bool) -> bool:
        """Note that the engine holds a submitted job back, or no longer; False when the lease is not ours any more."""
        statement = (
            jobs.update()
            .where(
                jobs.c.id == job.id,
                jobs.c.attempt == job.attempt,
                jobs.c.lease_token == job.lease_token,
                jobs.c.state.in_([JobState.SUBMITTING.value, JobState.SUBMITTED.value]),
            )
            .values(reason=HELD if held else None, updated=now_ms())
        )
        return bool(await self._store.write(lambda connection: connection.execute(statement).rowcount))

    async def settle(
        self,
        job: Job,
        verdict: Verdict,
        *,
        reason: str | None,
        message: str | None,
        exit_code: int | None,
        started: int | None,
        finished: int | None,
        script_failures: int,
        our_failures: int,
        used: Used | None = None,
    ) -> bool:
        """Record an attempt's end, for good or queued again; False when the lease is not ours any more."""
        values = {
            "new_state": verdict.state.value,
            "new_reason": reason,
            "new_message": message,
            "new_exit_code": exit_code,
            "new_script_failures": script_failures,
            "new_our_failures": our_failures,
            "new_started": started,
            "new_finished": finished,
            "delay": int(verdict.delay * 1000),
        }
        return await self._changed(_settle(final=verdict.state in FINAL), job, values, used)

    async def _changed(
        self, statement: Direct, job: Job, values: Mapping[str, Any], used: Used | None = None
    ) -> bool:
        held = {"job": job.id, "try": job.attempt, "token": job.lease_token}

        def work(connection: sa.Connection) -> bool:
            changed = bool(statement.rows(connection, {**values, **held}))
            if changed and used is not None:
                # With the end of the attempt, which is told once.
                add_used(connection, [used])
            return changed

        return await self._store.write(work)

    async def request_cancel(self, job_id: str) -> Job:
        """Cancel a waiting job at once, mark an active one; a finished one is left.

        Raises:
            JobNotFound: there is none of that id.
        """

        def work(connection: sa.Connection) -> Job:
            connection.execute(
                jobs.update()
                .where(jobs.c.id == job_id, jobs.c.state == JobState.QUEUED.value)
                .values(
                    state=JobState.CANCELLED.value,
                    reason="cancelled",
                    finished=now_ms(),
                    updated=now_ms(),
                    callback_state=sa.case((jobs.c.callback_sealed.is_not(None), "due"), else_=None),
                )
            )
            connection.execute(
                jobs.update()
                .where(jobs.c.id == job_id, jobs.c.state != JobState.QUEUED.value, jobs.c.finished.is_(None))
                .values(cancel_requested=True, updated=now_ms())
            )
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).first()
            if row is None:
                raise JobNotFound
            return to_job(row)

        return await self._store.write(work)

    async def cancellations(self, owner: str) -> list[Job]:
        """Active jobs of that holder whose end was asked for."""
        return [plain_job(row) for row in await self._store.look_up(self._cancelled, {"in_owner": owner})]

    async def delete(self, job_ids: Collection[str]) -> list[Job]:
        """Remove finished jobs; the removed ones."""

        def work(connection: sa.Connection) -> list[Job]:
            final = [state.value for state in FINAL]
            rows = connection.execute(
                jobs.delete().where(jobs.c.id.in_(job_ids), jobs.c.state.in_(final)).returning(*jobs.c)
            ).all()
            removed = [to_job(row) for row in rows]
            connection.execute(
                deliveries.delete().where(deliveries.c.job_id.in_([job.id for job in removed]))
            )
            # The event may come again, from a queue or by the sweep: it is not a new one for that.
            insert = (sqlite.insert if self._store.is_sqlite else postgresql.insert)(past_events)
            for job in removed:
                if job.event_key:
                    known = insert.values(event_key=job.event_key, time=now_ms())
                    connection.execute(
                        known.on_conflict_do_update(index_elements=["event_key"], set_={"time": now_ms()})
                    )
            return removed

        return await self._store.write(work)

    async def ids(
        self, service_id: str, *, states: Collection[JobState], user: str | None = None
    ) -> list[str]:
        """Ids of the service's jobs in those states."""
        query = sa.select(jobs.c.id).where(
            jobs.c.service_id == service_id, jobs.c.state.in_([state.value for state in states])
        )
        if user is not None:
            query = query.where(jobs.c.user == user)
        return await self._store.read(lambda connection: list(connection.execute(query).scalars()))

    async def expired(self, age: float, limit: int = 500) -> list[str]:
        """Ids of jobs that finished more than `age` seconds ago."""
        query = sa.select(jobs.c.id).where(jobs.c.finished < now_ms() - int(age * 1000)).limit(limit)
        return await self._store.read(lambda connection: list(connection.execute(query).scalars()))

    async def active_ids(self) -> set[str]:
        """Ids of the jobs that an engine may know."""
        query = sa.select(jobs.c.id).where(_active())
        return await self._store.read(lambda connection: set(connection.execute(query).scalars()))

    async def next_try(self) -> int | None:
        """Milliseconds until the next waiting job may start; None when none waits."""
        query = sa.select(sa.func.min(jobs.c.next_try) - now_ms()).where(_queued())
        return await self._store.read(lambda connection: connection.execute(query).scalar())

    async def waits(self) -> Waits:
        """How long jobs wait, and who holds them."""
        due = (
            sa.select(jobs.c.kind, now_ms() - sa.func.min(jobs.c.created))
            .where(_queued(), jobs.c.next_try <= now_ms())
            .group_by(jobs.c.kind)
        )
        expired = sa.func.sum(sa.case((jobs.c.lease_until < now_ms(), 1), else_=0))
        held = sa.select(sa.func.count(), sa.func.coalesce(expired, 0)).where(_active())

        def work(connection: sa.Connection) -> Waits:
            oldest = {kind: max(0, int(age)) for kind, age in connection.execute(due).all()}
            count, late = connection.execute(held).one()
            return Waits(oldest, int(count), int(late))

        return await self._store.read(work)

    async def counts(self, user: str | None = None) -> dict[JobState, int]:
        """How many jobs there are in each state, of all users or of one."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        if user is not None:
            query = query.where(jobs.c.user == user)
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        return {JobState(state): count for state, count in rows}

    async def payload_refs(self) -> set[str]:
        """Names of the stored bodies in use."""
        query = sa.select(jobs.c.payload_ref).where(jobs.c.payload_ref.is_not(None))
        return await self._store.read(lambda connection: set(connection.execute(query).scalars()))

    async def due_callbacks(self, limit: int = 16) -> list[Callback]:
        """Callbacks that wait to be sent."""
        query = (
            sa.select(jobs).where(jobs.c.callback_state == "due", jobs.c.next_try <= now_ms()).limit(limit)
        )
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        return [
            Callback(
                to_job(row),
                self._store.sealer.open(row.callback_sealed, CALLBACK_PURPOSE).decode(),
                row.callback_tries,
            )
            for row in rows
        ]

    async def record_callback(self, job_id: str, *, state: str, delay: float = 0.0) -> None:
        """Record a try: `sent`, `failed` for good, or `due` again after so many seconds."""
        statement = (
            jobs.update()
            .where(jobs.c.id == job_id)
            .values(
                callback_state=state,
                callback_tries=jobs.c.callback_tries + 1,
                next_try=now_ms() + int(delay * 1000),
            )
        )
        await self._store.write(lambda connection: connection.execute(statement))


def _pairs(rows: Any) -> dict[str, int]:
    return dict(rows)


def _queued() -> Any:
    return jobs.c.state == sa.literal_column("'queued'")


def _active() -> Any:
    # Written out so that SQLite sees the partial index's own condition.
    return sa.literal_column("jobs.state IN ('submitting','submitted','running','settling')", sa.Boolean)


# Of every job four times: made and compiled once, because that costs more than to run them.


def _new(column: str) -> Any:
    return sa.bindparam(f"new_{column}", type_=jobs.c[column].type)


def _held() -> Any:
    return (
        (jobs.c.id == sa.bindparam("job", type_=jobs.c.id.type))
        & (jobs.c.attempt == sa.bindparam("try", type_=jobs.c.attempt.type))
        & (jobs.c.lease_token == sa.bindparam("token", type_=jobs.c.lease_token.type))
        & _active()
    )


def _started() -> Any:
    return sa.func.coalesce(_new("started"), jobs.c.started)


@functools.cache
def _advance(state: JobState) -> Direct:
    before = ",".join(f"'{source.value}'" for source, targets in TRANSITIONS.items() if state in targets)
    return Direct(
        jobs.update()
        .where(_held(), sa.literal_column(f"jobs.state IN ({before})", sa.Boolean))
        .values(
            state=state.value,
            updated=now_ms(),
            started=_started(),
            reason=sa.case((jobs.c.reason == HELD, None), else_=jobs.c.reason),
        )
        .returning(jobs.c.id)
    )


@functools.cache
def _settle(*, final: bool) -> Direct:
    columns = ("state", "reason", "message", "exit_code", "script_failures", "our_failures")
    values: dict[str, Any] = {name: _new(name) for name in columns}
    values |= {"started": _started(), "updated": now_ms()}
    values |= {name: sa.null() for name in ("lease_owner", "lease_token", "lease_until")}
    if final:
        values["finished"] = sa.func.coalesce(_new("finished"), now_ms())
        values["callback_state"] = sa.case((jobs.c.callback_sealed.is_not(None), "due"), else_=None)
    else:
        values["next_try"] = now_ms() + sa.bindparam("delay", type_=jobs.c.next_try.type)
    return Direct(jobs.update().where(_held()).values(values).returning(jobs.c.id))


@dataclass(frozen=True, slots=True)
class _Waiter:
    """A service with waiting jobs."""

    owner: str
    concurrency: int
    need: Resources


def _shares(
    waiting: Sequence[str],
    running: dict[str, int],
    waiters: Mapping[str, _Waiter],
    free: int,
    rooms: Mapping[str, Room],
    gpus: int | None = None,
) -> dict[str, int]:
    """How many jobs each service may start: one at a time to the service that has the fewest."""
    shares = dict.fromkeys(waiting, 0)
    left = dict(rooms)
    open_services = set(waiting)
    while free > 0 and open_services:
        neediest = min(
            open_services, key=lambda service: (running.get(service, 0) + shares[service], service)
        )
        waiter = waiters.get(neediest)
        limit = waiter.concurrency if waiter else 0
        if limit and running.get(neediest, 0) + shares[neediest] >= limit:
            open_services.discard(neediest)
            continue
        if gpus is not None and waiter is not None and waiter.need.gpu > max(gpus, 0):
            open_services.discard(neediest)
            continue
        room = left.get(waiter.owner) if waiter else None
        if room is not None and waiter is not None:
            if not room.fits(waiter.need):
                open_services.discard(neediest)
                continue
            left[waiter.owner] = room.less(waiter.need)
        if gpus is not None and waiter is not None:
            gpus -= waiter.need.gpu
        shares[neediest] += 1
        free -= 1
    return shares
