"""Quotas of users: what they may have at once, what they have, and who may change that.

Called by `api.quotas`, and by `core.services`, `core.jobs` and `core.runs` where something must fit. What starts and
what is stored is limited by `state` itself, in the transactions that do it; managed volumes by `core.volumes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oscar import telemetry
from oscar.auth.rules import may_administer, require_user
from oscar.compute.base import Occupies, Staying
from oscar.core import volumes
from oscar.core.platform import Platform
from oscar.errors import BadRequest, Forbidden, InvalidField, TooManyRequests
from oscar.model.quota import NOTHING, RESOURCES, UNLIMITED, Limits, Resources, Room
from oscar.model.resources import LARGEST, format_memory, parse_cpu, parse_memory
from oscar.model.service import Service
from oscar.model.user import ADMIN, Caller
from oscar.model.volume import Change

log = telemetry.get("quotas")

_MOST_WORKERS = 1000
"""More than any machine bears: where a quota limits nothing that the service asks for."""
NONE = "none"
"""What lifts a limit."""
_SHOWN = {"ephemeral_storage": "ephemeral-storage"}
"""Names in answers that are not those in requests, as in OSCAR."""
_FIELDS = {"gpu": "enable_gpu", "ephemeral_storage": "ephemeral_storage_request"}
"""The fields of a service that are not named as the resource."""
_VOLUMES = {
    "disk": "disk",
    "volumes": "volumes",
    "max_disk_per_volume": "largest",
    "min_disk_per_volume": "smallest",
}


async def own(p: Platform, caller: Caller) -> dict[str, Any]:
    """The caller's quotas and what he uses of them, as `types.QuotaResponse` of the API."""
    require_user(caller)
    return await _described(p, caller.id)


async def read(p: Platform, caller: Caller, user: str) -> dict[str, Any]:
    """The same of any user. Raises Forbidden (403): the caller is no administrator."""
    _require_admin(caller)
    return await _described(p, user)


async def update(p: Platform, caller: Caller, user: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Set some of a user's limits; the quotas that hold then.

    Args:
        p: the platform.
        caller: an administrator.
        user: whose; he need not have been here yet.
        data: `types.QuotaUpdateRequest`: cpu, memory, gpu, ephemeral_storage, minio, volumes; `none` lifts a limit.

    Raises:
        Forbidden (403), BadRequest, InvalidField (400): naming the field.
    """
    _require_admin(caller)
    if user == ADMIN:
        raise InvalidField("Services and buckets of the administrator have no quotas", field="userId")
    limits, change = parse(data)
    if change is not None:
        await volumes.set_limits(p, user, change)
    if limits:
        await p.quotas.change(user, limits)
        if p.keeps_quotas is not None:
            await p.keeps_quotas.quota_changed(user)
    log.info("quota changed", user=user, by=caller.id, limits=sorted(limits))
    # What waited for room may start now.
    p.signals.work.set()
    if p.upkeep is not None:
        await p.upkeep.limit(user)
    return await _described(p, user)


def parse(data: Mapping[str, Any]) -> tuple[dict[str, int], Change | None]:
    """What a request sets: limits by their names in `Limits`, and those of volumes.

    Raises:
        BadRequest: it sets nothing. InvalidField: naming what can't be taken.
    """
    known = {*RESOURCES, "minio", "volumes"}
    for name in data:
        if name not in known:
            raise InvalidField(f'"{name}" is not a quota', field=name, fix=f"use {', '.join(sorted(known))}")
    limits: dict[str, int] = {}
    for name in RESOURCES:
        if (text := _text(data, name)) is not None:
            limits[name] = _limit(name, text, field=name)
    minio = _group(data, "minio", {"buckets", "storage_per_bucket"})
    for name in ("buckets", "storage_per_bucket"):
        if (text := _text(minio, name, within="minio.")) is not None:
            limits[name] = _limit(name, text, field=f"minio.{name}")
    group = _group(data, "volumes", set(_VOLUMES))
    sizes: dict[str, int] = {}
    for name, target in _VOLUMES.items():
        if (text := _text(group, name, within="volumes.")) is not None:
            field = f"volumes.{name}"
            sizes[target] = _count(text, field) if name == "volumes" else parse_memory(text, field=field)
    if not limits and not sizes:
        raise BadRequest(
            "The request sets no quota",
            field="quotas",
            fix="give at least one of cpu, memory, gpu, ephemeral_storage, minio and volumes",
        )
    return limits, Change(**sizes) if sizes else None


def need_of(service: Service) -> Resources:
    """What each job of the service takes of its owner's quota."""
    ephemeral = service.ephemeral_storage_request
    return Resources(
        cpu=service.cpu_millicores,
        memory=service.memory_bytes,
        gpu=1 if service.enable_gpu else 0,
        ephemeral_storage=parse_memory(ephemeral, field="ephemeral_storage_request") if ephemeral else 0,
    )


async def check_service(p: Platform, service: Service) -> None:
    """Refuse a service that could never run within its owner's quota.

    Raises:
        InvalidField (400): naming the field that asks for too much.
    """
    _check(service, await p.quotas.limits(service.owner))


def _check(service: Service, limits: Limits) -> None:
    replicas = service.expose.min_scale if service.expose.active else 0
    staying = max(1, replicas + service.synchronous.min_scale)
    name = limits.exceeded_by(need_of(service).times(staying))
    if name is not None:
        limit = getattr(limits, name)
        shown = f"{limit}m" if name == "cpu" else str(limit) if name == "gpu" else format_memory(limit)
        raise InvalidField(
            f"The service needs more {name.replace('_', ' ')} than its owner's quota of {shown}"
            + (f": {staying} workers and replicas are always there" if staying > 1 else ""),
            field=_FIELDS.get(name, name),
            fix="ask for less, or ask an administrator for a larger quota",
        )


async def holds_back(p: Platform, service: Service) -> bool:
    """Whether jobs of the service that wait now have to wait for room in its owner's quota."""
    return not (await _room(p, service.owner)).fits(need_of(service))


async def workers_for(p: Platform, service: Service) -> int | None:
    """How many warm workers the service may have now; None for any number.

    Raises:
        InvalidField (400): not one could ever be within its owner's quota.
        TooManyRequests (429): it has none, and what else the owner runs leaves no room for one now.
    """
    if service.owner == ADMIN:
        return None
    room = await _room(p, service.owner)
    if not room.limits.of_jobs:
        return None
    _check(service, room.limits)
    own = (service.owner, service.name)
    count = sum(each.count for each in _staying(p.invokes) if (each.owner, each.service) == own)
    need = need_of(service)
    while room.fits(need) and count < _MOST_WORKERS:
        count += 1
        room = room.less(need)
    if count == 0:
        raise TooManyRequests(
            "Running jobs, workers and replicas leave no room in the quota of the service's owner",
            fix="wait for some to end, or ask an administrator for a larger quota",
            headers={"Retry-After": "5"},
        )
    return count


def held(p: Platform) -> dict[str, Resources]:
    """What warm workers and replicas of exposed services take, by owner."""
    found: dict[str, Resources] = {}
    for ability in (p.invokes, p.exposes):
        for staying in _staying(ability):
            taken = staying.each.times(staying.count)
            found[staying.owner] = found.get(staying.owner, NOTHING).plus(taken)
    return found


def _staying(ability: object) -> Sequence[Staying]:
    return ability.occupied() if isinstance(ability, Occupies) else ()


async def _room(p: Platform, owner: str) -> Room:
    room = await p.quotas.room(owner)
    return room.less(held(p).get(owner, NOTHING))


def _require_admin(caller: Caller) -> None:
    if not may_administer(caller):
        raise Forbidden("Only an administrator may see and change the quotas of others")


async def _described(p: Platform, user: str) -> dict[str, Any]:
    room = await _room(p, user)
    count, size = await p.quotas.stored(user)
    return {
        "user_id": user,
        "cluster_queue": "",
        "resources": {
            _SHOWN.get(name, name): _values(getattr(room.limits, name), getattr(room.used, name))
            for name in RESOURCES
        },
        "minio": _minio(room.limits, count, size),
        "volumes": volumes.described_limits(
            await volumes.limits_of(p, user), await volumes.usage_of(p, user)
        ),
    }


def _minio(limits: Limits, count: int, size: int) -> dict[str, Any]:
    per_bucket = limits.storage_per_bucket
    return {
        "buckets": _values(limits.buckets, count),
        "storage_per_bucket": {} if per_bucket is None else {"max": format_memory(per_bucket)},
        "storage_total": {"used": format_memory(size)},
    }


def _values(limit: int | None, used: int) -> dict[str, int]:
    return {"used": used} if limit is None else {"max": limit, "used": used}


def _limit(name: str, text: str, *, field: str) -> int:
    if text.lower() == NONE:
        return UNLIMITED
    if name == "cpu":
        # Millicores, as the API shows them; with a unit or a fraction it is a quantity.
        return _number(text, field) if text.isascii() and text.isdigit() else parse_cpu(text, field=field)
    if name in {"gpu", "buckets"}:
        return _count(text, field)
    return parse_memory(text, field=field)


def _count(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InvalidField(
            f'"{text[:64]}" is not a number', field=field, fix='write a whole number, such as "5"'
        )
    return _number(text, field)


def _number(text: str, field: str) -> int:
    value = int(text) if len(text) <= len(str(LARGEST)) else LARGEST + 1
    if value > LARGEST:
        raise InvalidField(f'"{text[:64]}" is too large', field=field)
    return value


def _text(data: Mapping[str, Any], name: str, *, within: str = "") -> str | None:
    value = data.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidField("A quota is a text", field=within + name, fix='write it as "2000" or "4Gi"')
    return value.strip()


def _group(data: Mapping[str, Any], name: str, known: set[str]) -> Mapping[str, Any]:
    value = data.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidField(f'"{name}" must be an object', field=name)
    for key in value:
        if key not in known:
            raise InvalidField(
                f'"{key}" is not a quota', field=f"{name}.{key}", fix=f"use {', '.join(sorted(known))}"
            )
    return value
