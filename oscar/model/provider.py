"""The names of storage providers: `type.id`, as services and events write them.

Called by `model.storage`, and by what must start fast (`supervisor.pod`), for which the models there take too long.
Pure.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

DEFAULT_PROVIDER = "default"
"""The id of the platform's own store, and the id of a provider string that names none."""


class ProviderType(StrEnum):
    """The kinds of storage."""

    MINIO = "minio"
    S3 = "s3"
    ONEDATA = "onedata"
    WEBDAV = "webdav"
    RUCIO = "rucio"


class ProviderRef(NamedTuple):
    """A provider string taken apart: `minio.default` is (MINIO, "default")."""

    type: ProviderType
    id: str

    def __str__(self) -> str:
        return f"{self.type}.{self.id}"


OWN_STORE = ProviderRef(ProviderType.MINIO, DEFAULT_PROVIDER)
"""The platform's own object store."""


def parse_provider(text: str) -> ProviderRef | None:
    """`type[.id]` with the type in any case and `default` for a missing id; None for an unknown type."""
    kind, _, name = text.strip().partition(".")
    try:
        return ProviderRef(ProviderType(kind.lower()), name.strip() or DEFAULT_PROVIDER)
    except ValueError:
        return None
