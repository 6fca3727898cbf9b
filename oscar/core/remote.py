"""One job on another cluster: giving it away, asking after it, ending it, reading its log.

Called by `core.delegation`, and by `core.jobs` for logs; calls `oscar.client`. Credentials are tried in the order of
OSCAR 4: a token from the service's refresh token, the caller's own, the account of the cluster, the member service's
token that this account may read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from oscar import telemetry
from oscar.compute.base import LogLine
from oscar.core import copies
from oscar.core.members import Access, certainly_unsent
from oscar.core.platform import Known, Platform
from oscar.errors import (
    BadRequest,
    InvalidField,
    JobNotFound,
    MemberError,
    NotFound,
    OscarError,
    RefreshTokenInvalid,
    RunNotFound,
    ServiceNotFound,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from oscar.model.federation import ORIGIN_CLUSTER, ORIGIN_SERVICE, Replica, Topology
from oscar.model.job import Job
from oscar.model.trace import Place

if TYPE_CHECKING:
    from oscar.auth.exchange import Fresh
    from oscar.client import Client
    from oscar.client import Job as RemoteJob

log = telemetry.get("delegation")

T = TypeVar("T")

_TOKENS = 500
"""Tokens of members' services that are kept."""
_ANSWERED_NO = {400, 403, 404, 405, 409, 413, 415, 422, 429, 431, 501, 507}
"""Statuses with which a server certainly has not taken a job."""
_ASK_AGAIN = {500, 503}
"""With these it may have; its own word on the job's id tells."""
_LOST = 404


class Sent(StrEnum):
    """What became of an attempt to give a job away."""

    ACCEPTED = "accepted"
    """The member has it, now or since an earlier attempt."""
    DONE = "done"
    """An endpoint has taken the event; that is all that it ever says."""
    REFUSED = "refused"
    """The member certainly does not have it."""
    UNKNOWN = "unknown"
    """Nobody knows: it is asked again by the job's id."""
    BLOCKED = "blocked"
    """Nobody was asked: the service's owner has no valid token."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The same with the reason, for people, and the member's word on the job."""

    sent: Sent
    words: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A member as a delegation keeps it."""

    replica: Replica
    access: Access

    @classmethod
    def of(cls, known: Known, replica: Replica) -> Target:
        """The member of a service."""
        if replica.type == "endpoint":
            return cls(replica, Access(replica.url, verify=replica.ssl_verify))
        access = Access.of(known.service.clusters[replica.cluster_id])
        return cls(
            replica,
            Access(access.endpoint, access.user, access.password, access.verify and replica.ssl_verify),
        )

    @classmethod
    def read(cls, data: Any) -> Target:
        """From `as_dict`."""
        return cls(Replica.model_validate(data["replica"]), Access.read(data["access"]))

    def as_dict(self) -> dict[str, Any]:
        """For the Store, which seals it."""
        return {"replica": self.replica.model_dump(mode="json"), "access": self.access.as_dict()}

    @property
    def name(self) -> str:
        """What people call it."""
        return self.replica.url if self.replica.type == "endpoint" else f'cluster "{self.replica.cluster_id}"'


class Remote:
    """Calls of members about jobs."""

    def __init__(self, platform: Platform) -> None:
        """Work for that platform."""
        self._p = platform
        self._tokens: dict[tuple[str, str], str] = {}

    # Giving away.

    async def send(
        self,
        target: Target,
        known: Known,
        job: Job,
        event: bytes,
        *,
        origin: str,
        before: int,
        trace: Place | None = None,
    ) -> Outcome:
        """Give the job to a member.

        Args:
            target: the member.
            known: the service here.
            job: the job.
            event: its event, as another cluster gets it.
            origin: what this cluster is called there.
            before: attempts that may have reached it already.
            trace: the span that the member's are below.
        """
        if target.replica.type == "endpoint":
            return await self._post(target, job, event, origin=origin, before=before, trace=trace)
        try:
            await self._as_owner(
                target,
                known,
                job.id,
                lambda client: client.delegate(
                    *(target.replica.service_name, event),
                    job_id=job.id,
                    origin=origin,
                    hops=job.hops,
                    trace=trace,
                ),
            )
        except (RefreshTokenInvalid, InvalidField) as error:
            if isinstance(error, RefreshTokenInvalid) or error.field in {"OIDC_CLIENT_ID", "OIDC_ISSUERS"}:
                return Outcome(Sent.BLOCKED, error.message)
            return await self._judge(target, known, job, error, before)
        except OscarError as error:
            return await self._judge(target, known, job, error, before)
        return Outcome(Sent.ACCEPTED)

    async def _judge(self, target: Target, known: Known, job: Job, error: OscarError, before: int) -> Outcome:
        words = f"{target.name}: {error.message}"
        if isinstance(error, Unreachable):
            return Outcome(Sent.REFUSED if certainly_unsent(error) and not before else Sent.UNKNOWN, words)
        if isinstance(error, Unauthorized) or error.status in _ANSWERED_NO:
            return Outcome(Sent.UNKNOWN if before else Sent.REFUSED, words)
        if error.status in _ASK_AGAIN:
            try:
                await self.ask(target, known, job, wait=None)
            except JobNotFound:
                # It has answered us and does not know the id: nothing of ours is on its way.
                return Outcome(Sent.REFUSED, words)
            except OscarError:
                return Outcome(Sent.UNKNOWN, words)
            return Outcome(Sent.ACCEPTED)
        return Outcome(Sent.UNKNOWN, words)

    async def _post(
        self, target: Target, job: Job, event: bytes, *, origin: str, before: int, trace: Place | None
    ) -> Outcome:
        """Endpoints know no ids, so what may have arrived is never sent again."""
        if before:
            return Outcome(Sent.UNKNOWN, f"{target.name}: its answer was lost")
        headers = {
            "Content-Type": "application/json",
            **target.replica.headers,
            "X-Delegated-Job-ID": job.id,
            "X-Delegated-From": origin,
            "Idempotency-Key": job.id,
            **(trace.headers() if trace else {}),
        }
        try:
            answer = await self._p.members.post(
                target.replica.url, event, headers=headers, verify=target.access.verify
            )
        except InvalidField as error:
            return Outcome(Sent.REFUSED, f"{target.name}: {error.message}")
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            return Outcome(Sent.REFUSED, f"{target.name} can't be reached: {error}")
        except httpx2.HTTPError as error:
            return Outcome(Sent.UNKNOWN, f"{target.name} gave no answer: {type(error).__name__}")
        words = f"{target.name} answered {answer.status_code}"
        if answer.is_success:
            return Outcome(Sent.DONE, words)
        refused = answer.status_code < 500 or answer.status_code in {501, 503, 505, 507}  # noqa: PLR2004
        return Outcome(Sent.REFUSED if refused else Sent.UNKNOWN, words)

    # Asking.

    async def ask(self, target: Target, known: Known | None, job: Job, *, wait: float | None) -> RemoteJob:
        """The job as the member has it.

        Args:
            target: the member.
            known: the service here; None when it is gone.
            job: the job.
            wait: seconds to wait there for its end.

        Raises:
            JobNotFound: the member certainly does not have it. OscarError: it can't be asked.
        """
        service = target.replica.service_name

        async def work(client: Client) -> RemoteJob:
            try:
                return await client.job(service, job.id, wait=wait or 0)
            except ServiceNotFound as error:
                raise JobNotFound(error.message) from None
            except JobNotFound:
                raise
            except NotFound:
                # An OSCAR 4 has no such route, but lists its jobs by their names.
                return await _listed(client, service, job.id)

        return await self._as_owner(target, known, job.id, work)

    async def cancel(self, target: Target, known: Known | None, job: Job) -> None:
        """Ask the member to end the job."""
        service = target.replica.service_name
        await self._as_owner(target, known, job.id, lambda client: client.cancel(service, job.id))

    async def logs(
        self, target: Target, known: Known, job: Job, *, follow: bool, tail: int | None
    ) -> AsyncIterator[LogLine]:
        """What the job has written there.

        Raises:
            MemberError (502): the member can't be asked.
        """
        service = target.replica.service_name
        try:
            if not follow:
                text = await self._as_owner(
                    target,
                    known,
                    job.id,
                    lambda client: client.logs(service, job.id, timestamps=True, tail=tail),
                )
                for line in text.splitlines():
                    yield LogLine.read(line)
                return
            async for bearer in self.credentials(target, known, job.id):
                client = self._p.members.client(target.access, bearer)
                try:
                    async for item in client.follow(service, job.id, timestamps=True, tail=tail):
                        if isinstance(item, str):
                            yield LogLine.read(item)
                except Unauthorized:
                    continue
                return
        except NotFound as error:
            raise RunNotFound(error.message) from None
        except OscarError as error:
            raise MemberError(f"The log is on the {target.name}: {error.message}") from None

    async def figures(self, target: Target, known: Known) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the member says of itself, and its list of the service's jobs."""

        async def work(client: Client) -> tuple[dict[str, Any], dict[str, Any]]:
            status = await client.status()
            try:
                page = await client.jobs_page(target.replica.service_name)
            except NotFound:
                return status, {}
            listed = {summary.name: summary.model_dump(mode="json") for summary in page.jobs}
            return status, {"jobs": listed}

        return await self._as_owner(target, known, None, work)

    # Credentials.

    async def _as_owner(
        self,
        target: Target,
        known: Known | None,
        job_id: str | None,
        work: Callable[[Client], Awaitable[T]],
    ) -> T:
        """Do that with the first credentials that the member takes.

        Raises:
            Unauthorized: it takes none. Whatever `work` raises.
        """
        problem = Unauthorized("there are no credentials for it")
        async for bearer in self.credentials(target, known, job_id):
            try:
                return await work(self._p.members.client(target.access, bearer))
            except Unauthorized as error:
                problem = error
                self._tokens.pop((target.access.endpoint, target.replica.service_name), None)
        raise problem

    async def credentials(
        self, target: Target, known: Known | None, job_id: str | None
    ) -> AsyncIterator[str | None]:
        """Tokens to try in their order; None stands for the cluster's account.

        Raises:
            RefreshTokenInvalid: the owner's token was withdrawn, so nothing is tried in his name.
        """
        bearer = await self._bearer(known)
        if bearer:
            yield bearer
        lent = self._p.tokens.lent(job_id) if job_id else None
        if lent:
            yield lent
        if target.access.user:
            yield None
            token = await self._service_token(target)
            if token:
                yield token

    async def _bearer(self, known: Known | None) -> str | None:
        if known is None or known.service.topology is Topology.NONE:
            return None
        try:
            if known.service.is_copy:
                return await self._from_origin(known)
            given = copies.given_token(known.row)
            return await self._p.tokens.bearer(known.row.id, given) if given else None
        except (Unavailable, MemberError, Unauthorized) as error:
            log.warning("no token for members", service=known.row.name, reason=error.message)
            return None

    async def _from_origin(self, known: Known) -> str | None:
        """A copy's token: its origin has the refresh token and hands out none of it."""
        service = known.service
        cluster = service.annotations.get(ORIGIN_CLUSTER, "")
        name = service.annotations.get(ORIGIN_SERVICE, "")
        provider = service.storage_providers.minio.get(cluster)
        at = service.clusters.get(cluster)
        if provider is None or at is None or not at.endpoint:
            return None
        client = self._p.members.client(Access.of(at))

        async def ask() -> Fresh:
            from oscar.auth.exchange import Fresh

            said = await client.federation_token(name, provider.secret_key)
            return Fresh(str(said["access_token"]), float(said["expires_in"]), None)

        return await self._p.tokens.from_origin(known.row.id, provider.secret_key, ask)

    async def _service_token(self, target: Target) -> str | None:
        """The token of the member's service, which the account may read: OSCAR 4 takes no password for jobs."""
        key = (target.access.endpoint, target.replica.service_name)
        if key not in self._tokens:
            try:
                found = await self._p.members.client(target.access).definition(target.replica.service_name)
            except (Unauthorized, BadRequest, NotFound):
                return None
            if len(self._tokens) >= _TOKENS:
                self._tokens.clear()
            self._tokens[key] = str(found.get("token") or "")
        return self._tokens[key] or None


async def _listed(client: Client, service: str, job_id: str) -> RemoteJob:
    from oscar.client import Job as RemoteJob

    async for summary in client.jobs(service):
        if summary.name == job_id:
            return RemoteJob(
                job_id=job_id,
                service=service,
                status=summary.status,
                creation_time=summary.creation_time,
                start_time=summary.start_time,
                finish_time=summary.finish_time,
            )
    raise JobNotFound(f'there is no job "{job_id}"')
