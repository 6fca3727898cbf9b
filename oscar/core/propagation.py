"""Telling members what they should have: one call for each pending copy, at once and again until it is done.

`push` is called by `core.services` behind each change, `make` and `unmake` when a federated service is created;
`Propagator` tells whoever could not be told, from the durable table. Every call may be repeated: a copy is known by its
mark, and a service of the same name that has another one is never changed or removed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from typing import TYPE_CHECKING, Any

from oscar import telemetry
from oscar.core.copies import Bearers, cluster_of, given_token, stored
from oscar.core.members import WITHIN, Access
from oscar.core.platform import Platform
from oscar.errors import (
    Conflict,
    InvalidField,
    MemberError,
    NotFound,
    OscarError,
    RefreshTokenInvalid,
    ServiceNotFound,
    Unauthorized,
    Unavailable,
)
from oscar.model.copies import PRESIGN, Mark, Origin, copy_of, name_of
from oscar.model.federation import COPY_ID, ORIGIN_CLUSTER, ORIGIN_SERVICE, Topology
from oscar.model.job import RetryPolicy, backoff
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.state.copies import Copy

if TYPE_CHECKING:
    from oscar.client import Client

log = telemetry.get("federation")

UNDO = 120.0
"""Seconds after which copies of a service that was never made are removed again."""
FEATURE = "federation"
"""What `GET /system/info` of a server says that gives copies addresses for their results."""
_HOLD = 90.0
_LOOK = 15.0
_DRAIN = 5.0
_POLICY = RetryPolicy(delay=5, max_delay=300)


class _Waits(Exception):
    """It is not time yet."""


async def make(p: Platform, copies: Sequence[Copy], service: Service, tokens: Bearers) -> None:
    """Make the copies of a service that is being created, all of them.

    Raises:
        Unauthorized (401): a member does not take the credentials. Conflict (409): it has another service of that name.
        MemberError (502): it refuses otherwise, or can't be reached.
    """
    outcomes = await asyncio.gather(
        *(_bounded(_apply(p, copy, service, tokens), copy) for copy in copies), return_exceptions=True
    )
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for outcome in failed:
        if not isinstance(outcome, OscarError):
            raise outcome
    if failed:
        raise failed[0]


async def push(
    p: Platform, ids: Collection[str], tokens: Bearers, service: Service | None = None
) -> list[Copy]:
    """Tell the members of pending copies, each for at most `WITHIN` seconds; those that are pending then.

    Args:
        p: the platform.
        ids: of the copies.
        tokens: of who caused the change.
        service: the one that they are copies of; looked up when absent.
    """
    taken = await p.copies.take(hold=_HOLD, ids=ids, limit=len(ids) or 1)
    await asyncio.gather(*(_tell(p, copy, tokens, service) for copy in taken))
    p.signals.federation.set()
    return [copy for copy in await p.copies.get(ids) if copy.pending]


async def _tell(p: Platform, copy: Copy, tokens: Bearers, service: Service | None = None) -> None:
    try:
        if copy.wanted:
            known = service or await _service(p, copy)
            if known is not None:
                await _bounded(_apply(p, copy, known, tokens), copy)
        else:
            await _bounded(_remove(p, copy, tokens), copy)
    except _Waits as why:
        await p.copies.failed(copy, str(why), _DRAIN)
    except OscarError as error:
        pause = backoff(copy.tries + 1, _POLICY)
        log.warning(
            "member not told",
            service=copy.service_name,
            cluster=copy.cluster_id,
            problem=error.message,
            again_in=round(pause),
        )
        await p.copies.failed(copy, error.message, pause)
    else:
        if await p.copies.done(copy):
            log.info(
                "copy made" if copy.wanted else "copy removed",
                service=copy.service_name,
                cluster=copy.cluster_id,
                copy=copy.name,
            )


async def _service(p: Platform, copy: Copy) -> Service | None:
    row = await p.services.by_id(copy.service_id) if copy.service_id else None
    return stored(row) if row else None


async def _bounded(work: Any, copy: Copy) -> None:
    try:
        async with asyncio.timeout(WITHIN):
            await work
    except TimeoutError:
        raise MemberError(f'The cluster "{copy.cluster_id}" did not answer within {WITHIN:g} s') from None


# One member.


async def _apply(p: Platform, copy: Copy, service: Service, tokens: Bearers) -> None:
    member = next(
        (
            each
            for each in service.copies
            if (each.cluster_id, name_of(service, each)) == (copy.cluster_id, copy.name)
        ),
        None,
    )
    if member is None:
        raise MemberError(f'The service has no member "{copy.cluster_id}" any more')
    async with _admitted(p, copy, tokens) as (client, by_token):
        info = await client.info()
        ours = FEATURE in (info.get("features") or ())
        body = copy_of(
            service,
            member,
            origin=Origin(cluster_of(p, service), p.url),
            mark=Mark(copy.id, copy.version, copy.key),
            store=await _store(p, service, copy, ours=ours),
            # Ours ask their origin for tokens, so that the refresh token never leaves it.
            refresh_token=service.topology is Topology.MESH and not ours,
        )
        owner = None if by_token else service.owner
        if by_token:
            # Whose it is there, the token says.
            body.pop("owner", None)
        await _put(client, copy, body, owner, cluster_of(p, service))


async def _put(client: Client, copy: Copy, body: dict[str, Any], owner: str | None, home: str) -> None:
    try:
        present = await client.definition(copy.name, owner=owner)
    except NotFound:
        try:
            await client.create(body)
        except OscarError as error:
            if error.code == "already_exists":
                raise _foreign(copy) from None
            raise
        return
    marks = present.get("annotations") or {}
    if marks.get(COPY_ID) != copy.id and (
        marks.get(ORIGIN_CLUSTER) != home or marks.get(ORIGIN_SERVICE) != copy.service_name
    ):
        raise _foreign(copy)
    try:
        await client.update(body)
    except ServiceNotFound:
        # Gone in between.
        await client.create(body)


async def _store(p: Platform, service: Service, copy: Copy, *, ours: bool) -> MinIOProvider:
    """The origin's store as the member gets it: for ours a place that signs addresses, for OSCAR 4 the owner's keys."""
    if ours:
        return MinIOProvider(
            endpoint=f"{p.url}/system/federation/{service.name}/{PRESIGN}",
            access_key=copy.id,
            secret_key=copy.key,
        )
    keys = await p.buckets.credential_of(service.owner)
    return p.store.model_copy(update={"access_key": keys.access_key, "secret_key": keys.secret_key})


def _foreign(copy: Copy) -> Conflict:
    return Conflict(
        f'The cluster "{copy.cluster_id}" has a service "{copy.name}" that is no copy of this one',
        field="federation.members",
        fix="name another service_name for this member",
    )


async def _remove(p: Platform, copy: Copy, tokens: Bearers) -> None:
    going = await p.delegations.count(copy.service_id, copy.cluster_id) if copy.service_id else 0
    if going and copy.service_id and await p.services.by_id(copy.service_id) is not None:
        raise _Waits(f"it has {going} jobs of the service, whose end is waited for")
    async with _admitted(p, copy, tokens) as (client, by_token):
        owner = None if by_token else copy.owner
        try:
            present = await client.definition(copy.name, owner=owner)
        except NotFound:
            if copy.service_id is None and copy.tries == 0:
                # An answer was lost when it was made: the request may still be on its way.
                raise _Waits("looked for once more") from None
            return
        if (present.get("annotations") or {}).get(COPY_ID) != copy.id:
            log.info("left alone: not our copy", cluster=copy.cluster_id, service=copy.name)
            return
        with contextlib.suppress(NotFound):
            await client.delete(copy.name, owner=owner)


@contextlib.asynccontextmanager
async def _admitted(p: Platform, copy: Copy, tokens: Bearers) -> AsyncIterator[tuple[Client, bool]]:
    """A client that the member lets in, and whether a token made it so; errors in words about the member."""
    access = Access.read(copy.access)
    problem: OscarError | None = None
    try:
        async for bearer in _credentials(p, copy, access, tokens):
            client = p.members.client(access, bearer)
            try:
                await client.info()
            except Unauthorized as error:
                problem = error
                continue
            yield client, bearer is not None
            return
    except (Conflict, MemberError, InvalidField, RefreshTokenInvalid) as error:
        if isinstance(error, InvalidField) and error.field != "clusters":
            raise _refused(copy, error) from error
        raise
    except Unauthorized as error:
        problem = error
    except OscarError as error:
        raise _refused(copy, error) from error
    raise Unauthorized(
        f'The cluster "{copy.cluster_id}" does not take the credentials of the service\'s owner'
        + (f": {problem.message}" if problem else ""),
        field=f"clusters.{copy.cluster_id}",
        fix="give an account of that cluster, or a refresh token of an issuer that it trusts",
    )


def _refused(copy: Copy, error: OscarError) -> MemberError:
    return MemberError(
        f'The cluster "{copy.cluster_id}" did not take the service: {error.message}',
        field=f"clusters.{copy.cluster_id}",
        fix=error.fix,
    )


async def _credentials(p: Platform, copy: Copy, access: Access, tokens: Bearers) -> AsyncIterator[str | None]:
    """Tokens to try, and None for the account."""
    for bearer in tokens.all:
        yield bearer
    given = str(copy.access.get("refresh_token") or "")
    if given and tokens.fresh is None:
        row = await p.services.by_id(copy.service_id) if copy.service_id else None
        try:
            if row is not None and given_token(row) == given:
                yield await p.tokens.bearer(row.id, given)
            else:
                yield (await p.tokens.check(given)).access
        except (RefreshTokenInvalid, Unavailable, InvalidField):
            if not access.user:
                raise
    if access.user:
        yield None


class Propagator:
    """Tells members what they could not be told at once. `run` works until it is cancelled."""

    def __init__(self, platform: Platform) -> None:
        """Work for that platform."""
        self._p = platform

    async def run(self) -> None:
        """Tell until cancelled."""
        news = self._p.signals.federation
        while True:
            news.clear()
            pause = _LOOK
            try:
                while taken := await self._p.copies.take(hold=_HOLD):
                    await asyncio.gather(*(_tell(self._p, copy, Bearers()) for copy in taken))
                due = await self._p.copies.next_due()
                pause = _LOOK if due is None else min(_LOOK, max(0.2, due / 1000))
            except OscarError as error:
                log.warning("the database has to be asked again", error=error.message)
                pause = 1.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await news.wait()
