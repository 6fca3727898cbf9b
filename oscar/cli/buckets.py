"""`oscar bucket …`: buckets and who sees them.

Calls `oscar.client`.
"""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic_core import PydanticCustomError

from oscar.cli import output
from oscar.cli.files import place
from oscar.cli.output import JsonOption
from oscar.cli.session import ClusterOption, ConfigOption, client, run
from oscar.client import Bucket, BucketContent, Client, Presigned
from oscar.errors import Misuse
from oscar.model.fields import as_seconds

group = typer.Typer(help="Buckets and who sees them.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(group, name="bucket")


BucketName = Annotated[str, typer.Argument(metavar="BUCKET", help="The bucket's name.")]
Visibility = Annotated[
    str, typer.Option("--visibility", "-v", help="private, restricted (to the allowed users) or public.")
]
Allowed = Annotated[list[str] | None, typer.Option("--allow", "-u", help="A user's id; may be given often.")]


@group.command("create")
def create(
    name: BucketName,
    visibility: Visibility = "private",
    allow: Allowed = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
) -> None:
    """Create a bucket."""
    server = client(cluster, config)

    async def work() -> None:
        async with server:
            await server.create_bucket(name, visibility=visibility, allowed_users=allow or [])

    run(work())
    typer.echo(f"{name} created")


@group.command("list")
@group.command("ls", hidden=True)
def list_(cluster: ClusterOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the buckets that you may see."""
    show_buckets(client(cluster, config), as_json=as_json)


def show_buckets(server: Client, *, as_json: bool) -> None:
    """Print the buckets of a server."""

    async def work() -> list[Bucket]:
        async with server:
            return await server.buckets()

    found = run(work())
    if as_json:
        output.as_json([bucket.model_dump(mode="json") for bucket in found])
        return
    rows = [
        (bucket.bucket_name, bucket.visibility, bucket.owner, ", ".join(bucket.allowed_users))
        for bucket in found
    ]
    output.table(("BUCKET", "VISIBILITY", "OWNER", "ALLOWED USERS"), rows)


@group.command("get")
def get(
    name: BucketName,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a bucket and what it holds."""
    server = client(cluster, config)

    async def work() -> BucketContent:
        async with server:
            first = await server.bucket(name)
            objects, page = list(first.objects), first.next_page
            while page:
                more = await server.bucket(name, page=page)
                objects += more.objects
                page = more.next_page
            return first.model_copy(
                update={"objects": tuple(objects), "next_page": "", "is_truncated": False}
            )

    found = run(work())
    if as_json:
        output.as_json(found.model_dump(mode="json", exclude={"next_page", "is_truncated"}))
        return
    typer.echo(f"{found.bucket_name}: {found.visibility}, owner {found.owner or 'unknown'}")
    if found.allowed_users:
        typer.echo(f"allowed users: {', '.join(found.allowed_users)}")
    rows = [
        (output.size(entry.size_bytes), output.time(entry.last_modified), entry.object_name)
        for entry in found.objects
    ]
    output.table(("SIZE", "MODIFIED", "KEY"), rows)


@group.command("update")
def update(
    name: BucketName,
    visibility: Visibility,
    allow: Allowed = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
) -> None:
    """Change who sees a bucket."""
    server = client(cluster, config)

    async def work() -> None:
        async with server:
            await server.update_bucket(name, visibility=visibility, allowed_users=allow or [])

    run(work())
    typer.echo(f"{name} updated")


@group.command("delete")
@group.command("rm", hidden=True)
def delete(
    names: Annotated[list[str], typer.Argument(metavar="BUCKET...", help="The buckets' names.")],
    force: Annotated[bool, typer.Option("--force", help="With all that they hold.")] = False,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
) -> None:
    """Remove buckets."""
    server = client(cluster, config)

    async def work() -> None:
        async with server:
            for name in names:
                await server.delete_bucket(name, force=force)
                typer.echo(f"{name} removed")

    run(work())


@group.command("presign")
def presign(
    target: Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="The object.")],
    upload: Annotated[bool, typer.Option("--upload", help="For an upload; else for a download.")] = False,
    expires: Annotated[
        str | None, typer.Option(help="How long it works, such as 30m, 12h or 7d (the most).")
    ] = None,
    content_type: Annotated[str | None, typer.Option(help="The type that the upload must have.")] = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an address by which anybody may download or upload one object for a while."""
    bucket, key = place(target)
    if not key:
        raise Misuse("write BUCKET/KEY")
    seconds = _seconds(expires) if expires else None
    server = client(cluster, config)

    async def work() -> Presigned:
        async with server:
            return await server.presign(
                bucket,
                key,
                operation="upload" if upload else "download",
                expires_in=seconds,
                content_type=content_type,
            )

    found = run(work())
    if as_json:
        output.as_json(found.model_dump(mode="json"))
    else:
        typer.echo(found.url)


def _seconds(text: str) -> int:
    try:
        return int(as_seconds(text))
    except PydanticCustomError as error:
        raise Misuse(f"--expires: {error.message()}") from None
