"""Staging in a container of its own, before and after the user's: `in` and `out` of `oscar.supervisor`.

Started by the pods that `compute.kubernetes` makes. The folder of the run is shared with the user's container, which
sees its `work` and, read-only, its `config`. Ends with 0, or 1 and a `Report` that says why; what it says goes to
its own log as well. Memory does not grow with the size of files.

Each run waits for the start of two such containers, so that what is loaded here counts: no event loop, no pydantic, and
libraries for other stores than the own one only when the run has business there.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from oscar.errors import BadRequest, OscarError, StorageError
from oscar.model.producer import Producer
from oscar.model.trouble import Trouble, trouble_of
from oscar.supervisor.asking import Answer, NoAnswer, Web
from oscar.supervisor.moves import InputFile, event_file
from oscar.supervisor.order import CONFIG, PAYLOAD, SCRIPT, WITHDRAWN, Order, Report, read_order
from oscar.supervisor.own import OwnStore, insist
from oscar.supervisor.stage import Stores, stage_in, stage_out
from oscar.supervisor.ways import Blocking, Loop, Way, finish

if TYPE_CHECKING:
    from oscar.objects.base import Transfers

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
_OWN_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before the own store is asked once more, before a run begins."""
_TAKEN = 412

Move = Callable[[Stores, Way], Coroutine[Any, Any, object]]
"""A step of `stage`."""


class StartedTwice(OscarError):
    """The run was started before: whether its script had an effect is not known."""


class _Stopped(KeyboardInterrupt):
    """Somebody ends this container. Of this kind, because an event loop lets no other out of its tasks at once."""


class Voice:
    """Says lines, and remembers them for the report."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

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
    # The first process of a container does not see this signal otherwise.
    signal.signal(signal.SIGTERM, _stop)
    try:
        try:
            {"in": before, "out": after}[step](read_order(folder), root, folder, voice)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a report is what they wait for
        report = Report()
    except _Stopped:
        report = Report(trouble=Trouble.OUR, message="staging was stopped")
    except StartedTwice as error:
        report = Report(trouble=Trouble.LOST, message=error.message)
    except OscarError as error:
        report = Report(trouble=trouble_of(error), message=error.message)
    except OSError as error:
        report = Report(trouble=Trouble.OUR, message=f"{error.strerror}: {error.filename}")
    message.write_text(report._replace(lines=voice.lines).as_message())
    return 1 if report.trouble else 0


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise _Stopped


def before(order: Order, root: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Everything before the script.

    Raises:
        StartedTwice: another pod, or this one before, has begun the run.
        BadRequest: its payload is wrong.
    """
    if (root / STARTED).exists():
        raise StartedTwice
    web = Web(verify=order.own.verify)
    _mark(web, order, os.environ.get(POD, ""))
    if order.fault:
        raise BadRequest(order.fault)
    bodies = {name: _body(web, order, folder, name) for name in (PAYLOAD, SCRIPT, CONFIG)}
    for name, mode in (("work", 0o777), ("config", 0o755), ("state", 0o777)):
        _make_folder(root / name, mode)
    _furnish(root / "config", bodies)
    moves = order.moves._replace(files=_files(order, bodies[PAYLOAD]))
    _stage(web, order, lambda stores, way: stage_in(moves, root / "work", stores, say, way=way))
    if not bodies[SCRIPT]:
        # The image's own command runs, which can't make the mark itself.
        (root / STARTED).touch(exist_ok=False)


def after(order: Order, root: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Everything after it."""
    del folder
    web = Web(verify=order.own.verify)
    producer = Producer.of(order.job_id, order.hops, order.trace)
    for pause in (*_PAUSES, None):
        try:
            _stage(
                web,
                order,
                lambda stores, way: stage_out(order.moves, root / "work", stores, say, producer, way=way),
            )
        except OscarError as error:
            if pause is None or trouble_of(error) is not Trouble.OUR:
                raise
            say(f"storing the results failed, again in {pause:.0f} s: {error.message}")
            time.sleep(pause)
        else:
            return


def _stage(web: Web, order: Order, move: Move) -> None:
    if order.definition is None and not any(each.url for each in order.moves.downloads):
        finish(move(_Only(OwnStore(order.own, web)), Blocking()))
        return
    import asyncio

    asyncio.run(_stage_elsewhere(order, move))


async def _stage_elsewhere(order: Order, move: Move) -> None:
    """With stores, or the cluster that delegated the run, whose clients need an event loop."""
    from oscar.objects.s3 import S3Store

    keys = order.own
    own = S3Store(keys.endpoint, keys.access_key, keys.secret_key, keys.region, verify=keys.verify)
    try:
        if order.definition is None:
            await move(_Only(own), Loop())
            return
        from oscar.model.service import Service
        from oscar.objects.reach import reach_of
        from oscar.supervisor.providers import Clients, Providers

        clients = Clients(reach_of(order.hosts))
        try:
            await move(Providers(Service.model_validate(order.definition), own, clients), Loop())
        finally:
            await clients.close()
    finally:
        await own.close()


class _Only:
    """The stores of a run that is told no definition."""

    def __init__(self, store: Transfers) -> None:
        self._store = store

    def open(self, provider: str) -> Transfers:
        """See `Stores.open`."""
        del provider
        return self._store


def _make_folder(path: Path, mode: int) -> None:
    path.mkdir(exist_ok=True)
    # Not by mkdir's mode, which the umask cuts: the users of images are anybody. And only where it differs, since a
    # volume may belong to somebody else.
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def _furnish(config: Path, bodies: Mapping[str, bytes]) -> None:
    files = {"function_config.yaml": bodies[CONFIG], "event": bodies[PAYLOAD]}
    if bodies[SCRIPT]:
        files["script.sh"] = bodies[SCRIPT]
    for name, content in files.items():
        (config / name).write_bytes(content)
        (config / name).chmod(0o755 if name.endswith(".sh") else 0o644)


def _files(order: Order, payload: bytes) -> tuple[InputFile, ...]:
    if not order.inline:
        return ()
    from oscar.model.event import decode  # loads all kinds of events

    content = decode(payload).content
    return () if content is None else (event_file(order.job_id, content),)


def _body(web: Web, order: Order, folder: Path, name: str) -> bytes:
    if name in order.urls:
        return _insist(web, "GET", order.urls[name]).body
    path = folder / name
    return path.read_bytes() if path.exists() else b""


def _mark(web: Web, order: Order, pod: str) -> None:
    """Say durably that this pod does the run; another one has no business with it then."""
    marker = order.marker
    if marker is None:
        return
    headers = {"if-none-match": "*"}
    answer = _insist(web, "PUT", marker.put, pod.encode(), headers, also=(_TAKEN,))
    if answer.status != _TAKEN:
        return
    # Our own mark, when the answer to it was lost or the container was started again.
    found = _insist(web, "GET", marker.get).body.decode(errors="replace")
    if found == WITHDRAWN:
        raise StorageError("the run was withdrawn before it began")
    if not pod or found != pod:
        raise StartedTwice(f"the run was begun by another pod ({found}) before")


def _insist(
    web: Web,
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
    try:
        answer = insist(lambda: web.ask(method, url, body, headers), _OWN_PAUSES)
    except NoAnswer as error:
        words = str(error)
    else:
        if answer.is_success or answer.status in also:
            return answer
        words = f"it answered {answer.status}"
    raise StorageError(f"the platform's own store can't be used from this pod: {words}")
