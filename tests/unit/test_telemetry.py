"""The server's own log."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator

import pytest
import structlog

from oscar import telemetry
from oscar.cli.main import run


@pytest.fixture
def kept() -> Iterator[None]:
    """What is configured here is for this test alone."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_an_application_of_other_tests_does_not_write_among_what_a_test_captures(
    capfd: pytest.CaptureFixture[str], logged: Callable[[], str]
) -> None:
    other = threading.Thread(target=telemetry.get("dispatcher").warning, args=("lease lost",))
    other.start()
    assert run(["nothing"]) == 2
    other.join()
    said = capfd.readouterr()
    assert said.out == ""
    assert "lease" not in said.err
    assert "lease lost" in logged()


@pytest.mark.usefixtures("kept")
def test_lines_go_where_they_are_sent_without_secrets() -> None:
    file = io.StringIO()
    telemetry.configure(level="warning", json=True, to=file)
    log = telemetry.get("part")
    log.info("unimportant")
    log.warning("seen", password="hidden words", other=1)
    said = file.getvalue()
    assert '"part": "part"' in said
    assert "unimportant" not in said
    assert "hidden words" not in said
