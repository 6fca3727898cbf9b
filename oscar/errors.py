"""The error tree of the whole program.

Every layer raises these; adapters translate foreign exceptions into them at their border; `app.render_error`
is the one place that turns them into an HTTP answer (the S3 protocol has its own XML form of the same tree).
Each class has an HTTP `status` and a stable `code`; its docstring is the default message.
"""

from __future__ import annotations


class OscarError(Exception):
    """Something went wrong inside the server."""

    status: int = 500
    code: str = "internal_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        field: str | None = None,
        fix: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Make an error.

        Args:
            message: what is wrong, for the user; the class docstring when absent.
            field: the JSON path, parameter or setting at fault, such as `input[0].path`.
            fix: what the user can do about it, as one sentence.
            headers: extra HTTP headers of the answer, such as `Retry-After`.
        """
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.field = field
        self.fix = fix
        self.headers = headers or {}
        super().__init__(self.message)

    def as_dict(self) -> dict[str, str]:
        """The error as the body of an answer: code and message, with field and fix where known."""
        body = {"code": self.code, "message": self.message}
        if self.field:
            body["field"] = self.field
        if self.fix:
            body["fix"] = self.fix
        return body


class BadRequest(OscarError):
    """The request is malformed."""

    status = 400
    code = "bad_request"


class InvalidField(BadRequest):
    """A field of the request has a value that can't be taken."""

    code = "invalid_field"


class Unsupported(BadRequest):
    """This engine can't do what is asked."""

    code = "unsupported"


class Misuse(BadRequest):
    """The command line, or a file that it names, is wrong."""

    # Raised by the program `oscar` itself, never answered by a server.
    code = "usage"


class AlreadyExists(BadRequest):
    """Something of that name exists already."""

    # 400, not 409: the status of a duplicate name in the API of OSCAR 4.1.2.
    code = "already_exists"


class Unauthorized(OscarError):
    """Credentials are missing or wrong."""

    status = 401
    code = "unauthorized"

    guess = True
    """Whether it may have been a try to guess a secret. Not so when nothing was shown, or what was shown is genuine
    and opens nothing here (any more)."""


class Forbidden(OscarError):
    """You may see this, but not do that with it."""

    status = 403
    code = "forbidden"


class QuotaExceeded(Forbidden):
    """This is more than the quota allows."""

    code = "quota_exceeded"


class NotFound(OscarError):
    """There is no such thing, or you may not see it."""

    status = 404
    code = "not_found"


class ServiceNotFound(NotFound):
    """There is no such service, or you may not see it."""

    code = "service_not_found"


class JobNotFound(NotFound):
    """There is no such job, or you may not see it."""

    code = "job_not_found"


class BucketNotFound(NotFound):
    """There is no such bucket, or you may not see it."""

    code = "bucket_not_found"


class ObjectNotFound(NotFound):
    """There is no such object, or you may not see it."""

    code = "object_not_found"


class UploadNotFound(NotFound):
    """There is no such multipart upload."""

    code = "upload_not_found"


class Conflict(OscarError):
    """The present state does not allow this."""

    status = 409
    code = "conflict"


class VolumeNotFound(NotFound):
    """There is no such volume, or you may not see it."""

    code = "volume_not_found"


class VolumeInUse(BadRequest):
    """Services have the volume attached."""

    # 400, not 409: the status of the API of OSCAR 4.1.2.
    code = "volume_in_use"


class BucketNotEmpty(Conflict):
    """The bucket still holds objects."""

    code = "bucket_not_empty"


class PreconditionFailed(OscarError):
    """A condition of the request does not hold."""

    status = 412
    code = "precondition_failed"


class BodyTooLarge(OscarError):
    """The body is larger than the limit."""

    status = 413
    code = "body_too_large"


class HeadersTooLarge(OscarError):
    """The request line and the headers are larger than 64 KiB together."""

    status = 431
    code = "headers_too_large"


class TooManyRequests(OscarError):
    """Too many requests are waiting; try again later."""

    status = 429
    code = "too_many_requests"


class Unavailable(OscarError):
    """The service can't take requests now; try again later."""

    status = 503
    code = "unavailable"


class Unreachable(Unavailable):
    """The server can't be reached."""

    # Raised by the client, never answered by a server.
    code = "unreachable"


class EngineMissing(Unavailable):
    """No engine that can run this is available on this machine."""

    code = "engine_missing"


class NotEnabled(OscarError):
    """This is not enabled in this release."""

    status = 501
    code = "not_enabled"


class EngineError(OscarError):
    """The container engine refused or failed."""

    status = 502
    code = "engine_error"


class ImageError(EngineError):
    """The image can't be had."""

    code = "image_error"


class MemberError(OscarError):
    """A member of the federation refused or can't be reached."""

    status = 502
    code = "member_error"


class RefreshTokenInvalid(BadRequest):
    """The issuer does not take the refresh token."""

    code = "refresh_token_invalid"


class InvocationTimeout(OscarError):
    """The function did not answer in time."""

    status = 504
    code = "timeout"


class StorageFull(OscarError):
    """The disk is nearly full; nothing was stored."""

    status = 507
    code = "storage_full"


class StorageError(OscarError):
    """A storage provider refused or failed."""

    status = 502
    code = "storage_error"


class NoAnswer(StorageError):
    """A storage provider can't be reached, or is in trouble of its own."""

    # The same code for clients; inside it is what a repetition may mend.


class RunNotFound(OscarError):
    """The engine certainly knows no run of that name."""

    code = "run_not_found"
