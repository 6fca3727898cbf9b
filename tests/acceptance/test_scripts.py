"""The scripts on machines that lack something: what they say, and what they do not do twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A PATH with the tools of a small machine, no Python, and nobody's rights: `id -u` says 1000."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cat", "grep", "head", "mkdir", "rm", "tail", "id", "flock"):
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    (folder / "id").unlink()
    program(folder, "id", "echo 1000")
    return folder


def shell(machine: Path, where: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder after the shell has taken in `scripts/setup`."""
    environment = {"PATH": str(machine), "HOME": str(machine.parent)}
    return subprocess.run(
        ["/bin/sh", "-euc", f". {ROOT}/scripts/setup\n{script}"],
        check=False,
        capture_output=True,
        text=True,
        cwd=where,
        env=environment,
    )


def test_no_python_new_enough_is_said_in_one_line(machine: Path) -> None:
    program(machine, "python3", "exit 1")
    done = shell(machine, machine, "find_python")
    assert done.returncode == 1
    assert done.stderr == "Python 3.11 or newer is needed; no python3 on PATH is that new.\n"


def test_python_without_venv_names_the_package(machine: Path) -> None:
    program(machine, "python3", 'case "$2" in *ensurepip*) exit 1;; *print*) echo python3.12-venv;; esac')
    done = shell(machine, machine, "find_python")
    assert done.returncode == 1
    assert done.stderr == (
        "python3 can't make virtual environments: install the package python3.12-venv (or python3-venv).\n"
    )


def test_a_stand_in_whose_python_is_gone_is_passed_over(machine: Path) -> None:
    program(machine, "python3.13", "echo 'no such version' >&2; exit 127")
    (machine / "python3.12").symlink_to(sys.executable)
    done = shell(machine, machine, 'find_python; echo "$PYTHON"')
    assert done.stdout == "python3.12\n", done.stderr


def test_missing_programs_are_named_to_who_is_not_root(machine: Path) -> None:
    done = shell(machine, machine, "need sh:dash no-such-program:no-such-package")
    assert done.returncode == 0
    assert done.stderr == "not installed, what needs them is skipped: no-such-package\n"


@pytest.fixture
def made(tmp_path: Path, machine: Path) -> Path:
    """A tree whose `.venv` is said to be made for what lies there; it has a Python, no packages and no uv."""
    tree = tmp_path / "tree"
    (tree / ".venv" / "bin").mkdir(parents=True)
    for name in ("uv.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    (tree / ".venv" / "bin" / "python").symlink_to(sys.executable)
    done = shell(machine, tree, 'echo "$(venv_key) main" >.venv/made-for')
    assert done.returncode == 0, done.stderr
    return tree


def test_what_is_made_is_not_made_again(machine: Path, made: Path) -> None:
    # There is neither a Python on PATH nor uv here: any attempt to make something fails.
    done = shell(machine, made, "setup_python main")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["uv.lock", "pyproject.toml"])
def test_a_changed_lock_is_seen(machine: Path, made: Path, name: str) -> None:
    with (made / name).open("a") as file:
        file.write("\n")
    done = shell(machine, made, "venv_is main")
    assert done.returncode == 1


def test_an_environment_for_the_demo_will_not_do_for_tests(machine: Path, made: Path) -> None:
    assert shell(machine, made, "venv_is main").returncode == 0
    assert shell(machine, made, "venv_is dev").returncode == 1


def test_an_environment_that_was_moved_is_seen(machine: Path, made: Path) -> None:
    moved = made.rename(made.with_name("elsewhere"))
    assert shell(machine, moved, "venv_is main").returncode == 1


SKIPPING = """
import pytest

def test_skips():
    pytest.skip({reason!r})
"""


@pytest.mark.parametrize(
    ("reason", "ci", "code"),
    [
        ("because", "true", 1),
        ("because", "false", 0),
        ("docker does not work here: no daemon", "true", 0),
    ],
)
def test_a_skip_that_is_not_listed_fails_ci(tmp_path: Path, reason: str, ci: str, code: int) -> None:
    file = tmp_path / "test_skipping.py"
    file.write_text(SKIPPING.format(reason=reason))
    environment = {key: value for key, value in os.environ.items() if key != "OSCAR_TEST_REAL"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(file)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"CI": ci, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == code, done.stdout
    assert ("tests/skips.txt does not allow" in done.stdout) == (reason == "because")
