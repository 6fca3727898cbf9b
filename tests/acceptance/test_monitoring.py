"""`deploy/monitoring` with a real Prometheus that scrapes a real server."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from tests import real_metrics
from tests.server import Server

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def ask(url: str, query: str) -> list[object]:
    answer = httpx2.post(f"{url}/api/v1/query", data={"query": query})
    assert answer.status_code == 200, (query, answer.text)
    return list(answer.json()["data"]["result"])


def test_prometheus_scrapes_the_server_and_takes_rules_and_dashboard(server: Server, tmp_path: Path) -> None:
    try:
        real_metrics.program("OSCAR_PROMETHEUS", "prometheus")
    except real_metrics.PartMissing as why:
        pytest.skip(str(why))
    job = {"job_name": "oscar", "static_configs": [{"targets": [urlsplit(server.endpoint).netloc]}]}
    with real_metrics.prometheus(tmp_path, job, [FOLDER / "alerts.yaml"]) as url:
        deadline = time.monotonic() + 60
        while not ask(url, "oscar_jobs or oscar_workers"):
            assert time.monotonic() < deadline
            time.sleep(0.5)  # nobody tells when it has scraped
        assert ask(url, 'up{job="oscar"} == 1')
        rules = httpx2.get(f"{url}/api/v1/rules").json()["data"]["groups"][0]["rules"]
        assert {rule["name"] for rule in rules} >= {"OscarDown", "OscarQueueWaits", "OscarLeasesExpired"}
        deadline = time.monotonic() + 60
        while any(rule["health"] == "unknown" for rule in rules):
            assert time.monotonic() < deadline
            time.sleep(0.5)
            rules = httpx2.get(f"{url}/api/v1/rules").json()["data"]["groups"][0]["rules"]
        assert all(rule["health"] == "ok" for rule in rules), rules
        panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
        for panel in panels:
            for target in panel["targets"]:
                ask(url, target["expr"].replace("$instance", ".*"))
        for query in ("oscar_jobs", "oscar_workers", "oscar_leases", "oscar_queue_oldest_seconds"):
            ask(url, query)


def test_the_rules_are_well_formed(tmp_path: Path) -> None:
    try:
        tool = Path(real_metrics.program("OSCAR_PROMETHEUS", "prometheus")).with_name("promtool")
    except real_metrics.PartMissing as why:
        pytest.skip(str(why))
    said = subprocess.run(
        [str(tool), "check", "rules", str(FOLDER / "alerts.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert "6 rules found" in said.stdout
