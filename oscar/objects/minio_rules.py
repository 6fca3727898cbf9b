"""What MinIO is told about users, buckets and events: names, policies, tags, notification rules, environment. Pure.

Called by `objects.minio`, and by the CLI for the environment. Formats: MinIO's access management and bucket
notification guides, and the S3 API reference for `NotificationConfiguration` and `Tagging`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from defusedxml.ElementTree import ParseError, fromstring

from oscar.errors import StorageError

EVERYBODY = "all_users_group"
"""The group of all users, as OSCAR calls it; what is public is open to it."""

RULE_ID = "oscar"
"""Our one rule of a bucket; all others are left as they are."""

EVENTS = ("s3:ObjectCreated:*", "s3:Replication:OperationCompletedReplication")
"""What our rule asks for. The second tells of replicated objects only; it never is a second run of one object."""

_SPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_KINDS = ("QueueConfiguration", "TopicConfiguration", "CloudFunctionConfiguration")
_TAG = re.compile(r"[^A-Za-z0-9 +\-=._:/@]")
_TAG_KEY, _TAG_VALUE = 128, 256

_SHARED = (
    "s3:AbortMultipartUpload",
    "s3:DeleteObject",
    "s3:DeleteObjectTagging",
    "s3:GetBucketLocation",
    "s3:GetBucketVersioning",
    "s3:GetObject",
    "s3:GetObjectAttributes",
    "s3:GetObjectTagging",
    "s3:ListBucket",
    "s3:ListBucketMultipartUploads",
    "s3:ListBucketVersions",
    "s3:ListMultipartUploadParts",
    "s3:PutObject",
    "s3:PutObjectTagging",
)
_KEPT = (
    "s3:CreateBucket",
    "s3:DeleteBucket",
    "s3:ForceDeleteBucket",
    "s3:PutBucketNotification",
    "s3:PutBucketTagging",
)


def owners(bucket: str) -> str:
    """Name of the group and of the policy of a bucket's owner; buckets have no `_` in their names."""
    return f"owner_of_{bucket}"


def users(bucket: str) -> str:
    """Name of the policy of those with whom a bucket is shared; their group has the bucket's own name."""
    return f"users_of_{bucket}"


def owner_policy(bucket: str) -> dict[str, Any]:
    """All with the bucket but what is the platform's: making and removing it, its tags and its events."""
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    return _policy(
        {"Effect": "Allow", "Action": ["s3:*"], "Resource": resources},
        {"Effect": "Deny", "Action": list(_KEPT), "Resource": resources[:1]},
    )


def users_policy(bucket: str) -> dict[str, Any]:
    """Using the objects of the bucket, not changing its settings."""
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    return _policy({"Effect": "Allow", "Action": list(_SHARED), "Resource": resources})


def _policy(*statements: Mapping[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def tagging(tags: Mapping[str, str]) -> bytes:
    """The tags of a bucket as a document; characters that tags can't have become `_`."""
    root = Element("Tagging")
    parent = SubElement(root, "TagSet")
    for name, value in sorted(clean_tags(tags).items()):
        tag = SubElement(parent, "Tag")
        SubElement(tag, "Key").text = name
        SubElement(tag, "Value").text = value
    return bytes(tostring(root))


def clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags as they can be stored."""
    return {
        _TAG.sub("_", name)[:_TAG_KEY]: _TAG.sub("_", value)[:_TAG_VALUE]
        for name, value in tags.items()
        if name
    }


def read_tags(document: bytes) -> dict[str, str]:
    """The tags of such a document.

    Raises:
        StorageError: it is none.
    """
    found = {}
    for tag in _parsed(document).iter():
        if _local(tag) == "Tag":
            texts = {_local(part): part.text or "" for part in tag}
            found[texts.get("Key", "")] = texts.get("Value", "")
    return found


def with_rule(document: bytes, arn: str | None) -> bytes | None:
    """The bucket's notification rules with ours, which is one and has no prefix; those of others stay.

    Args:
        document: the rules as they are.
        arn: of our target; None to be without our rule.

    Returns:
        The rules as they should be; None when they are so already.

    Raises:
        StorageError: the document is none.
    """
    root = _parsed(document)
    ours = [child for child in root if _local(child) in _KINDS and _text(child, "Id") == RULE_ID]
    wanted = _rule(arn) if arn else None
    if [_shape(rule) for rule in ours] == ([_shape(wanted)] if wanted is not None else []):
        return None
    for rule in ours:
        root.remove(rule)
    if wanted is not None:
        root.append(wanted)
    # Without the prefix that a writer would make up for the name space: some servers look at names only.
    for element in root.iter():
        element.tag = _local(element)
    root.set("xmlns", _SPACE)
    return bytes(tostring(root))


def _rule(arn: str) -> Element:
    rule = Element("QueueConfiguration")
    SubElement(rule, "Id").text = RULE_ID
    SubElement(rule, "Queue").text = arn
    for event in EVENTS:
        SubElement(rule, "Event").text = event
    return rule


def _shape(rule: Element) -> tuple[str, str, frozenset[str], bool]:
    """What a rule says, whatever the order of its parts."""
    events = frozenset(part.text or "" for part in rule if _local(part) == "Event")
    filtered = any(_local(part) == "Filter" and list(part.iter("*"))[1:] for part in rule)
    return _local(rule), _text(rule, "Queue"), events, filtered


def _text(element: Element, name: str) -> str:
    return next((part.text or "" for part in element if _local(part) == name), "")


def _local(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _parsed(document: bytes) -> Element:
    try:
        root: Element = fromstring(document)
    except ParseError as error:
        raise StorageError(f"the object store answered with something else than XML: {error}") from error
    return root


def target_arn(info: str, target: str) -> str | None:
    """The ARN of our webhook in MinIO's own description of itself; None when it has no such target."""
    found = json.loads(info).get("sqsARN") or []
    return next((arn for arn in found if isinstance(arn, str) and arn.endswith(f":{target}:webhook")), None)


def environment(*, target: str, url: str, token: str, queue: str, limit: int) -> dict[str, str]:
    """What MinIO needs in its environment, once, so that it reports to the platform.

    Args:
        target: name of the target, unique in that MinIO.
        url: the API's address from there.
        token: what MinIO proves itself by.
        queue: folder in which MinIO keeps what it could not deliver yet; of each of its nodes, and lasting.
        limit: events that may lie there.
    """
    prefix, suffix = "MINIO_NOTIFY_WEBHOOK", target
    return {
        f"{prefix}_ENABLE_{suffix}": "on",
        f"{prefix}_ENDPOINT_{suffix}": f"{url.rstrip('/')}/system/events/minio",
        f"{prefix}_AUTH_TOKEN_{suffix}": token,
        f"{prefix}_QUEUE_DIR_{suffix}": queue,
        f"{prefix}_QUEUE_LIMIT_{suffix}": str(limit),
        # Each event is in that folder before its upload's request has ended.
        "MINIO_API_SYNC_EVENTS": "on",
    }
