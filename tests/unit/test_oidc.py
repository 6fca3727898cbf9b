"""Tokens of OIDC issuers: which are taken, which are refused, and who is asked for that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oscar.auth.addresses import is_safe
from oscar.auth.claims import groups_of, may_enter, name_of
from oscar.auth.issuer import FRESH, REFETCH, RETRY, STALE
from oscar.auth.oidc import Oidc
from oscar.errors import InvalidField, Unauthorized, Unavailable
from oscar.settings import Settings
from tests import oidc
from tests.oidc import CONFIGURATION, KEYS, USER_INFO, Issuer

pytestmark = pytest.mark.anyio


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with oidc.running() as running:
        yield running


class Clock:
    """A clock that is set by hand; `late` is how far it is from the real one."""

    def __init__(self) -> None:
        self.late = 0.0

    def __call__(self) -> float:
        return time.time() + self.late


@asynccontextmanager
async def checking(*issuers: Issuer | str, **how: Any) -> AsyncIterator[Oidc]:
    urls = [issuer if isinstance(issuer, str) else issuer.url for issuer in issuers]
    checker = Oidc(urls, **how)
    try:
        yield checker
    finally:
        await checker.close()


async def refused(checker: Oidc, token: str) -> Unauthorized:
    with pytest.raises(Unauthorized) as caught:
        await checker.identify(token)
    assert token not in str(caught.value.as_dict())
    assert 'error="invalid_token"' in caught.value.headers["WWW-Authenticate"]
    return caught.value


# --- good tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm", ["RS256", "RS384", "RS512", "PS256", "PS512", "ES256", "ES384", "ES512", "Ed25519"]
)
async def test_each_asymmetrical_algorithm(algorithm: str) -> None:
    with oidc.running(algorithm) as issuer:
        async with checking(issuer) as checker:
            known = await checker.identify(issuer.token("ann", groups=["vo.a"]))
    assert (known.subject, known.issuer, set(known.groups)) == ("ann", issuer.url, {"vo.a"})


async def test_a_known_token_asks_nobody(issuer: Issuer) -> None:
    async with checking(issuer) as checker:
        token = issuer.token("ann")
        await checker.identify(token)
        before = issuer.asked.copy()
        for _ in range(50):
            await checker.identify(token)
        assert issuer.asked == before
        await checker.identify(issuer.token("bob"))
        assert issuer.asked == before, "keys are known, and the token says all that is needed"
    assert before == {CONFIGURATION: 1, KEYS: 1}


async def test_many_requests_with_a_new_token_ask_once(issuer: Issuer) -> None:
    issuer.people["ann"] = {"eduperson_entitlement": ["urn:mace:egi.eu:group:vo.a:role=member#aai.egi.eu"]}
    async with checking(issuer, groups=["vo.a"]) as checker:
        token = issuer.token("ann")
        found = await asyncio.gather(*(checker.identify(token) for _ in range(50)))
    assert {identity.groups for identity in found} == {frozenset({"vo.a"})}
    assert issuer.asked == {CONFIGURATION: 1, KEYS: 1, USER_INFO: 1}


async def test_a_request_that_goes_away_does_not_stop_the_others(issuer: Issuer) -> None:
    issuer.gate.clear()
    async with checking(issuer) as checker:
        token = issuer.token("ann")
        first = asyncio.create_task(checker.identify(token))
        second = asyncio.create_task(checker.identify(token))
        while not issuer.asked[CONFIGURATION]:  # noqa: ASYNC110 - counted by another thread
            await asyncio.sleep(0.01)
        first.cancel()
        issuer.gate.set()
        assert (await second).subject == "ann"


async def test_a_token_without_key_id_is_tried_with_all_keys(issuer: Issuer) -> None:
    issuer.rotate("RS256")
    issuer.rotate("ES256", keep=2)
    async with checking(issuer) as checker:
        for key in issuer.keys:
            assert (
                await checker.identify(issuer.token("ann", key=key, header={"kid": None}))
            ).subject == "ann"


async def test_two_issuers(issuer: Issuer) -> None:
    with oidc.running("RS256") as other:
        async with checking(issuer, other) as checker:
            assert (await checker.identify(other.token("ann"))).issuer == other.url
            assert not issuer.asked
            # Signed by one of them in the other's name.
            await refused(checker, issuer.token("ann", iss=other.url))
            await refused(checker, other.token("ann", iss=issuer.url))


# --- bad tokens ------------------------------------------------------------------------------------------


async def test_forged_tokens(issuer: Issuer) -> None:
    good = issuer.token("ann")
    head, body, signature = good.split(".")
    stranger = ("ES256", oidc.make_key())
    with_its_id = {"kid": issuer.keys[-1][1].kid}
    bad = {
        "other subject": oidc.tampered(good, sub="bob"),
        "later end": oidc.tampered(good, exp=int(time.time()) + 10**6),
        "other key": issuer.token("ann", key=stranger),
        "other key, known id": issuer.token("ann", key=stranger, header=with_its_id),
        "none": oidc.unsigned(issuer, "ann"),
        "None": oidc.unsigned(issuer, "ann", "None"),
        "none with a signature": oidc.unsigned(issuer, "ann", "none", signature),
        "hmac with the public key": oidc.confused(issuer, "ann"),
        "no signature": f"{head}.{body}.",
        "cut": good[:-4],
        "two parts": f"{head}.{body}",
        "five parts": f"{good}.a.b",
        "key in the header": issuer.token(
            "ann", key=stranger, header={"jwk": stranger[1].as_dict(private=False)}
        ),
        "address of keys in the header": issuer.token(
            "ann", key=stranger, header={"jku": "http://127.0.0.1:1/"}
        ),
        "crit": issuer.token("ann", header={"crit": ["b64"], "b64": True}),
        "too long": issuer.token("ann", name="x" * 40_000),
        "deep": f"{head}.{oidc.packed('x')[:0]}{'W1tb' * 5000}.{signature}",
        "rubbish": "a.b.c",
        "not latin": "ä.ö.ü",
    }
    async with checking(issuer) as checker:
        assert (await checker.identify(good)).subject == "ann"
        for kind, token in bad.items():
            with pytest.raises(Unauthorized):
                pytest.fail(f"{kind}: {await checker.identify(token)}")


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 256},
        {"sub": "a\nb"},
        {"sub": "cluster_admin"},
        {"sub": "anonymous"},
        {"sub": "oscar-admin"},
        {"exp": None},
        {"exp": "soon"},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"nbf": 4_102_444_800},
        {"iat": 4_102_444_800},
        {"iss": "http://127.0.0.1:1"},
        {"iss": None},
        {"iss": ["a"]},
        {"typ": "Refresh"},
        {"typ": "ID"},
    ],
    ids=str,
)
async def test_bad_claims(issuer: Issuer, claims: dict[str, Any]) -> None:
    async with checking(issuer, reserved=["oscar-admin"]) as checker:
        await refused(checker, issuer.token(**{"subject": "ann", **claims}))


async def test_other_kinds_of_tokens(issuer: Issuer) -> None:
    async with checking(issuer) as checker:
        await refused(checker, issuer.token("ann", header={"typ": "logout+jwt"}))
        assert await checker.identify(issuer.token("ann", header={"typ": "at+jwt"}))


async def test_the_issuer_is_compared_exactly(issuer: Issuer) -> None:
    async with checking(issuer) as checker:
        said = await refused(checker, issuer.token("ann", iss=issuer.url + "/"))
    assert "not trusted" in said.message


async def test_clock_skew(issuer: Issuer) -> None:
    now = int(time.time())
    async with checking(issuer, skew=60) as checker:
        assert await checker.identify(issuer.token("ann", exp=now - 30))
        assert await checker.identify(issuer.token("ann", nbf=now + 30, iat=now + 30))
        said = await refused(checker, issuer.token("ann", exp=now - 90))
        assert "expired" in said.message
        await refused(checker, issuer.token("ann", nbf=now + 90))
    async with checking(issuer, skew=0) as checker:
        await refused(checker, issuer.token("ann", exp=now - 1))


async def test_a_known_token_ends(issuer: Issuer) -> None:
    clock = Clock()
    async with checking(issuer, clock=clock, skew=10) as checker:
        token = issuer.token("ann")
        await checker.identify(token)
        clock.late = 305
        assert await checker.identify(token), "within the skew"
        clock.late = 311
        assert "expired" in (await refused(checker, token)).message


async def test_audience(issuer: Issuer) -> None:
    async with checking(issuer, audience=["oscar", "grid"]) as checker:
        assert await checker.identify(issuer.token("ann", aud="oscar"))
        assert await checker.identify(issuer.token("ann", aud=["other", "grid"]))
        for wrong in (None, "other", ["other"], "", [], 7):
            await refused(checker, issuer.token("ann", aud=wrong))
    async with checking(issuer) as checker:
        assert await checker.identify(issuer.token("ann", aud="other")), "not looked at unless configured"


# --- keys ------------------------------------------------------------------------------------------------


async def test_rotation_while_running(issuer: Issuer) -> None:
    clock = Clock()
    async with checking(issuer, monotonic=clock) as checker:
        await checker.identify(issuer.token("ann"))
        old = issuer.keys[-1]
        clock.late += REFETCH
        issuer.rotate("RS256", keep=0)
        assert (await checker.identify(issuer.token("bob"))).subject == "bob"
        assert issuer.asked[KEYS] == 2
        await refused(checker, issuer.token("eve", key=old))


async def test_unknown_keys_make_little_traffic(issuer: Issuer) -> None:
    clock = Clock()
    forged = ("ES256", oidc.make_key())
    async with checking(issuer, monotonic=clock) as checker:
        await checker.identify(issuer.token("ann"))
        for _ in range(20):
            await refused(checker, issuer.token("ann", key=forged))
        assert issuer.asked[KEYS] == 1, "just fetched"
        clock.late += REFETCH
        await asyncio.gather(*(refused(checker, issuer.token(f"ann{i}", key=forged)) for i in range(20)))
        assert issuer.asked[KEYS] == 2


async def test_keys_are_renewed_behind_and_outlive_an_outage(issuer: Issuer) -> None:
    clock = Clock()
    async with checking(issuer, monotonic=clock) as checker:
        await checker.identify(issuer.token("ann"))
        issuer.broken = {CONFIGURATION, KEYS}
        clock.late += FRESH + 1
        before = issuer.asked[CONFIGURATION]
        assert await checker.identify(issuer.token("bob"))
        while issuer.asked[CONFIGURATION] == before:  # noqa: ASYNC110 - counted by another thread
            await asyncio.sleep(0.01)
        clock.late += STALE
        with pytest.raises(Unavailable, match="can't be reached") as caught:
            await checker.identify(issuer.token("cid"))
        assert int(caught.value.headers["Retry-After"]) > 0
        issuer.broken.clear()
        with pytest.raises(Unavailable):
            await checker.identify(issuer.token("cid"))  # not asked again at once
        clock.late += RETRY
        assert await checker.identify(issuer.token("cid"))


async def test_an_issuer_that_is_down(issuer: Issuer) -> None:
    token = issuer.token("ann")
    issuer.broken = {KEYS}
    clock = Clock()
    with oidc.running() as other:
        async with checking(issuer, other, monotonic=clock) as checker:
            outcomes = await asyncio.gather(
                *(checker.identify(token) for _ in range(5)), return_exceptions=True
            )
            assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
            assert issuer.asked[KEYS] == 1
            assert await checker.identify(other.token("bob")), "the other issuer is not concerned"
            issuer.broken.clear()
            clock.late += RETRY
            assert await checker.identify(token)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (CONFIGURATION, {"issuer": "http://127.0.0.1:1", "jwks_uri": "{keys}"}),
        (CONFIGURATION, {"issuer": "{url}"}),
        (CONFIGURATION, {"issuer": "{url}", "jwks_uri": "http://keys.example.org/"}),
        (CONFIGURATION, {"issuer": "{url}", "jwks_uri": "file:///etc/passwd"}),
        (CONFIGURATION, []),
        (CONFIGURATION, b"<html>"),
        (KEYS, {}),
        (KEYS, {"keys": []}),
        (
            KEYS,
            {
                "keys": [
                    {"kty": "oct", "k": "c2VjcmV0" * 4},
                    {"kty": "new"},
                    7,
                    {"kty": "RSA", "n": "!", "e": "x"},
                ]
            },
        ),
        (KEYS, b"[" * 100_000),
        (KEYS, b" " * 2_000_000),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_issuers_that_talk_nonsense(issuer: Issuer, path: str, answer: Any) -> None:
    if isinstance(answer, dict):
        answer = {
            name: text.format(url=issuer.url, keys=issuer.url + KEYS) if isinstance(text, str) else text
            for name, text in answer.items()
        }
    issuer.says[path] = answer
    async with checking(issuer) as checker:
        with pytest.raises(Unavailable):
            await checker.identify(issuer.token("ann"))


async def test_a_symmetric_key_in_the_key_set_signs_nothing(issuer: Issuer) -> None:
    issuer.says[KEYS] = {"keys": [*issuer.public_keys()["keys"], {"kty": "oct", "k": "c2VjcmV0" * 4}]}
    async with checking(issuer) as checker:
        assert await checker.identify(issuer.token("ann"))
        await refused(checker, oidc.confused(issuer, "ann"))


# --- UserInfo --------------------------------------------------------------------------------------------


async def test_user_info_is_asked_for_groups_that_the_token_lacks(issuer: Issuer) -> None:
    issuer.people["ann"] = {"entitlements": ["urn:mace:egi.eu:group:vo.a:role=vm_operator#aai.egi.eu"]}
    issuer.people["bob"] = {"groups": ["elsewhere"]}
    async with checking(issuer, groups=["vo.a"]) as checker:
        token = issuer.token("ann", realm_access={"roles": ["offline_access"]})
        assert (await checker.identify(token)).groups == {"vo.a", "offline_access"}
        outsider = issuer.token("bob")
        for _ in range(3):
            assert "no group" in (await refused(checker, outsider)).message
        await checker.identify(issuer.token("cid", groups=["vo.a"]))
    assert issuer.asked[USER_INFO] == 2, "one for each token that lacked something, none for the last"


async def test_user_info_is_asked_for_a_name(issuer: Issuer) -> None:
    issuer.people["ann"] = {"name": "Ann Example"}
    async with checking(issuer) as checker:
        assert (await checker.identify(issuer.token("ann", name=None))).name == "Ann Example"


async def test_a_name_is_not_worth_an_outage(issuer: Issuer) -> None:
    clock = Clock()
    issuer.people["ann"] = {"name": "Ann Example"}
    issuer.broken.add(USER_INFO)
    async with checking(issuer, clock=clock) as checker:
        token = issuer.token("ann", name=None)
        assert (await checker.identify(token)).name == ""
        issuer.broken.clear()
        clock.late += 61
        assert (await checker.identify(token)).name == "Ann Example"


async def test_groups_are_worth_one(issuer: Issuer) -> None:
    issuer.broken.add(USER_INFO)
    async with checking(issuer, groups=["vo.a"]) as checker:
        with pytest.raises(Unavailable):
            await checker.identify(issuer.token("ann"))


async def test_a_token_that_user_info_refuses(issuer: Issuer) -> None:
    async with checking(issuer, groups=["vo.a"]) as checker:
        said = await refused(checker, issuer.token("ann"))
    assert "any more" in said.message


async def test_user_info_about_somebody_else(issuer: Issuer) -> None:
    issuer.says[USER_INFO] = {"sub": "bob", "groups": ["vo.a"]}
    async with checking(issuer, groups=["vo.a"]) as checker:
        await refused(checker, issuer.token("ann"))


# --- pure parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "groups"),
    [
        (
            {"eduperson_entitlement": ["urn:mace:egi.eu:group:VO.Example:role=member#aai.egi.eu"]},
            {"vo.example"},
        ),
        ({"entitlements": ["urn:mace:egi.eu:group:vo.a#aai.egi.eu"]}, {"vo.a"}),
        ({"entitlements": "urn:mace:egi.eu:group:vo.a:sub:role=x#y"}, {"vo.a"}),
        (
            {
                "entitlements": [
                    "urn:other:egi.eu:group:vo.a",
                    "urn:mace:egi.eu:group",
                    "urn:mace:egi.eu:group:",
                    7,
                ]
            },
            set(),
        ),
        ({"group_membership": ["/Vo/Sub"], "groups": ["x", " y "]}, {"/Vo/Sub", "x", "y"}),
        ({"realm_access": {"roles": ["ai4eosc-user"]}}, {"ai4eosc-user"}),
        ({"realm_access": ["a"], "groups": {"a": 1}, "entitlements": None}, set()),
        ({}, set()),
    ],
)
def test_groups(claims: dict[str, Any], groups: set[str]) -> None:
    assert groups_of(claims) == groups


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["entitlements", "groups", "realm_access", "name"]),
        st.recursive(
            st.none() | st.text() | st.integers(),
            lambda part: st.lists(part) | st.dictionaries(st.text(), part),
        ),
    )
)
def test_any_claims_are_read(claims: dict[str, Any]) -> None:
    assert all(isinstance(group, str) and group for group in groups_of(claims))
    assert name_of(claims).isprintable()


def test_who_may_enter() -> None:
    assert may_enter("ann", [], allowed=[], always="")
    assert not may_enter("ann", ["b"], allowed=["a"], always="")
    assert may_enter("ann", ["a", "b"], allowed=["b"], always="")
    assert may_enter("ann", [], allowed=["a"], always="ann")
    assert not may_enter("bob", [], allowed=[], always="ann")


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://aai.example.org/realm", True),
        ("http://aai.example.org/realm", False),
        ("http://127.0.0.1:80/x", True),
        ("http://[::1]/x", True),
        ("http://localhost/x", True),
        ("http://localhost.evil.example/x", False),
        ("http://127.0.0.1@evil.example/x", False),
        ("https://user@aai.example.org", False),
        ("file:///x", False),
        ("aai.example.org", False),
    ],
)
def test_safe_addresses(url: str, safe: bool) -> None:
    assert is_safe(url, loopback=True) is safe


def test_settings_that_can_not_be_taken() -> None:
    assert Oidc.of(Settings()) is None
    with pytest.raises(InvalidField, match="no issuer"):
        Oidc.of(Settings(oidc_enable=True))
    with pytest.raises(InvalidField, match="https"):
        Oidc.of(Settings(oidc_enable=True, oidc_issuers=("http://aai.example.org",)))


async def test_what_is_remembered_is_bounded(issuer: Issuer) -> None:
    issuer.people = {"ann": {"groups": ["vo.a"]}}
    async with checking(issuer, groups=["vo.a"], room=10) as checker:
        tokens = [issuer.token("ann", jti=str(number)) for number in range(30)]
        for token in tokens:
            await checker.identify(token)
        await checker.identify(tokens[-1])
        assert issuer.asked[USER_INFO] == 30
        await checker.identify(tokens[0])
        assert issuer.asked[USER_INFO] == 31, "forgotten, so checked again"
