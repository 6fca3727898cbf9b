"""The examples on the real server, called as their comments say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server import Server

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(server: Server, tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OSCAR_", "MINIO_"))}
    return kept | {"HOME": str(tmp_path), "OSCAR_DATA": str(server.data)}


def oscar(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "oscar", *words],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=90,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def test_words(environment: dict[str, str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be\n")
    oscar(environment, "apply", "examples/words/words.yaml")
    counted = [line.split() for line in oscar(environment, "run", "words", "-f", str(text)).splitlines()]
    assert sorted(counted[:2]) == [["2", "be"], ["2", "to"]]
    assert sorted(counted[2:]) == [["1", "not"], ["1", "or"]]
    oscar(environment, "put", str(text), "words/in/text.txt")
    assert "text.txt has 4 different words" in oscar(environment, "logs", "-f", "words")
    assert "2 be" in oscar(environment, "get", "words/out/text.count", "-")
    oscar(environment, "job", "submit", "words", "-f", str(text), "--wait")
    oscar(environment, "delete", "--data", "words")


def test_workflow(environment: dict[str, str], tmp_path: Path) -> None:
    book = tmp_path / "book.md"
    book.write_text("# One\nfirst\n# Two\nsecond\n")
    oscar(environment, "apply", "examples/workflow/workflow.yaml")
    oscar(environment, "put", str(book), "book/in/book.md")
    oscar(environment, "logs", "-f", "split")
    # The jobs of the second service exist as soon as the first one's outputs are stored.
    jobs = [line.split()[0] for line in oscar(environment, "job", "list", "title").splitlines()[1:]]
    assert len(jobs) == 2
    for job in jobs:
        oscar(environment, "job", "wait", "title", job)
    assert oscar(environment, "get", "book/titles/book-01.title", "-") == "ONE\n"
    assert oscar(environment, "get", "book/titles/book-02.title", "-") == "TWO\n"
    assert oscar(environment, "get", "book/logs/book.log", "-").strip() == "2"
    oscar(environment, "delete", "--data", "split", "title")


def test_python_client(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "examples/client.py"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "ylsuonorhcnys"
    assert "reversed text.txt" in done.stdout
    assert "Succeeded" in done.stdout
    assert "daolpu na yb" in done.stdout
