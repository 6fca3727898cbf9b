"""References of container images, and the list of those that services may use.

Called by `core.config` when the list is changed and when a service is made. A reference is read as the engines read
it (registry, path, tag, digest; https://github.com/distribution/reference), so that a name which only looks like an
allowed one is told apart from it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from oscar.errors import InvalidField

HUB = "docker.io"
_OFFICIAL = "library"
_LATEST = "latest"
_LONGEST = 512
_SCHEMES = ("docker://", "oci://")
"""Before images of HPC sites (interLink); they say how the image is fetched, not which one it is."""
_ALIASES = {"index.docker.io": HUB, "registry-1.docker.io": HUB}

_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_PATTERN_REGISTRY = re.compile(r"(?:[a-z0-9.*?-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
_PATTERN_COMPONENT = re.compile(r"[a-z0-9._*?-]+")
_PATTERN_TAG = re.compile(r"[A-Za-z0-9_.*?-]{1,128}")


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image as an engine will ask for it; `digest` wins over `tag`, which is empty beside one unless given."""

    registry: str
    """Lower case, with its port where one is written."""
    path: tuple[str, ...]
    tag: str
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{'/'.join(self.path)}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class Allowed:
    """One entry of the list: a registry, a folder of it, an image, or one version of an image.

    In registry, components and tag `*` stands for any text within them and `?` for one character; neither reaches
    over a `/`.
    """

    registry: str
    path: tuple[str, ...] = ()
    tag: str = ""
    digest: str = ""

    def allows(self, image: ImageReference) -> bool:
        """Whether the image is the entry's, or lies below it."""
        if not _fits(self.registry, image.registry):
            return False
        if len(image.path) < len(self.path):
            return False
        if not all(_fits(mine, its) for mine, its in zip(self.path, image.path, strict=False)):
            return False
        if self.digest:
            return len(image.path) == len(self.path) and self.digest == image.digest
        if self.tag:
            # Beside a digest the engines ignore the tag, so it says nothing about what would run.
            return len(image.path) == len(self.path) and not image.digest and _fits(self.tag, image.tag)
        return True


def parse_image(text: str, *, field: str = "image") -> ImageReference:
    """Read the name of an image.

    Args:
        text: as a service names it; `docker://` before it is dropped.
        field: where it stands, for the error.

    Raises:
        InvalidField: it is no reference.
    """
    shown = text[:_LONGEST]

    def refused(why: str) -> InvalidField:
        return InvalidField(
            f'"{shown}" is not the name of a container image: {why}',
            field=field,
            fix="write it as registry/path:tag or registry/path@sha256:..., such as ghcr.io/grycap/cowsay:1.0",
        )

    name = text.strip()
    for scheme in _SCHEMES:
        name = name.removeprefix(scheme)
    if not name or len(name) > _LONGEST:
        raise refused("it is empty" if not name else "it is too long")
    name, at, digest = name.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise refused("its digest is malformed")
    name, tag = _without_tag(name)
    if tag is not None and not _TAG.fullmatch(tag):
        raise refused("its tag is malformed")
    registry, path = _located(name.split("/"))
    if not _REGISTRY.fullmatch(registry):
        raise refused("its registry is malformed")
    if not path or not all(_COMPONENT.fullmatch(part) for part in path):
        raise refused("its path has other characters than lower-case letters, digits and single separators")
    return ImageReference(
        registry, path, tag if tag is not None else "" if digest else _LATEST, digest.lower()
    )


def parse_allowed(text: str, *, field: str = "allowed_image_repositories") -> Allowed:
    """Read an entry of the list.

    It is read like the name of an image: without a registry it is one of Docker Hub, and a single component there an
    official image (`ubuntu` is `docker.io/library/ubuntu`). A `/` at its end makes it a folder (`docker.io/grycap/`).

    Raises:
        InvalidField: it can't be read.
    """
    shown = text[:_LONGEST]

    def refused(why: str) -> InvalidField:
        return InvalidField(
            f'"{shown}" is not a place of images: {why}',
            field=field,
            fix='write a registry ("ghcr.io"), a folder ("ghcr.io/grycap", "docker.io/grycap/") or an image',
        )

    name = text.strip()
    for scheme in _SCHEMES:
        name = name.removeprefix(scheme)
    if not name or len(name) > _LONGEST:
        raise refused("it is empty" if not name else "it is too long")
    name, at, digest = name.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise refused("its digest is malformed")
    folder = name.endswith("/")
    parts = name.removesuffix("/").split("/")
    tag = None
    if len(parts) > 1 or not _is_registry(parts[0]):
        parts[-1], tag = _without_tag(parts[-1])
    if tag is not None and not _PATTERN_TAG.fullmatch(tag):
        raise refused("its tag is malformed")
    if folder and (tag is not None or digest):
        raise refused("a folder has neither tag nor digest")
    registry, path = _located(parts, official=not folder)
    if len(parts) == 1 and _is_registry(parts[0]):
        registry, path = _registry(parts[0]), ()
    if (tag is not None or digest) and not path:
        raise refused("a registry has neither tag nor digest")
    if not (_PATTERN_REGISTRY if _is_pattern(registry) else _REGISTRY).fullmatch(registry):
        raise refused("its registry is malformed")
    if not all((_PATTERN_COMPONENT if _is_pattern(part) else _COMPONENT).fullmatch(part) for part in path):
        raise refused("its path has other characters than lower-case letters, digits, separators, * and ?")
    return Allowed(registry, path, tag or "", digest.lower())


def parse_list(values: object, *, field: str = "allowed_image_repositories") -> tuple[Allowed, ...]:
    """Read the whole list.

    Raises:
        InvalidField: it is no list of texts, or naming the entry that can't be read.
    """
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise InvalidField("The list must be a list of texts", field=field, fix='write ["ghcr.io/grycap"]')
    return tuple(parse_allowed(value, field=f"{field}[{index}]") for index, value in enumerate(values))


def is_allowed(image: ImageReference, entries: Sequence[Allowed]) -> bool:
    """Whether a service may use the image; an empty list allows all."""
    return not entries or any(entry.allows(image) for entry in entries)


def check_image(text: str, entries: Sequence[Allowed], shown: Iterable[str], *, field: str = "image") -> None:
    """Refuse an image that the list does not have.

    Args:
        text: the image as the service names it.
        entries: the list; empty allows all.
        shown: the list as the administrator wrote it, for the error.
        field: where the image stands.

    Raises:
        InvalidField: it is not allowed, or can't be read while there is a list.
    """
    if entries and not is_allowed(parse_image(text, field=field), entries):
        raise InvalidField(
            f'The image "{text[:_LONGEST]}" is not among those that this server allows',
            field=field,
            fix=f"use one of {', '.join(shown)}, or ask an administrator to allow it",
        )


def _without_tag(name: str) -> tuple[str, str | None]:
    """Name and tag: what stands behind a colon of the last component."""
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    return f"{head}{slash}{last}", tag if colon else None


def _is_registry(part: str) -> bool:
    """Whether the first component names a registry and not a folder of Docker Hub."""
    return "." in part or ":" in part or part.lower() == "localhost" or part != part.lower() or part == "*"


def _registry(part: str) -> str:
    lower = part.lower()
    return _ALIASES.get(lower, lower)


def _located(parts: list[str], *, official: bool = True) -> tuple[str, tuple[str, ...]]:
    """Registry and path, with what may be left out filled in."""
    registry, path = HUB, tuple(parts)
    if len(parts) > 1 and _is_registry(parts[0]):
        registry, path = _registry(parts[0]), tuple(parts[1:])
    if registry == HUB and len(path) == 1 and official:
        path = (_OFFICIAL, *path)
    return registry, path


def _is_pattern(text: str) -> bool:
    return "*" in text or "?" in text


def _fits(pattern: str, text: str) -> bool:
    """Whether a text fits a pattern; in registries a `*` doesn't stand for the colon of a port."""
    if not _is_pattern(pattern):
        return pattern == text
    form = "".join("[^/:]*" if c == "*" else "[^/:]" if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch(form, text) is not None
