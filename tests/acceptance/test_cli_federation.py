"""`oscar federation …` as a process, against a star of real servers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_cli import Shell
from tests.acceptance.test_federation import World, world_on
from tests.federation import eventually

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_on(tmp_path_factory.mktemp("federation"), "a", "b", "c") as world:
        yield world


@pytest.fixture
def shell(world: World, tmp_path: Path) -> Shell:
    """Somebody who knows the three clusters."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OSCAR_", "MINIO_"))}
    shell = Shell(tmp_path, kept | {"HOME": str(tmp_path), "OSCAR_DATA": str(world.servers["a"].data)})
    for name, server in world.servers.items():
        shell.ok("cluster", "add", name, server.endpoint, server.user, server.password)
    return shell


def rows(text: str) -> list[list[str]]:
    """The lines of a table, by words."""
    return [line.split() for line in text.splitlines()]


def test_members_are_shown_added_changed_and_removed(world: World, shell: Shell) -> None:
    world.make("by-hand", "b")
    table = ["MEMBER", "TYPE", "PRIORITY", "STATE"]
    b = ["b/by-hand", "oscar", "0", "told"]
    assert rows(shell.ok("federation", "get", "by-hand").text) == [["topology:", "star"], table, b]
    # Where c is, and whose account is used there, the file of clusters says.
    said = shell.ok("federation", "add", "by-hand", "c/at-c", "http://127.0.0.1:9/x", "--priority", "2").text
    assert rows(said)[2:] == [
        b,
        ["c/at-c", "oscar", "2", "told"],
        ["http://127.0.0.1:9/x", "endpoint", "2", "told"],
    ]
    assert world.has("c", "at-c")
    said = shell.ok("federation", "update", "by-hand", "c/at-c", "--priority", "1", "--json").text
    found = {each.get("cluster_id"): each for each in json.loads(said)["members"]}
    assert (found["c"]["priority"], found["c"]["service_name"]) == (1, "at-c")
    shell.ok("federation", "update", "by-hand", "c/at-c", "--to", "c/elsewhere")
    assert (world.has("c", "at-c"), world.has("c", "elsewhere")) == (False, True)
    shell.ok("federation", "remove", "by-hand", "http://127.0.0.1:9/x", "c/elsewhere")
    assert not world.has("c", "elsewhere")
    shell.ok("federation", "remove", "by-hand", "b", "--keep")
    assert world.has("b", "by-hand")
    members = json.loads(shell.ok("federation", "get", "by-hand", "--json").text)
    assert members == {"topology": "star", "members": []}


def test_another_cluster_is_asked_by_its_name(world: World, shell: Shell) -> None:
    world.make("named", "b", topology="mesh")
    said = json.loads(shell.ok("federation", "get", "named", "-c", "b", "--json").text)
    assert [each["cluster_id"] for each in said["members"]] == ["a"]
    refused = shell.oscar("federation", "add", "named", "c", "-c", "b", "--json")
    assert (refused.code != 0, json.loads(refused.err)["code"]) == (True, "conflict")


def test_who_has_not_taken_a_change_is_shown(world: World, shell: Shell) -> None:
    world.make("slow", "b", "c")
    world.servers["c"].kill()
    try:
        said = rows(shell.ok("federation", "remove", "slow", "c").text)
        [row] = [row for row in said if row[0] == "c/slow"]
        assert row[1:5] == ["oscar", "to", "be", "removed:"]
    finally:
        world.servers["c"].start()
    eventually(lambda: "c/slow" in shell.ok("federation", "get", "slow").text, False)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("get", "nobodys"), "service_not_found"),
        (("add", "nobodys", "/x"), "usage"),
        (("add", "nobodys", "b", "--priority", "-1"), "usage"),
        (("remove", "nobodys"), "usage"),
    ],
)
def test_refusals(shell: Shell, words: tuple[str, ...], code: str) -> None:
    done = shell.oscar("federation", *words, "--json")
    assert done.code != 0
    assert json.loads(done.err)["code"] == code
