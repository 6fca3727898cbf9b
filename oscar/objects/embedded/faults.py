"""Errors of the S3 protocol: codes, statuses and their XML form.

Every module of the built-in S3 server raises `S3Error` by `fault(...)`; errors of `oscar.errors` that come up
from the index are translated by `as_fault`. Only `server` renders them.
"""

from __future__ import annotations

from email.utils import formatdate

from oscar import errors

CODES: dict[str, tuple[int, str]] = {
    "AccessControlListNotSupported": (400, "ACLs other than private are not supported; use a bucket policy."),
    "AccessDenied": (403, "Access Denied."),
    "AuthorizationHeaderMalformed": (400, "The authorization header is malformed."),
    "AuthorizationQueryParametersError": (400, "The query parameters of the signature are malformed."),
    "BadDigest": (400, "A checksum that you gave did not match what was received."),
    "BucketAlreadyExists": (409, "The bucket name is taken."),
    "BucketAlreadyOwnedByYou": (409, "You already own a bucket of that name."),
    "BucketNotEmpty": (409, "The bucket still holds objects."),
    "EntityTooLarge": (400, "The upload is larger than the maximum size of an object."),
    "EntityTooSmall": (400, "A part other than the last is smaller than the minimum of 5 MiB."),
    "IncompleteBody": (400, "The body is shorter or longer than announced."),
    "InsufficientStorage": (507, "The disk of the server is nearly full; nothing was stored."),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "InvalidAccessKeyId": (403, "The access key does not exist in our records."),
    "InvalidArgument": (400, "An argument is invalid."),
    "InvalidBucketName": (400, "The bucket name is not valid."),
    "InvalidDigest": (400, "The Content-MD5 or checksum that you gave is not valid."),
    "InvalidPart": (400, "A part was not found, or its entity tag did not match."),
    "InvalidPartOrder": (400, "The list of parts is not in ascending order."),
    "InvalidRange": (416, "The requested range is not satisfiable."),
    "InvalidRequest": (400, "The request is not valid."),
    "InvalidStorageClass": (400, "The storage class is not valid; there is only STANDARD."),
    "InvalidTag": (400, "A tag is not valid."),
    "InvalidURI": (400, "The URI could not be parsed."),
    "KeyTooLongError": (400, "The key is longer than 1024 bytes."),
    "MalformedPOSTRequest": (400, "The body of the POST is not well-formed multipart/form-data."),
    "MalformedPolicy": (400, "The policy is not valid."),
    "MalformedTrailerError": (400, "The trailing headers are not well-formed or not those announced."),
    "MalformedXML": (400, "The XML that you gave is not well-formed or not what this operation takes."),
    "MetadataTooLarge": (400, "The metadata headers are larger than 8 KiB."),
    "MethodNotAllowed": (405, "The method is not allowed on this resource."),
    "MissingContentLength": (411, "The Content-Length header is required."),
    "MissingSecurityHeader": (400, "A required header is missing."),
    "NoSuchBucket": (404, "The bucket does not exist."),
    "NoSuchBucketPolicy": (404, "The bucket has no policy."),
    "NoSuchCORSConfiguration": (404, "The bucket has no CORS configuration."),
    "NoSuchKey": (404, "The key does not exist."),
    "NoSuchLifecycleConfiguration": (404, "The bucket has no lifecycle configuration."),
    "NoSuchObjectLockConfiguration": (404, "The object has no lock configuration."),
    "NoSuchPublicAccessBlockConfiguration": (404, "The bucket has no public access block configuration."),
    "NoSuchTagSet": (404, "There are no tags."),
    "NoSuchUpload": (404, "The multipart upload does not exist; it may have been completed or aborted."),
    "NoSuchVersion": (404, "The version does not exist; this server keeps one version, `null`."),
    "NoSuchWebsiteConfiguration": (404, "The bucket has no website configuration."),
    "NotImplemented": (501, "Not implemented."),
    "ObjectLockConfigurationNotFoundError": (404, "The bucket has no object lock configuration."),
    "OwnershipControlsNotFoundError": (404, "The bucket has no ownership controls."),
    "PreconditionFailed": (412, "A condition of the request does not hold."),
    "ReplicationConfigurationNotFoundError": (404, "The bucket has no replication configuration."),
    "RequestTimeout": (400, "The body did not arrive in time."),
    "RequestTimeTooSkewed": (403, "The clocks of client and server differ by more than 15 minutes."),
    "ServerSideEncryptionConfigurationNotFoundError": (404, "The bucket has no encryption configuration."),
    "ServiceUnavailable": (503, "The server can't take requests now; try again later."),
    "SignatureDoesNotMatch": (
        403,
        "The signature does not match the one calculated. Check your secret key and signing method.",
    ),
    "SlowDown": (503, "Please reduce your request rate."),
    # MinIO's own code for this, which its clients know.
    "XMinioAdminBucketQuotaExceeded": (400, "The quota of the bucket is exceeded; nothing was stored."),
    "XAmzContentSHA256Mismatch": (
        400,
        "The SHA-256 of the body is not the one given in x-amz-content-sha256.",
    ),
}
"""Code -> (HTTP status, default message); codes as in the S3 API reference, "Error responses"."""


class S3Error(errors.OscarError):
    """An answer of the S3 protocol other than success."""

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        details: dict[str, str | int] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Make an error of a known code; `details` become elements of the XML (`Key`, `BucketName`, ...)."""
        self.status, default = CODES[code]
        self.code = code
        self.details = details or {}
        super().__init__(message or default, headers=headers)


class NotModified(Exception):
    """The conditions of a GET or HEAD say that the client has the object already: 304 without a body."""

    def __init__(self, etag: str, modified: int) -> None:
        """Say which object it has: ETag without quotes, Unix milliseconds."""
        super().__init__(etag)
        self.headers = {"etag": f'"{etag}"', "last-modified": formatdate(modified // 1000, usegmt=True)}


class ClientGone(Exception):
    """The client closed the connection before its body was complete."""


def fault(code: str, message: str | None = None, **details: str | int) -> S3Error:
    """The error of that code, with the code's own message unless one is given."""
    return S3Error(code, message, details=details)


def unsupported(what: str) -> S3Error:
    """The answer to something of S3 that this server hasn't: 501, naming it."""
    return S3Error("NotImplemented", f"This server does not implement {what}.")


_BY_CLASS: tuple[tuple[type[errors.OscarError], str], ...] = (
    (errors.BucketNotFound, "NoSuchBucket"),
    (errors.ObjectNotFound, "NoSuchKey"),
    (errors.UploadNotFound, "NoSuchUpload"),
    (errors.BucketNotEmpty, "BucketNotEmpty"),
    (errors.PreconditionFailed, "PreconditionFailed"),
    (errors.StorageFull, "InsufficientStorage"),
    (errors.BodyTooLarge, "EntityTooLarge"),
    (errors.QuotaExceeded, "XMinioAdminBucketQuotaExceeded"),
    (errors.Forbidden, "AccessDenied"),
    (errors.Unauthorized, "AccessDenied"),
    (errors.TooManyRequests, "SlowDown"),
    (errors.Unavailable, "ServiceUnavailable"),
)


def as_fault(error: errors.OscarError) -> S3Error:
    """The S3 form of any error of the tree; the text of internal errors stays in the log."""
    if isinstance(error, S3Error):
        return error
    for kind, code in _BY_CLASS:
        if isinstance(error, kind):
            return S3Error(code)
    if isinstance(error, errors.BadRequest):
        return S3Error("InvalidRequest", error.message)
    return S3Error("InternalError")
