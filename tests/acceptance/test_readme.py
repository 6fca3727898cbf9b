"""What the README tells people to type works, as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from oscar.demo.picture import draw
from tests.server import Server

ROOT = Path(__file__).parents[2]


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what the README's commands expect to find, and `oscar` on PATH."""
    (tmp_path / "picture.png").write_bytes(draw(640, 480))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "README.md").symlink_to(ROOT / "README.md")
    program = tmp_path / "bin" / "oscar"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m oscar "$@"\n')
    program.chmod(0o755)
    return tmp_path


def test_the_quick_start(server: Server, folder: Path) -> None:
    (block,) = [block for block in blocks("bash") if "oscar apply" in block]
    assert block.startswith(". .venv/bin/activate\n")
    done = subprocess.run(
        ["/bin/sh", "-eux", "-c", block.partition("\n")[2]],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ
        | {
            "HOME": str(folder),
            "OSCAR_DATA": str(server.data),
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "small.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "mean_colour" in done.stdout


def test_the_python_block(server: Server, folder: Path) -> None:
    (block,) = blocks("python")
    program = block.replace("http://127.0.0.1:8080", server.endpoint).replace(
        '"secret"', repr(server.password)
    )
    assert program != block
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["b'2\\n'", "Succeeded"]
