"""Container images made on this machine and given to a cluster's containerd; no registry is asked.

Called by cluster.py, the addons and tests. An image is an OCI layout in a tar archive, written here, so that neither
podman nor a daemon is needed. containerd gets only the layers that it has not.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests import images
from tests.cluster import parts
from tests.cluster.core import PAUSE
from tests.cluster.place import Place

BUSYBOX = "localhost/oscar-test/busybox:1"
USER_1001 = "localhost/oscar-test/user-1001:1"
SERVER = "localhost/oscar-test/server:dev"
OCI = "application/vnd.oci.image"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Layer:
    """A tar archive of files, in memory or a file."""

    source: bytes | Path

    @property
    def size(self) -> int:
        """How long it is."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @property
    def digest(self) -> str:
        """Its name; that of a file is kept beside it, as files here never change."""
        if isinstance(self.source, bytes):
            return f"sha256:{hashlib.sha256(self.source).hexdigest()}"
        beside = self.source.with_suffix(".digest")
        if not beside.exists():
            with self.source.open("rb") as stream:
                beside.write_text(f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}")
        return beside.read_text()

    def open(self) -> IO[bytes]:
        """Read it."""
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


def layer(files: Mapping[str, tuple[bytes, int]]) -> Layer:
    """A layer of files: path to content and mode. Folders on the way are made, and one whose path ends with "/"."""
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
            info = tarfile.TarInfo(name.rstrip("/"))
            info.mode, info.size = mode, len(content)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            archive.addfile(info, io.BytesIO(content))
    return Layer(buffer.getvalue())


@dataclass(frozen=True, slots=True)
class Image:
    """An image to be made.

    Attributes:
        name: its full name.
        layers: from the lowest.
        config: what it runs: `Entrypoint`, `Cmd`, `Env`, `User`, `WorkingDir`.
    """

    name: str
    layers: Sequence[Layer]
    config: Mapping[str, Any]

    def write(self, stream: IO[bytes], given: frozenset[str] = frozenset()) -> None:
        """Write it as an OCI layout in a tar archive; `given` are digests that the reader has already."""
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Env": [PATH]} | dict(self.config),
                "rootfs": {"type": "layers", "diff_ids": [it.digest for it in self.layers]},
            }
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{OCI}.manifest.v1+json",
                "config": _named(Layer(config), f"{OCI}.config.v1+json"),
                "layers": [_named(it, f"{OCI}.layer.v1.tar") for it in self.layers],
            }
        ).encode()
        names = {"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": self.name}
        entry = _named(Layer(manifest), f"{OCI}.manifest.v1+json") | {"annotations": names}
        index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        blobs = [Layer(config), Layer(manifest), *(it for it in self.layers if it.digest not in given)]
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            _add(archive, "oci-layout", Layer(b'{"imageLayoutVersion": "1.0.0"}'))
            _add(archive, "index.json", Layer(index))
            for name, blob in {it.digest: it for it in blobs}.items():
                _add(archive, f"blobs/{name.replace(':', '/')}", blob)


def _named(blob: Layer, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": blob.digest, "size": blob.size}


def _add(archive: tarfile.TarFile, name: str, blob: Layer) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = blob.size, 0o644
    with blob.open() as stream:
        archive.addfile(info, stream)


def load(place: Place, *made: Image) -> None:
    """Give images to a cluster's containerd, without the layers that it has."""
    for image in made:
        has = frozenset(_ctr(place, "content", "ls", "--quiet").split())
        command = [*_words(place), "images", "import", "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            if process.stdin:
                image.write(process.stdin, has)
        if process.returncode != 0:
            raise RuntimeError(f"containerd did not take {image.name}")


def _words(place: Place) -> list[str]:
    return ["ctr", f"--address={place.containerd}", "--namespace=k8s.io"]


def _ctr(place: Place, *words: str) -> str:
    done = subprocess.run([*_words(place), *words], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ctr {' '.join(words)}: {done.stderr}")
    return done.stdout


def basics() -> list[Image]:
    """The images that every cluster has: pause, a shell, and the shell as another user than root."""
    pause = layer({"pause": (Path(parts.program("kubernetes", "pause")).read_bytes(), 0o755)})
    shell = Layer(images.busybox_root())
    return [
        Image(PAUSE, [pause], {"Entrypoint": ["/pause"], "User": "65535:65535"}),
        Image(BUSYBOX, [shell], {"Cmd": ["sh"]}),
        Image(USER_1001, [shell], {"Cmd": ["sh"], "User": "1001", "WorkingDir": "/tmp"}),
    ]


def server() -> Image:
    """The image of the server, by the recipe in deploy/image: its code is this checkout's."""
    recipe = parts.TREE / "deploy" / "image" / "rootfs"
    made = subprocess.run([recipe], check=False, capture_output=True, text=True)
    if made.returncode != 0:
        raise parts.PartMissing(f"{recipe}: {made.stderr[-2000:]}")
    config = {
        "Entrypoint": ["oscar"],
        "Cmd": ["serve"],
        "Env": [
            PATH,
            "PYTHONPATH=/opt/oscar/code:/opt/oscar/packages",
            "PYTHONUNBUFFERED=1",
            "OSCAR_DATA=/var/lib/oscar",
        ],
        "User": "10001:10001",
        "WorkingDir": "/var/lib/oscar",
    }
    return Image(SERVER, [Layer(Path(path)) for path in made.stdout.split()], config)
