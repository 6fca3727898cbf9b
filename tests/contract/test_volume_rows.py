"""Rows of volumes on SQLite and PostgreSQL: limits under concurrency, attachments, what a crash leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from oscar.errors import AlreadyExists, BadRequest, Conflict, InvalidField, OscarError, VolumeInUse
from oscar.model.volume import Change, Limits, Mode, Phase, Volume
from oscar.state.migrate import migrate
from oscar.state.secrets import Sealer
from oscar.state.services import Services
from oscar.state.store import Store
from oscar.state.volumes import Hook, Volumes

GIB = 1024**3
LIMITS = Limits(disk=7 * GIB, volumes=5, largest=5 * GIB, smallest=GIB // 5)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store(database_url, Sealer(["key-one"]))
    migrate(opened)
    yield opened
    opened.close()


def volume(
    name: str, *, owner: str = "ada", size: int = GIB, service: str = "", retain: bool = False
) -> Volume:
    mode = Mode.SERVICE if service else Mode.API
    return Volume(owner, name, size, f"{size}", mode, retain, Phase.PENDING, service)


async def add_service(store: Store, name: str, hook: Hook | None, owner: str = "ada") -> str:
    return await Services(store).insert(
        name=name,
        owner=owner,
        definition="{}",
        token=name * 8,
        secrets={},
        inputs=[],
        buckets=[],
        concurrency=0,
        also=hook,
    )


def test_names_are_each_owners_own(store: Store) -> None:
    async def run() -> None:
        volumes = Volumes(store)
        await volumes.insert(volume("v"), LIMITS)
        await volumes.insert(volume("v", owner="bob"), LIMITS)
        with pytest.raises(Conflict):
            await volumes.insert(volume("v"), LIMITS)
        assert [each.owner for each in await volumes.get("v")] == ["ada", "bob"]
        assert [each.owner for each in await volumes.all("bob")] == ["bob"]
        ada, bob = await volumes.get("v")
        assert ada.key != bob.key

    asyncio.run(run())


def test_limits_hold_for_many_at_once(store: Store) -> None:
    async def run() -> None:
        volumes = Volumes(store)
        tries = [volumes.insert(volume(f"v{number}"), LIMITS) for number in range(12)]
        found = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(result is None for result in found) == 5
        assert all(isinstance(result, InvalidField) for result in found if result is not None)
        use = await volumes.use("ada")
        assert (use.volumes, use.disk) == (5, 5 * GIB)

    asyncio.run(run())


def test_users_have_limits_of_their_own(store: Store) -> None:
    async def run() -> None:
        volumes = Volumes(store)
        assert await volumes.limits("ada", LIMITS) == LIMITS
        changed = await volumes.set_limits("ada", Change(volumes=1), LIMITS)
        assert changed == Limits(7 * GIB, 1, 5 * GIB, GIB // 5)
        await volumes.set_limits("ada", Change(disk=GIB), LIMITS)
        assert await volumes.limits("ada", LIMITS) == Limits(GIB, 1, 5 * GIB, GIB // 5)
        assert await volumes.limits("bob", LIMITS) == LIMITS
        with pytest.raises(BadRequest):
            await volumes.set_limits("ada", Change(smallest=6 * GIB), LIMITS)
        assert (await volumes.limits("ada", LIMITS)).smallest == GIB // 5

    asyncio.run(run())


def test_a_service_and_its_volume_are_stored_together_or_not_at_all(store: Store) -> None:
    async def run() -> None:
        volumes = Volumes(store)
        await volumes.insert(volume("v", service="s"), LIMITS)
        await add_service(store, "s", None)
        with pytest.raises(AlreadyExists):
            await add_service(store, "s", volumes.created("ada", "v", "/data"))
        (found,) = await volumes.get("v")
        assert (found.phase, found.attachments) == (Phase.PENDING, ())
        with pytest.raises(InvalidField):
            # Not there yet, so it can't be attached; and the service is not stored either.
            await add_service(store, "t", volumes.attached("ada", "v", "/data"))
        assert await Services(store).get("t") == []
        with pytest.raises(InvalidField):
            await add_service(store, "t", volumes.attached("bob", "v", "/data"), owner="bob")

    asyncio.run(run())


def test_what_goes_with_its_service(store: Store) -> None:
    async def run() -> None:
        volumes, services = Volumes(store), Services(store)
        made = {"goes": False, "stays": True, "shared": False}
        ids = {}
        for name, retain in made.items():
            await volumes.insert(volume(name, service=name, retain=retain), LIMITS)
            ids[name] = await add_service(store, name, volumes.created("ada", name, "/data"))
        await add_service(store, "other", volumes.attached("ada", "shared", "/data"))
        with pytest.raises(VolumeInUse):
            await volumes.terminating("ada", "goes")
        assert await volumes.left("ada") == []
        for name in made:
            await services.delete(ids[name])
        # A crash here: the next start finds the same.
        assert [each.name for each in await volumes.left()] == ["goes"]
        assert await volumes.left() == []
        assert [each.name for each in await volumes.unfinished()] == ["goes"]
        assert [(each.name, each.retain) for each in await volumes.all("ada")] == [
            ("goes", False),
            ("shared", True),
            ("stays", True),
        ]

    asyncio.run(run())


def test_an_attachment_and_a_deletion_at_once_never_both_succeed(store: Store) -> None:
    async def run() -> None:
        volumes = Volumes(store)
        for number in range(5):
            name = f"v{number}"
            await volumes.insert(volume(name, size=GIB // 5), LIMITS)
            await volumes.bound("ada", name)

            async def attach(name: str = name) -> None:
                await add_service(store, name, volumes.attached("ada", name, "/data"))

            results = await asyncio.gather(volumes.terminating("ada", name), attach(), return_exceptions=True)
            (found,) = await volumes.get(name)
            assert sum(isinstance(result, OscarError) for result in results) == 1
            assert (found.phase is Phase.TERMINATING) == (found.attachments == ())

    asyncio.run(run())
