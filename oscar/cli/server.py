"""`oscar serve`, `demo` and `doctor`: the server on this machine.

Loads the server's modules only when one of these commands runs, so that the others start fast.
"""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oscar.cli import output
from oscar.cli.output import JsonOption
from oscar.errors import Misuse, OscarError

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("serve")(serve)
    app.command("demo")(demo)
    app.command("doctor")(doctor)
    app.command("minio-environment")(minio_environment)


def serve(
    data: Annotated[Path | None, typer.Option(help="The data folder (OSCAR_DATA).")] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on (OSCAR_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="The port of the API (OSCAR_SERVICE_PORT).")] = None,
    s3_port: Annotated[int | None, typer.Option(help="The port of the S3 server (OSCAR_S3_PORT).")] = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, podman, docker or process (OSCAR_ENGINE).")
    ] = None,
    unsafe_process: Annotated[
        bool, typer.Option("--unsafe-process", help="Let processes run without a sandbox.")
    ] = False,
) -> None:
    """Run the server. All its settings are environment variables; options win over them."""
    # Importing the server makes nothing but what stays: collecting garbage meanwhile costs a fifth of the start.
    gc.disable()
    from pydantic import ValidationError

    from oscar.settings import Settings

    given: dict[str, object] = {
        "data": data,
        "host": host,
        "port": port,
        "s3_port": s3_port,
        "engine": engine,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if unsafe_process:
        given["unsafe_process"] = True
    try:
        settings = Settings(**given)  # type: ignore[arg-type]  # pydantic checks each of them
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Misuse(f"setting {first['loc'][0]}: {first['msg']}") from None
    from oscar.app.serve import serve as start

    try:
        start(settings)
    except OscarError as error:
        setting = f"{error.field}: " if error.field and error.field.isupper() else ""
        words = f"{setting}{error.message}. {error.fix or ''}".replace("\n", " ").strip()
        typer.echo(f"{typer.style('error:', fg='red', bold=True)} {words}", err=True)
        raise typer.Exit(1) from None


def demo(
    output_folder: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A folder for the pictures; a new one if not given.", file_okay=False
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="kubernetes: in pods of the cluster of KUBECONFIG; else on this machine.")
    ] = "",
) -> None:
    """Send a picture through a function on a server of its own, by containers and by processes, or in pods."""
    from rich.console import Console

    from oscar.demo import demo as show

    if engine not in {"", "kubernetes"}:
        raise Misuse("The demo shows all engines of this machine, or kubernetes", field="--engine")
    if output_folder:
        output_folder.mkdir(parents=True, exist_ok=True)
    if engine:
        asyncio.run(_demo_in_pods(Console(), output_folder))
    else:
        asyncio.run(show(Console(), output=output_folder))


async def _demo_in_pods(console: Console, output_folder: Path | None) -> None:
    """The demo on the cluster that the settings name, in a namespace that goes with it."""
    import uuid

    from oscar.compute.kubernetes.removal import remove_namespace
    from oscar.compute.kubernetes.survey import is_loopback
    from oscar.demo import Site
    from oscar.demo import demo as show
    from oscar.settings import Settings

    settings = Settings()
    if not settings.image:
        raise Misuse(
            "The server's image is not known, which is beside the function in its pod",
            field="OSCAR_IMAGE",
            fix="Set OSCAR_IMAGE to it, as the nodes of the cluster can pull it.",
        )
    if is_loopback(settings.host):
        raise Misuse(
            "Pods don't reach this machine at its loopback address, to fetch the picture",
            field="OSCAR_HOST",
            fix="Set OSCAR_HOST to an address of this machine that pods reach.",
        )
    namespace = f"oscar-demo-{uuid.uuid4().hex[:8]}"
    chosen = {
        "OSCAR_IMAGE": settings.image,
        "OSCAR_HOST": settings.host,
        "OSCAR_SERVICES_NAMESPACE": namespace,
        "KUBECONFIG": str(settings.kubeconfig or ""),
    }
    try:
        await show(console, output=output_folder, site=Site(settings.image, chosen))
    finally:
        await remove_namespace(settings.kubeconfig, namespace)


def minio_environment(
    url: Annotated[
        str, typer.Option(help="The API's address as MinIO reaches it (OSCAR_INTERNAL_URL, else OSCAR_URL).")
    ] = "",
    queue: Annotated[
        str, typer.Option(help="A lasting folder of MinIO's, in which events wait while this server is away.")
    ] = "/var/lib/minio-events",
    limit: Annotated[int, typer.Option(help="Events that may wait there.", min=1)] = 1_000_000,
    as_json: JsonOption = False,
) -> None:
    """Print the variables with which a MinIO reports uploads to this server; see OSCAR_STORE."""
    from oscar.app.stores import events_tokens
    from oscar.objects.minio_rules import environment
    from oscar.settings import Settings
    from oscar.state.secrets import Sealer, load_keys

    settings = Settings()
    address = url or settings.url_inside
    if not address:
        raise Misuse(
            "The address is not known by which MinIO reaches this server",
            field="OSCAR_INTERNAL_URL",
            fix="give it by --url, or set OSCAR_INTERNAL_URL",
        )
    sealer = Sealer(load_keys(settings.secret_key, settings.data / "secret-key"))
    token = events_tokens(settings, sealer)[0]
    found = environment(target=settings.events_target, url=address, token=token, queue=queue, limit=limit)
    if as_json:
        output.as_json(found)
    else:
        typer.echo("\n".join(f"{name}={value}" for name, value in found.items()))


def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine's engine can do and what is missing."""
    from oscar.core.doctor import report
    from oscar.settings import Settings

    found = asyncio.run(report(Settings()))
    if as_json:
        output.as_json([finding.as_dict() for finding in found])
    else:
        typer.echo("\n".join(map(str, found)))
    if any(finding.level == "missing" for finding in found):
        raise typer.Exit(1)
