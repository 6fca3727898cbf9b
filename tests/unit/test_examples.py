"""The examples are whole: each FDL file is taken without a warning, each script is named and is a shell script."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from oscar.model.fdl import parse_fdl, to_request

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_fdl(file: Path) -> None:
    used: list[Path] = []

    def read_script(name: str) -> str:
        used.append(file.parent / name)
        return used[-1].read_text()

    declared = parse_fdl(file.read_text(), read_script=read_script)
    assert declared
    for one in declared:
        assert one.cluster_id == "local"
        assert to_request(one).warnings == ()
    assert set(used) == set(file.parent.glob("*.sh"))


@pytest.mark.parametrize("script", sorted(EXAMPLES.rglob("*.sh")), ids=lambda script: script.stem)
def test_scripts(script: Path) -> None:
    assert script.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["/bin/sh", "-n", str(script)], check=True)


def test_each_is_in_the_index() -> None:
    index = (EXAMPLES / "README.md").read_text()
    names = {file.parent.name for file in FILES} | {file.name for file in EXAMPLES.glob("*.py")}
    assert {name for name in names if f"]({name})" not in index} == set()
