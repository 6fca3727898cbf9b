"""`python -m oscar.supervisor in|out`: what staging containers do, with a real S3 server and folders for volumes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.model.trouble import Trouble
from oscar.model.user import ADMIN
from oscar.objects.s3 import S3Store
from oscar.supervisor.order import LONGEST_REPORT, Marker, Order, Report, report_of
from oscar.supervisor.orders import config_of, order_of
from oscar.supervisor.plan import plan
from tests import s3_server

BUCKET = "private"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.Server]:
    with s3_server.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@dataclass
class Pod:
    """The folders of a pod, and the store that it works with."""

    server: s3_server.Server
    folder: Path
    uid: str = "pod-1"
    service: Service = field(init=False)
    payload: bytes = field(init=False)
    told: Order = field(init=False)

    @property
    def store(self) -> S3Store:
        return S3Store(self.server.endpoint, s3_server.ALICE.access_key, s3_server.ALICE.secret_key)

    @property
    def root(self) -> Path:
        return self.folder / "run"

    def order(self, payload: bytes, script: bytes = b"true", **fields: Any) -> None:
        """Write what an engine gives to its staging containers."""
        order = self.folder / "order"
        order.mkdir(exist_ok=True, parents=True)
        self.root.mkdir(exist_ok=True)
        places = [{"storage_provider": "minio.default", "path": f"{BUCKET}/in"}]
        outputs = [{"storage_provider": "minio.default", "path": f"{BUCKET}/out"}]
        service = Service.model_validate(
            {"name": "cat", "image": "busybox", "input": places, "output": outputs}
        )
        own = MinIOProvider(
            endpoint=self.server.endpoint,
            access_key=s3_server.ALICE.access_key,
            secret_key=s3_server.ALICE.secret_key,
        )
        self.service, self.payload = service, payload
        self.told = self.ordered(service, own, **fields)
        (order / "order").write_bytes(self.told.as_file())
        bodies = {"payload": payload, "script": script, "config": config_of(service)}
        for name in bodies.keys() - self.told.urls.keys():
            (order / name).write_bytes(bodies[name])

    def ordered(self, service: Service, own: MinIOProvider, **fields: Any) -> Order:
        """As `compute.kubernetes` makes it."""
        planned = plan(service, self.payload, job_id="cat", resource_id="")
        return order_of("cat", service, planned, own)._replace(**fields)

    def step(self, word: str, *, own: str = "") -> tuple[int, Report]:
        """Run a staging container; its exit code and its report."""
        return self.ended(self.begun(word, own=own))

    def begun(self, word: str, *, own: str = "") -> subprocess.Popen[bytes]:
        """A staging container that runs."""
        code = (
            "import sys; from pathlib import Path; from oscar.supervisor import pod; f = Path(sys.argv[2]);"
            "from oscar.supervisor.__main__ import leave;"
            "pod._PAUSES = (0.1,);"
            "leave(pod.main(sys.argv[1], root=f/'run', folder=f/'order', message=f/'message'))"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, word, str(self.folder)],
            env=os.environ | {"POD_UID": own or self.uid},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ended(self, container: subprocess.Popen[bytes]) -> tuple[int, Report]:
        """Its exit code and its report."""
        said, trouble = container.communicate(timeout=60)
        assert not trouble, trouble.decode()
        report = report_of((self.folder / "message").read_text())
        assert report is not None
        assert [text for _, text in report.lines or []] == said.decode().splitlines()
        return container.returncode, report

    def markers(self, key: str) -> Marker:
        """A marker as an engine signs it."""

        async def sign() -> Marker:
            put = await self.store.presign(
                BUCKET, key, method="PUT", expires=600, headers={"If-None-Match": "*"}
            )
            return Marker(put=put, get=await self.store.presign(BUCKET, key, method="GET", expires=600))

        return asyncio.run(sign())


@pytest.fixture
def pod(server: s3_server.Server, tmp_path: Path) -> Pod:
    return Pod(server, tmp_path)


def put(pod: Pod, key: str, content: bytes) -> None:
    source = pod.folder / uuid.uuid4().hex
    source.write_bytes(content)
    asyncio.run(pod.store.upload(BUCKET, key, source))


def get(pod: Pod, key: str) -> bytes:
    target = pod.folder / uuid.uuid4().hex
    asyncio.run(pod.store.download(BUCKET, key, target))
    return target.read_bytes()


def test_inputs_come_and_results_go(pod: Pod) -> None:
    put(pod, "in/a.txt", b"some input\n")
    payload = json.dumps({"Records": [record(f"{BUCKET}/in/a.txt")]}).encode()
    pod.order(payload, script=b"cat\r\n")
    code, report = pod.step("in")
    assert (code, report.trouble) == (0, None)
    assert report.lines is not None
    assert "in/a.txt" in report.lines[0][1]
    assert (pod.root / "work/in/a.txt").read_bytes() == b"some input\n"
    assert (pod.root / "config/event").read_bytes() == payload
    assert (pod.root / "config/script.sh").read_bytes() == b"cat\r\n"
    assert "name: cat" in (pod.root / "config/function_config.yaml").read_text()
    for place in ("work", "work/out", "state"):
        assert (pod.root / place).stat().st_mode & 0o777 == 0o777
    out = pod.root / "work/out/result.txt"
    out.write_bytes(b"x" * 3_000_000)
    code, report = pod.step("out")
    assert (code, report.trouble) == (0, None)
    assert get(pod, "out/result.txt") == b"x" * 3_000_000


def test_stores_of_users_are_reached_where_the_order_says(pod: Pod, server: s3_server.Server) -> None:
    keys = s3_server.ALICE
    far = {"endpoint": server.endpoint, "access_key": keys.access_key, "secret_key": keys.secret_key}

    def stored(owner: str, *hosts: str) -> tuple[int, Report]:
        definition = pod.service.model_dump() | {
            "owner": owner,
            "storage_providers": {"minio": {"far": far}},
            "output": [{"storage_provider": "minio.far", "path": f"{BUCKET}/far"}],
        }
        own = MinIOProvider.model_validate(pod.told.own._asdict())
        told = pod.ordered(Service.model_validate(definition), own, hosts=hosts)
        (pod.folder / "order/order").write_bytes(told.as_file())
        return pod.step("out")

    pod.order(b"{}")
    assert pod.step("in")[0] == 0
    (pod.root / "work/out/x").write_text("x")
    code, report = stored("somebody")
    assert (code, report.trouble) == (1, Trouble.OUR)
    assert "the host 127.0.0.1 has a private address" in report.message
    assert stored("somebody", "other.example.org")[0] == 1
    assert stored("somebody", "127.0.0.1")[0] == 0
    assert get(pod, "far/x") == b"x"
    # The administrator's own may be anywhere.
    assert stored(ADMIN)[0] == 0


def record(place: str) -> dict[str, Any]:
    bucket, _, key = place.partition("/")
    return {
        "eventSource": "minio:s3",
        "eventName": "s3:ObjectCreated:Put",
        "s3": {"bucket": {"name": bucket}, "object": {"key": key}},
    }


def test_an_input_that_is_gone_is_refused_in_the_stores_words(pod: Pod) -> None:
    pod.order(json.dumps({"Records": [record(f"{BUCKET}/in/gone.txt")]}).encode())
    code, report = pod.step("in")
    assert (code, report.trouble) == (1, Trouble.REFUSED)
    assert "in/gone.txt" in report.message


def test_a_store_that_can_not_be_reached_is_trouble_of_ours(pod: Pod) -> None:
    pod.order(b"{}")
    pod.step("in")
    (pod.root / "work/out/x").write_text("x")
    away = pod.told.own._replace(endpoint="http://127.0.0.1:1")
    (pod.folder / "order/order").write_bytes(pod.told._replace(own=away).as_file())
    code, report = pod.step("out")
    assert (code, report.trouble) == (1, Trouble.OUR)
    assert f"{BUCKET}/out/x" in report.message


@pytest.mark.parametrize("files", [1, 10])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_container_that_is_told_to_end_says_so_at_once(pod: Pod, files: int, elsewhere: bool) -> None:
    pod.order(b"{}")
    pod.step("in")
    for number in range(files):
        (pod.root / f"work/out/{number}").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        away = pod.told.own._replace(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        definition = pod.service.model_dump(mode="json") if elsewhere else None
        told = pod.told._replace(own=away, definition=definition)
        (pod.folder / "order/order").write_bytes(told.as_file())
        container = pod.begun("out")
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            container.terminate()
            code, report = pod.ended(container)
    assert (code, report.trouble, report.message) == (1, Trouble.OUR, "staging was stopped")


def test_an_input_comes_from_the_cluster_that_delegated_the_run(pod: Pod) -> None:
    put(pod, "far/a.txt", b"far away")
    url = asyncio.run(pod.store.presign(BUCKET, "far/a.txt", method="GET", expires=60))
    event = {
        "event": json.dumps({"Records": [record("theirs/in/a.txt")]}),
        "storage_provider": "minio.theirs",
    }
    pod.order(json.dumps(event | {"access": url}).encode())
    assert [each.url for each in pod.told.moves.downloads] == [url]
    code, report = pod.step("in")
    assert (code, report.message) == (0, "")
    assert (pod.root / "work/in/a.txt").read_bytes() == b"far away"
    # Its results go home as those of any other.
    (pod.root / "work/out/large").write_bytes(b"x" * 9_000_000)
    assert pod.step("out")[0] == 0
    assert get(pod, "out/large") == b"x" * 9_000_000


def test_an_order_of_an_older_server_does_not_say_whether_the_payload_holds_a_file(pod: Pod) -> None:
    pod.order(b'{"a": 1}')
    told = json.loads((pod.folder / "order/order").read_text())
    del told["inline"]
    (pod.folder / "order/order").write_text(json.dumps(told | {"later": "unknown"}))
    assert pod.step("in")[0] == 0
    assert [path.read_bytes() for path in (pod.root / "work/in").iterdir()] == [b'{"a": 1}']


def test_a_run_is_begun_by_one_pod_only(pod: Pod) -> None:
    pod.order(b"{}", marker=pod.markers(f"runs/{uuid.uuid4()}"))
    assert pod.step("in")[0] == 0
    # The same pod may stage in again: the kubelet has lost the first container's end.
    assert pod.step("in")[0] == 0
    code, report = pod.step("in", own="pod-2")
    assert (code, report.trouble) == (1, Trouble.LOST)
    assert "pod-1" in report.message


def test_after_the_script_has_started_nothing_is_staged_in(pod: Pod) -> None:
    pod.order(b"{}")
    pod.step("in")
    (pod.root / "state/started").touch()
    code, report = pod.step("in")
    assert (code, report.trouble) == (1, Trouble.LOST)


def test_without_a_script_staging_says_that_the_images_command_starts(pod: Pod) -> None:
    pod.order(b"{}", script=b"")
    assert pod.step("in")[0] == 0
    assert (pod.root / "state/started").exists()
    assert not (pod.root / "config/script.sh").exists()
    assert pod.step("in")[1].trouble is Trouble.LOST


def test_bodies_too_large_for_a_secret_are_fetched(pod: Pod) -> None:
    put(pod, "bodies/payload", b"{" + b" " * 2_000_000 + b"}")
    url = asyncio.run(pod.store.presign(BUCKET, "bodies/payload", method="GET", expires=60))
    pod.order(b"", urls={"payload": url})
    assert pod.step("in")[0] == 0
    assert (pod.root / "config/event").stat().st_size == 2_000_002


def test_a_report_is_never_longer_than_kubernetes_keeps() -> None:
    long = Report(trouble=Trouble.OUR, message="é" * 5000, lines=[("t", "x" * 200)] * 100)
    text = long.as_message()
    assert len(text) <= LONGEST_REPORT
    found = report_of(text)
    assert found is not None
    assert (found.trouble, found.lines) == (Trouble.OUR, None)
    assert report_of("Killed") is None
