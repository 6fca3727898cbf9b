"""A test cluster: `up`, `down`, and the object that tests hold. Called by the command (__main__.py) and the fixture.

Calls keeper.py for the namespaces, core.py for the programs, and the addons for the rest.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import core, images, keeper, parts, pki
from tests.cluster.inside import PATIENCE, Inside
from tests.cluster.place import NODE, Place, root


class ClusterFailed(Exception):
    """a test cluster did not come up"""


class NotOurs(Exception):
    """the cluster is the caller's own, its programs are not ours to stop"""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster.

    Attributes:
        kubeconfig: an administrator's.
        host: the address of this machine that pods reach: where a test listens for them.
        node: the address of a node that this machine reaches.
        place: where it is; none when it is the caller's own.
    """

    kubeconfig: Path
    host: str
    node: str
    place: Place | None = None

    @property
    def inside(self) -> Inside:
        """Its programs, to stop and start them.

        Raises:
            NotOurs: it is the caller's own cluster.
        """
        return Inside(self.own_place)

    @property
    def own_place(self) -> Place:
        """Where it is.

        Raises:
            NotOurs: it is the caller's own cluster.
        """
        if self.place is None:
            raise NotOurs(NotOurs.__doc__)
        return self.place

    def kubectl(self, *words: str, text: str = "") -> str:
        """What kubectl answers; its input is a text.

        Raises:
            ClusterFailed: it fails, with its words.
        """
        done = self.try_kubectl(*words, text=text)
        if done.returncode != 0:
            raise ClusterFailed(f"kubectl {' '.join(words)}: {done.stderr}")
        return done.stdout

    def try_kubectl(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """The same, whatever comes of it."""
        program = parts.program("kubernetes", "kubectl")
        command = [
            program,
            f"--kubeconfig={self.kubeconfig}",
            f"--cache-dir={self.kubeconfig.parent / 'kubectl'}",
        ]
        return subprocess.run([*command, *words], input=text, check=False, capture_output=True, text=True)

    def get(self, *words: str) -> Any:
        """`kubectl get … -o json`, decoded."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, objects: Iterable[Mapping[str, Any]], *words: str) -> None:
        """Apply objects on the server's side."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", *words, text=text)

    def certificate(self, name: str, *, hosts: Sequence[str] = ()) -> pki.Pair:
        """A certificate of the cluster's authority for the node's address and for hosts."""
        place = self.own_place
        authority = pki.Authority(place.folder / "pki", "kubernetes-ca")
        return authority.issue(f"test-{name}", name, hosts=hosts, addresses=[place.node])

    @property
    def authority(self) -> Path:
        """The certificate of the cluster's authority, for clients."""
        return self.own_place.folder / "pki" / "kubernetes-ca.crt"

    def add(self, *names: str) -> None:
        """Have add-ons (addons/), such as `dns` or `kueue`; those that are there stay as they are."""
        from tests.cluster import addons

        addons.add(self, *names)

    def stop(self, program: str, number: int = signal.SIGTERM) -> None:
        """End one of its programs, such as `kube-apiserver`."""
        self.inside.stop(program, number)

    def start(self, program: str, extra: Sequence[str] = ()) -> None:
        """Start a program of the core again."""
        place = self.own_place
        self.inside.start(program, [*core.commands(place, extra_of(place.name))[program], *extra])

    def wait_api(self) -> None:
        """Wait until the API answers."""
        until(lambda: self.try_kubectl("get", "--raw", "/readyz").returncode == 0, "the API server is ready")

    def load(self, *made: images.Image) -> None:
        """Give images to its node."""
        images.load(self.own_place, *made)


def until(true: Callable[[], object], what: str, patience: float = PATIENCE, pause: float = 0.1) -> None:
    """Wait for something.

    Raises:
        ClusterFailed: it does not come.
    """
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            raise ClusterFailed(f"after {patience:.0f} s still not: {what}")
        time.sleep(pause)


def extra_of(name: str) -> core.Extra:
    """The extra arguments that a cluster was started with."""
    found: core.Extra = (keeper.state(name) or {}).get("extra", {})
    return found


def find(name: str) -> Cluster | None:
    """A cluster that is complete, by its name."""
    known = keeper.state(name)
    if not known or not known["ready"] or not alive(name):
        return None
    return _cluster(Place(name, known["slot"]))


def need(name: str) -> Cluster:
    """A cluster that must be there.

    Raises:
        ClusterFailed: it is not.
    """
    found = find(name)
    if not found:
        raise ClusterFailed(f"there is no cluster {name}: .venv/bin/python -m tests.cluster up --name {name}")
    return found


def _cluster(place: Place) -> Cluster:
    return Cluster(place.kubeconfig, str(place.host), str(place.node), place)


def alive(name: str) -> bool:
    """Whether a cluster's keeper lives."""
    try:
        os.close(keeper.lock(keeper.name_lock(name)))
    except keeper.Locked:
        return True
    return False


def names() -> list[str]:
    """All clusters of this machine."""
    return sorted(path.parent.name for path in root().glob("*/state.json"))


def up(name: str, *, owner: int = 0, extra: core.Extra | None = None) -> Cluster:
    """Start a cluster: control plane, node and the basic images.

    Args:
        name: no running cluster has it.
        owner: the process whose end ends the cluster; 0 = `down` ends it.
        extra: more arguments of programs of the core.

    Raises:
        PartMissing: something it is made of is not here.
        ClusterFailed: it did not come up; nothing of it is left.
    """
    parts.check_system()
    parts.folder("kubernetes")
    keeper.sweep()
    read, write = os.pipe()
    root().mkdir(parents=True, exist_ok=True)
    with (root() / f"{name}.log").open("wb") as log, os.fdopen(write, "wb", 0) as telling:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.keeper", name, str(owner)],
            stdin=read,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            cwd=parts.TREE,
        )
        os.close(read)
        with process:
            said = process.stdout.readline().strip() if process.stdout else b""
            if said != b"started":
                process.wait()
                raise ClusterFailed(f"{name}: {(root() / f'{name}.log').read_text(errors='replace')}")
            try:
                cluster = _fill(Place(name, (keeper.state(name) or {})["slot"]), extra or {})
                keeper.write_state(name, ready=True, extra=extra or {})
                telling.write(b"complete\n")
            except BaseException:
                process.terminate()
                process.wait()
                raise
            # It is init's child from now on, as this process may be gone long before.
            process.returncode = 0
    return cluster


def _fill(place: Place, extra: core.Extra) -> Cluster:
    """Start the programs in their order, waiting where one needs another."""
    core.write_settings(place)
    inside, cluster = Inside(place), _cluster(place)
    commands = core.commands(place, extra)

    def ready(name: str, true: Callable[[], bool], what: str) -> None:
        def look() -> bool:
            inside.check(name)
            return true()

        until(look, what)

    for name in ("etcd", "containerd", "kube-apiserver"):
        inside.start(name, commands[name])
    ready("containerd", place.containerd.exists, "containerd takes images")
    images.load(place, *images.basics())
    ready("kube-apiserver", lambda: answers(place), "the API server is ready")
    for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet"):
        inside.start(name, commands[name])
    cluster.apply(core.bootstrap())
    ready("kubelet", lambda: _node_ready(cluster), "the node is ready")
    until(lambda: cluster.try_kubectl("get", "serviceaccount", "default").returncode == 0, "pods may be made")
    for name in commands:
        inside.check(name)
    return cluster


def answers(place: Place) -> bool:
    """Whether the API server says that it is ready."""
    trusted = ssl.create_default_context(cafile=place.folder / "pki" / "kubernetes-ca.crt")
    try:
        with urllib.request.urlopen(f"{place.api}/readyz", timeout=5, context=trusted) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _node_ready(cluster: Cluster) -> bool:
    asked = cluster.try_kubectl("get", "node", NODE, "-o", "json")
    if asked.returncode != 0:
        return False
    node = json.loads(asked.stdout)
    ready = any(it["type"] == "Ready" and it["status"] == "True" for it in node["status"]["conditions"])
    return ready and not node["spec"].get("taints")


def down(name: str) -> None:
    """End a cluster and remove all of it, also what a killed keeper left."""
    known = keeper.state(name)
    if known and alive(name):
        os.kill(known["keeper"], signal.SIGTERM)
        until(lambda: not alive(name), f"the keeper of {name} has ended")
    keeper.sweep()
    for ending in ("log", "adding", "lock"):
        (root() / f"{name}.{ending}").unlink(missing_ok=True)
