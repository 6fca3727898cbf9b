"""The container image of the demo: Python with Pillow, made on this machine or pulled.

Called by `oscar.demo.run`; calls podman or docker, and debootstrap, as processes. An image made here is named
by the hash of its recipe; its root file system stays in the user's cache for the next demo.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from oscar.errors import ImageError

PULLED = "docker.io/library/python:3.13-alpine"
"""Has no Pillow; the script of the demo does without."""

REGISTRY_ANSWERS_WITHIN = 3.0
PULL_WITHIN = 120.0

PACKAGES = ("python3-minimal", "python3-pil")
LEFT_OUT = (
    "dev",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache",
    "var/lib/apt/lists",
    "var/log",
)

Say = Callable[[str], None]


async def output(*argv: str, within: float | None = None) -> tuple[int, str]:
    """Run a program to its end.

    Args:
        argv: the program and its arguments.
        within: seconds after which it is killed; None for no limit.

    Returns:
        its exit code and all it said.

    Raises:
        TimeoutError: it took longer.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), within)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, said.decode(errors="replace").strip()


def suite() -> str:
    """The Debian release to make the image of: this machine's own where it is Debian, else the stable one."""
    facts = platform.freedesktop_os_release()
    if facts.get("ID") == "debian":
        return facts.get("VERSION_CODENAME", "stable")
    return "stable"


def cache() -> Path:
    """Where files are kept that can be made anew."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "oscar"


async def ensure(engine: str, say: Say) -> str:
    """Have an image with python3 in the engine's store.

    Args:
        engine: `podman` or `docker`.
        say: takes a line for the user.

    Returns:
        the image's name.

    Raises:
        ImageError: neither can it be made here nor does a registry answer.
    """
    troubles = []
    if os.geteuid() == 0 and shutil.which("debootstrap"):
        try:
            return await made(engine, say)
        except ImageError as trouble:
            troubles.append(trouble.message)
    else:
        troubles.append("it is made on the machine only by root with debootstrap")
    if (await output(engine, "image", "inspect", PULLED))[0] == 0:
        return PULLED
    host = PULLED.partition("/")[0]
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, 443), REGISTRY_ANSWERS_WITHIN)
        writer.close()
        say(f"pulling {PULLED}")
        code, said = await output(engine, "pull", "--quiet", PULLED, within=PULL_WITHIN)
    except (OSError, TimeoutError) as trouble:
        troubles.append(f"{host} does not answer ({trouble or 'no answer in time'})")
    else:
        if code == 0:
            return PULLED
        troubles.append(said)
    raise ImageError(
        "no image for the demo: " + "; ".join(troubles),
        fix=f"As root install debootstrap, or have {engine} pull {PULLED}.",
    )


async def made(engine: str, say: Say) -> str:
    """Have the image that is made here, from the cache or anew.

    Raises:
        ImageError: in the words of the program that failed.
    """
    recipe = repr((suite(), platform.machine(), PACKAGES, LEFT_OUT))
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    name = f"localhost/oscar-demo:{digest}"
    if (await output(engine, "image", "inspect", name))[0] == 0:
        return name
    archive = cache() / f"demo-image-{digest}.tar"
    if not archive.exists():
        say(f"making an image of Debian {suite()} with {' and '.join(PACKAGES)} (once, under a minute)")
        await bootstrap(archive)
    code, said = await output(engine, "import", str(archive), name)
    if code != 0:
        raise ImageError(f"{engine} import: {said}")
    return name


async def bootstrap(archive: Path) -> None:
    """Make the root file system and keep it as `archive`, which appears whole or not at all.

    Raises:
        ImageError: in debootstrap's words.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    # In the cache's folder: debootstrap makes devices and programs, which /tmp is often mounted to refuse.
    with tempfile.TemporaryDirectory(dir=archive.parent, ignore_cleanup_errors=True) as folder:
        root, packed = Path(folder, "root"), Path(folder, "packed")
        packages = ",".join(PACKAGES)
        words = ("debootstrap", "--variant=minbase", f"--include={packages}", suite(), str(root))
        code, said = await output(*words)
        if code != 0:
            raise ImageError(f"debootstrap: {' '.join(said.splitlines()[-3:])}")
        await asyncio.to_thread(pack, root, packed)
        packed.rename(archive)


def pack(root: Path, packed: Path) -> None:
    """Put a root file system into a tar archive, less what an image has no use for."""

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        inside = entry.name.removeprefix("./")
        return None if any(inside.startswith(f"{folder}/") for folder in LEFT_OUT) else entry

    with tarfile.open(packed, "w") as archive:
        archive.add(root, arcname=".", filter=wanted)
