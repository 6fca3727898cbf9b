"""Rows of federations on both databases: copies to be told of, jobs that members have, tokens that were replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from oscar.model.job import JobState, NewJob
from oscar.state.copies import Change, Copies, NewCopy
from oscar.state.delegations import Delegations
from oscar.state.jobs import Jobs
from oscar.state.migrate import migrate
from oscar.state.refresh_tokens import RefreshTokens
from oscar.state.secrets import Sealer
from oscar.state.services import Services
from oscar.state.store import Store
from oscar.state.tables import jobs as table


@pytest.fixture
def store(database_url: str) -> Any:
    made = Store(database_url, Sealer(["a key"]))
    migrate(made)
    yield made
    made.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


async def service(store: Store, delegates: int | None = 0) -> str:
    return await Services(store).insert(
        name="s",
        owner="ann",
        definition="{}",
        token="t",
        secrets={},
        inputs=(),
        buckets=(),
        concurrency=0,
        delegates=delegates,
    )


def job(service_id: str, number: int, kind: str = "api") -> NewJob:
    return NewJob(f"s-{number}", service_id, "s", "ann", "ann", kind, b"{}")


def test_waiting_jobs_are_taken_once_and_only_those_that_may_go(store: Store) -> None:
    async def work() -> None:
        jobs, given = Jobs(store), Delegations(store)
        service_id = await service(store)
        await jobs.accept([job(service_id, 1), job(service_id, 2), job(service_id, 3, "delegated")])
        [running] = await jobs.claim("d", total=1, lease=30, batch=1)
        assert await given.begin_waiting("x", lease=30, limit=9, threshold=60.0) == []
        [taken] = await given.begin_waiting("x", lease=30, limit=9)
        assert (taken.id, taken.state) == ("s-2", JobState.DELEGATING)
        assert await given.begin_waiting("x", lease=30, limit=9) == []
        assert running.id == "s-1"
        # What an engine may know is not what a member has.
        assert await jobs.active_ids() == {"s-1"}
        [third] = await jobs.claim("d", total=9, lease=30)
        assert third.id == "s-3"

    run(work)


def test_a_claimed_job_goes_only_as_long_as_it_is_ours_and_not_submitted(store: Store) -> None:
    async def work() -> None:
        jobs, given = Jobs(store), Delegations(store)
        service_id = await service(store)
        await jobs.accept([job(service_id, 1), job(service_id, 2)])
        first, second = await jobs.claim("d", total=9, lease=30)
        assert await jobs.advance(first, JobState.SUBMITTED)
        assert await given.begin(first, "x", lease=30) is None
        begun = await given.begin(second, "x", lease=30)
        assert begun is not None
        assert await given.begin(second, "x", lease=30) is None
        assert not await jobs.advance(second, JobState.RUNNING)

    run(work)


def test_what_the_engine_has_and_does_not_begin_is_found_and_taken_when_it_gives_it_back(
    store: Store,
) -> None:
    async def work() -> None:
        jobs, given = Jobs(store), Delegations(store)
        service_id = await service(store)
        new = [job(service_id, 1), job(service_id, 2), job(service_id, 3, "delegated"), job(service_id, 4)]
        await jobs.accept([*new, job(await service_of_another(store), 5)])
        claimed = {each.id: each for each in await jobs.claim("d", total=9, lease=30)}
        assert len(claimed) == 5
        for number in (1, 3, 4, 5):
            assert await jobs.advance(claimed[f"s-{number}"], JobState.SUBMITTED)
        assert await jobs.advance(claimed["s-4"], JobState.RUNNING)
        # Not what is being submitted, has begun, is of another cluster or of a service without members, or of others.
        [stuck] = await given.stuck("d", limit=9, threshold=-1.0)
        assert stuck.id == "s-1"
        assert await given.stuck("d", limit=9, threshold=60.0) == []
        assert await given.stuck("other", limit=9, threshold=-1.0) == []
        taken = await given.begin(stuck, "x", lease=30, withdrawn=True)
        assert taken is not None
        assert (taken.state, taken.attempt) == (JobState.DELEGATING, 1)
        assert await given.stuck("d", limit=9, threshold=-1.0) == []
        assert not await jobs.advance(claimed["s-1"], JobState.RUNNING)
        assert await given.begin(claimed["s-4"], "x", lease=30, withdrawn=True) is None
        # When no member takes it, it is not taken back again at once.
        assert await given.back(taken, "nobody has room", pause=60)
        [again] = await jobs.claim("d", total=9, lease=30)
        assert (again.id, again.attempt) == ("s-1", 2)
        assert await jobs.advance(again, JobState.SUBMITTED)
        assert await given.stuck("d", limit=9, threshold=-1.0) == []

    run(work)


async def service_of_another(store: Store) -> str:
    return await Services(store).insert(
        name="alone",
        owner="ann",
        definition="{}",
        token="u",
        secrets={},
        inputs=(),
        buckets=(),
        concurrency=0,
        delegates=None,
    )


async def _given(store: Store) -> tuple[Delegations, Any]:
    given = Delegations(store)
    service_id = await service(store)
    await Jobs(store).accept([job(service_id, 1)])
    [taken] = await given.begin_waiting("x", lease=30, limit=9)
    await given.choose(
        taken,
        policy="static",
        cluster_id="b",
        member={"cluster_id": "b"},
        access={"k": "planted"},
        reason="r",
    )
    return given, taken


def test_from_the_choice_to_the_end(store: Store) -> None:
    async def work() -> None:
        given, taken = await _given(store)
        jobs = Jobs(store)
        assert await given.sending(taken)
        row = await given.get(taken.id)
        assert row is not None
        assert (row.sends, row.access, row.reason, row.heard) == (1, {"k": "planted"}, "r", None)
        assert await given.count(taken.service_id, "b") == 1
        assert await given.accepted(taken, "queued")
        now = await jobs.get(taken.id)
        assert now is not None
        assert (now.state, now.api_status) == (JobState.DELEGATED, "Pending")
        assert await given.heard(taken, "running", running=True)
        now = await jobs.get(taken.id)
        assert now is not None
        assert now.api_status == "Running"
        await jobs.request_cancel(taken.id)
        assert [each.id for each in await given.cancellations("x")] == [taken.id]
        # A member whose clock is years off tells how long it took, and nothing else is believed.
        assert await given.settle(taken, JobState.SUCCEEDED, exit_code=0, lasted=86_400_000)
        now = await jobs.get(taken.id)
        assert now is not None
        assert now.state is JobState.SUCCEEDED
        assert now.created <= (now.started or 0) <= (now.finished or 0)
        assert not await given.settle(taken, JobState.FAILED)
        await jobs.delete([taken.id])
        assert await given.get(taken.id) is None

    run(work)


def test_a_job_that_nobody_takes_waits_here_and_is_not_tried_at_once(store: Store) -> None:
    async def work() -> None:
        given, taken = await _given(store)
        assert await given.back(taken, "nobody", pause=60)
        assert not await given.due(taken.id)
        assert await given.begin_waiting("x", lease=30, limit=9) == []
        [claimed] = await Jobs(store).claim("d", total=9, lease=30)
        assert claimed.id == taken.id
        row = await given.get(taken.id)
        assert row is not None
        assert (row.access, row.problem, row.rounds) == (None, "nobody", 1)

    run(work)


def test_another_server_goes_on_when_the_lease_has_ended(store: Store) -> None:
    async def work() -> None:
        given, taken = await _given(store)
        assert await given.take_over("y", lease=30, everything=False) == []
        statement = table.update().values(lease_until=0)
        await store.write(lambda connection: connection.execute(statement))
        [again] = await given.take_over("y", lease=30, everything=False)
        assert again.id == taken.id
        assert not await given.sending(taken), "the first holder does nothing more"
        assert await given.sending(again)
        await given.renew("y", lease=30)

    run(work)


def test_a_deleted_service_asks_for_the_end_of_jobs_elsewhere(store: Store) -> None:
    async def work() -> None:
        given, taken = await _given(store)
        await Services(store).delete(taken.service_id)
        assert [each.id for each in await given.cancellations("x")] == [taken.id]

    run(work)


# Copies.


def new(name: str) -> NewCopy:
    return NewCopy(name, "s", {"endpoint": f"https://{name}.test", "password": "planted"}, f"key of {name}")


def test_copies_of_a_service_that_was_never_made_are_undone(store: Store) -> None:
    async def work() -> None:
        copies = Copies(store)
        b, c = new("b"), new("c")
        await copies.stage([b, c], service="s", owner="ann", undo=60)
        assert await copies.take(hold=60) == []
        assert await copies.by_key("key of b") is None
        service_id = "a service"
        await store.write(lambda connection: copies.adopt(connection, service_id, [b.id]))
        found = await copies.by_key("key of b")
        assert found is not None
        assert (found.service_id, found.pending, found.applied) == (service_id, False, found.version)
        await copies.undo([c.id])
        [due] = await copies.take(hold=60)
        assert (due.id, due.wanted) == (c.id, False)
        assert await copies.take(hold=60) == [], "somebody else has it"
        assert await copies.done(due)
        assert await copies.get([c.id]) == []

    run(work)


def test_a_change_in_between_is_told_too(store: Store) -> None:
    async def work() -> None:
        copies = Copies(store)
        b = new("b")
        added = Change(add=[b])
        await store.write(
            lambda connection: copies.change(connection, "sid", added, service="s", owner="ann")
        )
        [due] = await copies.take(hold=60)
        assert due.wanted
        again = Change(keep={b.id: {"endpoint": "https://b.test", "password": "other"}})
        await store.write(
            lambda connection: copies.change(connection, "sid", again, service="s", owner="ann")
        )
        assert not await copies.done(due), "what was told is no longer what is wanted"
        [due] = await copies.take(hold=60)
        assert due.access["password"] == "other"
        await copies.failed(due, "not now", 3600)
        [row] = await copies.of_service("sid")
        assert (row.pending, row.problem, row.tries) == (True, "not now", 1)
        await store.write(lambda connection: copies.drop_all(connection, "sid"))
        [due] = await copies.take(hold=60, ids=[b.id])
        assert not due.wanted
        assert await copies.done(due)
        assert await copies.next_due() is None

    run(work)


def test_replaced_refresh_tokens(store: Store) -> None:
    async def work() -> None:
        rows = RefreshTokens(store)
        service_id = await service(store)
        assert await rows.newest(service_id, "given") == "given"
        await rows.keep(service_id, "given", "planted one")
        await rows.keep(service_id, "given", "planted two")
        assert await rows.newest(service_id, "given") == "planted two"
        assert await rows.newest(service_id, "another") == "another", "the user has given a new one"

    run(work)


def test_nothing_secret_is_readable_in_the_tables(store: Store) -> None:
    async def work() -> None:
        await _given(store)
        copies = Copies(store)
        await copies.stage([new("b")], service="s", owner="ann", undo=60)
        await RefreshTokens(store).keep((await Jobs(store).get("s-1")).service_id, "given", "planted")  # type: ignore[union-attr]

        def everything(connection: sa.Connection) -> str:
            names = ("copies", "delegations", "refresh_tokens")
            return "".join(str(connection.execute(sa.text(f"SELECT * FROM {name}")).all()) for name in names)  # noqa: S608

        text = await store.read(everything)
        assert "planted" not in text
        assert "key of b" not in text

    run(work)
