"""`./scripts/demo` as its user sees it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests import computing
from tests.cluster.cluster import Cluster, until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "thumbnail" / "thumbnail.sh"


def test_the_picture_is_a_png_and_always_the_same() -> None:
    from oscar.demo.picture import draw

    small = draw(160, 120)
    assert small == draw(160, 120)
    assert small != draw(160, 120, seed=8)
    assert small[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", small[16:24]) == (160, 120)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (321, 200), (7, 900), (1, 1)])
def test_the_script_needs_only_python(tmp_path: Path, width: int, height: int) -> None:
    from oscar.demo.picture import draw

    source, output = tmp_path / "a picture.png", tmp_path / "out"
    source.write_bytes(draw(width, height))
    output.mkdir()
    # This Python, which has no Pillow, is the only one on PATH.
    (tmp_path / "python3").symlink_to(sys.executable)
    done = subprocess.run(
        ["/bin/sh", str(SCRIPT)],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path), "INPUT_FILE_PATH": str(source), "TMP_OUTPUT_DIR": str(output)},
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in output.iterdir()) == ["a picture.json", "a picture.png"]
    small = (output / "a picture.png").read_bytes()
    made = struct.unpack(">II", small[16:24])
    assert max(made) <= 320
    assert f"[{made[0]}, {made[1]}]" in done.stdout


@pytest.mark.timeout(300)
def test_the_demo_shows_log_output_and_times(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "oscar", "demo", "--output", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/docs" in done.stdout
    assert "mean_colour" in done.stdout
    assert "upload to output" in done.stdout
    outputs = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json"))
    assert "process/mountains.json" in outputs


@pytest.mark.real
@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_demo_in_pods_leaves_nothing_behind(kubernetes: Cluster, tmp_path: Path) -> None:
    more = {
        "KUBECONFIG": str(kubernetes.kubeconfig),
        "OSCAR_IMAGE": computing.SERVER_IMAGE,
        "OSCAR_HOST": kubernetes.host,
    }
    done = subprocess.run(
        [str(ROOT / "scripts" / "demo"), "--engine", "kubernetes", "--output", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"} | more,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "upload to output" in done.stdout
    assert (tmp_path / "kubernetes" / "mountains.json").exists()
    until(lambda: "oscar-demo-" not in kubernetes.kubectl("get", "namespaces", "-o", "name"), "it is gone")


def test_the_demo_in_pods_says_what_it_needs() -> None:
    for more, words in (
        ({"OSCAR_IMAGE": ""}, "OSCAR_IMAGE"),
        ({"OSCAR_IMAGE": "some/image", "OSCAR_HOST": "127.0.0.1"}, "OSCAR_HOST"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "oscar", "demo", "--engine", "kubernetes"],
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | more,
        )
        assert done.returncode != 0
        assert words in done.stderr
