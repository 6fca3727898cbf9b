"""The pure parts of mounts: flags that are taken, rclone's command line, the merge of a folder and its bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oscar.compute.local.mount_merge import Act, Same, Step, merge
from oscar.errors import InvalidField
from oscar.model.mount import FLAGS, flags, is_read_only
from oscar.model.storage import MinIOProvider, S3Provider, WebDavProvider
from oscar.supervisor.rclone import command, remote

# --- flags -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", ()),
        ("--read-only", ("--read-only=true",)),
        ("--vfs-cache-mode full", ("--vfs-cache-mode=full",)),
        ("--vfs-cache-mode=full  --dir-perms 0777", ("--vfs-cache-mode=full", "--dir-perms=0777")),
        ("--dir-cache-time 1h30m --transfers=8", ("--dir-cache-time=1h30m", "--transfers=8")),
        ("--buffer-size 16Mi --vfs-cache-max-size off", ("--buffer-size=16Mi", "--vfs-cache-max-size=off")),
    ],
)
def test_flags_that_are_taken(options: str, words: tuple[str, ...]) -> None:
    assert flags(options) == words


@pytest.mark.parametrize(
    "options",
    [
        "--rc",
        "--rc-addr=:5572",
        "--rc-serve",
        "--config /etc/passwd",
        "--log-file=/etc/cron.d/x",
        "--password-command /bin/sh",
        "--cache-dir=/",
        "--temp-dir /",
        "--daemon",
        "--allow-non-empty",
        "--fuse-flag x",
        "-o allow_root",
        "--option suid",
        "--s3-endpoint=http://elsewhere",
        "--s3-env-auth",
        "--webdav-bearer-token-command x",
        "--filter-from /etc/shadow",
        "--dump auth",
        "/etc",
        "other:bucket",
        "--",
        "---read-only",
        "--read-only=maybe",
        "--transfers",
        "--transfers=1000000",
        "--buffer-size 100Gi",
        "--dir-perms=07777",
        "--umask --rc",
        "--vfs-cache-mode=/x",
        "--read-only\n--rc",
        "$(id)",
    ],
)
def test_flags_that_are_refused(options: str) -> None:
    with pytest.raises(InvalidField) as error:
        flags(options)
    assert error.value.field == "mount.options"
    assert error.value.fix


@given(st.text(alphabet="-=. abcdefglmoprstuvy:/0123456789", max_size=60) | st.text())
def test_nothing_but_known_flags_comes_of_any_options(options: str) -> None:
    try:
        words = flags(options)
    except InvalidField:
        return
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        assert name in FLAGS
        assert not value.startswith("-")
        assert "/" not in value


def test_read_only() -> None:
    assert is_read_only("--read-only")
    assert not is_read_only("--read-only --read-only=false")
    assert not is_read_only("")


# --- rclone ----------------------------------------------------------------------------------------------


def test_credentials_are_in_the_environment_alone() -> None:
    providers: list[MinIOProvider | S3Provider | WebDavProvider] = [
        MinIOProvider(endpoint="http://store:9000", access_key="planted-1", secret_key="planted-2"),
        S3Provider(access_key="planted-1", secret_key="planted-2", region="eu-west-1"),
        WebDavProvider(hostname="dav.example", login="me", password="planted-3"),
    ]
    words = command("/usr/bin/rclone", "bucket/in", Path("/d/fs"), Path("/d/cache"), flags("--read-only"))
    assert words[:4] == ["/usr/bin/rclone", "mount", "mounted:bucket/in", "/d/fs"]
    assert words[-1] == "--read-only=true"
    assert "--config=/dev/null" in words
    for provider in providers:
        values = remote(provider, password="obscured")
        assert all(name.startswith("RCLONE_CONFIG_MOUNTED_") for name in values)
        assert "planted" not in " ".join(words)
    dav = remote(providers[2], password="obscured")
    assert dav["RCLONE_CONFIG_MOUNTED_URL"] == "https://dav.example"
    assert dav["RCLONE_CONFIG_MOUNTED_PASS"] == "obscured"
    assert remote(providers[0])["RCLONE_CONFIG_MOUNTED_ENDPOINT"] == "http://store:9000"


# --- merge -----------------------------------------------------------------------------------------------

ALIKE = Same("h1", "t1")


@pytest.mark.parametrize(
    ("before", "here", "there", "step"),
    [
        (None, None, "t1", Step("f", Act.FETCH)),
        (None, "h1", None, Step("f", Act.STORE)),
        (None, "h1", "t1", Step("f", Act.STORE, clash=True)),
        (ALIKE, "h1", "t1", None),
        (ALIKE, "h2", "t1", Step("f", Act.STORE)),
        (ALIKE, "h1", "t2", Step("f", Act.FETCH)),
        (ALIKE, "h2", "t2", Step("f", Act.STORE, clash=True)),
        (ALIKE, None, "t1", Step("f", Act.DROP_THERE)),
        (ALIKE, None, "t2", Step("f", Act.FETCH)),
        (ALIKE, "h1", None, Step("f", Act.DROP_HERE)),
        (ALIKE, "h2", None, Step("f", Act.STORE)),
        (ALIKE, None, None, Step("f", Act.FORGET)),
    ],
)
def test_merge_of_one_file(
    before: Same | None, here: str | None, there: str | None, step: Step | None
) -> None:
    found = merge({"f": before} if before else {}, {"f": here} if here else {}, {"f": there} if there else {})
    assert found == ([step] if step else [])


@pytest.mark.parametrize(("here", "there"), [("h2", "t1"), (None, "t1"), ("h1", None), ("h2", None)])
def test_a_read_only_merge_never_changes_the_bucket(here: str | None, there: str | None) -> None:
    sides = ({"f": here} if here else {}, {"f": there} if there else {})
    acts = {step.act for step in merge({"f": ALIKE}, *sides, read_only=True)}
    assert acts <= {Act.FETCH, Act.DROP_HERE, Act.FORGET}


names = st.sampled_from("abc")
marks = st.dictionaries(names, st.sampled_from("123"))


@given(st.dictionaries(names, st.builds(Same, st.sampled_from("123"), st.sampled_from("123"))), marks, marks)
def test_a_merge_makes_both_sides_alike(
    before: dict[str, Same], here: dict[str, str], there: dict[str, str]
) -> None:
    """Carried out with files whose look is their content, both sides hold the same names, and a merge is at rest."""
    here, there, alike = dict(here), dict(there), dict(before)
    for step in merge(before, here, there):
        match step.act:
            case Act.FETCH:
                here[step.name] = f"fetched {there[step.name]}"
            case Act.STORE:
                there[step.name] = f"stored {here[step.name]}"
            case Act.DROP_HERE:
                del here[step.name]
            case Act.DROP_THERE:
                del there[step.name]
            case Act.FORGET:
                pass
        alike.pop(step.name, None)
        if step.name in here:
            alike[step.name] = Same(here[step.name], there[step.name])
    assert here.keys() == there.keys()
    assert merge(alike, here, there) == []
