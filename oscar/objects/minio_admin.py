"""Users, groups, policies and quotas of a MinIO: the port `Accounts`, and MinIO's own admin protocol behind it.

Called by `objects.minio` only. Small, so that another store's administration can stand here: all else of a bucket
goes by the S3 protocol. The client is blocking and speaks in threads; its errors end here.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import urllib3
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException
from minio.minioadmin import MinioAdmin

from oscar.errors import NoAnswer, StorageError
from oscar.objects.minio_rules import target_arn

T = TypeVar("T")

_CONNECT_S, _READ_S = 5.0, 20.0
_ABSENT = ("XMinioAdminNoSuchUser", "XMinioAdminNoSuchGroup", "XMinioAdminNoSuchPolicy")
_UNCHANGED = "XMinioAdminPolicyChangeAlreadyApplied"
_SERVER_ERROR = 500


class Accounts(Protocol):
    """The administration of a store. Verbs are idempotent. Errors: NoAnswer, StorageError."""

    async def put_user(self, access_key: str, secret_key: str) -> None:
        """Have the key pair; one that an administrator of the store disabled stays so."""

    async def put_group(self, name: str, members: Collection[str], policy: str) -> None:
        """Have a group of exactly these users with exactly that policy, all of which exist; without users none."""

    async def join(self, group: str, member: str) -> None:
        """Have the user in the group, which is made when absent."""

    async def put_policy(self, name: str, document: Mapping[str, Any]) -> None:
        """Have the policy say that."""

    async def remove_policy(self, name: str) -> None:
        """Remove it. Silent if absent; it must not be attached any more."""

    async def allow(self, group: str, policy: str) -> None:
        """Have the policy attached to the group, beside others; both exist."""

    async def disallow(self, group: str, policy: str) -> None:
        """Have it not attached. Silent if either is absent."""

    async def put_quota(self, bucket: str, limit: int | None) -> None:
        """Have a limit of so many bytes; None for none."""

    async def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Objects and bytes of buckets as the store counted them last, which may be minutes ago."""

    async def target(self, name: str) -> str | None:
        """How rules of buckets call the webhook of that name; None when the store has none."""


class MinioAccounts:
    """Implements `Accounts` by MinIO's admin protocol."""

    def __init__(
        self, endpoint: str, access_key: str, secret_key: str, region: str, *, verify: bool = True
    ) -> None:
        """Make the client; nothing is asked yet."""
        parts = urlsplit(endpoint)
        self._host = parts.netloc
        pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=_READ_S),
            maxsize=8,
            ssl_context=_tls(verify=verify) if parts.scheme == "https" else None,
            retries=urllib3.Retry(
                total=3, backoff_factor=0.2, status_forcelist=[502, 503, 504], allowed_methods=None
            ),
        )
        self._client = MinioAdmin(
            endpoint=parts.netloc,
            credentials=StaticProvider(access_key, secret_key),
            region=region,
            secure=parts.scheme == "https",
            http_client=pool,
        )

    async def put_user(self, access_key: str, secret_key: str) -> None:
        """See `Accounts.put_user`."""
        present = await self._ask(lambda client: client.user_info(access_key))
        if present and json.loads(present).get("status") == "disabled":
            return
        await self._do(lambda client: client.user_add(access_key, secret_key))

    async def put_group(self, name: str, members: Collection[str], policy: str) -> None:
        """See `Accounts.put_group`."""
        present = await self._ask(lambda client: client.group_info(name))
        there = set(json.loads(present).get("members") or ()) if present else set()
        if new := sorted(set(members) - there):
            # The client's hint says a text, the protocol wants a list.
            await self._do(lambda client: client.group_add(name, new))  # type: ignore[arg-type]
        if gone := sorted(there - set(members)):
            await self._do(lambda client: client.group_remove(name, gone))  # type: ignore[arg-type]
        if present and not members:
            await self._ask(lambda client: client.group_remove(name, []))  # type: ignore[arg-type]
        if members and (not present or json.loads(present).get("policy") != policy):
            await self._do(lambda client: client.policy_set(policy, group=name))

    async def join(self, group: str, member: str) -> None:
        """See `Accounts.join`."""
        await self._do(lambda client: client.group_add(group, [member]))  # type: ignore[arg-type]

    async def put_policy(self, name: str, document: Mapping[str, Any]) -> None:
        """See `Accounts.put_policy`."""
        await self._do(lambda client: client.policy_add(name, policy=dict(document)))

    async def remove_policy(self, name: str) -> None:
        """See `Accounts.remove_policy`."""
        await self._ask(lambda client: client.policy_remove(name))

    async def allow(self, group: str, policy: str) -> None:
        """See `Accounts.allow`."""
        # Asked first: what is attached and detached travels sealed, which costs a tenth of a second.
        if policy not in await self._attached(group):
            await self._do(lambda client: client.attach_policy([policy], group=group), fine=(_UNCHANGED,))

    async def disallow(self, group: str, policy: str) -> None:
        """See `Accounts.disallow`."""
        if policy in await self._attached(group):
            await self._do(lambda client: client.detach_policy([policy], group=group), fine=(_UNCHANGED,))

    async def _attached(self, group: str) -> list[str]:
        present = await self._ask(lambda client: client.group_info(group))
        return str(json.loads(present).get("policy") or "").split(",") if present else []

    async def put_quota(self, bucket: str, limit: int | None) -> None:
        """See `Accounts.put_quota`."""
        present = json.loads(await self._do(lambda client: client.bucket_quota_get(bucket)) or "{}")
        if max(present.get("size") or 0, present.get("quota") or 0) != (limit or 0):
            await self._do(lambda client: client.bucket_quota_set(bucket, limit or 0))

    async def sizes(self) -> Mapping[str, tuple[int, int]]:
        """See `Accounts.sizes`."""
        usage_info: Callable[[MinioAdmin], str] = MinioAdmin.get_data_usage_info
        found = json.loads(await self._do(usage_info))
        return {
            name: (int(usage.get("objectsCount") or 0), int(usage.get("size") or 0))
            for name, usage in (found.get("bucketsUsageInfo") or {}).items()
        }

    async def target(self, name: str) -> str | None:
        """See `Accounts.target`."""
        return target_arn(await self._do(lambda client: client.info()), name)

    async def _ask(self, call: Callable[[MinioAdmin], str]) -> str:
        """Make a call about something that may be absent: "" then."""
        return await self._do(call, fine=_ABSENT)

    async def _do(self, call: Callable[[MinioAdmin], str], *, fine: Collection[str] = ()) -> str:
        try:
            return await asyncio.to_thread(call, self._client)
        except MinioAdminException as error:
            status, code, words = _said(error)
            if code in fine:
                return ""
            message = f"{self._host} answered {status} to its administrator: {words}"
            raise NoAnswer(message) if status >= _SERVER_ERROR else StorageError(message) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise NoAnswer(f"no answer from {self._host}: {_reason(error)}") from error
        except ValueError as error:
            # What it sent could not be opened with our secret key, or is no JSON.
            raise StorageError(f"{self._host} can't be administrated with these keys: {error}") from error


def _tls(*, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _said(error: MinioAdminException) -> tuple[int, str, str]:
    """Status, code and words of an answer."""
    code, body = getattr(error, "_code", "0"), getattr(error, "_body", "")
    try:
        found = json.loads(body)
        named, words = str(found.get("Code", "")), str(found.get("Message", ""))
    except (ValueError, AttributeError):
        named, words = "", body[:200]
    return int(code) if str(code).isdigit() else 0, named, f"{named} {words}".strip()


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason) or type(error).__name__
