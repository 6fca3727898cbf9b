"""What a service has mounted into all its containers: its managed volume and its `mount`. The one place for both.

Called for each sandbox of a service, be it that of a job (`attempt`), a warm worker (`worker`) or an exposed replica:
`attach` before it starts, `flush` when its script has ended, `detach` when it is gone. Calls `volumes` and `mounts`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from oscar.compute.local.engine import Engine, Mount
from oscar.compute.local.mounts import Mounts
from oscar.compute.local.volumes import Volumes
from oscar.errors import Unsupported
from oscar.model.service import Service
from oscar.model.volume import key_of

Say = Callable[[str], None]
_SYSTEM = ("/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr")
"""What processes share with this machine: nothing of a user's may lie over it."""


def _silent(_words: str) -> None:
    return None


class Attachments:
    """Volumes and mounts of sandboxes; services without either cost nothing."""

    def __init__(self, engine: Engine, volumes: Volumes, mounts: Mounts) -> None:
        self._engine = engine
        self._volumes = volumes
        self._mounts = mounts

    def check(self, service: Service) -> list[str]:
        """What this engine can't honour, as warnings.

        Raises:
            Unsupported: the volume can't be where it is wanted.
        """
        if self._engine.name == "process" and service.volume:
            path = Path(service.volume.mount_path)
            if any(path.is_relative_to(folder) for folder in _SYSTEM):
                raise Unsupported(
                    f"{path} belongs to this machine, whose programs the script uses",
                    field="volume.mount_path",
                    fix='Choose another folder, such as "/data".',
                )
        if self._engine.maps_paths:
            return []
        return [
            f"{name}: without a sandbox the folder is where ${variable} says"
            for name, variable, wanted in (
                ("volume", "OSCAR_VOLUME_PATH", service.volume),
                ("mount", "OSCAR_MOUNT_PATH", service.mount),
            )
            if wanted
        ]

    async def attach(
        self, holder: str, service: Service, say: Say = _silent, *, live: bool = False
    ) -> tuple[tuple[Mount, ...], dict[str, str]]:
        """Have volume and mount ready for a sandbox. Twice is once.

        Args:
            holder: the sandbox's name.
            service: with its secrets.
            say: told what the user should know.
            live: the sandbox is a server: nobody will `flush` after a script.

        Returns:
            What to mount, and variables that say where it is inside.

        Raises:
            OscarError: it can't be had.
        """
        found: list[tuple[str, Mount]] = []
        key = key_of(service)
        if key is not None and service.volume is not None:
            folder = await self._volumes.folder(key)
            usage = await self._volumes.measure(key)
            over = usage is not None and usage.used > usage.size
            if over:
                say(f"the volume {service.volume.name} is over its size: it is read-only")
            mount = Mount(folder, service.volume.mount_path, read_only=over)
            found.append(("OSCAR_VOLUME_PATH", mount))
        mounted = await self._mounts.attach(holder, service, say, live=live)
        if mounted is not None:
            found.append(("OSCAR_MOUNT_PATH", mounted))
        mapped = self._engine.maps_paths
        variables = {name: mount.target if mapped else str(mount.source) for name, mount in found}
        return tuple(mount for _, mount in found), variables

    def mounted(self, holder: str) -> bool:
        """Whether it has a mount."""
        return self._mounts.held(holder)

    async def refresh(self, holder: str) -> None:
        """Before another script in a sandbox that was there before."""
        await self._mounts.refresh(holder)

    async def flush(self, holder: str, service: Service, say: Say = _silent) -> None:
        """After a script: what it wrote into its mount is stored when this returns.

        Raises:
            OscarError: it is not, with the words of who refused.
        """
        await self._mounts.flush(holder, service, say)

    async def detach(self, holder: str) -> None:
        """The sandbox is gone. Silent if there is nothing of it."""
        await self._mounts.detach(holder)

    def trouble(self, holder: str) -> str:
        """Why the sandbox was ended by us: its mount died; empty while all is well."""
        return self._mounts.trouble(holder)
