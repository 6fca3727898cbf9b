"""Queries for Loki and Prometheus: no name of a service changes what they ask."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oscar.errors import Misuse
from oscar.settings import Settings
from oscar.sources.loki import Query
from oscar.sources.templates import fill, quoted, regex

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Nothing of these tests is about time."""

STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def unquoted(text: str) -> str:
    """What a string of Go is, for the escapes that are used."""
    return re.sub(
        r"\\(.)", lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), text, flags=re.DOTALL
    )


@PATIENT
@given(st.text())
def test_a_name_as_a_regular_expression_matches_just_itself(name: str) -> None:
    assert re.fullmatch(regex(name), name)
    assert not re.fullmatch(regex(name), name + "x")


@PATIENT
@given(st.text(st.characters(exclude_characters="\x00")))
def test_no_name_leaves_its_string(name: str) -> None:
    query = fill('{app="a", service=~"{{service}}"} |= "b"', {"service": regex(name)})
    strings = [unquoted(found[1]) for found in STRING.finditer(query)]
    assert strings == ["a", regex(name), "b"]
    assert STRING.sub("", query) == "{app=, service=~} |= "


@pytest.mark.parametrize("name", ['x"} or {app="secret', "x`} |= `", ".*", "a|b", "x\\", 'x\\"', "x\n"])
def test_injections_into_logql(name: str) -> None:
    query = Query("loki", '{app="{{app}}"} |= "GIN"', {"app": "oscar"}, path="/(job|run)/%s").of(name)
    assert STRING.sub("", query) == "{app=} |=  |~ "
    assert unquoted([found[1] for found in STRING.finditer(query)][-1]) == f"/(job|run)/{regex(name)}"


def test_the_summary_asks_for_any_service() -> None:
    values = {"app": "oscar"}
    assert Query("loki", '{app="{{app}}", service=~"{{service}}"}', values, path="").of(None) == (
        '{app="oscar", service=~".*"}'
    )
    assert Query("loki", '{app="{{app}}"}', values, path="/run/%s").of(None) == '{app="oscar"}'


def test_a_template_with_the_service_gets_no_filter_of_ours() -> None:
    query = Query("loki", '{service=~"{{ service }}"}', {}, path="/run/%s").of("a-b")
    assert query == '{service=~"a-b"}'


def test_the_kind_of_string_decides_how_a_value_is_written() -> None:
    assert fill("|~ `{{service}}`", {"service": r"a\.b"}) == r"|~ `a\.b`"
    assert fill("|~ '{{service}}'", {"service": r"a\.b'"}) == r"|~ 'a\\.b\''"
    assert fill("[{{range}}]", {"range": "3600s"}) == "[3600s]"
    assert quoted('a"b') == r'"a\"b"'
    with pytest.raises(Misuse):
        fill("|~ `{{service}}`", {"service": "a`b"})
    with pytest.raises(Misuse):
        fill("{{service}}", {"service": ".*"})
    with pytest.raises(Misuse, match="unknown placeholder"):
        fill('{a="{{name}}"}', {"service": "x"})
    assert fill("| line_format `{{ __line__ }}{{.x}}`", {}) == "| line_format `{{ __line__ }}{{.x}}`"


def test_default_queries_have_the_placeholders_of_the_api_page() -> None:
    settings = Settings()
    for query in (settings.prometheus_cpu_query, settings.prometheus_gpu_query):
        filled = fill(query, {"service": "a", "range": "60s", "services_namespace": "b"})
        assert "{{" not in filled
        for name in ("service", "range", "services_namespace"):
            assert f"{{{{{name}}}}}" in query
    for query in (settings.loki_query, settings.loki_exposed_query):
        assert '{namespace="x", app="y"}' in fill(query, {"namespace": "x", "app": "y", "service": "z"})
    assert "/system/services/.+/exposed" in settings.loki_exposed_query
    assert (settings.loki_exposed_namespace, settings.loki_exposed_app) == ("ingress-nginx", "ingress-nginx")


def test_the_default_address_of_prometheus_holds_on_kubernetes_only() -> None:
    assert Settings().prometheus == ""
    on_kubernetes = Settings.model_construct(engine="kubernetes", prometheus_url="")
    assert on_kubernetes.prometheus == "http://prometheus-server.monitoring.svc.cluster.local"
    assert Settings(prometheus_url="http://p").prometheus == "http://p"
