"""The process outside a cluster: makes its namespaces and its link, and removes all of it in the end.

`up` in cluster.py starts it, detached. It ends the cluster when it is told to (SIGTERM), when its owner is gone, when
`up` dies before all is there, or when the first process inside ends. Killed itself, the kernel ends the first process
inside and with it everything but a folder and empty control groups: the next `up` or `down` removes those (`sweep`).

    python -m tests.cluster.keeper NAME OWNER

It locks the cluster's name and slot as long as it lives, so that what is not locked is a left-over. Reads stdin: `up`
says there when the cluster is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from tests.cluster.place import SLOTS, Place, root

GROUPS = Path("/sys/fs/cgroup")


class Locked(Exception):
    """somebody else holds it"""


def lock(path: Path, patience: float = 0.0) -> int:
    """Lock a file until this process ends.

    Raises:
        Locked: another process has it, and keeps it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            os.close(handle)
            raise Locked(f"{path} is another process's") from None
        return handle


def name_lock(name: str) -> Path:
    """The file that the keeper of a cluster locks: outside the folder, which comes and goes."""
    return root() / f"{name}.lock"


def state(name: str) -> dict[str, Any] | None:
    """What the keeper wrote about a cluster: slot, pid of the keeper, addons, ready."""
    try:
        found: dict[str, Any] = json.loads((root() / name / "state.json").read_text())
    except FileNotFoundError:
        return None
    return found


def write_state(name: str, **words: Any) -> None:
    """Change what is known about a cluster, at once and whole."""
    path = root() / name / "state.json"
    new = path.with_suffix(".new")
    new.write_text(json.dumps((state(name) or {}) | words))
    new.replace(path)


def _routes() -> list[IPv4Network]:
    listed = subprocess.run(["ip", "-j", "-4", "route"], check=True, capture_output=True, text=True).stdout
    return [
        IPv4Network(route["dst"], strict=False)
        for route in json.loads(listed or "[]")
        if route["dst"] != "default"
    ]


def take_place(name: str) -> Place:
    """A slot that no cluster has and whose addresses lead nowhere else."""
    routes = _routes()
    for slot in range(SLOTS):
        place = Place(name, slot)
        if any(place.network.overlaps(route) for route in routes):
            continue
        try:
            lock(root() / f"slot-{slot}.lock")
        except Locked:
            continue
        return place
    raise Locked(f"all {SLOTS} slots are taken")


def control_groups(place_group: str) -> Iterator[Path]:
    """A cluster's control group in each hierarchy of this machine (one with version 2)."""
    if (GROUPS / "cgroup.controllers").exists():
        yield GROUPS / place_group.lstrip("/")
        return
    for hierarchy in sorted(GROUPS.iterdir()):
        # Links such as cpuacct -> cpu,cpuacct would be the same one twice.
        if hierarchy.is_dir() and not hierarchy.is_symlink():
            yield hierarchy / place_group.lstrip("/")


def make_groups(place: Place) -> None:
    """Kubelet takes a parent group only when every hierarchy has it."""
    for group in control_groups(place.control_group):
        group.mkdir(exist_ok=True)
        for value in ("cpuset.cpus", "cpuset.mems"):
            if (group / value).exists():
                (group / value).write_text((group.parent / value).read_text())
        if (group / "cgroup.subtree_control").exists() and group.parent == GROUPS:
            controllers = (group / "cgroup.controllers").read_text().split()
            (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


def remove(name: str) -> None:
    """Remove what the kernel does not: control groups and the folder. Everything inside has ended."""
    for top in control_groups(Place(name, 0).control_group):
        for group, _, _ in os.walk(top, topdown=False):
            _patiently(Path(group).rmdir)
    folder = root() / name
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if any(Path(mount).is_relative_to(folder) for mount in mounts):
        raise RuntimeError(f"something is mounted below {folder}, so it stays")
    if folder.exists():
        _patiently(lambda: shutil.rmtree(folder))


def _patiently(action: Any) -> None:
    """Do it again while the kernel still takes processes and mounts away."""
    deadline = time.monotonic() + 30
    while True:
        try:
            action()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def sweep() -> list[str]:
    """Remove what killed keepers left; returns the clusters' names."""
    swept = []
    for folder in sorted(path for path in root().glob("*") if path.is_dir()):
        try:
            handle = lock(name_lock(folder.name))
        except Locked:
            continue
        try:
            remove(folder.name)
            swept.append(folder.name)
        finally:
            os.close(handle)
    return swept


class Keeper:
    """Keeps one cluster's namespaces."""

    def __init__(self, name: str, owner: int) -> None:
        # One that only looks whether the cluster lives has it for an instant.
        lock(name_lock(name), patience=5)
        remove(name)
        self.place = take_place(name)
        self.owner = owner
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the namespaces and the link into them."""
        place = self.place
        (place.folder / "log").mkdir(parents=True)
        place.folder.chmod(0o700)
        write_state(place.name, slot=place.slot, keeper=os.getpid(), owner=self.owner, ready=False, addons=[])
        make_groups(place)
        # The first process inside goes with unshare, and unshare with this one.
        self.process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--propagation", "private"),
                *("--fork", "--kill-child=KILL", "--mount-proc"),
                *(sys.executable, "-m", "tests.cluster.init", place.name, str(place.slot)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self._expect(b"inside")
        link = ("ip", "link", "add", place.link, "type", "veth", "peer", "name", "link0", "netns")
        subprocess.run([*link, str(self.process.pid)], check=True)
        subprocess.run(["ip", "address", "add", f"{place.host}/30", "dev", place.link], check=True)
        subprocess.run(["ip", "link", "set", place.link, "up"], check=True)
        subprocess.run(["ip", "route", "add", str(place.network), "via", str(place.node)], check=True)
        self._expect(b"serving")

    def _expect(self, word: bytes) -> None:
        if self.process is None or self.process.stdout is None:
            raise RuntimeError("not started")
        line = self.process.stdout.readline().strip()
        if line != word:
            raise RuntimeError(f"the first process inside said {line!r} instead of {word!r}")

    def wait(self) -> str:
        """Wait for a reason to end it."""
        if self.process is None:
            raise RuntimeError("not started")
        told, tell = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os.write(tell, b"x"))
        with selectors.DefaultSelector() as selector:
            selector.register(told, selectors.EVENT_READ, "told to")
            selector.register(
                os.pidfd_open(self.process.pid), selectors.EVENT_READ, "its first process ended"
            )
            if self.owner:
                try:
                    selector.register(os.pidfd_open(self.owner), selectors.EVENT_READ, "its owner is gone")
                except ProcessLookupError:
                    return "its owner is gone"
            selector.register(0, selectors.EVENT_READ, "stdin")
            while True:
                for key, _ in selector.select():
                    if key.data != "stdin":
                        return str(key.data)
                    if os.read(0, 100) != b"complete\n":
                        return "its start was not finished"
                    selector.unregister(0)

    def end(self) -> None:
        """End everything inside and remove what is left."""
        if self.process:
            self.process.kill()
            self.process.wait()
        subprocess.run(["ip", "link", "delete", self.place.link], check=False, capture_output=True)
        remove(self.place.name)


def main() -> None:
    """Keep a cluster until there is a reason to end it."""
    try:
        keeper = Keeper(sys.argv[1], int(sys.argv[2]))
    except Locked as locked:
        sys.exit(str(locked))
    try:
        keeper.start()
        print("started", flush=True)
        print(f"ending: {keeper.wait()}", file=sys.stderr, flush=True)
    finally:
        keeper.end()


if __name__ == "__main__":
    main()
