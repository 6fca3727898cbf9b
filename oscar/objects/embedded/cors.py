"""Cross-origin requests of browsers: a bucket's CORS configuration, and the server's default.

Called by `server` (preflights, headers of every answer to a browser) and `buckets` (the configuration
itself). Pure. Source: PutBucketCors of the S3 API reference, and the Fetch standard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from oscar.objects.embedded.faults import fault
from oscar.objects.embedded.xml import Node, parse

METHODS = ("GET", "PUT", "POST", "DELETE", "HEAD")
_MAX_RULES = 100
_EXPOSED = (
    "ETag, Last-Modified, Content-Length, Content-Range, Accept-Ranges, x-amz-request-id, x-amz-version-id, "
    "x-amz-tagging-count, x-amz-checksum-crc32, x-amz-checksum-crc32c, x-amz-checksum-crc64nvme, "
    "x-amz-checksum-sha1, x-amz-checksum-sha256, *"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a CORS configuration."""

    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...]
    exposed: tuple[str, ...]
    max_age: int | None


def default_rules(origins: Sequence[str]) -> list[Rule]:
    """The rules of a bucket without a configuration: these origins, all methods and headers."""
    if not origins:
        return []
    return [Rule(tuple(origins), METHODS, ("*",), (_EXPOSED,), 3600)]


def parse_rules(text: bytes) -> list[Rule]:
    """Read a CORSConfiguration. Raises S3Error: MalformedXML, InvalidRequest."""
    rules = [_rule(node) for node in parse(text, "CORSConfiguration").all("CORSRule")]
    if not 1 <= len(rules) <= _MAX_RULES:
        raise fault("MalformedXML", f"A CORSConfiguration has 1 to {_MAX_RULES} rules.")
    return rules


def _rule(node: Node) -> Rule:
    def texts(name: str) -> tuple[str, ...]:
        return tuple(child.text for child in node.all(name))

    origins, methods, age = texts("AllowedOrigin"), texts("AllowedMethod"), node.value("MaxAgeSeconds")
    if not origins or not methods:
        raise fault("MalformedXML", "A CORSRule needs an AllowedOrigin and an AllowedMethod.")
    for method in methods:
        if method not in METHODS:
            raise fault("InvalidRequest", f"Found unsupported HTTP method in CORS config: {method}.")
    for pattern in (*origins, *texts("AllowedHeader")):
        if pattern.count("*") > 1:
            raise fault("InvalidRequest", f"{pattern} can not have more than one wildcard.")
    if age is not None and not (age.isascii() and age.isdigit()):
        raise fault("MalformedXML", "MaxAgeSeconds must be a number.")
    return Rule(origins, methods, texts("AllowedHeader"), texts("ExposeHeader"), int(age) if age else None)


def _like(text: str, pattern: str) -> bool:
    # Only * is special in a rule, while fnmatch also knows ? and [.
    return fnmatchcase(text, pattern.replace("[", "[[]").replace("?", "[?]"))


def find_rule(rules: Sequence[Rule], origin: str, method: str, headers: Sequence[str] = ()) -> Rule | None:
    """The first rule that allows a request from that origin with those headers."""
    for rule in rules:
        if method not in rule.methods or not any(_like(origin, pattern) for pattern in rule.origins):
            continue
        allowed = [pattern.lower() for pattern in rule.headers]
        if all(any(_like(name, pattern) for pattern in allowed) for name in headers):
            return rule
    return None


def answer_headers(rule: Rule, origin: str) -> dict[str, str]:
    """The headers that let a browser show an answer to its page."""
    found = {"access-control-allow-origin": "*" if "*" in rule.origins else origin, "vary": "Origin"}
    if rule.exposed:
        found["access-control-expose-headers"] = ", ".join(rule.exposed)
    return found


def preflight_headers(rules: Sequence[Rule], request_headers: Mapping[str, str]) -> dict[str, str]:
    """The answer to a preflight.

    Raises:
        S3Error: AccessDenied when no rule allows the request, InvalidRequest when it is no preflight.
    """
    origin = request_headers.get("origin")
    method = request_headers.get("access-control-request-method")
    if not origin or not method:
        raise fault(
            "InvalidRequest", "A preflight needs the headers Origin and Access-Control-Request-Method."
        )
    wanted = request_headers.get("access-control-request-headers", "")
    names = [name.strip().lower() for name in wanted.split(",") if name.strip()]
    rule = find_rule(rules, origin, method, names)
    if rule is None:
        raise fault("AccessDenied", "CORSResponse: This CORS request is not allowed.")
    found = answer_headers(rule, origin)
    found["access-control-allow-methods"] = ", ".join(rule.methods)
    found["vary"] = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"
    if names:
        found["access-control-allow-headers"] = ", ".join(names)
    if rule.max_age is not None:
        found["access-control-max-age"] = str(rule.max_age)
    return found
