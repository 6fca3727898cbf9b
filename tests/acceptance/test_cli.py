"""The program `oscar` as a process against the real server, as its user works."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.server import Server

UPPER = """#!/bin/sh\r
tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/$(basename "$INPUT_FILE_PATH")"\r
echo done\r
"""
"""With the line ends of Windows, which `oscar apply` must mend."""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Shell:
    """Somebody at a prompt: a home of his own, on the machine of the server."""

    home: Path
    environment: dict[str, str]

    def oscar(self, *words: str, stdin: bytes = b"") -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "oscar", *words],
            check=False,
            input=stdin,
            capture_output=True,
            cwd=self.home,
            env=self.environment,
            timeout=90,
        )
        return Done(done.returncode, done.stdout, done.stderr.decode())

    def ok(self, *words: str, stdin: bytes = b"") -> Done:
        done = self.oscar(*words, stdin=stdin)
        assert done.code == 0, f"{words}: {done.code}\n{done.text}\n{done.err}"
        return done

    def apply(self, name: str, script: str, **fields: Any) -> str:
        """Create a service from an FDL file of a folder of its own."""
        folder = self.home / name
        folder.mkdir(exist_ok=True)
        (folder / "run.sh").write_bytes(script.encode())
        service = {"name": name, "image": "busybox", "script": "run.sh", **fields}
        file = folder / f"{name}.yaml"
        file.write_text(json.dumps({"functions": {"oscar": [{"any-cluster": service}]}}))
        return self.ok("apply", str(file)).text


@pytest.fixture
def shell(server: Server, tmp_path: Path) -> Shell:
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("OSCAR_", "MINIO_"))
    }
    environment |= {"HOME": str(home), "OSCAR_DATA": str(server.data)}
    return Shell(home, environment)


def places(name: str) -> dict[str, Any]:
    return {
        "input": [{"storage_provider": "minio", "path": f"{name}/in"}],
        "output": [{"storage_provider": "minio", "path": f"{name}/out"}],
    }


def test_from_file_to_result(shell: Shell) -> None:
    said = shell.apply("cli-upper", UPPER, **places("cli-upper"))
    assert said.startswith("cli-upper created on local")
    (shell.home / "a b.txt").write_text("some text\n")
    shell.ok("put", "a b.txt", "cli-upper/in")  # a folder, because the service listens there
    log = shell.ok("logs", "-f", "cli-upper")
    assert "done" in log.text.splitlines()
    assert "SOME" not in log.text
    assert "cli-upper/out" not in shell.ok("ls", "cli-upper").text
    [stored] = shell.ok("ls", "cli-upper/out", "--json").json
    assert (stored["key"], stored["size_bytes"]) == ("out/a b.txt", 10)
    shell.ok("get", "cli-upper/out/a b.txt", "result.txt")
    assert (shell.home / "result.txt").read_text() == "SOME TEXT\n"
    assert shell.ok("get", "cli-upper/out/a b.txt", "-").out == b"SOME TEXT\n"
    assert shell.apply("cli-upper", UPPER, memory="64Mi", **places("cli-upper")).startswith(
        "cli-upper updated"
    )
    assert shell.ok("service", "get", "cli-upper", "--json").json["memory"] == "64Mi"
    assert "name: cli-upper" in shell.ok("service", "get", "cli-upper").text
    assert "cli-upper" in shell.ok("service", "list").text
    shell.ok("delete", str(shell.home / "cli-upper" / "cli-upper.yaml"))
    assert shell.oscar("service", "get", "cli-upper").code == 3
    # What the bucket holds outlives the service.
    assert shell.ok("get", "cli-upper/out/a b.txt", "-").out == b"SOME TEXT\n"


def test_calls(shell: Shell) -> None:
    shell.apply("cli-call", UPPER)
    assert shell.ok("run", "cli-call", "-i", "hello").out == b"HELLO"
    assert shell.ok("run", "cli-call", "-f", "-", stdin=b"a\x00\xffz").out == b"A\x00\xffZ"
    (shell.home / "in.bin").write_bytes(bytes(range(256)) * 1000)
    shell.ok("service", "run", "cli-call", "-f", "in.bin", "-o", "out.bin")
    assert (shell.home / "out.bin").read_bytes() == (bytes(range(256)) * 1000).upper()
    # Base64 of these bytes is the JSON `true`.
    assert shell.ok("run", "cli-call", "-f", "-", stdin=b"\xb6\xbb\x9e").out == b"\xb6\xbb\x9e"
    assert shell.ok("run", "cli-call", "--raw", "-i", '{"a": 1}').out == b'{"A": 1}'
    token = shell.ok("service", "get", "cli-call", "--json").json["token"]
    endpoint = json.loads((Path(shell.environment["OSCAR_DATA"]) / "client.json").read_text())["endpoint"]
    assert shell.ok("run", "cli-call", "-e", endpoint, "-t", token, "-i", "x").out == b"X"
    assert shell.oscar("run", "cli-call", "-e", endpoint, "-t", "0" * 64, "-i", "x").code == 3


def test_results_of_calls(shell: Shell) -> None:
    shell.apply(
        "cli-files", "echo 1 > $TMP_OUTPUT_DIR/a; mkdir $TMP_OUTPUT_DIR/d; echo 2 > $TMP_OUTPUT_DIR/d/b"
    )
    archive = zipfile.ZipFile(BytesIO(shell.ok("run", "cli-files", "-i", "x").out))
    assert {name: archive.read(name) for name in archive.namelist()} == {"a": b"1\n", "d/b": b"2\n"}
    shell.apply("cli-log", "echo done")
    assert shell.ok("run", "cli-log", "-i", "x").out == b"done\n"
    shell.apply("cli-fail", "echo no luck; exit 7")
    failed = shell.oscar("run", "cli-fail", "-i", "x")
    assert failed.code == 1
    assert failed.out == b""
    assert "no luck" in failed.err
    assert "exit code 7" in failed.err
    assert shell.oscar("run", "cli-fail", "-i", "x", "--json").json["exit_code"] == 7


def test_jobs(shell: Shell) -> None:
    shell.apply("cli-job", 'grep -q bad "$INPUT_FILE_PATH" && exit 3\necho fine')
    good = shell.ok("job", "submit", "cli-job", "-i", "good", "--wait", "--json").json
    assert (good["status"], good["exit_code"]) == ("Succeeded", 0)
    bad = shell.oscar("job", "submit", "cli-job", "-i", "bad", "--wait")
    assert bad.code == 1
    assert re.search(r"exit code: *3", bad.text)
    listed = shell.ok("job", "list", "cli-job", "--json").json
    assert [job["status"] for job in listed] == ["Failed", "Succeeded"]
    [failed] = shell.ok("service", "logs", "list", "cli-job", "-s", "Failed", "--json").json
    assert shell.oscar("job", "wait", "cli-job", failed["name"]).code == 1
    again = shell.oscar("job", "rerun", "cli-job", failed["name"], "--wait", "--json")
    assert again.code == 1
    assert again.json["job_id"] != failed["name"]
    assert again.json["exit_code"] == 3
    assert shell.oscar("logs", "-f", "cli-job", failed["name"]).code == 1
    first = shell.ok("service", "job", "cli-job", "-i", "x", "--json").json["job_id"]
    assert shell.ok("job", "wait", "cli-job", first, "--json").json["status"] == "Succeeded"
    assert shell.ok("service", "logs", "get", "cli-job", first).text == "fine\n"
    stamped = shell.ok("logs", "-t", "cli-job", first, "--json").json["lines"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\S+Z fine", stamped[-1])
    shell.ok("job", "remove", "cli-job", first)
    assert shell.oscar("job", "status", "cli-job", first).code == 3
    shell.ok("service", "logs", "remove", "cli-job", "--succeeded")
    assert {job["status"] for job in shell.ok("job", "list", "cli-job", "--json").json} == {"Failed"}
    shell.ok("job", "remove", "cli-job", "--all")
    assert shell.ok("job", "list", "cli-job", "--json").json == []


def test_repeated_keys_are_one_job(shell: Shell) -> None:
    shell.apply("cli-key", "echo once")
    words = ("job", "submit", "cli-key", "-i", "x", "--idempotency-key", "order-1")
    assert shell.ok(*words).text == shell.ok(*words).text
    assert len(shell.ok("job", "list", "cli-key", "--json").json) == 1


def test_cancel(shell: Shell) -> None:
    shell.apply("cli-long", "echo started; sleep 600")
    job = shell.ok("job", "submit", "cli-long", "-i", "x").text.strip()
    gave_up = shell.oscar("job", "wait", "cli-long", job, "--timeout", "0.2")
    assert gave_up.code == 1
    assert "has not ended" in gave_up.err
    shell.ok("job", "cancel", "cli-long", job)
    ended = shell.oscar("job", "wait", "cli-long", job, "--json")
    assert ended.code == 1
    assert (ended.json["status"], ended.json["state"]) == ("Failed", "cancelled")
    assert shell.oscar("job", "cancel", "cli-long", job).code == 3


def test_lines_arrive_while_the_job_runs(shell: Shell) -> None:
    shell.apply("cli-live", "i=0; while [ $i -lt 3 ]; do echo line $i; i=$((i+1)); done; sleep 600")
    job = shell.ok("job", "submit", "cli-live", "-i", "x").text.strip()
    follower = subprocess.Popen(
        [sys.executable, "-m", "oscar", "logs", "-f", "cli-live", job],
        stdout=subprocess.PIPE,
        env=shell.environment,
    )
    assert follower.stdout is not None
    seen = []
    for raw in follower.stdout:
        seen.append(raw.decode().strip())
        if seen[-1] == "line 2":
            break
    assert [line for line in seen if line.startswith("line ")] == ["line 0", "line 1", "line 2"]
    shell.ok("job", "cancel", "cli-live", job)
    follower.communicate(timeout=60)
    assert follower.returncode == 1


def test_folders(shell: Shell) -> None:
    shell.ok("bucket", "create", "cli-folders")
    names = ["plain", "a b+c", "ünï/cödé", "deep/er/file", "x#y%z", "50%25", "q?a=b&c", "star*[1]"]
    for name in names:
        file = shell.home / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    big = os.urandom(1024 * 1024) * 20
    (shell.home / "tree" / "big").write_bytes(big)
    (shell.home / "tree" / "empty").touch()
    put = shell.ok("put", "-r", "tree", "cli-folders/copy/", "--json").json
    assert len(put) == len(names) + 2
    listed = [entry["key"] for entry in shell.ok("ls", "-r", "cli-folders", "--json").json]
    assert sorted(listed) == sorted(f"copy/tree/{name}" for name in [*names, "big", "empty"])
    shell.ok("get", "-r", "cli-folders/copy/tree", "back")
    for name in names:
        assert (shell.home / "back" / name).read_text() == name
    assert (shell.home / "back" / "big").read_bytes() == big
    assert (shell.home / "back" / "empty").read_bytes() == b""
    top = [entry["key"] for entry in shell.ok("ls", "cli-folders", "--json").json]
    assert top == ["copy/"]
    shell.ok("rm", "cli-folders/copy/tree/plain")
    assert shell.oscar("get", "cli-folders/copy/tree/plain").code == 3
    assert not (shell.home / "plain").exists()
    shell.ok("rm", "-r", "cli-folders/copy")
    assert shell.ok("ls", "-r", "cli-folders", "--json").json == []
    assert shell.oscar("put", "tree/plain", "no-such-bucket-here/x").code == 3


def test_buckets(shell: Shell) -> None:
    shell.ok("bucket", "create", "cli-bucket", "--visibility", "restricted", "-u", "ann", "-u", "bob")
    found = shell.ok("bucket", "get", "cli-bucket", "--json").json
    assert (found["visibility"], sorted(found["allowed_users"])) == ("restricted", ["ann", "bob"])
    shell.ok("bucket", "update", "cli-bucket", "-v", "public")
    assert shell.ok("bucket", "get", "cli-bucket", "--json").json["visibility"] == "public"
    assert "cli-bucket" in shell.ok("bucket", "list").text
    assert "cli-bucket" in [bucket["bucket_name"] for bucket in shell.ok("ls", "--json").json]
    assert shell.oscar("bucket", "create", "cli-bucket").code == 3
    assert shell.oscar("bucket", "create", "Not_A_Bucket").code == 3
    up = shell.ok("bucket", "presign", "cli-bucket/f.txt", "--upload", "--expires", "5m", "--json").json
    assert (
        httpx2.request(up["method"], up["url"], content=b"signed", headers=up["headers"]).status_code == 200
    )
    down = shell.ok("bucket", "presign", "cli-bucket/f.txt").text.strip()
    assert httpx2.get(down).content == b"signed"
    content = shell.ok("bucket", "get", "cli-bucket", "--json").json["objects"]
    assert [(entry["object_name"], entry["size_bytes"]) for entry in content] == [("f.txt", 6)]
    refused = shell.oscar("bucket", "delete", "cli-bucket")
    assert refused.code == 3
    assert "hold" in refused.err
    shell.ok("bucket", "delete", "cli-bucket", "--force")
    assert shell.oscar("bucket", "get", "cli-bucket").code == 3


def test_files_of_a_service(shell: Shell) -> None:
    shell.apply("cli-sfiles", UPPER, **places("cli-sfiles"))
    (shell.home / "x.txt").write_text("x")
    shell.ok("service", "put-file", "cli-sfiles", "x.txt")
    shell.ok("service", "put-file", "cli-sfiles", "minio.default", "x.txt", "cli-sfiles/in/y.txt")
    jobs = shell.ok("job", "list", "cli-sfiles", "--json").json
    assert len(jobs) == 2
    for job in jobs:
        shell.ok("job", "wait", "cli-sfiles", job["name"])
    listed = shell.ok(
        "service", "list-files", "cli-sfiles", "minio.default", "cli-sfiles/out/", "--json"
    ).json
    assert [entry["key"] for entry in listed] == ["out/x.txt", "out/y.txt"]
    assert shell.ok("service", "list-files", "cli-sfiles", "--json").json == listed
    shell.ok("service", "get-file", "cli-sfiles", "minio.default", "cli-sfiles/out/y.txt", "got.txt")
    assert (shell.home / "got.txt").read_text() == "X"
    refused = shell.oscar("service", "put-file", "cli-sfiles", "webdav.x", "x.txt", "a/b")
    assert refused.code == 3


def config(shell: Shell, server: Server, *names: str) -> Path:
    for name in names:
        shell.ok(
            "cluster",
            "add",
            name,
            server.endpoint,
            server.user,
            "--password-stdin",
            stdin=server.password.encode(),
        )
    return shell.home / ".oscar-cli" / "config.yaml"


def test_clusters(shell: Shell, server: Server) -> None:
    file = config(shell, server, "here", "there")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry["id"] for entry in shell.ok("cluster", "list", "--json").json] == ["here", "there"]
    assert shell.ok("cluster", "default").text == "here\n"
    assert "version" in shell.ok("cluster", "info", "--json").json
    assert isinstance(shell.ok("cluster", "status", "-c", "there", "--json").json, dict)
    shell.ok("cluster", "add", "wrong", server.endpoint, server.user, "not the password")
    refused = shell.oscar("service", "list", "-c", "wrong", "--json")
    assert refused.code == 3
    assert json.loads(refused.err)["code"] == "unauthorized"
    shell.ok("cluster", "add", "gone", "http://127.0.0.1:1", "user", "password")
    assert shell.oscar("service", "list", "-c", "gone").code == 4


def test_stores_of_other_clusters_are_filled_in(shell: Shell, server: Server) -> None:
    """`minio.<cluster>` in an FDL file means that cluster's own store; only the CLI knows where it is."""
    config(shell, server, "here", "there")
    shell.ok("bucket", "create", "cli-other")
    (shell.home / "run.sh").write_text(UPPER)
    file = shell.home / "two.yaml"
    file.write_text(
        "functions:\n  oscar:\n  - here:\n      name: cli-two\n      image: busybox\n      script: run.sh\n"
        "      input:\n      - path: cli-two/in\n      output:\n"
        "      - storage_provider: minio.there\n        path: cli-other/out\n"
    )
    shell.ok("apply", str(file))
    (shell.home / "z.txt").write_text("z")
    shell.ok("put", "z.txt", "cli-two/in/z.txt")
    shell.ok("logs", "-f", "cli-two")
    assert shell.ok("get", "cli-other/out/z.txt", "-").out == b"Z"
    shown = shell.ok("service", "get", "cli-two", "--json").json["storage_providers"]["minio"]["there"]
    assert (shown["access_key"], shown["secret_key"]) == ("", "")
    unknown = shell.home / "unknown.yaml"
    unknown.write_text(file.read_text().replace("- here:", "- elsewhere:"))
    refused = shell.oscar("apply", str(unknown))
    assert refused.code == 2
    assert '"elsewhere" is not known' in refused.err
    assert "cli-two updated on there" in shell.ok("apply", str(unknown), "-c", "there").text


def test_refusals_and_warnings(shell: Shell) -> None:
    shell.apply("cli-warn", "echo", annotations={"a": "b"})
    file = shell.home / "odd.yaml"
    file.write_text("name: cli-odd\nimage: busybox\nscript: '#!/bin/sh'\ncolour: red\n")
    done = shell.ok("apply", str(file))
    assert "warning:" in done.err
    assert "colour" in done.err
    missing = shell.oscar("job", "list", "no-such-service", "--json")
    assert missing.code == 3
    assert json.loads(missing.err)["code"] == "service_not_found"
    assert shell.oscar("logs", "cli-odd").code == 2
    assert shell.oscar("delete", "no-such-service").code == 3


def on_terminal(shell: Shell, *words: str) -> tuple[int, str]:
    """Run a command whose outputs are a terminal; its exit code and what the terminal got."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [sys.executable, "-m", "oscar", *words],
            stdout=theirs,
            stderr=theirs,
            cwd=shell.home,
            env=shell.environment | {"TERM": "xterm", "COLUMNS": "120"},
        )
        os.close(theirs)
        seen = b""
        # Reading a terminal that nobody holds any more is an error on Linux.
        with contextlib.suppress(OSError):
            while piece := screen.read(65536):
                seen += piece
    return process.wait(60), seen.decode()


def test_terminals_get_bars_and_tables(shell: Shell) -> None:
    shell.ok("bucket", "create", "cli-terminal")
    (shell.home / "some-file").write_bytes(b"x" * 1024 * 1024)
    code, seen = on_terminal(shell, "put", "some-file", "cli-terminal")
    assert code == 0
    assert "some-file" in seen
    assert "1.0/1.0 MiB" in seen
    code, seen = on_terminal(shell, "put", "--no-progress", "some-file", "cli-terminal")
    assert code == 0
    assert "1.0/1.0 MiB" not in seen
    code, seen = on_terminal(shell, "bucket", "list")
    assert code == 0
    assert re.search(r"\x1b\[1m *BUCKET", seen)
    assert "some-file" in shell.ok("put", "some-file", "cli-terminal").err


def test_interrupted(shell: Shell) -> None:
    shell.apply("cli-interrupt", "echo started; sleep 600")
    job = shell.ok("job", "submit", "cli-interrupt", "-i", "x").text.strip()
    follower = subprocess.Popen(
        # As from a terminal, also where these tests were started with SIGINT ignored.
        ["env", "--default-signal=INT", sys.executable, "-m", "oscar", "logs", "-f", "cli-interrupt", job],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=shell.environment,
    )
    assert follower.stdout is not None
    assert any(line == b"started\n" for line in follower.stdout)
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert b"Traceback" not in err
    shell.ok("job", "cancel", "cli-interrupt", job)


def test_readers_that_have_enough(shell: Shell) -> None:
    shell.apply("cli-pipe", "i=0; while [ $i -lt 20000 ]; do echo a line of some length $i; i=$((i+1)); done")
    job = shell.ok("job", "submit", "cli-pipe", "-i", "x", "--wait", "--json").json["job_id"]
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "oscar", "logs", "cli-pipe", job],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=shell.environment,
    )
    os.close(writer)
    assert os.read(reader, 10)
    os.close(reader)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_completion(shell: Shell, server: Server) -> None:
    config(shell, server, "here")
    asked = {
        "_OSCAR_COMPLETE": "complete_bash",
        "COMP_WORDS": "oscar service list --cluster ",
        "COMP_CWORD": "4",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from oscar.cli import main; main()"],
        check=True,
        capture_output=True,
        text=True,
        env=shell.environment | asked,
    )
    assert done.stdout.split() == ["here", "local"]


def test_doctor(shell: Shell) -> None:
    assert shell.ok("doctor", "--json").json
    # Without programs on the path there is no engine, which is soon found out.
    alone = Shell(shell.home, shell.environment | {"PATH": "/nonexistent"})
    done = alone.oscar("doctor")
    assert done.code == 1
    assert "MISSING  engine: " in done.text


def test_python_client(server: Server, tmp_path: Path) -> None:
    """`oscar.client` in a program, as docs/client.md shows it."""
    import asyncio

    from oscar.client import Client, Job
    from oscar.errors import AlreadyExists, InvalidField, JobNotFound, ServiceNotFound
    from oscar.model.service import Service

    async def work() -> None:
        async with Client(server.endpoint, user=server.user, password=server.password) as client:
            assert await client.health()
            service = Service(
                name="py-client",
                image="busybox",
                script=UPPER,
                **places("py-client"),
            )
            assert (await client.apply(service)).created
            assert not (await client.apply(service)).created
            with pytest.raises(AlreadyExists):
                await client.create(service)
            with pytest.raises(InvalidField) as refused:
                await client.create({"name": "py-bad", "image": "busybox", "memory": "abc"})
            assert refused.value.field == "memory"
            assert refused.value.fix
            found = await client.service("py-client")
            assert len(found.token) == 64
            assert "py-client" in [one.name for one in await client.services()]
            assert (await client.run("py-client", b"abc")).body == b"ABC"
            async with Client(server.endpoint, token=found.token) as caller:
                assert (await caller.run("py-client", b"abc")).body == b"ABC"
            storage = await client.storage()
            sizes: list[int] = []
            file = tmp_path / "f"
            file.write_bytes(b"x" * (20 * 1024 * 1024))
            await storage.put(file, "py-client", "elsewhere/f", progress=sizes.append)
            assert sum(sizes) == 20 * 1024 * 1024
            assert len(sizes) > 1
            await storage.put_bytes(b"hello", "py-client", "in/h.txt")
            [job] = [job async for job in client.jobs("py-client")]
            items = [item async for item in client.follow("py-client", job.name)]
            assert isinstance(items[-1], Job)
            assert items[-1].succeeded
            assert "done" in items
            assert await storage.get_bytes("py-client", "out/h.txt") == b"HELLO"
            many = [await client.submit("py-client", str(index).encode()) for index in range(5)]
            ended = await asyncio.gather(*(client.wait("py-client", one.job_id) for one in many))
            assert [job.status for job in ended] == ["Succeeded"] * 5
            with pytest.raises(JobNotFound):
                await client.job("py-client", "no-such-job")
            await client.delete("py-client", data=True)
            with pytest.raises(ServiceNotFound):
                await client.service("py-client")
            assert "py-client" not in [bucket.bucket_name for bucket in await client.buckets()]

    asyncio.run(work())
