"""Staging in a container of its own, before and after the user's: `python -m oscar.supervisor in|out`.

Started by the pods that `compute.kubernetes` makes. The folder of the run is shared with the user's container, which
sees its `work` and, read-only, its `config`. Ends with 0, or 1 and a `Report` that says why; what it says goes to
its own log as well. Memory does not grow with the size of files.

Each run waits for the start of two such containers, so that what is loaded here counts: no pydantic, and libraries for
other stores than the own one only when the run has business there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from oscar.errors import BadRequest, OscarError, StorageError
from oscar.model.event import decode
from oscar.model.producer import Producer
from oscar.model.trouble import Trouble, trouble_of
from oscar.objects.s3 import S3Store
from oscar.supervisor import asking
from oscar.supervisor.asking import Answer
from oscar.supervisor.moves import event_file
from oscar.supervisor.order import CONFIG, PAYLOAD, SCRIPT, WITHDRAWN, Order, Report, read_order
from oscar.supervisor.stage import Stores, stage_in, stage_out

ROOT = Path("/oscar")
"""The run's folder, in the staging containers and in the user's."""
ORDER_FOLDER = Path("/run/oscar")
STARTED = "state/started"
"""Below the root: made, once, by who starts the script."""
POD = "POD_UID"
"""The variable that names this pod."""
MESSAGE = Path("/dev/termination-log")

_PAUSES = (1.0, 4.0, 15.0)
"""Seconds before results are stored once more: the script may have worked for hours."""
_TRIES = 5


class StartedTwice(OscarError):
    """The run was started before: whether its script had an effect is not known."""


@dataclass(slots=True)
class Voice:
    """Says lines, and remembers them for the report."""

    lines: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, text: str) -> None:
        """Say a line."""
        now = time.time_ns()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}Z"
        self.lines.append((at, text))
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def main(step: str, *, root: Path = ROOT, folder: Path = ORDER_FOLDER, message: Path = MESSAGE) -> int:
    """Do a step; the exit code.

    Args:
        step: `in` or `out`.
        root: the run's folder.
        folder: where the order is.
        message: the termination message.
    """
    voice = Voice()
    work = {"in": before, "out": after}[step]
    try:
        asyncio.run(_until_told(work(read_order(folder), root, folder, voice)))
        report = Report()
    except asyncio.CancelledError:
        report = Report(trouble=Trouble.OUR, message="staging was stopped")
    except StartedTwice as error:
        report = Report(trouble=Trouble.LOST, message=error.message)
    except OscarError as error:
        report = Report(trouble=trouble_of(error), message=error.message)
    except OSError as error:
        report = Report(trouble=Trouble.OUR, message=f"{error.strerror}: {error.filename}")
    report.lines = voice.lines
    message.write_text(report.as_message())
    return 1 if report.trouble else 0


async def _until_told(work: Coroutine[Any, Any, None]) -> None:
    """Do the work; SIGTERM ends it, which the first process of a container would not see otherwise."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


async def before(order: Order, root: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Everything before the script.

    Raises:
        StartedTwice: another pod, or this one before, has begun the run.
        BadRequest: its payload is wrong.
    """
    if (root / STARTED).exists():
        raise StartedTwice
    await _mark(order, os.environ.get(POD, ""))
    if order.fault:
        raise BadRequest(order.fault)
    bodies = {name: await _body(order, folder, name) for name in (PAYLOAD, SCRIPT, CONFIG)}
    for name, mode in (("work", 0o777), ("config", 0o755), ("state", 0o777)):
        (root / name).mkdir(exist_ok=True)
        # Not by mkdir's mode, which the umask cuts: the users of images are anybody.
        (root / name).chmod(mode)
    await asyncio.to_thread(_furnish, root / "config", bodies)
    content = decode(bodies[PAYLOAD]).content
    files = () if content is None else (event_file(order.job_id, content),)
    async with _stores(order) as stores:
        await stage_in(replace(order.moves, files=files), root / "work", stores, say)
    if not bodies[SCRIPT]:
        # The image's own command runs, which can't make the mark itself.
        (root / STARTED).touch(exist_ok=False)


async def after(order: Order, root: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Everything after it."""
    del folder
    producer = Producer.of(order.job_id, order.hops, order.trace)
    async with _stores(order) as stores:
        for pause in (*_PAUSES, None):
            try:
                await stage_out(order.moves, root / "work", stores, say, producer)
            except OscarError as error:
                if pause is None or trouble_of(error) is not Trouble.OUR:
                    raise
                say(f"storing the results failed, again in {pause:.0f} s: {error.message}")
                await asyncio.sleep(pause)
            else:
                return


@dataclass(frozen=True, slots=True)
class _Own:
    """Stores of a run that needs none but the platform's own."""

    store: S3Store

    def open(self, provider: str) -> S3Store:
        """See `Stores.open`."""
        del provider
        return self.store


@contextlib.asynccontextmanager
async def _stores(order: Order) -> AsyncIterator[Stores]:
    keys = order.own
    own = S3Store(keys.endpoint, keys.access_key, keys.secret_key, keys.region, verify=keys.verify)
    try:
        if order.definition is None:
            yield _Own(own)
            return
        from oscar.model.service import Service
        from oscar.objects.reach import reach_of
        from oscar.supervisor.providers import Clients, Providers

        clients = Clients(reach_of(order.hosts))
        try:
            yield Providers(Service.model_validate(order.definition), own, clients)
        finally:
            await clients.close()
    finally:
        await own.close()


def _furnish(config: Path, bodies: Mapping[str, bytes]) -> None:
    files = {"function_config.yaml": bodies[CONFIG], "event": bodies[PAYLOAD]}
    if bodies[SCRIPT]:
        files["script.sh"] = bodies[SCRIPT]
    for name, content in files.items():
        (config / name).write_bytes(content)
        (config / name).chmod(0o755 if name.endswith(".sh") else 0o644)


async def _body(order: Order, folder: Path, name: str) -> bytes:
    if name in order.urls:
        return (await _insist(order, "GET", order.urls[name])).body
    path = folder / name
    return await asyncio.to_thread(path.read_bytes) if path.exists() else b""


async def _mark(order: Order, pod: str) -> None:
    """Say durably that this pod does the run; another one has no business with it then."""
    marker = order.marker
    if marker is None:
        return
    answer = await _insist(
        order, "PUT", marker.put, pod.encode(), {"If-None-Match": "*"}, also=(HTTPStatus.PRECONDITION_FAILED,)
    )
    if answer.status != HTTPStatus.PRECONDITION_FAILED:
        return
    # Our own mark, when the answer to it was lost or the container was started again.
    found = (await _insist(order, "GET", marker.get)).body.decode(errors="replace")
    if found == WITHDRAWN:
        raise StorageError("the run was withdrawn before it began")
    if not pod or found != pod:
        raise StartedTwice(f"the run was begun by another pod ({found}) before")


async def _insist(
    order: Order,
    method: str,
    url: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    also: tuple[int, ...] = (),
) -> Answer:
    """The own store's answer, waited for while trouble may pass.

    Raises:
        StorageError: it refuses, or can't be reached.
    """
    words = ""
    for attempt in range(_TRIES):
        if attempt:
            await asyncio.sleep(2.0 ** (attempt - 1))
        try:
            answer = await asyncio.to_thread(
                asking.ask, method, url, body, headers or {}, verify=order.own.verify
            )
        except asking.NoAnswer as error:
            words = str(error)
            continue
        if answer.is_success or answer.status in also:
            return answer
        words = f"it answered {answer.status}"
        if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR and answer.status not in {
            HTTPStatus.CONFLICT,
            HTTPStatus.TOO_MANY_REQUESTS,
        }:
            break
    raise StorageError(f"the platform's own store can't be used from this pod: {words}")
