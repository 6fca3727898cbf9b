"""What a WebDAV server answers to PROPFIND: one `Entry` for each file and folder.

Called by `objects.webdav` only. Answers come from servers that users name, so the XML is read by defusedxml.
Source: RFC 4918, 9.1 and 13. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from oscar.errors import StorageError

ASKED = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/>'
    b"<getlastmodified/><getetag/></prop></propfind>"
)
"""The body of our PROPFIND."""

_DAV = "{DAV:}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder; `parts` are the decoded parts of its path on the server, `modified` Unix milliseconds."""

    parts: tuple[str, ...]
    folder: bool
    size: int
    modified: int
    etag: str

    @property
    def name(self) -> str:
        """The last part; empty for the server's root."""
        return self.parts[-1] if self.parts else ""


def entries(document: str) -> list[Entry]:
    """All entries of a multistatus answer; names that are no UTF-8 or contain a slash are left out.

    Raises:
        StorageError: it is no such answer.
    """
    try:
        root = fromstring(document, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise StorageError(f"the list of files is no XML that can be read: {error}") from error
    if root.tag != f"{_DAV}multistatus":
        raise StorageError(f"a list of files was expected, not {root.tag}")
    return list(_entries(root))


def path_parts(url: str) -> tuple[str, ...] | None:
    """The decoded parts of the path of a URL; None when one can't be a name."""
    try:
        parts = tuple(unquote(part, errors="strict") for part in urlsplit(url).path.split("/") if part)
    except UnicodeDecodeError:
        return None
    return None if any("/" in part or "\x00" in part or part in {".", ".."} for part in parts) else parts


def _entries(root: Element) -> Iterator[Entry]:
    for response in root.findall(f"{_DAV}response"):
        parts = path_parts((response.findtext(f"{_DAV}href") or "").strip())
        found = _properties(response)
        if parts is None or found is None:
            continue
        yield Entry(
            parts=parts,
            folder=found.find(f"{_DAV}resourcetype/{_DAV}collection") is not None,
            size=_size(found.findtext(f"{_DAV}getcontentlength")),
            modified=_modified(found.findtext(f"{_DAV}getlastmodified")),
            etag=_etag(found.findtext(f"{_DAV}getetag")),
        )


def _properties(response: Element) -> Element | None:
    """Those with status 200; the other groups name what the server doesn't have."""
    for group in response.findall(f"{_DAV}propstat"):
        if " 200" in (group.findtext(f"{_DAV}status") or " 200"):
            return group.find(f"{_DAV}prop")
    return None


def _size(text: str | None) -> int:
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() else 0


def _modified(text: str | None) -> int:
    try:
        return int(parsedate_to_datetime((text or "").strip()).timestamp() * 1000)
    except (ValueError, OverflowError):
        return 0


def _etag(text: str | None) -> str:
    return (text or "").strip().removeprefix("W/").strip('"')
