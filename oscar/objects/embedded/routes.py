"""Which operation a request asks for: by method, by whether it names an object, and by sub-resource.

Called by `server` only. A table, so that what this server does and doesn't do can be read in one place; the names
are those of the S3 API reference, the actions those that policies speak of.
"""

from __future__ import annotations

from dataclasses import dataclass

from oscar.objects.embedded import buckets, completion, copies, forms, listings, multipart, objects
from oscar.objects.embedded.buckets import Handler, absent, constant
from oscar.objects.embedded.faults import fault, unsupported
from oscar.objects.embedded.requests import Request
from oscar.objects.embedded.xml import element


@dataclass(frozen=True, slots=True)
class Operation:
    """What to check and whom to call."""

    action: str
    """Action to be allowed on bucket and key; "" when the handler decides by itself."""
    handler: Handler
    reads_object: bool = False
    """Whether the row of the object is looked up together with key pair and bucket."""


def _op(action: str, handler: Handler, *, reads_object: bool = False) -> Operation:
    return Operation(f"s3:{action}" if action else "", handler, reads_object)


SERVICE: dict[str, Operation] = {"GET": _op("", buckets.list_buckets)}

BUCKET: dict[tuple[str, str], Operation] = {
    ("PUT", ""): _op("", buckets.create_bucket),
    ("HEAD", ""): _op("ListBucket", buckets.head_bucket),
    ("DELETE", ""): _op("DeleteBucket", buckets.delete_bucket),
    ("GET", ""): _op("ListBucket", listings.list_objects),
    ("GET", "list-type"): _op("ListBucket", listings.list_objects_v2),
    ("GET", "versions"): _op("ListBucketVersions", listings.list_versions),
    ("GET", "uploads"): _op("ListBucketMultipartUploads", multipart.list_uploads),
    ("POST", ""): _op("", forms.post_object),
    ("POST", "delete"): _op("", objects.delete_objects),
    ("GET", "location"): _op("GetBucketLocation", buckets.get_location),
    ("GET", "versioning"): _op("GetBucketVersioning", constant("VersioningConfiguration")),
    ("PUT", "versioning"): _op("PutBucketVersioning", buckets.put_versioning),
    ("GET", "cors"): _op("GetBucketCORS", buckets.get_cors),
    ("PUT", "cors"): _op("PutBucketCORS", buckets.put_cors),
    ("DELETE", "cors"): _op("PutBucketCORS", buckets.delete_cors),
    ("GET", "policy"): _op("GetBucketPolicy", buckets.get_policy),
    ("PUT", "policy"): _op("PutBucketPolicy", buckets.put_policy),
    ("DELETE", "policy"): _op("DeleteBucketPolicy", buckets.delete_policy),
    ("GET", "policyStatus"): _op("GetBucketPolicyStatus", buckets.get_policy_status),
    ("GET", "tagging"): _op("GetBucketTagging", buckets.get_tagging),
    ("PUT", "tagging"): _op("PutBucketTagging", buckets.put_tagging),
    ("DELETE", "tagging"): _op("PutBucketTagging", buckets.delete_tagging),
    ("GET", "acl"): _op("GetBucketAcl", buckets.get_acl),
    ("PUT", "acl"): _op("PutBucketAcl", buckets.put_acl),
    ("GET", "accelerate"): _op("GetAccelerateConfiguration", constant("AccelerateConfiguration")),
    ("GET", "logging"): _op("GetBucketLogging", constant("BucketLoggingStatus")),
    ("GET", "notification"): _op("GetBucketNotification", constant("NotificationConfiguration")),
    ("GET", "requestPayment"): _op(
        "GetBucketRequestPayment", constant("RequestPaymentConfiguration", element("Payer", "BucketOwner"))
    ),
    ("GET", "lifecycle"): _op("GetLifecycleConfiguration", absent("NoSuchLifecycleConfiguration")),
    ("GET", "encryption"): _op(
        "GetEncryptionConfiguration", absent("ServerSideEncryptionConfigurationNotFoundError")
    ),
    ("GET", "object-lock"): _op(
        "GetBucketObjectLockConfiguration", absent("ObjectLockConfigurationNotFoundError")
    ),
    ("GET", "replication"): _op(
        "GetReplicationConfiguration", absent("ReplicationConfigurationNotFoundError")
    ),
    ("GET", "website"): _op("GetBucketWebsite", absent("NoSuchWebsiteConfiguration")),
    ("GET", "publicAccessBlock"): _op(
        "GetBucketPublicAccessBlock", absent("NoSuchPublicAccessBlockConfiguration")
    ),
    ("GET", "ownershipControls"): _op("GetBucketOwnershipControls", absent("OwnershipControlsNotFoundError")),
}

OBJECT: dict[tuple[str, str], Operation] = {
    ("GET", ""): _op("GetObject", objects.get_object, reads_object=True),
    ("HEAD", ""): _op("GetObject", objects.head_object, reads_object=True),
    ("PUT", ""): _op("PutObject", objects.put_object),
    ("PUT", "x-amz-copy-source"): _op("PutObject", copies.copy_object),
    ("DELETE", ""): _op("DeleteObject", objects.delete_object),
    ("GET", "tagging"): _op("GetObjectTagging", objects.get_tagging, reads_object=True),
    ("PUT", "tagging"): _op("PutObjectTagging", objects.put_tagging),
    ("DELETE", "tagging"): _op("DeleteObjectTagging", objects.delete_tagging),
    ("GET", "attributes"): _op("GetObjectAttributes", objects.get_attributes, reads_object=True),
    ("GET", "acl"): _op("GetObjectAcl", objects.get_acl, reads_object=True),
    ("PUT", "acl"): _op("PutObjectAcl", buckets.put_acl),
    ("GET", "retention"): _op("GetObjectRetention", absent("NoSuchObjectLockConfiguration")),
    ("GET", "legal-hold"): _op("GetObjectLegalHold", absent("NoSuchObjectLockConfiguration")),
    ("POST", "uploads"): _op("PutObject", multipart.create_upload),
    ("PUT", "uploadId"): _op("PutObject", multipart.upload_part),
    ("POST", "uploadId"): _op("PutObject", completion.complete_upload),
    ("DELETE", "uploadId"): _op("AbortMultipartUpload", multipart.abort_upload),
    ("GET", "uploadId"): _op("ListMultipartUploadParts", multipart.list_parts),
}

# Sub-resources that this server hasn't for any method: without the list they would be taken for plain requests.
_UNKNOWN = frozenset(
    {
        "abac",
        "analytics",
        "append",
        "intelligent-tiering",
        "inventory",
        "metadataConfiguration",
        "metadataTable",
        "metrics",
        "renameObject",
        "restore",
        "select",
        "session",
        "torrent",
    }
)
_BUCKET_SUBRESOURCES = {name for _, name in BUCKET if name}
_OBJECT_SUBRESOURCES = {name for _, name in OBJECT if name}


def find(request: Request) -> Operation:
    """The operation that a request asks for. Raises S3Error: MethodNotAllowed, NotImplemented."""
    if not request.bucket:
        operation = SERVICE.get(request.method)
        if operation is None:
            raise fault("MethodNotAllowed", Method=request.method)
        return operation
    table, known = (OBJECT, _OBJECT_SUBRESOURCES) if request.key else (BUCKET, _BUCKET_SUBRESOURCES)
    subresource = ""
    for name in request.query:
        if name in known:
            subresource = name
            break
        if name in _UNKNOWN:
            raise unsupported(f"the sub-resource {name}")
    if subresource == "" and request.key and copies.SOURCE in request.headers:
        subresource = copies.SOURCE
    if subresource == "list-type" and request.query["list-type"] != "2":
        subresource = ""
    operation = table.get((request.method, subresource))
    if operation is None:
        if subresource:
            raise unsupported(f"{request.method} of the sub-resource {subresource}")
        raise fault("MethodNotAllowed", Method=request.method)
    return operation
