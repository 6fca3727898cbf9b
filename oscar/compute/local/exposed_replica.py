"""One replica of an exposed service: its folder, its sandbox, its ports, and the question whether it answers.

    <data>/exposed/<name>/replica.json   for a later server to find it again; written before it starts, no secrets
    <data>/exposed/<name>/config/        script and definition, seen by it read-only
    <data>/exposed-logs/<name>.log       what it says

Called by `exposed_fleet`; calls an `Engine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

from oscar.compute.base import Replica
from oscar.compute.local.engine import Engine, Mount, Sandbox
from oscar.compute.local.records import boot_id
from oscar.errors import EngineError
from oscar.model.service import Service
from oscar.supervisor.plan import function_config, service_environment

PREFIX = "x-"
HOST = "127.0.0.1"
CONFIG = "/oscar/config"
RECORD = "replica.json"
PROBE_LIMIT = 5.0
"""Seconds that an answer to a probe may take."""
_HEAD = 64 * 1024


@dataclass(frozen=True, slots=True)
class Kit:
    """What replicas of a service are made of; equal kits make replicas that can stand in for one another."""

    service: Service
    revision: str
    ports: tuple[int, ...]
    env: dict[str, str] = field(repr=False)

    @classmethod
    def of(cls, service: Service, restarts: int) -> Kit:
        """The kit of a definition with its secrets."""
        env = service_environment(service)
        parts = [
            service.image,
            service.script if not service.expose.default_command else "",
            service.expose.default_command,
            service.expose.api_port,
            service.cpu_millicores,
            service.memory_bytes,
            service.enable_gpu,
            sorted(env.items()),
            restarts,
        ]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return cls(service, digest[:16], tuple(service.expose.api_port), env)

    @property
    def health_path(self) -> str:
        """What a probe asks for: as the server sees it when it is asked through the platform, or `direct`."""
        expose = self.service.expose
        prefix = self.env["OSCAR_SERVICE_BASE_PATH"] if expose.rewrite_target else ""
        path = expose.health_path if expose.probe_mode == "direct" else prefix + expose.health_path
        return quote(path, safe="/%?&=:;,+@~!$'()*")


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a replica for a later server."""

    name: str
    owner: str
    service: str
    revision: str
    ports: dict[int, int]
    boot: str
    cpu: int
    """Limit in millicores."""

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in a folder; None when there is none that makes sense."""
        try:
            data = json.loads((folder / RECORD).read_bytes())
            ports = {int(inside): int(outside) for inside, outside in data.pop("ports").items()}
            return cls(**data, ports=ports)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, folder: Path) -> None:
        """Keep it, durably."""
        draft = folder / f"{RECORD}.new"
        with draft.open("w") as out:
            json.dump(asdict(self), out)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(folder / RECORD)


def new_name(owner: str, service: str, revision: str) -> str:
    """A name for a replica that has never been."""
    return f"{prefix_of(owner, service)}{revision[:6]}-{secrets.token_hex(4)}"


def prefix_of(owner: str, service: str) -> str:
    """How the names of a service's replicas begin."""
    digest = hashlib.sha256(f"{owner}\0{service}".encode()).hexdigest()[:12]
    return f"{PREFIX}{digest}-"


def free_ports(ports: tuple[int, ...], taken: set[int]) -> dict[int, int]:
    """For each port one of this machine that nobody has; the system names it.

    It may be taken by another program before the replica listens there: then the replica fails, and the next one
    gets another.
    """
    found: dict[int, int] = {}
    with contextlib.ExitStack() as open_ones:
        for port in ports:
            while port not in found:
                listener = open_ones.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                listener.bind((HOST, 0))
                number = listener.getsockname()[1]
                if number not in taken:
                    found[port] = number
    return found


@dataclass(frozen=True, slots=True)
class Attached:
    """What else it gets: the service's volume and mount, and variables that say where they are."""

    mounts: tuple[Mount, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


async def create(
    engine: Engine, kit: Kit, record: Record, folder: Path, log: Path, attached: Attached
) -> None:
    """Write its folder and start it; silent when it was started before.

    Raises:
        EngineError, ImageError, InvalidField: it certainly did not start.
    """
    try:
        await asyncio.to_thread(_furnish, kit, record, folder, log)
    except OSError as error:
        raise EngineError(f"the replica's folder can't be made: {error.strerror}") from error
    await engine.start(_sandbox(engine, kit, record, folder, log, attached))


def _furnish(kit: Kit, record: Record, folder: Path, log: Path) -> None:
    config, work = folder / "config", folder / "work"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o755)
    record.write(folder)
    config.mkdir(exist_ok=True)
    config.chmod(0o755)
    work.mkdir(exist_ok=True)
    work.chmod(0o777)
    script = config / "script.sh"
    script.write_text(kit.service.script)
    script.chmod(0o755)
    definition = config / "function_config.yaml"
    definition.write_text(function_config(kit.service))
    definition.chmod(0o644)
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    log.touch(mode=0o600)


def _sandbox(
    engine: Engine, kit: Kit, record: Record, folder: Path, log: Path, attached: Attached
) -> Sandbox:
    service = kit.service
    script = f"{CONFIG}/script.sh" if engine.maps_paths else str(folder / "config/script.sh")
    own_command = service.expose.default_command or not service.script
    # As OSCAR starts it: a script with a first line of its own (#!/usr/bin/env python3) runs by that.
    # A shell that waited for it would get its SIGTERM.
    argv = ("/bin/sh", "-c", 'exec "$0"', script) if service.script.startswith("#!") else ("/bin/sh", script)
    told = {f"OSCAR_PORT_{inside}": str(_told(engine, inside, record)) for inside in kit.ports}
    told["OSCAR_BIND_ADDRESS"] = HOST if engine.shares_network else "0.0.0.0"  # noqa: S104 - of the container alone
    first = str(_told(engine, kit.ports[0], record))
    # A container's port is the service's own, so there a PORT of the user's choice may stand.
    env = {**kit.env, **told, "PORT": first} if engine.shares_network else {"PORT": first, **kit.env, **told}
    mounts = (Mount(folder / "config", CONFIG, read_only=True),) if engine.maps_paths else ()
    workdir = ""
    if engine.shares_network:
        workdir = "/oscar/work" if engine.maps_paths else str(folder / "work")
        mounts = (*mounts, Mount(folder / "work", "/oscar/work")) if engine.maps_paths else ()
    return Sandbox(
        name=record.name,
        image=service.image,
        argv=() if own_command else argv,
        env={**env, **attached.variables},
        mounts=(*mounts, *attached.mounts),
        workdir=workdir,
        log=log,
        cpu=service.cpu_millicores,
        memory=service.memory_bytes,
        gpu=1 if service.enable_gpu else 0,
        labels={"oscar.service": service.name},
        ports=record.ports,
    )


def _told(engine: Engine, inside: int, record: Record) -> int:
    """The port on which the server in the sandbox is to listen."""
    return record.ports[inside] if engine.shares_network else inside


def record_of(kit: Kit, name: str, ports: dict[int, int]) -> Record:
    """What is kept of a new replica."""
    service = kit.service
    return Record(name, service.owner, service.name, kit.revision, ports, boot_id(), service.cpu_millicores)


def address_of(record: Record) -> Replica:
    """The replica as the proxy sees it."""
    return Replica(record.name, HOST, record.ports)


async def probe(replica: Replica, port: int, path: str) -> str:
    """Ask the server for its health path; what is wrong with the answer, empty when nothing is.

    As Kubernetes does: a status from 200 to 399 within the time is health.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(PROBE_LIMIT):
            reader, writer = await asyncio.open_connection(replica.host, replica.ports[port], limit=_HEAD)
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {replica.host}:{port}\r\nUser-Agent: oscar-probe\r\n"
                "Accept: */*\r\nConnection: close\r\n\r\n".encode("latin-1", "replace")
            )
            line = await reader.readline()
    except TimeoutError:
        return f"no answer within {PROBE_LIMIT:.0f} seconds"
    except (OSError, ValueError) as error:
        return f"no connection to port {port} ({error})"
    finally:
        if writer is not None:
            writer.transport.abort()
    words = line.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():  # noqa: PLR2004
        return f"no HTTP from port {port}"
    status = int(words[1])
    return "" if 200 <= status < 400 else f"{path} answers {status}"  # noqa: PLR2004 - as Kubernetes has it


def last_words(log: Path) -> str:
    """The last line that it said, shortened; empty when there is none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4096))
            rows = [row.split(b" ", 3) for row in file.read().splitlines()]
    except OSError:
        return ""
    texts = [row[3] for row in rows if len(row) == 4 and row[3].strip()]  # noqa: PLR2004 - time, stream, tag
    return texts[-1].decode("utf-8", "replace")[:200] if texts else ""


def now_ms() -> int:
    """Unix milliseconds."""
    return int(time.time() * 1000)
