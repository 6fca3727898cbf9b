"""What foreign file servers say, in words that can be shown: no secrets, no markup, no endless pages.

Called by `objects.web` and the stores on it (`webdav`, `onedata`, `rucio`) for every error. Pure.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import quote, unquote, urlsplit

LONGEST = 300
"""Characters of a server's own words in an error."""
SHORTEST_SECRET = 4
"""Shorter ones would blank out half the text."""

_USER = re.compile(r"(?<=://)[^/@\s\"'<>]*@")
_QUERY = re.compile(r"(\w+://[^\s?\"'<>]+)\?[^\s\"'<>]*")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w\-.~+/]{8,}=*")
_HIDDEN_MARKUP = re.compile(r"(?is)<(style|script|head)\b.*?</\1\s*>|<!--.*?-->|<\?.*?\?>|<!.*?>")
_TAG = re.compile(r"<[^>]*>")
_CONTROL = re.compile(r"[\x00-\x20\x7f]+")
_MEMBERS = ("ExceptionMessage", "error_description", "description", "message", "detail", "error")


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without secrets: the given ones, users and queries of URLs, credentials of HTTP headers."""
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
    text = _USER.sub("", text)
    text = _QUERY.sub(r"\1", text)
    return _BEARER.sub(r"\1 ***", text)


def place(url: str) -> str:
    """Host and path of a URL as a person would write them, without user, query and encoding."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{unquote(parts.path)}"


def host(url: str) -> str:
    """Host and port of a URL."""
    return urlsplit(url).netloc.rpartition("@")[2]


def words(status: int, body: str) -> str:
    """What the body of an error answer says: its message in JSON, or its text without markup.

    Args:
        status: of the answer, whose phrase is taken when the body says nothing.
        body: of the answer.
    """
    said = _CONTROL.sub(" ", _text(body)).strip()
    return said[:LONGEST] or phrase(status)


def phrase(status: int) -> str:
    """The standard's name for a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "an unknown status"


def _text(body: str) -> str:
    stripped = body.strip()
    if stripped.startswith("{"):
        try:
            return _message(json.loads(stripped)) or stripped
        except ValueError:
            return stripped
    if stripped.startswith("<"):
        return html.unescape(_TAG.sub(" ", _HIDDEN_MARKUP.sub(" ", stripped)))
    return stripped


def _message(value: object) -> str:
    """The first text among the members that servers put their message in, looked for two levels deep."""
    if not isinstance(value, dict):
        return ""
    for name in _MEMBERS:
        found = value.get(name)
        if isinstance(found, str) and found:
            return found
        if inner := _message(found):
            return inner
    return ""
