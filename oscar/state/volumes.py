"""Rows of managed volumes, of the services that have them, and of the limits of users.

Called by `core.volumes` and, inside the transactions of services, by `state.services` through the hooks that `created`
and `attached` give. A volume's row is there before its place on the engine and goes after it, so that a crash
leaves a row that says what is still to be done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa

from oscar.errors import BadRequest, Conflict, InvalidField, VolumeInUse
from oscar.model.volume import Attachment, Change, Limits, Mode, Phase, Use, Volume, check_room
from oscar.state.store import Store, now_ms
from oscar.state.tables import services, volume_attachments, volume_limits, volumes

Hook = Callable[[sa.Connection, str], None]
"""What is done in the transaction that stores a service: (connection, the service's id)."""


class Volumes:
    """Statements on volumes; each verb is one transaction."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store

    async def insert(self, volume: Volume, limits: Limits, *, field: str = "size") -> None:
        """Record a volume that is about to be made, if its owner may have one more.

        Raises:
            Conflict: the owner has one of that name.
            InvalidField: the limits don't allow it; names `field`.
        """

        def work(connection: sa.Connection) -> None:
            _alone(connection, volume.owner)
            if connection.execute(_row(volume.owner, volume.name)).first():
                raise Conflict(
                    f'A volume named "{volume.name}" exists already',
                    field="name",
                    fix="choose another name, or attach it by leaving out the size",
                )
            check_room(volume.size, _use(connection, volume.owner), limits, field=field)
            connection.execute(
                volumes.insert().values(
                    owner=volume.owner,
                    name=volume.name,
                    size=volume.size,
                    shown_size=volume.shown_size,
                    mode=volume.mode,
                    retain=volume.retain,
                    service=volume.service,
                    phase=Phase.PENDING,
                    created=now_ms(),
                )
            )

        await self._store.write(work)

    async def bound(self, owner: str, name: str) -> None:
        """Its place is there."""
        await self._store.write(lambda connection: _to(connection, owner, name, Phase.BOUND))

    def created(self, owner: str, name: str, mount_path: str) -> Hook:
        """For the transaction that stores the service for which the volume was made."""

        def work(connection: sa.Connection, service_id: str) -> None:
            _to(connection, owner, name, Phase.BOUND)
            _attach(connection, service_id, owner, name, mount_path)

        return work

    def attached(self, owner: str, name: str, mount_path: str) -> Hook:
        """For the transaction that stores a service which attaches a volume that is there.

        The hook raises InvalidField when there is none.
        """

        def work(connection: sa.Connection, service_id: str) -> None:
            row = connection.execute(_row(owner, name).with_for_update()).first()
            if row is None or row.phase != Phase.BOUND:
                raise InvalidField(
                    f'there is no volume "{name}" to attach',
                    field="volume.name",
                    fix="Create it first, or give volume.size to have it created.",
                )
            _attach(connection, service_id, owner, name, mount_path)

        return work

    async def get(self, name: str, owner: str | None = None) -> list[Volume]:
        """The volumes of that name (one per owner)."""
        chosen = volumes.c.name == name
        if owner is not None:
            chosen = chosen & (volumes.c.owner == owner)
        return await self._store.read(lambda connection: _list(connection, chosen))

    async def all(self, owner: str | None = None) -> list[Volume]:
        """All volumes, or those of an owner, in name order."""
        chosen = sa.true() if owner is None else volumes.c.owner == owner
        return await self._store.read(lambda connection: _list(connection, chosen))

    async def unfinished(self) -> list[Volume]:
        """Volumes whose place is half-made or half-removed."""
        chosen = volumes.c.phase != Phase.BOUND
        return await self._store.read(lambda connection: _list(connection, chosen))

    async def terminating(self, owner: str, name: str) -> None:
        """Its place is about to be removed: nobody can attach it any more. Silent if absent.

        Raises:
            VolumeInUse: services have it.
        """

        def work(connection: sa.Connection) -> None:
            connection.execute(_row(owner, name).with_for_update())
            users = [
                each.service for each in _attachments(connection, _is(owner, name)).get((owner, name), ())
            ]
            if users:
                raise VolumeInUse(
                    f'The volume "{name}" is attached to the service {", ".join(users)}',
                    field="volumeName",
                    fix="delete the service first",
                )
            _to(connection, owner, name, Phase.TERMINATING)

        await self._store.write(work)

    async def remove(self, owner: str, name: str) -> None:
        """Its place is gone. Silent if absent."""
        await self._store.write(
            lambda connection: _none(connection.execute(volumes.delete().where(_row_is(owner, name))))
        )

    async def left(self, owner: str | None = None) -> list[Volume]:
        """The volumes that go with the service that created them, which is deleted; marked so at once.

        One that another service has attached stays, as if it was to be retained.
        """
        chosen = (
            (volumes.c.mode == Mode.SERVICE) & volumes.c.retain.is_(False) & (volumes.c.phase == Phase.BOUND)
        )
        if owner is not None:
            chosen = chosen & (volumes.c.owner == owner)

        def work(connection: sa.Connection) -> list[Volume]:
            connection.execute(sa.select(volumes.c.name).where(chosen).with_for_update())
            going = []
            for volume in _list(connection, chosen):
                if not volume.attachments:
                    _to(connection, volume.owner, volume.name, Phase.TERMINATING)
                    going.append(volume)
                elif volume.service not in {each.service for each in volume.attachments}:
                    here = _row_is(volume.owner, volume.name)
                    connection.execute(volumes.update().where(here).values(retain=True))
            return going

        return await self._store.write(work)

    # Limits.

    async def use(self, owner: str) -> Use:
        """What the owner has."""
        return await self._store.read(lambda connection: _use(connection, owner))

    async def limits(self, user: str, default: Limits) -> Limits:
        """What the user may have: his own limits, and the default where he has none."""

        def work(connection: sa.Connection) -> Limits:
            return replace(default, **_own_limits(connection, user))

        return await self._store.read(work)

    async def set_limits(self, user: str, change: Change, default: Limits) -> Limits:
        """Give the user limits of his own; returns what holds for him now.

        Raises:
            BadRequest: the least size of a volume would be above the largest.
        """
        given = {name: value for name, value in asdict(change).items() if value is not None}

        def work(connection: sa.Connection) -> Limits:
            mine = volume_limits.c.user == user
            limits = replace(default, **(_own_limits(connection, user) | given))
            if limits.smallest > limits.largest:
                raise BadRequest(
                    "the least size of a volume would be above the largest",
                    field="volumes.min_disk_per_volume",
                )
            if connection.execute(sa.select(volume_limits.c.user).where(mine)).first() is None:
                connection.execute(volume_limits.insert().values(user=user, **given))
            elif given:
                connection.execute(volume_limits.update().where(mine).values(**given))
            return limits

        return await self._store.write(work)


def _own_limits(connection: sa.Connection, user: str) -> dict[str, int]:
    row = connection.execute(sa.select(volume_limits).where(volume_limits.c.user == user)).mappings().first()
    return {name: value for name, value in (row or {}).items() if name != "user" and value is not None}


def _row_is(owner: str, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(volumes.c.owner == owner, volumes.c.name == name)


def _is(owner: str, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(volume_attachments.c.owner == owner, volume_attachments.c.volume == name)


def _row(owner: str, name: str) -> sa.Select[Any]:
    return sa.select(volumes).where(_row_is(owner, name))


def _none(_result: object) -> None:
    return None


def _alone(connection: sa.Connection, owner: str) -> None:
    """Let no other transaction count this owner's volumes until this one ends; SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        lock = sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"volumes/{owner}", 0))
        connection.execute(sa.select(lock))


def _to(connection: sa.Connection, owner: str, name: str, phase: Phase) -> None:
    connection.execute(volumes.update().where(_row_is(owner, name)).values(phase=phase))


def _attach(connection: sa.Connection, service_id: str, owner: str, name: str, mount_path: str) -> None:
    connection.execute(
        volume_attachments.insert().values(
            service_id=service_id, owner=owner, volume=name, mount_path=mount_path
        )
    )


def _use(connection: sa.Connection, owner: str) -> Use:
    count, size = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(volumes.c.size), 0)).where(
            volumes.c.owner == owner
        )
    ).one()
    return Use(disk=int(size), volumes=int(count))


def _list(connection: sa.Connection, chosen: sa.ColumnElement[bool]) -> list[Volume]:
    rows = connection.execute(
        sa.select(volumes).where(chosen).order_by(volumes.c.name, volumes.c.owner)
    ).all()
    if not rows:
        return []
    owners = {row.owner for row in rows}
    attached = _attachments(
        connection, volume_attachments.c.owner.in_(owners) if len(owners) == 1 else sa.true()
    )
    return [
        Volume(
            owner=row.owner,
            name=row.name,
            size=row.size,
            shown_size=row.shown_size,
            mode=Mode(row.mode),
            retain=bool(row.retain),
            phase=Phase(row.phase),
            service=row.service,
            attachments=tuple(attached.get((row.owner, row.name), ())),
        )
        for row in rows
    ]


def _attachments(
    connection: sa.Connection, chosen: sa.ColumnElement[bool]
) -> dict[tuple[str, str], list[Attachment]]:
    query = (
        sa.select(
            volume_attachments.c.owner,
            volume_attachments.c.volume,
            volume_attachments.c.mount_path,
            services.c.name,
        )
        .join(services, services.c.id == volume_attachments.c.service_id)
        .where(chosen)
        .order_by(services.c.name)
    )
    found: dict[tuple[str, str], list[Attachment]] = {}
    for row in connection.execute(query):
        found.setdefault((row.owner, row.volume), []).append(Attachment(row.name, row.mount_path))
    return found
