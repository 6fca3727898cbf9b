"""What a synchronous call answers: one file, an archive of several, or what the script printed."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from oscar.model.event import minio_event
from oscar.model.object import Object
from oscar.model.service import parse_service
from oscar.supervisor.answer import PIECE, answer, whole_answer
from oscar.supervisor.plan import Mode, Plan, plan


def made(payload: Any) -> Plan:
    service = parse_service({"name": "svc", "image": "i", "script": "s", "input": [{"path": "photos/in"}]})
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return plan(service, raw, job_id="j", mode=Mode.SYNC)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work" / "out").mkdir(parents=True)
    return tmp_path / "work"


def answered(work: Path, payload: Any = b"{}", log: bytes = b"printed\n", **options: Any) -> bytes:
    return asyncio.run(whole_answer(made(payload), work, log, **options))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 2])
def test_one_file_is_its_base64(work: Path, size: int) -> None:
    content = os.urandom(size)
    (work / "out" / "result").write_bytes(content)
    assert answered(work) == base64.b64encode(content)


def test_one_file_in_a_folder(work: Path) -> None:
    (work / "out" / "sub").mkdir()
    (work / "out" / "sub" / "result").write_bytes(b"hi")
    assert answered(work) == b"aGk="


def test_several_files_are_a_zip_in_base64(work: Path) -> None:
    contents = {"a.txt": b"one", "sub/b.bin": os.urandom(2_000_000), "ñ.txt": b""}
    (work / "out" / "sub").mkdir()
    for name, content in contents.items():
        (work / "out" / name).write_bytes(content)
    before = sorted(work.parent.iterdir())
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(answered(work), validate=True)))
    assert archive.testzip() is None
    assert {name: archive.read(name) for name in archive.namelist()} == contents
    assert sorted(work.parent.iterdir()) == before


def test_no_file_is_the_log(work: Path) -> None:
    assert answered(work) == b"printed\n"
    assert answered(work, log=b"\xff\x00") == b"\xff\x00"
    (work / "out").rmdir()
    assert answered(work) == b"printed\n"


def test_bodies_of_any_kind_answer_with_files(work: Path) -> None:
    (work / "out" / "result").write_bytes(b"hi")
    for payload in (b"", b"aGVsbG8=", {"a": 1}, {"httpMethod": "POST", "body": "aGk="}):
        assert answered(work, payload) == b"aGk="


def test_storage_events_answer_with_the_log(work: Path) -> None:
    (work / "out" / "result").write_bytes(b"hi")
    event = minio_event(Object("photos", "in/a", "1", 1, "e", 1))
    assert answered(work, event) == b"printed\n"


def test_links_out_of_the_jobs_files_never_answer(work: Path) -> None:
    (work.parent / "secret").write_text("the server's secret")
    (work / "out" / "link").symlink_to(work.parent / "secret")
    said: list[str] = []
    assert answered(work, warn=said.append) == b"printed\n"
    assert said == ["left out link: a link that leads out of the job's files"]
    (work / "out" / "result").write_bytes(b"hi")
    assert answered(work) == b"aGk="


def test_an_unfinished_answer_leaves_nothing_open(work: Path) -> None:
    for name in "ab":
        (work / "out" / name).write_bytes(os.urandom(2 * PIECE))

    async def first() -> None:
        pieces = answer(made(b"{}"), work, b"")
        assert len(await anext(pieces)) == PIECE // 3 * 4
        await pieces.aclose()

    opened = Path("/proc/self/fd")
    before = len(list(opened.iterdir()))
    asyncio.run(first())
    assert len(list(opened.iterdir())) <= before


MEMORY = """
import asyncio, resource, sys
from pathlib import Path
from oscar.model.service import parse_service
from oscar.supervisor.answer import answer
from oscar.supervisor.plan import plan

async def main(work):
    made = plan(parse_service({"name": "svc", "image": "i", "script": "s"}), b"{}", job_id="j")
    size = 0
    async for piece in answer(made, Path(work), b""):
        size += len(piece)
    print(size)

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
asyncio.run(main(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before)
"""


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_memory_stays_flat(work: Path, names: list[str]) -> None:
    for name in names:
        with (work / "out" / name).open("wb") as file:
            file.truncate(200 << 20)
    child = subprocess.run(
        [sys.executable, "-c", MEMORY, str(work)], check=True, capture_output=True, text=True
    )
    size, grown = map(int, child.stdout.split())
    assert size > 0
    assert grown < 60
