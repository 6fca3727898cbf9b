"""The file of clusters: shared with OSCAR's own command line, private, and never half-written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import yaml

from oscar.cli.clusters_file import ClustersFile, KnownCluster
from oscar.cli.main import run
from oscar.cli.session import find
from oscar.errors import Misuse

TEXT = """\
oscar:
  one:
    endpoint: https://one.example
    auth_user: oscar
    auth_password: 0123
    ssl_verify: true
    memory: 1Gi
    log_level: DEBUG
    extra: kept
  two:
    endpoint: https://two.example
    oidc_account_name: egi
    ssl_verify: false
default: two
other: kept
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "config.yaml"
    path.parent.mkdir()
    path.write_text(TEXT)
    return path


def test_read(config: Path) -> None:
    file = ClustersFile(config)
    assert file.default == "two"
    assert file.clusters["one"] == KnownCluster("one", "https://one.example", "oscar", "0123")
    assert file.clusters["two"].verify is False
    assert file.clusters["two"].oidc_account == "egi"


def test_changes_keep_what_they_do_not_know(config: Path) -> None:
    ClustersFile(config).add(KnownCluster("one", "https://new.example", "me", "1e5", verify=False))
    data = yaml.safe_load(config.read_text())
    assert data["other"] == "kept"
    assert data["oscar"]["one"] == {
        "endpoint": "https://new.example",
        "auth_user": "me",
        "auth_password": "1e5",
        "ssl_verify": False,
        "memory": "1Gi",
        "log_level": "DEBUG",
        "extra": "kept",
    }
    assert data["oscar"]["two"]["ssl_verify"] is False
    assert ClustersFile(config).clusters["one"].password == "1e5"


def test_new_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "home" / "config.yaml"
    old = os.umask(0)
    try:
        ClustersFile(path).add(KnownCluster("a", "http://a", "u", "p"))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert ClustersFile(path).default == "a"
    assert [entry.name for entry in path.parent.iterdir()] == ["config.yaml"]


def test_json_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"oscar": {"a": {"endpoint": "http://a", "ssl_verify": false}}}')
    file = ClustersFile(path)
    assert file.clusters["a"].verify is False
    file.add(KnownCluster("b", "http://b", "u", "p"))
    assert set(json.loads(path.read_text())["oscar"]) == {"a", "b"}


def test_remove_and_default(config: Path) -> None:
    file = ClustersFile(config)
    file.set_default("one")
    assert ClustersFile(config).default == "one"
    file.remove("one")
    assert list(ClustersFile(config).clusters) == ["two"]
    assert ClustersFile(config).default == "two"  # the only one
    for change in (file.remove, file.set_default):
        with pytest.raises(Misuse, match="known: two"):
            change("nobody")


@pytest.mark.parametrize(
    "text", ["oscar: [a]\n", "- a\n", "oscar: {a: {}}\n", "oscar:\n\tx: y\n", "oscar: {a: 1}\n"]
)
def test_broken_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(Misuse):
        find("a", path)


def test_which_cluster(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find(None, config).id == "two"
    assert find("one", config).id == "one"
    with pytest.raises(Misuse, match="known: one, two, local"):
        find("three", config)
    monkeypatch.setenv("OSCAR_DATA", str(tmp_path))
    with pytest.raises(Misuse, match="oscar serve"):
        find("local", config)
    (tmp_path / "client.json").write_text('{"endpoint": "http://here", "user": "u", "password": "p"}')
    assert find("local", config) == KnownCluster("local", "http://here", "u", "p")
    assert find(None, tmp_path / "absent.yaml").id == "local"
    (tmp_path / "client.json").write_text("{")
    with pytest.raises(Misuse, match="broken"):
        find("local", config)


def test_several_clusters_without_default(config: Path) -> None:
    config.write_text(TEXT.replace("default: two", "default: gone"))
    with pytest.raises(Misuse, match="--cluster: one, two"):
        find(None, config)


def test_passwords_are_not_shown(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0123" not in repr(ClustersFile(config).clusters)
    assert run(["cluster", "list", "--config", str(config)]) == 0
    assert run(["cluster", "list", "--json", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert "https://one.example" in out
    assert "0123" not in out


def test_cluster_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "config.yaml")
    assert run(["cluster", "add", "a", "http://a", "me", "pass", "--config", path]) == 0
    assert (
        run(["cluster", "add", "b", "https://b", "--oidc-token", "t", "--disable-ssl", "--config", path]) == 0
    )
    assert run(["cluster", "default", "--config", path]) == 0
    assert run(["cluster", "default", "-s", "b", "--config", path]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["a", "b"]
    known = ClustersFile(Path(path)).clusters
    assert known["a"] == KnownCluster("a", "http://a", "me", "pass")
    assert known["b"] == KnownCluster("b", "https://b", token="t", verify=False)
    assert run(["cluster", "remove", "b", "--config", path]) == 0
    assert run(["cluster", "remove", "b", "--config", path]) == 2
    assert run(["cluster", "default", "--config", path]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["a", "a.example", "me", "pass"],
        ["a", "http://a"],
        ["a", "http://a", "me", "pass", "--password-stdin"],
        ["a", "http://a", "me", "pass", "--oidc-token", "t"],
    ],
)
def test_cluster_add_refuses(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "config.yaml"
    assert run(["cluster", "add", *words, "--config", str(path)]) == 2
    assert not path.exists()
