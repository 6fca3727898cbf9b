"""The XML of the S3 protocol: a strict little reader and a writer.

Called by every operation that takes or gives a document. The reader sits on expat and refuses any DOCTYPE, so
no entity can be declared (no entity bombs, no external files); depth and size are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from xml.parsers import expat

from oscar.objects.embedded.faults import S3Error, fault

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
MAX_DOCUMENT = 4 * 1024 * 1024
"""Bytes: 10,000 parts with checksums, or 1,000 keys of 1,024 escaped bytes, fit well."""
_MAX_DEPTH = 12

_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
_SPECIAL = re.compile("[&<>\"'\x00-\x1f\x7f\ufffe\uffff]")
# A reference to NUL would break every reader, whatever it stands for.
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;", "\0": "\ufffd"}


@dataclass(slots=True)
class Node:
    """An element: local name without namespace, children in order, text between them."""

    name: str
    text: str = ""
    children: list[Node] = field(default_factory=list)

    def all(self, name: str) -> list[Node]:
        """The children of that name."""
        return [child for child in self.children if child.name == name]

    def first(self, name: str) -> Node | None:
        """The first child of that name."""
        return next((child for child in self.children if child.name == name), None)

    def value(self, name: str) -> str | None:
        """The text of the first child of that name, None when there is none."""
        child = self.first(name)
        return None if child is None else child.text


def parse(body: bytes, root: str) -> Node:
    """Read a document whose root element has that name.

    Raises:
        S3Error: MalformedXML, with the reason.
    """
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    top = Node("")
    open_nodes = [top]

    def start(name: str, _attributes: dict[str, str]) -> None:
        if len(open_nodes) > _MAX_DEPTH:
            raise fault("MalformedXML", "The XML is nested too deeply.")
        node = Node(name.rpartition(" ")[2])
        open_nodes[-1].children.append(node)
        open_nodes.append(node)

    def doctype(*_: object) -> None:
        raise fault("MalformedXML", "A DOCTYPE is not accepted.")

    def text(data: str) -> None:
        open_nodes[-1].text += data

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _name: open_nodes.pop()
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        raise fault("MalformedXML", f"The XML is not well-formed: {error}.") from error
    except S3Error:
        raise
    except (UnicodeError, ValueError) as error:
        raise fault("MalformedXML") from error
    document = top.children[0]
    if document.name != root:
        raise fault("MalformedXML", f"The document must be a {root}, not a {document.name}.")
    return document


def _entity(match: re.Match[str]) -> str:
    character = match.group()
    return _NAMED.get(character) or f"&#x{ord(character):X};"


def escape(text: str) -> str:
    """Text for an element; characters that XML 1.0 hasn't become references, as S3 itself does."""
    return _SPECIAL.sub(_entity, text)


def element(name: str, text: str | int | bool) -> str:
    """One leaf element."""
    if text is True or text is False:
        return f"<{name}>{'true' if text else 'false'}</{name}>"
    return f"<{name}>{escape(text) if isinstance(text, str) else text}</{name}>"


def group(name: str, parts: Iterable[str]) -> str:
    """An element around others that are already rendered."""
    return f"<{name}>{''.join(parts)}</{name}>"


def document(name: str, parts: Iterable[str]) -> bytes:
    """A whole document in the namespace of S3."""
    return f'{_HEAD}<{name} xmlns="{NAMESPACE}">{"".join(parts)}</{name}>'.encode()


def error_document(
    code: str, message: str, details: dict[str, str | int], resource: str, request_id: str
) -> bytes:
    """The error document, which has no namespace."""
    parts = [element("Code", code), element("Message", message)]
    parts += [element(name, value) for name, value in details.items()]
    parts += [element("Resource", resource), element("RequestId", request_id), element("HostId", "oscar")]
    return (_HEAD + group("Error", parts)).encode()
