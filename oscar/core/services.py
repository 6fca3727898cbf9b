"""Services: create, update, read, list, delete, and the look-up that every call of a service needs.

Called by `api.services`, `core.jobs`, `core.runs` and the dispatcher; calls `model.service` (rules of a definition),
`auth.rules`, `state.services`, buckets and the engine. The Store is the truth; what the engine and the buckets hold
is derived from it and made again by the same calls.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oscar import telemetry
from oscar.auth.rules import Action, Thing, choose_vo, may, may_administer, require_user
from oscar.core import config, copies, deployments, propagation, providers, quotas, volumes
from oscar.core.platform import Known, Platform
from oscar.errors import (
    BadRequest,
    BucketNotEmpty,
    Forbidden,
    InvalidField,
    OscarError,
    ServiceNotFound,
)
from oscar.model.event import Event
from oscar.model.federation import REFRESH_TOKEN, Topology
from oscar.model.object import Bucket, Visibility
from oscar.model.secrets import HIDDEN, secrets_of, with_secrets, without_refresh_token, without_secrets
from oscar.model.service import Service, definition, parse_service, unknown_fields, with_own_store
from oscar.model.user import ADMIN, Caller
from oscar.state.copies import Copy
from oscar.state.services import BucketUse, ServiceRow, taken_name

if TYPE_CHECKING:
    from oscar.auth.exchange import Fresh

log = telemetry.get("services")

_KEPT = 1024
_TOKEN = re.compile(r"[0-9a-f]{64}")
_KEPT_THINGS = 16 * 1024


async def create(p: Platform, caller: Caller, data: Mapping[str, Any]) -> list[str]:
    """Create a service; returns warnings for its author.

    Raises:
        InvalidField, Unsupported, AlreadyExists (400), Forbidden (403), Conflict (409): a volume of that name is there.
    """
    require_user(caller)
    service = parse_service(data)
    service = service.model_copy(update={"vo": choose_vo(caller, service.vo, p.settings.oidc_groups)})
    warnings = [*_warnings(data), *p.compute.check(service)]
    if await p.services.get(service.name, _owner(caller, service)):
        # Asked before buckets are made, so that a refused request leaves nothing behind; `insert` decides.
        raise taken_name(service.name)
    service = _settled(p, service, owner=_owner(caller, service), token=await _token(p, service))
    await _permitted(p, service)
    copies.check(p, service)
    fresh = await copies.check_token(p, service)
    volume = await volumes.make_for(p, service)
    try:
        uses = await _ensure_buckets(p, caller, service)
        await _watch(p, service)
        await _insert(p, caller, service, uses, fresh, volume)
    except OscarError:
        await volumes.unmake_for(p, service)
        raise
    await _watch(p, service)
    await p.compute.apply(without_refresh_token(service))
    await _expose(p, service)
    log.info("service created", service=service.name, owner=service.owner)
    return warnings


async def _token(p: Platform, service: Service) -> str:
    """A new token; a copy has its origin's, as long as nobody else here has that."""
    if (
        service.is_copy
        and _TOKEN.fullmatch(service.token)
        and await p.services.by_token(service.token) is None
    ):
        return service.token
    return secrets.token_hex(32)


async def _insert(
    p: Platform,
    caller: Caller,
    service: Service,
    uses: list[BucketUse],
    fresh: Fresh | None,
    volume: Callable[[Any, str], None] | None,
) -> None:
    """Store a new service once all members of its federation have their copies; else nothing is left anywhere.

    Raises:
        AlreadyExists (400), Unauthorized (401), Conflict (409), MemberError (502).
    """
    staged = copies.new_copies(service)
    ids = [copy.id for copy in staged]

    def also(connection: Any, service_id: str) -> None:
        if volume is not None:
            volume(connection, service_id)
        p.copies.adopt(connection, service_id, ids)
        if fresh is not None and fresh.refresh is not None:
            given = service.environment.secrets[REFRESH_TOKEN]
            p.refresh_tokens.keep_in(connection, service_id, given, fresh.refresh)

    tokens = copies.bearers(caller, fresh)
    # Noted before the first member hears of it: if we are killed in between, they are told to forget it.
    await p.copies.stage(staged, service=service.name, owner=service.owner, undo=propagation.UNDO)
    try:
        await propagation.make(p, await p.copies.get(ids), service, tokens)
        await p.services.insert(
            name=service.name,
            owner=service.owner,
            token=service.token,
            **_stored(service),
            buckets=uses,
            also=also,
        )
    except OscarError:
        await p.copies.undo(ids)
        await propagation.push(p, ids, tokens)
        await _undo_buckets(p, uses)
        raise


async def _undo_buckets(p: Platform, uses: Sequence[BucketUse]) -> None:
    for use in uses:
        if use.created and not await p.services.users_of_bucket(use.bucket):
            with contextlib.suppress(BucketNotEmpty):
                await p.buckets.delete_bucket(use.bucket)


async def update(p: Platform, caller: Caller, data: Mapping[str, Any]) -> list[str]:
    """Replace a service's definition; its token and owner stay, and so do secrets that are sent blank.

    Raises:
        InvalidField, Unsupported (400), Forbidden (403), ServiceNotFound (404).
    """
    require_user(caller)
    service = parse_service(data)
    known = await find(p, caller, service.name, action=Action.CHANGE, owner=service.owner or None)
    vo = choose_vo(caller, service.vo, p.settings.oidc_groups, before=known.service.vo)
    service = service.model_copy(update={"vo": vo})
    copies.guard(known.service, service)
    pending = await replace(p, caller, known, service)
    return [
        *_warnings(data),
        *p.compute.check(service),
        *(f"{copy.cluster_id}: not told yet, tried again: {copy.problem or 'no answer'}" for copy in pending),
    ]


async def replace(
    p: Platform, caller: Caller, known: Known, service: Service, *, leave: bool = False, exact: bool = False
) -> list[Copy]:
    """Give a service another definition, and tell the members of its federation.

    Args:
        p: the platform.
        caller: who may change it.
        known: as it is.
        service: as it should be; blank secrets stay as they are.
        leave: members that are no longer in it keep their copies.
        exact: only if nobody has changed it meanwhile.

    Returns:
        The copies whose members could not be told yet.

    Raises:
        InvalidField (400), Forbidden (403), Conflict (409).
    """
    p.compute.check(service)
    service = _settled(p, service, owner=known.row.owner, token=known.row.token)
    await _permitted(p, service)
    service = with_secrets(service, known.row.secrets or {})
    volumes.check_unchanged(known.service, service)
    copies.check(p, service, known.service)
    before = copies.given_token(known.row) if known.service.topology is not Topology.NONE else ""
    fresh = await copies.check_token(p, service, before)
    uses = await _ensure_buckets(p, caller, service)
    await _watch(p, service)
    present = await p.copies.of_service(known.row.id)
    change = copies.change(service, present, leave=leave)

    def also(connection: Any) -> None:
        p.copies.change(connection, known.row.id, change, service=service.name, owner=service.owner)
        if fresh is not None and fresh.refresh is not None:
            given = service.environment.secrets[REFRESH_TOKEN]
            p.refresh_tokens.keep_in(connection, known.row.id, given, fresh.refresh)

    await p.services.replace(
        known.row.id,
        token=service.token,
        **_stored(service),
        buckets=uses,
        generation=known.row.generation if exact else None,
        also=also,
    )
    await _watch(p, service)
    await _unwatch(p, known.service)
    dropped = set(known.service.buckets()) - set(service.buckets())
    for name in dropped:
        await _make_private(p, name)
    await p.compute.apply(without_refresh_token(service))
    await _expose(p, service)
    log.info("service updated", service=service.name, owner=service.owner)
    touched = {*(new.id for new in change.add), *change.keep, *change.drop}
    return await propagation.push(p, touched, copies.bearers(caller, fresh)) if touched else []


async def read(
    p: Platform, caller: Caller, name: str, *, owner: str | None = None, include: str | None = None
) -> str:
    """The service as JSON text, secrets left out; its token only for who may change it.

    Args:
        p: ports.
        caller: who asks.
        name: of the service.
        owner: chooses between several of that name.
        include: what else to tell, comma-separated: `deployment`.
    """
    require_user(caller)
    known = await find(p, caller, name, action=Action.SEE, owner=owner)
    return (await _shown(p, caller, [known.row], include))[0]


async def list_all(p: Platform, caller: Caller, *, include: str | None = None) -> str:
    """All services that the caller may see, as the text of a JSON array; `include` as in `read`."""
    require_user(caller)
    rows = await p.services.rows()
    if not caller.admin:
        rows = [row for row in rows if may(caller, Action.SEE, thing(p, row))]
    return "[" + ",".join(await _shown(p, caller, rows, include)) + "]"


async def delete(
    p: Platform, caller: Caller, name: str, *, owner: str | None = None, data: bool = False
) -> None:
    """Remove a service, its workers and waiting jobs.

    Of the buckets that it created and no other service uses, empty ones go too; with `data` also those that hold
    objects. Everything else stays.

    Raises:
        ServiceNotFound (404), Forbidden (403).
    """
    require_user(caller)
    known = await find(p, caller, name, action=Action.CHANGE, owner=owner)
    mount = known.service.mount
    kept = mount.bucket if mount and known.service.is_own_store(mount) else None
    made = await p.copies.of_service(known.row.id)
    free = await p.services.delete(
        known.row.id, also=lambda connection: p.copies.drop_all(connection, known.row.id)
    )
    p.signals.work.set()
    await _unwatch(p, known.service)
    await p.compute.remove(known.row.owner, name)
    await deployments.remove(p, known.row.owner, name)
    if known.service.volume:
        await volumes.remove_left(p, known.row.owner)
    for use in free:
        if use.created and use.bucket != kept:
            try:
                await p.buckets.delete_bucket(
                    use.bucket, force=data and await _is_of(p, use.bucket, known.row.owner)
                )
            except BucketNotEmpty:
                await _make_private(p, use.bucket)
                log.info("bucket kept with its data", bucket=use.bucket, service=name)
    if made:
        await propagation.push(p, [copy.id for copy in made], copies.bearers(caller, None))
    log.info("service deleted", service=name, owner=known.row.owner, data=data)


async def find(p: Platform, caller: Caller, name: str, *, action: Action, owner: str | None = None) -> Known:
    """The service of that name on which the caller may do that.

    Raises:
        ServiceNotFound: there is none, or the caller may not even see it.
        Forbidden: he sees it but may not do that.
        BadRequest: several owners have one of that name and `owner` does not choose.
    """
    rows = await p.services.get(name, owner)
    known = [parsed(p, row) for row in rows]
    allowed = [one for one in known if may(caller, action, one.thing)]
    if len(allowed) == 1:
        return allowed[0]
    if allowed:
        mine = [one for one in allowed if one.row.owner == caller.id]
        if len(mine) == 1:
            return mine[0]
        raise BadRequest(
            f'More than one service named "{name}" is open to you',
            field="owner",
            fix="choose one by ?owner=" + " or ?owner=".join(one.row.owner for one in allowed),
        )
    if any(may(caller, Action.SEE, one.thing) for one in known):
        raise Forbidden(f'Only the owner or an administrator may change the service "{name}"')
    raise ServiceNotFound(f'There is no service named "{name}", or you may not see it', field="serviceName")


async def by_id(p: Platform, service_id: str) -> Known | None:
    """The service of a job; None when it was deleted."""
    row = await p.services.by_id(service_id)
    return parsed(p, row) if row else None


def parsed(p: Platform, row: ServiceRow) -> Known:
    """A row with its definition parsed and its secrets filled in."""
    # Parsing takes longer than reading the row, so the row is read for every call and parsed once a generation.
    known = p.known.get(row.id)
    if known is None or known.row.generation != row.generation:
        if len(p.known) >= _KEPT:
            p.known.clear()
        known = p.known[row.id] = _parse(row)
    return known


def _parse(row: ServiceRow) -> Known:
    # The refresh token speaks for the owner on other clusters: nothing that runs a script ever gets it.
    return Known(row, without_refresh_token(copies.stored(row)))


async def apply_all(p: Platform) -> None:
    """Have the engine make what services need before their first call; at start."""
    found = []
    for row in await p.services.rows():
        full = await p.services.by_id(row.id)
        if full is None:
            continue
        found.append(parsed(p, full))
        try:
            await p.compute.apply(found[-1].service)
        except OscarError as error:
            log.warning("service not prepared", service=row.name, error=error.message)
    await deployments.apply_all(p, found)
    await reconcile(p)


async def reconcile(p: Platform) -> None:
    """Have the engine put right what was deleted or left over behind its back."""
    if p.reconciles is not None:
        rows = await p.services.rows()
        try:
            await p.reconciles.reconcile({(row.owner, row.name) for row in rows})
        except OscarError as error:
            log.warning("the engine is not reconciled", error=error.message)


async def _expose(p: Platform, service: Service) -> None:
    """Have its replicas as its definition says."""
    for row in await p.services.get(service.name, service.owner):
        await deployments.apply(p, parsed(p, row))


def _bare(row: ServiceRow) -> Service:
    return Service.model_validate(json.loads(row.definition))


async def _permitted(p: Platform, service: Service) -> None:
    """Refuse what the installation does not allow: images, and more than the owner may ever have."""
    await config.check_service(p, service)
    await providers.check(p, service)
    await quotas.check_service(p, service)
    if service.expose.nodePort:
        rows = [
            row for row in await p.services.rows() if (row.owner, row.name) != (service.owner, service.name)
        ]
        deployments.check(service, [_bare(row) for row in rows if '"nodePort":[' in row.definition])


def _warnings(data: Mapping[str, Any]) -> list[str]:
    return [f"{path}: this field means nothing here and is ignored" for path in unknown_fields(data)]


def _owner(caller: Caller, service: Service) -> str:
    # The administrator may create in somebody's name, as federation and imports do.
    return service.owner if caller.admin and service.owner else caller.id


def _settled(p: Platform, service: Service, *, owner: str, token: str) -> Service:
    service = copies.named(service)
    own = service.storage_providers.minio.get("default")
    federated = "oscar.grycap/origin-cluster" in service.annotations
    if not (own and own.endpoint and federated):
        service = with_own_store(
            service, p.store.model_copy(update={"access_key": HIDDEN, "secret_key": HIDDEN})
        )
    allowed = list(service.allowed_users)
    if service.isolation_level == "USER" and owner != ADMIN and owner not in allowed:
        allowed.append(owner)
    private = sorted(_private_buckets(service, allowed)) if service.isolation_level == "USER" else []
    return service.model_copy(
        update={
            "owner": owner,
            "token": token,
            "bucket_list": private,
            "allowed_users": allowed,
            "volume_status": None,
        }
    )


def _private_buckets(service: Service, users: Sequence[str]) -> dict[str, str]:
    """The private bucket of each user for each input bucket, with the user whose it is."""
    # A readable prefix and a hash of the whole id: ids that begin alike don't share a bucket.
    inputs = {place.bucket for place in service.input if service.is_own_store(place)}
    return {
        f"{bucket[:52]}-{hashlib.sha256(user.encode()).hexdigest()[:10]}": user
        for bucket in inputs
        for user in users
    }


def check_private(caller: Caller, service: Service, event: Event) -> None:
    """Refuse an event, written by a caller, that names the private bucket of another user.

    Raises:
        Forbidden: it does.
    """
    if service.isolation_level != "USER" or may_administer(caller):
        return
    users = _private_buckets(service, service.allowed_users)
    for index, record in enumerate(event.records):
        if users.get(record.bucket, caller.id) != caller.id:
            raise Forbidden(
                f'The bucket "{record.bucket}" is private to another user',
                field=f"Records[{index}].s3.bucket.name",
            )


def _stored(service: Service) -> dict[str, Any]:
    bare = without_secrets(service)
    text = definition(bare)
    text.pop("token", None)
    return {
        "definition": json.dumps(text, ensure_ascii=False, separators=(",", ":")),
        "secrets": {path: value for path, value in secrets_of(service).items() if path != "/token"},
        "inputs": [(watched.bucket, watched.folder) for watched in service.storage_inputs],
        "concurrency": service.concurrency,
        "need": quotas.need_of(service),
        "delegates": _threshold(service),
    }


def _threshold(service: Service) -> int | None:
    """Seconds after which a waiting job may be moved, 0 for the server's own figure; None when it has nowhere to go."""
    if not service.delegates_to:
        return None
    return service.federation.rescheduler_threshold if service.federation else 0


async def _shown(
    p: Platform, caller: Caller, rows: Sequence[ServiceRow], include: str | None = None
) -> list[str]:
    """The services as JSON texts, with what is not in their stored definitions."""
    # A token acts for the service's owner: whoever else may call the service does so as himself.
    has_tokens = [caller.admin or may(caller, Action.CHANGE, Thing(row.owner)) for row in rows]
    with_volume = [(row.owner, row.name) for row in rows if '"volume":{' in row.definition]
    statuses = await volumes.statuses(p, with_volume) if with_volume else {}
    with_deployment = "deployment" in (include or "").split(",")
    shown = []
    for row, has_token in zip(rows, has_tokens, strict=True):
        status = statuses.get((row.owner, row.name))
        more = f',"volume_status":{status.model_dump_json()}' if status else ""
        if with_deployment:
            exposed = '"api_port":[' in row.definition and '"api_port":[]' not in row.definition
            found = deployments.summary(await deployments.deployment(p, row, exposed=exposed))
            more += f',"deployment":{json.dumps(found)}'
        shown.append(f'{row.definition[:-1]},"token":"{row.token if has_token else ""}"{more}}}')
    return shown


def thing(p: Platform, row: ServiceRow) -> Thing:
    """A service as the rules see it."""
    # As with `parsed`: a list of a thousand services would be parsed anew for every user who asks.
    known = p.things.get(row.id)
    if known is None or known[0] != row.generation:
        if len(p.things) >= _KEPT_THINGS:
            p.things.clear()
        fields = json.loads(row.definition)
        allowed = frozenset(fields.get("allowed_users", ()))
        known = row.generation, Thing(row.owner, Visibility(fields["visibility"]), allowed, row.id)
        p.things[row.id] = known
    return known[1]


async def _ensure_buckets(p: Platform, caller: Caller, service: Service) -> list[BucketUse]:
    """Have all of the service's buckets, or leave none behind that was made for it. Raises as `_make_buckets`."""
    uses: list[BucketUse] = []
    try:
        await _make_buckets(p, caller, service, uses)
    except OscarError:
        for use in uses:
            if use.created:
                # One that somebody writes to already stays.
                with contextlib.suppress(BucketNotEmpty):
                    await p.buckets.delete_bucket(use.bucket)
        raise
    return uses


async def _make_buckets(p: Platform, caller: Caller, service: Service, uses: list[BucketUse]) -> None:
    """Have the service's buckets: existing ones must be their owner's, absent ones are created.

    A private bucket is its user's and nobody else's, also where the name was taken before he came.

    Raises:
        Forbidden: a bucket of that name is somebody else's.
        QuotaExceeded: an owner may have no more buckets.
    """
    shared = service.buckets()
    for name in shared:
        _check_bucket(caller, await p.buckets.bucket(name), name, "input")
    await _check_mount(p, service)
    tags = {"owner": service.owner, "from_service": service.name}
    seen = {place.bucket for place in (*service.input, *service.output) if service.is_own_store(place)}
    for name in shared:
        wanted = Bucket(
            name=name,
            owner=service.owner,
            # What is only mounted is the owner's alone, however many may call the service.
            visibility=service.visibility if name in seen else Visibility.PRIVATE,
            allowed_users=tuple(service.allowed_users) if name in seen else (),
            service=service.name,
            tags=tags,
        )
        created = await p.buckets.create_bucket(wanted)
        if not created:
            present = await p.buckets.bucket(name)
            # Looked at again: somebody may have been quicker.
            _check_bucket(caller, present, name, "input")
            if present and present.service == service.name:
                await p.buckets.update_bucket(
                    name, visibility=wanted.visibility, allowed_users=wanted.allowed_users
                )
        uses.append(BucketUse(name, created))
    users = _private_buckets(service, service.allowed_users)
    for name in service.bucket_list:
        owner = users[name]
        mine = Bucket(name=name, owner=owner, service=service.name, tags=tags | {"owner": owner})
        created = await p.buckets.create_bucket(mine)
        if not created and ((present := await p.buckets.bucket(name)) is None or present.owner != owner):
            raise Forbidden(
                f'The name of a private bucket of this service, "{name}", is taken', field="isolation_level"
            )
        uses.append(BucketUse(name, created))


async def _watch(p: Platform, service: Service) -> None:
    """Have uploads to the service's inputs reported: before its row, so that a refusal leaves none, and after it.

    The second time is for a service on the same bucket that went at the same moment; see `_unwatch`.
    """
    if p.upkeep is not None:
        for bucket in sorted({watched.bucket for watched in service.storage_inputs}):
            await p.upkeep.watch(bucket, wanted=True)


async def _unwatch(p: Platform, before: Service) -> None:
    """Have uploads reported no longer where no service listens any more."""
    if p.upkeep is None:
        return
    for bucket in sorted({watched.bucket for watched in before.storage_inputs}):
        if not await p.events.inputs(bucket):
            await p.upkeep.watch(bucket, wanted=False)
            if await p.events.inputs(bucket):
                await p.upkeep.watch(bucket, wanted=True)


def _check_bucket(caller: Caller, present: Bucket | None, name: str, field: str) -> None:
    if present and not may(caller, Action.CHANGE, Thing(present.owner)):
        raise Forbidden(
            f'The bucket "{name}" belongs to somebody else', field=field, fix="use a bucket of your own"
        )


async def _check_mount(p: Platform, service: Service) -> None:
    """A bucket that is there already can be mounted when it is private and the owner's.

    Raises:
        Forbidden: it is somebody else's.
        InvalidField: others see it.
    """
    if service.mount is None or not service.is_own_store(service.mount):
        return
    present = await p.buckets.bucket(service.mount.bucket)
    if present is None:
        return
    # The administrator's keys also open buckets of nobody.
    if present.owner != service.owner and not (service.owner == ADMIN and not present.owner):
        raise Forbidden(
            f'The bucket "{present.name}" belongs to somebody else',
            field="mount.path",
            fix="mount a bucket of your own",
        )
    if present.visibility is not Visibility.PRIVATE and present.service != service.name:
        raise InvalidField(
            f'The bucket "{present.name}" is seen by others and can\'t be mounted',
            field="mount.path",
            fix="make it private first, or mount another",
        )


async def _make_private(p: Platform, name: str) -> None:
    if await p.buckets.bucket(name) and not await p.services.users_of_bucket(name):
        await p.buckets.update_bucket(name, visibility=Visibility.PRIVATE, allowed_users=())


async def _is_of(p: Platform, bucket: str, owner: str) -> bool:
    # The private bucket of another user goes with the service only when it is empty: what is in it is his.
    present = await p.buckets.bucket(bucket)
    return present is not None and present.owner == owner
