"""The command line by itself: words, files, exit codes, what is printed (with a server: tests/acceptance)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import oscar
from oscar.cli import files, output, program
from oscar.cli.main import PARTS, run
from oscar.cli.services import payload
from oscar.errors import Misuse
from oscar.model.provider import OWN_STORE, ProviderRef, ProviderType


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home without clusters, and a server of this machine that does not answer."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OSCAR_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        facts = {"endpoint": endpoint, "user": "u", "password": "p"}
        (tmp_path / "data" / "client.json").write_text(json.dumps(facts))
        yield


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == oscar.__version__


@pytest.mark.parametrize("words", [[], ["job"], ["job", "list"], ["nothing"], ["ls", "--nothing"]])
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Usage:" in said.err


def test_wrong_words_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["job", "list", "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["code"] == "usage"


@pytest.mark.parametrize(
    "words",
    [
        ["service", "list"],
        ["service", "get", "a"],
        ["service", "remove", "a"],
        ["delete", "a"],
        ["run", "a", "-i", "x"],
        ["job", "submit", "a"],
        ["job", "list", "a"],
        ["job", "status", "a", "j"],
        ["job", "wait", "a", "j"],
        ["job", "cancel", "a", "j"],
        ["job", "rerun", "a", "j"],
        ["job", "remove", "a", "j"],
        ["logs", "a"],
        ["logs", "-f", "a", "j"],
        ["service", "logs", "get", "a", "j"],
        ["bucket", "list"],
        ["bucket", "create", "b"],
        ["bucket", "get", "b"],
        ["bucket", "update", "b", "-v", "public"],
        ["bucket", "delete", "b"],
        ["bucket", "presign", "b/k"],
        ["ls"],
        ["ls", "b"],
        ["get", "b/k"],
        ["rm", "b/k"],
        ["service", "list-files", "a"],
        ["service", "get-file", "a", "b/k"],
        ["cluster", "info"],
        ["cluster", "status"],
    ],
    ids=" ".join,
)
def test_no_server(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 4
    said = capsys.readouterr()
    assert "can't be reached" in said.err
    assert said.out == ""


def test_no_server_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["service", "list", "--json"]) == 4
    assert json.loads(capsys.readouterr().err)["code"] == "unreachable"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["service", "list", "-c", "nobody"], "is not known"),
        (["apply", "absent.yaml"], "absent.yaml"),
        (["put", "absent.png", "b/k"], "no file absent.png"),
        (["put", ".", "b/k"], "give -r"),
        (["get", "b/"], "give -r"),
        (["get", "/"], "no bucket"),
        (["rm", "b"], "give -r"),
        (["run", "a", "-f", "x", "-i", "y"], "not both"),
        (["run", "a", "-f", "absent.bin"], "absent.bin"),
        (["run", "a", "-e", "http://x"], "--token"),
        (["job", "list", "a", "-s", "Done"], "no such status: done"),
        (["job", "remove", "a"], "--succeeded"),
        (["job", "remove", "a", "j", "--all"], "--succeeded"),
        (["logs", "a", "j", "--latest"], "not both"),
        (["bucket", "presign", "b"], "BUCKET/KEY"),
        (["bucket", "presign", "b/k", "--expires", "soon"], "--expires"),
        (["service", "put-file", "a", "minio"], "LOCAL_FILE"),
        (["cluster", "remove", "a"], "is not in"),
        (["cluster", "default"], "no default"),
        (["serve", "--port", "99999"], "port"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_misuse(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    assert said in capsys.readouterr().err


def apply(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    file = tmp_path / "fdl.yaml"
    file.write_text(text)
    code = run(["apply", str(file), *options])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("functions: [", "Broken YAML at line 1, column 13"),
        ("functions: {}\n", "functions.oscar"),
        ("name: a\nimage: b\nscript: gone.sh\n", "script gone.sh: No such file"),
        ("name: a\nimage: b\nmemory: abc\n", 'memory: "abc" is not a quantity'),
        ("functions: {oscar: [{here: {name: A, image: b}}]}\n", "functions.oscar[0].here.name"),
    ],
)
def test_apply_of_wrong_files(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = apply(tmp_path, text, capsys)
    assert code == 2
    assert said in err


FDL = "functions: {oscar: [{here: {name: a, image: b}}, {there: {name: a, image: b}}]}\n"


def test_apply_to_unknown_clusters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("oscar: {here: {endpoint: 'http://here'}}\n")
    code, err = apply(tmp_path, FDL, capsys, "--config", str(config))
    assert code == 2
    assert 'functions.oscar[1].there: the cluster "there" is not known (known: here)' in err


def test_apply_without_clusters_goes_to_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = apply(tmp_path, FDL, capsys)
    assert code == 4
    assert "127.0.0.1" in err


def test_scripts_keep_their_text(tmp_path: Path) -> None:
    from oscar.cli.services import _declared

    (tmp_path / "run.sh").write_bytes(b"#!/bin/sh\r\nprintf 'a\rb'\r\n")
    file = tmp_path / "one.yaml"
    file.write_text("name: a\nimage: b\nscript: run.sh\n")
    [declared] = _declared(file)
    assert declared.definition["script"] == "#!/bin/sh\nprintf 'a\rb'\n"
    (tmp_path / "run.sh").write_bytes(b"\xff")
    with pytest.raises(Misuse, match="UTF-8"):
        _declared(file)


def test_payloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    (tmp_path / "x").write_bytes(b"\x00\xff")
    assert payload(str(tmp_path / "x"), None) == b"\x00\xff"
    assert payload(None, "ä") == "ä".encode()
    assert payload(None, "") == b""
    assert payload(None, None) == b""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x01")))
    assert payload("-", None) == b"\x01"


@pytest.mark.parametrize(
    ("text", "bucket", "key"),
    [
        ("b/k", "b", "k"),
        ("/b/k/l", "b", "k/l"),
        ("s3://b/k", "b", "k"),
        ("b", "b", ""),
        ("b/", "b", ""),
        ("b/f/", "b", "f/"),
    ],
)
def test_places(text: str, bucket: str, key: str) -> None:
    assert files.place(text) == (bucket, key)


def test_local_files(tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "sub" / "b").touch()
    (tmp_path / "d" / "a").touch()
    found = files._local_files([tmp_path / "d", tmp_path / "d" / "a"], recursive=True)
    assert [name for _, name in found] == ["d/a", "d/sub/b", "a"]


@pytest.mark.parametrize(
    ("words", "ref", "rest"),
    [
        ([], OWN_STORE, []),
        (["file"], OWN_STORE, ["file"]),
        (["minio", "file"], OWN_STORE, ["file"]),
        (["s3.x", "file", "b/k"], ProviderRef(ProviderType.S3, "x"), ["file", "b/k"]),
    ],
)
def test_providers_first(words: list[str], ref: ProviderRef, rest: list[str]) -> None:
    assert files._provider_first(words) == (ref, rest)


def test_tables_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("A", "LONG"), [("x" * 300, None), ("y", 1)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"A{' ' * 301}LONG", "x" * 300, f"y{' ' * 301}1"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**52, "4096.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert output.size(count) == text


def test_no_bars_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with output.transfers() as transfers:
        transfer = transfers.start("x")
        transfer.expect(10)
        transfer.advance(10)
    assert capsys.readouterr().err == ""


def test_every_command_has_json_or_says_one_line() -> None:
    """Commands that show something can show it as JSON."""
    showing = {
        "list",
        "get",
        "status",
        "info",
        "ls",
        "logs",
        "run",
        "submit",
        "wait",
        "rerun",
        "presign",
        "apply",
    }

    def walk(command: object, name: str) -> Iterator[tuple[str, object]]:
        for child, value in getattr(command, "commands", {}).items():
            yield from walk(value, child)
        if not hasattr(command, "commands"):
            yield name, command

    for name, command in walk(typer.main.get_command(program()), ""):
        if name in showing:
            options = [option for parameter in command.params for option in parameter.opts]  # type: ignore[attr-defined]
            assert "--json" in options, name


def test_every_command_is_documented() -> None:
    """Each stands in docs/cli.md, and each that stands there exists."""
    import re

    def walk(command: object, words: str) -> Iterator[str]:
        children = getattr(command, "commands", None)
        if children is None:
            yield words
            return
        for name, child in children.items():
            if not child.hidden:
                yield from walk(child, f"{words} {name}")

    commands = set(walk(typer.main.get_command(program()), "oscar"))
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    rows = re.findall(r"^\| `(oscar[^`]*)`", text, re.MULTILINE)
    documented = {re.match(r"oscar(?: [a-z-]+)+", row)[0] for row in rows}  # type: ignore[index]
    assert documented == commands


@pytest.mark.parametrize("part", PARTS)
def test_a_word_loads_the_part_that_has_it(part: str) -> None:
    for word in PARTS[part]:
        commands = typer.main.get_command(program(word)).commands  # type: ignore[attr-defined]  # of groups
        assert {name for name, command in commands.items() if not command.hidden} == set(PARTS[part])
