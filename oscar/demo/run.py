"""The demo itself: which engines work here, a run with each, and what is shown of it.

Called by `oscar.cli`; calls the server it starts by the client, over REST and S3, as any user would.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from oscar.client import Client
from oscar.demo import image, picture
from oscar.demo.server import NotStarted, Server, running, tail
from oscar.errors import EngineMissing, ImageError, Unavailable
from oscar.model.fdl import parse_fdl

EXAMPLE = "thumbnail/thumbnail.yaml"
NAME = "mountains"
ENGINE_ANSWERS_WITHIN = 20.0


@dataclass(slots=True)
class Outcome:
    """What came of a run with one engine. Times in seconds."""

    engine: str
    times: dict[str, float] = field(default_factory=dict)
    log: str = ""
    files: list[Path] = field(default_factory=list)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Note how long the block took."""
        start = time.perf_counter()
        yield
        self.times[what] = time.perf_counter() - start


def examples() -> Path:
    """The folder of examples: beside the package in a checkout, inside it when installed.

    Raises:
        Unavailable: it is in neither place.
    """
    package = Path(__file__).parents[1]
    for folder in (package.parent / "examples", package / "examples"):
        if (folder / EXAMPLE).exists():
            return folder
    raise Unavailable("The examples are not installed", fix="Run the demo from a checkout.")


async def container_engine() -> str:
    """The container engine that works here, found out by running it.

    Raises:
        EngineMissing: neither podman nor docker works, with their own words.
    """
    troubles = []
    for name in ("podman", "docker"):
        if not shutil.which(name):
            troubles.append(f"{name} is not installed")
            continue
        try:
            code, said = await image.output(name, "info", within=ENGINE_ANSWERS_WITHIN)
        except TimeoutError:
            code, said = 1, "no answer"
        if code == 0:
            return name
        troubles.append(f"{name} does not work: {said.splitlines()[-1] if said else f'exit code {code}'}")
    installed = any(shutil.which(name) for name in ("podman", "docker"))
    fix = "`oscar doctor` says more" if installed else "As root: apt-get install podman runc debootstrap"
    raise EngineMissing("; ".join(troubles), fix=fix)


@dataclass(frozen=True, slots=True)
class Site:
    """A cluster for the demo."""

    image: str
    """Of the server; it has Python, so that the function runs in it as well."""
    settings: Mapping[str, str]
    """Of the demo's server."""


async def demo(console: Console, *, output: Path | None = None, site: Site | None = None) -> None:
    """Send a picture through a function, once with containers and once with processes, or once on a cluster.

    Args:
        console: where to show it.
        output: the folder for what comes out; a new one when absent.
        site: the cluster.

    Raises:
        OscarError: something did not work.
    """
    start = time.perf_counter()
    outputs = output or Path(tempfile.mkdtemp(prefix="oscar-demo-"))
    drawn = outputs / f"{NAME}.png"
    drawn.write_bytes(await asyncio.to_thread(picture.draw))
    console.print(
        f"A picture was drawn: [bold]{drawn}[/] ({drawn.stat().st_size // 1024} KiB)", soft_wrap=True
    )
    if site is not None:
        outcomes = [await once(console, "kubernetes", site.image, drawn, settings=site.settings)]
    else:
        outcomes = await here(console, drawn)
    console.print(table(outcomes))
    console.print(f"Outputs: {outputs}. All of it took {time.perf_counter() - start:.1f} s.", soft_wrap=True)


async def here(console: Console, drawn: Path) -> list[Outcome]:
    """By containers and by processes of this machine, as far as they work.

    Raises:
        OscarError: something else did not work.
    """
    outcomes = []
    try:
        engine = await container_engine()
        name = await image.ensure(engine, console.print)
        outcomes.append(await once(console, engine, name, drawn))
    except (EngineMissing, ImageError, NotStarted) as why:
        # A job that fails is no such thing: it ends the demo.
        console.print(
            "[yellow]Not by containers:[/]",
            escape(f"{last_words(why.message)}. {why.fix or ''}"),
            soft_wrap=True,
        )
    try:
        outcomes.append(await once(console, "process", None, drawn))
    except NotStarted as why:
        console.print("[yellow]Not in a sandbox:[/]", escape(last_words(why.message)), soft_wrap=True)
        outcomes.append(await once(console, "process", None, drawn, unsafe=True))
    return outcomes


def last_words(message: str) -> str:
    """Of a server's log the line that says why it ended; all of a message of one line."""
    lines = message.strip().splitlines()
    reasons = [line.partition(": ")[2] for line in lines if re.match(r"oscar\.[\w.]+: ", line)]
    return reasons[-1] if reasons else lines[-1]


def table(outcomes: list[Outcome]) -> Table:
    """The times of all runs side by side."""
    shown = Table("", *(outcome.engine for outcome in outcomes))
    for what in outcomes[0].times:
        shown.add_row(what, *(f"{outcome.times[what] * 1000:,.0f} ms" for outcome in outcomes))
    return shown


async def once(
    console: Console,
    engine: str,
    image_name: str | None,
    drawn: Path,
    *,
    unsafe: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Outcome:
    """One server, one service, one picture.

    Raises:
        OscarError: something did not work.
    """
    outcome = Outcome(engine)
    console.rule(f"[bold]{engine}")
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="oscar-demo-", ignore_cleanup_errors=True)
        )
        with outcome.timed("server start"):
            server = await stack.enter_async_context(
                running(engine, Path(folder), unsafe=unsafe, settings=settings)
            )
        console.print(
            f"API page: {server.url}/docs, S3 server: {server.s3} (as long as this runs)", soft_wrap=True
        )
        await through(server, outcome, image_name, drawn)
    console.print("[bold]Log of the job:[/]")
    console.print(outcome.log.rstrip(), highlight=False, markup=False, soft_wrap=True)
    for file in outcome.files:
        console.print(f"[bold]Output:[/] {file}", soft_wrap=True)
    return outcome


async def through(server: Server, outcome: Outcome, image_name: str | None, drawn: Path) -> None:
    """Make the service, upload the picture, follow the log of its job and fetch what came out.

    Raises:
        OscarError: something did not work.
    """
    definition = thumbnail(image_name)
    service = str(definition["name"])
    async with Client(server.url, user=server.user, password=server.password) as client:
        with outcome.timed("service made"):
            await client.create(definition)
        storage = await client.storage()
        with outcome.timed("upload"):
            await storage.put(drawn, service, f"in/{drawn.name}")
        with outcome.timed("upload to output"):
            # The job exists before the upload is answered.
            listed = await client.jobs_page(service)
            job = await client.wait(service, listed.jobs[0].name)
        outcome.log = await client.logs(service, job.job_id)
        if not job.succeeded:
            raise Unavailable(f"The job is {job.state}: {job.message}\n{outcome.log}\n{tail(server.log)}")
        folder = drawn.parent / outcome.engine
        folder.mkdir(exist_ok=True)
        async for stored in storage.list(service, "out/"):
            file = folder / Path(stored.key).name
            await storage.get(service, stored.key, file)
            outcome.files.append(file)


def thumbnail(image_name: str | None) -> dict[str, Any]:
    """The definition of the example's service with its script and the image to use, its own if None."""
    file = examples() / EXAMPLE
    (declared,) = parse_fdl(file.read_text(), read_script=lambda name: (file.parent / name).read_text())
    definition = dict(declared.definition)
    if image_name:
        definition["image"] = image_name
    return definition
