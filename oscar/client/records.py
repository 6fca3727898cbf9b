"""What the server answers, as values: jobs, buckets, signed addresses. Field names are those of the API.

Made by `client.rest`. Fields that this version does not know are dropped, those that a server leaves out have
defaults, so that the client works with servers older and newer than itself.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

Progress = Callable[[int], None]
"""Told of each transferred piece: its size in bytes."""


def _no_time(value: Any) -> Any:
    # A server written in Go sends the year 1 for "not yet", others an empty text.
    return None if value in {"", None} or str(value).startswith("0001-01-01") else value


Time = Annotated[datetime | None, BeforeValidator(_no_time)]


class _Record(BaseModel):
    # A command needs one or two of them.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class Submitted(_Record):
    """A job that was accepted."""

    job_id: str = ""
    """Empty when the server is an OSCAR 4, which does not tell."""
    service: str
    status: str = "Pending"


class JobSummary(_Record):
    """A job as the list of a service's jobs shows it."""

    name: str
    status: str
    creation_time: Time = None
    start_time: Time = None
    finish_time: Time = None


class JobPage(_Record):
    """A page of a service's jobs; `next_page` is empty on the last one."""

    jobs: tuple[JobSummary, ...]
    next_page: str = ""
    remaining_jobs: int = 0


class Job(_Record):
    """A job with all that is known of it."""

    job_id: str
    service: str
    status: str
    """`Pending`, `Running`, `Succeeded`, `Failed` or `Suspended`."""
    state: str = ""
    """The finer state, such as `queued` or `dead`; see `docs/jobs.md`."""
    reason: str | None = None
    message: str | None = None
    exit_code: int | None = None
    attempt: int = 0
    user: str = ""
    creation_time: Time = None
    start_time: Time = None
    finish_time: Time = None

    @property
    def done(self) -> bool:
        """Whether it has come to its end, good or bad."""
        return self.status in {"Succeeded", "Failed"}

    @property
    def succeeded(self) -> bool:
        """Whether it came to a good end."""
        return self.status == "Succeeded"


class BucketObject(_Record):
    """An object as a bucket's page lists it."""

    object_name: str
    size_bytes: int = 0
    last_modified: Time = None
    owner: str = ""


class Bucket(_Record):
    """A bucket and who sees it."""

    bucket_name: str
    visibility: str = "private"
    allowed_users: tuple[str, ...] = ()
    owner: str = ""

    @classmethod
    def read(cls, data: Any) -> Bucket:
        """From the server's JSON, in which absent lists may be null."""
        return cls.model_validate(without_nulls(data))


class BucketContent(Bucket):
    """A bucket with a page of its objects."""

    objects: tuple[BucketObject, ...] = ()
    next_page: str = ""
    is_truncated: bool = False

    @classmethod
    def read(cls, data: Any) -> BucketContent:
        """From the server's JSON, in which absent lists may be null."""
        return cls.model_validate(without_nulls(data))


class VolumeAttachment(_Record):
    """A service that has a volume, and where."""

    service_name: str
    mount_path: str = ""


class VolumeCondition(_Record):
    """How a volume does."""

    phase: str = ""
    """`Pending`, `Bound` or `Terminating`."""
    message: str = ""
    attachment_count: int = 0


class Volume(_Record):
    """A managed volume."""

    name: str
    size: str = ""
    """A quantity, such as `1Gi`."""
    owner_user: str = ""
    creation_mode: str = ""
    """`api` or `service`."""
    created_by_service: str = ""
    lifecycle_policy: str = ""
    attachments: tuple[VolumeAttachment, ...] = ()
    status: VolumeCondition = VolumeCondition()

    @classmethod
    def read(cls, data: Any) -> Volume:
        """From the server's JSON, in which absent lists may be null."""
        return cls.model_validate(without_nulls(data))


class Presigned(_Record):
    """An address that allows one operation on one object until it expires, without other credentials."""

    url: str
    method: str
    object_key: str = ""
    operation: str = ""
    headers: dict[str, str] = {}
    """Headers to send with the request."""
    expires_at: Time = None


def without_nulls(data: Any) -> Any:
    """The mapping without its null values."""
    return (
        {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data
    )
