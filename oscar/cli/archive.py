"""`oscar export` and `oscar import`: an installation on this machine as one file, and back.

They work on the data folder, not by the API, so `export` needs no running server and `import` must not have one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oscar.cli import output
from oscar.cli.output import JsonOption

if TYPE_CHECKING:
    from oscar.core.archive import Summary

DataOption = Annotated[Path | None, typer.Option(help="The data folder (OSCAR_DATA).", file_okay=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("export")(export)
    app.command("import")(import_)


def export(
    file: Annotated[Path, typer.Argument(help="The archive: a new file, compressed when it ends in .gz.")],
    data: DataOption = None,
    objects: Annotated[
        bool, typer.Option("--objects/--without-objects", help="With what is in the buckets.")
    ] = True,
    keys: Annotated[
        bool, typer.Option("--keys/--without-keys", help="With the keys that open the secrets.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Write an installation into a file: services, users, buckets, objects, jobs, logs. The server may run."""
    from oscar.core import archive
    from oscar.settings import Settings

    settings = Settings(data=data) if data else Settings()
    written = archive.write(settings, file.absolute(), objects=objects, keys=keys)
    _tell(written, f"wrote {file}", as_json=as_json)
    if keys:
        output.warn(
            "the archive holds keys and passwords: keep it as you keep those (--without-keys leaves them out)"
        )
    if keys and settings.secret_key:
        output.warn("the secrets in it are sealed by OSCAR_SECRET_KEY, which is not in the archive")


def import_(
    file: Annotated[Path, typer.Argument(help="The archive.", exists=True, dir_okay=False)],
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a data folder of an archive; the folder must be empty or not there. Then start the server on it."""
    from oscar.core import archive
    from oscar.settings import Settings

    settings = Settings(data=data) if data else Settings()
    found = archive.read(file, settings.data)
    _tell(found, f"made {settings.data}", as_json=as_json)
    if not (settings.secret_key or (settings.data / "secret-key").exists()):
        output.warn(
            "the archive holds no key: set OSCAR_SECRET_KEY, or put the file secret-key there, before the start"
        )


def _tell(summary: Summary, words: str, *, as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        output.as_json(asdict(summary))
        return
    typer.echo(f"{words}: {summary.objects} objects, {summary.files} files, {summary.size / 1024**2:.1f} MiB")
