"""The file of known clusters, `~/.oscar-cli/config.yaml`, in the format of OSCAR's own command line.

`oscar:` is a map from a cluster's id to `endpoint`, `auth_user`, `auth_password`, `ssl_verify`, `memory`,
`log_level` (and `oidc_account_name`, `oidc_token`), `default:` the id used when none is named. Called by
`cli.session` and `cli.clusters`. Keys that are not known here are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from oscar.errors import BadRequest, Misuse
from oscar.model.documents import parse_json, parse_yaml


def default_file() -> Path:
    """Where the clusters of this user stand."""
    return Path.home() / ".oscar-cli" / "config.yaml"


@dataclass(frozen=True, slots=True)
class KnownCluster:
    """A cluster and the account used there."""

    id: str
    endpoint: str
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    oidc_account: str = ""
    verify: bool = True


class ClustersFile:
    """The file's content, to look up and to change."""

    def __init__(self, path: Path) -> None:
        """Read the file; an absent one is empty.

        Raises:
            Misuse: it can't be understood.
        """
        self.path = path
        try:
            text = path.read_text()
        except FileNotFoundError:
            text = ""
        try:
            data = parse_json(text) if self._is_json else parse_yaml(text) if text.strip() else {}
        except BadRequest as error:
            raise Misuse(f"{path}: {error.message}") from None
        if not isinstance(data, dict) or not isinstance(data.get("oscar") or {}, dict):
            raise Misuse(f"{path} is not a file of clusters; see docs/cli.md for its format")
        self._data: dict[str, Any] = data
        self._clusters: dict[str, Any] = data.get("oscar") or {}

    @property
    def _is_json(self) -> bool:
        return self.path.suffix == ".json" and self.path.exists()

    @property
    def default(self) -> str | None:
        """The id of the default cluster; the only one is it, too."""
        named = self._data.get("default")
        if named in self._clusters:
            return str(named)
        return next(iter(self._clusters)) if len(self._clusters) == 1 else None

    @property
    def clusters(self) -> dict[str, KnownCluster]:
        """All clusters by id."""
        return {str(name): _known(str(name), facts) for name, facts in self._clusters.items()}

    def add(self, cluster: KnownCluster) -> None:
        """Add or replace a cluster and write the file; the first one becomes the default."""
        facts = self._clusters.get(cluster.id)
        kept = facts if isinstance(facts, Mapping) else {"memory": "256Mi", "log_level": "INFO"}
        self._clusters[cluster.id] = {
            **kept,
            "endpoint": cluster.endpoint,
            "auth_user": cluster.user,
            "auth_password": cluster.password,
            "ssl_verify": cluster.verify,
            **({"oidc_token": cluster.token} if cluster.token else {}),
            **({"oidc_account_name": cluster.oidc_account} if cluster.oidc_account else {}),
        }
        if len(self._clusters) == 1:
            self._data["default"] = cluster.id
        self._write()

    def remove(self, name: str) -> None:
        """Remove a cluster and write the file. Raises `Misuse` when it is not there."""
        self._check(name)
        del self._clusters[name]
        if self._data.get("default") == name:
            del self._data["default"]
        self._write()

    def set_default(self, name: str) -> None:
        """Make a cluster the default and write the file. Raises `Misuse` when it is not there."""
        self._check(name)
        self._data["default"] = name
        self._write()

    def _check(self, name: str) -> None:
        if name not in self._clusters:
            raise Misuse(f'the cluster "{name}" is not in {self.path}; known: {self.names()}')

    def names(self) -> str:
        """The known ids for a message."""
        return ", ".join(self._clusters) or "none"

    def _write(self) -> None:
        """Replace the file at once, readable for its owner only: it holds passwords."""
        data = {**self._data, "oscar": {name: _typed(facts) for name, facts in self._clusters.items()}}
        if self.path.suffix == ".json":
            text = json.dumps(data, indent=2)
        else:
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=".config.")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            Path(name).replace(self.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()


def _verify(facts: Mapping[str, Any]) -> bool:
    return str(facts.get("ssl_verify", True)).lower() not in {"false", "no", "0"}


def _typed(facts: Any) -> Any:
    """A cluster as it is written: everything was read as text, but OSCAR's own program wants a boolean here."""
    if isinstance(facts, Mapping) and "ssl_verify" in facts:
        return {**facts, "ssl_verify": _verify(facts)}
    return facts


def _known(name: str, facts: Any) -> KnownCluster:
    if not isinstance(facts, Mapping) or not facts.get("endpoint"):
        raise Misuse(f'the cluster "{name}" has no endpoint')

    def text(key: str) -> str:
        return str(facts.get(key) or "")

    return KnownCluster(
        id=name,
        endpoint=text("endpoint"),
        user=text("auth_user"),
        password=text("auth_password"),
        token=text("oidc_token"),
        oidc_account=text("oidc_account_name"),
        verify=_verify(facts),
    )
