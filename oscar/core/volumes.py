"""Managed volumes: create, list, read, delete, what a service's `volume` block does, and limits of users.

Called by `api.volumes`, `core.services` and the quotas of users; calls `state.volumes` (rows), the engine's ability
`HasVolumes` (places) and `auth.rules`. A row is there before its place and goes after it; `reconcile` finishes what
a crash interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oscar import telemetry
from oscar.auth.rules import Action, Thing, may, require_user
from oscar.compute.base import HasVolumes, VolumeUsage
from oscar.core.platform import Platform
from oscar.errors import BadRequest, EngineError, InvalidField, OscarError, Unsupported, VolumeNotFound
from oscar.model.resources import format_memory, parse_memory
from oscar.model.service import Service, VolumeStatus
from oscar.model.user import Caller
from oscar.model.volume import Change, Limits, Mode, Phase, Use, Volume, check_name, check_size
from oscar.state.volumes import Hook

log = telemetry.get("volumes")


async def create(p: Platform, caller: Caller, *, name: str, size: str) -> dict[str, Any]:
    """Create a volume of the caller's; it stays until it is deleted.

    Raises:
        InvalidField (400), Conflict (409), Unsupported (400): volumes are switched off.
    """
    require_user(caller)
    check_name(name)
    volume = Volume(
        owner=caller.id,
        name=name,
        size=parse_memory(size, field="size"),
        shown_size=size.strip(),
        mode=Mode.API,
        retain=True,
        phase=Phase.PENDING,
    )
    await _make(p, volume, field="size")
    await p.volumes.bound(volume.owner, volume.name)
    log.info("volume created", volume=name, owner=caller.id)
    return await read(p, caller, name, owner=caller.id)


async def list_all(p: Platform, caller: Caller) -> list[dict[str, Any]]:
    """The caller's volumes; an administrator sees everybody's."""
    require_user(caller)
    found = await p.volumes.all(None if caller.admin else caller.id)
    return [await _described(p, volume) for volume in found]


async def read(p: Platform, caller: Caller, name: str, *, owner: str | None = None) -> dict[str, Any]:
    """A volume as `types.ManagedVolume` of the API. Raises VolumeNotFound (404)."""
    return await _described(p, await _find(p, caller, name, owner))


async def delete(p: Platform, caller: Caller, name: str, *, owner: str | None = None) -> None:
    """Remove a volume with all that it holds.

    Raises:
        VolumeNotFound (404), VolumeInUse (400): a service has it attached.
    """
    volume = await _find(p, caller, name, owner)
    await p.volumes.terminating(volume.owner, volume.name)
    await _unmake(p, volume)
    log.info("volume deleted", volume=name, owner=volume.owner)


# What a service's `volume` block does.


async def make_for(p: Platform, service: Service) -> Hook | None:
    """Have the volume that a new service wants; None when it wants none.

    Returns:
        What is to be done in the transaction that stores the service; when that fails, call `unmake_for`.

    Raises:
        InvalidField (400), Conflict (409), Unsupported (400).
    """
    wanted = service.volume
    if wanted is None:
        return None
    _ability(p)
    if not wanted.size:
        return p.volumes.attached(service.owner, wanted.name, wanted.mount_path)
    volume = Volume(
        owner=service.owner,
        name=wanted.name,
        size=parse_memory(wanted.size, field="volume.size"),
        shown_size=wanted.size,
        mode=Mode.SERVICE,
        retain=wanted.lifecycle_policy == "retain",
        phase=Phase.PENDING,
        service=service.name,
    )
    await _make(p, volume, field="volume.size")
    return p.volumes.created(service.owner, wanted.name, wanted.mount_path)


async def unmake_for(p: Platform, service: Service) -> None:
    """Take back what `make_for` made for a service that could not be stored."""
    if service.volume and service.volume.size:
        for volume in await p.volumes.get(service.volume.name, service.owner):
            if volume.phase is Phase.PENDING:
                await _unmake(p, volume)


async def remove_left(p: Platform, owner: str) -> None:
    """Remove the volumes of services that were deleted and whose policy is to go with them."""
    for volume in await p.volumes.left(owner):
        await _unmake(p, volume)
        log.info("volume deleted with its service", volume=volume.name, owner=volume.owner)


def check_unchanged(before: Service, after: Service) -> None:
    """Refuse an update that changes the volume.

    Raises:
        InvalidField: it does.
    """
    if before.volume != after.volume:
        raise InvalidField(
            "the volume of a service can't be changed after its creation",
            field="volume",
            fix="Send the volume as it is, or delete the service and create it again.",
        )


async def statuses(p: Platform, services: Sequence[tuple[str, str]]) -> dict[tuple[str, str], VolumeStatus]:
    """How the volumes of services do, by owner and name of the service; those without a volume are left out."""
    wanted = set(services)
    owners = {owner for owner, _ in wanted}
    found: dict[tuple[str, str], VolumeStatus] = {}
    for volume in await p.volumes.all(owners.pop() if len(owners) == 1 else None):
        for attachment in volume.attachments:
            if (volume.owner, attachment.service) in wanted:
                found[volume.owner, attachment.service] = VolumeStatus(
                    enabled=True, name=volume.name, phase=volume.phase.value
                )
    return found


# Limits.


async def limits_of(p: Platform, user: str) -> Limits:
    """What the user may have."""
    return await p.volumes.limits(user, default_limits(p))


async def usage_of(p: Platform, user: str) -> Use:
    """What the user has: sizes of volumes, not what lies in them."""
    return await p.volumes.use(user)


async def set_limits(p: Platform, user: str, change: Change) -> Limits:
    """Give a user limits of his own; returns what holds for him now. Who may do that is the caller's affair.

    Raises:
        BadRequest: the least size of a volume would be above the largest.
    """
    return await p.volumes.set_limits(user, change, default_limits(p))


def default_limits(p: Platform) -> Limits:
    """What a user without limits of his own may have."""
    settings = p.settings
    return Limits(
        disk=parse_memory(settings.volume_disk, field="OSCAR_VOLUME_DISK"),
        volumes=settings.volume_count,
        largest=parse_memory(settings.volume_largest, field="OSCAR_VOLUME_MAX_DISK"),
        smallest=parse_memory(settings.volume_smallest, field="OSCAR_VOLUME_MIN_DISK"),
    )


def described_limits(limits: Limits, use: Use) -> dict[str, Any]:
    """Limits and use as `types.VolumeQuotaResponse` of the API: quantities as text."""
    return {
        "disk": {"max": format_memory(limits.disk), "used": format_memory(use.disk)},
        "volumes": {"max": str(limits.volumes), "used": str(use.volumes)},
        "max_disk_per_volume": format_memory(limits.largest),
        "min_disk_per_volume": format_memory(limits.smallest),
    }


# At start.


async def reconcile(p: Platform) -> None:
    """Finish what a crash interrupted: half-made volumes go, half-removed ones too. For the only server there is."""
    if p.holds is None:
        return
    left = await p.volumes.left()
    for volume in {volume.key: volume for volume in (*left, *await p.volumes.unfinished())}.values():
        try:
            await _unmake(p, volume)
        except OscarError as error:
            log.warning(
                "a volume could not be removed", volume=volume.name, owner=volume.owner, error=error.message
            )
        else:
            log.info("an unfinished volume was removed", volume=volume.name, owner=volume.owner)


# Parts.


def _ability(p: Platform) -> HasVolumes:
    if p.holds is None or not p.settings.volume_enable:
        raise Unsupported(
            "This server has no managed volumes", field="volume", fix="ask its administrator (VOLUME_ENABLE)"
        )
    return p.holds


async def _make(p: Platform, volume: Volume, *, field: str) -> None:
    """Row and place; the row says that it is not finished yet."""
    holds = _ability(p)
    if p.place and not p.single and await p.servers.others(p.place):
        raise Unsupported(
            "Volumes are on one machine, and several servers work here",
            field=field,
            fix="use a bucket, or an engine that all servers reach",
        )
    limits = await limits_of(p, volume.owner)
    check_size(volume.size, limits, field=field)
    await p.volumes.insert(volume, limits, field=field)
    try:
        await holds.create_volume(volume.key, volume.size, owner=volume.owner)
    except OscarError:
        await p.volumes.remove(volume.owner, volume.name)
        raise


async def _unmake(p: Platform, volume: Volume) -> None:
    """Place and row; when the place can't be removed, the row stays and the next start tries again."""
    if p.holds is not None:
        await p.holds.delete_volume(volume.key)
    await p.volumes.remove(volume.owner, volume.name)


async def _find(p: Platform, caller: Caller, name: str, owner: str | None) -> Volume:
    require_user(caller)
    found = [each for each in await p.volumes.get(name, owner) if may(caller, Action.SEE, Thing(each.owner))]
    mine = [each for each in found if each.owner == caller.id]
    chosen = found if len(found) == 1 else mine
    if len(chosen) == 1:
        return chosen[0]
    if found:
        raise BadRequest(
            f'Several users have a volume named "{name}"',
            field="owner",
            fix="choose one by ?owner=" + " or ?owner=".join(each.owner for each in found),
        )
    raise VolumeNotFound(f'There is no volume named "{name}", or you may not see it', field="volumeName")


async def _described(p: Platform, volume: Volume) -> dict[str, Any]:
    usage, message = None, ""
    if p.holds is not None and volume.phase is Phase.BOUND:
        try:
            usage = await p.holds.volume_usage(volume.key)
        except EngineError as error:
            message = error.message
    if usage:
        message = _words(usage)
    return {
        "name": volume.name,
        "namespace": p.settings.services_namespace,
        "owner_user": volume.owner,
        "pvc_name": volume.key,
        "size": volume.shown_size,
        "creation_mode": volume.mode.value,
        "created_by_service": volume.service,
        "lifecycle_policy": "retain" if volume.retain else "delete",
        "attachments": [
            {"service_name": each.service, "mount_path": each.mount_path} for each in volume.attachments
        ],
        "status": {
            "phase": volume.phase.value,
            "message": message,
            "attachment_count": len(volume.attachments),
        },
    }


def _words(usage: VolumeUsage) -> str:
    if not usage.known:
        return ""
    words = f"{usage.used / 1024**2:.1f} MiB used"
    if not usage.enforced:
        words += ", measured" if usage.used <= usage.size else ", over its size: read-only"
    return words
