"""`oscar service stop`, `start`, `restart`, `deployment` and `deployment-logs`: exposed services.

Calls `oscar.client`; added to the group by `cli.services`.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from oscar.cli import output
from oscar.cli.output import JsonOption
from oscar.cli.session import ClusterOption, ConfigOption, client, run
from oscar.client import Client

ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="The service's name.")]
OwnerOption = Annotated[
    str | None, typer.Option(help="The owner's id, when several owners have a service of that name.")
]


def register_in_service(group: typer.Typer) -> None:
    """Add the commands to the group."""
    group.command("stop")(stop)
    group.command("start")(start)
    group.command("restart")(restart)
    group.command("deployment")(deployment)
    group.command("deployment-logs")(deployment_logs)


def stop(
    service: ServiceName,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    owner: OwnerOption = None,
    as_json: JsonOption = False,
) -> None:
    """End an exposed service's replicas until it is started again."""
    run(_verb("stop", service, client(cluster, config), owner, as_json=as_json))


def start(
    service: ServiceName,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    owner: OwnerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a stopped exposed service."""
    run(_verb("start", service, client(cluster, config), owner, as_json=as_json))


def restart(
    service: ServiceName,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    owner: OwnerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace an exposed service's replicas, new ones first."""
    run(_verb("restart", service, client(cluster, config), owner, as_json=as_json))


def deployment(
    service: ServiceName,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    owner: OwnerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how an exposed service does."""
    run(_verb("deployment", service, client(cluster, config), owner, as_json=as_json))


async def _verb(verb: str, service: str, server: Client, owner: str | None, *, as_json: bool) -> None:
    async with server:
        found: dict[str, Any] = await getattr(server, verb)(service, owner=owner)
    if as_json:
        output.as_json(found)
        return
    row = (found["state"], found["active_instances"], found["affected_instances"])
    rows = [(*row, found["last_transition_time"], found["reason"])]
    output.table(("STATE", "ACTIVE", "AFFECTED", "SINCE", "REASON"), rows)


def deployment_logs(
    service: ServiceName,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="Show times.")] = False,
    tail: Annotated[int | None, typer.Option(help="Only the last lines, so many.", min=1)] = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    owner: OwnerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an exposed service's replicas have written."""
    server = client(cluster, config)
    run(_logs(service, server, owner, timestamps=timestamps, tail=tail, as_json=as_json))


async def _logs(
    service: str, server: Client, owner: str | None, *, timestamps: bool, tail: int | None, as_json: bool
) -> None:
    async with server:
        found = await server.deployment_logs(service, timestamps=timestamps, tail=tail, owner=owner)
    if as_json:
        output.as_json(found)
        return
    if not found["available"]:
        output.warn(found["message"])
    for entry in found["entries"]:
        typer.echo(f"{entry['timestamp']} {entry['message']}" if timestamps else entry["message"])
