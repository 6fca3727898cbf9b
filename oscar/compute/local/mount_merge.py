"""What a mirrored folder and its bucket must do to be alike: the three-way merge behind a `mount` without FUSE. Pure.

Called by `mount_mirror` with what was alike at the last time, what is here and what is there. Rules: what changed on
one side goes to the other; what changed on both is taken from here, because a script has just written it; what was
removed on one side is removed on the other, unless it was changed there meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Same:
    """A file that was alike on both sides: how each side looked then."""

    here: str
    there: str


class Act(StrEnum):
    """What is to be done with one name."""

    FETCH = "fetch"
    STORE = "store"
    DROP_HERE = "drop here"
    DROP_THERE = "drop there"
    FORGET = "forget"
    """It is gone on both sides."""


@dataclass(frozen=True, slots=True)
class Step:
    """One name, what to do with it, and whether that overwrites a change of the other side."""

    name: str
    act: Act
    clash: bool = False


def merge(
    before: Mapping[str, Same], here: Mapping[str, str], there: Mapping[str, str], *, read_only: bool = False
) -> list[Step]:
    """What makes both sides alike, in the order of names.

    Args:
        before: what was alike the last time.
        here: how each file in the folder looks now (anything that changes with it).
        there: how each object looks now.
        read_only: the bucket must stay as it is.
    """
    steps = []
    for name in sorted({*before, *here, *there}):
        step = _step(name, before.get(name), here.get(name), there.get(name))
        if read_only and step is not None and step.act in {Act.STORE, Act.DROP_THERE}:
            # What a script did here is undone where the bucket has something to say.
            step = Step(name, Act.FETCH) if name in there else None
        if step is not None:
            steps.append(step)
    return steps


def _step(name: str, before: Same | None, here: str | None, there: str | None) -> Step | None:
    if here is None and there is None:
        return Step(name, Act.FORGET)
    changed_here = here != (before.here if before else None)
    changed_there = there != (before.there if before else None)
    if not changed_here and not changed_there:
        return None
    if here is None:
        # Removed here, or never there: what is new or changed in the bucket wins over a removal.
        return Step(name, Act.FETCH if changed_there else Act.DROP_THERE)
    if changed_here:
        return Step(name, Act.STORE, clash=changed_there and there is not None)
    return Step(name, Act.DROP_HERE if there is None else Act.FETCH)
