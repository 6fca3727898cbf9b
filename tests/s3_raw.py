"""A bare S3 client for tests: requests signed by botocore, sent by http.client, tampered with on the way.

Called by the S3 acceptance tests where an SDK would not let through what is to be tried.
"""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from xml.etree import ElementTree as ET

import boto3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from oscar.model.object import Credential
from tests.s3_server import ADMIN, REGION, Server

MIB = 1024 * 1024


@dataclass(slots=True)
class Reply:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code of an S3 error."""
        return self.text("Code")

    def text(self, name: str) -> str:
        """The text of the first element of that name, "" when there is none."""
        return next(iter(self.texts(name)), "")

    def texts(self, name: str) -> list[str]:
        """The texts of all elements of that name."""
        if not self.body:
            return []
        root = ET.fromstring(self.body)  # noqa: S314 - the answer of our own server
        return [node.text or "" for node in root.iter() if node.tag.rpartition("}")[2] == name]


def call(
    server: Server,
    who: Credential | None,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    late_headers: Mapping[str, str] | None = None,
    sent_body: bytes | None = None,
) -> Reply:
    """Send a request.

    Args:
        server: the server.
        who: signs it; None for nobody.
        method: of HTTP.
        path: bucket and key, not encoded.
        body: what is signed.
        query: parameters; sub-resources with the value "".
        headers: signed headers.
        late_headers: added after the signature.
        sent_body: sent instead of `body`.
    """
    target = quote(path, safe="/-_.~") + (f"?{urlencode(query)}" if query else "")
    request = AWSRequest(method, server.endpoint + target, data=body, headers=dict(headers or {}))
    signed = sign(request, who) if who else dict(headers or {})
    return send(
        server, method, target, body if sent_body is None else sent_body, {**signed, **(late_headers or {})}
    )


class _Auth(S3SigV4Auth):  # type: ignore[misc]  # botocore has no types
    """Signs with the payload hash that the request states already, whatever it says."""

    stated: str | None = None

    def payload(self, request: AWSRequest) -> str:
        return self.stated or str(super().payload(request))


def sign(request: AWSRequest, who: Credential) -> dict[str, str]:
    """Sign a request; all its headers, with names in lower case."""
    auth = _Auth(Credentials(who.access_key, who.secret_key), "s3", REGION)
    auth.stated = request.headers.get("x-amz-content-sha256")
    auth.add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


def signer(who: Credential, date: str) -> Callable[[str], str]:
    """A function that signs any string with the keys of that day."""
    auth = S3SigV4Auth(Credentials(who.access_key, who.secret_key), "s3", REGION)
    request = AWSRequest("PUT", "http://unused")
    request.context["timestamp"] = date
    return lambda text: str(auth.signature(text, request))


def send(server: Server, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> Reply:
    """Send exactly this."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, target, body=body or None, headers=dict(headers))
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read())
    finally:
        connection.close()


def boto(server: Server, who: Credential | None, **config: object) -> Any:
    """A boto3 client that never tries again, so that every error is seen."""
    options = {"retries": {"max_attempts": 1, "mode": "standard"}, **config}
    if who is None:
        from botocore import UNSIGNED

        options["signature_version"] = UNSIGNED
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=REGION,
        aws_access_key_id=who.access_key if who else None,
        aws_secret_access_key=who.secret_key if who else None,
        config=Config(**options),
    )


def admin(server: Server) -> Any:
    """A boto3 client of the admin."""
    return boto(server, ADMIN)


def code_of(act: Callable[..., object], **arguments: object) -> str:
    """The code of the error that a boto3 call ends in, "" when it succeeds."""
    try:
        act(**arguments)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


def new_bodies(server: Server, before: Sequence[Path], wanted: int) -> list[Path]:
    """The bodies that were not there before, when as many are left as wanted (or after 10 s)."""
    deadline = time.monotonic() + 10
    while True:
        found = [body for body in server.bodies() if body not in before]
        if len(found) == wanted or time.monotonic() > deadline:
            return found
        os.sched_yield()
