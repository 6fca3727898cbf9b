"""The format of logs: lines as written by conmon and our shim, read back whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oscar.compute.local import cri, shim
from oscar.compute.local.docker_logs import joined

AT = "2026-11-23T20:56:23.980821233Z"
TEXT = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=40)


def read(data: bytes, *, pieces: int = 0) -> list[tuple[str, str]]:
    assembler = cri.Assembler()
    blocks = [data[at : at + pieces] for at in range(0, len(data), pieces)] if pieces else [data]
    lines = [line for block in blocks for line in assembler.feed(block)]
    return [(line.time, line.text) for line in [*lines, *assembler.end()]]


def test_whole_lines() -> None:
    data = f"{AT} stdout F one\n{AT} stderr F  two \n{AT} stdout F \n".encode()
    assert read(data) == [(AT, "one"), (AT, " two "), (AT, "")]


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("2026-11-23T20:56:23.980821233+00:00", AT),
        ("2026-11-23T20:56:23.980821233Z", AT),
        ("2026-11-23T21:56:23.980821233+01:00", AT),
        ("2026-11-23T15:26:23.980821233-05:30", AT),
        ("2026-11-23T20:56:23.98Z", "2026-11-23T20:56:23.980000000Z"),
        ("2026-11-23T20:56:23Z", "2026-11-23T20:56:23.000000000Z"),
        ("2027-01-01T00:30:00.5+01:00", "2026-12-31T23:30:00.500000000Z"),
    ],
)
def test_times_become_utc_with_nanoseconds(written: str, normal: str) -> None:
    assert cri.normal(written) == normal


def test_pieces_are_joined_by_stream() -> None:
    data = f"{AT} stdout P one \n{AT} stderr F other\n{AT} stdout P and \n{AT} stdout F two\n".encode()
    assert read(data) == [(AT, "other"), (AT, "one and two")]


def test_an_open_piece_and_a_cut_line_come_at_the_end() -> None:
    assert read(f"{AT} stdout P open\n".encode()) == [(AT, "open")]
    assert read(f"{AT} stdout F whole\n{AT} stdout F cu".encode()) == [(AT, "whole"), (AT, "cu")]
    assert read(f"{AT} stdout F whole\n2026-11".encode()) == [(AT, "whole")]


def test_what_is_no_line_is_left_out() -> None:
    data = (
        b"\0" * 100 + f"{AT} stdout F after zeros\nrest of a line\n{AT} strange F x\nx stdout F y\n".encode()
    )
    assert read(data) == [(AT, "after zeros")]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert read(f"{AT} stdout F ".encode() + b"\xff\xfe\n") == [(AT, "��")]


def test_a_dropped_middle_leaves_a_mark() -> None:
    assembler = cri.Assembler()
    before = list(assembler.feed(f"{AT} stdout F one\n{AT} stdout F cut he".encode()))
    gap = list(assembler.gap(3 * 1024 * 1024))
    after = list(assembler.feed(f"{AT} stdout F two\n".encode()))
    assert [line.text for line in before] == ["one"]
    assert [line.text for line in gap] == ["[... 3 MiB of this log were dropped here ...]"]
    assert [line.text for line in after] == ["two"]


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    piece = f"{AT} stdout P {'x' * 8000}\n".encode()
    assembler = cri.Assembler()
    longest = 0
    for _ in range(400):
        for line in assembler.feed(piece):
            longest = max(longest, len(line.text))
    assert cri.LONGEST_LINE < longest < cri.LONGEST_LINE + 9000


@given(st.lists(TEXT, max_size=20), st.integers(1, 50))
def test_what_is_written_is_read_however_it_is_cut(texts: list[str], pieces: int) -> None:
    data = b"".join(cri.line(text, at=AT) for text in texts)
    flat = [piece for text in texts for piece in (text.splitlines() or [""])]
    assert [text for _, text in read(data, pieces=pieces)] == flat


@given(st.binary(max_size=200), st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_the_shims_lines_hold_all_output(output: bytes, sizes: list[int]) -> None:
    output = output.replace(b"\r", b"")
    rest, written = output, b""
    for size in sizes:
        block, rest = rest[:size], rest[size:]
        written += shim.lines(block) if block else b""
    written += shim.lines(rest) if rest else b""
    texts = [text for _, text in read(written)]
    assert "\n".join(texts) == output.removesuffix(b"\n").decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("end", "texts"),
    [
        ("", ["next"]),
        (f"{AT} stdout F whole\n", ["whole", "next"]),
        (f"{AT} stdout F cut", ["cut", "next"]),
        (f"{AT} stdout P open\n", ["open", "next"]),
        (f"{AT} stdout P open\n{AT} stderr F x\n", ["x", "open", "next"]),
        (f"{AT} stdout P open\n{AT} stdout F closed\n", ["openclosed", "next"]),
        (f"{AT} stdout P a\n{AT} stderr P b\n", ["a", "b", "next"]),
        (f"{AT} stdout P open and cu", ["open and cu", "next"]),
    ],
)
def test_other_lines_can_follow_whatever_the_end(end: str, texts: list[str]) -> None:
    data = end.encode()
    assert [text for _, text in read(data + cri.unfinished(data) + cri.line("next"))] == texts


@given(st.lists(st.tuples(st.sampled_from("FP"), TEXT), max_size=30), st.integers(1, 40))
def test_the_tail_is_the_end_of_the_whole(rows: list[tuple[str, str]], count: int) -> None:
    data = b"".join(f"{AT} stdout {tag} {text}\n".encode() for tag, text in rows)
    whole = [text for _, text in read(data)]
    place = cri.start_of_tail(data, count)
    tail = [text for _, text in read(data[place or 0 :])]
    assert tail == whole[-count:]
    if place is None:
        assert len(whole) <= count


def test_docker_prints_times_within_long_lines() -> None:
    at = b"2026-11-23T20:56:23.980821233Z "
    assert joined(b"short") == b"short"
    assert joined(b"a" * 16384 + at + b"b" * 16384 + at + b"c") == b"a" * 16384 + b"b" * 16384 + b"c"
    assert joined(b"a" * 20000) == b"a" * 20000
