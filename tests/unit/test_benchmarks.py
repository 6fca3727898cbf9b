"""The benchmark's command line, and its arithmetic; the parts themselves are run by hand (docs/testing.md)."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import PARTS, arguments
from benchmarks.figures import row, share
from benchmarks.intake import mean_rate


def test_all_parts_without_arguments() -> None:
    given = arguments([])
    assert given.parts == list(PARTS)
    assert {"sync", "intake", "burst", "event", "lists", "s3", "start"} <= set(given.parts)
    assert given.quick is False


def test_parts_keep_their_order_and_come_once() -> None:
    given = arguments(["--quick", "start", "sync", "start"])
    assert given.parts == ["start", "sync"]
    assert given.quick is True


def test_an_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments(["sync", "speed"])
    assert ended.value.code == 2
    assert "no such part: speed; there are sync, " in capsys.readouterr().err


def test_rows() -> None:
    assert row("a", 3.14159, "ms", 2) == {
        "name": "a",
        "value": 3.142,
        "unit": "ms",
        "floor": 2,
        "ratio": 1.57,
    }
    assert row("a", 1, "ms") == {"name": "a", "value": 1, "unit": "ms", "floor": None, "ratio": None}


def test_shares() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert (share(values, 0.5), share(values, 0.99), share(values, 1)) == (51, 100, 100)


def test_a_rate_over_turns_is_that_of_all_calls_together() -> None:
    # 100 calls in one second, 100 calls in two.
    assert mean_rate([100, 50]) == pytest.approx(200 / 3)
