"""Names and labels of all that this engine makes in a cluster, so that it is found again and never taken for another's.

Called by every module of this package. Labels that OSCAR 4.1.2 sets are kept beside ours. Pure.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

from oscar.model.service import Service
from oscar.model.user import ADMIN

LONGEST = 63
"""Characters of a label's value and of most names."""

MANAGED_BY = "app.kubernetes.io/managed-by"
INSTALLATION = "oscar.grycap/installation"
PART = "oscar.grycap/part"
"""What an object is for: one of `Part`'s words."""
OWNER = "oscar.grycap/owner"
"""A digest of the service's owner; his id is the annotation of that name."""
RUN = "oscar.grycap/run"
SERVICE = "oscar_service"
DEFINITION = "oscar.grycap/definition"
"""Annotation: a digest of what the object was made from; another one has it replaced."""

_DIGEST = 10
_READABLE = 20
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one installation."""

    installation: str
    namespace: str
    """Of the administrator's services; the others' begin with it."""

    def namespace_of(self, owner: str) -> str:
        """The namespace of an owner's services: readable, and no two owners have the same one."""
        if owner in {"", ADMIN}:
            return self.namespace
        return _with_digest(f"{self.namespace}-{_readable(owner)}", owner)

    def labels(self, part: str, owner: str = "") -> dict[str, str]:
        """Labels of every object that we make."""
        found = {MANAGED_BY: "oscar", INSTALLATION: self.installation, PART: part}
        return found | ({OWNER: digest(owner)} if owner else {})

    def selector(self, *parts: str, owner: str = "", service: str = "") -> str:
        """The label selector for objects of ours."""
        terms = [f"{INSTALLATION}={self.installation}"]
        if parts:
            terms.append(f"{PART} in ({','.join(parts)})")
        if owner:
            terms.append(f"{OWNER}={digest(owner)}")
        if service:
            terms.append(f"{SERVICE}={service}")
        return ",".join(terms)

    def service_labels(self, part: str, service: Service) -> dict[str, str]:
        """Labels of an object that belongs to a service: the user's, then those of OSCAR 4.1.2, then ours.

        The first two go to jobs and pods, so that the selectors of others find them.
        """
        users = {key: value for key, value in service.labels.items() if not key.startswith("oscar.grycap/")}
        vo = {"vo": vo_label(service.vo)} if service.vo else {}
        return {
            **users,
            **vo,
            "oscar.grycap/user-service": "true",
            SERVICE: service.name,
            "applicationId": service.name,
            "queue": f"root.oscar-queue.{service.name}",
            "owner_name": owner_label(service.owner),
            **self.labels(part, service.owner),
        }


def object_name(name: str) -> str:
    """The name of an object for what we call so: itself where Kubernetes takes it, else cut, with a digest."""
    if len(name) <= LONGEST and _LABEL.fullmatch(name):
        return name
    return _with_digest(_readable(name, LONGEST), name)


def service_object(name: str, suffix: str = "") -> str:
    """The name of an object that belongs to a service; a suffix says which, as `worker`."""
    return object_name(f"{name}-{suffix}" if suffix else name)


def digest(text: str) -> str:
    """A short digest of a text, good for a label."""
    return hashlib.sha256(text.encode()).hexdigest()[: 2 * _DIGEST]


def vo_label(vo: str) -> str:
    """A virtual organisation as OSCAR writes it in a label."""
    return vo.removeprefix("/").replace("/", "--").replace(" ", "__").replace(":", "___")


def owner_label(owner: str) -> str:
    """An owner as OSCAR writes him in a label: without accents, spaces as `_`."""
    plain = unicodedata.normalize("NFKD", owner).encode("ascii", "ignore").decode()
    return label_value(plain.replace(" ", "_"))


def label_value(text: str) -> str:
    """The text as far as a label can have it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:LONGEST].strip("_.-")


def _readable(text: str, longest: int = _READABLE) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:longest].strip("-")


def _with_digest(readable: str, text: str) -> str:
    end = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
    return f"{readable[: LONGEST - _DIGEST - 1].rstrip('-')}-{end}".lstrip("-")
