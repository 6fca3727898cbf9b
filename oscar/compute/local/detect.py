"""Which engine this machine has: tried in the order podman, docker, processes, by running something in each.

What was found is kept in the data folder as long as neither the tool nor the machine's boot changes, so that a
start is fast. Called by `app.py` (`choose`) and `core.doctor` (`try_all`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from oscar import telemetry
from oscar.compute.local.containers import Containers
from oscar.compute.local.engine import Engine, Facts
from oscar.compute.local.processes import Processes
from oscar.compute.local.records import boot_id
from oscar.errors import EngineMissing

ORDER = ("podman", "docker", "process")
"""Containers first; podman first of them, because it needs no daemon."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and for whom engines work."""

    data: Path
    """The server's data folder, which no script may see."""
    installation: str
    """Tells what is ours from what other servers on this machine made."""
    unsafe: bool = False
    """Run scripts without any sandbox rather than not at all."""
    visible: tuple[Path, ...] = ()
    """Folders besides the system's that scripts of the process engine may read."""

    @property
    def folder(self) -> Path:
        """What engines write down."""
        return self.data / "engine"


@dataclass(frozen=True, slots=True)
class Trial:
    """How an engine did: a description when it works, else what is in the way."""

    name: str
    works: bool
    words: str
    facts: Facts


async def choose(wanted: str, place: Place) -> Engine:
    """The engine to use, ready.

    Args:
        wanted: `auto`, or the name of one.
        place: where it works.

    Raises:
        EngineMissing: none works, or the wanted one does not, with the engines' own words.
    """
    if ":" in str(place.data):
        raise EngineMissing(
            f"engines can't mount folders whose path has a colon: {place.data}", field="OSCAR_DATA"
        )
    reasons: list[str] = []
    for name in ORDER if wanted == "auto" else [wanted]:
        engine = make(name, place)
        try:
            await _probe(engine, place)
        except EngineMissing as error:
            await engine.close()
            reasons.append(f"{name}: {error.message}")
            continue
        except asyncio.CancelledError:
            await engine.close()
            raise
        return engine
    raise EngineMissing(
        "no engine works on this machine: " + "; ".join(reasons),
        field="OSCAR_ENGINE",
        fix="Install podman, docker or bubblewrap; `oscar doctor` says more.",
    )


async def try_all(place: Place, names: Sequence[str] = ORDER) -> list[Trial]:
    """How each engine does, tried anew."""

    async def one(name: str) -> Trial:
        engine = make(name, place)
        try:
            words = await engine.probe()
        except EngineMissing as error:
            return Trial(name, False, error.message, engine.facts)
        else:
            return Trial(name, True, words, engine.facts)
        finally:
            await engine.close()

    return list(await asyncio.gather(*(one(name) for name in names)))


def make(name: str, place: Place) -> Engine:
    """The engine of that name, not tried yet."""
    if name == "process":
        return Processes(
            place.folder / "processes",
            installation=place.installation,
            unsafe=place.unsafe,
            hidden=(place.data,),
            visible=place.visible,
        )
    return Containers(name, place.folder / name, installation=place.installation)


async def recheck(engine: Engine, place: Place) -> None:
    """Try an engine again whose facts were kept from before, while it is in use already."""
    if not isinstance(engine, Containers):
        return
    before = engine.facts
    try:
        await engine.probe()
    except EngineMissing as error:
        _kept(engine.name, place).unlink(missing_ok=True)
        telemetry.get("engine").warning("the engine does not work any more", reason=error.message)
        return
    if engine.facts != before:
        telemetry.get("engine").info("the engine has changed", engine=engine.facts.version)
    _keep(engine, place)


async def _probe(engine: Engine, place: Place) -> None:
    """Make the engine ready: with what is known of it when that still holds, else by trying it."""
    known = await asyncio.to_thread(_known, engine.name, place)
    if known and isinstance(engine, Containers):
        await engine.resume(known)
        return
    await engine.probe()
    if isinstance(engine, Containers):
        await asyncio.to_thread(_keep, engine, place)


def _kept(name: str, place: Place) -> Path:
    return place.folder / f"{name}.json"


def _known(name: str, place: Place) -> Facts | None:
    try:
        data = json.loads(_kept(name, place).read_bytes())
        if data["key"] != _key(name):
            return None
        lists = {key: tuple(value) for key, value in data["facts"].items() if isinstance(value, list)}
        return Facts(**{**data["facts"], **lists})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or written by another version


def _keep(engine: Containers, place: Place) -> None:
    file = _kept(engine.name, place)
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps({"key": _key(engine.name), "facts": asdict(engine.facts)}))
    draft.replace(file)


def _key(name: str) -> str:
    """Changes when what was found out may have changed: the tool, the boot, who we are, our limits."""
    program = shutil.which(name) or ""
    found = Path(program).stat() if program else None
    parts = [
        program,
        f"{found.st_mtime_ns} {found.st_size}" if found else "",
        boot_id(),
        str(os.geteuid()),
        str(resource.getrlimit(resource.RLIMIT_NOFILE)),
        str(resource.getrlimit(resource.RLIMIT_NPROC)),
        *(f"{key}={os.environ.get(key, '')}" for key in ("DOCKER_HOST", "CONTAINER_HOST", "CONTAINERS_CONF")),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
