"""A program's variables on their way past the tools that make its sandbox."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oscar.compute.local import environment
from oscar.compute.local.bubblewrap import Walls, arguments
from oscar.compute.local.cli import Said, own_environment
from oscar.compute.local.engine import Mount
from oscar.errors import InvalidField
from oscar.supervisor import variables

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True) | st.sampled_from(
    ["PATH", "LD_PRELOAD", "HOME", "DOCKER_HOST", "TMPDIR", "CONTAINERS_CONF", "ENV", "BASH_ENV"]
)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
# What a shell changes by itself when it starts.
SHELLS = {"_", "PWD", "OLDPWD", "SHLVL", "PS4", "OPTIND", "OPTARG", "PPID", "IFS"}


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "PATH",
        "HOME",
        "CONTAINERS_CONF",
        "CONTAINER_HOST",
        "DOCKER_HOST",
        "TMPDIR",
        "XDG_RUNTIME_DIR",
        "GODEBUG",
        "GLIBC_TUNABLES",
        "_CONTAINERS_USERNS_CONFIGURED",
        "NOTIFY_SOCKET",
    ],
)
def test_what_tools_read_does_not_go_into_their_environment(name: str) -> None:
    plain, steering = environment.divide({name: "x", "COLOUR": "blue"})
    assert plain == {"COLOUR": "blue"}
    assert steering == {name: "x"}


@pytest.mark.parametrize(
    "name", ["COLOUR", "EVENT", "TZ", "LANG", "HTTP_PROXY", "HOMEPAGE", "MY_PATH", "PATHS"]
)
def test_other_names_are_plain(name: str) -> None:
    assert not environment.steers(name)


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "A*", "*", "A\n", "é", "SHELLOPTS"])
def test_names_that_tools_would_read_otherwise_are_refused(name: str) -> None:
    with pytest.raises(InvalidField, match="can't be set for a program"):
        variables.check({name: "x"})


def test_the_kernels_limits() -> None:
    longest = "x" * (variables.LONGEST - len("A="))
    variables.check({"A": longest})
    # The kernel agrees.
    subprocess.run(["/bin/true"], env={"A": longest}, check=True)
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run(["/bin/true"], env={"A": longest + "x"}, check=False)
    with pytest.raises(InvalidField, match="A has 131072 bytes"):
        variables.check({"A": longest + "x"})
    many = {f"A{number}": "x" * 100_000 for number in range(15)}
    variables.check(many)
    subprocess.run(["/bin/true"], env=many, check=True)
    with pytest.raises(InvalidField, match="all variables together"):
        variables.check({f"A{number}": "x" * 100_000 for number in range(16)})
    with pytest.raises(InvalidField, match="NUL"):
        variables.check({"A": "x\0y"})


@pytest.mark.parametrize("value", ["a\nb", "'a'", '"a"', "a\\b", "#a", "$A", " a", "a "])
def test_files_of_variables_hold_only_what_all_tools_read_alike(value: str) -> None:
    with pytest.raises(InvalidField, match="PATH"):
        environment.env_file({"PATH": value})
    assert environment.env_file({"PATH": "/a:/b", "HOME": "/x y"}) == "PATH=/a:/b\nHOME=/x y\n"


@settings(deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=8))
def test_a_shell_gives_variables_their_own_names_back(env: dict[str, str]) -> None:
    env = {name: value for name, value in env.items() if name not in SHELLS}
    passed, aliases = environment.aliased(env)
    assert not [name for name in passed if environment.steers(name)]
    argv = environment.restoring(("/bin/cat", "/proc/self/environ"), aliases)
    done = subprocess.run(argv, env=passed, check=True, capture_output=True)
    got = dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if "=" in entry)
    assert {name: got.get(name) for name in env} == env
    assert set(got) - set(env) <= SHELLS


@given(st.dictionaries(NAMES, VALUES, max_size=8))
def test_no_value_is_in_a_command(env: dict[str, str]) -> None:
    env = {name: f"value-{value}" for name, value in env.items()}
    walls = Walls("/usr/bin/bwrap", "/usr/bin/setpriv", root=True)
    options, command = arguments(
        walls, argv=("/bin/sh",), env=env, mounts=(Mount(Path("/x"), "/y"),), tmp=Path("/t"), workdir="/"
    )
    assert not [word for word in command if any(value in word for value in env.values())]
    assert all(value.encode() in options for value in env.values())


def test_tools_see_nothing_of_the_servers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSCAR_PASSWORD", "secret")
    monkeypatch.setenv("MINIO_SECRET_KEY", "secret")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    monkeypatch.setenv("https_proxy", "http://user:secret@proxy")
    seen = own_environment()
    assert seen["XDG_RUNTIME_DIR"] == "/run/user/0"
    assert "secret" not in str(seen)
    assert own_environment(proxies=True)["https_proxy"] == "http://user:secret@proxy"


@pytest.mark.parametrize(
    ("err", "words"),
    [
        ("Error: no such thing\n", "no such thing"),
        (
            "docker: Error response from daemon: bad reference.\n\nRun 'docker run --help' for more information\n",
            "bad reference.",
        ),
        ('Trying to pull x...\ntime="1" level=error msg="x"\nError: not found\n', "not found"),
        ("", "exit code 125"),
    ],
)
def test_the_tools_own_words(err: str, words: str) -> None:
    assert Said(125, "", err).words == words
