"""The Store's contract on SQLite and on a real PostgreSQL: the queue, leases, fairness, secrets, migrations."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from oscar.errors import AlreadyExists, Conflict, JobNotFound, OscarError
from oscar.model.job import JobState, NewJob, Verdict
from oscar.state import tables
from oscar.state.jobs import Jobs
from oscar.state.migrate import HEAD, migrate
from oscar.state.secrets import Sealer, SealError, load_keys
from oscar.state.services import BucketUse, Services
from oscar.state.store import Store, now_ms


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store(database_url, Sealer(["key-one"]))
    migrate(opened)
    yield opened
    opened.close()


def new_job(number: int, service: str = "s1", **more: Any) -> NewJob:
    values: dict[str, Any] = {
        "id": f"job-{service}-{number:05}",
        "service_id": service,
        "service_name": service,
        "owner": "cluster_admin",
        "user": "cluster_admin",
        "kind": "api",
        "payload": b"{}",
    }
    return NewJob(**(values | more))


async def add_service(store: Store, name: str, *, concurrency: int = 0, token: str | None = None) -> str:
    return await Services(store).insert(
        name=name,
        owner="cluster_admin",
        definition=f'{{"name":"{name}"}}',
        token=token or name * 8,
        secrets={"/environment/secrets/A": "planted-secret-value"},
        inputs=[(f"{name}-bucket", "in")],
        buckets=[BucketUse(f"{name}-bucket", created=True)],
        concurrency=concurrency,
    )


async def settle(jobs: Jobs, job: Any, state: JobState = JobState.SUCCEEDED, delay: float = 0.0) -> bool:
    return await jobs.settle(
        job,
        Verdict(state, delay),
        reason=None,
        message=None,
        exit_code=0,
        started=None,
        finished=None,
        script_failures=0,
        our_failures=0,
    )


def test_migration_is_idempotent_and_at_alembics_head(store: Store) -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    import oscar.state.migrate as module

    first = migrate(store)
    assert migrate(store) == first
    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_tables_and_migrations_agree(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def differences(connection: sa.Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection), tables.metadata))

    assert asyncio.run(store.read(differences)) == []


def test_a_repeated_event_is_one_job(store: Store) -> None:
    jobs = Jobs(store)

    async def scenario() -> None:
        first = await jobs.accept([new_job(1, event_key="k")])
        again = await jobs.accept([new_job(2, event_key="k")])
        assert [job.id for job in again] == [job.id for job in first]
        assert await jobs.get("job-s1-00002") is None
        both = await jobs.accept([new_job(3), new_job(4)])
        assert len({job.id for job in both}) == 2

    asyncio.run(scenario())


def test_workers_side_by_side_never_claim_a_job_twice(store: Store) -> None:
    jobs = Jobs(store)

    async def scenario() -> None:
        await jobs.accept([new_job(number) for number in range(60)])

        async def work(owner: str) -> list[str]:
            mine: list[str] = []
            while got := await jobs.claim(owner, total=1000, lease=30, batch=3):
                mine += [job.id for job in got]
                assert all(job.state is JobState.SUBMITTING and job.attempt == 1 for job in got)
            return mine

        taken = [job for got in await asyncio.gather(*(work(f"w{n}") for n in range(5))) for job in got]
        assert len(taken) == len(set(taken)) == 60

    asyncio.run(scenario())


def test_places_are_shared_fairly_and_limits_of_services_hold(store: Store) -> None:
    jobs = Jobs(store)

    async def scenario() -> None:
        small = await add_service(store, "small", concurrency=1)
        big = await add_service(store, "big")
        await jobs.accept([new_job(number, big) for number in range(50)])
        await jobs.accept([new_job(number, small) for number in range(5)])
        got = await jobs.claim("me", total=6, lease=30)
        shares = {service: sum(job.service_id == service for job in got) for service in (small, big)}
        assert shares == {small: 1, big: 5}
        assert await jobs.claim("me", total=6, lease=30) == []
        await settle(jobs, next(job for job in got if job.service_id == small))
        [following] = await jobs.claim("me", total=6, lease=30)
        assert following.service_id == small

    asyncio.run(scenario())


def test_only_the_holder_of_the_lease_settles(store: Store) -> None:
    jobs = Jobs(store)

    async def scenario() -> None:
        await jobs.accept([new_job(1)])
        [old] = await jobs.claim("gone", total=10, lease=30)
        assert await jobs.take_over("new", lease=30, everything=False) == []
        [mine] = await jobs.take_over("new", lease=30, everything=True)
        assert mine.attempt == old.attempt
        assert not await jobs.advance(old, JobState.RUNNING)
        assert not await settle(jobs, old)
        assert await jobs.advance(mine, JobState.RUNNING, started=5)
        assert not await jobs.advance(mine, JobState.SUBMITTED)
        assert await settle(jobs, mine)
        assert not await settle(jobs, mine)
        job = await jobs.get(mine.id)
        assert job is not None
        assert (job.state, job.started) == (JobState.SUCCEEDED, 5)

    asyncio.run(scenario())


def test_an_expired_lease_is_taken_over(store: Store) -> None:
    jobs = Jobs(store)

    async def scenario() -> None:
        await jobs.accept([new_job(1)])
        await jobs.claim("gone", total=10, lease=-1)
        [mine] = await jobs.take_over("new", lease=30, everything=False)
        assert mine.id == "job-s1-00001"

    asyncio.run(scenario())


def test_a_retry_waits_for_its_time(store: Store) -> None:
    jobs = Jobs(store)

    async def scenario() -> None:
        await jobs.accept([new_job(1)])
        [job] = await jobs.claim("me", total=10, lease=30)
        assert await settle(jobs, job, JobState.QUEUED, delay=60)
        assert await jobs.claim("me", total=10, lease=30) == []
        left = await jobs.next_try()
        assert left is not None
        assert 50_000 < left <= 60_000
        await store.write(
            lambda connection: connection.execute(tables.jobs.update().values(next_try=now_ms()))
        )
        [again] = await jobs.claim("me", total=10, lease=30)
        assert again.attempt == 2

    asyncio.run(scenario())


def test_cancel_ends_a_waiting_job_and_marks_a_running_one(store: Store) -> None:
    jobs = Jobs(store)

    async def scenario() -> None:
        await jobs.accept([new_job(1), new_job(2)])
        [running] = await jobs.claim("me", total=1, lease=30)
        waiting = "job-s1-00002" if running.id.endswith("1") else "job-s1-00001"
        assert (await jobs.request_cancel(waiting)).state is JobState.CANCELLED
        assert (await jobs.request_cancel(running.id)).cancel_requested
        assert [job.id for job in await jobs.cancellations("me")] == [running.id]
        with pytest.raises(JobNotFound):
            await jobs.request_cancel("no-such-job")

    asyncio.run(scenario())


def test_pages_hold_every_job_once(store: Store) -> None:
    jobs = Jobs(store)

    async def scenario() -> None:
        await jobs.accept([new_job(number) for number in range(25)])
        await jobs.accept([new_job(number, "other") for number in range(5)])
        seen: list[str] = []
        after = None
        remaining = []
        while True:
            page = await jobs.page("s1", user=None, after=after, limit=10)
            seen += [job.id for job in page.jobs]
            remaining.append(page.remaining)
            after = page.next
            if after is None:
                break
        assert len(seen) == len(set(seen)) == 25
        assert remaining == [15, 5, 0]
        assert (await jobs.page("s1", user="nobody", after=None, limit=10)).jobs == []

    asyncio.run(scenario())


def test_services_keep_secrets_sealed(store: Store, tmp_path: Path) -> None:
    services = Services(store)

    async def scenario() -> None:
        token = "ab" * 32
        service_id = await add_service(store, "one", token=token)
        [row] = await services.get("one")
        assert row.secrets == {"/environment/secrets/A": "planted-secret-value"}
        assert row.token == token
        found = await services.by_token(token)
        assert found is not None
        assert found.id == service_id
        assert await services.by_token("cd" * 32) is None
        with pytest.raises(AlreadyExists):
            await add_service(store, "one")
        raw = await store.read(lambda connection: connection.execute(sa.select(tables.services)).one())
        assert b"planted-secret-value" not in bytes(raw.secrets_sealed)
        assert token.encode() not in bytes(raw.token_sealed)

    asyncio.run(scenario())
    if store.is_sqlite:
        for path in tmp_path.iterdir():
            assert b"planted-secret-value" not in path.read_bytes(), path


def test_a_batch_with_known_events_gives_the_jobs_that_they_made(store: Store) -> None:
    jobs = Jobs(store)

    async def scenario() -> None:
        [first] = await jobs.accept([new_job(1, event_key="one")])
        again = await jobs.accept([new_job(2, event_key="two"), new_job(3, event_key="one"), new_job(4)])
        assert [job.id for job in again] == ["job-s1-00002", first.id, "job-s1-00004"]
        assert again[1] == first == await jobs.get(first.id)
        assert [again[0], again[2]] == [await jobs.get("job-s1-00002"), await jobs.get("job-s1-00004")]
        with pytest.raises(Conflict):
            await jobs.accept([new_job(1, event_key="three")])

    asyncio.run(scenario())


def test_a_service_that_another_server_changed_is_seen_at_once(store: Store) -> None:
    here, elsewhere = Services(store), Services(store)

    async def scenario() -> None:
        service_id = await add_service(store, "one", token="ab" * 32)
        [before] = await here.get("one")
        assert await here.by_id(service_id) is before, "opened anew although nothing changed"
        await elsewhere.replace(
            service_id,
            definition='{"name":"one","cpu":"2"}',
            token="cd" * 32,
            secrets={"/environment/secrets/A": "another"},
            inputs=[],
            buckets=[],
            concurrency=0,
        )
        [after] = await here.get("one", "cluster_admin")
        assert (after.definition, after.generation) == ('{"name":"one","cpu":"2"}', before.generation + 1)
        assert after.secrets == {"/environment/secrets/A": "another"}
        assert await here.by_token("ab" * 32) is None
        assert await here.by_token("cd" * 32) == after
        await elsewhere.delete(service_id)
        assert await here.get("one") == []
        assert await here.by_id(service_id) is None
        assert await here.by_token("cd" * 32) is None

    asyncio.run(scenario())


def test_a_token_is_found_after_its_key_was_rotated(store: Store) -> None:
    async def scenario() -> None:
        service_id = await add_service(store, "one", token="ab" * 32)
        store.sealer = Sealer(["key-two", "key-one"])
        found = await Services(store).by_token("ab" * 32)
        assert found is not None
        assert found.id == service_id

    asyncio.run(scenario())


def test_a_look_up_that_fails_says_so_in_our_words(store: Store) -> None:
    async def scenario() -> None:
        await store.write(
            lambda connection: connection.execute(sa.text("ALTER TABLE services RENAME TO gone"))
        )
        with pytest.raises(OscarError) as caught:
            await Services(store).get("one")
        assert "services" in caught.value.message

    asyncio.run(scenario())


def test_deleting_a_service_cancels_its_jobs_and_names_its_own_buckets(store: Store) -> None:
    services, jobs = Services(store), Jobs(store)

    async def scenario() -> None:
        service_id = await add_service(store, "one")
        await services.insert(
            name="two",
            owner="cluster_admin",
            definition="{}",
            token="t",
            secrets={},
            inputs=[],
            buckets=[BucketUse("one-bucket", created=False)],
            concurrency=0,
        )
        await jobs.accept([new_job(1, service_id)])
        assert await services.delete(service_id) == []
        job = await jobs.get(f"job-{service_id}-00001")
        assert job is not None
        assert (job.state, job.reason) == (JobState.CANCELLED, "service_deleted")
        assert await services.users_of_bucket("one-bucket") == ["two"]

    asyncio.run(scenario())


def test_one_failing_transaction_does_not_touch_its_neighbours(store: Store) -> None:
    async def scenario() -> None:
        def insert(name: str) -> Any:
            return lambda connection: connection.execute(
                tables.users.insert().values(id=name, created=now_ms())
            )

        results = await asyncio.gather(
            *(store.write(insert(name)) for name in ("a", "b", "a", "c")), return_exceptions=True
        )
        assert sum(isinstance(result, Exception) for result in results) == 1
        names = await store.read(
            lambda connection: set(connection.execute(sa.select(tables.users.c.id)).scalars())
        )
        assert names == {"a", "b", "c"}

    asyncio.run(scenario())


def test_reads_can_not_write(store: Store) -> None:
    if not store.is_sqlite:
        return
    with pytest.raises(Exception, match="readonly"):
        asyncio.run(
            store.read(lambda connection: connection.execute(tables.users.insert().values(id="x", created=1)))
        )


def test_keys_rotate_and_foreign_keys_are_refused(tmp_path: Path) -> None:
    old, both = Sealer(["old"]), Sealer(["new", "old"])
    sealed = old.seal(b"secret", "purpose")
    assert both.open(sealed, "purpose") == b"secret"
    assert both.stale(sealed)
    assert not both.stale(both.seal(b"secret", "purpose"))
    with pytest.raises(SealError):
        both.open(sealed, "another purpose")
    with pytest.raises(SealError):
        Sealer(["new"]).open(sealed, "purpose")
    assert old.macs("token")[0] in both.macs("token")
    file = tmp_path / "key"
    assert load_keys(None, file) == load_keys("", file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_keys("a, b", file) == ["a", "b"]
