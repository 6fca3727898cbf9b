"""The page of permissions is what the rules say, and the rules by themselves."""

from __future__ import annotations

import itertools

import pytest

from oscar.auth.rules import (
    RULES,
    Action,
    Kind,
    Standing,
    Thing,
    choose_vo,
    may,
    may_administer,
    may_run,
    require_admin,
    require_user,
    runs_of,
)
from oscar.errors import Forbidden, InvalidField
from oscar.model.object import Visibility
from oscar.model.user import ADMIN, Caller, Entrance
from tests.permissions_table import PAGE, replaced, tables

ROOT = Caller(ADMIN, Entrance.BASIC, admin=True)
CHIEF = Caller("chief", Entrance.OIDC, admin=True)
ANN, BOB, CID = (Caller(name, Entrance.OIDC, groups=frozenset({"vo.b"})) for name in ("ann", "bob", "cid"))
TOKEN = Caller("ann", Entrance.TOKEN, service_id="s1")
EVERYBODY = [ROOT, CHIEF, ANN, BOB, CID, TOKEN, Caller("bob", Entrance.TOKEN, service_id="s2")]


def test_the_page_is_what_the_rules_say() -> None:
    text = PAGE.read_text()
    assert tables() in text, "run: .venv/bin/python -m tests.permissions_table"
    assert replaced(text) == text


def thing(visibility: Visibility, **more: str) -> Thing:
    return Thing("ann", visibility, ["bob"], **more)


@pytest.mark.parametrize("kind", [Kind.SERVICE, Kind.BUCKET])
def test_who_may_change_also_sees_and_calls(kind: Kind) -> None:
    for actions in RULES[kind].values():
        assert Action.CHANGE not in actions or actions == frozenset(Action)


def test_only_owner_and_administrators_change() -> None:
    for visibility, service in itertools.product(Visibility, (None, "s1")):
        target = Thing("ann", visibility, ["bob"], service)
        assert [who for who in EVERYBODY if may(who, Action.CHANGE, target)] == [ROOT, CHIEF, ANN]


def test_visibility() -> None:
    seen = {
        visibility: [who for who in EVERYBODY if may(who, Action.SEE, thing(visibility))]
        for visibility in Visibility
    }
    assert seen[Visibility.PRIVATE] == [ROOT, CHIEF, ANN]
    assert seen[Visibility.RESTRICTED] == [ROOT, CHIEF, ANN, BOB]
    assert seen[Visibility.PUBLIC] == [ROOT, CHIEF, ANN, BOB, CID]


def test_allowed_users_of_a_private_thing_mean_nothing() -> None:
    assert not may(BOB, Action.SEE, thing(Visibility.PRIVATE))


def test_a_token_calls_its_service_and_nothing_else() -> None:
    for visibility, action in itertools.product(Visibility, Action):
        own = thing(visibility, service_id="s1")
        assert may(TOKEN, action, own) is (action is Action.CALL)
        assert not may(TOKEN, action, thing(visibility, service_id="s2"))
        assert not may(TOKEN, action, thing(visibility))
    nameless = Caller("ann", Entrance.TOKEN)
    assert not may(nameless, Action.CALL, thing(Visibility.PUBLIC))
    assert not may_administer(Caller(ADMIN, Entrance.TOKEN, admin=True))


def test_runs_are_those_of_who_caused_them() -> None:
    service = thing(Visibility.PUBLIC, service_id="s1")

    def who(action: Action, user: str) -> list[Caller]:
        return [each for each in EVERYBODY if may_run(each, action, service=service, user=user)]

    assert who(Action.SEE, "bob") == [ROOT, CHIEF, BOB]
    assert who(Action.SEE, "ann") == [ROOT, CHIEF, ANN, TOKEN]
    assert who(Action.CHANGE, "ann") == [ROOT, CHIEF, ANN]
    assert [runs_of(each) for each in (ROOT, CHIEF, ANN, TOKEN)] == [None, None, "ann", "ann"]


def test_every_standing_has_its_rule() -> None:
    for kind in (Kind.SERVICE, Kind.BUCKET):
        assert set(RULES[kind]) == set(Standing)


def test_requirements() -> None:
    require_user(ANN)
    require_admin(CHIEF)
    with pytest.raises(Forbidden):
        require_user(TOKEN)
    for who in (ANN, TOKEN):
        with pytest.raises(Forbidden):
            require_admin(who)


@pytest.mark.parametrize(
    ("caller", "wanted", "groups", "before", "vo"),
    [
        (ANN, "", ["vo.a", "vo.b"], "", "vo.b"),
        (ANN, "vo.b", ["vo.a", "vo.b"], "", "vo.b"),
        (ANN, "elsewhere", ["vo.a"], "", "elsewhere"),
        (ANN, "", [], "", ""),
        (ANN, "x", [], "", "x"),
        (ANN, "", ["vo.a"], "vo.a", "vo.a"),
        (ANN, "vo.a", ["vo.a"], "vo.a", "vo.a"),
        (CHIEF, "", ["vo.a"], "", ""),
        (ROOT, "", ["vo.a"], "", ""),
        (ROOT, "vo.a", ["vo.a"], "", "vo.a"),
    ],
)
def test_vo(caller: Caller, wanted: str, groups: list[str], before: str, vo: str) -> None:
    assert choose_vo(caller, wanted, groups, before=before) == vo


@pytest.mark.parametrize("wanted", ["vo.a", ""])
def test_a_vo_that_one_is_not_in(wanted: str) -> None:
    with pytest.raises(InvalidField) as caught:
        choose_vo(ANN, wanted, ["vo.a"])
    assert caught.value.field == "vo"
