"""The platform's own object store: from settings to `ObjectStore` and `BucketAdmin`.

Called by `lifespan`. The built-in one keeps its rows in the Store and its bodies in the data folder, and its S3 server
is a process beside this one (`app.s3`, kept alive by `serve`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from oscar.app.s3 import open_blobs, open_objects
from oscar.model.object import Credential
from oscar.model.storage import MinIOProvider
from oscar.model.user import ADMIN, ADMIN_KEY
from oscar.objects.base import BucketAdmin, ObjectStore
from oscar.objects.embedded.store import EmbeddedStore
from oscar.settings import Settings, kept_secret
from oscar.state.store import Store


@dataclass(frozen=True, slots=True)
class OwnStore:
    """The own store with all rights."""

    objects: ObjectStore
    buckets: BucketAdmin
    provider: MinIOProvider
    """As clients reach it; keys blank."""

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
    index = open_objects(settings, store)
    await index.put_credential(admin_keys(settings))
    blobs = open_blobs(settings)
    stack.callback(blobs.close)
    objects = EmbeddedStore(
        index, blobs, endpoint=settings.minio_endpoint, region=settings.minio_region, on_commit=on_commit
    )
    return OwnStore(objects, objects, _provider(settings))


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
