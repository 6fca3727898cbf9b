"""What goes through the proxy of exposed services and what stays; pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oscar.api import exposed_headers as rules
from oscar.api.exposed_headers import Cors, Target

WHERE = Target("app", None, b"/system/services/app/exposed", b"/x")
HEADER = st.tuples(
    st.from_regex(rb"[a-z][a-z-]{0,15}", fullmatch=True), st.from_regex(rb"[ -~]{0,40}", fullmatch=True)
)


def passed(*headers: tuple[bytes, bytes], strip: bool = True) -> list[tuple[bytes, bytes]]:
    return rules.request_headers(
        list(headers), WHERE, client="1.2.3.4", scheme="https", request_id="id", strip_authorization=strip
    )


@pytest.mark.parametrize(
    ("path", "rest", "port"),
    [
        (b"/system/services/app/exposed", b"/", None),
        (b"/system/services/app/exposed/", b"/", None),
        (b"/system/services/app/exposed/a//b/%2e%2e/", b"/a//b/%2e%2e/", None),
        (b"/system/services/app/ports/9090/a", b"/a", 9090),
    ],
)
def test_targets(path: bytes, rest: bytes, port: int | None) -> None:
    found = rules.target(path)
    assert found is not None
    assert (found.name, found.rest, found.port) == ("app", rest, port)


@pytest.mark.parametrize(
    "path",
    [
        b"/system/services/app/exposedx",
        b"/system/services/app/exposed/a b",
        b"/system/services/app/exposed/a\r\nX: y",
        b"/system/services/app/exposed/a\x00",
        b"/system/services//exposed/",
        b"/system/services/a/b/exposed/",
        b"/system/services/App/exposed/",
        b"/system/services/app/ports/x/",
        b"/x/system/services/app/exposed/",
        b"",
    ],
)
def test_what_is_none(path: bytes) -> None:
    assert rules.target(path) is None


def test_credentials_stay() -> None:
    found = dict(
        passed((b"authorization", b"Bearer x"), (b"cookie", b"oscar_service_app_auth=1; b=2; oscar_x=3"))
    )
    assert b"authorization" not in found
    assert found[b"cookie"] == b"b=2"
    assert b"cookie" not in dict(passed((b"cookie", b"oscar_a=1")))
    assert dict(passed((b"authorization", b"own"), strip=False))[b"authorization"] == b"own"


def test_framing_and_what_a_connection_names_stay() -> None:
    names = {
        name
        for name, _ in passed(
            (b"connection", b"close, X-Secret"),
            (b"x-secret", b"1"),
            (b"transfer-encoding", b"chunked"),
            (b"content-length", b"5"),
            (b"upgrade", b"h2c"),
            (b"expect", b"100-continue"),
            (b"keep-alive", b"1"),
            (b"x-forwarded-user", b"admin"),
            (b"sec-websocket-key", b"abc"),
        )
    }
    forwarded = {"for", "host", "proto", "prefix"}
    assert names == {
        b"host",
        b"x-real-ip",
        b"x-request-id",
        *(f"x-forwarded-{each}".encode() for each in forwarded),
    }


@given(st.lists(HEADER, max_size=10))
def test_nothing_of_ours_gets_through_and_nothing_is_doubled(headers: list[tuple[bytes, bytes]]) -> None:
    found = passed(*headers, (b"authorization", b"secret"), (b"cookie", b"oscar_s=secret"))
    assert not any(b"secret" in value and name in {b"authorization", b"cookie"} for name, value in found)
    framing = {b"transfer-encoding", b"content-length", b"connection", b"upgrade"}
    assert not framing & {name for name, _ in found}
    assert sum(name == b"host" for name, _ in found) == 1
    assert sum(name == b"x-forwarded-for" for name, _ in found) == 1


@pytest.mark.parametrize(
    ("query", "token", "rest"),
    [
        (b"", None, b""),
        (b"token=a%2Bb+c", "a+b c", b""),
        (b"a=1&token=x&b=2&token=y", "x", b"a=1&b=2"),
        (b"mytoken=x&a=%00", None, b"mytoken=x&a=%00"),
        (b"token", "", b""),
    ],
)
def test_tokens_of_queries(query: bytes, token: str | None, rest: bytes) -> None:
    assert rules.token(query) == token
    assert rules.without_token(query) == rest


def test_targets_for_the_service() -> None:
    query = b"token=t&a=1"
    assert rules.upstream_target(WHERE, query, keep_prefix=False, strip_token=True) == b"/x?a=1"
    kept = rules.upstream_target(WHERE, query, keep_prefix=True, strip_token=False)
    assert kept == b"/system/services/app/exposed/x?token=t&a=1"
    assert rules.upstream_target(WHERE, b"token=t", keep_prefix=False, strip_token=True) == b"/x"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"/login", b"/system/services/app/exposed/login"),
        (b"/system/services/app/exposed/in", b"/system/services/app/exposed/in"),
        (b"//elsewhere/", b"//elsewhere/"),
        (b"https://elsewhere/", b"https://elsewhere/"),
        (b"relative", b"relative"),
    ],
)
def test_redirects(given: bytes, expected: bytes) -> None:
    [(_, found)] = rules.response_headers([(b"location", given)], WHERE, keep_prefix=False)
    assert found == expected
    assert rules.response_headers([(b"location", given)], WHERE, keep_prefix=True) == [(b"location", given)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"a=1", b"a=1; Path=/system/services/app/exposed"),
        (b"a=1; Path=/; HttpOnly", b"a=1; HttpOnly; Path=/system/services/app/exposed"),
        (b"a=1; Path=/sub; Domain=x.org", b"a=1; Path=/system/services/app/exposed/sub"),
        (b"oscar_service_app_auth=forged", b""),
        (b"  oscar_x=forged", b""),
    ],
)
def test_cookies_of_services_go_back_to_them_alone(given: bytes, expected: bytes) -> None:
    found = rules.response_headers([(b"set-cookie", given)], WHERE, keep_prefix=False)
    assert found == ([(b"set-cookie", expected)] if expected else [])


def test_cors_is_left_to_the_service_when_nothing_is_configured() -> None:
    own = [(b"access-control-allow-origin", b"*")]
    assert Cors().replace(own, None) == own
    assert not Cors().is_preflight("OPTIONS", [(b"origin", b"a"), (b"access-control-request-method", b"PUT")])


def test_any_origin_gets_no_credentials() -> None:
    found = dict(Cors(("*",), "GET", "X").answer("https://a", preflight=False))
    assert found[b"access-control-allow-origin"] == b"*"
    assert b"access-control-allow-credentials" not in found
