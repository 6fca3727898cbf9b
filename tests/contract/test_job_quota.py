"""Quotas of running jobs: what is claimed never takes more than its owner may have; others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from oscar.model.job import Job, JobState, NewJob, Verdict
from oscar.model.quota import UNLIMITED, Defaults, Limits, Resources
from oscar.model.user import ADMIN
from oscar.state.jobs import Jobs
from oscar.state.migrate import migrate
from oscar.state.quotas import Quotas
from oscar.state.secrets import Sealer
from oscar.state.services import Services
from oscar.state.store import Store

NEED = Resources(cpu=500, memory=100)


class World:
    """A Store whose users may run jobs with two cores together."""

    def __init__(self, url: str) -> None:
        self.store = Store(url, Sealer(["k"]))
        migrate(self.store)
        defaults = Defaults(Limits(cpu=2000))
        self.jobs, self.quotas, self.services = (
            Jobs(self.store, defaults),
            Quotas(self.store, defaults),
            Services(self.store),
        )

    async def service(self, name: str, owner: str, need: Resources = NEED) -> str:
        return await self.services.insert(
            name=name, owner=owner, definition="{}", token=f"{name}{owner}", secrets={}, inputs=[], buckets=[],
            concurrency=0, need=need,
        )  # fmt: skip

    async def post(self, service: str, owner: str, count: int) -> None:
        new = [
            NewJob(f"{service}-{number:03}", service, "s", owner, owner, "api", b"{}")
            for number in range(count)
        ]
        await self.jobs.accept(new)

    async def claim(self, total: int = 1000, gpus: int | None = None) -> list[Job]:
        found: list[Job] = []
        while got := await self.jobs.claim("me", total=total, lease=30, gpus=gpus):
            found += got
        return found

    async def end(self, job: Job) -> None:
        assert await self.jobs.settle(
            job, Verdict(JobState.SUCCEEDED), reason=None, message=None, exit_code=0, started=None, finished=None,
            script_failures=0, our_failures=0,
        )  # fmt: skip


def owners(jobs: list[Job]) -> dict[str, int]:
    return {owner: sum(job.owner == owner for job in jobs) for owner in {job.owner for job in jobs}}


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url)
    yield made
    made.store.close()


def test_a_users_jobs_stay_within_his_quota_and_others_are_not_kept_waiting(world: World) -> None:
    async def scenario() -> None:
        for owner in ("alice", "bob", ADMIN):
            await world.post(await world.service("s", owner), owner, 10)
        first = await world.claim()
        assert owners(first) == {"alice": 4, "bob": 4, ADMIN: 10}
        assert (await world.quotas.room("alice")).used == Resources(cpu=2000, memory=400)
        assert await world.claim() == []
        mine = [job for job in first if job.owner == "alice"]
        await world.end(mine[0])
        await world.end(mine[1])
        assert owners(await world.claim()) == {"alice": 2}

    asyncio.run(scenario())


def test_the_quota_is_of_all_services_of_an_owner_and_each_that_fits_starts(world: World) -> None:
    async def scenario() -> None:
        await world.quotas.change("alice", {"cpu": 1000, "memory": 1000})
        large = await world.service("large", "alice", Resources(cpu=800, memory=1))
        small = await world.service("small", "alice", Resources(cpu=100, memory=1))
        greedy = await world.service("greedy", "alice", Resources(cpu=1, memory=2000))
        for service in (large, small, greedy):
            await world.post(service, "alice", 5)
        taken = [job.service_id for job in await world.claim()]
        assert sorted(taken) == sorted([large, small, small])

    asyncio.run(scenario())


def test_a_job_waits_until_a_gpu_is_free_and_others_go_on(world: World) -> None:
    async def scenario() -> None:
        one = await world.service("one", ADMIN, Resources(cpu=1, gpu=1))
        two = await world.service("two", ADMIN, Resources(cpu=1, gpu=1))
        plain = await world.service("plain", ADMIN, Resources(cpu=1))
        for service in (one, two, plain):
            await world.post(service, ADMIN, 3)
        first = await world.claim(gpus=2)
        assert sorted(job.service_id for job in first) == sorted([one, two, plain, plain, plain])
        assert await world.claim(gpus=2) == []
        await world.end(next(job for job in first if job.service_id == one))
        assert [job.service_id for job in await world.claim(gpus=2)] == [one]
        assert await world.claim(gpus=1) == [], "one was taken out"
        assert len(await world.claim()) == 3, "an engine that lets them wait itself"

    asyncio.run(scenario())


def test_servers_side_by_side_don_t_exceed_it_together(world: World) -> None:
    async def scenario() -> None:
        service = await world.service("s", "alice")
        await world.post(service, "alice", 30)
        got = await asyncio.gather(
            *(world.jobs.claim(f"w{n}", total=1000, lease=30, batch=3) for n in range(8))
        )
        assert sum(map(len, got)) == 4

    asyncio.run(scenario())


def test_what_a_job_took_is_given_back_as_it_was_taken(world: World) -> None:
    async def scenario() -> None:
        service = await world.service("s", "alice")
        await world.post(service, "alice", 2)
        jobs = await world.claim(total=1)
        # The service changes while its job runs: the running one keeps what it took.
        await world.services.replace(
            service, definition="{}", token="t", secrets={}, inputs=[], buckets=[], concurrency=0,
            need=Resources(cpu=1900),
        )  # fmt: skip
        assert (await world.quotas.room("alice")).used.cpu == 500
        assert await world.claim() == []
        await world.end(jobs[0])
        assert len(await world.claim()) == 1
        assert (await world.quotas.room("alice")).used.cpu == 1900

    asyncio.run(scenario())


@pytest.mark.parametrize("limits", [{"cpu": UNLIMITED}, {"cpu": 10**9}])
def test_a_limit_may_be_lifted(world: World, limits: dict[str, Any]) -> None:
    async def scenario() -> None:
        await world.post(await world.service("s", "alice"), "alice", 10)
        assert len(await world.claim()) == 4
        await world.quotas.change("alice", limits)
        assert len(await world.claim()) == 6

    asyncio.run(scenario())


def test_a_quota_of_nothing_runs_nothing(world: World) -> None:
    async def scenario() -> None:
        await world.quotas.change("alice", {"cpu": 0})
        await world.post(await world.service("s", "alice"), "alice", 1)
        await world.post(await world.service("free", "alice", Resources(memory=5)), "alice", 1)
        assert [job.service_name for job in await world.claim()] == ["s"]  # the one that needs no CPU
        assert (await world.quotas.limits("alice")).cpu == 0

    asyncio.run(scenario())
