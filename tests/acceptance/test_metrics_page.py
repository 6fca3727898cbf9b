"""The chapter "Metrics reporting" of OSCAR's API page, sentence by sentence, in its order.

Traffic of twenty users, five services and three countries goes through the real program, and every figure is compared
with what those who made it wrote down. Sentences about Prometheus and Loki are tested with real ones (marker `real`);
what is compared there is the same traffic, from the lines of the server's own log.
"""

from __future__ import annotations

import csv
import io
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from oscar.model.access_log import parse
from oscar.model.node import Amount, Node, described
from oscar.settings import Settings
from tests import countries, oidc, real_metrics
from tests.acceptance.traffic import COUNTRIES, EXPOSED, OWNERS, USERS, Traffic
from tests.server import Server, running

pytestmark = pytest.mark.timeout(900)
"""Containers for twenty users take their time."""
ADMIN = "the administrator"
KINDS = ("sync", "async", "exposed")


@pytest.fixture(scope="module")
def traffic(
    tmp_path_factory: pytest.TempPathFactory, container_engine: str, busybox_image: str
) -> Iterator[Traffic]:
    """What was done, half of it while the server wrote its log as text, half as JSON; one service is deleted then."""
    place = tmp_path_factory.mktemp("metrics")
    networks = {f"{network}0/24": countries.geolite(code) for code, network in COUNTRIES.items()}
    with oidc.running() as issuer:
        settings = {
            "OSCAR_ENGINE": container_engine,
            "OIDC_ENABLE": "true",
            "OIDC_ISSUERS": issuer.url,
            "OIDC_GROUPS": "vo.example",
            "OSCAR_COUNTRY_DATABASE": str(countries.database(place / "c.mmdb", networks)),
            "OSCAR_TRUSTED_PROXIES": "127.0.0.0/8",
            "OSCAR_USER_BURST": "10000",
        }
        with running(place / "data", **settings) as server:
            made = Traffic(server, issuer, busybox_image)
            made.build()
            made.round()
            restart(server, OSCAR_LOG_JSON="true")
            made.round()
            assert made.call(OWNERS["delta"], "DELETE", "/system/services/delta").status_code == 204
            yield made
            # Its replica would outlive the server.
            assert made.call(OWNERS[EXPOSED], "DELETE", f"/system/services/{EXPOSED}").status_code == 204


def restart(server: Server, **settings: str) -> None:
    """End it and start it again, with more settings; nothing when it has them."""
    wanted = {**server.settings, **settings}
    if all(server.settings.get(name, "") == text for name, text in settings.items()):
        return
    server.stop()
    server.settings = wanted
    server.start()


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


# Metrics reporting endpoints include /system/metrics/{serviceName}, /system/metrics, and /system/metrics/breakdown.


def check_summary(traffic: Traffic, totals: dict[str, Any], *, users: bool = True) -> None:
    for kind in KINDS:
        assert totals[f"requests_count_{kind}"] == traffic.total(kind=kind), kind
    assert totals["requests_count_total"] == traffic.total()
    assert totals["services_count_total"] == len(traffic.different("service")) == 5
    assert totals["services_count_active"] == 4  # one was deleted
    found = {one["country"]: one["request_count"] for one in totals["countries"]}
    assert found == traffic.count("country")
    assert totals["countries_count"] == len(COUNTRIES)
    if users:
        assert totals["users"] == sorted(traffic.different("user"))
        assert totals["users_count"] == len(traffic.different("user"))


def check_service(traffic: Traffic, who: str, name: str) -> None:
    metrics = traffic.get(who, f"/system/metrics/{name}")["metrics"]
    found = {each["metric"]: each.get("value") for each in metrics}
    for kind in KINDS:
        assert found[f"requests-{kind}-per-service"] == traffic.total(service=name, kind=kind), (name, kind)
    assert found["users-per-service"] == len(traffic.different("user", service=name))
    assert found["countries-count"] == len(traffic.different("country", service=name))


def check_breakdowns(traffic: Traffic) -> None:
    rows = traffic.get(ADMIN, "/system/metrics/breakdown", group_by="service", include_users="true")["items"]
    assert [row["key"] for row in rows] == sorted(traffic.different("service"))
    for row in rows:
        mine = {"service": row["key"]}
        for kind in KINDS:
            assert row[f"requests_count_{kind}"] == traffic.total(kind=kind, **mine)
        assert row["requests_count_total"] == row["executions_count"] == traffic.total(**mine)
        assert {one["country"]: one["request_count"] for one in row["countries"]} == traffic.count(
            "country", **mine
        )
        assert row["users"] == sorted(traffic.different("user", **mine))
        assert row["unique_users_count"] == len(row["users"])
    rows = traffic.get(ADMIN, "/system/metrics/breakdown", group_by="user")["items"]
    assert {row["key"]: row["executions_count"] for row in rows} == traffic.count("user")
    for row in rows:
        assert {one["country"]: one["request_count"] for one in row["countries"]} == traffic.count(
            "country", user=row["key"]
        )
        assert row["membership"] == "member"
    rows = traffic.get(ADMIN, "/system/metrics/breakdown", group_by="country")["items"]
    assert {row["key"]: row["executions_count"] for row in rows} == traffic.count("country")
    for row in rows:
        assert row["unique_users_count"] == len(traffic.different("user", country=row["key"]))


def test_metrics_reporting_endpoints_include_the_summary(traffic: Traffic) -> None:
    said = traffic.get(ADMIN, "/system/metrics")
    check_summary(traffic, said["totals"])
    assert [source["status"] for source in said["sources"]] == ["ok", "ok"]


@pytest.mark.parametrize("name", sorted(OWNERS))
def test_metrics_reporting_endpoints_include_those_of_a_service(traffic: Traffic, name: str) -> None:
    check_service(traffic, ADMIN, name)
    check_service(traffic, OWNERS[name] if name != "gamma" else ADMIN, name)


def test_metrics_reporting_endpoints_include_the_breakdown(traffic: Traffic) -> None:
    check_breakdowns(traffic)


def test_services_deleted_since_still_count_for_their_owner_and_administrators(traffic: Traffic) -> None:
    rows = traffic.get(OWNERS["delta"], "/system/metrics/breakdown", group_by="service")["items"]
    assert "delta" in {row["key"] for row in rows}
    rows = traffic.get(USERS[9], "/system/metrics/breakdown", group_by="service")["items"]
    assert "delta" not in {row["key"] for row in rows}
    assert traffic.call(USERS[9], "GET", "/system/metrics/delta").status_code == 404


def test_users_see_what_they_may_see(traffic: Traffic) -> None:
    who = USERS[9]
    rows = traffic.get(who, "/system/metrics/breakdown", group_by="service", include_users="true")["items"]
    for row in rows:
        # The services are public: their figures are everybody's, the names of who called are not.
        assert row["unique_users_count"] == len(traffic.different("user", service=row["key"]))
        assert row["users"] == ([who] if who in traffic.different("user", service=row["key"]) else [])
    rows = traffic.get(who, "/system/metrics/breakdown", group_by="user")["items"]
    seen = sum(traffic.count("user").values()) - traffic.total(service="delta")
    mine = traffic.total(user=who) - traffic.total(user=who, service="delta")
    assert {row["key"]: row["executions_count"] for row in rows} == {"": seen - mine, who: mine}
    rows = traffic.get(OWNERS["beta"], "/system/metrics/breakdown", group_by="user")["items"]
    assert {row["key"] for row in rows} >= traffic.different("user", service="beta")


def test_cpu_hours_come_from_the_jobs_own_accounting(traffic: Traffic) -> None:
    said = traffic.get(ADMIN, "/system/metrics/alpha", metric="cpu-hours")
    assert said["unit"] == "hours"
    assert said["sources"] == [{"name": "job-accounting", "status": "ok"}]


# If the metric query parameter is omitted from /system/metrics/{serviceName}, the API returns all supported
# per-service metrics.


def test_if_metric_is_omitted_the_api_returns_all_supported_per_service_metrics(traffic: Traffic) -> None:
    said = traffic.get(ADMIN, "/system/metrics/alpha")
    assert said["service_name"] == "alpha"
    keys = [each["metric"] for each in said["metrics"]]
    assert len(keys) == len(set(keys)) == 7
    for each in said["metrics"]:
        alone = traffic.get(ADMIN, "/system/metrics/alpha", metric=each["metric"])
        assert alone["metrics"] == [each]
        assert {name: alone[name] for name in ("metric", "value", "unit", "sources")} == each
        assert alone["service_id"] == alone["service_name"] == "alpha"
    for unknown in ("services-count", "requests-per-user", "countries-list", "love"):
        answer = traffic.call(ADMIN, "GET", "/system/metrics/alpha", params={"metric": unknown})
        assert answer.status_code == 400
        assert answer.json()["field"] == "metric"


# The breakdown endpoint supports CSV output by setting format=csv and grouping with group_by (service, user, country).


@pytest.mark.parametrize("by", ["service", "user", "country"])
def test_the_breakdown_endpoint_supports_csv_output_and_grouping(traffic: Traffic, by: str) -> None:
    answer = traffic.call(ADMIN, "GET", "/system/metrics/breakdown", params={"group_by": by, "format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    total = "requests_count_total" if by == "service" else "executions_count"
    assert {row["key"]: int(row[total]) for row in rows} == traffic.count(by)
    for row in rows:
        pairs = dict(pair.split(":") for pair in row["countries"].split("|"))
        expected = traffic.count("country", **{by: row["key"]})
        assert {code: int(number) for code, number in pairs.items()} == expected


@pytest.mark.parametrize("params", [{}, {"group_by": "mood"}, {"group_by": "user", "format": "xml"}])
def test_other_groups_and_formats_are_refused(traffic: Traffic, params: dict[str, str]) -> None:
    assert traffic.call(ADMIN, "GET", "/system/metrics/breakdown", params=params).status_code == 400


# To include the list of users per service, set include_users=true (JSON only).


def test_to_include_the_list_of_users_per_service_set_include_users_json_only(traffic: Traffic) -> None:
    params = {"group_by": "service", "include_users": "true"}
    rows = traffic.get(ADMIN, "/system/metrics/breakdown", **params)["items"]
    assert {row["key"]: row["users"] for row in rows} == {
        name: sorted(traffic.different("user", service=name)) for name in OWNERS
    }
    rows = traffic.get(ADMIN, "/system/metrics/breakdown", group_by="service")["items"]
    assert all("users" not in row for row in rows)
    for more in ({"format": "csv"}, {"group_by": "user"}):
        answer = traffic.call(ADMIN, "GET", "/system/metrics/breakdown", params=params | more)
        assert answer.status_code == 400
        assert answer.json()["field"] == "include_users"


# The start/end query parameters are optional. If omitted, the API defaults to the last 24 hours (end = now, start =
# end - 24h).


def test_the_start_and_end_query_parameters_are_optional(traffic: Traffic) -> None:
    now = datetime.now(UTC)
    today, tomorrow = f"{now:%Y-%m-%d}", f"{now + timedelta(days=1):%Y-%m-%d}"
    yesterday = f"{now - timedelta(days=1):%Y-%m-%d}"
    soon = f"{now + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    for params in ({"start": yesterday}, {"start": yesterday, "end": tomorrow}, {"end": soon}):
        totals = traffic.get(ADMIN, "/system/metrics", **params)["totals"]
        assert totals["requests_count_total"] == traffic.total(), params
    past = {"start": "2020-01-01", "end": "2020-01-31"}
    assert traffic.get(ADMIN, "/system/metrics", **past)["totals"]["requests_count_total"] == 0
    for wrong in ({"start": tomorrow, "end": today}, {"start": "soon"}, {"end": "2020-02-31"}):
        assert traffic.call(ADMIN, "GET", "/system/metrics", params=wrong).status_code == 400


def test_if_omitted_the_api_defaults_to_the_last_24_hours(traffic: Traffic) -> None:
    before = datetime.now(UTC)
    for path in ("/system/metrics", "/system/metrics/alpha", "/system/metrics/breakdown?group_by=user"):
        said = traffic.call(ADMIN, "GET", path).json()
        start, end = moment(said["start"]), moment(said["end"])
        assert end - start == timedelta(hours=24)
        assert before - timedelta(seconds=1) <= end <= datetime.now(UTC)
    said = traffic.get(ADMIN, "/system/metrics", end="2026-11-02T12:00:00Z")
    assert moment(said["start"]) == datetime(2026, 11, 1, 12, tzinfo=UTC)


# When /system/status reports cluster capacity, control-plane nodes are normally excluded. If a cluster has no worker
# nodes, OSCAR includes control-plane nodes so that capacity is still reported in single-node dev setups.


def test_status_excludes_control_plane_nodes_unless_there_are_no_others() -> None:
    def node(name: str, *, control_plane: bool) -> Node:
        amount = Amount(4000, 4000, 0)
        labels = {"node-role.kubernetes.io/control-plane": ""} if control_plane else {}
        return Node(name=name, cpu=amount, memory=amount, labels=labels)

    both = described([node("a", control_plane=True), node("b", control_plane=False)])
    assert both["nodes_count"] == 1
    assert described([node("a", control_plane=True)])["nodes_count"] == 1


# CPU/GPU hours are fetched from Prometheus.

HOUR = 3600
NAMESPACES = {
    "cluster_admin": "oscar-svc",
    USERS[0]: "oscar-svc-user-00-1a2b3c",
    USERS[1]: "oscar-svc-user-01",
}
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, dict[str, tuple[float, float]]]:
    """Data of Prometheus: what pods used in two hours; when those ended, and the hours by service."""
    try:
        real_metrics.program("OSCAR_PROMETHEUS", "prometheus")
    except real_metrics.PartMissing as why:
        pytest.skip(str(why))
    folder = tmp_path_factory.mktemp("prometheus")
    end = int(time.time()) // HOUR * HOUR - HOUR
    begin = end - 2 * HOUR
    # Pod, container, first and last second of its life, cores, GPUs.
    pods = [
        ("alpha", f"alpha-{UUID}-1-x7x2p", "oscar-container", begin + 600, begin + 4200, 2.0, 1),
        ("alpha", f"alpha-{UUID}-1-x7x2p", "stage-out", begin + 4200, begin + 4260, 0.5, 0),
        ("alpha", f"alpha-{UUID}-2-aaaaa", "oscar-container", begin - 3600, begin + 3600, 1.0, 0),
        ("beta", "beta-worker-5f7d8-abcde", "oscar-container", begin, end, 0.25, 0),
        ("web", "web-dlp-7d9f-abcde", "oscar-container", begin, end, 0.5, 2),
    ]
    strangers = [
        ("oscar-svc", f"alpha-two-{UUID}-1-x7x2p", "oscar-container"),
        ("monitoring", f"alpha-{UUID}-1-x7x2p", "oscar-container"),
    ]
    cpu, gpu = [], []
    used: dict[str, tuple[float, float]] = {}
    for service, pod, container, start, stop, cores, gpus in pods:
        labels = f'namespace="{NAMESPACES[OWNERS[service]]}",pod="{pod}",container="{container}"'
        cpu += [
            f"container_cpu_usage_seconds_total{{{labels}}} {(at - start) * cores} {at}"
            for at in range(start, stop + 1, 30)
        ]
        more = f'{labels},resource="nvidia_com_gpu",unit="integer"'
        if gpus:
            # A pod that ends is scraped no more; here it says so itself, because nobody can tell that afterwards.
            series = f"kube_pod_container_resource_requests{{{more}}}"
            gpu += [f"{series} {gpus} {at}" for at in range(start, stop, 30)] + [f"{series} 0 {stop}"]
        inside = min(stop, end) - max(start, begin)
        before = used.get(service, (0.0, 0.0))
        used[service] = (before[0] + inside * cores / HOUR, before[1] + inside * gpus / HOUR)
    for namespace, pod, container in strangers:
        labels = f'namespace="{namespace}",pod="{pod}",container="{container}"'
        cpu += [
            f"container_cpu_usage_seconds_total{{{labels}}} {at - begin} {at}" for at in range(begin, end, 30)
        ]
    text = [
        "# TYPE container_cpu_usage_seconds_total gauge",
        *cpu,
        "# TYPE kube_pod_container_resource_requests gauge",
        *gpu,
        "# EOF",
        "",
    ]
    real_metrics.backfill(folder, "\n".join(text))
    return folder, end, used


@pytest.mark.real
def test_cpu_and_gpu_hours_are_fetched_from_prometheus(
    traffic: Traffic, measured: tuple[Path, int, dict[str, tuple[float, float]]]
) -> None:
    folder, end, used = measured
    with real_metrics.prometheus(folder) as url:
        restart(traffic.server, PROMETHEUS_URL=url)
        stamp = datetime.fromtimestamp(end, UTC)
        params = {
            "start": f"{stamp - timedelta(hours=2):%Y-%m-%dT%H:%M:%SZ}",
            "end": f"{stamp:%Y-%m-%dT%H:%M:%SZ}",
        }
        for service in ("alpha", "beta", "web"):
            for metric, expected in zip(("cpu-hours", "gpu-hours"), used[service], strict=True):
                said = traffic.get(ADMIN, f"/system/metrics/{service}", metric=metric, **params)
                # GPU devices are counted by the minute.
                assert said["value"] == pytest.approx(expected, abs=0.02), (service, metric)
                assert said["sources"][0]["name"] == "prometheus"
                assert said["sources"][0]["status"] == "ok"
        totals = traffic.get(ADMIN, "/system/metrics", **params)["totals"]
        # The summary takes all services of the tenants' namespaces, one that nobody of ours has included.
        stranger = 2.0
        assert totals["cpu_hours_total"] == pytest.approx(
            sum(each[0] for each in used.values()) + stranger, abs=0.03
        )
        assert totals["gpu_hours_total"] == pytest.approx(sum(each[1] for each in used.values()), abs=0.03)
        mine = traffic.get(USERS[1], "/system/metrics", **params)["totals"]
        assert mine["cpu_hours_total"] == pytest.approx(sum(each[0] for each in used.values()), abs=0.03)


def test_a_prometheus_that_does_not_answer_is_flagged_after_two_seconds(traffic: Traffic) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        restart(traffic.server, PROMETHEUS_URL=f"http://127.0.0.1:{silent.getsockname()[1]}")
        said = traffic.get(ADMIN, "/system/metrics")
        assert not {"cpu_hours_total", "gpu_hours_total"} & said["totals"].keys()
        check_summary(traffic, said["totals"])
        [source] = [each for each in said["sources"] if each["name"] == "prometheus"]
        assert source["status"] == "missing"
        assert "2 s" in source["notes"]
        [value] = traffic.get(ADMIN, "/system/metrics/alpha", metric="gpu-hours")["metrics"]
        assert "value" not in value
        assert value["sources"][0]["status"] == "missing"


# If PROMETHEUS_URL is not set, the service defaults to http://prometheus-server.monitoring.svc.cluster.local.


def test_if_prometheus_url_is_not_set_the_service_defaults_to_the_one_in_the_cluster() -> None:
    # On Kubernetes: another engine's users have no such address, and their jobs are accounted for by the engine.
    assert Settings.model_construct(engine="kubernetes").prometheus == (
        "http://prometheus-server.monitoring.svc.cluster.local"
    )
    assert Settings().prometheus == ""


# You can override the default Prometheus queries via: PROMETHEUS_CPU_QUERY, PROMETHEUS_GPU_QUERY (default uses
# {{service}}, {{range}}, and {{services_namespace}}).


@pytest.mark.real
def test_you_can_override_the_default_prometheus_queries(
    traffic: Traffic, measured: tuple[Path, int, dict[str, tuple[float, float]]]
) -> None:
    folder, _, _ = measured
    with real_metrics.prometheus(folder) as url:
        restart(
            traffic.server,
            PROMETHEUS_URL=url,
            PROMETHEUS_CPU_QUERY='label_replace(vector(42), "s", "{{service}}", "", "")',
            PROMETHEUS_GPU_QUERY='vector(7) and on() absent(nothing{a=~"{{services_namespace}}"}[{{range}}])',
        )
        said = traffic.get(ADMIN, "/system/metrics/alpha")
        found = {each["metric"]: each for each in said["metrics"]}
        assert found["cpu-hours"]["value"] == 42
        # A query that Prometheus refuses is flagged.
        assert "value" not in found["gpu-hours"]
        assert "400" in found["gpu-hours"]["sources"][0]["notes"]
    restart(traffic.server, PROMETHEUS_URL="", PROMETHEUS_CPU_QUERY="0", PROMETHEUS_GPU_QUERY="0")


# Request-based metrics (breakdowns, request counts) can be sourced from Loki for durable retention.

OURS = {"namespace": "oscar", "app": "oscar"}


@pytest.fixture(scope="module")
def shipped(traffic: Traffic, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Loki with the lines of the server's log, and the server asking it."""
    try:
        real_metrics.program("OSCAR_LOKI", "loki")
    except real_metrics.PartMissing as why:
        pytest.skip(str(why))
    with real_metrics.loki(tmp_path_factory.mktemp("loki"), max_query_length="721h") as url:
        ship(traffic, url)
        exposed = {"LOKI_EXPOSED_NAMESPACE": "oscar", "LOKI_EXPOSED_APP": "oscar"}
        restart(traffic.server, LOKI_URL=url, **exposed)
        yield url
        restart(traffic.server, LOKI_URL="")


def ship(traffic: Traffic, url: str) -> None:
    """Send the lines to Loki, each at the moment that it tells."""
    lines: list[tuple[int, str]] = []
    for number, text in enumerate(traffic.server.log.read_text().splitlines()):
        access = parse(text)
        stamp = access.started * 1000 if access else time.time_ns() - 10**9
        lines.append((stamp + number, text))
    real_metrics.push(url, OURS, sorted(lines))


@pytest.mark.real
def test_request_based_metrics_can_be_sourced_from_loki(traffic: Traffic, shipped: str) -> None:
    said = traffic.get(ADMIN, "/system/metrics")
    assert [(each["name"], each["status"]) for each in said["sources"][:2]] == [
        ("loki", "ok"),
        ("exposed-request-logs", "ok"),
    ]
    check_summary(traffic, said["totals"])
    check_breakdowns(traffic)
    for name, owner in OWNERS.items():
        check_service(traffic, ADMIN, name)
        check_service(traffic, ADMIN if name == "gamma" else owner, name)


@pytest.mark.real
def test_users_see_what_they_may_see_over_loki(traffic: Traffic, shipped: str) -> None:
    test_users_see_what_they_may_see(traffic)
    test_services_deleted_since_still_count_for_their_owner_and_administrators(traffic)


# Set LOKI_URL to enable Loki, otherwise the system falls back to Kubernetes pod logs.


@pytest.mark.real
def test_set_loki_url_to_enable_loki(traffic: Traffic, shipped: str) -> None:
    assert {each["name"] for each in traffic.get(ADMIN, "/system/metrics")["sources"]} >= {"loki"}


def test_otherwise_the_system_takes_its_own_records(traffic: Traffic) -> None:
    # A step beyond the page: records are as durable as Loki, and know users and ways in.
    restart(traffic.server, LOKI_URL="", PROMETHEUS_URL="")
    assert traffic.get(ADMIN, "/system/metrics")["sources"][0]["name"] == "request-records"


def test_a_loki_that_does_not_answer_is_flagged_and_never_a_silent_zero(traffic: Traffic) -> None:
    restart(traffic.server, LOKI_URL="http://127.0.0.1:1")
    said = traffic.get(ADMIN, "/system/metrics")
    assert {each["name"]: each["status"] for each in said["sources"]} == {
        "loki": "missing",
        "exposed-request-logs": "missing",
        "job-accounting": "ok",
    }
    assert not any(name.startswith(("requests", "users", "countries")) for name in said["totals"])
    answer = traffic.call(
        ADMIN, "GET", "/system/metrics/breakdown", params={"group_by": "user", "format": "csv"}
    )
    assert answer.status_code == 503


# LOKI_QUERY (default uses {{namespace}} and {{app}}; if you add {{service}}, prefer a regex matcher like
# service=~"{{service}}" so summary queries can expand to .*)


@pytest.mark.real
def test_loki_query_with_a_regex_matcher_expands_to_all_in_summaries(traffic: Traffic, shipped: str) -> None:
    lines: dict[str, list[tuple[int, str]]] = {}
    for number, text in enumerate(traffic.server.log.read_text().splitlines()):
        access = parse(text)
        if access and access.target:
            lines.setdefault(access.target[1], []).append((access.started * 1000 + number, text))
    for name, its in lines.items():
        real_metrics.push(shipped, {"namespace": "oscar", "app": "labelled", "service": name}, sorted(its))
    query = '{namespace="{{namespace}}", app="labelled", service=~"{{service}}"}'
    restart(traffic.server, LOKI_URL=shipped, LOKI_QUERY=query, LOKI_EXPOSED_QUERY=query)
    check_summary(traffic, traffic.get(ADMIN, "/system/metrics")["totals"])
    check_service(traffic, ADMIN, "alpha")
    check_service(traffic, ADMIN, EXPOSED)
    restart(
        traffic.server, LOKI_QUERY=Settings().loki_query, LOKI_EXPOSED_QUERY=Settings().loki_exposed_query
    )


# LOKI_EXPOSED_QUERY (LogQL query for exposed-service requests; default filters /system/services/.+/exposed),
# LOKI_EXPOSED_NAMESPACE (default ingress-nginx), LOKI_EXPOSED_APP (default ingress-nginx)


@pytest.mark.real
def test_exposed_requests_come_from_the_log_of_the_ingress_by_default(traffic: Traffic, shipped: str) -> None:
    made = [each for each in traffic.made if each.kind == "exposed"]
    start = time.time_ns() - 3600 * 10**9
    lines = []
    for number, each in enumerate(made):
        stamp = start + number * 10**9
        at = datetime.fromtimestamp(stamp // 10**9, UTC)
        address = f"{COUNTRIES[each.country]}7"
        request = f'"GET /system/services/{each.service}/exposed/ HTTP/1.1" 200 5 "-" "curl/8"'
        # Both proxies that OSCAR can stand behind.
        end = (
            " 80 0.004 [ns-web-80] [] 10.0.0.7:80 5 0.003 200 abc" if number % 2 else ' 1 "r" "http://x" 4ms'
        )
        lines.append((stamp, f"{address} - - [{at:%d/%b/%Y:%H:%M:%S +0000}] {request}{end}"))
    real_metrics.push(shipped, {"namespace": "ingress-nginx", "app": "ingress-nginx"}, lines)
    restart(
        traffic.server,
        LOKI_EXPOSED_NAMESPACE=Settings().loki_exposed_namespace,
        LOKI_EXPOSED_APP=Settings().loki_exposed_app,
    )
    said = traffic.get(ADMIN, "/system/metrics")
    check_summary(traffic, said["totals"], users=False)
    [source] = [each for each in said["sources"] if each["name"] == "exposed-request-logs"]
    assert source["status"] == "partial"
    assert re.search("don't tell users", source["notes"])
    metric = traffic.get(ADMIN, f"/system/metrics/{EXPOSED}", metric="requests-exposed-per-service")
    assert metric["value"] == len(made)
