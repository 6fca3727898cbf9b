"""`oscar serve`, `demo` and `doctor`: the server on this machine.

Loads the server's modules only when one of these commands runs, so that the others start fast.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from oscar.cli import output
from oscar.cli.session import JsonOption


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("serve")(serve)
    app.command("demo")(demo)
    app.command("doctor")(doctor)


def serve() -> None:
    """Run the server. Its settings are environment variables, see docs/configuration.md."""
    from oscar.app import serve as start
    from oscar.settings import Settings

    start(Settings())


def demo(
    output_folder: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A folder for the pictures; a new one if not given.", file_okay=False
        ),
    ] = None,
) -> None:
    """Send a picture through a function on a server of its own, by containers and by processes."""
    from rich.console import Console

    from oscar.demo import demo as show

    if output_folder:
        output_folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(show(Console(), output=output_folder))


def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine's engine can do and what is missing."""
    from oscar.core.doctor import report
    from oscar.settings import Settings

    found = asyncio.run(report(Settings()))
    if as_json:
        output.as_json(found)
    else:
        typer.echo(found)
