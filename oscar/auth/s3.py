"""Who may do what over the S3 protocol: visibility of buckets and bucket policies. Pure.

Handed to `objects.embedded.server.S3App` by the composition root. Rules, in this order: the bucket's owner and the
admin may do all; a matching Deny of the bucket's policy refuses; the visibility or a matching Allow permits. A policy
is the common subset of S3's: Effect, Principal, Action, Resource with wildcards; anything else is refused when it is
set. Source: "Policies and permissions in Amazon S3" in the S3 user guide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from oscar.errors import InvalidField
from oscar.model.object import Bucket, Credential, Visibility

_VERSIONS = frozenset({"2012-10-17", "2008-10-17"})
_STATEMENT_FIELDS = frozenset({"Sid", "Effect", "Principal", "Action", "Resource"})
_ARN = "arn:aws:s3:::"
_ACTION = re.compile(r"s3:[A-Za-z*?]+|\*")
_USER_ARN = re.compile(r"arn:aws:iam:[^:]*:[^:]*:user/(.+)")

USING_OBJECTS = frozenset(
    {
        "s3:AbortMultipartUpload",
        "s3:DeleteObject",
        "s3:DeleteObjectTagging",
        "s3:GetBucketLocation",
        "s3:GetBucketVersioning",
        "s3:GetObject",
        "s3:GetObjectAcl",
        "s3:GetObjectAttributes",
        "s3:GetObjectTagging",
        "s3:ListBucket",
        "s3:ListBucketMultipartUploads",
        "s3:ListBucketVersions",
        "s3:ListMultipartUploadParts",
        "s3:PutObject",
        "s3:PutObjectAcl",
        "s3:PutObjectTagging",
    }
)
"""What those may do who share a bucket: use its objects, not change its settings."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a policy, checked."""

    allow: bool
    principals: tuple[str, ...]
    """User ids or access keys; `*` is everybody, also without keys."""
    actions: tuple[re.Pattern[str], ...]
    resources: tuple[re.Pattern[str], ...]

    def covers(self, credential: Credential | None, action: str, resource: str) -> bool:
        """Whether the statement speaks about this request."""
        names = {"*"} if credential is None else {"*", credential.user, credential.access_key}
        return (
            not names.isdisjoint(self.principals)
            and any(pattern.fullmatch(action) for pattern in self.actions)
            and any(pattern.fullmatch(resource) for pattern in self.resources)
        )


def may_s3(credential: Credential | None, action: str, bucket: Bucket, key: str = "") -> bool:
    """Whether an action is allowed.

    Args:
        credential: who signed the request; None when nobody did.
        action: name of S3's, such as `s3:GetObject`.
        bucket: the bucket at hand.
        key: the object's key, "" for an action on the bucket.
    """
    if credential is not None and (credential.admin or credential.user == bucket.owner):
        return True
    statements = parse_policy(bucket.policy, bucket.name) if bucket.policy else ()
    resource = f"{bucket.name}/{key}" if key else bucket.name
    covering = [statement for statement in statements if statement.covers(credential, action, resource)]
    if any(not statement.allow for statement in covering):
        return False
    return bool(covering) or _by_visibility(credential, action, bucket)


def _by_visibility(credential: Credential | None, action: str, bucket: Bucket) -> bool:
    if credential is None or action not in USING_OBJECTS:
        return False
    if bucket.visibility is Visibility.PUBLIC:
        return True
    return bucket.visibility is Visibility.RESTRICTED and credential.user in bucket.allowed_users


def may_create(credential: Credential) -> bool:
    """Whether a key pair may create buckets over S3: the admin's only; users create them over the REST API."""
    return credential.admin


def check_policy(text: str, bucket: str) -> None:
    """Check a policy before it is stored. Raises InvalidField, naming what is wrong."""
    parse_policy(text, bucket)


@lru_cache(maxsize=256)
def parse_policy(text: str, bucket: str) -> tuple[Statement, ...]:
    """Read a policy.

    Raises:
        InvalidField: it is not JSON, or says something that this server doesn't understand.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidField(f"The policy is not JSON: {error}.", field="policy") from error
    if not isinstance(document, dict):
        raise InvalidField("The policy must be a JSON object.", field="policy")
    for name in document:
        if name not in {"Version", "Id", "Statement"}:
            raise InvalidField(f"The element {name} of a policy is not supported.", field=str(name))
    if document.get("Version", "2008-10-17") not in _VERSIONS:
        raise InvalidField("The version of a policy is 2012-10-17.", field="Version")
    statements = document.get("Statement")
    if isinstance(statements, dict):
        statements = [statements]
    if not isinstance(statements, list) or not statements:
        raise InvalidField("A policy needs a list of statements.", field="Statement")
    return tuple(_statement(item, f"Statement[{i}]", bucket) for i, item in enumerate(statements))


def _statement(item: object, where: str, bucket: str) -> Statement:
    if not isinstance(item, dict):
        raise InvalidField(f"{where} must be an object.", field=where)
    for name in item:
        if name not in _STATEMENT_FIELDS:
            raise InvalidField(f"{where}.{name} is not supported.", field=f"{where}.{name}")
    effect = item.get("Effect")
    if effect not in {"Allow", "Deny"}:
        raise InvalidField(f"{where}.Effect must be Allow or Deny.", field=f"{where}.Effect")
    actions = _texts(item.get("Action"), f"{where}.Action")
    for action in actions:
        if not _ACTION.fullmatch(action):
            raise InvalidField(f"{where}.Action: {action} is no action of S3.", field=f"{where}.Action")
    resources = [
        resource.removeprefix(_ARN) for resource in _texts(item.get("Resource"), f"{where}.Resource")
    ]
    for resource in resources:
        if resource != "*" and resource.partition("/")[0] != bucket:
            raise InvalidField(
                f"{where}.Resource must name this bucket, {_ARN}{bucket} or {_ARN}{bucket}/<keys>.",
                field=f"{where}.Resource",
            )
    return Statement(
        effect == "Allow",
        _principals(item.get("Principal"), f"{where}.Principal"),
        tuple(_pattern(action, re.IGNORECASE) for action in actions),
        tuple(_pattern(resource) for resource in resources),
    )


def _texts(value: object, where: str) -> Sequence[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(text, str) for text in values):
        raise InvalidField(f"{where} must be a text or a list of texts.", field=where)
    return values


def _principals(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, dict):
        for name in value:
            if name != "AWS":
                raise InvalidField(f"{where}.{name} is not supported.", field=f"{where}.{name}")
        value = value.get("AWS")
    elif value != "*":
        raise InvalidField(f'{where} must be "*" or {{"AWS": [...]}}.', field=where)
    names = []
    for text in _texts(value, where):
        user = _USER_ARN.fullmatch(text)
        names.append(user.group(1) if user else text)
    return tuple(names)


def _pattern(text: str, flags: int = 0) -> re.Pattern[str]:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in text)
    return re.compile("".join(parts), flags | re.DOTALL)
