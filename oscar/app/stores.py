"""The platform's own object store: from settings to `ObjectStore`, `BucketAdmin` and `Upkeep`.

Called by `lifespan`. The built-in one keeps its rows in the Store and its bodies in the data folder, and its S3 server
is a process beside this one (`app.s3`, kept alive by `serve`). A MinIO is a server of its own, asked over the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from oscar.app.s3 import open_blobs, open_objects
from oscar.errors import Misuse
from oscar.model.object import Credential
from oscar.model.storage import MinIOProvider
from oscar.model.user import ADMIN, ADMIN_KEY
from oscar.objects.base import BucketAdmin, ObjectStore, Upkeep
from oscar.objects.embedded.store import EmbeddedStore
from oscar.objects.s3_signing import Site
from oscar.settings import Settings, kept_secret
from oscar.state.secrets import Sealer
from oscar.state.store import Store
from oscar.state.users import Users


@dataclass(frozen=True, slots=True)
class OwnStore:
    """The own store with all rights."""

    objects: ObjectStore
    buckets: BucketAdmin
    upkeep: Upkeep | None
    """None: there is nothing to keep."""
    provider: MinIOProvider
    """As clients reach it; keys blank."""
    inside: str
    """Its address for this server and what it starts."""

    async def provider_for(self, user: str) -> MinIOProvider:
        """For a program beside this server, with the rights of a user."""
        keys = await self.buckets.credential_of(user)
        return self.provider.model_copy(update={"access_key": keys.access_key, "secret_key": keys.secret_key})


async def open_own_store(
    settings: Settings, store: Store, on_commit: Callable[[], None], stack: contextlib.AsyncExitStack
) -> OwnStore:
    """Open the store that the settings name.

    Args:
        settings: with the public addresses filled in.
        store: the rows; its schema is the present one.
        on_commit: called after a write that may have enqueued jobs.
        stack: closes what is opened.
    """
    if settings.store == "minio":
        return await _minio(settings, store, stack)
    index = open_objects(settings, store)
    await index.put_credential(admin_keys(settings))
    blobs = open_blobs(settings)
    stack.callback(blobs.close)
    objects = EmbeddedStore(
        index, blobs, endpoint=settings.minio_endpoint, region=settings.minio_region, on_commit=on_commit
    )
    return OwnStore(objects, objects, None, _provider(settings), settings.s3_inside)


async def _minio(settings: Settings, store: Store, stack: contextlib.AsyncExitStack) -> OwnStore:
    # Its library is megabytes, for those who use it.
    from oscar.objects.minio import MinioStore
    from oscar.objects.minio_admin import MinioAccounts
    from oscar.state.bucket_changes import OutsideBuckets

    check_minio(settings)
    index = OutsideBuckets(store, lambda *_: (), quotas=settings.quota_defaults)
    keys = admin_keys(settings)
    await index.put_credential(keys)
    site = Site(
        settings.s3_inside,
        keys.access_key,
        keys.secret_key,
        settings.minio_region,
        verify=settings.minio_tls_verify,
    )
    accounts = MinioAccounts(site.endpoint, site.access_key, site.secret_key, site.region, verify=site.verify)
    objects = MinioStore(
        index,
        accounts,
        site,
        public=settings.minio_endpoint,
        target=settings.events_target if settings.store_events == "webhook" else "",
        name_of=Users(store).name_of,
    )
    stack.push_async_callback(objects.close)
    return OwnStore(objects, objects, objects, _provider(settings), settings.s3_inside)


def check_minio(settings: Settings) -> None:
    """Refuse settings that don't say where the MinIO is and with which keys.

    Raises:
        Misuse: naming what is missing.
    """
    needed = {
        "MINIO_ENDPOINT": settings.minio_endpoint,
        "MINIO_ACCESS_KEY": settings.minio_access_key,
        "MINIO_SECRET_KEY": settings.minio_secret_key,
    }
    for name, value in needed.items():
        if not value:
            raise Misuse(
                f"{name} is not set",
                field=name,
                fix="with OSCAR_STORE=minio, set MINIO_ENDPOINT, MINIO_ACCESS_KEY and MINIO_SECRET_KEY",
            )


def events_tokens(settings: Settings, sealer: Sealer) -> tuple[str, ...]:
    """What MinIO may prove itself by, the present token first: the setting's, else one of each secret key."""
    if settings.events_token:
        return (settings.events_token,)
    return tuple(mac.hex() for mac in sealer.macs("events.minio"))


def _provider(settings: Settings) -> MinIOProvider:
    return MinIOProvider(
        endpoint=settings.minio_endpoint, region=settings.minio_region, verify=settings.minio_tls_verify
    )


def admin_keys(settings: Settings) -> Credential:
    """The administrator's key pair: of the settings, else made and kept in the data folder."""
    return Credential(
        settings.minio_access_key or ADMIN_KEY,
        settings.minio_secret_key or kept_secret(settings.data / "s3-secret", 20),
        ADMIN,
        admin=True,
    )
