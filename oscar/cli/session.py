"""Which server a command talks to, with which account, and how its coroutine is run.

Called by every command. A cluster is found in this order: `--cluster`, the default of the file of clusters,
the server that runs on this machine (`client.json` in its data folder, written by `oscar serve`).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from oscar.cli.clusters_file import ClustersFile, KnownCluster, default_file
from oscar.client import Client
from oscar.errors import Misuse

LOCAL = "local"
"""The id of the server on this machine."""

T = TypeVar("T")


def known_clusters() -> list[str]:
    """The names that a shell may complete after `--cluster`."""
    try:
        return [*ClustersFile(default_file()).clusters, LOCAL]
    except Misuse:
        return [LOCAL]


ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        "-c",
        help="The cluster, as `oscar cluster list` names it.",
        autocompletion=known_clusters,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="The file of clusters.", show_default="~/.oscar-cli/config.yaml"),
]


def aliases(group: typer.Typer, commands: Mapping[str, Callable[..., None]]) -> None:
    """Let commands be called by other names too, which help does not show."""
    for alias, command in commands.items():
        group.command(alias, hidden=True)(command)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end."""
    return asyncio.run(coroutine)


def clusters_file(config: Path | None) -> ClustersFile:
    """The file of clusters that the user named, or the usual one."""
    return ClustersFile(config or default_file())


def find(cluster: str | None, config: Path | None) -> KnownCluster:
    """The cluster to talk to.

    Raises:
        Misuse: there is none, or none of that name.
    """
    file = clusters_file(config)
    known = file.clusters
    name = cluster or file.default
    if name in known:
        return known[str(name)]
    if cluster and cluster != LOCAL:
        raise Misuse(f'the cluster "{cluster}" is not known; known: {file.names()}, {LOCAL}')
    if known and not cluster:
        raise Misuse(f"name one of these clusters by --cluster: {file.names()}")
    return local()


def local() -> KnownCluster:
    """The server of this machine.

    Raises:
        Misuse: it has left no word of itself.
    """
    from oscar.settings import Settings

    file = Path(Settings().data) / "client.json"
    try:
        facts = json.loads(file.read_text())
    except FileNotFoundError:
        raise Misuse(
            f"no cluster is configured and no server of this machine has written {file}: "
            "run `oscar serve`, or `oscar cluster add`"
        ) from None
    except ValueError as error:
        raise Misuse(f"{file} is broken: {error}") from None
    return KnownCluster(LOCAL, facts["endpoint"], facts.get("user", ""), facts.get("password", ""))


def connect(cluster: KnownCluster) -> Client:
    """A client of the cluster, to be used as an asynchronous context."""
    account = with_token(cluster)
    return Client(
        account.endpoint,
        user=account.user or None,
        password=account.password,
        token=account.token or None,
        verify=account.verify,
    )


def client(cluster: str | None, config: Path | None) -> Client:
    """A client of the cluster that the options mean."""
    return connect(find(cluster, config))


def with_token(cluster: KnownCluster) -> KnownCluster:
    """The cluster with a fresh token of its oidc-agent account, where it has one.

    Raises:
        Misuse: oidc-agent can't give one, in its words.
    """
    if not cluster.oidc_account:
        return cluster
    try:
        answer = subprocess.run(
            ["oidc-token", "--", cluster.oidc_account], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise Misuse("oidc-agent is not installed: there is no program oidc-token") from None
    if answer.returncode:
        raise Misuse(f"oidc-token {cluster.oidc_account}: {answer.stderr.strip()}")
    return replace(cluster, token=answer.stdout.strip())
