"""`oscar federation …`: on which other clusters a service's jobs may run.

Calls `oscar.client`. A member is written `CLUSTER`, `CLUSTER/SERVICE` or as an address that takes events; where a
cluster is, and its account, come from the file of clusters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from oscar.cli import output
from oscar.cli.clusters_file import ClustersFile
from oscar.cli.output import JsonOption
from oscar.cli.session import ClusterOption, ConfigOption, client, clusters_file, run
from oscar.client import Client
from oscar.errors import Misuse

group = typer.Typer(help="Other clusters that take a service's jobs.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(group, name="federation")


ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="The service's name.")]
Members = Annotated[
    list[str],
    typer.Argument(metavar="MEMBER...", help="CLUSTER, CLUSTER/SERVICE, or the address of an endpoint."),
]
OwnerOption = Annotated[
    str | None, typer.Option(help="The owner's id, when several owners have a service of that name.")
]
PriorityOption = Annotated[int, typer.Option(min=0, help="0 is tried first.")]


@group.command("get")
def get(
    service: ServiceName,
    owner: OwnerOption = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the topology and the members, and which of them have not taken the last change yet."""
    _show(client(cluster, config), lambda server: server.federation(service, owner=owner), as_json=as_json)


@group.command("add")
def add(
    service: ServiceName,
    members: Members,
    priority: PriorityOption = 0,
    owner: OwnerOption = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add members; of a star or a mesh each gets a copy of the service."""
    listed = [_member(text) | {"priority": priority} for text in members]
    clusters = _clusters(listed, clusters_file(config))
    _show(
        client(cluster, config),
        lambda server: server.add_members(service, listed, clusters=clusters, owner=owner),
        as_json=as_json,
    )


@group.command("update")
def update(
    service: ServiceName,
    member: Annotated[str, typer.Argument(metavar="MEMBER", help="As it is now.")],
    to: Annotated[
        str | None, typer.Option("--to", metavar="MEMBER", help="What takes its place; itself when absent.")
    ] = None,
    priority: PriorityOption = 0,
    owner: OwnerOption = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace a member, or give it another priority."""
    old, new = _member(member), _member(to or member) | {"priority": priority}
    clusters = _clusters([new], clusters_file(config))
    _show(
        client(cluster, config),
        lambda server: server.update_members(service, [old], [new], clusters=clusters, owner=owner),
        as_json=as_json,
    )


@group.command("remove")
def remove(
    service: ServiceName,
    members: Members,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the members their copies.")] = False,
    owner: OwnerOption = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove members with their copies of the service; services that are no copies are never touched."""
    listed = [_member(text) for text in members]
    _show(
        client(cluster, config),
        lambda server: server.remove_members(service, listed, delete=not keep, owner=owner),
        as_json=as_json,
    )


def _member(text: str) -> dict[str, Any]:
    if text.startswith(("http://", "https://")):
        return {"type": "endpoint", "url": text}
    cluster, _, service = text.partition("/")
    if not cluster:
        raise Misuse(f'"{text}" names no cluster', fix="write CLUSTER, CLUSTER/SERVICE or an address")
    return {"type": "oscar", "cluster_id": cluster, "service_name": service}


def _clusters(members: list[dict[str, Any]], file: ClustersFile) -> dict[str, Any]:
    """What the file of clusters says of those of the members; others the service may know already."""
    known = file.clusters
    return {
        name: {
            "endpoint": known[name].endpoint,
            "auth_user": known[name].user,
            "auth_password": known[name].password,
            "ssl_verify": known[name].verify,
        }
        for member in members
        if (name := member.get("cluster_id", "")) in known
    }


def _show(server: Client, ask: Callable[[Client], Awaitable[dict[str, Any]]], *, as_json: bool) -> None:
    """Ask, and print the federation that is answered."""

    async def work() -> dict[str, Any]:
        async with server:
            return await ask(server)

    federation = run(work())
    if as_json:
        output.as_json(federation)
        return
    typer.echo(f"topology: {federation.get('topology', 'none')}")
    waiting = {
        (pending.get("cluster_id"), pending.get("service_name")): pending
        for pending in federation.get("pending") or ()
    }
    rows = []
    for member in federation.get("members") or ():
        pending = waiting.pop((member.get("cluster_id"), member.get("service_name")), None)
        rows.append(
            (
                member.get("url") or f"{member.get('cluster_id')}/{member.get('service_name', '')}",
                member.get("type"),
                member.get("priority", 0),
                _state(pending),
            )
        )
    rows += [
        (f"{cluster}/{name}", "oscar", "", _state(pending)) for (cluster, name), pending in waiting.items()
    ]
    output.table(("MEMBER", "TYPE", "PRIORITY", "STATE"), rows)


def _state(pending: dict[str, Any] | None) -> str:
    if pending is None:
        return "told"
    verb = "to be told" if pending.get("change") == "apply" else "to be removed"
    return f"{verb}: {pending['problem']}" if pending.get("problem") else verb
