"""Carrying out a plan: inputs into the work folder before the script, results to their stores after it.

Called by engines, beside the sandbox and never in it. Is given the stores (`providers`), and calls `results` for what
the script left. Both verbs may be repeated after a crash. Every error names provider, bucket and key.
"""

from __future__ import annotations

import contextlib
import errno
import mimetypes
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from oscar.errors import BucketNotFound, OscarError, StorageError, StorageFull
from oscar.model.producer import Producer
from oscar.model.provider import OWN_STORE
from oscar.supervisor import results
from oscar.supervisor.moves import Download, InputFile, Moves
from oscar.supervisor.results import Result
from oscar.supervisor.ways import Loop, Way

if TYPE_CHECKING:
    from oscar.objects.base import Transfers

Say = Callable[[str], None]
"""Appends one line to the job's log."""

SMALL = 64 * 1024
"""Bytes that are written at once: handing them to a thread would take longer."""

_LEVELS = {"NOTSET": 0, "DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_STAGING = ".staging"
_LOOP = Loop()


class Stored(NamedTuple):
    """A result that was stored."""

    name: str
    provider: str
    bucket: str
    key: str
    size: int


class Speaker:
    """Says lines of the supervisor, as far as the service's log level lets it."""

    def __init__(self, say: Say, level: str) -> None:
        self._say = say
        self._level = _LEVELS.get(level, _LEVELS["INFO"])

    def info(self, text: str) -> None:
        """What was done."""
        self._line("INFO", text)

    def warning(self, text: str) -> None:
        """What the script's author should know."""
        self._line("WARNING", text)

    def _line(self, level: str, text: str) -> None:
        if _LEVELS[level] >= self._level:
            # A key or name may hold line breaks, which would forge lines of the log.
            self._say(
                f"supervisor {level}: {text}".replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
            )


class Stores(Protocol):
    """The stores that one run's moves name."""

    def open(self, provider: str) -> Transfers:
        """The store that a provider string names.

        Raises:
            InvalidField: it is not defined, or without address or keys.
        """


async def stage_in(moves: Moves, work: Path, stores: Stores, say: Say, *, way: Way = _LOOP) -> None:
    """Fill `in` of the work folder, and make `out`; the script must not run yet.

    Args:
        moves: of the run.
        work: the work folder on this machine; it exists.
        stores: of the service.
        say: for the job's log.
        way: how it waits; without an event loop the stores must not need one either.

    Raises:
        ObjectNotFound, BucketNotFound, Forbidden, StorageError: an input can't be had, with the store's words.
        StorageFull: this machine's disk is full.
        Unsupported, InvalidField: a provider can't be used.
    """
    speaker = Speaker(say, moves.log_level)
    try:
        for name in ("in", "out"):
            _make_folder(work / name)
        for file in moves.files:
            if len(file.content) <= SMALL:
                _write(work, file)
            else:
                await way.aside(_write, work, file)
        if moves.downloads:
            await _download_all(moves.downloads, work, stores, speaker, way)
    except OSError as error:
        raise _disk(error) from error


async def stage_out(
    moves: Moves,
    work: Path,
    stores: Stores,
    say: Say,
    producer: Producer | None = None,
    *,
    way: Way = _LOOP,
) -> list[Stored]:
    """Store what the script left in `out`; the script must have ended.

    Args:
        moves: of the run.
        work: the work folder on this machine.
        stores: of the service.
        say: for the job's log.
        producer: the job, so that a repeated stage-out writes (and starts others) once.
        way: as for `stage_in`.

    Returns:
        What was stored, in the order of names.

    Raises:
        BucketNotFound, Forbidden, StorageError: a result can't be stored, with the store's words.
        Unsupported, InvalidField: a provider can't be used, or there are too many files.
    """
    speaker = Speaker(say, moves.log_level)
    found = await way.aside(results.find, work, moves.work, speaker.warning)
    by_name = {result.name: result for result in found}
    targets = moves.targets(by_name)
    for name in sorted(by_name.keys() - {target[0] for target in targets}) if moves.outputs else ():
        speaker.info(f"{name} is not stored: no output takes it")
    # Opened first, so that nothing is stored when one of the stores can't be used at all.
    opened = {provider: _open(stores, provider) for _, provider, _, _ in targets}

    async def store(target: tuple[str, str, str, str]) -> Stored:
        name, provider, bucket, key = target
        stored = await _upload(by_name[name], work, opened[provider], target, producer, way)
        speaker.info(f"stored {name} ({stored.size} bytes) as {provider} {bucket}/{key}")
        return stored

    return await way.all(store, targets)


async def _download_all(
    downloads: Sequence[Download], work: Path, stores: Stores, speaker: Speaker, way: Way
) -> None:
    opened = {
        download.provider: _open(stores, download.provider) for download in downloads if not download.url
    }
    # Not in `in`: what a killed server leaves half-done must not look like an input.
    with _staging(work) as staging:

        async def fetch(numbered: tuple[int, Download]) -> None:
            number, download = numbered
            place = f"{download.provider} {download.bucket}/{download.key}"
            path = staging / str(number)
            try:
                if download.url:
                    # Its library takes long to load, for those who use it.
                    from oscar.objects import origin

                    found = await origin.fetch(download.url, download.key, path)
                else:
                    found = await opened[download.provider].download(download.bucket, download.key, path)
            except OscarError as error:
                raise _named(error, place) from error
            _put_in_place(path, work / "in", download.name)
            speaker.info(f"fetched {place} ({found.size} bytes)")

        await way.all(fetch, list(enumerate(downloads)))


@contextlib.contextmanager
def _staging(work: Path) -> Iterator[Path]:
    """A folder of ours for the length of a block; earlier ones may have been left behind."""
    for left in work.glob(f"{_STAGING}*"):
        _remove(left)
    folder = work / _STAGING
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        import tempfile  # for what a script left there that we may not remove

        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=work))
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(path: Path) -> None:
    """Remove a folder, or what a script put in its place; silent when that can't be."""
    try:
        path.rmdir()
    except NotADirectoryError:
        with contextlib.suppress(OSError):
            path.unlink()
    except OSError:
        import shutil  # only after trouble: it loads all kinds of archives

        shutil.rmtree(path, ignore_errors=True)


async def _upload(
    result: Result,
    work: Path,
    store: Transfers,
    target: tuple[str, str, str, str],
    producer: Producer | None,
    way: Way,
) -> Stored:
    name, provider, bucket, key = target
    place = f"{provider} {bucket}/{key}"
    folder = await way.aside(results.open_folder, work, result)
    try:
        # By the folder's descriptor: nothing on the way can be exchanged for a link, and stores follow none
        # at its end.
        path = Path(f"/dev/fd/{folder}", result.parts[-1])
        kind = mimetypes.guess_type(name)[0]
        try:
            found = await store.upload(bucket, key, path, producer=producer, content_type=kind)
        except BucketNotFound:
            if provider == str(OWN_STORE):
                # Whose it would be only the core knows; it makes the buckets of services.
                raise
            await store.ensure_bucket(bucket)
            found = await store.upload(bucket, key, path, producer=producer, content_type=kind)
    except OscarError as error:
        raise _named(error, place) from error
    except OSError as error:
        raise _named(_disk(error), place) from error
    finally:
        os.close(folder)
    return Stored(name, provider, bucket, key, found.size)


def _open(stores: Stores, provider: str) -> Transfers:
    try:
        return stores.open(provider)
    except OscarError as error:
        raise _named(error, provider) from error


def _named(error: OscarError, place: str) -> OscarError:
    """The same error with its place in front."""
    message = error.message if error.message.startswith(place) else f"{place}: {error.message}"
    return type(error)(message, field=error.field, fix=error.fix)


def _disk(error: OSError) -> OscarError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull("the disk of the server is full")
    return StorageError(f"the work folder can't be written: {error.strerror or error}")


def _make_folder(path: Path) -> None:
    """A folder that the user of any image can write to; what is there already must be a real one."""
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir() or path.is_symlink():
            raise
    else:
        # Not by mkdir's mode, which the umask cuts.
        path.chmod(0o777)


def _write(work: Path, file: InputFile) -> None:
    path = work / file.path
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as opened:
        os.fchmod(opened.fileno(), 0o666)
        opened.write(file.content)


def _put_in_place(fetched: Path, inputs: Path, name: str) -> None:
    """Move a complete file to its name below the input folder."""
    path = inputs / name
    if path.parent != inputs:
        _make_folder(path.parent)
    fetched.chmod(0o666)
    fetched.replace(path)
