"""Container images made on this machine and given to a cluster's containerd; no registry is asked.

Called by cluster.py and the addons. An image is an OCI layout in a tar archive, written here, so that neither podman
nor a daemon is needed; the same archive loads into podman and docker.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import images
from tests.cluster import parts
from tests.cluster.core import PAUSE
from tests.cluster.place import Place

BUSYBOX = "localhost/oscar-test/busybox:1"
USER_1001 = "localhost/oscar-test/user-1001:1"
OCI = "application/vnd.oci.image"


@dataclass(frozen=True, slots=True)
class Layer:
    """A tar archive of files, gzipped or not."""

    content: bytes
    compressed: bool = False

    @property
    def kind(self) -> str:
        """Its media type."""
        return f"{OCI}.layer.v1.tar{'+gzip' if self.compressed else ''}"

    @property
    def plain_digest(self) -> str:
        """The digest of what is inside."""
        return digest(gzip.decompress(self.content) if self.compressed else self.content)


def digest(content: bytes) -> str:
    """A blob's name."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def layer(files: Mapping[str, tuple[bytes, int]], *, owner: int = 0) -> Layer:
    """A layer of files: path to content and mode. Folders on the way are made."""
    buffer = io.BytesIO()
    made: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in sorted(files.items()):
            for parent in reversed(Path(name).parents):
                if str(parent) not in {".", *made}:
                    made.add(str(parent))
                    info = tarfile.TarInfo(str(parent))
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(info)
            info = tarfile.TarInfo(name)
            info.mode, info.size, info.uid, info.gid = mode, len(content), owner, owner
            archive.addfile(info, io.BytesIO(content))
    return Layer(buffer.getvalue())


def archive(
    name: str, layers: Sequence[Layer], config: Mapping[str, Any], *, given: Sequence[Layer] = ()
) -> bytes:
    """An image as an OCI layout in a tar archive.

    Args:
        name: the image's full name.
        layers: from the lowest.
        config: what it runs: `Entrypoint`, `Cmd`, `Env`, `User`, `WorkingDir`.
        given: layers that the receiver has already, which are named and not sent.
    """
    blobs: dict[str, bytes] = {}

    def blob(content: bytes, kind: str) -> dict[str, Any]:
        blobs[digest(content)] = content
        return {"mediaType": kind, "digest": digest(content), "size": len(content)}

    path = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": path | dict(config),
        "rootfs": {"type": "layers", "diff_ids": [it.plain_digest for it in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": blob(json.dumps(image).encode(), f"{OCI}.config.v1+json"),
        "layers": [blob(it.content, it.kind) for it in layers],
    }
    entry = blob(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json") | {
        "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    }
    for it in given:
        blobs.pop(digest(it.content), None)
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
        **{f"blobs/{key.replace(':', '/')}": content for key, content in blobs.items()},
    }
    return layer({path: (content, 0o644) for path, content in files.items()}).content


def load(place: Place, content: bytes) -> None:
    """Give an image to a cluster's containerd."""
    _ctr(place, "images", "import", "-", content=content)


def _ctr(place: Place, *words: str, content: bytes = b"") -> str:
    command = ["ctr", f"--address={place.containerd}", "--namespace=k8s.io", *words]
    done = subprocess.run(command, input=content, check=False, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"ctr {' '.join(words)}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode()


def program_layer(*programs: Path) -> Layer:
    """Static programs in the root folder."""
    return layer({path.name: (path.read_bytes(), 0o755) for path in programs})


def load_basics(place: Place) -> None:
    """The images that every cluster has: pause, a shell, and the shell as another user than root."""
    pause = program_layer(Path(parts.program("kubernetes", "pause")))
    load(place, archive(PAUSE, [pause], {"Entrypoint": ["/pause"], "User": "65535:65535"}))
    shell = Layer(images.busybox_root())
    load(place, archive(BUSYBOX, [shell], {"Cmd": ["sh"]}))
    load(place, archive(USER_1001, [shell], {"Cmd": ["sh"], "User": "1001", "WorkingDir": "/tmp"}))
