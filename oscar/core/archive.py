"""An installation as one file: `oscar export` writes it, `oscar import` makes a data folder of it.

Called by the command line. The archive is a tar file:

    manifest.json   what it is: format, version, installation, what it holds
    secret-key, password, s3-secret   with keys
    blobs/, payloads/, logs/   bodies of objects and of jobs, logs
    oscar.db        a copy of the database at one moment
    end.json        how many files there were; an archive without it is not whole

The server may run while it is written. Bodies never change; as they may be removed, hard links hold them meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import oscar
from oscar.errors import BadRequest, Conflict, StorageError, StorageFull
from oscar.settings import Settings
from oscar.state.backup import Contents, contents, snapshot, trim

FORMAT = 1
DATABASE = "oscar.db"
KEYS = ("secret-key", "password", "s3-secret")
_TRIES = 10
"""How often a running server may remove bodies between the copy of the database and our links to them."""
_BLOCK = 1024 * 1024
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NAMES = re.compile(
    r"oscar\.db|secret-key|password|s3-secret"
    r"|blobs/[0-9a-f]{2}/[0-9a-f]{22}|payloads/[0-9a-f]{32}|logs/[A-Za-z0-9][A-Za-z0-9_.-]{0,220}"
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive says of itself."""

    format: int
    version: str
    schema: str
    installation: str
    created: int
    """Unix milliseconds."""
    keys: bool
    objects: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """What was written or read."""

    manifest: Manifest
    objects: int
    files: int
    size: int
    """Bytes of all files."""


class DamagedArchive(BadRequest):
    """The archive is not whole, or none of ours."""

    code = "damaged_archive"


# Out


def write(settings: Settings, file: Path, *, objects: bool = True, keys: bool = True) -> Summary:
    """Write an archive of an installation, which may be running. Blocking.

    Args:
        settings: of the installation.
        file: the archive, which must not exist; compressed when it ends in `.gz`.
        objects: also the objects in the buckets.
        keys: also the keys that open the secrets, and the administrator's password.

    Raises:
        Conflict: the file exists; there is no installation, or it keeps its data in another database.
        StorageError, StorageFull: a file can't be read or written.
    """
    if settings.database_url:
        raise Conflict(
            "Only an installation with the database in its data folder can be exported",
            field="OSCAR_DATABASE_URL",
            fix="use pg_dump for the database, and copy the data folder after it (docs/upgrade.md)",
        )
    if file.exists():
        raise Conflict(f"{file} exists already", fix="choose another name")
    with _disk(file.parent), _scratch(settings.data) as scratch:
        try:
            found = _hold(settings.data, scratch, objects=objects)
            manifest = Manifest(
                FORMAT, oscar.__version__, found.schema, found.installation, _now(), keys, objects
            )
            draft = file.with_name(f".{file.name}.{os.getpid()}")
            try:
                files = _files(settings.data, scratch, found, keys=keys)
                summary = _pack(draft, manifest, files, found, compressed=file.suffix == ".gz")
                os.link(draft, file)
            finally:
                draft.unlink(missing_ok=True)
        except FileExistsError:
            raise Conflict(f"{file} exists already", fix="choose another name") from None
    return summary


@contextmanager
def _scratch(data: Path) -> Iterator[Path]:
    # In the data folder, because hard links don't leave a file system.
    if not data.is_dir():
        raise Conflict(f"There is no installation in {data}", field="OSCAR_DATA")
    with tempfile.TemporaryDirectory(prefix=".export-", dir=data) as scratch:
        yield Path(scratch)


def _hold(data: Path, scratch: Path, *, objects: bool) -> Contents:
    """Copy the database, and link all bodies that it names into the scratch folder."""
    copy = scratch / DATABASE
    for _ in range(_TRIES):
        copy.unlink(missing_ok=True)
        # What is there before the copy is held first: it may be replaced while the database is copied.
        for folder in ("blobs/[0-9a-f][0-9a-f]", "payloads") if objects else ("payloads",):
            for path in data.glob(f"{folder}/*"):
                _link(path, scratch / path.relative_to(data))
        found = snapshot(data / DATABASE, copy)
        wanted = found if objects else replace(found, bodies=frozenset())
        missing = [name for name in _bodies(wanted) if not _link(data / name, scratch / name)]
        if not missing:
            return trim(copy, objects=objects)
    # Replaced while we looked, again and again; or lost, which a copy must not hide.
    raise StorageError(
        f"{len(missing)} bodies are missing, {missing[0]} for one", fix="stop the server first"
    )


def _bodies(found: Contents) -> Iterator[str]:
    yield from (f"blobs/{name[12:14]}/{name}" for name in sorted(found.bodies))
    yield from (f"payloads/{name}" for name in sorted(found.payloads))


def _link(source: Path, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return True  # linked before
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    return True


def _files(data: Path, scratch: Path, found: Contents, *, keys: bool) -> Iterator[tuple[str, Path]]:
    if keys:
        yield from ((name, data / name) for name in KEYS if (data / name).exists())
    yield from ((name, scratch / name) for name in _bodies(found))
    if (data / "logs").is_dir():
        for log in sorted((data / "logs").iterdir()):
            if _NAMES.fullmatch(f"logs/{log.name}") and log.is_file():
                yield f"logs/{log.name}", log
    yield DATABASE, scratch / DATABASE


def _pack(
    draft: Path, manifest: Manifest, files: Iterator[tuple[str, Path]], found: Contents, *, compressed: bool
) -> Summary:
    count = size = 0
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        with (
            gzip.GzipFile("", "wb", 6, out) if compressed else contextlib.nullcontext(out) as target,
            tarfile.open(fileobj=target, mode="w|", bufsize=_BLOCK) as archive,
        ):
            _add(archive, "manifest.json", json.dumps(asdict(manifest)).encode())
            for name, path in files:
                try:
                    opened = path.open("rb")
                except FileNotFoundError:
                    continue  # a log whose job was removed meanwhile: all else is held
                with opened:
                    info = _info(name, os.fstat(opened.fileno()).st_size)
                    # Logs may grow while they are read, and are cut never.
                    archive.addfile(info, opened)
                count, size = count + 1, size + info.size
            _add(archive, "end.json", json.dumps({"files": count, "size": size}).encode())
        out.flush()
        os.fsync(out.fileno())
    return Summary(manifest, len(found.bodies), count, size)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    archive.addfile(_info(name, len(content)), io.BytesIO(content))


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(time.time())
    return info


# In


def read(file: Path, data: Path) -> Summary:
    """Make a data folder of an archive. Blocking.

    Args:
        file: the archive.
        data: a folder that is empty or not there.

    Raises:
        Conflict: the folder holds something.
        DamagedArchive: the archive is not whole, or none of ours; nothing is left of it.
        StorageError, StorageFull: a file can't be read or written.
    """
    with _disk(data):
        made = not data.exists()
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _claim(data)
        try:
            return _unpack(file, data)
        except BaseException:
            _clear(data, itself=made)
            raise
        finally:
            os.close(lock)


def _claim(data: Path) -> int:
    """The lock that a server takes as well, of a folder without anything else."""
    if any(data.iterdir()):
        raise _not_empty(data)
    lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise _not_empty(data) from None
    return lock


def _not_empty(data: Path) -> Conflict:
    return Conflict(
        f"{data} is not empty", field="OSCAR_DATA", fix="name a folder that is empty or not there"
    )


def _clear(data: Path, *, itself: bool) -> None:
    for path in data.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if itself:
        data.rmdir()


def _unpack(file: Path, data: Path) -> Summary:
    try:
        with file.open("rb") as source, tarfile.open(fileobj=source, mode="r|*", bufsize=_BLOCK) as archive:
            manifest, count, size = _members(archive, data)
    except (tarfile.TarError, EOFError, KeyError, TypeError, ValueError) as error:
        raise DamagedArchive(f"{file} is no archive of an installation, or not whole: {error}") from error
    draft = data / f"{DATABASE}.new"
    if not draft.exists():
        raise DamagedArchive(f"{file} holds no database")
    found = contents(draft)
    if found.installation != manifest.installation:
        raise DamagedArchive(f"{file} holds the database of another installation")
    if missing := [name for name in _bodies(found) if not (data / name).exists()]:
        raise DamagedArchive(f"{file} lacks {len(missing)} bodies, {missing[0]} for one")
    # All else is on the disk before there is a database that refers to it.
    os.sync()
    draft.rename(data / DATABASE)
    os.sync()
    return Summary(manifest, len(found.bodies), count, size)


def _members(archive: tarfile.TarFile, data: Path) -> tuple[Manifest, int, int]:
    manifest: Manifest | None = None
    count = size = 0
    for member in archive:
        content = archive.extractfile(member) if member.isreg() else None
        if content is None:
            raise ValueError(f"{member.name!r} is not a file")
        if manifest is None:
            manifest = _manifest(member, content)
        elif member.name == "end.json":
            if json.load(content) != {"files": count, "size": size}:
                raise ValueError("files are missing")
            return manifest, count, size
        else:
            _extract(member.name, content, data)
            count, size = count + 1, size + member.size
    raise ValueError("its end is missing")


def _manifest(member: tarfile.TarInfo, content: IO[bytes]) -> Manifest:
    if member.name != "manifest.json":
        raise ValueError("it does not begin with a manifest")
    said: dict[str, Any] = json.load(content)
    if said["format"] != FORMAT:
        raise DamagedArchive(
            f"The archive has the format {said['format']}, this program reads {FORMAT}",
            fix=f"import it with version {said.get('version')} or newer",
        )
    return Manifest(**said)


def _extract(name: str, content: IO[bytes], data: Path) -> None:
    if not _NAMES.fullmatch(name):
        raise ValueError(f"{name!r} has no place in it")
    path = data / (f"{name}.new" if name == DATABASE else name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
        shutil.copyfileobj(content, out, _BLOCK)


# Both


def _now() -> int:
    return int(time.time() * 1000)


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"The disk of {place} is full; nothing was kept") from error
        raise StorageError(f"{error.filename or place}: {error.strerror or error}") from error
