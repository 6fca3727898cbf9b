"""The folder that a warm worker shares with its sandbox, without a sandbox: variables, clean-up, kept output."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oscar.compute.crew import Limits
from oscar.compute.crews import bounds_of
from oscar.compute.local.processes import Processes
from oscar.compute.local.workers import kit_of
from oscar.compute.local.workfolder import Kit, WorkFolder
from oscar.errors import InvalidField, StorageError
from oscar.model.service import Environment, Service
from oscar.model.serving import Synchronous
from oscar.supervisor.warm import Capture
from oscar.supervisor.workfolder import exports

values = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200) | st.binary(
    max_size=200
).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))


@pytest.fixture
def folder(tmp_path: Path) -> WorkFolder:
    made = WorkFolder(Processes(tmp_path / "engine", installation="test"), tmp_path / "worker")
    made.furnish(Kit(image="", script="echo", config="name: x\n", env={"SET": "by the service"}))
    return made


def env(folder: WorkFolder) -> bytes:
    return (folder.work / "env").read_bytes()


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
@given(variables=st.dictionaries(st.sampled_from(["A", "B_2", "_c", "LONGER"]), values, min_size=1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_survives_any_shell(shell: str, tmp_path: Path, variables: dict[str, str]) -> None:
    if not shutil.which(shell.split(maxsplit=1)[0]):
        pytest.skip(f"there is no {shell} here")
    file = tmp_path / "env"
    file.write_bytes(exports(variables) + b"\n\n\n")
    names = list(variables)
    script = f'. "{file}"; exec /usr/bin/env printf "%s\\1" ' + " ".join(f'"${name}"' for name in names)
    said = subprocess.run([*shell.split(), "-c", script], capture_output=True, check=True, env={})
    assert said.stdout.split(b"\1")[:-1] == [os.fsencode(variables[name]) for name in names] or any(
        "\1" in value for value in variables.values()
    )


def test_variables_are_overwritten_and_wiped(folder: WorkFolder) -> None:
    folder.write_env({"A": "x" * 1000, "B": "secret"})
    folder.write_env({"A": "short"})
    assert env(folder).strip() == b"unset B\nexport A='short'"
    assert folder.tidy() is True
    assert env(folder).strip() == b""
    folder.write_env({"A": "y" * 100_000})
    assert folder.tidy() is True
    assert env(folder) == b""


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
def test_a_shell_that_goes_on_has_no_variable_of_the_request_before(
    shell: str, folder: WorkFolder, tmp_path: Path
) -> None:
    if not shutil.which(shell.split(maxsplit=1)[0]):
        pytest.skip(f"there is no {shell} here")
    script = f'while read -r word; do . "{folder.work}/env"; echo "$A|$B|$SET|${{B-unset}}"; done'
    with subprocess.Popen(
        [*shell.split(), "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"SET": "by the service"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = []
        for variables in ({"A": "1", "B": "2"}, {"A": "it's 3", "SET": "otherwise"}, {"B": ""}, {}):
            folder.write_env(variables)
            process.stdin.write("go\n")
            process.stdin.flush()
            said.append(process.stdout.readline().strip())
            folder.tidy()
        process.stdin.close()
    assert said == [
        "1|2|by the service|2",
        "it's 3||otherwise|unset",
        "||by the service|",
        "||by the service|unset",
    ]


@pytest.mark.parametrize(
    "variables", [{"A B": "x"}, {"A": "nul\0"}, {"A": "x" * 131_072}, {"$(id)": "x"}, {"A;id": "x"}]
)
def test_variables_that_no_program_can_be_given(folder: WorkFolder, variables: dict[str, str]) -> None:
    for _ in range(2):
        with pytest.raises(InvalidField):
            folder.write_env(variables)
        folder.write_env({"A": "fine"})


def test_a_link_with_the_number_of_a_folder_is_not_that_folder(folder: WorkFolder, tmp_path: Path) -> None:
    """File systems give an inode number again at once; what lies behind the link must stay."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("precious")
    number = (folder.work / "in").lstat().st_ino
    (folder.work / "in").rmdir()
    for attempt in range(100):
        link = folder.work / f"try{attempt}"
        link.symlink_to(tmp_path / "precious")
        if link.lstat().st_ino == number:
            break
    link.rename(folder.work / "in")
    assert not folder.holds("in")
    assert folder.tidy() is False
    assert (tmp_path / "precious" / "file").read_text() == "precious"


def test_tidy(folder: WorkFolder) -> None:
    folder.put("in/file", b"input")
    folder.put("event", b"payload")
    (folder.work / "out" / "link").symlink_to("/")
    os.mkfifo(folder.work / "out" / "fifo")
    assert folder.has_output()
    assert folder.tidy() is True
    assert not folder.has_output()
    assert not (folder.work / "event").exists()
    (folder.work / "out").rmdir()
    assert not folder.has_output()
    assert folder.tidy() is True, "a script may remove the folder"
    assert folder.holds("out")
    (folder.work / "in" / "deep").mkdir()
    assert folder.tidy() is None
    (folder.work / "in").chmod(0o700)
    assert not folder.holds("in"), "others than its user could not write there any more"
    assert folder.tidy() is None
    assert asyncio.run(folder.tidy_all())
    assert folder.holds("in")
    assert list((folder.work / "in").iterdir()) == []
    (folder.work / "in").rmdir()
    (folder.work / "out" / "deep" / "er").mkdir(parents=True)
    assert asyncio.run(folder.tidy_all())
    (folder.work / "in").rmdir()
    (folder.work / "in").symlink_to("/")
    assert not asyncio.run(folder.tidy_all())


def test_input_is_never_written_over_something(folder: WorkFolder, tmp_path: Path) -> None:
    (folder.work / "in" / "file").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        folder.put("in/file", b"input")
    assert not (tmp_path / "elsewhere").exists()


def test_only_a_single_small_file_is_small_output(folder: WorkFolder) -> None:
    out = folder.work / "out"
    (out / "one").write_bytes(b"1234")
    assert folder.only_small_output(4) == b"1234"
    assert folder.only_small_output(3) is None
    (out / "two").write_bytes(b"")
    assert folder.only_small_output(4) is None
    (out / "one").unlink()
    (out / "two").unlink()
    (out / "link").symlink_to("/etc/hostname")
    assert folder.only_small_output(1000) is None


@given(st.lists(st.binary(max_size=50), max_size=60), st.integers(2, 200))
def test_output_is_kept_whole_or_by_its_ends(pieces: list[bytes], limit: int) -> None:
    capture = Capture(limit)
    for piece in pieces:
        capture.add(piece)
    whole, kept, half = b"".join(pieces), capture.take(), limit // 2
    if len(whole) <= 2 * half:
        assert kept == whole
    else:
        lost = len(whole) - 2 * half
        assert kept == whole[:half] + b"\n[... %d bytes left out ...]\n" % lost + whole[-half:]
    assert capture.take() == b""


def test_a_kit_shows_no_secret_and_knows_every_change() -> None:
    service = Service(
        name="hello",
        image="i",
        script="s",
        token="t0ken",
        environment=Environment(variables={"A": "1"}, secrets={"B": "s3cret"}),
        synchronous=Synchronous(min_scale=1),
    )
    kit = kit_of(service)
    assert kit.env["B"] == "s3cret"
    assert "s3cret" not in kit.config + repr(kit)
    assert "t0ken" not in kit.config + repr(kit)
    assert kit == kit_of(service.model_copy())
    for change in ({"script": "other"}, {"memory": "1Gi"}, {"image": "j"}, {"isolation_level": "USER"}):
        assert kit != kit_of(service.model_copy(update=change))
    bounds = bounds_of(service, Limits(queue=7, idle=9), cores=3)
    assert (bounds.least, bounds.most, bounds.queue, bounds.idle, bounds.cores) == (1, 0, 7, 9, 3)
