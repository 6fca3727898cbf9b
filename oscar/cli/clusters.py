"""`oscar cluster …`: the servers that this user knows, and what they say of themselves.

Calls `cli.clusters_file` and `oscar.client`.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from oscar.cli import output
from oscar.cli.clusters_file import KnownCluster
from oscar.cli.copy import copy
from oscar.cli.output import JsonOption
from oscar.cli.session import ClusterOption, ConfigOption, clusters_file, connect, find, run
from oscar.client import Client
from oscar.errors import Misuse

group = typer.Typer(help="The servers that you know.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(group, name="cluster")


group.command("copy")(copy)

ClusterName = Annotated[str, typer.Argument(metavar="ID", help="The cluster's name here and in FDL files.")]


@group.command("add")
def add(
    name: ClusterName,
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="The server's address.")],
    user: Annotated[str | None, typer.Argument(metavar="[USER]", help="Your name there.")] = None,
    password: Annotated[
        str | None,
        typer.Argument(
            metavar="[PASSWORD]", help="Better not given: it is asked for, or read by --password-stdin."
        ),
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    disable_ssl: Annotated[
        bool, typer.Option("--disable-ssl", help="Accept any certificate of the server.")
    ] = False,
    oidc_account: Annotated[
        str, typer.Option("--oidc-account-name", "-o", help="An account of oidc-agent, instead of a user.")
    ] = "",
    oidc_token: Annotated[
        str,
        typer.Option("--oidc-token", "-t", help="An access token, instead of a user; - reads it from stdin."),
    ] = "",
    config: ConfigOption = None,
) -> None:
    """Add a server, or change it."""
    if not endpoint.startswith(("http://", "https://")):
        raise Misuse(f'"{endpoint}" is not an address; write it with http:// or https://')
    if sum(map(bool, (user, oidc_account, oidc_token))) != 1:
        raise Misuse("give a user, or --oidc-account-name, or --oidc-token")
    if password and password_stdin:
        raise Misuse("give the password once")
    if user and not password:
        password = _read_line() if password_stdin else typer.prompt("Password", hide_input=True, err=True)
    if oidc_token == "-":  # noqa: S105 - not a token but the word for standard input
        oidc_token = _read_line()
    file = clusters_file(config)
    file.add(
        KnownCluster(
            id=name,
            endpoint=endpoint,
            user=user or "",
            password=password or "",
            token=oidc_token,
            oidc_account=oidc_account,
            verify=not disable_ssl,
        )
    )
    typer.echo(f"{name} stored in {file.path}")


def _read_line() -> str:
    return sys.stdin.read().strip("\r\n")


@group.command("default")
def default(
    set_to: Annotated[str | None, typer.Option("--set", "-s", metavar="ID", help="The new default.")] = None,
    config: ConfigOption = None,
) -> None:
    """Show or set the cluster that commands use when none is named."""
    file = clusters_file(config)
    if set_to:
        file.set_default(set_to)
    if not file.default:
        raise Misuse(f"no default is set; known: {file.names()}")
    typer.echo(file.default)


@group.command("list")
@group.command("ls", hidden=True)
def list_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the servers that you know."""
    file = clusters_file(config)
    known = file.clusters.values()
    if as_json:
        facts = [{"id": it.id, "endpoint": it.endpoint, "default": it.id == file.default} for it in known]
        output.as_json(facts)
        return
    rows = [("*" if it.id == file.default else "", it.id, it.endpoint, _account(it)) for it in known]
    output.table(("", "ID", "ENDPOINT", "ACCOUNT"), rows)


def _account(cluster: KnownCluster) -> str:
    if cluster.oidc_account:
        return f"oidc-agent {cluster.oidc_account}"
    return cluster.user or ("token" if cluster.token else "")


@group.command("remove")
@group.command("rm", hidden=True)
@group.command("delete", hidden=True)
def remove(name: ClusterName, config: ConfigOption = None) -> None:
    """Forget a server."""
    clusters_file(config).remove(name)
    typer.echo(f"{name} removed")


@group.command("info")
def info(cluster: ClusterOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show a server's version and what it is made of."""
    found = find(cluster, config)
    _facts(run(_ask(connect(found), "info")), {"endpoint": found.endpoint}, as_json=as_json)


@group.command("status")
def status(cluster: ClusterOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show a server's capacity and condition."""
    _facts(run(_ask(connect(find(cluster, config)), "status")), {}, as_json=as_json)


async def _ask(server: Client, what: str) -> dict[str, Any]:
    async with server:
        return await (server.info() if what == "info" else server.status())


def _facts(facts: dict[str, Any], more: dict[str, Any], *, as_json: bool) -> None:
    import yaml

    if as_json:
        output.as_json({**more, **facts})
    else:
        typer.echo(yaml.safe_dump({**more, **facts}, sort_keys=False, allow_unicode=True), nl=False)
