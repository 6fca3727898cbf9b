"""Log files: follow, tail, and the size that they keep."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from oscar.compute.local import cri
from oscar.compute.local.logs import Logs, keeps_size
from oscar.errors import RunNotFound

KIB = 1024


def texts(logs: Logs, tail: int | None = None) -> list[str]:
    async def read() -> list[str]:
        return [line.text async for line in logs.read("run", tail=tail)]

    return asyncio.run(read())


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path, most=1024 * KIB, head=512 * KIB, tail=256 * KIB)


def fill(logs: Logs, first: int, last: int) -> None:
    with logs.path("run").open("ab") as file:
        for number in range(first, last):
            file.write(cri.line(f"line {number} {'x' * 200}"))


def numbers(lines: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith("line")]


def test_what_is_said_is_read(logs: Logs) -> None:
    logs.say("run", "one\ntwo")
    logs.say("run", "")
    assert texts(logs) == ["one", "two", ""]


def test_there_is_no_log_of_the_unknown(logs: Logs) -> None:
    with pytest.raises(RunNotFound):
        texts(logs)
    for name in ("../run", "", ".hidden", "a/b", "x" * 300):
        with pytest.raises(RunNotFound):
            logs.path(name)


@pytest.mark.parametrize("count", [0, 1, 7, 1999, 2000, 5000])
def test_tail(logs: Logs, count: int) -> None:
    fill(logs, 0, 2000)
    assert numbers(texts(logs, tail=count)) == list(range(2000))[2000 - min(count, 2000) :]


def test_following_ends_with_the_run_and_misses_nothing(logs: Logs) -> None:
    async def scenario() -> list[str]:
        logs.say("run", "before")
        ended = asyncio.Event()

        async def write() -> None:
            for number in range(20):
                logs.say("run", f"line {number}")
                await asyncio.sleep(0.01)
            logs.say("run", "last")
            ended.set()

        writing = asyncio.create_task(write())
        seen = [line.text async for line in logs.read("run", going=lambda: not ended.is_set())]
        await writing
        return seen

    assert asyncio.run(scenario()) == ["before", *(f"line {number}" for number in range(20)), "last"]


def test_a_log_that_is_dropped_ends_its_readers(logs: Logs) -> None:
    async def scenario() -> list[str]:
        logs.say("run", "one")
        ended = asyncio.Event()
        seen = []
        async for line in logs.read("run", going=lambda: not ended.is_set()):
            seen.append(line.text)
            logs.drop("run")
            ended.set()
        return seen

    assert asyncio.run(scenario()) == ["one"]


def test_a_long_log_keeps_its_head_and_its_tail(logs: Logs) -> None:
    assert keeps_size(logs.folder)
    fill(logs, 0, 3000)
    assert logs.trim("run") == 0
    fill(logs, 3000, 20_000)
    assert logs.trim("run") > 0
    fill(logs, 20_000, 21_000)  # its writer goes on as if nothing had happened
    path = logs.path("run")
    assert path.stat().st_blocks * 512 <= 1100 * KIB
    lines = texts(logs)
    kept = numbers(lines)
    assert kept == sorted(set(kept))
    assert kept[:2000] == list(range(2000))
    assert kept[-1000:] == list(range(20_000, 21_000))
    marks = [line for line in lines if not line.startswith("line")]
    assert len(marks) == 1
    assert "MiB of this log were dropped" in marks[0]
    assert numbers(texts(logs, tail=10)) == list(range(20_990, 21_000))
    # More than there is behind the gap: what lies before it is not asked for.
    assert numbers(texts(logs, tail=10**6))[-1] == 20_999


def test_a_log_is_trimmed_again_and_again(logs: Logs) -> None:
    for part in range(10):
        fill(logs, part * 3000, (part + 1) * 3000)
        logs.trim("run")
        assert logs.path("run").stat().st_blocks * 512 <= 1100 * KIB
    kept = numbers(texts(logs))
    assert kept[0] == 0
    assert kept[-1] == 29_999


def test_trimming_what_is_not_there_is_silent(logs: Logs) -> None:
    assert logs.trim("run") == 0
    logs.mend("run")
    logs.drop("run")


def test_an_open_line_is_ended_before_others_follow(logs: Logs) -> None:
    with logs.path("run").open("ab") as file:
        file.write(b"2026-11-23T20:56:23.980821233Z stdout P no end\n2026-11-23T20:56:23.980821233Z stdo")
    logs.mend("run")
    logs.say("run", "next")
    assert texts(logs) == ["no end", "next"]
