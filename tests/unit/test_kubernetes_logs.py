"""Lines of logs: their times, positions and pieces."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oscar.compute.kubernetes import logs
from oscar.compute.kubernetes.collect import last_words
from oscar.compute.kubernetes.lines import START, Line, Placer, Position, Splitter, decoded, merged, utc
from oscar.compute.kubernetes.logs import Growing, Logs
from oscar.errors import RunNotFound
from oscar.objects.base import Found
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


Kind = TypeVar("Kind", bound=EmbeddedStore)


def _objects(folder: Path, kind: type[Kind]) -> Kind:
    _, index = s3_server.open_index(f"sqlite:///{folder}/oscar.db")
    return kind(index, Blobs(folder / "blobs"), endpoint="http://127.0.0.1:1", region="r")


async def _store(folder: Path) -> Logs:
    return await _logs(_objects(folder, EmbeddedStore), folder)


async def _logs(store: EmbeddedStore, folder: Path) -> Logs:
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


class Stuck(EmbeddedStore):
    """A store that does not answer to uploads while it is stuck."""

    stuck = False

    async def upload(self, *args: Any, **more: Any) -> Found:
        if self.stuck:
            await asyncio.Event().wait()
        return await super().upload(*args, **more)


def test_lines_whose_writer_is_ended_in_the_middle_are_written_by_the_next(tmp_path: Path) -> None:
    """The collector ends its writer when the run has ended, which may just be writing the last lines."""

    async def scenario() -> None:
        store = _objects(tmp_path, Stuck)
        kept = await _logs(store, tmp_path)
        growing = await kept.open("run-1")
        growing.add([_line(1)])
        await kept.flush("run-1", growing)
        growing.add([_line(2), _line(3)])
        store.stuck = True
        writer = asyncio.create_task(kept.flush("run-1", growing))
        await asyncio.sleep(0.05)
        growing.add([_line(4)])
        writer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writer
        assert await _texts(kept) == ["line 1", "line 2", "line 3", "line 4"]
        store.stuck = False
        await kept.close("run-1", growing)
        assert await _texts(kept) == ["line 1", "line 2", "line 3", "line 4"]

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


# Two servers may collect one log: a lease was taken over from one that is not dead.


class Meeting(EmbeddedStore):
    """A store whose answer to its next listing comes when something has happened meanwhile."""

    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def list(self, bucket: str, prefix: str = "", *, start_after: str = "") -> AsyncIterator[Found]:
        found = [each async for each in super().list(bucket, prefix, start_after=start_after)]
        act, self.meanwhile = self.meanwhile, None
        if act is not None:
            await act()
        for each in found:
            yield each


def _numbers(count: int) -> list[str]:
    return [f"line {second}" for second in range(count)]


STEPS = st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.booleans()), max_size=8)
"""Which of two goes on, by how many lines, and whether it stores them at once."""


@settings(PATIENT, max_examples=20)
@given(STEPS, st.booleans())
def test_what_two_servers_store_is_read_without_a_gap(
    steps: list[tuple[bool, int, bool]], order: bool
) -> None:
    count = 12

    async def scenario(folder: Path) -> None:
        store = _objects(folder, EmbeddedStore)
        reader = await _logs(store, folder)
        servers = {False: await _logs(store, folder), True: await _logs(store, folder)}
        open_: dict[bool, Growing] = {}
        seen = 0

        async def step(who: bool, lines: int, *, flush: bool) -> None:
            kept = servers[who]
            growing = open_[who] = open_.get(who) or await kept.open("run-1")
            first = int(growing.last.time[17:19]) + 1 if growing.last.time else 0
            growing.add(_line(second) for second in range(first, min(first + lines, count)))
            if flush:
                await kept.flush("run-1", growing)

        async def look() -> None:
            nonlocal seen
            found = [line.text async for line in reader.read("run-1", going=None, known=True, tail=None)]
            assert found == _numbers(len(found))
            assert len(found) >= seen
            seen = len(found)

        for who, lines, flush in steps:
            await step(who, lines, flush=flush)
            await look()
        for who in (order, not order):
            await step(who, count, flush=False)
            await servers[who].close("run-1", open_[who])
            await look()
            assert seen == count
            assert await reader.is_complete("run-1")

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))


def test_a_server_that_comes_late_adds_to_a_log_that_is_complete(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = _objects(tmp_path, EmbeddedStore)
        first, second = await _logs(store, tmp_path), await _logs(store, tmp_path)
        growing = await first.open("run-1")
        growing.add([_line(0), _line(1)])
        await first.close("run-1", growing)
        late = await second.open("run-1")
        assert late.last == _line(1).at
        late.add([_line(2)])
        await second.flush("run-1", late)
        assert await _texts(first) == _numbers(3)
        assert await _texts(first, tail=2) == _numbers(3)[1:]
        await second.close("run-1", late)
        assert await _texts(first) == _numbers(3)

    asyncio.run(scenario())


def test_a_log_that_is_one_object_stays_when_another_server_makes_it_large(tmp_path: Path) -> None:
    def large(second: int) -> Line:
        return Line(Position(1, at(second), 0), f"{second}" * (3 * logs.MIB))

    async def scenario() -> None:
        store = _objects(tmp_path, EmbeddedStore)
        first, second = await _logs(store, tmp_path), await _logs(store, tmp_path)
        begun = await first.open("run-1")
        begun.add([large(1)])
        await first.close("run-1", begun)
        late = await second.open("run-1")
        late.add([large(2)])
        await second.close("run-1", late)
        assert [text[:1] for text in await _texts(first)] == ["1", "2"]
        assert [text[:1] for text in await _texts(first, tail=2)] == ["1", "2"]

    asyncio.run(scenario())


@pytest.mark.parametrize("more", [False, True])
def test_two_servers_close_a_log_at_the_same_time(tmp_path: Path, *, more: bool) -> None:
    async def scenario() -> None:
        store = _objects(tmp_path, Meeting)
        first, second = await _logs(store, tmp_path), await _logs(store, tmp_path)
        begun = await first.open("run-1")
        begun.add(map(_line, range(2)))
        await first.flush("run-1", begun)
        late = await second.open("run-1")
        begun.add([_line(2)])
        if more:
            await first.flush("run-1", begun)
        late.add([_line(2), _line(3)])
        # What the second found in the store is gone by the time it reads it, and more may be there.
        store.meanwhile = lambda: first.close("run-1", begun)
        await second.close("run-1", late)
        assert await _texts(first) == _numbers(4)

    asyncio.run(scenario())


@pytest.mark.parametrize("tail", [None, 3])
def test_a_log_that_is_made_into_one_while_it_is_read(tmp_path: Path, tail: int | None) -> None:
    async def scenario() -> None:
        store = _objects(tmp_path, Meeting)
        kept = await _logs(store, tmp_path)
        growing = await kept.open("run-1")
        for second in range(3):
            growing.add([_line(second)])
            await kept.flush("run-1", growing)
        reader = await _logs(store, tmp_path)
        store.meanwhile = lambda: kept.close("run-1", growing)
        assert await _texts(reader, tail=tail) == _numbers(3)

    asyncio.run(scenario())


def test_the_platforms_last_words_are_said_once(tmp_path: Path) -> None:
    ended = 1795766403500

    async def scenario() -> None:
        store = _objects(tmp_path, EmbeddedStore)
        first, second = await _logs(store, tmp_path), await _logs(store, tmp_path)
        begun, late = await first.open("run-1"), await second.open("run-1")
        for kept, growing in ((first, begun), (second, late)):
            growing.add([_line(0), _line(1)])
            growing.add([last_words("killed", ended, growing.last)])
            await kept.close("run-1", growing)
        again = await second.open("run-1")
        again.add([last_words("killed", ended, again.last)])
        await second.close("run-1", again)
        assert await _texts(first) == [*_numbers(2), "killed"]

    asyncio.run(scenario())


def test_the_platforms_last_words_come_last() -> None:
    said = last_words("killed", 1795766403500, _line(1).at)
    assert said.at.time == "2026-11-27T08:00:03.500000000Z"
    assert said.at > _line(9).at
    # The cluster tells its time in whole seconds, a line may be later in that second.
    assert last_words("killed", 1795766403500, _line(4).at).at.time == at(4)
    assert last_words("killed", None, _line(4).at).at.time >= at(4)


def test_positions_begin_before_all() -> None:
    assert Position(0, at(0), 0) > START
