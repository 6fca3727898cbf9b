"""The API server of a Kubernetes cluster: objects as plain dicts, errors as ours, watches that go on.

Called by every other module of this package; calls lightkube for the way in (kubeconfig, service account, TLS,
tokens). Trouble that passes (429, 5xx, no answer) is waited out here for a while, so that callers see only what stays.
A request may then have been carried out twice: all objects have names that their caller chose.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml
from lightkube.config.client_adapter import user_auth, verify_cluster
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.core.exceptions import ConfigError

from oscar import telemetry
from oscar.compute.kubernetes.kinds import Kind
from oscar.errors import EngineError, EngineMissing, Unsupported

log = telemetry.get("kubernetes")

Body = dict[str, Any]
"""An object of the API, as its JSON."""

PATIENCE = 20.0
"""Seconds for which a request is tried again before its caller is told."""
MANAGER = "oscar"
"""Field manager of what we apply."""

_PAGE = 500
_WATCH_S = 240
_SILENCE_S = 120.0
_AT_ONCE = 32
_PAUSES = (0.1, 0.25, 0.5, 1.0, 2.0)
_TRANSIENT = frozenset({500, 502, 503, 504})


class ClusterError(EngineError):
    """The Kubernetes API refused or failed."""

    # The codes of the API are for who called here; users see an engine's error.

    def __init__(self, message: str, *, http: int = 0, reason: str = "", fix: str | None = None) -> None:
        """Make it.

        Args:
            message: the API server's words.
            http: its status; 0 when it could not be reached.
            reason: its machine-readable reason, such as `AlreadyExists`.
            fix: what can be done.
        """
        super().__init__(message, fix=fix)
        self.http = http
        self.reason = reason

    @property
    def is_unknown(self) -> bool:
        """Whether the request may have been carried out all the same."""
        return self.http == 0 or self.http in _TRANSIENT


@dataclass(frozen=True, slots=True)
class Listed:
    """All objects as they are now: what a follower knew before is void."""

    items: list[Body]


@dataclass(frozen=True, slots=True)
class Changed:
    """An object has come or changed."""

    item: Body


@dataclass(frozen=True, slots=True)
class Gone:
    """An object was removed; as it was last."""

    item: Body


News = Listed | Changed | Gone


def config(kubeconfig: Path | None) -> SingleConfig:
    """The way to the cluster: the file, else the service account of the pod that we run in.

    Raises:
        EngineMissing: neither is there, or it can't be used.
    """
    try:
        found = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_service_account()
        single = found.get()
    except (ConfigError, AttributeError, KeyError, TypeError, OSError, ValueError, yaml.YAMLError) as error:
        raise EngineMissing(
            f"There is no way to the Kubernetes cluster: {error}",
            field="KUBECONFIG",
            fix="name a kubeconfig file, or run the server in the cluster with a service account",
        ) from error
    if single is None:
        raise EngineMissing("The kubeconfig names no current context", field="KUBECONFIG")
    return single


class Cluster:
    """A connection to the API server. Use it in one event loop."""

    def __init__(self, way: SingleConfig, *, patience: float = PATIENCE) -> None:
        """Nothing is sent yet.

        Raises:
            EngineMissing: its certificates or log-in can't be used.
        """
        try:
            # The user may be absent, which these two would not take.
            verify: ssl.SSLContext | bool = (
                verify_cluster(way.cluster, way.user, way.abs_file, trust_env=False) if way.user else True
            )
            auth = user_auth(way.user) if way.user else None
        except (ConfigError, OSError, ssl.SSLError) as error:
            raise EngineMissing(f"The kubeconfig can't be used: {error}", field="KUBECONFIG") from error
        self._patience = patience
        make = functools.partial(
            httpx2.AsyncClient, base_url=way.cluster.server, auth=auth, trust_env=False, verify=verify
        )
        self._client = make(
            timeout=httpx2.Timeout(10.0, pool=None),
            limits=httpx2.Limits(max_connections=_AT_ONCE, max_keepalive_connections=_AT_ONCE),
        )
        # Streams stay open: they must not use up the connections of requests.
        self._streams = make(
            timeout=httpx2.Timeout(10.0, read=_SILENCE_S, pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )
        self._throttled = 0.0

    @property
    def throttled(self) -> bool:
        """Whether the API server has asked for patience just now (429)."""
        return time.monotonic() < self._throttled

    async def close(self) -> None:
        """End all connections."""
        await self._client.aclose()
        await self._streams.aclose()

    # Verbs.

    async def version(self) -> str:
        """The API server's version, such as `v1.34.2`."""
        found = await self.request("GET", "/version")
        return str(found["gitVersion"])

    async def serves(self, kind: Kind) -> bool:
        """Whether the cluster has that kind of object now."""
        prefix = f"/apis/{kind.api}" if "/" in kind.api else f"/api/{kind.api}"
        try:
            found = await self.request("GET", prefix)
        except ClusterError as error:
            if error.http == httpx2.codes.NOT_FOUND:
                return False
            raise
        return any(each["name"] == kind.plural for each in found["resources"])

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Body | None:
        """The object; None when there is certainly none."""
        return await self._unless_absent(self.request("GET", kind.path(namespace, name)))

    async def items(
        self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = ""
    ) -> list[Body]:
        """All objects, of all namespaces when none is named.

        Args:
            kind: of what.
            namespace: where.
            labels: a label selector.
            fields: a field selector.
        """
        return (await self._list(kind, namespace, labels, fields))[0]

    async def create(self, kind: Kind, body: Body) -> Body | None:
        """Make the object; None when one of that name is there, which stays as it is.

        Raises:
            ClusterError: it was not made; or, with `is_unknown`, perhaps it was.
            Unsupported: the API server says that it is not valid.
        """
        try:
            return await self.request("POST", kind.path(_namespace_of(body)), body=body)
        except ClusterError as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    async def apply(self, kind: Kind, body: Body) -> Body:
        """Have the object so, whoever changed those fields before: server-side apply."""
        return await self.request(
            "PATCH",
            kind.path(_namespace_of(body), str(body["metadata"]["name"])),
            body={"apiVersion": kind.api, "kind": kind.kind, **body},
            content_type="application/apply-patch+yaml",
            query={"fieldManager": MANAGER, "force": "true"},
        )

    async def merge(
        self, kind: Kind, name: str, change: Body, namespace: str = "", *, of: str = ""
    ) -> Body | None:
        """Change fields of an object (JSON merge patch); None when there is none.

        Args:
            kind: of what.
            name: which.
            change: the fields; None removes one.
            namespace: where.
            of: a subresource, such as `scale`.
        """
        path = kind.path(namespace, name) + (f"/{of}" if of else "")
        return await self._unless_absent(
            self.request("PATCH", path, body=change, content_type="application/merge-patch+json")
        )

    async def delete(
        self, kind: Kind, name: str, namespace: str = "", *, grace: int | None = None, version: str = ""
    ) -> bool:
        """Remove an object and, in the background, what it owns; False when there was none.

        Args:
            kind: of what.
            name: which.
            namespace: where.
            grace: seconds that a pod gets to end.
            version: only when it is still the one that was seen.

        Raises:
            ClusterError: for one; its reason is `Conflict` when the version is another.
        """
        options: Body = {"propagationPolicy": "Background"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        if version:
            options["preconditions"] = {"resourceVersion": version}
        return (
            await self._unless_absent(self.request("DELETE", kind.path(namespace, name), body=options))
            is not None
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Body | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Body:
        """One request, tried again while its trouble may pass.

        Raises:
            ClusterError, Unsupported: with the API server's words.
        """
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if body is not None else {}
        deadline = time.monotonic() + self._patience
        tries = 0
        while True:
            try:
                response = await self._client.request(
                    method, path, content=content, params=dict(query or {}), headers=headers
                )
                if response.is_success:
                    return dict(json.loads(response.content))
                error = _error(response)
                pause = self._pause(response)
            except httpx2.HTTPError as trouble:
                error = ClusterError(f"The Kubernetes API can't be reached: {_words(trouble)}")
                pause = 0.0
            if not (isinstance(error, ClusterError) and (error.is_unknown or pause)):
                raise error
            pause = max(pause, _PAUSES[min(tries, len(_PAUSES) - 1)] * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            tries += 1
            if time.monotonic() + pause > deadline:
                raise error
            await asyncio.sleep(pause)

    def _pause(self, response: httpx2.Response) -> float:
        """Seconds that the API server asks us to wait."""
        if response.status_code != httpx2.codes.TOO_MANY_REQUESTS:
            return 0.0
        asked = response.headers.get("Retry-After", "1")
        pause = float(asked) if asked.isdigit() else 1.0
        self._throttled = time.monotonic() + pause
        return max(pause, 0.1)

    @staticmethod
    async def _unless_absent(asking: Any) -> Body | None:
        try:
            return dict(await asking)
        except ClusterError as error:
            if error.http == httpx2.codes.NOT_FOUND:
                return None
            raise

    async def _list(self, kind: Kind, namespace: str, labels: str, fields: str) -> tuple[list[Body], str]:
        query = _selectors(labels, fields) | {"limit": str(_PAGE)}
        found: list[Body] = []
        while True:
            page = await self.request("GET", kind.path(namespace), query=query)
            found += [_lean(item) for item in page.get("items") or ()]
            more = page["metadata"].get("continue")
            if not more:
                # What is computed for each question, such as metrics, has no version.
                return found, page["metadata"].get("resourceVersion", "")
            query["continue"] = more

    # Streams.

    async def follow(
        self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = ""
    ) -> AsyncGenerator[News, None]:
        """All objects first, then each change; goes on over broken connections and never ends by itself.

        A watch that is cut is taken up at its last version; when the API server no longer has that, all are
        listed again.
        """
        version = ""
        tries = 0
        while True:
            try:
                if not version:
                    items, version = await self._list(kind, namespace, labels, fields)
                    yield Listed(items)
                async with contextlib.aclosing(
                    self._watch(kind, namespace, labels, fields, version)
                ) as events:
                    async for event, item in events:
                        tries = 0
                        version = item["metadata"]["resourceVersion"]
                        if event == "DELETED":
                            yield Gone(_lean(item))
                        elif event != "BOOKMARK":
                            yield Changed(_lean(item))
                await asyncio.sleep(_PAUSES[0])  # its time was up: never in a tight loop
            except ClusterError as error:
                if error.http == httpx2.codes.GONE:
                    version = ""
                    continue
                if tries == 0:
                    log.warning("a watch is begun again", of=kind.plural, reason=error.message)
                await asyncio.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)] * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                tries += 1

    async def _watch(
        self, kind: Kind, namespace: str, labels: str, fields: str, version: str
    ) -> AsyncGenerator[tuple[str, Body], None]:
        query = _selectors(labels, fields) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(_WATCH_S),
        }
        try:
            async with self._streams.stream("GET", kind.path(namespace), params=query) as response:
                if not response.is_success:
                    await response.aread()
                    self._pause(response)
                    raise _error(response)
                async for line in response.aiter_lines():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _refused(event["object"].get("code", 500), event["object"])
                    yield event["type"], event["object"]
        except httpx2.HTTPError as trouble:
            raise ClusterError(f"the watch was cut: {_words(trouble)}") from trouble
        except json.JSONDecodeError as trouble:
            raise ClusterError("the watch was cut in the middle of a line") from trouble

    async def log(
        self,
        pod: str,
        namespace: str,
        container: str,
        *,
        follow: bool = False,
        since: str = "",
        tail: int | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """A container's log as pieces of bytes, each line begun by its time (RFC 3339, nanoseconds).

        Args:
            pod: its name.
            namespace: where.
            container: which of the pod's.
            follow: wait for more until the container has ended.
            since: only lines of that second and later, RFC 3339.
            tail: only the last so many lines.

        Raises:
            ClusterError: 400 when the container has not started, 404 when there is no pod.
        """
        query = {"container": container, "timestamps": "true"}
        if follow:
            query["follow"] = "true"
        if since:
            query["sinceTime"] = since
        if tail is not None:
            query["tailLines"] = str(tail)
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        timeout = httpx2.Timeout(10.0, read=None, pool=None)
        try:
            async with self._streams.stream("GET", path, params=query, timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    self._pause(response)
                    status = _status(response)
                    raise ClusterError(
                        str(status.get("message") or "the log can't be had"),
                        http=response.status_code,
                        reason=str(status.get("reason", "")),
                    )
                async for piece in response.aiter_bytes():
                    yield piece
        except httpx2.HTTPError as trouble:
            raise ClusterError(f"the log was cut: {_words(trouble)}") from trouble


def _namespace_of(body: Body) -> str:
    return str(body["metadata"].get("namespace", ""))


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return ({"labelSelector": labels} if labels else {}) | ({"fieldSelector": fields} if fields else {})


def _lean(item: Body) -> Body:
    """The object without what nobody here reads, which is half of it."""
    item.get("metadata", {}).pop("managedFields", None)
    return item


def _words(trouble: Exception) -> str:
    return str(trouble) or type(trouble).__name__


def _status(response: httpx2.Response) -> Body:
    try:
        found = json.loads(response.content)
    except ValueError:
        return {"message": response.text[:500]}
    return dict(found) if isinstance(found, dict) else {}


def _error(response: httpx2.Response) -> ClusterError | Unsupported:
    return _refused(response.status_code, _status(response))


def _refused(code: int, status: Body) -> ClusterError | Unsupported:
    """The API server's `Status` as an error of ours."""
    message = str(status.get("message") or f"the Kubernetes API answered {code}")
    reason = str(status.get("reason", ""))
    if code in {httpx2.codes.BAD_REQUEST, httpx2.codes.UNPROCESSABLE_CONTENT}:
        return Unsupported(f"Kubernetes does not take it: {message}")
    fix = None
    if code == httpx2.codes.UNAUTHORIZED:
        fix = "check the token or certificate of the kubeconfig or service account"
    elif code == httpx2.codes.FORBIDDEN and "cannot" in message:
        fix = "give the server's service account the rights that the chart lists"
    return ClusterError(message, http=code, reason=reason, fix=fix)
