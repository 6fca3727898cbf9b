"""Kubernetes quantities: exact, with errors that name field and fix."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oscar.errors import InvalidField
from oscar.model.resources import format_cpu, format_memory, parse_cpu, parse_memory


@pytest.mark.parametrize(
    ("text", "millicores"),
    [
        ("0.2", 200),
        ("1.0", 1000),
        ("2", 2000),
        ("500m", 500),
        (" 1 ", 1000),
        (".5", 500),
        ("1.", 1000),
        ("1e1", 10000),
        ("1k", 1_000_000),
        ("0.0001", 1),  # rounded up, as Kubernetes does
        ("1u", 1),
        ("0", 0),
        ("-0", 0),
    ],
)
def test_cpu(text: str, millicores: int) -> None:
    assert parse_cpu(text) == millicores


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256Mi", 256 * 1024**2),
        ("1Gi", 1024**3),
        ("1.5Gi", 3 * 512 * 1024**2),
        ("1G", 10**9),
        ("500M", 5 * 10**8),
        ("1k", 1000),
        ("128974848", 128974848),
        ("129e6", 129_000_000),
        ("12E", 12 * 10**18 if 12 * 10**18 < 2**63 else 0),
        ("1E3", 1000),
        ("1500m", 2),
        ("0.1Ki", 103),
    ],
)
def test_memory(text: str, size: int) -> None:
    if text == "12E":
        with pytest.raises(InvalidField, match="too large"):
            parse_memory(text)
    else:
        assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["abc", "", "Mi", "1 Gi", "1gi", "1GiB", "0x10", "1e", "--1", "NaN", "inf", "1,5", "٣", "9" * 100]
)
def test_not_a_quantity(text: str) -> None:
    with pytest.raises(InvalidField, match="is not a quantity") as caught:
        parse_memory(text, field="memory")
    assert caught.value.field == "memory"
    assert "256Mi" in str(caught.value.fix)


@pytest.mark.parametrize("text", ["-1", "-1Mi"])
def test_negative(text: str) -> None:
    with pytest.raises(InvalidField, match="negative") as caught:
        parse_cpu(text, field="cpu")
    assert caught.value.field == "cpu"


@pytest.mark.parametrize("text", ["9Ei", "1e30", "9223372036854775808"])
def test_too_large(text: str) -> None:
    with pytest.raises(InvalidField, match="too large"):
        parse_memory(text)


@given(number=st.integers(0, 10**6), suffix=st.sampled_from(["", "k", "M", "G", "Ki", "Mi", "Gi"]))
def test_whole_numbers_are_exact(number: int, suffix: str) -> None:
    powers = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    assert parse_memory(f"{number}{suffix}") == number * powers[suffix]


@given(st.decimals(0, 10**6, places=9))
def test_fractions_round_up(value: object) -> None:
    exact = Fraction(str(value)) * 1000
    cpu = parse_cpu(format(value, "f"))
    assert cpu - 1 < exact <= cpu


@given(st.integers(0, 2**60))
def test_formats_parse_back(number: int) -> None:
    assert parse_memory(format_memory(number)) == number
    assert parse_cpu(format_cpu(number // 1000)) == number // 1000


def test_formats_are_short() -> None:
    assert format_memory(256 * 1024**2) == "256Mi"
    assert format_memory(1000) == "1000"
    assert format_cpu(2000) == "2"
    assert format_cpu(1500) == "1500m"
