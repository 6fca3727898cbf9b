"""What of a request an exposed service gets to see, and what of its answer the client: paths, headers, cookies.

Called by `exposed_proxy` and `exposed_websocket`. What proves somebody to the platform stays here: Authorization,
`?token=` and our cookies. Framing is never passed on: each side of the proxy has its own. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

Headers = Sequence[tuple[bytes, bytes]]

_PATH = re.compile(
    rb"(?P<prefix>/system/services/(?P<name>[a-z0-9-]{1,39})/(?:exposed|ports/(?P<port>[0-9]{1,5})))(?P<rest>/.*)?"
)
_HOP = frozenset(
    # RFC 9110 7.6.1, and those that speak of one connection only.
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade expect http2-settings".split()
)
_OURS = frozenset(b"forwarded x-real-ip x-request-id content-length host".split())
_WEBSOCKET = re.compile(rb"sec-websocket-.*")
_MINE = re.compile(r"\s*oscar_[^=;]*=")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]*")


@dataclass(frozen=True, slots=True)
class Target:
    """What an address asks for."""

    name: str
    port: int | None
    """None: the service's first one."""
    prefix: bytes
    rest: bytes
    """Path as the client wrote it, after the prefix; begins with a slash."""


def target(raw_path: bytes, query: bytes = b"") -> Target | None:
    """The exposed service that a path leads to; None when it leads to none.

    `/system/services/<name>/exposed/…` is the first port, `/system/services/<name>/ports/<port>/…` any.
    """
    found = _PATH.fullmatch(raw_path)
    if found is None or not _TARGET.fullmatch(raw_path) or not _TARGET.fullmatch(query):
        return None
    port = int(found["port"]) if found["port"] else None
    return Target(found["name"].decode(), port, found["prefix"], found["rest"] or b"/")


def first(headers: Headers, name: bytes) -> str | None:
    """The first header of that name."""
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def cookie(headers: Headers, name: str) -> str | None:
    """The cookie of that name."""
    for key, value in headers:
        if key == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                given, _, content = pair.strip().partition("=")
                if given == name:
                    return content
    return None


def token(query: bytes) -> str | None:
    """The first `token` of a query."""
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name == b"token":
            return unquote_to_bytes(value.replace(b"+", b" ")).decode("utf-8", "replace")
    return None


def owner(query: bytes) -> str | None:
    """The first `owner` of a query."""
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name == b"owner":
            return unquote_to_bytes(value.replace(b"+", b" ")).decode("utf-8", "replace")
    return None


def without_token(query: bytes) -> bytes:
    """The query as it was written, less its `token`."""
    return b"&".join(pair for pair in query.split(b"&") if pair.partition(b"=")[0] != b"token")


def upstream_target(where: Target, query: bytes, *, keep_prefix: bool, strip_token: bool) -> bytes:
    """What the service is asked for."""
    path = where.prefix + where.rest if keep_prefix else where.rest
    query = without_token(query) if strip_token else query
    return path + b"?" + query if query else path


def request_headers(
    headers: Headers,
    where: Target,
    *,
    client: str,
    scheme: str,
    request_id: str,
    strip_authorization: bool,
) -> list[tuple[bytes, bytes]]:
    """The headers for the service, without framing."""
    dropped = _HOP | _OURS | _named_by_connection(headers)
    if strip_authorization:
        dropped = dropped | {b"authorization"}
    host = first(headers, b"host") or ""
    kept: list[tuple[bytes, bytes]] = [(b"host", host.encode("latin-1"))]
    for name, value in headers:
        if name in dropped or name.startswith(b"x-forwarded-") or _WEBSOCKET.fullmatch(name):
            continue
        passed = _without_ours(value) if name == b"cookie" else value
        if passed or not value:
            kept.append((name, passed))
    address = client.encode("latin-1", "replace")
    return [
        *kept,
        # Written anew: what a client says of itself here is worth nothing.
        (b"x-forwarded-for", address),
        (b"x-real-ip", address),
        (b"x-forwarded-host", host.encode("latin-1")),
        (b"x-forwarded-proto", scheme.encode()),
        (b"x-forwarded-prefix", where.prefix),
        (b"x-request-id", request_id.encode()),
    ]


def response_headers(headers: Headers, where: Target, *, keep_prefix: bool) -> list[tuple[bytes, bytes]]:
    """The service's headers for the client."""
    # The time is told by our server; a length is kept, so that clients see how far a download has come.
    dropped = _HOP | _named_by_connection(headers) | {b"date", b"x-request-id"}
    kept = []
    for name, value in headers:
        if name in dropped:
            continue
        if name == b"location" and not keep_prefix:
            kept.append((name, _inside(value, where.prefix)))
        elif name == b"set-cookie":
            fenced = _fenced(value, where.prefix, keep_prefix=keep_prefix)
            kept += [(name, fenced)] if fenced else []
        else:
            kept.append((name, value))
    return kept


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    return frozenset(
        word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")
    )


def _without_ours(value: bytes) -> bytes:
    pairs = value.decode("latin-1").split(";")
    return "; ".join(pair.strip() for pair in pairs if not _MINE.match(pair)).encode("latin-1")


def _inside(path: bytes, prefix: bytes) -> bytes:
    """A path that the service names, as the client must ask for it; other addresses stay."""
    if not path.startswith(b"/") or path.startswith((b"//", prefix + b"/")) or path == prefix:
        return path
    return prefix + path


def _fenced(value: bytes, prefix: bytes, *, keep_prefix: bool) -> bytes:
    """A cookie of the service that goes back to it alone; empty for one that takes the name of ours."""
    text = value.decode("latin-1")
    if _MINE.match(text):
        return b""
    pair, *attributes = text.split(";")
    kept = [pair]
    path = b"/"
    for attribute in attributes:
        name, _, content = attribute.strip().partition("=")
        if name.lower() == "path":
            path = content.strip().encode("latin-1")
        elif name.lower() != "domain":
            kept.append(attribute)
    if keep_prefix:
        inside = path if path.startswith(prefix) else prefix
    else:
        inside = prefix if not path.startswith(b"/") or path == b"/" else _inside(path, prefix)
    return ";".join(kept).encode("latin-1") + b"; Path=" + inside


# CORS: https://fetch.spec.whatwg.org/#http-cors-protocol


@dataclass(frozen=True, slots=True)
class Cors:
    """Which browsers may call exposed services; without origins that is left to the services."""

    origins: tuple[str, ...] = ()
    methods: str = ""
    headers: str = ""

    def allowed(self, headers: Headers) -> str | None:
        """The origin that a request comes from, if it is an allowed one."""
        origin = first(headers, b"origin")
        return origin if origin and (origin in self.origins or "*" in self.origins) else None

    def is_preflight(self, method: str, headers: Headers) -> bool:
        """Whether it asks for leave only; answered here, because it comes without credentials."""
        asks = first(headers, b"access-control-request-method") is not None
        return bool(self.origins) and method == "OPTIONS" and asks and first(headers, b"origin") is not None

    def answer(self, origin: str | None, *, preflight: bool) -> list[tuple[bytes, bytes]]:
        """The headers that say so."""
        if origin is None:
            return [(b"vary", b"Origin")]
        found = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-credentials", b"true"),
            (b"vary", b"Origin"),
        ]
        if "*" in self.origins and origin not in self.origins:
            # Any page at all may not use the log-in of whoever looks at it.
            found = [(b"access-control-allow-origin", b"*"), (b"vary", b"Origin")]
        if preflight:
            found += [
                (b"access-control-allow-methods", self.methods.encode("latin-1")),
                (b"access-control-allow-headers", self.headers.encode("latin-1")),
                (b"access-control-max-age", b"600"),
            ]
        return found

    def replace(
        self, headers: Iterable[tuple[bytes, bytes]], origin: str | None
    ) -> list[tuple[bytes, bytes]]:
        """An answer's headers with ours instead of the service's own, where origins are configured."""
        if not self.origins:
            return list(headers)
        kept = [pair for pair in headers if not pair[0].startswith(b"access-control-allow-")]
        return kept + self.answer(origin, preflight=False)
