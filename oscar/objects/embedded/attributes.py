"""What is stored beside a body: content headers, user metadata, tags; read from requests, shown in answers.

Called by `objects`, `copies`, `multipart` and `forms`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import parse_qsl

from oscar.model.object import Object
from oscar.objects.embedded import checksums
from oscar.objects.embedded.faults import fault, unsupported
from oscar.objects.embedded.requests import Request
from oscar.objects.embedded.xml import Node, element, group

META = "x-amz-meta-"
DEFAULT_TYPE = "application/octet-stream"
MAX_METADATA = 8 * 1024
STORED = ("cache-control", "content-disposition", "content-encoding", "content-language", "expires")
PART_SIZES = "part-sizes"
"""Key in `Object.headers` for the sizes of parts, `<bytes>*<count>` joined by commas; not a header."""
OVERRIDES = {
    "response-cache-control": "cache-control",
    "response-content-disposition": "content-disposition",
    "response-content-encoding": "content-encoding",
    "response-content-language": "content-language",
    "response-content-type": "content-type",
    "response-expires": "expires",
}
_MAX_OBJECT_TAGS = 10
_MAX_TAG_KEY = 128
_MAX_TAG_VALUE = 256
_STORAGE_CLASSES = frozenset({"STANDARD", "REDUCED_REDUNDANCY"})
_PRIVATE_ACLS = frozenset({"private", "bucket-owner-full-control", "bucket-owner-read"})
_REFUSED = (
    ("x-amz-server-side-encryption", "server-side encryption"),
    ("x-amz-object-lock-", "object lock"),
    ("x-amz-grant-", "access control lists"),
    ("x-amz-website-redirect-location", "website redirects"),
    ("x-amz-write-offset-bytes", "appending to objects"),
)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a client says about an object besides its body."""

    content_type: str = DEFAULT_TYPE
    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def read_attributes(request: Request) -> Attributes:
    """The attributes in the headers of a PUT, a copy or the start of a multipart upload.

    Raises:
        S3Error: InvalidTag, MetadataTooLarge, or NotImplemented for what would be ignored otherwise.
    """
    check_refused(request.headers)
    headers = {}
    for name in STORED:
        value = request.text_header(name)
        if value is not None:
            headers[name] = value
    encoding = headers.pop("content-encoding", None)
    if encoding is not None:
        # aws-chunked is how the body travels, not a property of the object.
        kept = [item.strip() for item in encoding.split(",") if item.strip().lower() != "aws-chunked"]
        if any(kept):
            headers["content-encoding"] = ",".join(item for item in kept if item)
    return Attributes(
        request.text_header("content-type") or DEFAULT_TYPE,
        headers,
        read_metadata(request),
        parse_tag_header(request.headers.get("x-amz-tagging", "")),
    )


def check_refused(headers: Mapping[str, str]) -> None:
    """Raise NotImplemented for headers that ask for what this server hasn't."""
    for name, value in headers.items():
        if not name.startswith("x-amz-"):
            continue
        for prefix, what in _REFUSED:
            if name.startswith(prefix):
                raise unsupported(f"{what} (the header {name})")
        if name == "x-amz-storage-class" and value not in _STORAGE_CLASSES:
            raise fault("InvalidStorageClass")
        if name == "x-amz-acl" and value not in _PRIVATE_ACLS:
            raise fault("AccessControlListNotSupported")


def read_metadata(request: Request) -> dict[str, str]:
    """The user metadata of a request. Raises S3Error: MetadataTooLarge."""
    found = {
        name[len(META) :]: request.text_header(name) or ""
        for name in request.headers
        if name.startswith(META)
    }
    check_metadata(found)
    return found


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise MetadataTooLarge when names and values are too long together."""
    size = sum(len(name) + len(value.encode()) for name, value in metadata.items())
    if size > MAX_METADATA:
        raise fault("MetadataTooLarge", Size=size, MaxSizeAllowed=MAX_METADATA)


def parse_tag_header(header: str) -> dict[str, str]:
    """The tags of `x-amz-tagging`, which has the form of a query string. Raises S3Error: InvalidTag."""
    if not header:
        return {}
    try:
        pairs = parse_qsl(header, keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise fault("InvalidTag", "x-amz-tagging is not a URL-encoded query string.") from error
    return check_tags(pairs, _MAX_OBJECT_TAGS)


def parse_tagging(document: Node, limit: int = _MAX_OBJECT_TAGS) -> dict[str, str]:
    """The tags of a Tagging document. Raises S3Error: MalformedXML, InvalidTag."""
    tag_set = document.first("TagSet")
    if tag_set is None:
        raise fault("MalformedXML", "A Tagging document needs a TagSet.")
    pairs = []
    for tag in tag_set.all("Tag"):
        key, value = tag.value("Key"), tag.value("Value")
        if key is None or value is None:
            raise fault("MalformedXML", "A Tag needs a Key and a Value.")
        pairs.append((key, value))
    return check_tags(pairs, limit)


def check_tags(pairs: Iterable[tuple[str, str]], limit: int) -> dict[str, str]:
    """The pairs as a mapping. Raises S3Error: InvalidTag."""
    tags: dict[str, str] = {}
    for key, value in pairs:
        if not 1 <= len(key) <= _MAX_TAG_KEY:
            raise fault("InvalidTag", f"The key of a tag has 1 to {_MAX_TAG_KEY} characters.", TagKey=key)
        if len(value) > _MAX_TAG_VALUE:
            raise fault(
                "InvalidTag", f"The value of a tag has at most {_MAX_TAG_VALUE} characters.", TagKey=key
            )
        if key in tags:
            raise fault("InvalidTag", "Two tags have the same key.", TagKey=key)
        tags[key] = value
    if len(tags) > limit:
        raise fault("InvalidTag", f"There can be at most {limit} tags.")
    return tags


def tagging_xml(tags: Mapping[str, str]) -> list[str]:
    """The content of a Tagging document."""
    rows = (group("Tag", (element("Key", key), element("Value", value))) for key, value in tags.items())
    return [group("TagSet", rows)]


def object_headers(obj: Object, *, with_checksums: bool) -> dict[str, str]:
    """The headers of a GET or HEAD, besides length and range."""
    headers = {
        "last-modified": formatdate(obj.modified // 1000, usegmt=True),
        "etag": f'"{obj.etag}"',
        "content-type": obj.content_type,
        "accept-ranges": "bytes",
    }
    for name in STORED:
        if name in obj.headers:
            headers[name] = obj.headers[name]
    for name, value in obj.metadata.items():
        headers[META + name] = value
    if obj.tags:
        headers["x-amz-tagging-count"] = str(len(obj.tags))
    if with_checksums:
        headers.update(checksum_headers(obj.checksums))
    return headers


def checksum_headers(values: Mapping[str, str]) -> dict[str, str]:
    """The checksums of an object as headers, with their type."""
    headers = {checksums.HEADER + algorithm: value for algorithm, value in values.items()}
    if headers:
        headers["x-amz-checksum-type"] = checksum_type(values)
    return headers


def checksum_type(values: Mapping[str, str]) -> str:
    """COMPOSITE for a digest of digests, which ends in `-<parts>`; else FULL_OBJECT."""
    return "COMPOSITE" if any("-" in value for value in values.values()) else "FULL_OBJECT"


def overrides(query: Mapping[str, str]) -> dict[str, str]:
    """The headers that the query of a GET replaces."""
    found = {}
    for parameter, header in OVERRIDES.items():
        value = query.get(parameter)
        if value is not None:
            if any(ord(character) < ord(" ") or character == "\x7f" for character in value):
                raise fault(
                    "InvalidArgument", "A header can't hold control characters.", ArgumentName=parameter
                )
            found[header] = value
    return found


def pack_sizes(sizes: Iterable[int]) -> str:
    """Sizes of parts in the short form of `PART_SIZES`."""
    runs: list[tuple[int, int]] = []
    for size in sizes:
        if runs and runs[-1][0] == size:
            runs[-1] = (size, runs[-1][1] + 1)
        else:
            runs.append((size, 1))
    return ",".join(f"{size}*{count}" for size, count in runs)


def unpack_sizes(packed: str) -> list[int]:
    """The sizes of the parts from their short form."""
    sizes: list[int] = []
    for run in packed.split(","):
        size, _, count = run.partition("*")
        sizes += [int(size)] * int(count)
    return sizes
