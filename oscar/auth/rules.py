"""Who may do what: tables of how a caller stands to a thing and what he may then do with it. Pure.

Called by `core.services`, `core.jobs`, `core.storage` and all else that somebody owns. What a caller may not see does
not exist for him (404), what he sees but may not change is refused (403). `tests.permissions_table` makes a page of the
docs from the tables, and a test walks every route as everybody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from oscar.errors import Forbidden, InvalidField
from oscar.model.object import Visibility
from oscar.model.user import Caller, Entrance


class Kind(StrEnum):
    """What the rules know."""

    SERVICE = "service"
    BUCKET = "bucket"
    RUN = "run"
    """A job, with its log."""
    INSTALLATION = "installation"


class Action(StrEnum):
    """What can be done with a thing."""

    SEE = "see"
    """Read what it is: a definition, a list of objects, a log."""
    CALL = "call"
    """Use it: run a service, read and write a bucket's objects, stop a run or repeat it, have things of one's own."""
    CHANGE = "change"
    """Give it another definition or another visibility, remove it."""


class Standing(StrEnum):
    """How a caller stands to a thing; the first that fits holds."""

    OWN_TOKEN = "a service's own token"  # noqa: S105 - words
    FOREIGN_TOKEN = "another service's token"  # noqa: S105 - words
    ADMIN = "administrator"
    OWNER = "owner"
    ALLOWED = "allowed user"
    ANYBODY = "anybody, of what is public"
    OTHER = "any other user"


_ALL = frozenset(Action)
_USE = frozenset({Action.SEE, Action.CALL})
_CALL = frozenset({Action.CALL})
_SEE = frozenset({Action.SEE})
_NOTHING: frozenset[Action] = frozenset()

RULES: Mapping[Kind, Mapping[Standing, frozenset[Action]]] = {
    Kind.SERVICE: {
        Standing.ADMIN: _ALL,
        Standing.OWNER: _ALL,
        Standing.ALLOWED: _USE,
        Standing.ANYBODY: _USE,
        Standing.OTHER: _NOTHING,
        Standing.OWN_TOKEN: _CALL,
        Standing.FOREIGN_TOKEN: _NOTHING,
    },
    Kind.BUCKET: {
        Standing.ADMIN: _ALL,
        Standing.OWNER: _ALL,
        Standing.ALLOWED: _USE,
        Standing.ANYBODY: _USE,
        Standing.OTHER: _NOTHING,
        Standing.OWN_TOKEN: _NOTHING,
        Standing.FOREIGN_TOKEN: _NOTHING,
    },
    # The owner of a run is who caused it. The owner of the service has no part in what others ran with it: their data
    # went through it. A service's token acts for the service's owner.
    Kind.RUN: {
        Standing.ADMIN: _ALL,
        Standing.OWNER: _ALL,
        Standing.OTHER: _NOTHING,
        Standing.OWN_TOKEN: _USE,
        Standing.FOREIGN_TOKEN: _NOTHING,
    },
    Kind.INSTALLATION: {
        Standing.ADMIN: _ALL,
        Standing.ANYBODY: _USE,
        Standing.OWN_TOKEN: _SEE,
    },
}


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that is owned, as the rules see it: a service, a bucket, a volume."""

    owner: str
    visibility: Visibility = Visibility.PRIVATE
    allowed_users: Collection[str] = ()
    service_id: str | None = None
    """The service that it is; None of anything else."""


def standing(caller: Caller, thing: Thing) -> Standing:
    """How the caller stands to the thing."""
    if caller.entrance is Entrance.TOKEN:
        mine = caller.service_id is not None and caller.service_id == thing.service_id
        return Standing.OWN_TOKEN if mine else Standing.FOREIGN_TOKEN
    if caller.admin:
        return Standing.ADMIN
    if caller.id == thing.owner:
        return Standing.OWNER
    if thing.visibility is Visibility.RESTRICTED and caller.id in thing.allowed_users:
        return Standing.ALLOWED
    return Standing.ANYBODY if thing.visibility is Visibility.PUBLIC else Standing.OTHER


def may(caller: Caller, action: Action, thing: Thing) -> bool:
    """Whether the caller may do that with the thing."""
    kind = Kind.BUCKET if thing.service_id is None else Kind.SERVICE
    return action in RULES[kind][standing(caller, thing)]


def may_run(caller: Caller, action: Action, *, service: Thing, user: str) -> bool:
    """Whether the caller may do that with a run.

    Args:
        caller: who asks.
        action: what for.
        service: the service that ran.
        user: who caused the run.
    """
    if caller.entrance is Entrance.TOKEN and user != service.owner:
        return False
    return action in RULES[Kind.RUN][standing(caller, Thing(user, service_id=service.service_id))]


def runs_of(caller: Caller) -> str | None:
    """Whose runs a list shows the caller; None for everybody's."""
    return None if may_administer(caller) else caller.id


def may_administer(caller: Caller) -> bool:
    """Whether the caller may see and change what concerns the whole installation."""
    return caller.admin and caller.entrance is not Entrance.TOKEN


def require_user(caller: Caller) -> None:
    """Refuse service tokens where a user is needed.

    Raises:
        Forbidden: the caller has only a service's token.
    """
    if caller.entrance is Entrance.TOKEN:
        raise Forbidden("A service token opens /job and /run of its service, nothing else")


def require_admin(caller: Caller) -> None:
    """Refuse everybody but administrators.

    Raises:
        Forbidden: the caller is none.
    """
    if not may_administer(caller):
        raise Forbidden("Only an administrator may do this")


def choose_vo(caller: Caller, wanted: str, groups: Iterable[str], *, before: str = "") -> str:
    """The VO that a service works for.

    Args:
        caller: who defines the service.
        wanted: the VO that the definition names; "" for none.
        groups: those of `OIDC_GROUPS`, in their order.
        before: the VO that the service had until now.

    Raises:
        InvalidField: the caller isn't in it, or one is needed and he is in none.
    """
    configured = list(groups)
    if not wanted or wanted == before:
        wanted = before
    elif caller.entrance is Entrance.OIDC and wanted in configured and wanted not in caller.groups:
        raise InvalidField(
            f'You are not in the VO "{wanted}"', field="vo", fix="name one that you are in, or leave it out"
        )
    if wanted or caller.entrance is not Entrance.OIDC or not configured:
        return wanted
    mine = next((group for group in configured if group in caller.groups), "")
    if not mine and not caller.admin:
        raise InvalidField(
            "The service needs a VO, and you are in none of this installation",
            field="vo",
            fix="name one that you are in",
        )
    return mine
