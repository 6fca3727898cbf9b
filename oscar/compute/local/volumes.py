"""Managed volumes on this machine: folders, each in a file system of its own where that can be had.

Made by `backend`, which offers it as `HasVolumes`; `attachments` asks for the folder before a sandbox starts. A
volume of limited size is an ext4 image on a loop device, which takes root: whether that works is found out by doing
it. Elsewhere it is a plain folder whose content is measured.

    <key>/size     bytes that it may have
    <key>/image    the file system; absent for a plain folder
    <key>/fs       where it is mounted
    <key>/fs/data  what containers see, writable for any user of an image
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
from pathlib import Path

from oscar import telemetry
from oscar.compute.base import VolumeUsage
from oscar.compute.local.engine import Engine
from oscar.errors import EngineError, StorageFull
from oscar.supervisor.trees import disk_use, remove_tree

_KEY = re.compile(r"[a-z0-9][a-z0-9-]{0,100}")
_NEW, _GONE = ".new-", ".gone-"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OPTIONS = "loop,nosuid,nodev,noatime"
_PROBE_SIZE = 4 * 1024 * 1024


class Volumes:
    """The volumes below a folder. Verbs of one volume are done one after the other."""

    def __init__(self, folder: Path, engine: Engine, *, images: bool | None = None) -> None:
        """Nothing happens before `start`.

        Args:
            folder: of the volumes alone; the engine must be able to mount folders below it.
            engine: that mounts them.
            images: whether new volumes get a file system of their own; None to find out.
        """
        self._folder = folder
        self._engine = engine
        self._images = images
        self._locks: dict[str, asyncio.Lock] = {}
        self._log = telemetry.get("volumes")

    @property
    def enforces(self) -> bool:
        """Whether new volumes are kept below their size by a file system of their own."""
        return bool(self._images)

    async def start(self) -> None:
        """Find out what can be had, and remove what a crash left half-made or half-removed."""
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        for path in await asyncio.to_thread(lambda: list(self._folder.iterdir())):
            if path.name.startswith((_NEW, _GONE)):
                await self._remove(path)

    async def stop(self) -> None:
        """Unmount what nothing has open; runs that go on keep theirs."""
        for path in await asyncio.to_thread(self._known):
            if (path / "image").exists() and _is_mounted(path / "fs"):
                with contextlib.suppress(EngineError):
                    await _tool("umount", str(path / "fs"))

    async def create(self, key: str, size: int) -> None:
        """See `HasVolumes.create_volume`."""
        async with self._lock(key):
            place = self._place(key)
            if place.exists():
                return
            draft = place.with_name(f"{_NEW}{key}")
            await self._remove(draft)
            try:
                await asyncio.to_thread(self._draft, draft, size)
                if await self._has_images():
                    await self._make_image(draft, size)
                else:
                    await asyncio.to_thread(_make_data, draft / "fs")
                await asyncio.to_thread(draft.rename, place)
            except OSError as error:
                await self._remove(draft)
                raise _translated(error) from error
            except EngineError:
                await self._remove(draft)
                raise

    async def delete(self, key: str) -> None:
        """See `HasVolumes.delete_volume`."""
        async with self._lock(key):
            place = self._place(key)
            gone = place.with_name(f"{_GONE}{key}")
            await self._remove(gone)
            # Unmounted before it moves: afterwards nobody would find the mount by its path.
            await self._unmount(place)
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(place.rename, gone)
            try:
                await self._remove(gone)
            except OSError as error:
                # A run that is being ended may still write there; it is out of the way, the next start removes it.
                self._log.warning("a volume is not wholly removed yet", volume=key, reason=str(error))

    async def usage(self, key: str) -> VolumeUsage:
        """See `HasVolumes.volume_usage`."""
        data = await self.folder(key)
        place = self._place(key)
        size = int(await asyncio.to_thread((place / "size").read_text))
        if (place / "image").exists():
            found = await asyncio.to_thread(os.statvfs, data)
            return VolumeUsage((found.f_blocks - found.f_bfree) * found.f_frsize, size, enforced=True)
        try:
            used = await asyncio.to_thread(disk_use, data)
        except PermissionError:
            await self._engine.own(data)
            used = await asyncio.to_thread(disk_use, data)
        except OSError as error:
            raise EngineError(f"the volume can't be measured: {error.strerror}") from error
        return VolumeUsage(used, size, enforced=False)

    async def measure(self, key: str) -> VolumeUsage | None:
        """What lies in a volume that no file system keeps below its size; None for the others, which need no look."""
        return None if (self._place(key) / "image").exists() else await self.usage(key)

    async def folder(self, key: str) -> Path:
        """The folder to mount into containers; its file system is mounted when this returns.

        Raises:
            EngineError: there is no such volume, or its file system can't be mounted.
        """
        async with self._lock(key):
            place = self._place(key)
            if (place / "image").exists():
                await self._mount(place)
            if not (place / "fs/data").is_dir():
                raise EngineError(f"there is no volume {key} on this machine")
            return place / "fs/data"

    # Images.

    async def _has_images(self) -> bool:
        if self._images is None:
            self._images = await self._probe()
        return self._images

    async def _probe(self) -> bool:
        """Whether a file system on a loop device can be made and mounted here."""
        # A docker daemon may live where our mounts are not seen, as in a virtual machine.
        if os.geteuid() != 0 or self._engine.name == "docker":
            return False
        draft = self._folder / f"{_NEW}.probe"
        try:
            await self._remove(draft)
            await asyncio.to_thread(self._draft, draft, _PROBE_SIZE)
            await self._make_image(draft, _PROBE_SIZE)
        except (EngineError, OSError) as error:
            self._log.info("volumes are measured, no file system keeps their size", reason=str(error))
            return False
        finally:
            await self._remove(draft)
        return True

    async def _make_image(self, draft: Path, size: int) -> None:
        image = draft / "image"
        await asyncio.to_thread(_sparse, image, size)
        await _tool("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", str(image))
        await self._mount(draft)
        await asyncio.to_thread(_make_data, draft / "fs")
        # A mount is found again by its path, and that is about to change.
        await _tool("umount", str(draft / "fs"))

    async def _mount(self, place: Path) -> None:
        target = place / "fs"
        if _is_mounted(target):
            return
        try:
            await _tool("mount", "-t", "ext4", "-o", _OPTIONS, str(place / "image"), str(target))
        except EngineError:
            # After a crash of the machine the journal may not be enough.
            await _tool("e2fsck", "-p", str(place / "image"), good=(0, 1))
            await _tool("mount", "-t", "ext4", "-o", _OPTIONS, str(place / "image"), str(target))

    async def _unmount(self, place: Path) -> None:
        target = place / "fs"
        if target.is_dir() and _is_mounted(target):
            try:
                await _tool("umount", str(target))
            except EngineError:
                await _tool("umount", "--lazy", str(target))

    # Folders.

    def _place(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise EngineError(f"{key!r} is not a name for a volume")
        return self._folder / key

    def _known(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if _KEY.fullmatch(path.name)]

    def _lock(self, key: str) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    def _draft(self, draft: Path, size: int) -> None:
        (draft / "fs").mkdir(parents=True)
        (draft / "size").write_text(str(size))

    async def _remove(self, path: Path) -> None:
        await self._unmount(path)
        try:
            await asyncio.to_thread(remove_tree, path)
        except PermissionError:
            await self._engine.own(path)
            await asyncio.to_thread(remove_tree, path)
        except FileNotFoundError:
            pass


def _make_data(fs: Path) -> None:
    data = fs / "data"
    data.mkdir()
    data.chmod(0o777)  # the user of the image may be anybody


def _sparse(image: Path, size: int) -> None:
    with image.open("xb") as file:
        file.truncate(size)


def _is_mounted(path: Path) -> bool:
    return os.path.ismount(path)


async def _tool(name: str, *words: str, good: tuple[int, ...] = (0,)) -> None:
    """Run one of the system's tools.

    Raises:
        EngineError: it is not there, or says no; with its words.
    """
    program = shutil.which(name, path=_PATH)
    if program is None:
        raise EngineError(f"{name} is not installed")
    process = await asyncio.create_subprocess_exec(
        program,
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": _PATH, "LC_ALL": "C"},
    )
    said, _ = await process.communicate()
    if process.returncode not in good:
        raise EngineError(
            f"{name}: {said.decode('utf-8', 'replace').strip() or f'exit code {process.returncode}'}"
        )


def _translated(error: OSError) -> EngineError | StorageFull:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull("the disk of the server is full")
    return EngineError(f"the volume can't be made: {error.strerror}: {error.filename}")
