"""What `oscar doctor` makes of what it found out about engines (with the engines: tests/contract)."""

from __future__ import annotations

import pytest

from oscar.compute.local.detect import Trial
from oscar.compute.local.engine import Facts
from oscar.core.doctor import gpus


def trial(name: str, *, works: bool = True, gpu: bool = False) -> Trial:
    return Trial(name, works, name, Facts("1", gpu=("--gpus", "all") if gpu else ()))


PODMAN, PODMAN_GPU = trial("podman"), trial("podman", gpu=True)
PROCESS, PROCESS_GPU = trial("process"), trial("process", gpu=True)
BROKEN = trial("podman", works=False)


@pytest.mark.parametrize(
    ("trials", "wanted", "there", "level", "words"),
    [
        ([PODMAN, PROCESS], "auto", 0, "ok", "none here"),
        ([PODMAN_GPU, PROCESS_GPU], "auto", 2, "ok", "2 of NVIDIA's, given to runs by podman, process"),
        ([PODMAN, PROCESS_GPU], "auto", 1, "warning", "1 of NVIDIA's, which podman can't give to runs"),
        ([PODMAN, PROCESS_GPU], "process", 1, "ok", "given to runs by process"),
        ([PODMAN_GPU, PROCESS], "process", 1, "warning", "which process can't give to runs"),
        ([BROKEN, PROCESS_GPU], "auto", 1, "ok", "given to runs by process"),
        ([BROKEN], "auto", 1, "ok", "given to runs by no engine"),
    ],
)
def test_what_is_said_of_gpus(trials: list[Trial], wanted: str, there: int, level: str, words: str) -> None:
    found = gpus(trials, wanted, there)
    assert (found.topic, found.level) == ("GPU", level)
    assert words in found.words
    assert bool(found.fix) == (level == "warning")
