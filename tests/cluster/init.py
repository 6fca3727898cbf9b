"""The first process of a cluster's namespaces: starts, signals and reaps its programs, asked over a socket.

keeper.py runs it under `unshare`; inside.py talks to it. When it ends, the kernel ends every process of the cluster,
containers included, and with the last of them go its mounts and its network. Standard library only, and one thread.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.place import NODE, Place

# Kubelet insists on these values, which belong to the whole machine: inside, they look as it wants them.
_BRIDGE = "02:00:5e:00:00:01"
KERNEL_VALUES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


@dataclass(slots=True)
class Program:
    """A started program; `ended` is its status once it is gone."""

    pid: int
    ended: int | None = None


@dataclass(slots=True)
class Init:
    """The programs by their names."""

    programs: dict[str, Program] = field(default_factory=dict)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a client asks, without waiting for anything."""
        name = request.get("name", "")
        match request["do"]:
            case "start":
                running = self.programs.get(name)
                if running and running.ended is None:
                    return {"error": f"{name} runs already"}
                self.programs[name] = Program(_spawn(request))
            case "signal":
                running = self.programs.get(name)
                if not running:
                    return {"error": f"no program {name}"}
                # A pid is another process's only after it was reaped, which this thread does.
                if running.ended is None:
                    os.kill(running.pid, request["signal"])
            case "status":
                pass
            case other:
                return {"error": f"what is {other}?"}
        return {"programs": {name: {"pid": it.pid, "ended": it.ended} for name, it in self.programs.items()}}

    def reap(self) -> None:
        """Take the status of all that ended: programs, and orphans that came to the first process."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for program in self.programs.values():
                if program.pid == pid and program.ended is None:
                    program.ended = os.waitstatus_to_exitcode(status)


def _spawn(request: dict[str, Any]) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, request["log"], flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    command = request["command"]
    return os.posix_spawnp(
        command[0],
        command,
        request["environment"],
        file_actions=actions,
        setpgroup=0,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGTERM, signal.SIGINT],
    )


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _mounts(place: Place) -> None:
    """Make this mount namespace the node's: what programs keep in fixed places stays apart."""
    _run("mount", "--make-rshared", "/")
    for name, value in KERNEL_VALUES.items():
        own = place.folder / "node" / name.replace("/", ".")
        own.parent.mkdir(exist_ok=True)
        own.write_text(f"{value}\n")
        _run("mount", "--bind", str(own), f"/proc/sys/{name}")
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run")
    # Where kubelet looks for it, whatever it is told, when it reads what containers use.
    Path("/run/containerd").mkdir()
    Path("/run/containerd/containerd.sock").symlink_to(place.containerd)
    for path in ("/var/log", "/var/lib/cni"):
        own = place.folder / "node" / path.replace("/", "-").lstrip("-")
        own.mkdir(parents=True)
        _run("mount", "--bind", str(own), path)
    # No name server answers here: a name from outside fails at once instead of after some seconds.
    resolv = place.folder / "node" / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    if os.path.exists("/etc/resolv.conf"):  # noqa: PTH110 - it may be a link into the /run that is covered now
        _run("mount", "--bind", str(resolv), "/etc/resolv.conf")


def _network(place: Place) -> None:
    """Bring up the node's end of the link (keeper.py put it here) and the bridge of its pods."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", f"{place.node}/30", "dev", "link0")
    _run("ip", "link", "set", "link0", "up")
    _run("ip", "route", "add", "default", "via", str(place.host))
    # An address of its own: else it has the lowest of its ports, and pods lose it when that port goes.
    _run("ip", "link", "add", "cni0", "address", _BRIDGE, "type", "bridge")
    _run("ip", "address", "add", f"{place.bridge}/{place.pods.prefixlen}", "dev", "cni0")
    _run("ip", "link", "set", "cni0", "up")


def _serve(place: Place) -> None:
    init = Init()
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place.control))
    listener.listen(64)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        print("serving", flush=True)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                woken.recv(4096)
                init.reap()
            if listener in ready:
                _one(init, listener)


def _one(init: Init, listener: socket.socket) -> None:
    """Answer one client; one that is slow or gone stops nobody for long."""
    client, _ = listener.accept()
    client.settimeout(5)
    try:
        with client, client.makefile("rwb") as stream:
            line = stream.readline()
            if line:
                init.reap()
                stream.write(json.dumps(init.answer(json.loads(line))).encode() + b"\n")
    except (OSError, KeyError, ValueError) as error:
        print(f"a request failed: {error!r}", file=sys.stderr, flush=True)


def main() -> None:
    """Wait for the link, then serve until killed."""
    place = Place(sys.argv[1], int(sys.argv[2]))
    socket.sethostname(NODE)
    print("inside", flush=True)
    deadline = time.monotonic() + 60
    while not Path("/proc/net/dev").read_text().count("link0"):
        if time.monotonic() > deadline:
            sys.exit("no link came from outside")
        time.sleep(0.01)
    _mounts(place)
    _network(place)
    _serve(place)


if __name__ == "__main__":
    main()
