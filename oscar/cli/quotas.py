"""`oscar quota …`: what users may have at once.

Calls `oscar.client`.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from oscar.cli import output
from oscar.cli.output import JsonOption
from oscar.cli.session import ClusterOption, ConfigOption, client, run
from oscar.errors import Misuse

group = typer.Typer(help="What users may have at once.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(group, name="quota")


_NO_LIMIT = "no limit"


@group.command("get")
def get(
    user: Annotated[
        str | None, typer.Argument(metavar="USER", help="Whose; your own when absent. For administrators.")
    ] = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show quotas and what is used of them."""
    server = client(cluster, config)

    async def work() -> dict[str, Any]:
        async with server:
            return await server.quota(user)

    _show(run(work()), as_json=as_json)


@group.command("set")
def set_(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose.")],
    cpu: Annotated[
        str | None, typer.Option(help="Millicores of running jobs together, or cores as 2.5.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Their memory, such as 4Gi.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Their GPUs.")] = None,
    ephemeral_storage: Annotated[
        str | None, typer.Option(help="Their ephemeral storage, such as 10Gi.")
    ] = None,
    buckets: Annotated[str | None, typer.Option(help="Buckets that the user may own.")] = None,
    bucket_storage: Annotated[
        str | None, typer.Option(help="What each of them may hold, such as 5Gi.")
    ] = None,
    volumes: Annotated[str | None, typer.Option(help="Volumes that the user may have.")] = None,
    volume_disk: Annotated[str | None, typer.Option(help="Their size together, such as 7Gi.")] = None,
    volume_max: Annotated[str | None, typer.Option(help="Largest size of one volume.")] = None,
    volume_min: Annotated[str | None, typer.Option(help="Least size of one volume.")] = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set some of a user's quotas; "none" lifts a limit. For administrators."""
    limits = {"cpu": cpu, "memory": memory, "gpu": gpu, "ephemeral_storage": ephemeral_storage}
    minio = {"buckets": buckets, "storage_per_bucket": bucket_storage}
    disk = {
        "volumes": volumes,
        "disk": volume_disk,
        "max_disk_per_volume": volume_max,
        "min_disk_per_volume": volume_min,
    }
    update: dict[str, Any] = _given(limits)
    for name, values in (("minio", minio), ("volumes", disk)):
        if given := _given(values):
            update[name] = given
    if not update:
        raise Misuse("give at least one limit", fix="see `oscar quota set --help`")
    server = client(cluster, config)

    async def work() -> dict[str, Any]:
        async with server:
            return await server.set_quota(user, update)

    _show(run(work()), as_json=as_json)


def _given(values: dict[str, str | None]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _show(quota: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.as_json(quota)
        return
    rows = [
        (name, _text(values.get("used")), _text(values.get("max"), _NO_LIMIT))
        for name, values in (quota.get("resources") or {}).items()
    ]
    minio = quota.get("minio") or {}
    buckets, each = minio.get("buckets") or {}, minio.get("storage_per_bucket") or {}
    rows.append(("buckets", _text(buckets.get("used")), _text(buckets.get("max"), _NO_LIMIT)))
    rows.append(("storage per bucket", "", _text(each.get("max"), _NO_LIMIT)))
    rows.append(("storage of all", _text((minio.get("storage_total") or {}).get("used")), ""))
    volumes = quota.get("volumes") or {}
    for name in ("disk", "volumes"):
        values = volumes.get(name) or {}
        title = "volumes" if name == "volumes" else "size of volumes"
        rows.append((title, _text(values.get("used")), _text(values.get("max"), _NO_LIMIT)))
    output.table(("QUOTA OF " + _text(quota.get("user_id")), "USED", "LIMIT"), rows)


def _text(value: object, absent: str = "") -> str:
    return absent if value is None else str(value)
