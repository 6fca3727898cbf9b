"""Uploads by a browser's form: POST of multipart/form-data with a signed policy.

Routed to by `routes`. The fields come first and say who signed what; the file follows and streams like any other
body. Source: "POST Object" and "Creating a POST policy" in the S3 API reference.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from datetime import datetime
from email.message import Message as MimeHeaders
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from oscar.objects.embedded import names
from oscar.objects.embedded.attributes import (
    DEFAULT_TYPE,
    META,
    STORED,
    Attributes,
    check_metadata,
    check_refused,
    parse_tagging,
)
from oscar.objects.embedded.buckets import the_bucket
from oscar.objects.embedded.faults import ClientGone, fault
from oscar.objects.embedded.intake import Expected
from oscar.objects.embedded.objects import store_body
from oscar.objects.embedded.requests import Message, Receive, Request
from oscar.objects.embedded.signature import read_scope
from oscar.objects.embedded.site import Answer, Site, xml_answer
from oscar.objects.embedded.xml import document, element, parse
from oscar.objects.sigv4 import ALGORITHM, matches, signing_key

_MAX_FIELDS = 1024 * 1024
_MAX_HEADERS = 16 * 1024
_NOT_IN_POLICY = frozenset({"x-amz-signature", "signature", "awsaccesskeyid", "file", "policy"})
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_PIECE = 256 * 1024


class Form:
    """A multipart/form-data body: first its fields, then its file as a stream."""

    def __init__(self, receive: Receive, content_type: str) -> None:
        """Read the boundary. Raises S3Error: MalformedPOSTRequest."""
        headers = MimeHeaders()
        headers["content-type"] = content_type
        boundary = headers.get_param("boundary")
        if (
            headers.get_content_type() != "multipart/form-data"
            or not isinstance(boundary, str)
            or not boundary
        ):
            raise fault(
                "MalformedPOSTRequest", "A POST to a bucket must be multipart/form-data with a boundary."
            )
        self._receive = receive
        self._delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
        # As if a line break came before the first boundary too, so that all are found alike.
        self._buffer = bytearray(b"\r\n")
        self._more = True
        self.fields: dict[str, str] = {}
        """Names in lower case."""
        self.filename = ""
        self.least, self.most = 0, 0
        """Bounds of the file's size in bytes; `most` 0 for none."""
        self._size = 0

    async def _fill(self) -> None:
        if not self._more:
            raise fault("MalformedPOSTRequest", "The body ended early.")
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone
        self._buffer += message.get("body", b"")
        self._more = bool(message.get("more_body", False))

    async def _until(self, mark: bytes, limit: int) -> bytes:
        """Take the bytes before a mark, and the mark."""
        while (found := self._buffer.find(mark)) < 0:
            if len(self._buffer) > limit:
                raise fault("MalformedPOSTRequest", "The fields before the file are too long.")
            await self._fill()
        taken = bytes(self._buffer[:found])
        del self._buffer[: found + len(mark)]
        return taken

    async def read_fields(self) -> None:
        """Read all fields up to the file. Raises S3Error: MalformedPOSTRequest."""
        await self._until(self._delimiter, _MAX_HEADERS)
        size = 0
        while True:
            ending = await self._until(b"\r\n", _MAX_HEADERS)
            if ending.strip():
                raise fault("MalformedPOSTRequest", "The form has no field named file.")
            headers = (await self._until(b"\r\n\r\n", _MAX_HEADERS)).decode("utf-8", "replace")
            name, filename = _disposition(headers)
            if name == "file":
                self.filename = filename
                return
            value = await self._until(self._delimiter, _MAX_FIELDS)
            size += len(value)
            if size > _MAX_FIELDS:
                raise fault("MalformedPOSTRequest", "The fields before the file are too long.")
            self.fields[name] = value.decode("utf-8", "replace")

    async def receive_file(self) -> Message:
        """The next piece of the file, in the form of an ASGI message.

        Raises:
            S3Error: EntityTooLarge, EntityTooSmall by the bounds of the policy.
        """
        while True:
            found = self._buffer.find(self._delimiter)
            ready = found if found >= 0 else len(self._buffer) - len(self._delimiter)
            if found >= 0 or ready >= _PIECE:
                break
            await self._fill()
        piece = bytes(self._buffer[:ready])
        del self._buffer[:ready]
        self._size += len(piece)
        if self.most and self._size > self.most:
            raise fault("EntityTooLarge", ProposedSize=self._size, MaxSizeAllowed=self.most)
        if found >= 0 and self._size < self.least:
            raise fault(
                "EntityTooSmall", "The file is smaller than the policy wants.", ProposedSize=self._size
            )
        return {"type": "http.request", "body": piece, "more_body": found < 0}


def _disposition(headers: str) -> tuple[str, str]:
    for line in headers.split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            found = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', value))
            return found.get("name", "").lower(), found.get("filename", "")
    raise fault("MalformedPOSTRequest", "A part of the form has no Content-Disposition.")


async def post_object(site: Site, request: Request) -> Answer:
    """POST Object: an upload by a form."""
    form = Form(request.receive, request.headers.get("content-type", ""))
    await form.read_fields()
    fields = form.fields
    if "key" not in fields:
        raise fault("InvalidArgument", "The form needs a field named key.", ArgumentName="key")
    if "policy" in fields:
        await _authenticate(site, request, fields)
        check_policy(fields, request.bucket, form, site.now())
    filename = form.filename.replace("\\", "/").rpartition("/")[2]
    request.key = fields["key"].replace("${filename}", filename)
    names.check_key(request.key)
    if not request.key:
        raise fault("InvalidArgument", "The key is empty.", ArgumentName="key")
    if not site.authorize(request.credential, "s3:PutObject", the_bucket(request), request.key):
        raise fault("AccessDenied")
    attributes = _attributes(fields)
    obj = await store_body(site, request, attributes, Expected(), form.receive_file, "Post")
    return _answer(fields, request, obj.etag)


async def _authenticate(site: Site, request: Request, fields: Mapping[str, str]) -> None:
    """Check the signature of the policy and take over the identity of who signed it."""
    if fields.get("x-amz-algorithm") != ALGORITHM:
        raise fault(
            "InvalidArgument", f"x-amz-algorithm must be {ALGORITHM}.", ArgumentName="x-amz-algorithm"
        )
    access_key, date, region = read_scope(fields.get("x-amz-credential", ""), "InvalidArgument")
    credential = await site.index.credential(access_key)
    if credential is None:
        raise fault("InvalidAccessKeyId", AWSAccessKeyId=access_key)
    key = signing_key(credential.secret_key, date, region)
    if not matches(key, fields["policy"], fields.get("x-amz-signature", "")):
        raise fault("SignatureDoesNotMatch")
    request.credential = credential


def check_policy(fields: Mapping[str, str], bucket: str, form: Form, now: float) -> None:
    """Check the fields against the policy that was signed; sets the bounds of the file's size.

    Raises:
        S3Error: AccessDenied naming the condition, InvalidArgument when the policy can't be read.
    """
    try:
        policy = json.loads(base64.b64decode(fields["policy"], validate=True))
        expiration = datetime.fromisoformat(policy["expiration"]).timestamp()
        conditions = policy["conditions"]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise fault("InvalidArgument", "The policy is not valid.", ArgumentName="policy") from error
    if not isinstance(conditions, list):
        raise fault("InvalidArgument", "The policy has no list of conditions.", ArgumentName="policy")
    if now > expiration:
        raise fault("AccessDenied", "Invalid according to Policy: Policy expired.")
    values = {**fields, "bucket": bucket}
    covered: set[str] = set()
    for condition in conditions:
        for operator, name, value in _readable(condition):
            if operator == "content-length-range":
                form.least, form.most = int(name), int(value)
                continue
            covered.add(name)
            given = values.get(name, "")
            if not (given == value if operator == "eq" else given.startswith(value)):
                raise fault(
                    "AccessDenied", f"Invalid according to Policy: Policy Condition failed: {condition}"
                )
    for name in fields:
        if name not in covered and name not in _NOT_IN_POLICY and not name.startswith("x-ignore-"):
            raise fault("AccessDenied", f"Invalid according to Policy: Extra input fields: {name}")


def _readable(condition: Any) -> list[tuple[str, str, str]]:
    """A condition as (operator, field in lower case, value)."""
    if isinstance(condition, dict):
        return [("eq", str(name).lower(), str(value)) for name, value in condition.items()]
    if isinstance(condition, list) and len(condition) == 3:  # noqa: PLR2004 - operator, field, value
        operator, name, value = condition
        if operator == "content-length-range" and isinstance(name, int) and isinstance(value, int):
            return [(operator, str(name), str(value))]
        if operator in {"eq", "starts-with"} and isinstance(name, str) and name.startswith("$"):
            return [(operator, name[1:].lower(), str(value))]
    raise fault(
        "InvalidArgument", f"A condition of the policy is not valid: {condition}", ArgumentName="policy"
    )


def _attributes(fields: Mapping[str, str]) -> Attributes:
    check_refused({("x-amz-acl" if name == "acl" else name): value for name, value in fields.items()})
    for name, value in fields.items():
        if (name in {*STORED, "content-type"} or name.startswith(META)) and _CONTROL.search(value):
            raise fault("InvalidArgument", "A header can't hold control characters.", ArgumentName=name)
    metadata = {name[len(META) :]: value for name, value in fields.items() if name.startswith(META)}
    check_metadata(metadata)
    tags = parse_tagging(parse(fields["tagging"].encode(), "Tagging")) if "tagging" in fields else {}
    headers = {name: fields[name] for name in STORED if name in fields}
    return Attributes(fields.get("content-type") or DEFAULT_TYPE, headers, metadata, tags)


def _answer(fields: Mapping[str, str], request: Request, etag: str) -> Answer:
    location = f"/{request.bucket}/{quote(request.key)}"
    headers = {"etag": f'"{etag}"', "location": location}
    target = fields.get("success_action_redirect", "")
    if target and urlsplit(target).scheme in {"http", "https"} and not _CONTROL.search(target):
        extra = urlencode({"bucket": request.bucket, "key": request.key, "etag": f'"{etag}"'})
        headers["location"] = f"{target}{'&' if urlsplit(target).query else '?'}{extra}"
        return Answer(303, headers=headers)
    if fields.get("success_action_status") == "201":
        parts = (
            element("Location", location),
            element("Bucket", request.bucket),
            element("Key", request.key),
            element("ETag", f'"{etag}"'),
        )
        return xml_answer(document("PostResponse", parts), 201, headers)
    return Answer(200 if fields.get("success_action_status") == "200" else 204, headers=headers)
