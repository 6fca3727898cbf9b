"""Staging in a container of its own, before and after the user's: `python -m oscar.supervisor in|out`.

Started by the pods that `compute.kubernetes` makes. The folder of the run is shared with the user's container, which
sees its `work` and, read-only, its `config`. Ends with 0, or 1 and a `Report` that says why; what it says goes to
its own log as well. Memory does not grow with the size of files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from oscar.errors import OscarError, StorageError
from oscar.model.job import Trouble, trouble_of
from oscar.model.object import Producer
from oscar.model.service import Service
from oscar.objects.reach import reach_of
from oscar.objects.s3 import S3Store
from oscar.supervisor.order import PAYLOAD, SCRIPT, WITHDRAWN, Order, Report, read_order
from oscar.supervisor.plan import Plan, function_config, plan
from oscar.supervisor.providers import Clients, Providers
from oscar.supervisor.stage import stage_in, stage_out

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
_TIMEOUT_S = 30.0


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
    """
    if (root / STARTED).exists():
        raise StartedTwice
    async with httpx2.AsyncClient(timeout=_TIMEOUT_S, verify=order.own.verify, trust_env=False) as web:
        if order.marker is not None:
            await _mark(web, order, os.environ.get(POD, ""))
        payload = await _body(web, folder / PAYLOAD, order.payload_url)
        script = await _body(web, folder / SCRIPT, order.script_url)
    service = order.service.model_copy(update={"script": script.decode("utf-8", "surrogateescape")})
    planned = _plan(order, payload, root)
    for name, mode in (("work", 0o777), ("config", 0o755), ("state", 0o777)):
        (root / name).mkdir(exist_ok=True)
        # Not by mkdir's mode, which the umask cuts: the users of images are anybody.
        (root / name).chmod(mode)
    await asyncio.to_thread(_furnish, root / "config", service, payload, script)
    async with _providers(order) as providers:
        await stage_in(planned, root / "work", providers, say)
    if not script:
        # The image's own command runs, which can't make the mark itself.
        (root / STARTED).touch(exist_ok=False)


async def after(order: Order, root: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Everything after it."""
    del folder
    planned = _plan(order, await asyncio.to_thread((root / "config/event").read_bytes), root)
    producer = Producer.of(order.job_id, order.hops, order.trace)
    async with _providers(order) as providers:
        for pause in (*_PAUSES, None):
            try:
                await stage_out(planned, root / "work", providers, say, producer)
            except OscarError as error:
                if pause is None or trouble_of(error) is not Trouble.OUR:
                    raise
                say(f"storing the results failed, again in {pause:.0f} s: {error.message}")
                await asyncio.sleep(pause)
            else:
                return


def _plan(order: Order, payload: bytes, root: Path) -> Plan:
    return plan(order.service, payload, job_id=order.job_id, root=str(root))


@contextlib.asynccontextmanager
async def _providers(order: Order) -> AsyncIterator[Providers]:
    own = S3Store(
        order.own.endpoint,
        order.own.access_key,
        order.own.secret_key,
        order.own.region,
        verify=order.own.verify,
    )
    clients = Clients(reach_of(order.hosts))
    try:
        yield Providers(order.service, own, clients)
    finally:
        await clients.close()
        await own.close()


def _furnish(config: Path, service: Service, payload: bytes, script: bytes) -> None:
    files = {"function_config.yaml": function_config(service).encode(), "event": payload}
    if script:
        files["script.sh"] = script
    for name, content in files.items():
        (config / name).write_bytes(content)
        (config / name).chmod(0o755 if name.endswith(".sh") else 0o644)


async def _body(web: httpx2.AsyncClient, path: Path, url: str) -> bytes:
    if not url:
        return await asyncio.to_thread(path.read_bytes) if path.exists() else b""
    return (await _insist(lambda: web.get(url))).content


async def _mark(web: httpx2.AsyncClient, order: Order, pod: str) -> None:
    """Say durably that this pod does the run; another one has no business with it then."""
    marker = order.marker
    assert marker is not None  # noqa: S101 - narrows the type
    answer = await _insist(
        lambda: web.put(marker.put, content=pod.encode(), headers={"If-None-Match": "*"}),
        also=(httpx2.codes.PRECONDITION_FAILED,),
    )
    if answer.status_code != httpx2.codes.PRECONDITION_FAILED:
        return
    # Our own mark, when the answer to it was lost or the container was started again.
    found = await _insist(lambda: web.get(marker.get))
    if found.text == WITHDRAWN:
        raise StorageError("the run was withdrawn before it began")
    if not pod or found.text != pod:
        raise StartedTwice(f"the run was begun by another pod ({found.text}) before")


async def _insist(
    ask: Callable[[], Awaitable[httpx2.Response]], *, also: tuple[int, ...] = ()
) -> httpx2.Response:
    """The own store's answer, waited for while trouble may pass.

    Raises:
        StorageError: it refuses, or can't be reached.
    """
    words = ""
    for attempt in range(_TRIES):
        if attempt:
            await asyncio.sleep(2.0 ** (attempt - 1))
        try:
            answer = await ask()
        except httpx2.HTTPError as error:
            words = str(error) or type(error).__name__
            continue
        if answer.is_success or answer.status_code in also:
            return answer
        words = f"it answered {answer.status_code}"
        if answer.status_code < httpx2.codes.INTERNAL_SERVER_ERROR and answer.status_code not in {
            httpx2.codes.CONFLICT,
            httpx2.codes.TOO_MANY_REQUESTS,
        }:
            break
    raise StorageError(f"the platform's own store can't be used from this pod: {words}")
