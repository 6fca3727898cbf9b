"""`oscar volume …`: managed volumes, folders that outlive jobs and services.

Calls `oscar.client`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from oscar.cli import output
from oscar.cli.output import JsonOption
from oscar.cli.session import ClusterOption, ConfigOption, client, run
from oscar.client import Volume

group = typer.Typer(help="Volumes: folders that outlive jobs and services.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(group, name="volume")


VolumeName = Annotated[str, typer.Argument(metavar="VOLUME", help="The volume's name.")]
OwnerOption = Annotated[
    str | None,
    typer.Option("--owner", help="Whose, for administrators: several users may have one of a name."),
]


@group.command("create")
def create(
    name: VolumeName,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Such as 1Gi.")],
    cluster: ClusterOption = None,
    config: ConfigOption = None,
) -> None:
    """Create a volume, which services can attach."""
    server = client(cluster, config)

    async def work() -> Volume:
        async with server:
            return await server.create_volume(name, size)

    made = run(work())
    typer.echo(f"{made.name} created ({made.size})")


@group.command("list")
@group.command("ls", hidden=True)
def list_(cluster: ClusterOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List your volumes."""
    server = client(cluster, config)

    async def work() -> list[Volume]:
        async with server:
            return await server.volumes()

    found = run(work())
    if as_json:
        output.as_json([volume.model_dump(mode="json") for volume in found])
        return
    rows = [
        (volume.name, volume.size, volume.status.phase, volume.owner_user, ", ".join(_services(volume)))
        for volume in found
    ]
    output.table(("VOLUME", "SIZE", "PHASE", "OWNER", "SERVICES"), rows)


@group.command("get")
def get(
    name: VolumeName,
    owner: OwnerOption = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a volume and the services that have it."""
    server = client(cluster, config)

    async def work() -> Volume:
        async with server:
            return await server.volume(name, owner=owner)

    found = run(work())
    if as_json:
        output.as_json(found.model_dump(mode="json"))
        return
    typer.echo(f"{found.name}: {found.size}, {found.status.phase}, owner {found.owner_user}")
    if found.status.message:
        typer.echo(found.status.message)
    if found.created_by_service:
        typer.echo(f"created by the service {found.created_by_service}, lifecycle {found.lifecycle_policy}")
    rows = [(each.service_name, each.mount_path) for each in found.attachments]
    output.table(("SERVICE", "MOUNT PATH"), rows)


@group.command("delete")
@group.command("rm", hidden=True)
def delete(
    names: Annotated[list[str], typer.Argument(metavar="VOLUME...", help="The volumes' names.")],
    owner: OwnerOption = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
) -> None:
    """Remove volumes with all that they hold."""
    server = client(cluster, config)

    async def work() -> None:
        async with server:
            for name in names:
                await server.delete_volume(name, owner=owner)
                typer.echo(f"{name} removed")

    run(work())


def _services(volume: Volume) -> list[str]:
    return [each.service_name for each in volume.attachments]
