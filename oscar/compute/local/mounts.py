"""The `mount` of services on this machine: a bucket shown as a folder, one for each sandbox, outside of it.

Called by `attachments`. Where rclone can mount (FUSE; found out by mounting something) it does, else a folder is
mirrored. Each lies in a folder of its own, named after its sandbox, which outlives this server like the sandbox:

    <sandbox>/mount.json   what it is, without secrets
    <sandbox>/fs, cache, log, pid         of rclone
    <sandbox>/data, alike.json            of a mirror
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oscar import telemetry
from oscar.compute.local.engine import Engine, Mount
from oscar.compute.local.mount_mirror import Mirror
from oscar.compute.local.mount_rclone import RcloneMount, obscured, probe
from oscar.errors import EngineError, InvalidField, OscarError, StorageError, Unsupported
from oscar.model.mount import flags, is_read_only
from oscar.model.provider import ProviderType
from oscar.model.service import MOUNTS, Service
from oscar.model.storage import MinIOProvider, S3Provider, StorageIOConfig, WebDavProvider
from oscar.objects.base import FileStore
from oscar.supervisor.plan import is_own
from oscar.supervisor.rclone import remote, webdav_password
from oscar.supervisor.trees import remove_tree

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")
_PROBE = ".probe"
_FOLLOW_EVERY = 10.0
_RESTING = 2.0
"""Seconds for which a file of a live mirror must not have changed to be stored."""

Say = Callable[[str], None]


@dataclass(slots=True)
class _Held:
    """The mount of one sandbox."""

    place: Path
    rclone: RcloneMount | None = None
    mirror: Mirror | None = None
    watch: asyncio.Task[None] | None = None
    trouble: str = ""


class Mounts:
    """The mounts below a folder.

    Args:
        folder: of the mounts alone; the engine must be able to mount folders below it.
        engine: that runs the sandboxes; ends those whose mount dies.
        stores: opens the store of a service's mount, for a mirror.
        own: the platform's own store with the keys of a service's owner; None where rclone can't reach it.
        checked: whether a service may connect to checked addresses only: rclone looks names up by itself and follows
            redirects, so foreign stores are mirrored then.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        stores: Callable[[Service], FileStore],
        own: Callable[[Service], Awaitable[MinIOProvider]] | None,
        *,
        checked: Callable[[Service], bool] = lambda _: False,
    ) -> None:
        self._folder = folder
        self._engine = engine
        self._stores = stores
        self._own = own
        self._checked = checked
        self._held: dict[str, _Held] = {}
        self._way: asyncio.Task[str] | None = None
        self._log = telemetry.get("mounts")

    async def start(self, keep: Callable[[str], Awaitable[bool]]) -> None:
        """Take over the mounts of sandboxes that go on, and remove what is left of others.

        Args:
            keep: whether a sandbox of that name goes on.
        """
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        for place in await asyncio.to_thread(lambda: list(self._folder.iterdir())):
            held = _Held(place)
            if not (place / "mount.json").exists() or not await keep(place.name):
                await self._remove(held)
                continue
            self._held[place.name] = held
            if json.loads((place / "mount.json").read_bytes())["rclone"]:
                held.rclone = RcloneMount(place)
                if held.rclone.adopt():
                    held.watch = asyncio.create_task(self._guard(place.name, held))
                else:
                    held.trouble = "the mount died while no server watched it"

    async def stop(self) -> None:
        """Watch no more; the mounts of sandboxes that go on stay."""
        if self._way is not None:
            self._way.cancel()
            await asyncio.wait([self._way])
        for held in self._held.values():
            await _unwatch(held)
            if held.rclone is not None:
                held.rclone.let_go()
        self._held.clear()

    async def way(self) -> str:
        """What is in the way of mounts by rclone; empty when they work. Found out once."""
        if self._way is None:
            self._way = asyncio.create_task(self._find_way(), name="trial of FUSE")
        return await asyncio.shield(self._way)

    async def attach(self, holder: str, service: Service, say: Say, *, live: bool = False) -> Mount | None:
        """Have the service's mount for a sandbox; None when it has none. Twice is once.

        With `live`, a mirror is made alike from time to time, for a server whose end nobody waits for.

        Raises:
            OscarError: it can't be mounted or read, with the words of who refused.
        """
        if service.mount is None:
            return None
        held = self._held.get(holder)
        if held is None:
            held = _Held(self._place(holder))
            await self._remove(held)
            self._held[holder] = held
            try:
                await self._make(held, holder, service, service.mount, say)
                if live and held.mirror is not None:
                    held.watch = asyncio.create_task(self._follow(held.mirror), name=f"mirror of {holder}")
            except BaseException:
                await self.detach(holder)
                raise
        source = held.rclone.target if held.rclone else held.place / "data"
        target = f"{MOUNTS}/{service.mount.path}"
        return Mount(source, target, read_only=is_read_only(service.mount.options))

    async def refresh(self, holder: str) -> None:
        """Before a script that runs in a sandbox which was there before: show what the bucket has now."""
        held = self._held.get(holder)
        if held is not None and held.mirror is not None:
            await held.mirror.pull()

    def held(self, holder: str) -> bool:
        """Whether it has a mount, perhaps one of an earlier server."""
        return holder in self._held

    async def flush(self, holder: str, service: Service, say: Say) -> None:
        """After a script: all that it wrote is in the bucket when this returns.

        Raises:
            OscarError: it is not, with the words of who refused.
        """
        held = self._held.get(holder)
        if held is None or service.mount is None:
            return
        if held.trouble:
            raise StorageError(held.trouble)
        if held.rclone is not None:
            await held.rclone.flush()
            return
        if held.mirror is None:  # of an earlier server
            held.mirror = self._mirror(held, service, service.mount, say)
        await self._engine.own(held.place / "data")
        await held.mirror.push()

    async def detach(self, holder: str) -> None:
        """Unmount it; changes are stored as far as that goes, but for mirrors of jobs. Silent if absent."""
        held = self._held.pop(holder, None)
        if held is not None:
            followed = held.mirror if held.watch is not None else None
            await _unwatch(held)
            if followed is not None:
                await self._last(followed.push())
            elif held.rclone is not None and held.rclone.alive and not held.trouble:
                await self._last(held.rclone.flush())
            await self._remove(held)

    def trouble(self, holder: str) -> str:
        """Why the mount of a sandbox died; empty while all is well."""
        held = self._held.get(holder)
        return held.trouble if held else ""

    # Parts.

    async def _find_way(self) -> str:
        # A docker daemon may live where our mounts are not seen, as in a virtual machine.
        if self._engine.name == "docker":
            return "docker may not see mounts of this server"
        held = _Held(self._folder / _PROBE)
        await self._remove(held)
        try:
            found = await probe(held.place)
        finally:
            await self._remove(held)
        if found:
            self._log.info("mounts are mirrored, rclone can't mount here", reason=found)
        return found

    async def _make(
        self, held: _Held, holder: str, service: Service, mount: StorageIOConfig, say: Say
    ) -> None:
        own = is_own(service, mount.provider)
        by_rclone = not await self.way() and (self._own is not None if own else not self._checked(service))
        await asyncio.to_thread(held.place.mkdir, mode=0o700)
        await asyncio.to_thread((held.place / "mount.json").write_text, json.dumps({"rclone": by_rclone}))
        if not by_rclone:
            held.mirror = self._mirror(held, service, mount, say)
            await held.mirror.pull()
            return
        program = shutil.which("rclone")
        if program is None:
            raise EngineError("rclone is not installed any more")
        provider = await self._provider(service, mount)
        password = ""
        if isinstance(provider, WebDavProvider):
            password = await obscured(program, webdav_password(provider))
        words = list(flags(mount.options))
        if isinstance(provider, MinIOProvider) and not provider.verify:
            words.append("--no-check-certificate")
        held.rclone = RcloneMount(held.place)
        await held.rclone.start(program, mount.path, remote(provider, password=password), words)
        held.watch = asyncio.create_task(self._guard(holder, held), name=f"mount of {holder}")

    async def _provider(
        self, service: Service, mount: StorageIOConfig
    ) -> MinIOProvider | S3Provider | WebDavProvider:
        if is_own(service, mount.provider):
            if self._own is None:
                raise EngineError("the platform's own store has no address")
            return await self._own(service)
        found = service.provider(mount.provider)
        if not isinstance(found, MinIOProvider | S3Provider | WebDavProvider):
            raise Unsupported(f"{mount.provider} can't be mounted", field="mount.storage_provider")
        if mount.provider.type is ProviderType.MINIO and not getattr(found, "endpoint", ""):
            raise InvalidField(f"{mount.provider} has no address", field="mount.storage_provider")
        return found

    def _mirror(self, held: _Held, service: Service, mount: StorageIOConfig, say: Say) -> Mirror:
        return Mirror(
            held.place,
            self._stores(service),
            mount.bucket,
            mount.folder,
            read_only=is_read_only(mount.options),
            say=say,
        )

    async def _follow(self, mirror: Mirror) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_EVERY)
            try:
                await mirror.push(resting=_RESTING)
            except (OscarError, OSError) as error:
                self._log.warning("a mirrored folder can't be made alike", reason=str(error))

    async def _last(self, storing: Coroutine[Any, Any, None]) -> None:
        """Store what was written since the last time; the sandbox has ended, and nobody is there to hear of trouble."""
        try:
            await storing
        except (OscarError, OSError) as error:
            self._log.warning("changes of a mounted folder are lost", reason=str(error))

    async def _guard(self, holder: str, held: _Held) -> None:
        """End the sandbox when its mount dies: it would go on with a folder that is not there."""
        if held.rclone is None:
            return
        await held.rclone.ended()
        held.trouble = f"the mount died: {await held.rclone.words() or 'rclone was ended'}"
        self._log.warning("a mount died", sandbox=holder, reason=held.trouble)
        try:
            await self._engine.kill(holder)
        except OscarError as error:
            self._log.warning("its sandbox can't be ended", sandbox=holder, reason=error.message)

    async def _remove(self, held: _Held) -> None:
        # Never below a mount that is there: that would empty the bucket.
        await RcloneMount(held.place).stop() if held.rclone is None else await held.rclone.stop()
        try:
            await asyncio.to_thread(remove_tree, held.place)
        except PermissionError:
            await self._engine.own(held.place)
            await asyncio.to_thread(remove_tree, held.place)

    def _place(self, holder: str) -> Path:
        if not _NAME.fullmatch(holder):
            raise EngineError(f"{holder!r} is not a name for a sandbox")
        return self._folder / holder


async def _unwatch(held: _Held) -> None:
    if held.watch is not None:
        held.watch.cancel()
        await asyncio.wait([held.watch])
