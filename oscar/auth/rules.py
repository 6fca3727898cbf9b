"""Who may do what: pure functions of a caller, an action and a thing's owner and visibility.

Called by `core.services`, `core.jobs` and `core.storage`. What a caller may not see does not exist for him (404),
what he sees but may not change is refused (403).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from oscar.errors import Forbidden
from oscar.model.object import Visibility
from oscar.model.user import Caller, Entrance


class Action(StrEnum):
    """What can be done with a thing."""

    SEE = "see"
    CALL = "call"
    CHANGE = "change"


@dataclass(frozen=True, slots=True)
class Thing:
    """A service or a bucket as the rules see it."""

    owner: str
    visibility: Visibility = Visibility.PRIVATE
    allowed_users: Collection[str] = ()
    service_id: str | None = None


def may(caller: Caller, action: Action, thing: Thing) -> bool:
    """Whether the caller may do that with the thing."""
    if caller.entrance is Entrance.TOKEN:
        return (
            action is Action.CALL and caller.service_id is not None and caller.service_id == thing.service_id
        )
    if caller.admin or caller.id == thing.owner:
        return True
    if action is Action.CHANGE:
        return False
    return thing.visibility is Visibility.PUBLIC or (
        thing.visibility is Visibility.RESTRICTED and caller.id in thing.allowed_users
    )


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
