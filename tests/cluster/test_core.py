"""The core of the test cluster: real pods run in it, several live at once, and nothing of one stays."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import oscar
from tests.cluster import cluster, images, keeper, parts, pki
from tests.cluster.cluster import Cluster, until
from tests.cluster.place import Place

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(900)]

SPREAD = """
for interface in /sys/class/net/*; do echo "link ${interface##*/}"; done
cut -d' ' -f5 /proc/self/mountinfo
find /sys/fs/cgroup -maxdepth 2 -name 'oscar-test-*'
"""


def traces(name: str) -> list[str]:
    """What this machine has of a cluster: files, links, mounts, control groups, processes."""
    place = Place(name, (keeper.state(name) or {"slot": 63})["slot"])
    words = (name, place.link)
    listed = subprocess.run(["sh", "-c", SPREAD], check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    found = [line for line in listed if any(word in line for word in words)]
    if place.folder.exists():
        found.append(str(place.folder))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(place.folder) in command or f"tests.cluster.keeper {name}" in command:
            found.append(command)
    return found


def pod(name: str, command: str, image: str = images.BUSYBOX) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": image, "command": ["sh", "-c", command]}],
        },
    }


def run(target: Cluster, command: str, image: str = images.BUSYBOX) -> str:
    """What a pod with this command says, once it has succeeded."""
    name = f"p{uuid.uuid4().hex[:8]}"
    target.apply([pod(name, command, image)])
    target.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=120s")
    said = target.kubectl("logs", name)
    target.kubectl("delete", "pod", name, "--wait=false")
    return said


def answers(address: str, body: str) -> bool:
    """Whether this is what an address answers."""
    asked = subprocess.run(["curl", "-sf", "-m", "5", address], capture_output=True, check=False, text=True)
    return asked.stdout == body


@pytest.fixture
def name() -> Iterator[str]:
    chosen = f"core-{uuid.uuid4().hex[:8]}"
    yield chosen
    cluster.down(chosen)


def test_a_pod_runs_as_its_images_user_and_its_words_are_read(kubernetes: Cluster) -> None:
    assert run(kubernetes, "id -u", images.USER_1001) == "1001\n"


def test_the_servers_image_has_the_server_and_its_helpers(kubernetes: Cluster) -> None:
    kubernetes.load(images.server())
    said = run(
        kubernetes, "id -u; oscar --version; python -m oscar.supervisor --help; rclone version", images.SERVER
    )
    assert said.startswith(f"10001\n{oscar.__version__}\n")
    assert "usage" in said
    assert "rclone v" in said


def test_services_and_node_ports_are_reached_from_pods_and_from_this_machine(kubernetes: Cluster) -> None:
    name = f"web-{uuid.uuid4().hex[:6]}"
    serve = f"mkdir /www && echo {name} > /www/index.html && exec httpd -f -p 8080 -h /www"
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"type": "NodePort", "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    kubernetes.apply([pod(name, serve), service])
    spec = kubernetes.get("service", name)["spec"]
    addresses = [f"http://{spec['clusterIP']}/", f"http://{kubernetes.node}:{spec['ports'][0]['nodePort']}/"]
    for address in addresses:
        until(functools.partial(answers, address, f"{name}\n"), f"{address} answers")
        assert run(kubernetes, f"wget -qO- {address}") == f"{name}\n"
    kubernetes.kubectl("delete", "service,pod", name, "--wait=false")


def test_the_node_may_do_what_a_node_may(kubernetes: Cluster) -> None:
    place = kubernetes.own_place
    folder = place.folder / "pki"
    words = [
        f"--certificate-authority={folder / 'kubernetes-ca.crt'}",
        f"--client-certificate={folder / 'kubelet.crt'}",
        f"--client-key={folder / 'kubelet.key'}",
        f"--server={place.api}",
        "--kubeconfig=/dev/null",
    ]
    kubectl = [parts.program("kubernetes", "kubectl"), *words]
    kubernetes.kubectl("create", "secret", "generic", "not-mounted", "--from-literal=a=b")
    asked = subprocess.run(
        [*kubectl, "get", "secret", "not-mounted"], capture_output=True, check=False, text=True
    )
    kubernetes.kubectl("delete", "secret", "not-mounted")
    assert "Forbidden" in asked.stderr
    assert (
        subprocess.run([*kubectl, "get", "node", "node0"], capture_output=True, check=False).returncode == 0
    )


def test_a_stranger_is_refused(kubernetes: Cluster, tmp_path: Path) -> None:
    stranger = pki.Authority(tmp_path, "somebody-else").issue("me", "me", organization="system:masters")
    config = pki.write_kubeconfig(
        tmp_path / "config",
        server=kubernetes.own_place.api,
        authority=(kubernetes.own_place.folder / "pki" / "kubernetes-ca.crt").read_bytes(),
        user=stranger,
    )
    command = [parts.program("kubernetes", "kubectl"), f"--kubeconfig={config}", "get", "pods"]
    assert "must be logged in" in subprocess.run(command, capture_output=True, check=False, text=True).stderr


def test_two_clusters_at_once_and_nothing_of_one_stays(kubernetes: Cluster, name: str) -> None:
    second = cluster.up(name)
    assert run(second, "echo second") == "second\n"
    assert run(kubernetes, "echo first") == "first\n"
    own = kubernetes.own_place
    assert not own.network.overlaps(second.own_place.network)
    rules = ["sh", "-c", "iptables-save; ip6tables-save"]
    before = subprocess.run(rules, capture_output=True, check=True, text=True).stdout
    assert "KUBE-" not in before, "rules of a cluster are in its own network only"
    second.kubectl("run", "stays", f"--image={images.BUSYBOX}", "--", "sleep", "1000")
    second.kubectl("wait", "--for=condition=ready", "pod/stays", "--timeout=120s")
    assert traces(name)
    cluster.down(name)
    assert traces(name) == []
    assert run(kubernetes, "echo first") == "first\n"


def test_an_owner_that_is_killed_takes_its_cluster_along(name: str) -> None:
    up = f"import os, time; from tests.cluster import cluster; cluster.up({name!r}, owner=os.getpid())"
    code = f"{up}; print(1, flush=True); time.sleep(999)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=parts.TREE) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == b"1\n"
        assert traces(name)
        owner.kill()
    until(lambda: not traces(name), "nothing of the cluster is left")


def test_what_a_killed_keeper_leaves_goes_with_the_next_up(name: str, tmp_path: Path) -> None:
    cluster.up(name)
    os.kill((keeper.state(name) or {})["keeper"], signal.SIGKILL)
    until(lambda: not cluster.alive(name), "the keeper is gone")
    place = Place(name, (keeper.state(name) or {})["slot"])
    until(lambda: not any(place.link in it for it in traces(name)), "the network went with the processes")
    left = traces(name)
    assert left, "the folder stays"
    assert not any("kube" in it and "/proc" not in it and not it.startswith("/sys") for it in left)
    keeper.sweep()
    assert traces(name) == []


def test_a_program_is_stopped_and_started_again(name: str) -> None:
    own = cluster.up(name, extra={"kube-apiserver": ["--max-requests-inflight=77"]})
    own.stop("kube-apiserver", signal.SIGKILL)
    assert own.try_kubectl("get", "pods", "--request-timeout=3s").returncode != 0
    own.start("kube-apiserver")
    own.wait_api()
    own.stop("kubelet")
    own.start("kubelet")
    assert run(own, "echo again") == "again\n"
    assert own.inside.status()["kube-apiserver"]["ended"] is None
