"""The sidecar of a warm worker, as a program of its own beside a sandbox with the loop: what its caller can rely on."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from oscar.compute.kubernetes import worker_manifests
from oscar.compute.kubernetes.sidecar import Heard, Line, NotTaken
from oscar.compute.local.engine import Mount, Sandbox
from oscar.compute.local.processes import Processes
from oscar.errors import BadRequest, EngineError, InvocationTimeout, StorageError, Unauthorized
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.objects.s3 import S3Store
from oscar.supervisor import wire
from tests import s3_server
from tests.invoking import alive, as_json, encoded, lasting, until

KEY = bytes(range(32))


@dataclass(slots=True)
class Pod:
    """What a pod holds: the sidecar, and the loop in a sandbox of its own."""

    folder: Path
    engine: Processes
    service: Service
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    name: str = "w-user"
    lines: list[Line] = field(default_factory=list)
    hosts: tuple[str, ...] = ()

    async def start(self) -> None:
        kit = worker_manifests.kit_of(self.service, "here", worker_manifests.Sidecar("none"))
        for name, content in worker_manifests.files(kit, KEY).items():
            (self.folder / "files" / name).write_bytes(content)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process = await asyncio.to_thread(
            subprocess.Popen,
            [
                sys.executable,
                "-m",
                "oscar.supervisor",
                "serve",
                f"--folder={self.folder / 'work'}",
                f"--config={self.folder / 'files'}",
                f"--port={self.port}",
                "--log-limit=1000000",
                *(f"--private-host={host}" for host in self.hosts),
            ],
        )
        await self.start_user()
        await self.ready()

    async def start_user(self) -> None:
        shared, config = worker_manifests.SHARED, worker_manifests.CONFIG
        await self.engine.start(
            Sandbox(
                name=self.name,
                image="none",
                argv=("/bin/sh", f"{config}/worker.sh", shared, config),
                env={},
                mounts=(
                    Mount(self.folder / "work", shared),
                    Mount(self.folder / "files", config, read_only=True),
                ),
                workdir="/tmp",
                log=self.folder / "user.log",
            )
        )

    async def ready(self) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    heard = await self.line().look("/ready?wait")
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                if heard.status == 200:
                    return
                await asyncio.sleep(0.05)

    def line(self) -> Line:
        line = Line("127.0.0.1", self.port)
        self.lines.append(line)
        return line

    async def call(
        self, payload: bytes = b"{}", *, line: Line | None = None, key: bytes = KEY, **order: Any
    ) -> Heard:
        sealed = wire.seal(wire.Order("job-1", **order), key)
        headers = {"Authorization": f"Bearer {wire.token(key)}", wire.ORDER_LENGTH: str(len(sealed))}
        return await (line or self.line()).call(headers, (sealed, payload))

    async def text(self, payload: bytes = b"{}", **how: Any) -> str:
        heard = await self.call(payload, **how)
        assert (heard.status, heard.headers[wire.EXIT]) == (200, "0"), heard
        return heard.body.decode()

    async def stop(self) -> None:
        for line in self.lines:
            line.close()
        await self.engine.remove(self.name)
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def live(
    tmp_path: Path, script: str, scenario: Callable[[Pod], Awaitable[None]], *hosts: str, **fields: Any
) -> None:
    async def run() -> None:
        engine = Processes(tmp_path / "engine", installation=f"test-{os.getpid()}")
        await engine.probe()
        for name in ("work", "files"):
            (tmp_path / name).mkdir()
        (tmp_path / "work").chmod(0o777)
        service = Service(
            **{"name": "hello", "owner": "somebody", "image": "none", "script": script, **fields}
        )
        pod = Pod(tmp_path, engine, service, hosts=hosts)
        try:
            await pod.start()
            await scenario(pod)
        finally:
            await pod.stop()
            await engine.close()

    asyncio.run(run())


def test_calls_over_one_connection(tmp_path: Path) -> None:
    async def scenario(pod: Pod) -> None:
        line = pod.line()
        for number in range(20):
            body = as_json({"number": number})
            assert await pod.text(body, line=line, environment={"WHO": f"it's {number}\n"}) == (
                f"it's {number}\n|two  spaces|{body.decode()}"
            )

    script = 'printf "%s|%s|" "$WHO" "$ODD"; cat "$INPUT_FILE_PATH"'
    live(tmp_path, script, scenario, environment={"secrets": {"ODD": "two  spaces"}})


def test_files_come_back_beside_the_log(tmp_path: Path) -> None:
    async def scenario(pod: Pod) -> None:
        heard = await pod.call(encoded(b"a\0b" * 100_000))
        length = int(heard.headers[wire.LOG_LENGTH])
        assert heard.body[:length] == b"said\n"
        assert base64.b64decode(heard.body[length:]) == b"a\0b" * 100_000
        heard = await pod.call(as_json("x"), environment={"FAIL": "7"})
        assert (heard.headers[wire.EXIT], heard.body) == ("7", b"said\n")

    script = 'echo said; [ "$FAIL" ] && exit $FAIL; cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/f"'
    live(tmp_path, script, scenario)


def test_one_request_at_a_time_and_the_refused_one_did_not_begin(tmp_path: Path) -> None:
    async def scenario(pod: Pod) -> None:
        word = lasting()
        first = asyncio.create_task(pod.call(environment={"WORD": word}))
        await until(lambda: alive(word))
        heard = await pod.call()
        assert heard.headers[wire.REFUSED] == "busy"
        first.cancel()
        await asyncio.wait({first})

    live(tmp_path, 'sleep "$WORD"', scenario)


def test_a_caller_who_goes_leaves_a_spent_worker(tmp_path: Path) -> None:
    async def scenario(pod: Pod) -> None:
        word = lasting()
        first = asyncio.create_task(pod.call(environment={"WORD": word}))
        await until(lambda: alive(word))
        assert (await pod.line().look("/alive")).status == 200
        first.cancel()
        await asyncio.wait({first})
        async with asyncio.timeout(30):
            while (await pod.line().look("/alive")).status == 200:  # noqa: ASYNC110 - a program of its own
                await asyncio.sleep(0.05)
        assert (await pod.line().look("/ready")).status == 503
        assert (await pod.call()).headers[wire.REFUSED] == "spent"
        # The kubelet restarts the user's container then, and the worker is as new.
        await pod.engine.remove(pod.name)
        assert not alive(word)
        await pod.start_user()
        await pod.ready()
        assert await pod.text(environment={"WORD": "0"}) == ""

    live(tmp_path, 'sleep "$WORD"', scenario)


def test_timeout_and_left_over_processes_spend_the_worker(tmp_path: Path) -> None:
    async def scenario(pod: Pod) -> None:
        heard = await pod.call(environment={"LEAVE": lasting()})
        assert (heard.status, heard.headers[wire.SPENT]) == (200, "1")
        await pod.engine.remove(pod.name)
        await pod.start_user()
        await pod.ready()
        late = await pod.call(environment={"WORD": lasting()}, timeout=0.5)
        assert late.headers[wire.SPENT] == "1"
        assert isinstance(wire.to_error(late.body), InvocationTimeout)

    live(tmp_path, '[ "$LEAVE" ] && { sleep "$LEAVE" & exit 0; }; sleep "$WORD"', scenario)


def test_a_dying_container_is_told_from_a_failing_script(tmp_path: Path) -> None:
    async def scenario(pod: Pod) -> None:
        word = lasting()
        call = asyncio.create_task(pod.call(environment={"WORD": word}))
        await until(lambda: alive(word))
        await pod.engine.kill(pod.name)
        heard = await call
        assert wire.LOST in heard.headers
        error = wire.to_error(heard.body)
        assert isinstance(error, EngineError)
        assert "died while the script ran" in error.message
        await pod.engine.remove(pod.name)
        await pod.start_user()
        await pod.ready()
        assert await pod.text(environment={"WORD": "0"}) == ""

    live(tmp_path, 'sleep "$WORD"', scenario)


def test_a_bad_body_costs_nothing(tmp_path: Path) -> None:
    async def scenario(pod: Pod) -> None:
        heard = await pod.call(b"not base64!")
        assert (heard.status, wire.SPENT in heard.headers) == (400, False)
        assert isinstance(wire.to_error(heard.body), BadRequest)
        assert await pod.text() == "fine\n"

    live(tmp_path, "echo fine", scenario)


def test_only_who_has_the_key_is_heard(tmp_path: Path) -> None:
    async def scenario(pod: Pod) -> None:
        heard = await pod.call(key=bytes(32))
        assert heard.status == 401
        sealed = wire.seal(wire.Order("job"), bytes(32))
        headers = {"Authorization": f"Bearer {wire.token(KEY)}", wire.ORDER_LENGTH: str(len(sealed))}
        forged = await pod.line().call(headers, (sealed, b"{}"))
        assert isinstance(wire.to_error(forged.body), Unauthorized)
        assert await pod.text() == "fine\n"

    live(tmp_path, "echo fine", scenario)


def test_draining_ends_what_is_under_way_and_takes_nothing_more(tmp_path: Path) -> None:
    async def scenario(pod: Pod) -> None:
        assert pod.process is not None
        go = tmp_path / "work" / "go"
        kept = pod.line()
        assert await pod.text(line=kept, environment={"UNTIL": "."}) == "done\n"
        call = asyncio.create_task(pod.text(environment={"UNTIL": f"{worker_manifests.SHARED}/go"}))
        await until((tmp_path / "work" / "begun").exists)
        pod.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            while (await pod.line().look("/ready")).status == 200:  # noqa: ASYNC110 - a program of its own
                await asyncio.sleep(0.05)
        heard = await pod.call(line=kept)
        assert heard.headers[wire.REFUSED] == "draining"
        go.touch()
        assert await call == "done\n"
        assert await asyncio.to_thread(pod.process.wait, 30) == 0
        assert (await pod.engine.exit(pod.name)) is not None, "the loop ends with us"
        with pytest.raises(NotTaken):
            await pod.call()

    script = (
        '[ "$UNTIL" = . ] || : > /oscar/work/begun; until [ -e "$UNTIL" ]; do sleep 0.05; done; echo done'
    )
    live(tmp_path, script, scenario)


def test_inputs_and_outputs_by_the_keys_of_the_call(tmp_path: Path) -> None:
    with s3_server.running(tmp_path) as server:
        keys = s3_server.ALICE
        store = S3Store(server.endpoint, keys.access_key, keys.secret_key)

        async def scenario(pod: Pod) -> None:
            source = tmp_path / "source"
            source.write_text("content")
            await store.upload("private", "in/a.txt", source)
            own = {"endpoint": server.endpoint, "access_key": keys.access_key, "secret_key": keys.secret_key}
            stores = wire.Stores(MinIOProvider.model_validate(own), pod.service.storage_providers)
            event = {
                "Records": [
                    {
                        "eventSource": "minio:s3",
                        "s3": {"bucket": {"name": "private"}, "object": {"key": "in/a.txt"}},
                    }
                ]
            }
            assert await pod.text(as_json(event), stores=stores) == "in/a.txt\n"
            await store.download("private", "out/loud.txt", tmp_path / "loud")
            assert (tmp_path / "loud").read_text() == "CONTENT"
            # Neither key lies in what the user's container sees.
            seen = b"".join(path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file())
            seen += b"".join(path.read_bytes() for path in (tmp_path / "files").iterdir())
            assert keys.secret_key.encode() not in seen

        place = {"storage_provider": "minio.default"}
        live(
            tmp_path,
            'echo "$STORAGE_OBJECT_KEY"; tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/loud.txt"',
            scenario,
            input=[{**place, "path": "private/in"}],
            output=[{**place, "path": "private/out"}],
        )


@pytest.mark.parametrize("hosts", [(), ("127.0.0.1",)], ids=["private", "allowed"])
def test_stores_of_users_are_reached_where_the_sidecar_was_told(
    tmp_path: Path, hosts: tuple[str, ...]
) -> None:
    with s3_server.running(tmp_path) as server:
        keys = s3_server.ALICE
        far = {"endpoint": server.endpoint, "access_key": keys.access_key, "secret_key": keys.secret_key}

        async def scenario(pod: Pod) -> None:
            stores = wire.Stores(MinIOProvider.model_validate(far), pod.service.storage_providers)
            heard = await pod.call(stores=stores)
            if hosts:
                assert (heard.status, heard.headers[wire.EXIT]) == (200, "0")
                store = S3Store(server.endpoint, keys.access_key, keys.secret_key)
                await store.download("private", "out/x", tmp_path / "x")
                await store.close()
            else:
                error = wire.to_error(heard.body)
                assert isinstance(error, StorageError)
                assert "the host 127.0.0.1 has a private address" in error.message

        live(
            tmp_path,
            'echo y > "$TMP_OUTPUT_DIR/x"',
            scenario,
            *hosts,
            storage_providers={"minio": {"far": far}},
            output=[{"storage_provider": "minio.far", "path": "private/out"}],
        )
