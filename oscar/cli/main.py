"""The command tree, and how errors become messages and exit codes.

Called by the script `oscar` and `python -m oscar`; puts the commands of the other modules together. Only those of the
first word are loaded: all of them and their client are a tenth of a server's start, and would stay in its memory.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.main import get_command

import oscar
from oscar.errors import InvocationTimeout, Misuse, OscarError, Unreachable

OK, FAILED, USAGE, REFUSED, NO_SERVER, INTERRUPTED = 0, 1, 2, 3, 4, 130


PARTS = {
    "server": ("serve", "demo", "doctor", "minio-environment"),
    "archive": ("export", "import"),
    "services": ("service", "apply", "delete", "run"),
    "jobs": ("job", "logs"),
    "files": ("put", "get", "ls", "rm"),
    "metrics": ("metrics",),
    "buckets": ("bucket",),
    "volumes": ("volume",),
    "clusters": ("cluster",),
    "quotas": ("quota",),
    "federation": ("federation",),
}
"""The modules and the first words of their commands."""


def program(word: str = "") -> typer.Typer:
    """The program, with all its commands; with the first word of one, only the module that has it."""
    app = typer.Typer(
        name="oscar",
        help="Event-driven data processing: put a file in a bucket and a function runs on it.",
        epilog="Exit codes: 0 done, 1 the job failed, 2 wrong usage, 3 the server refused, 4 no server.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    parts = [part for part, words in PARTS.items() if word in words] or PARTS
    for part in parts:
        importlib.import_module(f"oscar.cli.{part}").register(app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(oscar.__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit.

    Args:
        argv: the words behind the program's name; those of the process when absent.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    code = run(words)
    # Threads of the S3 library may still come back to Python when it is being taken down, and abort the process
    # (seen in one of eight commands on Python 3.11): flush what was said, and leave without taking it down.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.flush()
    os._exit(code)


def run(words: Sequence[str]) -> int:
    """Run a command line; its exit code. Errors go to standard error, as JSON when `--json` is among the words."""
    try:
        app = program(words[0] if words else "")
        code = get_command(app).main(list(words), prog_name="oscar", standalone_mode=False)
    except typer.TyperException as error:
        return _wrong_words(error, words)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Misuse as error:
        return _tell(error.message, error.fix, error.as_dict(), USAGE, words)
    except Unreachable as error:
        return _tell(error.message, error.fix, error.as_dict(), NO_SERVER, words)
    except OscarError as error:
        code = FAILED if isinstance(error, InvocationTimeout) else REFUSED
        return _tell(error.message, error.fix, error.as_dict(), code, words)
    except BrokenPipeError:
        # The reader of a pipe such as `| head` has what it wanted; Python would complain at exit.
        sys.stdout = None
        return OK
    except OSError as error:
        words_of = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _tell(words_of, None, {"code": "file"}, USAGE, words)
    return code if isinstance(code, int) else OK


def _wrong_words(error: typer.TyperException, words: Sequence[str]) -> int:
    """What the parser has against the words; with no words at all, its help."""
    show = getattr(error, "show", None)
    if "--json" in words or show is None:
        return _tell(str(error), None, {"code": Misuse.code}, USAGE, words)
    show()
    return USAGE


def _tell(message: str, fix: str | None, facts: dict[str, str], code: int, words: Sequence[str]) -> int:
    if "--json" in words:
        typer.echo(json.dumps({"message": message, **facts}), err=True)
        return code
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {message}", err=True)
    if fix:
        typer.echo(f"  {fix}", err=True)
    return code
