"""An S3 request as the operations see it: bucket, key, query and headers of an ASGI scope.

Made by `server`, used by `signature`, `cors` and every operation. Holds no rule but how an address names a
bucket: path style (`/bucket/key`), or virtual-host style (`bucket.<domain>/key`) where a domain is
configured.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from oscar.model.object import Bucket, Credential, Object
from oscar.model.user import ANONYMOUS
from oscar.objects.embedded.faults import fault


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says about its signature."""

    access_key: str
    date: str
    """Of the credential scope: YYYYMMDD."""
    region: str
    timestamp: str
    """ISO 8601 basic format, as in the string to sign."""
    signed_headers: tuple[str, ...]
    signature: str
    payload: str
    """Hex SHA-256, `UNSIGNED-PAYLOAD` or one of the `STREAMING-...` markers."""
    presigned: bool

    @property
    def scope(self) -> str:
        """The credential scope as it stands in strings to sign."""
        return f"{self.date}/{self.region}/s3/aws4_request"


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def _decode(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise fault("InvalidURI", "The URI is not UTF-8.") from error
    if "\0" in text:
        # PostgreSQL can't hold it in text, so nothing of that name can be here.
        raise fault("InvalidURI", "The URI must not contain the character NUL.")
    return text


def parse_query(raw: bytes) -> list[tuple[str, str]]:
    """The pairs of a query string, decoded; a parameter without `=` has the value ""."""
    pairs = []
    for item in raw.split(b"&"):
        if item:
            name, _, value = item.partition(b"=")
            pairs.append((_unquote_plus(name), _unquote_plus(value)))
    return pairs


def _unquote_plus(data: bytes) -> str:
    if b"+" in data:
        data = data.replace(b"+", b" ")
    return _decode(unquote_to_bytes(data) if b"%" in data else data)


class Request:
    """One request. What is known of it beyond its bytes is filled in by `server` before an operation runs."""

    __slots__ = (
        "_receive",
        "asked",
        "bucket",
        "claim",
        "credential",
        "headers",
        "host",
        "id",
        "key",
        "known_bucket",
        "known_object",
        "method",
        "pairs",
        "path",
        "query",
        "signing_key",
        "source_ip",
    )

    def __init__(self, scope: Scope, receive: Receive, request_id: str, domain: str | None = None) -> None:
        """Read the scope.

        Args:
            scope: ASGI HTTP scope with `raw_path`.
            receive: ASGI receive, for the body.
            request_id: goes into answers and the log.
            domain: buckets are also served at `<bucket>.<domain>`; None for path style only.

        Raises:
            S3Error: InvalidURI.
        """
        self._receive = receive
        self.asked = False
        """Whether the body has been asked for, which tells a waiting client to send it."""
        self.id = request_id
        self.method: str = scope["method"]
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name = raw_name.decode("latin-1")
            # Header values may be UTF-8 (user metadata of Go clients); latin-1 keeps any bytes for the
            # signature.
            value = raw_value.decode("latin-1")
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        self.headers = headers
        self.host = headers.get("host", "")
        raw_path: bytes = scope["raw_path"]
        self.path = _decode(unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path)
        self.pairs = parse_query(scope["query_string"])
        self.query = dict(self.pairs)
        self.bucket, self.key = self._address(domain)
        client = scope.get("client")
        self.source_ip: str = client[0] if client else ""
        self.claim: Claim | None = None
        """The signature, once it has been checked; None for an anonymous request."""
        self.signing_key = b""
        self.credential: Credential | None = None
        self.known_bucket: Bucket | None = None
        self.known_object: Object | None = None

    def _address(self, domain: str | None) -> tuple[str, str]:
        path = self.path[1:]
        if domain:
            host = self.host.rpartition(":")[0] if ":" in self.host else self.host
            if host.endswith("." + domain):
                return host[: -len(domain) - 1], path
        bucket, _, key = path.partition("/")
        return bucket, key

    async def receive(self) -> Message:
        """The next piece of the body, as an ASGI message."""
        self.asked = True
        return await self._receive()

    @property
    def unread(self) -> bool:
        """Whether a body was announced that a client waiting for a go-ahead has not been asked for."""
        return not self.asked and self.headers.get("expect", "").lower() == "100-continue"

    @property
    def signed(self) -> bool:
        """Whether the request carried a valid signature."""
        return self.claim is not None

    @property
    def user(self) -> str:
        """Who asks: a user id, or `anonymous`."""
        return self.credential.user if self.credential else ANONYMOUS

    def text_header(self, name: str) -> str | None:
        """A header whose bytes may be UTF-8, decoded so; latin-1 where they are not."""
        value = self.headers.get(name)
        if value is None or value.isascii():
            return value
        raw = value.encode("latin-1")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return value

    def number(
        self, name: str, default: int | None = None, *, least: int = 0, most: int = 2**31 - 1
    ) -> int | None:
        """A whole number in the query.

        Raises:
            S3Error: InvalidArgument, naming the parameter.
        """
        text = self.query.get(name)
        if text is None or text == "":
            return default
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise fault(
                "InvalidArgument",
                f"{name} must be a whole number from {least} to {most}.",
                ArgumentName=name,
                ArgumentValue=text,
            )
        return int(text)
