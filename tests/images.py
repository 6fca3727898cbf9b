"""Container images for tests, made on this machine: no registry is asked.

Called by the fixtures `busybox_image` and `user_image` of conftest.py; calls `podman` or `docker` to import a
root file system made of Debian's static busybox. An image is named by the hash of what it is made of, so that
it is made once per machine.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

FOLDERS = ("bin", "dev", "etc", "proc", "root", "sbin", "sys", "tmp", "usr", "usr/bin", "var", "var/tmp")
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nsomeone:x:1001:1001::/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nsomeone:x:1001:\n",
}


class ImageImpossible(Exception):
    """busybox is not installed, or it is not a static program"""


def busybox_root() -> bytes:
    """A root file system with busybox and its links, as a tar archive that is the same each time."""
    found = shutil.which("busybox")
    if not found:
        raise ImageImpossible(ImageImpossible.__doc__)
    program = Path(found)
    names = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(name: str, kind: bytes, mode: int, content: bytes = b"", link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.size, info.linkname = kind, mode, len(content), link
            archive.addfile(info, io.BytesIO(content))

        for folder in FOLDERS:
            add(folder, tarfile.DIRTYPE, 0o1777 if folder.endswith("tmp") else 0o755)
        for name, text in FILES.items():
            add(name, tarfile.REGTYPE, 0o644, text.encode())
        add("bin/busybox", tarfile.REGTYPE, 0o755, program.read_bytes())
        for name in sorted(names):
            if name != "busybox":
                add(f"bin/{name}", tarfile.SYMTYPE, 0o777, link="busybox")
    return buffer.getvalue()


def busybox(engine: str, *changes: str) -> str:
    """Have a busybox image in an engine's store.

    Args:
        engine: `podman` or `docker`.
        changes: instructions of a Containerfile to apply, such as `USER 1001`.

    Returns:
        its name.

    Raises:
        ImageImpossible: it can't be made here.
    """
    root = busybox_root()
    digest = hashlib.sha256(root + "\n".join(changes).encode()).hexdigest()[:16]
    name = f"localhost/oscar-test:{digest}"
    known = subprocess.run([engine, "image", "inspect", name], check=False, capture_output=True)
    if known.returncode != 0:
        words = [word for change in changes for word in ("--change", change)]
        made = subprocess.run(
            [engine, "import", *words, "-", name], input=root, check=False, capture_output=True
        )
        if made.returncode != 0:
            raise ImageImpossible(f"{engine} can't import an image: {made.stderr.decode(errors='replace')}")
    return name


def engine() -> str:
    """The container engine that works here, found out by running it.

    Raises:
        ImageImpossible: there is none.
    """
    for name in ("podman", "docker"):
        if not shutil.which(name):
            continue
        answer = subprocess.run([name, "version"], check=False, capture_output=True)
        if answer.returncode == 0:
            return name
    raise ImageImpossible("neither podman nor docker works here")
