"""Federations of services: who the members are, and how users change that. What copies ask their origin for.

Called by `api.federation`; calls `core.services`, which stores a changed definition and tells the members. Both routes,
`/system/federation` and the older `/system/replicas`, come here; they differ in the names of their fields. Rules:
docs/federation.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from oscar.auth.rules import Action, may, require_user
from oscar.core import copies, services, storage
from oscar.core.jobs import check_id
from oscar.core.members import Access
from oscar.core.platform import Known, Platform
from oscar.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    InvalidField,
    NotFound,
    ObjectNotFound,
    OscarError,
    Unauthorized,
)
from oscar.model.federation import (
    ORIGIN_CLUSTER,
    ORIGIN_SERVICE,
    Cluster,
    Replica,
    Topology,
    once_each,
)
from oscar.model.fields import Model, Name, Text, fold_keys, invalid_field
from oscar.model.producer import HOPS_METADATA, PRODUCER_METADATA
from oscar.model.record import TRACE_METADATA, matches
from oscar.model.service import Service, definition, parse_service
from oscar.model.storage import StorageProviders
from oscar.model.trace import Place
from oscar.model.user import Caller
from oscar.state.copies import Copy

_TREE = "tree"
"""What the older route calls a star."""
_RESULT_S = 900
"""Seconds for which an address for a result holds."""
_TRIES = 4
_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Form:
    """How one of the two routes names things."""

    members: str
    star: str


NEW = Form("members", Topology.STAR.value)
OLD = Form("replicas", _TREE)


class Change(Model):
    """The body of a change, by either route: `types.FederationRequest`."""

    members: list[Replica] | None = None
    replicas: list[Replica] | None = None
    update: list[Replica] | None = None
    clusters: dict[str, Cluster] = {}  # noqa: RUF012 - pydantic copies it
    storage_providers: StorageProviders | None = None
    delete: bool = True

    @property
    def listed(self) -> list[Replica]:
        """The members that it is about."""
        return [*(self.members or ()), *(self.replicas or ())]


class Wanted(Model):
    """What a copy asks for: an address for one result."""

    operation: Name = "upload"
    bucket: Name = ""
    key: Text = ""
    content_type: Name = "application/octet-stream"
    hops: int = Field(default=0, ge=0, le=999)
    job: Name = ""
    """Whose result it is. A member that does not say it may have a result stored, and its event, twice."""


Work = Callable[[Service, Change], Service]
Body = Callable[[], Awaitable[Mapping[str, Any]]]
"""Reads the body of a change; called only for who may make one."""


async def read(
    p: Platform, caller: Caller, name: str, form: Form, *, owner: str | None = None
) -> dict[str, Any]:
    """Topology and members of a service's federation, as `types.FederationResponse` of the API.

    Raises:
        ServiceNotFound (404): there is no such service, or the caller may not see it. BadRequest (400).
    """
    require_user(caller)
    known = await services.find(p, caller, name, action=Action.SEE, owner=owner)
    return await _shown(p, caller, known, form)


async def add(
    p: Platform, caller: Caller, name: str, given: Body, form: Form, *, owner: str | None = None
) -> dict[str, Any]:
    """Add members; those that are there stay as they are.

    Raises:
        BadRequest, InvalidField (400), Forbidden (403), ServiceNotFound (404), Conflict (409): it is a copy.
    """

    def work(service: Service, change: Change) -> Service:
        listed = _require(change, form)
        return _with(service, [*_all(service), *_full(service, listed)], change)

    return await _change(p, caller, name, given, form, "POST", work, owner)


async def update(
    p: Platform, caller: Caller, name: str, given: Body, form: Form, *, owner: str | None = None
) -> dict[str, Any]:
    """Replace members: each that is listed by the entry of `update` at its place, or all by a single one.

    Raises:
        BadRequest, InvalidField (400), Forbidden (403), NotFound (404): no such member, Conflict (409): it is a copy.
    """

    def work(service: Service, change: Change) -> Service:
        listed = _full(service, _require(change, form))
        new = _full(service, change.update or [])
        if not listed or len(new) not in {1, len(listed)}:
            raise BadRequest(
                f"{len(listed)} {form.members} are to be replaced by {len(new)}",
                field="update",
                fix=f"send as many entries of update as of {form.members}, or one for all",
            )
        places = {replica.identity: new[index if len(new) > 1 else 0] for index, replica in enumerate(listed)}
        present = _all(service)
        _require_match(present, places, form)
        return _with(service, [places.get(member.identity, member) for member in present], change, places)

    return await _change(p, caller, name, given, form, "PUT", work, owner)


async def remove(
    p: Platform, caller: Caller, name: str, given: Body, form: Form, *, owner: str | None = None
) -> dict[str, Any]:
    """Remove members, and their copies of the service unless `delete` is false.

    Raises:
        BadRequest, InvalidField (400), Forbidden (403), NotFound (404): no such member, Conflict (409): it is a copy.
    """

    def work(service: Service, change: Change) -> Service:
        gone = {replica.identity for replica in _full(service, _require(change, form))}
        present = _all(service)
        _require_match(present, gone, form)
        return _with(service, [member for member in present if member.identity not in gone], change)

    return await _change(p, caller, name, given, form, "DELETE", work, owner)


async def _change(
    p: Platform,
    caller: Caller,
    name: str,
    given: Body,
    form: Form,
    method: str,
    work: Work,
    owner: str | None,
) -> dict[str, Any]:
    require_user(caller)
    tries = _TRIES
    data: Mapping[str, Any] | None = None
    while True:
        known = await services.find(p, caller, name, action=Action.CHANGE, owner=owner)
        data = await given() if data is None else data
        if known.service.is_copy:
            return await _at_origin(p, caller, known, data, form, method)
        change = _read(data)
        changed = parse_service(definition(work(copies.stored(known.row), change)))
        try:
            await services.replace(p, caller, known, changed, leave=not change.delete, exact=True)
        except Conflict:
            # Somebody else has changed it in between: once more, on what it is now.
            tries -= 1
            if not tries:
                raise
            continue
        break
    known = await services.find(p, caller, name, action=Action.CHANGE, owner=known.row.owner)
    return await _shown(p, caller, known, form)


async def _at_origin(
    p: Platform, caller: Caller, known: Known, data: Mapping[str, Any], form: Form, method: str
) -> dict[str, Any]:
    """Have the origin of a copy make the change, in the caller's name.

    Raises:
        Conflict (409): it can't be asked; names it. Whatever it answers.
    """
    service = known.service
    at = service.clusters.get(service.annotations.get(ORIGIN_CLUSTER, ""))
    if at is None or not at.endpoint or not caller.bearer:
        raise copies.not_here(service)
    change = _read(data)
    body = {key: value for key, value in data.items() if key.lower() not in {"members", "replicas"}}
    body["members"] = [replica.model_dump(mode="json") for replica in change.listed]
    try:
        client = p.members.client(Access.of(at), caller.bearer)
    except InvalidField:
        raise copies.not_here(service) from None
    try:
        said = await client.change_federation(method, service.annotations.get(ORIGIN_SERVICE, ""), body)
    except (BadRequest, Forbidden, NotFound):
        raise
    except OscarError:
        raise copies.not_here(service) from None
    topology = form.star if said.get("topology") == Topology.STAR.value else said.get("topology")
    rest = {key: value for key, value in said.items() if key not in {"topology", "members"}}
    return {"topology": topology, form.members: said.get("members") or [], **rest}


def _read(data: Mapping[str, Any]) -> Change:
    plain = dict(fold_keys(Change, data))
    for name, in_one in (("clusters", _clusters), ("storage_providers", _providers)):
        if name in plain:
            plain[name] = in_one(plain[name])
    try:
        return Change.model_validate(plain)
    except ValidationError as error:
        raise invalid_field(error) from None


def _clusters(value: Any) -> Any:
    """The map of clusters: the contract's file shows a list of them, each with its id or under it."""
    if not isinstance(value, list):
        return value
    found: dict[str, Any] = {}
    for item in value:
        if not isinstance(item, Mapping):
            return value
        plain = {str(key).lower(): inner for key, inner in item.items()}
        name = next((plain[key] for key in ("cluster_id", "id", "name") if plain.get(key)), None)
        if name is not None:
            found[str(name)] = item
        else:
            found |= {str(key): inner for key, inner in item.items()}
    return found


def _providers(value: Any) -> Any:
    """The providers: a list of blocks of them is as good as one block."""
    if not isinstance(value, list):
        return value
    merged: dict[str, Any] = {}
    for block in value:
        if not isinstance(block, Mapping):
            return value
        for kind, defined in fold_keys(StorageProviders, block).items():
            merged[kind] = {**merged.get(kind, {}), **(defined if isinstance(defined, Mapping) else {})}
    return merged


def _require(change: Change, form: Form) -> list[Replica]:
    if change.members is None and change.replicas is None:
        raise BadRequest(
            f"{form.members} is missing", field=form.members, fix=f'send {{"{form.members}": [...]}}'
        )
    if not change.listed and not change.clusters and change.storage_providers is None:
        raise BadRequest(f"{form.members} is empty", field=form.members, fix="list at least one")
    return change.listed


def _require_match(present: Sequence[Replica], wanted: Container[Any], form: Form) -> None:
    if not any(member.identity in wanted for member in present):
        raise NotFound(f"The service has none of these {form.members}", field=form.members)


def _full(service: Service, listed: Sequence[Replica]) -> list[Replica]:
    """With the names that they leave out: the service's own."""
    return copies.named(service.model_copy(update={"replicas": list(listed), "federation": None})).replicas


def _all(service: Service) -> list[Replica]:
    """All that the service has written down, in its order."""
    listed = service.federation.members if service.federation else []
    return once_each([*listed, *service.replicas])


def _with(
    service: Service,
    wanted: Sequence[Replica],
    change: Change,
    places: Mapping[tuple[str, str, str], Replica] | None = None,
) -> Service:
    """The service with these members, and with the clusters and providers of the change.

    Without a topology nobody makes copies: what is added then are replicas.
    """
    unique = once_each(wanted)
    update: dict[str, Any] = {}
    if service.federation is not None and service.topology is not Topology.NONE:
        update["federation"] = service.federation.model_copy(update={"members": unique})
        update["replicas"] = []
    else:
        written = {member.identity for member in service.federation.members} if service.federation else set()
        written |= {new.identity for old, new in (places or {}).items() if old in written}
        if service.federation is not None:
            members = [member for member in unique if member.identity in written]
            update["federation"] = service.federation.model_copy(update={"members": members})
        update["replicas"] = [member for member in unique if member.identity not in written]
    if change.clusters:
        update["clusters"] = {**service.clusters, **change.clusters}
    if change.storage_providers is not None:
        update["storage_providers"] = change.storage_providers
    return service.model_copy(update=update)


async def _shown(p: Platform, caller: Caller, known: Known, form: Form) -> dict[str, Any]:
    service = known.service
    word = form.star if service.topology is Topology.STAR else service.topology.value
    listed = sorted(_all(service), key=lambda replica: replica.priority)
    answer: dict[str, Any] = {"topology": word, form.members: [_member(replica) for replica in listed]}
    pending = [copy for copy in await p.copies.of_service(known.row.id) if copy.pending]
    if pending:
        trusted = may(caller, Action.CHANGE, known.thing)
        answer["pending"] = [_pending(copy, trusted=trusted) for copy in pending]
    return answer


def _member(replica: Replica) -> dict[str, Any]:
    # Headers may hold credentials for the member: their names are shown, their values are not.
    shown = replica.model_dump(mode="json")
    if replica.headers:
        shown["headers"] = dict.fromkeys(replica.headers, "hidden")
    return {key: value for key, value in shown.items() if value not in ("", {})}


def _pending(copy: Copy, *, trusted: bool) -> dict[str, Any]:
    shown = {
        "type": "oscar",
        "cluster_id": copy.cluster_id,
        "service_name": copy.name,
        "change": "apply" if copy.wanted else "remove",
        "tries": copy.tries,
    }
    # Words about addresses and accounts are for who gave them.
    return shown | ({"problem": copy.problem} if trusted and copy.problem else {})


# What copies ask for.


async def sign_result(
    p: Platform, key: str, name: str, wanted: Wanted, *, trace: Place | None = None
) -> dict[str, Any]:
    """An address at which a copy may store one result in the store here, for some minutes; none when it is there.

    Args:
        p: the platform.
        key: the copy's.
        name: of the service.
        wanted: what for.
        trace: the span of the job there.

    Raises:
        Unauthorized (401): that is no copy's key. Forbidden (403): there is no output of the service.
    """
    service = (await _of_copy(p, key, name)).service
    if wanted.operation != "upload":
        raise Forbidden("Copies of a service only store results here", field="operation")
    if not wanted.key or len(wanted.key.encode()) > _KEY_BYTES:
        raise InvalidField("A key has 1 to 1024 bytes", field="key")
    private = service.bucket_list if service.isolation_level == "USER" else []
    places = {
        (bucket, place.folder)
        for place in service.output
        if service.is_own_store(place)
        for bucket in (place.bucket, *private)
    }
    if not any(bucket == wanted.bucket and matches(folder, wanted.key) for bucket, folder in places):
        raise Forbidden(f"{wanted.bucket}/{wanted.key} lies in no output of the service", field="key")
    headers = {"Content-Type": wanted.content_type, f"x-amz-meta-{HOPS_METADATA}": str(wanted.hops)}
    if wanted.job:
        # As jobs here do it: a stage-out that is repeated writes, and starts others, once.
        check_id(wanted.job, field="job")
        headers[f"x-amz-meta-{PRODUCER_METADATA}"] = wanted.job
        with contextlib.suppress(ObjectNotFound):
            there, metadata = await p.objects.metadata(wanted.bucket, wanted.key)
            if metadata.get(PRODUCER_METADATA) == wanted.job:
                return {"url": "", "method": "", "headers": {}, "etag": there.etag}
    if trace is not None and p.upkeep is not None:
        # A MinIO tells nothing of its requests' headers; the built-in store reads `traceparent` itself.
        headers[f"x-amz-meta-{TRACE_METADATA}"] = trace.text()
    url = await storage.sign(p, wanted.bucket, wanted.key, method="PUT", expires=_RESULT_S, headers=headers)
    if url is None:
        raise NotFound(f"The bucket {wanted.bucket} is gone", field="bucket")
    return {"url": url, "method": "PUT", "headers": headers, "etag": ""}


async def token_for_copy(p: Platform, key: str, name: str) -> dict[str, Any]:
    """An access token of the service's owner, with which a copy in a mesh gives jobs to other members.

    Raises:
        Unauthorized (401): that is no copy's key. Forbidden (403): the service is no mesh.
        RefreshTokenInvalid (400), Unavailable (503).
    """
    known = await _of_copy(p, key, name)
    if known.service.topology is not Topology.MESH:
        raise Forbidden("Only members of a mesh give jobs to one another")
    token = await p.tokens.bearer(known.row.id, copies.given_token(known.row))
    return {"access_token": token, "expires_in": int(p.tokens.seconds_left(known.row.id))}


async def _of_copy(p: Platform, key: str, name: str) -> Known:
    copy = await p.copies.by_key(key) if key else None
    known = await services.by_id(p, copy.service_id) if copy and copy.service_id else None
    if known is None or known.row.name != name:
        error = Unauthorized(
            "That is the key of no copy of this service", headers={"WWW-Authenticate": "X-Federation-Key"}
        )
        error.guess = bool(key)
        raise error
    return known
