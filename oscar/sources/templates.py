"""Queries with placeholders, filled so that no value can change what they ask: LogQL and PromQL. Pure.

Called by `sources.loki` and `sources.prometheus`. A service's name goes in as a regular expression that matches just
that name, written for the kind of string in which the placeholder stands: LogQL and PromQL have "…" and '…' with
escapes, and `…` without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from oscar.errors import Misuse

ANY = ".*"
_PLACEHOLDER = re.compile(r"\{\{\s*([a-z][a-z_]*)\s*\}\}")
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")


def regex(text: str) -> str:
    """A regular expression of RE2 that matches the text."""
    return _SPECIAL.sub(lambda found: "\\" + found[0], text)


def fill(template: str, values: Mapping[str, str]) -> str:
    """The query with its placeholders filled.

    Raises:
        Misuse: a placeholder is not known, or a value can't stand where it is.
    """
    parts, place = [], 0
    quote = ""
    for found in _PLACEHOLDER.finditer(template):
        quote = _quote_after(template[place : found.start()], quote)
        if found[1] not in values:
            raise Misuse(
                f"The query has an unknown placeholder {found[0]}",
                fix="use " + ", ".join(f"{{{{{name}}}}}" for name in values),
            )
        parts += [template[place : found.start()], _inside(values[found[1]], quote)]
        place = found.end()
    return "".join([*parts, template[place:]])


def has(template: str, name: str) -> bool:
    """Whether a query has that placeholder."""
    return any(found[1] == name for found in _PLACEHOLDER.finditer(template))


def quoted(text: str) -> str:
    """A string of LogQL or PromQL."""
    return f'"{_inside(text, chr(34))}"'


def _quote_after(text: str, quote: str) -> str:
    """In which kind of string one is after a text that begins in such a one; empty outside of all."""
    escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif quote:
            if character == "\\" and quote != "`":
                escaped = True
            elif character == quote:
                quote = ""
        elif character in "\"'`":
            quote = character
    return quote


def _inside(value: str, quote: str) -> str:
    if quote == "`":
        if "`" in value:
            raise Misuse("A value with ` can't stand in a string of `", fix='write the query with "…"')
        return value
    if not quote:
        if not re.fullmatch(r"[A-Za-z0-9_]+", value):
            raise Misuse(
                f"{value!r} can't stand outside of a string", fix="put the placeholder between quotes"
            )
        return value
    escaped = value.replace("\\", "\\\\").replace(quote, "\\" + quote)
    return escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\x00", "\\x00")
