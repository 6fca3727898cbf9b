"""Folders that scripts wrote into: however deep, closed or linked, they go; and nothing else goes with them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oscar.compute.local.records import RunFolder
from oscar.supervisor.trees import empty_tree, make_readable, owners, remove_tree

DEEP = 1200
"""Folders in one another: more than Python recurses, and a path longer than any call takes."""
DIG = f"""
import os
for _ in range({DEEP}):
    os.mkdir("d" * 20)
    os.chdir("d" * 20)
    open("file", "w").close()
os.mkdir("closed", 0o0)
"""


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder with folders in one another."""
    tree = tmp_path / "tree"
    tree.mkdir()
    subprocess.run([sys.executable, "-c", DIG], cwd=tree, check=True)
    yield tree
    # What a failing test leaves, pytest could not remove either.
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_deep_tree_is_removed(deep: Path) -> None:
    before = descriptors()
    remove_tree(deep)
    assert not deep.exists()
    assert descriptors() == before


def test_a_deep_tree_is_looked_through_and_emptied(deep: Path) -> None:
    before = descriptors()
    make_readable(deep)
    assert owners(deep) == {os.geteuid()}
    assert descriptors() == before
    empty_tree(deep)
    assert list(deep.iterdir()) == []


def test_a_run_that_left_a_deep_tree_is_forgotten(deep: Path) -> None:
    place = RunFolder(deep.with_name("run"))
    place.path.mkdir()
    deep.rename(place.work)
    remove_tree(place.leave())
    assert list(place.path.parent.iterdir()) == []


def test_links_lead_nowhere(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    mode = precious.stat().st_mode
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "link").symlink_to(precious)
    (tree / "link").symlink_to(precious)
    (tree / "file").symlink_to(precious / "file")
    os.mkfifo(tree / "fifo")
    make_readable(tree)
    assert owners(tree) == {os.geteuid()}
    remove_tree(tree)
    assert not tree.exists()
    assert (precious / "file").read_text() == "precious"
    assert precious.stat().st_mode == mode
    link = tmp_path / "link"
    link.symlink_to(precious)
    remove_tree(link)
    assert not link.is_symlink()
    assert (precious / "file").read_text() == "precious"
    with pytest.raises(NotADirectoryError):
        empty_tree(tmp_path / "precious" / "file")


def test_files_and_nothing_are_removed_as_well(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remove_tree(tmp_path / "file")
    remove_tree(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_what_a_script_closed_is_readable_again(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("text")
    (tmp_path / "a" / "b" / "file").chmod(0)
    (tmp_path / "a" / "b").chmod(0)
    (tmp_path / "a").chmod(0)
    make_readable(tmp_path)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o700 == 0o700
    assert (tmp_path / "a" / "b" / "file").stat().st_mode & 0o600 == 0o600


def test_closed_folders_are_removed(tmp_path: Path) -> None:
    inner = tmp_path / "tree" / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    for folder in (inner, inner.parent, tmp_path / "tree"):
        folder.chmod(0)
    remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_several_may_remove_it_at_once(tmp_path: Path) -> None:
    for number in range(20):
        tree = tmp_path / str(number)
        for a in range(10):
            for b in range(10):
                (tree / f"a{a}" / f"b{b}").mkdir(parents=True)
                (tree / f"a{a}" / f"b{b}" / "file").touch()
        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(remove_tree, tree) for _ in range(4)]:
                done.result()
        assert not tree.exists()
