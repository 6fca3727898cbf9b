"""A `mount` without FUSE: a folder that is made like the bucket before the script, and the bucket like it afterwards.

Called by `mounts` where rclone can't mount. `mount_merge` says what is to be done; this does it, with any
`FileStore`. A script's folder is not trusted: links are neither followed nor stored.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from oscar.compute.local.mount_merge import Act, Same, Step, merge
from oscar.errors import BucketNotFound, ObjectNotFound, StorageError, StorageFull
from oscar.objects.base import FileStore, Found

PARALLEL = 4
LARGEST = 100_000
"""Objects of a bucket that are mirrored."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOM = 64 * 1024 * 1024
"""Bytes that stay free on the disk."""


class Mirror:
    """A folder of one sandbox and the part of a bucket that it shows.

    Args:
        place: of this mirror alone; `data` in it is what the sandbox sees.
        store: where the bucket is.
        bucket: its name.
        prefix: the folder in it, empty for all.
        read_only: never change the bucket.
        say: told what the user should know.
    """

    def __init__(
        self,
        place: Path,
        store: FileStore,
        bucket: str,
        prefix: str,
        *,
        read_only: bool,
        say: Callable[[str], None],
    ) -> None:
        self.data = place / "data"
        self._place = place
        self._store = store
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._read_only = read_only
        self._say = say
        self._record = place / "alike.json"
        self._told: set[str] = set()
        self._turn = asyncio.Lock()

    async def pull(self) -> None:
        """Make the folder like the bucket; what a script has changed here and was not stored yet is stored.

        Raises:
            StorageError, Forbidden, BucketNotFound: with the store's words.
            StorageFull: it is too large for this disk.
        """
        await asyncio.to_thread(_make_open, self.data)
        async with self._turn:
            await self._even()

    async def push(self, *, resting: float = 0.0) -> None:
        """Make the bucket like the folder. Raises as `pull`.

        Args:
            resting: seconds for which a file must not have changed to be looked at: a program may be writing it.
        """
        async with self._turn:
            await self._even(resting)

    async def _even(self, resting: float = 0.0) -> None:
        before = await asyncio.to_thread(self._remembered)
        here = await asyncio.to_thread(self._here)
        found = await self._there()
        later: dict[str, Same] = {}
        if resting:
            latest = (time.time() - resting) * 1e9
            for name in [name for name, look in here.items() if int(look.rpartition(":")[2]) > latest]:
                # Left as it is on both sides this time.
                del here[name]
                found.pop(name, None)
                if name in before:
                    later[name] = before.pop(name)
        steps = merge(
            before, here, {name: each.etag for name, each in found.items()}, read_only=self._read_only
        )
        need = sum(found[step.name].size for step in steps if step.act is Act.FETCH)
        if need > await asyncio.to_thread(lambda: shutil.disk_usage(self._place).free) - _ROOM:
            raise StorageFull(f"the mounted folder has {need} bytes more than the disk of the server takes")
        try:
            await self._do(steps, before)
        finally:
            await asyncio.to_thread(self._remember, before | later)

    async def _do(self, steps: Sequence[Step], alike: dict[str, Same]) -> None:
        pending = iter(steps)

        async def worker() -> None:
            for step in pending:
                same = await self._step(step)
                if same is None:
                    alike.pop(step.name, None)
                else:
                    alike[step.name] = same

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(PARALLEL, len(steps))):
                    group.create_task(worker())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _step(self, step: Step) -> Same | None:
        key = self._prefix + step.name
        match step.act:
            case Act.FETCH:
                return await self._fetch(step.name, key)
            case Act.STORE:
                if step.clash:
                    self._say(
                        f"mount: {step.name} was changed here and in the bucket; the one from here is kept"
                    )
                return await self._put(step.name, key)
            case Act.DROP_HERE:
                await asyncio.to_thread(self._drop, step.name)
            case Act.DROP_THERE:
                await self._store.delete(self._bucket, key)
            case Act.FORGET:
                pass
        return None

    async def _fetch(self, name: str, key: str) -> Same | None:
        draft = self._place / f"fetch-{os.urandom(6).hex()}"
        try:
            found = await self._store.download(self._bucket, key, draft)
        except ObjectNotFound:
            return None  # removed meanwhile
        look = await asyncio.to_thread(self._put_in_place, draft, name)
        return Same(look, found.etag) if look else None

    async def _put(self, name: str, key: str) -> Same | None:
        try:
            folder = await asyncio.to_thread(self._open_parent, name)
        except OSError:
            return None  # removed or exchanged meanwhile: the next time tells
        try:
            base = PurePosixPath(name).name
            look = _look(os.stat(base, dir_fd=folder, follow_symlinks=False))
            if look is None:
                return None
            stored = await self._store.upload(self._bucket, key, Path(f"/dev/fd/{folder}", base))
        except FileNotFoundError:
            return None
        finally:
            os.close(folder)
        return Same(look, stored.etag)

    # There.

    async def _there(self) -> dict[str, Found]:
        found: dict[str, Found] = {}
        try:
            async for each in self._store.list(self._bucket, self._prefix):
                name = each.key.removeprefix(self._prefix)
                if not name or name.endswith("/"):
                    continue  # the marker of a folder
                if not _is_plain(name):
                    self._tell(f"mount: {each.key} can't be a file here and is left out")
                    continue
                found[name] = each
                if len(found) > LARGEST:
                    raise StorageError(f"the mounted folder has more than {LARGEST} objects")
        except BucketNotFound:
            if self._read_only:
                raise
            await self._store.ensure_bucket(self._bucket)
        # An object `a` beside `a/b` has no place in a file system.
        folders = {str(parent) for name in found for parent in PurePosixPath(name).parents}
        for name in folders & found.keys():
            self._tell(f"mount: {name} is a file and a folder in the bucket; the file is left out")
            del found[name]
        return found

    # Here. All of these block.

    def _here(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for place, _, files, folder in os.fwalk(self.data, follow_symlinks=False):
            inside = os.path.relpath(place, self.data)
            for base in files:
                try:
                    look = _look(os.stat(base, dir_fd=folder, follow_symlinks=False))
                except FileNotFoundError:
                    continue
                name = base if inside == "." else f"{inside}/{base}"
                if look is None:
                    self._tell(f"mount: {name} is no plain file and is not stored")
                else:
                    found[name] = look
        return found

    def _open_parent(self, name: str) -> int:
        """The folder of a file, opened part by part so that no link leads elsewhere."""
        folder = os.open(self.data, _FOLDER)
        for part in PurePosixPath(name).parts[:-1]:
            try:
                inner = os.open(part, _FOLDER, dir_fd=folder)
            finally:
                os.close(folder)
            folder = inner
        return folder

    def _put_in_place(self, draft: Path, name: str) -> str | None:
        try:
            draft.chmod(0o666)  # the user of the image may be anybody
            folder = os.open(self.data, _FOLDER)
            try:
                for part in PurePosixPath(name).parts[:-1]:
                    try:
                        os.mkdir(part, dir_fd=folder)
                        os.chmod(part, 0o777, dir_fd=folder)  # noqa: S103 - the user of the image may be anybody
                    except FileExistsError:
                        pass
                    inner = os.open(part, _FOLDER, dir_fd=folder)
                    os.close(folder)
                    folder = inner
                base = PurePosixPath(name).name
                os.replace(draft, base, dst_dir_fd=folder)
                return _look(os.stat(base, dir_fd=folder, follow_symlinks=False))
            finally:
                os.close(folder)
        except OSError as error:
            draft.unlink(missing_ok=True)
            self._tell(f"mount: {name} can't be put in its place: {error.strerror}")
            return None

    def _drop(self, name: str) -> None:
        try:
            folder = self._open_parent(name)
        except OSError:
            return
        try:
            os.unlink(PurePosixPath(name).name, dir_fd=folder)
        except FileNotFoundError:
            pass
        finally:
            os.close(folder)

    def _remembered(self) -> dict[str, Same]:
        try:
            data: Mapping[str, Mapping[str, str]] = json.loads(self._record.read_bytes())
        except FileNotFoundError:
            return {}
        return {name: Same(**each) for name, each in data.items()}

    def _remember(self, alike: Mapping[str, Same]) -> None:
        draft = self._record.with_suffix(".new")
        draft.write_text(json.dumps({name: asdict(each) for name, each in alike.items()}))
        draft.replace(self._record)

    def _tell(self, words: str) -> None:
        """Once is enough."""
        if words not in self._told:
            self._told.add(words)
            self._say(words)


def _look(found: os.stat_result) -> str | None:
    """How a file looks; None for what is no plain file. Its inode tells a replaced file from the same one."""
    if not stat.S_ISREG(found.st_mode):
        return None
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def _is_plain(name: str) -> bool:
    """Whether a key is a path below a folder."""
    parts = name.split("/")
    return "\0" not in name and not any(part in {"", ".", ".."} or len(part.encode()) > 255 for part in parts)  # noqa: PLR2004


def _make_open(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)  # the user of the image may be anybody
