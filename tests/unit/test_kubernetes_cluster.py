"""The way to the API server, against a server of plain HTTP that answers as told: 429, 5xx, cut watches, 410."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from oscar.compute.kubernetes.cluster import Changed, Cluster, ClusterError, Gone, Listed, config
from oscar.compute.kubernetes.kinds import JOB, POD
from oscar.errors import EngineMissing, Unsupported

Answer = tuple[int, dict[str, str], bytes | list[bytes]]


class ApiServer:
    """Gives its answers in order, one a request; remembers what was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            method, path, _ = line.decode().split(" ")
            length = 0
            while (header := (await reader.readline()).strip()) != b"":
                name, _, value = header.decode().partition(": ")
                if name.lower() == "content-length":
                    length = int(value)
            await reader.readexactly(length)
            self.asked.append(f"{method} {path}")
            status, headers, body = self.answers.pop(0)
            streamed = isinstance(body, list)
            head = {"Content-Type": "application/json", **headers}
            head |= {"Transfer-Encoding": "chunked"} if streamed else {"Content-Length": str(len(body))}
            writer.write(f"HTTP/1.1 {status} x\r\n".encode())
            writer.write("".join(f"{key}: {value}\r\n" for key, value in head.items()).encode() + b"\r\n")
            if isinstance(body, list):
                for piece in body:
                    writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                await writer.drain()
                writer.close()  # without the last chunk: the connection is cut
                return
            writer.write(body)
            await writer.drain()


@asynccontextmanager
async def connected(api: ApiServer, folder: Path, patience: float = 15.0) -> AsyncIterator[Cluster]:
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    way = {
        "current-context": "a",
        "clusters": [{"name": "a", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "users": [{"name": "a", "user": {"token": "t"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(way))
    cluster = Cluster(config(path), patience=patience)
    try:
        yield cluster
    finally:
        await cluster.close()
        server.close()


def run(api: ApiServer, folder: Path, scenario: Callable[[Cluster], Awaitable[None]]) -> None:
    async def live() -> None:
        async with connected(api, folder) as cluster:
            await scenario(cluster)

    asyncio.run(live())


def ok(body: Any, status: int = 200) -> Answer:
    return status, {}, json.dumps(body).encode()


def refused(code: int, reason: str = "", message: str = "no", **headers: str) -> Answer:
    body = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return code, headers, json.dumps(body).encode()


def item(name: str, version: int) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": str(version), "managedFields": []}
    }


def listed(version: int, *items: dict[str, Any]) -> Answer:
    return ok({"metadata": {"resourceVersion": str(version)}, "items": list(items)})


def events(*found: tuple[str, dict[str, Any]]) -> Answer:
    return 200, {}, [json.dumps({"type": kind, "object": body}).encode() + b"\n" for kind, body in found]


BODY: dict[str, Any] = {"metadata": {"name": "a", "namespace": "ns"}}


def test_throttling_is_waited_out(tmp_path: Path) -> None:
    api = ApiServer(refused(429, "TooManyRequests", **{"Retry-After": "2"}), ok(BODY, 201))

    async def scenario(cluster: Cluster) -> None:
        creating = asyncio.create_task(cluster.create(JOB, BODY))
        await asyncio.sleep(0.5)
        assert cluster.throttled
        assert await creating == BODY

    run(api, tmp_path, scenario)
    assert api.asked == ["POST /apis/batch/v1/namespaces/ns/jobs"] * 2


def test_a_failure_that_passes_is_tried_again_and_made_twice_is_there(tmp_path: Path) -> None:
    api = ApiServer(refused(500), refused(503), refused(409, "AlreadyExists"))

    async def scenario(cluster: Cluster) -> None:
        assert await cluster.create(JOB, BODY) is None

    run(api, tmp_path, scenario)


@pytest.mark.parametrize("code", [400, 422])
def test_what_is_not_valid_is_the_users(tmp_path: Path, code: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        with pytest.raises(Unsupported, match="bad cpu"):
            await cluster.create(JOB, BODY)

    run(ApiServer(refused(code, "Invalid", "bad cpu")), tmp_path, scenario)


def test_absent_is_none_and_forbidden_says_what_to_do(tmp_path: Path) -> None:
    missing = refused(404, "NotFound")
    api = ApiServer(missing, missing, missing, refused(403, "Forbidden", 'User "x" cannot get pods'))

    async def scenario(cluster: Cluster) -> None:
        assert await cluster.get(POD, "a", "ns") is None
        assert await cluster.delete(POD, "a", "ns") is False
        assert await cluster.merge(POD, "a", {}, "ns") is None
        with pytest.raises(ClusterError) as found:
            await cluster.get(POD, "a", "ns")
        assert "service account" in (found.value.fix or "")
        assert not found.value.is_unknown

    run(api, tmp_path, scenario)


def test_long_lists_come_in_pages(tmp_path: Path) -> None:
    first = ok({"metadata": {"resourceVersion": "7", "continue": "more"}, "items": [item("a", 1)]})
    api = ApiServer(first, listed(7, item("b", 2)))

    async def scenario(cluster: Cluster) -> None:
        found = await cluster.items(POD, labels="x=y")
        assert [each["metadata"]["name"] for each in found] == ["a", "b"]
        assert all("managedFields" not in each["metadata"] for each in found)

    run(api, tmp_path, scenario)
    assert "continue=more" in api.asked[1]


def test_a_watch_is_taken_up_where_it_was_cut(tmp_path: Path) -> None:
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    api = ApiServer(
        listed(10, item("a", 9)),
        events(("ADDED", item("b", 11)), ("BOOKMARK", item("", 15))),
        refused(500),
        events(("MODIFIED", item("b", 16)), ("DELETED", item("a", 17))),
        events(("ERROR", gone)),
        listed(30, item("c", 29)),
        events(("ADDED", item("d", 31))),
    )

    async def scenario(cluster: Cluster) -> None:
        seen = []
        async for news in cluster.follow(POD):
            match news:
                case Listed(items):
                    seen.append(f"all {[each['metadata']['name'] for each in items]}")
                case Changed(one):
                    seen.append(f"changed {one['metadata']['name']}")
                case Gone(one):
                    seen.append(f"gone {one['metadata']['name']}")
            if len(seen) == 6:
                break
        assert seen == ["all ['a']", "changed b", "changed b", "gone a", "all ['c']", "changed d"]

    run(api, tmp_path, scenario)
    versions = [each.partition("resourceVersion=")[2].partition("&")[0] for each in api.asked]
    assert versions == ["", "10", "15", "15", "17", "", "30"]


def test_a_kubeconfig_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("just words")
    for path in (tmp_path / "absent", tmp_path / "k"):
        with pytest.raises(EngineMissing) as found:
            config(path)
        assert found.value.field == "KUBECONFIG"
