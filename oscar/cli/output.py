"""What commands print: tables for people, JSON for programs, progress bars on a terminal.

Called by every command. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def as_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows: drawn on a terminal, else in plain columns that are never cut."""
    # Takes a tenth of a second to import, which commands without a table don't pay.
    from rich.console import Console
    from rich.table import Table

    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    console = Console()
    if console.is_terminal:
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for heading in headings:
            drawn.add_column(heading, overflow="fold")
        for row in texts:
            drawn.add_row(*row)
        console.print(drawn, markup=False, highlight=False)
        return
    widths = [max(len(line[index]) for line in [headings, *texts]) for index in range(len(headings))]
    for line in [list(headings), *texts]:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        typer.echo("  ".join(cells).rstrip())


def say(message: str) -> None:
    """Tell the user something that is not the result."""
    typer.echo(message, err=True)


def warn(message: str) -> None:
    """Tell the user of something that may not be as meant."""
    typer.echo(f"{typer.style('warning:', fg='yellow')} {message}", err=True)


def raw(data: bytes) -> None:
    """Write bytes to standard output as they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def time(moment: datetime | None) -> str:
    """A moment in the user's own time zone, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def size(count: int) -> str:
    """A number of bytes for people: `1.4 MiB`."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":  # noqa: PLR2004 - what a KiB is
            break
        amount /= 1024
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


class Transfer(Protocol):
    """A progress bar of one file, or nothing at all."""

    def expect(self, total: int) -> None:
        """How many bytes there will be."""

    def advance(self, count: int) -> None:
        """So many more bytes are across."""


class _Silent:
    def expect(self, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass


class _Bar:
    def __init__(self, bars: Bars, name: str) -> None:
        self._bars = bars
        self._task = bars.add_task(name, total=None)

    def expect(self, total: int) -> None:
        self._bars.update(self._task, total=total)

    def advance(self, count: int) -> None:
        self._bars.advance(self._task, count)


class Transfers:
    """Progress bars of several files."""

    def __init__(self, bars: Bars | None) -> None:
        self._bars = bars

    def start(self, name: str) -> Transfer:
        """The bar of another file."""
        return _Bar(self._bars, name) if self._bars else _Silent()


@contextmanager
def transfers(*, quiet: bool = False) -> Iterator[Transfers]:
    """Show progress while the block runs: on a terminal only, and not when `quiet`."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Transfers(None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console) as bars:
        yield Transfers(bars)
