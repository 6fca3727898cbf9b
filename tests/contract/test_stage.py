"""Staging with a real store: inputs arrive whole, results leave, and scripts can't smuggle out the server's files."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from oscar.errors import (
    BucketNotFound,
    Forbidden,
    InvalidField,
    ObjectNotFound,
    OscarError,
    StorageError,
    Unsupported,
)
from oscar.model.event import minio_event
from oscar.model.object import Credential, Object
from oscar.model.producer import Producer
from oscar.model.service import Service, parse_service
from oscar.objects.base import ObjectStore
from oscar.objects.embedded.blobs import Blobs
from oscar.objects.embedded.store import EmbeddedStore
from oscar.objects.s3 import S3Store
from oscar.supervisor import results
from oscar.supervisor.plan import Mode, Plan, plan
from oscar.supervisor.providers import Providers
from oscar.supervisor.stage import Stored, stage_in, stage_out
from tests import real_minio, s3_server

ALICE = s3_server.ALICE
OpenStore = Callable[[Credential], ObjectStore]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.Server]:
    with s3_server.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    folder = tmp_path_factory.mktemp("embedded")
    rows, index = s3_server.open_index(f"sqlite:///{folder}/oscar.db")
    asyncio.run(s3_server.populate(index))
    blobs = Blobs(folder / "blobs")
    yield EmbeddedStore(index, blobs, endpoint="http://127.0.0.1:1", region="us-east-1")
    blobs.close()
    rows.close()


def service(**fields: Any) -> Service:
    places = {"input": [{"path": "private/in"}], "output": [{"path": "private/out"}]}
    return parse_service({"name": "svc", "image": "i", "script": "s", **places, **fields})


@dataclass(slots=True)
class Bench:
    """A work folder, a service of Alice's, and the log of what was said."""

    open: OpenStore
    folder: Path
    service: Service
    log: list[str] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def out(self) -> Path:
        return self.work / "out"

    def plan(self, payload: Any = None, mode: Mode = Mode.JOB, **fields: Any) -> Plan:
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.service = service(**fields)
        return plan(self.service, raw, job_id="svc-1", mode=mode)

    @asynccontextmanager
    async def store(self, user: Credential = ALICE) -> AsyncIterator[ObjectStore]:
        store = self.open(user)
        yield store
        if isinstance(store, S3Store):
            await store.close()

    def stage_in(self, made: Plan, user: Credential = ALICE) -> None:
        async def act() -> None:
            async with self.store(user) as own:
                providers = Providers(self.service, own)
                await stage_in(made.moves, self.work, providers, self.log.append)
                await providers.close()

        asyncio.run(act())

    def stage_out(self, made: Plan | None = None, producer: Producer | None = None) -> list[Stored]:
        async def act() -> list[Stored]:
            async with self.store() as own:
                providers = Providers(self.service, own)
                stored = await stage_out(planned.moves, self.work, providers, self.log.append, producer)
                await providers.close()
                return stored

        planned = made or self.plan({})
        return asyncio.run(act())

    def put(self, key: str, content: bytes, bucket: str = "private") -> None:
        async def act() -> None:
            async with self.store() as store:
                await store.upload(bucket, key, source)

        source = self.folder / "source"
        source.write_bytes(content)
        asyncio.run(act())

    def content(self, key: str, bucket: str = "private") -> bytes:
        async def act() -> None:
            async with self.store() as store:
                await store.download(bucket, key, copy)

        copy = self.folder / uuid.uuid4().hex
        asyncio.run(act())
        return copy.read_bytes()

    def files(self) -> dict[str, bytes]:
        """All files below the work folder."""
        return {
            str(path.relative_to(self.work)): path.read_bytes()
            for path in self.work.rglob("*")
            if path.is_file()
        }


@pytest.fixture(params=["s3", "embedded"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    (tmp_path / "work").mkdir()
    if request.param == "embedded":
        store: EmbeddedStore = request.getfixturevalue("embedded")
        return Bench(lambda _: store, tmp_path, service())
    server: s3_server.Server = request.getfixturevalue("server")
    return Bench(lambda user: S3Store(server.endpoint, user.access_key, user.secret_key), tmp_path, service())


def event(*keys: str, bucket: str = "private") -> dict[str, Any]:
    made = [minio_event(Object(bucket, key, "7", 1, "e", 1700000000123)) for key in keys]
    return {"Records": [record for one in made for record in one["Records"]]}


def test_a_file_arrives(bench: Bench) -> None:
    bench.put("in/my photo+ñ.jpg", b"picture")
    bench.stage_in(bench.plan(event("in/my photo+ñ.jpg")))
    assert bench.files() == {"in/my photo+ñ.jpg": b"picture"}
    assert bench.log == ["supervisor INFO: fetched minio.default private/in/my photo+ñ.jpg (7 bytes)"]


def test_defect_5_every_file_of_an_event_arrives(bench: Bench) -> None:
    keys = [f"in/{number}/same.txt" for number in range(9)]
    for key in keys:
        bench.put(key, key.encode())
    bench.stage_in(bench.plan(event(*keys)))
    assert sorted(bench.files().values()) == sorted(key.encode() for key in keys)
    assert bench.files()["in/same.txt"] == b"in/0/same.txt"


def test_keys_don_t_leave_the_input_folder(bench: Bench) -> None:
    key = "in/../../../../escaped"
    bench.put(key, b"x")
    bench.stage_in(bench.plan(event(key)))
    assert bench.files() == {"in/escaped": b"x"}
    assert not (bench.folder / "escaped").exists()


def test_bodies_arrive(bench: Bench) -> None:
    for content in (b"aGVsbG8=", b'"' + b"x" * 200_000 + b'"'):
        made = bench.plan(content)
        bench.stage_in(made)
        assert bench.files()[made.moves.files[0].path] == made.moves.files[0].content


def test_synchronous_calls_get_the_event_beside(bench: Bench) -> None:
    bench.put("in/a", b"x")
    payload = json.dumps(event("in/a")).encode()
    bench.stage_in(bench.plan(payload, Mode.SYNC))
    assert bench.files() == {"in/a": b"x", "event": payload}


def test_the_user_of_any_image_can_work_there(bench: Bench) -> None:
    bench.put("in/a", b"x")
    old = os.umask(0o077)
    try:
        bench.stage_in(bench.plan(event("in/a")))
        bench.stage_in(bench.plan(b"{}"))
    finally:
        os.umask(old)
    assert {oct(path.stat().st_mode & 0o777) for path in (bench.work / "in", bench.out)} == {"0o777"}
    assert {oct(path.stat().st_mode & 0o777) for path in (bench.work / "in").iterdir()} == {"0o666"}


def test_staging_again_after_a_crash(bench: Bench) -> None:
    bench.put("in/a", b"whole")
    made = bench.plan(event("in/a"))
    bench.stage_in(made)
    # As a kill in the middle of a transfer leaves it.
    (bench.work / ".staging").mkdir()
    (bench.work / ".staging" / "0").write_bytes(b"wh")
    (bench.work / "in" / "a").write_bytes(b"wh")
    bench.stage_in(made)
    assert bench.files() == {"in/a": b"whole"}
    assert sorted(path.name for path in bench.work.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "folder"])
def test_what_a_script_left_in_the_place_of_our_folder_is_in_nobodys_way(bench: Bench, kind: str) -> None:
    bench.put("in/a", b"whole")
    place, kept = bench.work / ".staging", bench.folder / "kept"
    kept.mkdir()
    (kept / "file").write_bytes(b"kept")
    match kind:
        case "file":
            place.write_bytes(b"x")
        case "link":
            place.symlink_to(kept)
        case "dangling":
            place.symlink_to("nothing")
        case "folder":
            place.mkdir()
            (place / "deeper").mkdir(mode=0o000)
    bench.stage_in(bench.plan(event("in/a")))
    assert bench.files() == {"in/a": b"whole"}
    assert (kept / "file").read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("bucket", "key", "error"),
    [("private", "in/nothing", ObjectNotFound), ("no-bucket", "in/a", BucketNotFound)],
)
def test_inputs_that_can_t_be_had(bench: Bench, bucket: str, key: str, error: type[OscarError]) -> None:
    made = bench.plan(event(key, bucket=bucket), input=[{"path": f"{bucket}/in"}])
    with pytest.raises(error, match=rf"^minio\.default {bucket}/{key}: "):
        bench.stage_in(made)
    assert bench.files() == {}


@pytest.mark.parametrize("bench", ["s3"], indirect=True)
def test_inputs_that_the_user_may_not_have(bench: Bench) -> None:
    bench.put("in/b", b"x")
    with pytest.raises(Forbidden, match=r"^minio\.default private/in/b: .*AccessDenied"):
        bench.stage_in(bench.plan(event("in/b")), s3_server.BOB)
    assert bench.files() == {}


def test_one_missing_input_leaves_no_half_of_the_others(bench: Bench) -> None:
    bench.put("in/there", b"x" * 100_000)
    with pytest.raises(ObjectNotFound, match="in/nothing"):
        bench.stage_in(bench.plan(event("in/there", "in/nothing")))
    assert set(bench.files().values()) <= {b"x" * 100_000}
    assert not list(bench.work.glob(".staging*"))


def test_an_input_folder_that_is_a_link_is_refused(bench: Bench) -> None:
    elsewhere = bench.folder / "elsewhere"
    elsewhere.mkdir()
    (bench.work / "in").symlink_to(elsewhere)
    with pytest.raises(StorageError, match="work folder can't be written"):
        bench.stage_in(bench.plan(b"{}"))
    assert list(elsewhere.iterdir()) == []


def test_results_leave_with_their_folders(bench: Bench) -> None:
    (bench.out / "sub" / "deep").mkdir(parents=True)
    (bench.out / "a b+c.txt").write_bytes(b"one")
    (bench.out / "sub" / "deep" / "ñ.png").write_bytes(b"two")
    (bench.out / "empty").touch()
    stored = bench.stage_out(producer=Producer("svc-1", 4))
    assert [(one.name, one.bucket, one.key, one.size) for one in stored] == [
        ("a b+c.txt", "private", "out/a b+c.txt", 3),
        ("empty", "private", "out/empty", 0),
        ("sub/deep/ñ.png", "private", "out/sub/deep/ñ.png", 3),
    ]
    assert bench.content("out/sub/deep/ñ.png") == b"two"
    assert bench.content("out/a b+c.txt") == b"one"
    assert "supervisor INFO: stored empty (0 bytes) as minio.default private/out/empty" in bench.log


@pytest.mark.parametrize("bench", ["s3"], indirect=True)
def test_results_carry_hops_and_type(bench: Bench, server: s3_server.Server) -> None:
    bench.out.mkdir()
    (bench.out / "p.png").write_bytes(b"x")
    bench.stage_out(producer=Producer("svc-1", 4))
    client = Minio(f"127.0.0.1:{server.port}", ALICE.access_key, ALICE.secret_key, secure=False)
    headers = client.stat_object("private", "out/p.png").metadata
    assert headers is not None
    assert headers["x-amz-meta-oscar-hops"] == "4"
    assert headers["content-type"] == "image/png"


@pytest.mark.real
def test_results_go_to_several_providers_at_once(bench: Bench, tmp_path: Path) -> None:
    data = tmp_path / "minio"
    data.mkdir()
    bench.out.mkdir()
    for name in ("a.txt", "b.jpg"):
        (bench.out / name).write_bytes(name.encode())
    try:
        with real_minio.running(data) as minio:
            keys = {"access_key": real_minio.ACCESS_KEY, "secret_key": real_minio.SECRET_KEY}
            other = {"minio": {"other": {"endpoint": minio.endpoint, **keys}}}
            places = [
                {"path": "private/both"},
                {"storage_provider": "minio.other", "path": "far/text", "suffix": [".txt"]},
            ]
            # The bucket isn't there yet.
            stored = bench.stage_out(bench.plan({}, output=places, storage_providers=other))
            store = S3Store(minio.endpoint, real_minio.ACCESS_KEY, real_minio.SECRET_KEY)
            asyncio.run(store.download("far", "text/a.txt", tmp_path / "got"))
    except real_minio.MinioMissing as missing:
        pytest.skip(str(missing))
    assert [(one.provider, one.bucket, one.key) for one in stored] == [
        ("minio.default", "private", "both/a.txt"),
        ("minio.other", "far", "text/a.txt"),
        ("minio.default", "private", "both/b.jpg"),
    ]
    assert (tmp_path / "got").read_bytes() == b"a.txt"


def test_what_no_output_takes_is_said(bench: Bench) -> None:
    bench.out.mkdir()
    (bench.out / "a.log").touch()
    assert bench.stage_out(bench.plan({}, output=[{"path": "private/out", "suffix": [".txt"]}])) == []
    assert bench.log == ["supervisor INFO: a.log is not stored: no output takes it"]


def test_no_output_folder_is_no_result(bench: Bench) -> None:
    assert bench.stage_out() == []
    assert bench.log == []


def smuggle(bench: Bench) -> dict[str, Path | str]:
    secret = bench.folder / "secret"
    secret.write_text("the server's secret")
    (bench.folder / "folder").mkdir()
    (bench.folder / "folder" / "f").write_text("the server's secret")
    return {
        "absolute": secret,
        "relative": "../../secret",
        "folder": bench.folder / "folder",
        "through": "loop/../../../secret",
        "inside": "/oscar/work/../../secret",
        "work": "/oscar/work/event",
        "config": "/oscar/config/script.sh",
        "passwd": "/etc/passwd",
        "self": "self",
        "proc": "/proc/self/environ",
        "nothing": "gone",
        "in-itself": "/oscar/work/in",
        "root": "/",
        "file-as-folder": "real/x",
    }


def test_links_out_of_the_jobs_files_are_no_results(bench: Bench) -> None:
    bench.out.mkdir()
    (bench.work / "in").mkdir()
    (bench.work / "event").write_text("the server's secret")
    (bench.out / "real").write_bytes(b"mine")
    (bench.out / "loop").symlink_to(".")
    links = smuggle(bench)
    for name, target in links.items():
        (bench.out / name).symlink_to(target)
    stored = bench.stage_out()
    assert [one.name for one in stored] == ["real"]
    said = "\n".join(bench.log)
    for name in (*links, "loop"):
        assert f"left out {name}: a link" in said
    assert all(line.startswith("supervisor WARNING") for line in bench.log if "left out" in line)


def test_links_within_the_jobs_files_are_results(bench: Bench) -> None:
    (bench.work / "in").mkdir()
    (bench.work / "in" / "original").write_bytes(b"input")
    (bench.out / "sub").mkdir(parents=True)
    (bench.out / "sub" / "file").write_bytes(b"content")
    (bench.out / "relative").symlink_to("sub/file")
    (bench.out / "absolute").symlink_to("/oscar/work/out/sub/file")
    (bench.out / "chain").symlink_to("relative")
    (bench.out / "sub" / "up").symlink_to("../sub/./file")
    (bench.out / "dir").symlink_to("sub")
    (bench.out / "by-dir").symlink_to("dir/file")
    (bench.out / "input").symlink_to("/oscar/work/in/original")
    found = {one.name: bench.content(one.key) for one in bench.stage_out()}
    same = dict.fromkeys(("relative", "absolute", "chain", "sub/up", "sub/file", "by-dir"), b"content")
    assert found == {**same, "input": b"input"}


def test_an_output_folder_that_is_a_link_gives_nothing(bench: Bench) -> None:
    elsewhere = bench.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "f").write_text("the server's secret")
    bench.out.symlink_to(elsewhere)
    assert bench.stage_out() == []
    assert "output folder can't be read" in bench.log[0]


def test_pipes_sockets_and_devices_are_left_out(bench: Bench) -> None:
    import socket

    bench.out.mkdir()
    os.mkfifo(bench.out / "pipe")
    if os.geteuid() == 0:
        os.mknod(bench.out / "device", 0o020666, os.makedev(1, 5))
    where = Path.cwd()
    os.chdir(bench.out)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    os.chdir(where)
    (bench.out / "file").touch()
    assert [one.name for one in bench.stage_out()] == ["file"]
    assert "supervisor WARNING: left out pipe: not a file" in bench.log
    assert "supervisor WARNING: left out socket: not a file" in bench.log


def test_a_file_exchanged_for_a_link_is_not_followed(bench: Bench) -> None:
    bench.out.mkdir()
    (bench.out / "file").write_text("mine")
    (bench.out / "sub").mkdir()
    (bench.out / "sub" / "f").write_text("mine")
    found = results.find(bench.work, "/oscar/work", bench.log.append)
    (bench.out / "file").unlink()
    (bench.out / "file").symlink_to("/etc/passwd")
    (bench.out / "sub" / "f").unlink()
    (bench.out / "sub").rmdir()
    (bench.out / "sub").symlink_to("/etc")
    for result in found:
        with pytest.raises(StorageError, match=f"output file {result.name}"):
            results.open_result(bench.work, result)


def test_names_that_are_no_utf8_or_forge_lines(bench: Bench) -> None:
    bench.out.mkdir()
    Path(os.fsdecode(os.fsencode(bench.out) + b"/bad\xff.txt")).write_bytes(b"x")
    (bench.out / "a\nsupervisor INFO: forged").write_bytes(b"y")
    stored = bench.stage_out()
    assert [one.name for one in stored] == ["a\nsupervisor INFO: forged", "bad\\xff.txt"]
    assert bench.content("out/bad\\xff.txt") == b"x"
    assert not any("\n" in line for line in bench.log)


def test_too_deep_and_too_many(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.out.mkdir()
    where = Path.cwd()
    os.chdir(bench.out)
    # Deeper than any path that the kernel would take as a whole.
    for _ in range(3000):
        Path("d").mkdir()
        os.chdir("d")
    os.chdir(where)
    (bench.out / "file").touch()
    stored = bench.stage_out()
    # pytest would remove it by recursion, which ends at 1000.
    subprocess.run(["rm", "-rf", bench.out / "d"], check=True)
    assert [one.name for one in stored] == ["file"]
    assert any("folders deep" in line for line in bench.log)
    monkeypatch.setattr(results, "MOST_FILES", 2)
    for name in "abc":
        (bench.out / name).touch()
    with pytest.raises(Unsupported, match="more than 2 files"):
        bench.stage_out()


DEAD = {"endpoint": "http://127.0.0.1:1", "access_key": "a", "secret_key": "b"}


@pytest.mark.parametrize(
    ("place", "providers", "error", "message"),
    [
        ({"path": "no-bucket/out"}, {}, BucketNotFound, "minio.default no-bucket/out/f: "),
        (
            {"storage_provider": "webdav.dcache", "path": "far"},
            {"webdav": {"dcache": {"hostname": "d", "login": "u"}}},
            InvalidField,
            "webdav.dcache: .*password is not given",
        ),
        (
            {"storage_provider": "minio.dead", "path": "far"},
            {"minio": {"dead": DEAD}},
            StorageError,
            "minio.dead svc/far/f: no answer from 127.0.0.1:1",
        ),
    ],
)
def test_results_that_can_t_be_stored(
    bench: Bench, place: dict[str, str], providers: dict[str, Any], error: type[OscarError], message: str
) -> None:
    bench.out.mkdir()
    (bench.out / "f").touch()
    made = bench.plan({}, output=[{"path": "private/both"}, place], storage_providers=providers)
    with pytest.raises(error, match=f"^{message}"):
        bench.stage_out(made)


@pytest.mark.parametrize(
    ("level", "lines"),
    [("DEBUG", 2), ("INFO", 2), ("WARNING", 1), ("ERROR", 0), ("CRITICAL", 0), ("NOTSET", 2)],
)
def test_the_log_level_of_the_service(bench: Bench, level: str, lines: int) -> None:
    bench.out.mkdir()
    (bench.out / "f").touch()
    (bench.out / "l").symlink_to("/etc/passwd")
    bench.stage_out(bench.plan({}, log_level=level))
    assert len(bench.log) == lines


MEMORY = """
import asyncio, json, resource, sys
from pathlib import Path
from oscar.model.service import Service, parse_service
from oscar.objects.base import ObjectStore
from oscar.objects.embedded.blobs import Blobs
from oscar.objects.embedded.store import EmbeddedStore
from oscar.objects.s3 import S3Store
from oscar.supervisor.plan import plan
from oscar.supervisor.providers import Providers
from oscar.supervisor.stage import stage_in, stage_out

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

async def main(endpoint, access_key, secret_key, work, event):
    service = parse_service({"name": "svc", "image": "i", "script": "s",
                             "input": [{"path": "private/in"}], "output": [{"path": "private/out"}]})
    own = S3Store(endpoint, access_key, secret_key)
    providers = Providers(service, own)
    small = plan(service, b"{}", job_id="j")
    await stage_in(small.moves, Path(work), providers, print)
    before = peak()
    made = plan(service, Path(event).read_bytes(), job_id="j")
    await stage_in(made.moves, Path(work), providers, print)
    Path(work, "in/large").rename(Path(work, "out/large"))
    await stage_out(made.moves, Path(work), providers, print)
    print(peak() - before)
    await own.close()

asyncio.run(main(*sys.argv[1:]))
"""


def test_memory_stays_flat(server: s3_server.Server, tmp_path: Path) -> None:
    bench = Bench(lambda _: S3Store(server.endpoint, ALICE.access_key, ALICE.secret_key), tmp_path, service())
    bench.work.mkdir()
    source = tmp_path / "large"
    with source.open("wb") as file:
        for _ in range(300):
            file.write(os.urandom(1 << 20))

    async def upload() -> None:
        async with bench.store() as store:
            await store.upload("private", "in/large", source)

    asyncio.run(upload())
    (tmp_path / "event").write_text(json.dumps(event("in/large")))
    arguments = (
        server.endpoint,
        ALICE.access_key,
        ALICE.secret_key,
        str(bench.work),
        str(tmp_path / "event"),
    )
    child = subprocess.run(
        [sys.executable, "-c", MEMORY, *arguments], check=True, capture_output=True, text=True
    )
    assert int(child.stdout.splitlines()[-1]) < 150
    assert subprocess.run(["cmp", source, bench.out / "large"], check=False).returncode == 0
