"""Lines of logs: their times, positions and pieces."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oscar.compute.kubernetes import logs
from oscar.compute.kubernetes.logs import START, Line, Logs, Placer, Position, Splitter, decoded, merged, utc
from oscar.errors import RunNotFound
from oscar.objects.embedded.blobs import Blobs
from oscar.objects.embedded.store import EmbeddedStore
from tests import s3_server

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-27T08:00:00.123456789Z", "2026-11-27T08:00:00.123456789Z"),
        ("2026-11-27T08:00:00.12Z", "2026-11-27T08:00:00.120000000Z"),
        ("2026-11-27T08:00:00Z", "2026-11-27T08:00:00.000000000Z"),
        ("2026-11-27T08:00:00.5+02:00", "2026-11-27T06:00:00.500000000Z"),
        ("2026-11-27T08:00:00+02:00", "2026-11-27T06:00:00.000000000Z"),
    ],
)
def test_times_compare_as_texts(text: str, expected: str) -> None:
    assert utc(text) == expected


def at(second: int) -> str:
    return f"2026-11-27T08:00:{second:02d}.000000000Z"


def test_a_log_that_is_read_again_adds_nothing() -> None:
    rows = [(at(1), "a"), (at(1), "b"), (at(1), "b"), (at(2), "c")]
    first = Placer(1)
    placed = [line for row in rows[:3] if (line := first.place(*row))]
    assert [line.text for line in placed] == ["a", "b", "b"]
    # A connection that was cut, in the same server and in the next one.
    first.restart()
    assert not any(first.place(*row) for row in rows[:3])
    again = Placer(1, placed[-1].at)
    assert again.since == "2026-11-27T08:00:01Z"
    left = [line for row in rows if (line := again.place(*row))]
    assert [line.text for line in left] == ["c"]


def test_what_was_kept_of_a_later_container_rules_out_the_earlier() -> None:
    late = Placer(0, Position(1, at(1), 0))
    assert late.since == ""
    assert late.place(at(5), "old") is None
    assert Placer(2, Position(1, at(9), 0)).place(at(5), "new") is not None


@PATIENT
@given(
    st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))), st.integers(1, 40)
)
def test_pieces_of_any_size_make_the_same_lines(texts: list[str], size: int) -> None:
    whole = "".join(f"{at(1)} {text}\n" for text in texts).encode()
    splitter = Splitter()
    found = [
        line for start in range(0, len(whole), size) for line in splitter.feed(whole[start : start + size])
    ]
    assert [*found, *splitter.end()] == [(at(1), text) for text in texts]


@PATIENT
@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])), max_size=5))
def test_a_chunk_gives_back_its_lines(texts: list[str]) -> None:
    lines = [Line(Position(1, at(1), number), text) for number, text in enumerate(texts)]
    assert decoded(b"".join(line.encoded() for line in lines)) == lines


def test_two_writers_make_one_log() -> None:
    lines = [Line(Position(1, at(second), 0), str(second)) for second in range(10)]
    assert merged([*lines[:7], *lines[3:6], *lines[5:]]) == lines


def test_the_middle_of_a_large_log_goes() -> None:
    kept = {f"logs/x/{number:08d}-a": logs.MIB for number in range(70)}
    dropped = logs.middle(kept)
    assert dropped
    left = [key for key in kept if key not in dropped]
    assert left[0] == "logs/x/00000000-a"
    assert left[-1] == "logs/x/00000069-a"
    assert len(left) == logs.HEAD // logs.MIB + logs.TAIL // logs.MIB


def _line(second: int) -> Line:
    return Line(Position(1, at(second), 0), f"line {second}")


async def _store(folder: Path) -> Logs:
    _, index = s3_server.open_index(f"sqlite:///{folder}/oscar.db")
    store = EmbeddedStore(index, Blobs(folder / "blobs"), endpoint="http://127.0.0.1:1", region="r")
    kept = Logs(store, "oscar-logs", folder / "logs")
    await kept.start()
    return kept


async def _texts(kept: Logs, *, tail: int | None = None) -> list[str]:
    return [line.text async for line in kept.read("run-1", going=None, known=False, tail=tail)]


def test_a_log_is_taken_up_by_the_next_server(tmp_path: Path) -> None:
    async def scenario() -> None:
        kept = await _store(tmp_path)
        with pytest.raises(RunNotFound):
            await _texts(kept)
        growing = await kept.open("run-1")
        growing.add([_line(1), _line(2)])
        assert await _texts(kept) == ["line 1", "line 2"]  # before anything is stored
        await kept.flush("run-1", growing)
        growing.add([_line(3)])
        assert await _texts(kept) == ["line 1", "line 2", "line 3"]
        kept.release("run-1")  # what a crash loses is read from the pod again
        again = await kept.open("run-1")
        assert again.last == _line(2).at
        assert not await kept.is_complete("run-1")
        again.add([_line(3), _line(4)])
        await kept.close("run-1", again)
        assert await kept.is_complete("run-1")
        assert await _texts(kept) == ["line 1", "line 2", "line 3", "line 4"]
        assert await _texts(kept, tail=2) == ["line 3", "line 4"]
        assert await _texts(kept, tail=0) == []
        await kept.drop("run-1")
        with pytest.raises(RunNotFound):
            await _texts(kept)

    asyncio.run(scenario())


def test_an_empty_log_is_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        kept = await _store(tmp_path)
        await kept.close("run-1", await kept.open("run-1"))
        assert await _texts(kept) == []

    asyncio.run(scenario())


def test_a_follower_sees_what_moves_from_memory_to_the_store(tmp_path: Path) -> None:
    async def scenario() -> None:
        kept = await _store(tmp_path)
        growing = await kept.open("run-1")
        going = True

        async def follow() -> list[str]:
            lines = kept.read("run-1", going=lambda: going, known=True, tail=None)
            return [line.text async for line in lines]

        following = asyncio.create_task(follow())
        for second in range(10):
            growing.add([_line(second)])
            await asyncio.sleep(0.02)
            if second % 3 == 0:
                await kept.flush("run-1", growing)
        await kept.close("run-1", growing)
        going = False
        assert await following == [f"line {second}" for second in range(10)]

    asyncio.run(scenario())


def test_dropped_chunks_leave_a_mark(tmp_path: Path) -> None:
    async def scenario() -> None:
        kept = await _store(tmp_path)
        growing = await kept.open("run-1")
        for second in range(4):
            growing.add([_line(second)])
            await kept.flush("run-1", growing)
        middle = sorted(growing.kept)[1]
        await kept._store.delete("oscar-logs", middle)
        expected = ["line 0", "[...] a part of the log was not kept", "line 2", "line 3"]
        assert await _texts(kept) == expected
        await kept.close("run-1", growing)
        assert await _texts(kept) == expected

    asyncio.run(scenario())


def test_positions_begin_before_all() -> None:
    assert Position(0, at(0), 0) > START
