"""`Client`: every verb of the REST API as a method, with values in and out.

Called by `oscar.cli`, federation, tests and users; calls `client.wire` for requests and `client.transfer`
for files. Routes and bodies are those of `docs/api.md`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2

from oscar.client.federation import Federations
from oscar.client.metrics import MetricsCalls
from oscar.client.records import (
    Bucket,
    BucketContent,
    Job,
    JobPage,
    JobSummary,
    Presigned,
    Submitted,
    Volume,
    without_nulls,
)
from oscar.client.transfer import Storage
from oscar.client.wire import Wire, path
from oscar.errors import NotFound, Unauthorized, Unreachable
from oscar.model.service import Service, definition, parse_service
from oscar.model.storage import MinIOProvider

TIMEOUT = 60.0
"""Seconds that an answer may take, except of calls that run a function."""
LONG_POLL = 30.0
EXIT_CODE = "X-Oscar-Exit-Code"
"""Header of the answer to a call whose script failed."""
OUTPUT = "X-Oscar-Output"
"""Header that tells an answer that is the log from one that is base64."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a synchronous call gave: `body` decoded, `raw` as it came.

    One output file is its content, several are a zip archive, none is the log; so it is when the script failed.
    `decoded` tells whether the answer was base64 at all.
    """

    body: bytes
    raw: bytes
    decoded: bool
    exit_code: int = 0
    """The script's own; the service did what it could."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` did: made the service or changed it; `warnings` name what the engine can't honour."""

    created: bool
    warnings: tuple[str, ...] = ()


class Client(MetricsCalls, Federations):
    """A user of one server.

    Args:
        endpoint: the server's address, such as `http://127.0.0.1:8080`.
        user: name for basic authentication.
        password: its password.
        token: a bearer token (OIDC, or a service's own) instead of user and password.
        verify: whether the server's certificate is checked.
        timeout: seconds that an answer may take.
        transport: another way to the server than the network, such as `httpx2.ASGITransport`.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        verify: bool = True,
        timeout: float = TIMEOUT,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._wire = Wire(
            endpoint,
            user=user,
            password=password,
            token=token,
            verify=verify,
            timeout=timeout,
            transport=transport,
        )
        self._service_tokens: dict[str, str] = {}

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return self._wire.endpoint

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._wire.close()

    # --- the server ---

    async def health(self) -> bool:
        """Whether the server answers and is well.

        Raises:
            Unreachable: there is no answer.
        """
        return (await self._wire.request("GET", "/health")).status_code == httpx2.codes.OK

    async def info(self) -> dict[str, Any]:
        """Version and architecture: `types.Info`."""
        return await self._object("GET", "/system/info")

    async def config(self) -> dict[str, Any]:
        """Configuration, and the caller's own keys of the object store (`types.ConfigForUser`): a secret."""
        return await self._object("GET", "/system/config")

    async def status(self) -> dict[str, Any]:
        """Capacity and condition of the server: `types.StatusInfo`."""
        return await self._object("GET", "/system/status")

    async def allow_images(self, places: Sequence[str]) -> dict[str, Any]:
        """Set which images services may use (`docs/images.md`); none for all. For administrators.

        Returns:
            The new configuration.
        """
        body = {"allowed_image_repositories": list(places)}
        return await self._object("PUT", "/system/config", json=body)

    async def system_logs(
        self, *, tail: int = 1000, everything: bool = False, page: str | None = None
    ) -> dict[str, Any]:
        """A page of the server's own log: `logs`, and `next_page` with earlier entries. For administrators."""
        params: dict[str, Any] = {"tail": tail, "all": everything, **_given(page=page)}
        return await self._object("GET", "/system/logs", params=params)

    async def quota(self, user: str | None = None) -> dict[str, Any]:
        """What a user may have and has: `types.QuotaResponse`. Others than oneself for administrators."""
        where = path("system", "quotas", "user", user) if user else "/system/quotas/user"
        return await self._object("GET", where)

    async def set_quota(self, user: str, limits: Mapping[str, Any]) -> dict[str, Any]:
        """Set some of a user's limits (`types.QuotaUpdateRequest`); what holds then. For administrators."""
        return await self._object("PUT", path("system", "quotas", "user", user), json=dict(limits))

    async def _text(self, method: str, where: str, **options: Any) -> str:
        return (await self._wire.request(method, where, **options)).text

    async def _object(self, method: str, where: str, **options: Any) -> dict[str, Any]:
        data: dict[str, Any] = await self._json(method, where, **options)
        return data

    async def _json(self, method: str, where: str, **options: Any) -> Any:
        return (await self._wire.request(method, where, **options)).json()

    # --- services ---

    async def definitions(self) -> list[dict[str, Any]]:
        """The definitions of all services that the caller may see, as the server sends them."""
        return await self._json("GET", "/system/services") or []

    async def services(self) -> list[Service]:
        """All services that the caller may see."""
        return [parse_service(data) for data in await self.definitions()]

    async def definition(self, name: str, *, owner: str | None = None) -> dict[str, Any]:
        """A service's definition as the server sends it.

        Raises:
            ServiceNotFound: there is none that the caller may see.
        """
        return await self._object("GET", path("system", "services", name), params=_given(owner=owner))

    async def service(self, name: str, *, owner: str | None = None) -> Service:
        """A service. Raises `ServiceNotFound`."""
        return parse_service(await self.definition(name, owner=owner))

    async def create(self, service: Service | Mapping[str, Any]) -> list[str]:
        """Make a new service.

        Returns:
            what of it the server's engine can't honour.

        Raises:
            InvalidField: naming the field at fault.
            AlreadyExists: there is one of that name.
        """
        return _warnings(await self._wire.request("POST", "/system/services", json=_body(service)))

    async def update(self, service: Service | Mapping[str, Any]) -> list[str]:
        """Replace a service's definition; its token is kept, and secrets that are left blank.

        Returns:
            what of it the server's engine can't honour.

        Raises:
            InvalidField, ServiceNotFound, Forbidden.
        """
        return _warnings(await self._wire.request("PUT", "/system/services", json=_body(service)))

    async def apply(self, service: Service | Mapping[str, Any]) -> Applied:
        """Create the service, or update the one of that name. Raises as `create` and `update`."""
        body = _body(service)
        try:
            await self.definition(str(body["name"]))
        except NotFound:
            return Applied(created=True, warnings=tuple(await self.create(body)))
        return Applied(created=False, warnings=tuple(await self.update(body)))

    async def delete(self, name: str, *, data: bool = False, owner: str | None = None) -> None:
        """Remove a service with the empty buckets that it made; with `data` also those that hold objects.

        Raises:
            ServiceNotFound, Forbidden.
        """
        params = _given(data="true" if data else None, owner=owner)
        await self._wire.request("DELETE", path("system", "services", name), params=params)
        self._service_tokens.pop(name, None)

    # --- exposed services ---

    async def stop(self, name: str, *, owner: str | None = None) -> dict[str, Any]:
        """End a service's replicas until `start`; how it does then. Raises `BadRequest`: it is not exposed."""
        return await self._object(
            "POST", path("system", "services", name, "stop"), params=_given(owner=owner)
        )

    async def start(self, name: str, *, owner: str | None = None) -> dict[str, Any]:
        """Have a stopped service's replicas again. As `stop`."""
        return await self._object(
            "POST", path("system", "services", name, "start"), params=_given(owner=owner)
        )

    async def restart(self, name: str, *, owner: str | None = None) -> dict[str, Any]:
        """Replace a service's replicas, new ones first. As `stop`."""
        return await self._object(
            "POST", path("system", "services", name, "restart"), params=_given(owner=owner)
        )

    async def deployment(self, name: str, *, owner: str | None = None) -> dict[str, Any]:
        """How a service's long-running part does: `types.ServiceDeploymentStatus`."""
        return await self._object(
            "GET", path("system", "services", name, "deployment"), params=_given(owner=owner)
        )

    async def deployment_logs(
        self, name: str, *, timestamps: bool = False, tail: int | None = None, owner: str | None = None
    ) -> dict[str, Any]:
        """What a service's replicas have said: `types.DeploymentLogStream`."""
        params = _given(timestamps="true" if timestamps else None, tailLines=tail, owner=owner)
        return await self._object(
            "GET", path("system", "services", name, "deployment", "logs"), params=params
        )

    # --- calls ---

    async def run(
        self,
        service: str,
        body: bytes = b"",
        *,
        token: str | None = None,
        raw: bool = False,
        owner: str | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Run a service's script on some input and wait for what it gives, be it an exit code other than 0.

        Args:
            service: its name.
            body: the content of the input file.
            token: the service's token; found out by the client when absent.
            raw: send the body as it is (JSON or base64), not encoded by the client.
            owner: which one, when several owners have a service of that name.
            timeout: seconds to wait; None for as long as the server allows.

        Raises:
            ServiceNotFound, TooManyRequests, Unavailable, InvocationTimeout, EngineError.
        """
        response = await self._call(
            path("run", service),
            service,
            token=token,
            content=body if raw else encoded(body),
            headers={"Content-Type": "application/octet-stream"},
            params=_given(owner=owner),
            timeout=httpx2.Timeout(timeout, connect=10.0),
            good=lambda answer: EXIT_CODE in answer.headers,
        )
        if EXIT_CODE in response.headers:
            code = int(response.headers[EXIT_CODE])
            return Result(response.content, response.content, decoded=False, exit_code=code)
        decoded = None if response.headers.get(OUTPUT) == "log" else _decoded(response.content)
        if decoded is None:
            return Result(response.content, response.content, decoded=False)
        return Result(decoded, response.content, decoded=True)

    async def submit(
        self,
        service: str,
        body: bytes = b"",
        *,
        token: str | None = None,
        raw: bool = False,
        idempotency_key: str | None = None,
        callback: str | None = None,
        owner: str | None = None,
    ) -> Submitted:
        """Have a job done.

        Args:
            service: its name.
            body: the content of the input file; empty for an empty JSON object.
            token: the service's token; found out by the client when absent.
            raw: send the body as it is (an event, JSON or base64), not encoded by the client.
            idempotency_key: the same key twice is one job.
            callback: an address that is told of the job's end.
            owner: which one, when several owners have a service of that name.

        Raises:
            ServiceNotFound, BodyTooLarge, StorageFull.
        """
        headers = {"Content-Type": "application/octet-stream"}
        headers |= _given(**{"Idempotency-Key": idempotency_key, "X-Callback-URL": callback})
        content = body if raw else encoded(body) if body else b"{}"
        response = await self._call(
            path("job", service),
            service,
            token=token,
            content=content,
            headers=headers,
            params=_given(owner=owner),
        )
        data = response.json() if response.content.startswith(b"{") else {}
        return Submitted.model_validate({"service": service, **data})

    async def _call(self, where: str, service: str, *, token: str | None, **options: Any) -> httpx2.Response:
        """POST with one's own account, else (OSCAR 4 takes no password here) with the service's token."""
        bearer = token or self._service_tokens.get(service)
        try:
            return await self._wire.request("POST", where, bearer=bearer, **options)
        except Unauthorized:
            if token or self._wire.bearer:
                raise
            self._service_tokens.pop(service, None)
        owner = options.get("params", {}).get("owner")
        found = str((await self.definition(service, owner=owner)).get("token") or "")
        answer = await self._wire.request("POST", where, bearer=found or None, **options)
        self._service_tokens[service] = found
        return answer

    # --- jobs ---

    async def job(self, service: str, job: str, *, wait: float = 0) -> Job:
        """A job; with `wait`, after its end or that many seconds, whichever comes first.

        Raises:
            JobNotFound: there is none that the caller may see.
        """
        params = {"wait": f"{wait:g}s"} if wait else {}
        timeout = httpx2.Timeout(TIMEOUT + wait, connect=10.0)
        where = path("system", "jobs", service, job)
        return Job.model_validate(
            without_nulls(await self._json("GET", where, params=params, timeout=timeout))
        )

    async def wait(self, service: str, job: str) -> Job:
        """A job after its end, however long that takes. Raises as `job`."""
        while True:
            found = await self.job(service, job, wait=LONG_POLL)
            if found.done:
                return found

    async def jobs_page(self, service: str, *, page: str = "") -> JobPage:
        """One page of a service's jobs, newest first. Raises `ServiceNotFound`."""
        data = await self._json("GET", path("system", "logs", service), params=_given(page=page or None))
        jobs = [{"name": name, **(facts or {})} for name, facts in (data.get("jobs") or {}).items()]
        return JobPage.model_validate({**without_nulls(data), "jobs": jobs})

    async def jobs(self, service: str) -> AsyncIterator[JobSummary]:
        """All jobs of a service, page after page. Raises `ServiceNotFound`."""
        page = ""
        while True:
            found = await self.jobs_page(service, page=page)
            for job in found.jobs:
                yield job
            if not found.next_page or found.next_page == page:
                return
            page = found.next_page

    async def cancel(self, service: str, job: str) -> None:
        """Stop a job. Raises `JobNotFound`, and `Conflict` when it has ended."""
        await self._wire.request("POST", path("system", "jobs", service, job, "cancel"))

    async def rerun(self, service: str, job: str) -> Submitted:
        """Have a job done again with the same input, as a new job. Raises `JobNotFound`."""
        data = await self._json("POST", path("system", "jobs", service, job, "rerun"))
        return Submitted.model_validate({"service": service, **data})

    async def delete_job(self, service: str, job: str) -> None:
        """Remove a job and its log. Raises `JobNotFound`."""
        await self._wire.request("DELETE", path("system", "logs", service, job))

    async def delete_jobs(self, service: str, *, everything: bool = False) -> None:
        """Remove the succeeded jobs of a service; with `everything` also failed, running and waiting ones."""
        params = {"all": "true"} if everything else {}
        await self._wire.request("DELETE", path("system", "logs", service), params=params)

    async def logs(self, service: str, job: str, *, timestamps: bool = False, tail: int | None = None) -> str:
        """What a job has written so far. Raises `JobNotFound`."""
        params = _given(timestamps="true" if timestamps else None, tail=tail)
        return (await self._wire.request("GET", path("system", "logs", service, job), params=params)).text

    async def follow(
        self, service: str, job: str, *, timestamps: bool = False, tail: int | None = None
    ) -> AsyncIterator[str | Job]:
        """The lines that a job writes, as it writes them; the last item is the job after its end.

        Raises:
            JobNotFound: there is no such job.
            Unreachable: the connection broke.
        """
        params = _given(timestamps="true" if timestamps else None, tail=tail, follow="true")
        async with self._wire.stream(
            "GET",
            path("system", "logs", service, job),
            params=params,
            headers={"Accept": "text/event-stream"},
            timeout=httpx2.Timeout(None, connect=10.0),
        ) as response:
            async for event in httpx2.EventSource(response, max_event_size=None):
                if event.event == "end":
                    yield Job.model_validate(without_nulls(json.loads(event.data)))
                    return
                if event.event == "message":
                    yield event.data
        raise Unreachable(f"the log of {job} broke off before the job's end")

    # --- buckets ---

    async def buckets(self) -> list[Bucket]:
        """The buckets that the caller may see."""
        return [Bucket.read(data) for data in await self._json("GET", "/system/buckets") or []]

    async def bucket(self, name: str, *, page: str = "") -> BucketContent:
        """A bucket with one page of its objects. Raises `BucketNotFound`."""
        where = path("system", "buckets", name)
        return BucketContent.read(await self._json("GET", where, params=_given(page=page or None)))

    async def create_bucket(
        self, name: str, *, visibility: str = "private", allowed_users: Sequence[str] = ()
    ) -> None:
        """Make a bucket. Raises `InvalidField`, `AlreadyExists`."""
        await self._wire.request("POST", "/system/buckets", json=_bucket(name, visibility, allowed_users))

    async def update_bucket(self, name: str, *, visibility: str, allowed_users: Sequence[str] = ()) -> None:
        """Change who sees a bucket. Raises `BucketNotFound`, `Forbidden`."""
        await self._wire.request("PUT", "/system/buckets", json=_bucket(name, visibility, allowed_users))

    async def delete_bucket(self, name: str, *, force: bool = False) -> None:
        """Remove an empty bucket; with `force`, with all that it holds.

        Raises:
            BucketNotFound, Forbidden, BucketNotEmpty.
        """
        params = {"force": "true"} if force else {}
        await self._wire.request("DELETE", path("system", "buckets", name), params=params)

    async def presign(
        self,
        bucket: str,
        key: str,
        *,
        operation: str = "download",
        expires_in: int | None = None,
        content_type: str | None = None,
    ) -> Presigned:
        """An address for one `download` or `upload` without other credentials.

        Args:
            bucket: where the object is.
            key: its name.
            operation: `download` or `upload`.
            expires_in: seconds, at most 7 days; None for the server's own figure.
            content_type: that the upload must have.

        Raises:
            InvalidField, BucketNotFound, ObjectNotFound, Forbidden.
        """
        body = {"object_key": key, "operation": operation}
        body |= _given(expires_in=expires_in, content_type=content_type)
        where = path("system", "buckets", bucket, "presign")
        return Presigned.model_validate(without_nulls(await self._json("POST", where, json=body)))

    # --- volumes ---

    async def volumes(self) -> list[Volume]:
        """The caller's volumes; an administrator sees everybody's."""
        return [Volume.read(data) for data in await self._json("GET", "/system/volumes") or []]

    async def volume(self, name: str, *, owner: str | None = None) -> Volume:
        """A volume. Raises `VolumeNotFound`."""
        where = path("system", "volumes", name)
        return Volume.read(await self._json("GET", where, params=_given(owner=owner)))

    async def create_volume(self, name: str, size: str) -> Volume:
        """Make a volume of a size such as `1Gi`. Raises `InvalidField`, `Conflict`."""
        return Volume.read(await self._json("POST", "/system/volumes", json={"name": name, "size": size}))

    async def delete_volume(self, name: str, *, owner: str | None = None) -> None:
        """Remove a volume with all that it holds. Raises `VolumeNotFound`, `VolumeInUse`."""
        params = _given(owner=owner)
        await self._wire.request("DELETE", path("system", "volumes", name), params=params)

    async def provider(self) -> MinIOProvider:
        """The object store's address with the caller's own keys."""
        return MinIOProvider.model_validate((await self.config()).get("minio_provider") or {})

    async def storage(self) -> Storage:
        """The objects in the platform's own store, with the caller's own keys."""
        return Storage(await self.provider())


def _given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _body(service: Service | Mapping[str, Any]) -> dict[str, Any]:
    return definition(service) if isinstance(service, Service) else dict(service)


def _warnings(response: httpx2.Response) -> list[str]:
    if response.content.startswith(b"{"):
        return [str(warning) for warning in response.json().get("warnings") or []]
    # An answer without content carries them in a header.
    header = response.headers.get("X-Oscar-Warnings", "")
    return [warning for warning in header.split("; ") if warning]


def _bucket(name: str, visibility: str, allowed_users: Sequence[str]) -> dict[str, Any]:
    return {"bucket_name": name, "visibility": visibility, "allowed_users": list(allowed_users)}


def encoded(body: bytes) -> bytes:
    """A file as the body of a call: base64, with a line break inside where it would read as JSON.

    Servers take a body that is JSON as it is, and `1234` or `true` are both base64 and JSON.
    """
    text = base64.b64encode(body)
    try:
        json.loads(text)
    except ValueError:
        return text
    return text[:2] + b"\n" + text[2:]


def _decoded(answer: bytes) -> bytes | None:
    """The bytes that an answer stands for, None when it is not base64 but a log."""
    text = b"".join(answer.split())
    if not text or len(text) % 4:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
