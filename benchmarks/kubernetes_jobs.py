"""Jobs on a cluster: from an upload to its output, and how many end in a minute.

Floors, in turns in the same run: a plain Job of the same three containers (fetch by a presigned URL in the server's
image, the script in busybox, store by a presigned URL), from its making to its output. A bare pod that only runs the
script has a row of its own, from its making to its end.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import obstore
from obstore.store import S3Store

from benchmarks import buckets, on_cluster
from benchmarks.figures import Row, median, row
from benchmarks.intake import mean_rate
from oscar.compute.kubernetes import kinds
from oscar.compute.kubernetes.cluster import Cluster
from tests.pods import BUSYBOX, SERVER

EVENTS = 10
JOBS = 30
TURNS = 2
LOOK_S = 0.02
SCRIPT = """read -r line < "$INPUT_FILE_PATH"
echo "$line" > "$TMP_OUTPUT_DIR/$line"
"""
CPU, MEMORY = "50m", "32Mi"
NAMESPACE = "default"
_OURS = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
_SHARED = [{"name": "run", "mountPath": "/run/plain"}]
_FETCH = "import os, urllib.request; urllib.request.urlretrieve(os.environ['FROM'], '/run/plain/input')"
_STORE = """
import os, urllib.request
body = open('/run/plain/' + os.environ['LINE'], 'rb').read()
urllib.request.urlopen(urllib.request.Request(os.environ['TO'], data=body, method='PUT')).read()
"""
_PATHS = [
    {"name": "INPUT_FILE_PATH", "value": "/run/plain/input"},
    {"name": "TMP_OUTPUT_DIR", "value": "/run/plain"},
]


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark; none without a cluster."""
    if not on_cluster.there():
        return []
    async with on_cluster.platform() as (cluster, at):
        buckets.service(at, "event", BUSYBOX, SCRIPT, cpu=CPU, memory=MEMORY)
        bench = Bench(cluster, buckets.bucket(at, "event"))
        rows = await bench.events(EVENTS // 5 if quick else EVENTS)
        return rows + await bench.rates(JOBS // 5 if quick else JOBS, 1 if quick else TURNS)


class Bench:
    """The cluster and the service's bucket."""

    def __init__(self, cluster: Cluster, store: S3Store) -> None:
        self._cluster = cluster
        self._store = store

    async def events(self, count: int) -> list[Row]:
        """From an upload to its output, one at a time."""
        own, plain, bare = [], [], []
        for number in range(-1, count):  # the first ones have caches to fill
            line = f"line{number}"
            took = await _seconds(lambda line=line: self._upload([line]))  # type: ignore[misc]
            floor = await _seconds(lambda line=line: self._plain([line]))  # type: ignore[misc]
            pod = await _seconds(lambda line=line: self._pod(line))  # type: ignore[misc]
            if number >= 0:
                own.append(took)
                plain.append(floor)
                bare.append(pod)
        return [
            row("kubernetes.event.p50", median(own), "s", median(plain)),
            row("kubernetes.event.p50.bare_pod", median(bare), "s"),
        ]

    async def rates(self, count: int, turns: int) -> list[Row]:
        """Jobs that end in a minute, when all are asked for at once."""
        own, plain = [], []
        for turn in range(turns):
            lines = [f"turn{turn}-{number}" for number in range(count)]
            own.append(60 * count / await _seconds(lambda lines=lines: self._upload(lines)))  # type: ignore[misc]
            plain.append(60 * count / await _seconds(lambda lines=lines: self._plain(lines)))  # type: ignore[misc]
        return [row("kubernetes.jobs.rate", mean_rate(own), "1/min", mean_rate(plain))]

    async def _upload(self, lines: list[str]) -> Callable[[], Awaitable[None]]:
        async def put(number: int) -> None:
            line = lines[number]
            await obstore.put_async(self._store, f"in/{line}", f"{line}\n".encode())

        await buckets.at_once(len(lines), put, 8)
        await self._visible("out", lines)

        async def clean() -> None:
            """Wait until nothing of them is left: the platform removes it itself."""
            while await self._cluster.items(kinds.JOB, labels="oscar_service=event"):  # noqa: ASYNC110 - the cluster tells nobody here
                await asyncio.sleep(0.2)

        return clean

    async def _plain(self, lines: list[str]) -> Callable[[], Awaitable[None]]:
        names = [f"plain-{uuid.uuid4().hex[:8]}" for _ in lines]
        bodies = [await self._job(name, line) for name, line in zip(names, lines, strict=True)]

        async def make(number: int) -> None:
            await self._cluster.create(kinds.JOB, bodies[number])

        await buckets.at_once(len(lines), make, 8)
        await self._visible("plain", lines)

        async def clean() -> None:
            for name in names:
                await self._cluster.delete(kinds.JOB, name, NAMESPACE)
            while await self._cluster.items(kinds.POD, NAMESPACE, labels="bench=plain"):  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.2)

        return clean

    async def _job(self, name: str, line: str) -> dict[str, Any]:
        """A plain Job of the same chain."""
        hour = timedelta(hours=1)
        fetch = await obstore.sign_async(self._store, "GET", f"in/{line}", hour)
        store = await obstore.sign_async(self._store, "PUT", f"plain/{line}", hour)
        return {
            **kinds.JOB.head,
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "backoffLimit": 0,
                "template": {
                    "metadata": {"labels": {"bench": "plain"}},
                    "spec": {
                        "restartPolicy": "Never",
                        "automountServiceAccountToken": False,
                        "enableServiceLinks": False,
                        "initContainers": [
                            _ours("fetch", _FETCH, FROM=fetch),
                            {**_user(), "volumeMounts": _SHARED},
                        ],
                        "containers": [_ours("store", _STORE, TO=store, LINE=line)],
                        "volumes": [{"name": "run", "emptyDir": {}}],
                    },
                },
            },
        }

    async def _visible(self, folder: str, lines: list[str]) -> None:
        """Wait until each has its output, as a client would see it."""
        missing = set(lines)
        while missing:
            if len(missing) == 1:
                try:
                    await obstore.head_async(self._store, f"{folder}/{next(iter(missing))}")
                except FileNotFoundError:
                    await asyncio.sleep(LOOK_S)
                    continue
                return
            await asyncio.sleep(10 * LOOK_S)
            async for page in self._store.list(prefix=f"{folder}/"):
                missing -= {each["path"].removeprefix(f"{folder}/") for each in page}

    async def _pod(self, line: str) -> Callable[[], Awaitable[None]]:
        name = f"bare-{uuid.uuid4().hex[:8]}"
        user = _user()
        user["command"][-1] = f'echo {line} > "$INPUT_FILE_PATH"\n{SCRIPT}'
        body = {
            **kinds.POD.head,
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "containers": [{**user, "volumeMounts": _SHARED}],
                "volumes": [{"name": "run", "emptyDir": {}}],
            },
        }
        await self._cluster.create(kinds.POD, body)
        while True:
            found = await self._cluster.get(kinds.POD, name, NAMESPACE) or {}
            if found.get("status", {}).get("phase") == "Succeeded":
                break
            await asyncio.sleep(LOOK_S)

        async def clean() -> None:
            await self._cluster.delete(kinds.POD, name, NAMESPACE, grace=0)

        return clean


def _ours(name: str, program: str, **variables: str) -> dict[str, Any]:
    return {
        "name": name,
        "image": SERVER,
        "command": ["python3", "-c", program],
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "resources": _OURS,
        "securityContext": {"runAsUser": 0},
        "volumeMounts": _SHARED,
    }


def _user() -> dict[str, Any]:
    return {
        "name": "user",
        "image": BUSYBOX,
        "command": ["/bin/sh", "-c", SCRIPT],
        "env": _PATHS,
        "resources": {"limits": {"cpu": CPU, "memory": MEMORY}},
    }


async def _seconds(act: Callable[[], Awaitable[Callable[[], Awaitable[None]]]]) -> float:
    """How long it takes; what it leaves is removed after that."""
    begin = time.perf_counter()
    clean = await act()
    took = time.perf_counter() - begin
    await clean()
    return took
