"""Calls of the REST API that acceptance tests share."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx2

from tests.server import Server

SPAN = "hostname; cut -d' ' -f1 /proc/uptime; sleep 0.2; cut -d' ' -f1 /proc/uptime"
"""A script that says where it runs, when it began and when it is over."""


def client(server: Server) -> httpx2.Client:
    """The administrator's."""
    return httpx2.Client(base_url=server.endpoint, auth=(server.user, server.password), timeout=60)


def create(http: httpx2.Client, script: str, **more: Any) -> str:
    """Create a service; its name."""
    name = more.pop("name", None) or f"t-{uuid.uuid4().hex[:8]}"
    definition = {"name": name, "image": "none", "script": script, "log_level": "CRITICAL"} | more
    answer = http.post("/system/services", json=definition)
    assert answer.status_code == 201, answer.text
    return str(name)


def at(*places: str) -> list[dict[str, str]]:
    """Inputs or outputs in the own store."""
    return [{"storage_provider": "minio.default", "path": place} for place in places]


def submit(http: httpx2.Client, service: str, **how: Any) -> str:
    """Post a job; its id."""
    answer = http.post(f"/job/{service}", **({"content": b"{}"} | how))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["job_id"])


def ended(http: httpx2.Client, service: str, job: str) -> dict[str, Any]:
    """A job when it has ended."""
    return waited(lambda: http.get(f"/system/jobs/{service}/{job}", params={"wait": "30s"}).json())


def waited(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Ask, each time for as long as an answer may take, until the job has ended."""
    for _ in range(6):
        found = ask()
        if "finish_time" in found:
            return found
    raise AssertionError(f"it did not end: {found}")


def put(http: httpx2.Client, bucket: str, key: str, body: bytes = b"x") -> None:
    """Upload an object by a presigned address."""
    wanted = {"object_key": key, "operation": "upload"}
    link = http.post(f"/system/buckets/{bucket}/presign", json=wanted).json()
    httpx2.put(link["url"], content=body, headers=link["headers"], timeout=60).raise_for_status()


def objects(http: httpx2.Client, bucket: str) -> list[str]:
    """The keys in a bucket."""
    return [found["object_name"] for found in http.get(f"/system/buckets/{bucket}").json()["objects"]]


def jobs(http: httpx2.Client, service: str) -> dict[str, Any]:
    """All jobs of a service, page by page."""
    found: dict[str, Any] = {}
    page: dict[str, str] = {}
    while True:
        answer = http.get(f"/system/logs/{service}", params=page).json()
        found |= answer["jobs"]
        if "next_page" not in answer:
            return found
        page = {"page": answer["next_page"]}


def one_at_a_time(http: httpx2.Client, service: str) -> set[str]:
    """Call a service whose script is `SPAN`, four at once, and see that no two calls ran together; where they ran."""
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: http.post(f"/run/{service}", content=b"{}"), range(8)))
    said = [answer.text.split() for answer in answers]
    spans = sorted((float(begun), float(over)) for _, begun, over in said)
    for (_, over), (begun, _) in pairwise(spans):
        assert begun >= over, "never two at once"
    return {host for host, _, _ in said}
