"""The engines that work here, each with an image, and a bare container without any server.

Used by the parts that run scripts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests import images, server


def working() -> list[tuple[str, str]]:
    """Names and images: containers, of the tool that a server would choose first, and processes."""
    found: list[tuple[str, str]] = []
    try:
        name = images.engine()
        found.append((name, images.busybox(name)))
    except images.ImageImpossible as why:
        print(f"no containers: {why}", file=sys.stderr)
    if server.sandbox_works():
        found.append(("process", "none"))
    return found


def named(name: str, engine: str) -> str:
    """The name of a row for that engine."""
    return name if engine != "process" else f"{name}.process"


def options(at: server.Server, engine: str) -> list[str]:
    """The options with which that server starts containers here, so that bare ones do the same."""
    facts = json.loads((at.data / "engine" / f"{engine}.json").read_text())["facts"]
    return list(facts["options"])


def bare_container(engine: str, image: str, script: str, extra: Sequence[str] = ()) -> float:
    """Seconds of a container that runs the script's text; it is removed when the clock has stopped."""
    name = f"bare-{uuid.uuid4().hex[:12]}"
    begin = time.perf_counter()
    done = subprocess.run(
        [engine, "run", f"--name={name}", *extra, image, "/bin/sh", "-c", script],
        check=False,
        capture_output=True,
    )
    took = time.perf_counter() - begin
    subprocess.run([engine, "rm", "-f", name], check=False, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode())
    return took


def bare_sandbox(folder: Path) -> list[str]:
    """A command before a command: run it in a bubblewrap that shows this machine's programs and that folder."""
    command = ["bwrap", "--ro-bind", "/usr", "/usr"]
    # Not all of /: mounts of other programs that vanish meanwhile would fail it.
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            command += ["--symlink", str(path.readlink()), str(path)]
        elif path.exists():
            command += ["--ro-bind", str(path), str(path)]
    command += ["--bind", str(folder), str(folder), "--proc", "/proc", "--dev", "/dev"]
    return [*command, "--unshare-pid", "--unshare-ipc", "--"]
