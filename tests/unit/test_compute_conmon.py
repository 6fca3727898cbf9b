"""What conmon leaves about a container's end, read without podman."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from oscar.compute.local import conmon

NUMBER = "c1014a35279f7489"


def test_the_code_and_the_time_of_an_end(tmp_path: Path) -> None:
    async def check() -> None:
        waiting = asyncio.ensure_future(conmon.end_in(tmp_path, NUMBER))
        await asyncio.sleep(0)
        draft = tmp_path / "draft"
        draft.write_text("137")
        draft.rename(tmp_path / NUMBER)
        ended = await waiting
        assert ended
        assert ended.code == 137
        assert ended.finished == int((tmp_path / NUMBER).stat().st_mtime * 1000)

    asyncio.run(check())


@pytest.mark.parametrize("words", [None, "", "nonsense"])
def test_no_word_is_no_end(tmp_path: Path, words: str | None) -> None:
    if words is not None:
        (tmp_path / NUMBER).write_text(words)
    assert asyncio.run(conmon.end_in(tmp_path, NUMBER)) is None


@pytest.mark.parametrize(("number", "found"), [(NUMBER, True), ("another", False)])
def test_the_folder_is_among_the_keepers_arguments(number: str, found: bool, tmp_path: Path) -> None:
    # A process with such arguments, and a child of it.
    script = 'sleep 600 & echo $!; read -r _; kill "$!"'
    keeper = subprocess.Popen(
        ["/bin/sh", "-c", script, "keeper", "-c", NUMBER, "--exit-dir", str(tmp_path), "--full-attach"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert keeper.stdout
        child = int(keeper.stdout.readline())
        assert conmon.exits_of(child, number) == (tmp_path if found else None)
    finally:
        keeper.communicate("\n")


def test_a_process_that_is_gone_has_no_keeper() -> None:
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    assert conmon.exits_of(gone.pid, NUMBER) is None
